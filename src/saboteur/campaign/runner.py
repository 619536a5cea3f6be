"""Runs a campaign: golden run, rounds of work units over local processes, resume.

Running again takes up where a stopped run left off; a finished campaign is not run again. Whatever the number
of workers, and however often the run was killed, the finished store holds the same observations.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from ctypes import c_byte
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa

from saboteur.campaign.interrupts import held_interrupts, uninterrupted_children
from saboteur.campaign.model import Campaign
from saboteur.campaign.plan import Plan, Tally
from saboteur.campaign.sampler import Sampler
from saboteur.campaign.store import Round, Store
from saboteur.campaign.target import Target
from saboteur.errors import SaboteurError, StoreError, TargetError
from saboteur.faults.space import Faults, FaultSpace
from saboteur.outcomes.criteria import Criterion
from saboteur.outcomes.golden import Golden
from saboteur.outcomes.recorder import Recorder, outcome


@dataclass(frozen=True)
class Session:
    """A campaign with its target opened and its golden run made."""

    campaign: Campaign
    target: Target
    golden: Golden

    @classmethod
    @contextmanager
    def open(cls, campaign: Campaign) -> Iterator[Session]:
        """Open the target, run it fault-free twice and check that everything fits together.

        Raises:
            TargetError: when the golden runs differ, or an output does not fit a criterion.
            CampaignError, FaultError: when the campaign does not fit the target.
        """
        target = campaign.target.open(campaign.resources)
        try:
            golden = target.golden()
            again = target.golden()
            if golden.digest != again.digest:
                differ = ~np.isclose(golden.outputs, again.outputs, rtol=0, atol=0).reshape(golden.inputs, -1).all(
                    axis=1
                )
                raise TargetError(
                    f"golden run: two fault-free runs differ for {int(differ.sum())} of {golden.inputs} inputs; a "
                    "fault's effect cannot be told from chance. Switch off whatever is random (dropout: model.eval(), "
                    "sampling, non-deterministic kernels)"
                )
            for criterion in campaign.criteria:
                criterion.check(golden)
            yield cls(campaign, target, golden)
        finally:
            target.close()

    @cached_property
    def space(self) -> FaultSpace:
        """The population of single faults."""
        return self.target.space(self.campaign.faults)

    @cached_property
    def sampler(self) -> Sampler:
        """The trials."""
        return Sampler(self.campaign, self.space)

    @cached_property
    def plan(self) -> Plan:
        """How many trials."""
        return Plan.of(self.campaign, self.sampler, self.target)

    @cached_property
    def id(self) -> str:
        """The campaign's id."""
        return self.campaign.identity(self.target.fingerprint, self.sampler.list_digest)

    def run(self, faults: Faults) -> tuple[pa.Table, pa.Table | None]:
        """Inject the trials of ``faults``: their observations, and their raw outputs where they are kept."""
        recorder = Recorder(
            self.golden,
            self.campaign.criteria,
            faults.trials,
            self.sampler.inputs(faults, self.golden.inputs),
            self.campaign.keep_outputs,
        )
        self.target.inject(self.space, faults, recorder)
        return recorder.table(), recorder.pairs()

    def run_unit(self, step: Round, unit: int) -> tuple[pa.Table, pa.Table | None]:
        """Inject one work unit.

        The observations gain the columns ``stratum``, ``trial`` (its number in the stratum) and, for trials of
        one fault, ``region``, ``element``, ``step``, ``variant`` and ``bit``, else null.
        """
        tables, kept = [], []
        for stratum, start, stop in step.slices(unit):
            faults = self.sampler.faults(stratum, start, stop)
            table, pairs = self.run(faults)
            tables.append(_with_site(table, self.space, faults, stratum, start))
            if pairs is not None:
                number = pa.array(pairs["trial"].to_numpy() + start)
                pairs = pairs.set_column(0, "trial", number)
                kept.append(pairs.add_column(0, "stratum", pa.array(np.full(len(pairs), stratum, np.int32))))
        return pa.concat_tables(tables), pa.concat_tables(kept) if kept else None


def _with_site(table: pa.Table, space: FaultSpace, faults: Faults, stratum: int, start: int) -> pa.Table:
    single = np.diff(faults.bounds) == 1
    row = np.where(single, faults.bounds[:-1], 0)
    site = {"stratum": pa.array(np.full(faults.trials, stratum, np.int32)), "trial": start + np.arange(faults.trials)}
    columns = {
        "region": faults.region,
        "element": faults.element,
        "step": faults.step,
        "variant": faults.variant,
        "bit": space.bits(faults.region, faults.variant),
    }
    for name, values in columns.items():
        picked = values[row] if len(values) else np.zeros(faults.trials, values.dtype)
        site[name] = pa.array(picked, mask=~single)
    return pa.table(site | {name: table[name] for name in table.column_names})


@dataclass
class Progress:
    """What a running campaign reports."""

    round: int
    done: int
    planned: int
    sdc: int
    due: int
    invalid: int
    seconds: float
    fresh: int = 0

    @property
    def rate(self) -> float:
        """Trials per second of this run."""
        return self.fresh / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the end of the round at the present rate."""
        return (self.planned - self.done) / self.rate if self.rate else None


def run(
    campaign: Campaign,
    path: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_interrupt: Callable[[], None] = lambda: None,
) -> Store:
    """Run a campaign to the end of its plan into the store at ``path``, resuming what is there.

    Args:
        campaign: what to run.
        path: of the store.
        on_progress: called after each work unit.
        on_interrupt: called when an interrupt (Ctrl-C) has come and worker processes still finish their units.

    Raises:
        KeyboardInterrupt: after an interrupt; finished units stay.
        SaboteurError: when something is wrong with the campaign, target or store; finished units stay.
    """
    with Session.open(campaign) as session:
        store = Store.create(path, campaign, session.id, session.golden)
        plan = session.plan
        question = campaign.question
        with _executor(session, store, on_interrupt) as submit:
            while True:
                rounds = store.rounds()
                for step in rounds:
                    _run_round(session, store, step, submit, on_progress)
                before = rounds[-1].after if rounds else np.zeros(len(session.sampler.strata), np.int64)
                after = plan.next_round(before, _tally(store, question, session.golden, len(before)))
                if after is None:
                    break
                store.add_round(before, after, campaign.resources.unit_trials)
    return store


def _run_round(
    session: Session, store: Store, step: Round, submit: _Submit, on_progress: Callable[[Progress], None]
) -> None:
    finished = store.done(step)
    pending = [unit for unit in range(step.units) if unit not in finished]
    if not pending:
        return
    begun, question = monotonic(), session.campaign.question
    done = step.trials - sum(stop - start for unit in pending for _, start, stop in step.slices(unit))
    progress = Progress(step.number, done, step.trials, 0, 0, 0, 0.0)
    for table in submit(step, pending):
        kinds, counts = np.unique(outcome(table, question, session.golden), return_counts=True)
        found = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
        progress = Progress(
            step.number,
            progress.done + len(table),
            step.trials,
            progress.sdc + found.get("sdc", 0),
            progress.due + found.get("due", 0),
            progress.invalid + found.get("invalid", 0),
            monotonic() - begun,
            progress.fresh + len(table),
        )
        on_progress(progress)


def _tally(store: Store, question: Criterion, golden: Golden, strata: int) -> Tally:
    n, sdc = np.zeros(strata, np.int64), np.zeros(strata, np.int64)
    for table in store.tables():
        found, stratum = outcome(table, question, golden), table["stratum"].to_numpy()
        n += np.bincount(stratum[found != "invalid"], minlength=strata)
        sdc += np.bincount(stratum[found == "sdc"], minlength=strata)
    return Tally(n, sdc)


_POLL_S = 0.2
"""How long an interrupt may wait to be noticed."""

_Submit = Callable[[Round, list[int]], Iterator[pa.Table]]


@contextmanager
def _executor(session: Session, store: Store, on_interrupt: Callable[[], None]) -> Iterator[_Submit]:
    """Yield a function that runs units, here or in worker processes, and yields their tables as they finish.

    An interrupt stops a unit that runs here at once; worker processes finish the units that they are at, which
    are kept, unless a further interrupt kills them.
    """
    workers = session.campaign.resources.workers
    if workers == 1:

        def here(step: Round, units: list[int]) -> Iterator[pa.Table]:
            for unit in units:
                yield _finished_unit(session, store, step, unit)

        yield here
        return
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue(c_byte, 0)
    arguments = (session.campaign.model_dump_json(), str(store.path), stop)
    with (
        held_interrupts() as interrupted,
        ProcessPoolExecutor(workers, context, initializer=_open_worker, initargs=arguments) as pool,
    ):

        def spread(step: Round, units: list[int]) -> Iterator[pa.Table]:
            waiting = iter(units)
            running: set[Future[pa.Table]] = set()
            try:
                while not interrupted():
                    with uninterrupted_children():
                        running |= {
                            pool.submit(_work, step, unit) for unit in islice(waiting, 2 * workers - len(running))
                        }
                    if not running:
                        return
                    finished, running = wait(running, _POLL_S, FIRST_COMPLETED)
                    for future in finished:
                        yield future.result()
                stop.value = 1
                on_interrupt()
                raise KeyboardInterrupt
            except BrokenProcessPool as error:
                if interrupted():
                    raise KeyboardInterrupt from None
                raise SaboteurError(
                    "workers: a worker process died (killed, or out of memory); what was finished before is kept, "
                    "and the same command goes on from there. Fewer workers or a smaller batch_size need less memory"
                ) from error
            finally:
                if running:
                    stop.value = 1
                for future in running:
                    future.cancel()

        yield spread


def _finished_unit(session: Session, store: Store, step: Round, unit: int) -> pa.Table:
    """The observations of a unit: those that a helping process wrote in the meantime, or freshly injected."""
    if store.unit_path(step.number, unit).exists():
        return store.read_unit(step.number, unit)[0]
    table, pairs = session.run_unit(step, unit)
    store.write_unit(step.number, unit, table, pairs)
    return table


_worker: tuple[Session, Store] | Exception = StoreError("worker: not opened")
_stop = c_byte(0)


def _open_worker(campaign: str, path: str, stop: c_byte) -> None:
    """Open the campaign in a worker process; a failure is kept for the first unit to raise, with its reason."""
    global _worker, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches all; the parent lets the units finish
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _stop = stop
    if _stop.value:
        return
    resources = ExitStack()
    atexit.register(resources.close)
    try:
        session = resources.enter_context(Session.open(Campaign.model_validate_json(campaign)))
        store = Store.open(Path(path))
        store.require(session.id, session.golden)
        _worker = session, store
    except Exception as error:
        _worker = error


def _leave_with_parent() -> None:
    """End this process when the one that runs the campaign is gone, killed perhaps; else it would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(step: Round, unit: int) -> pa.Table:
    if _stop.value:
        raise CancelledError
    if isinstance(_worker, Exception):
        raise _worker
    return _finished_unit(*_worker, step, unit)
