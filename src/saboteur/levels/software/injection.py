"""The plain engine: put the faults in, run forward, take them out. Every faster engine is proved against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software.corruption import Hits, corrupted
from saboteur.levels.software.memory import Memory
from saboteur.levels.software.runner import Batch, Edit, HarnessError, ModelError, Runner
from saboteur.levels.software.signals import Signal
from saboteur.levels.software.site import Site
from saboteur.outcomes.recorder import Recorder


def inject(
    runner: Runner,
    sites: Mapping[str, Site],
    space: FaultSpace,
    faults: Faults,
    recorder: Recorder,
    trials: Iterable[int] | None = None,
) -> None:
    """Run trials of ``faults``, one after the other.

    Args:
        runner: runs the model.
        sites: by name, at least those of the space.
        space: where the faults come from.
        faults: the trials.
        recorder: takes the outputs and says which inputs of each trial it awaits.
        trials: which trials; all if absent.
    """
    for trial in range(faults.trials) if trials is None else trials:
        inject_one(runner, sites, space, faults, trial, np.flatnonzero(recorder.awaited[trial]), recorder)


def inject_one(
    runner: Runner,
    sites: Mapping[str, Site],
    space: FaultSpace,
    faults: Faults,
    trial: int,
    inputs: NDArray[np.int64],
    recorder: Recorder,
) -> None:
    """Run one trial on ``inputs`` [n]; see :func:`inject`."""
    hits = Hits.of_trial(space, faults, trial)
    try:
        for acting, chosen in acting_together(space, faults, trial, hits, inputs):
            _run(runner, sites, acting, trial, inputs[chosen], recorder)
    except HarnessError as error:
        recorder.invalid(trial, str(error))


def acting_together(
    space: FaultSpace, faults: Faults, trial: int, hits: Hits, inputs: NDArray[np.int64]
) -> Iterator[tuple[Hits, NDArray[np.bool_]]]:
    """Part the inputs [n] of a trial by which of its faults act in them: all, but for intermittent ones.

    Yields:
        The faults that act, and in which of ``inputs``: bool [n].
    """
    activity = np.array([space.regions[i].activity for i in hits.region])
    levels = np.unique(activity[activity < 1])
    acts = np.array([faults.acts(level, inputs, trial) for level in levels]).reshape(len(levels), len(inputs))
    first_acting = len(levels) - acts.sum(axis=0)
    for first in np.unique(first_acting):
        acting = (activity == 1) | np.isin(activity, levels[int(first) :])
        yield hits.where(acting), first_acting == first


def _run(
    runner: Runner,
    sites: Mapping[str, Site],
    hits: Hits,
    trial: int,
    inputs: NDArray[np.int64],
    recorder: Recorder,
) -> None:
    if not len(hits):
        recorder.identical(np.full(len(inputs), trial), inputs)
        return
    with present(sites, hits) as edits:
        for batch in runner.batches(inputs):
            try:
                outputs = runner.run(batch, edits)
            except ModelError:
                _run_one_by_one(runner, edits, trial, batch, recorder)
            else:
                recorder.outputs(np.full(len(outputs), trial), batch.inputs, outputs)


def _run_one_by_one(runner: Runner, edits: list[Edit], trial: int, batch: Batch, recorder: Recorder) -> None:
    """Find out which inputs, of a batch in which one crashed, crash the model: fill a batch with each."""
    for place, one in zip(batch.kept, batch.inputs, strict=True):
        pair = np.array([trial]), np.array([one])
        try:
            output = runner.run(Batch(np.full(len(batch.rows), one), np.array([place])), edits)
        except ModelError:
            recorder.abnormal(*pair, "crash")
        else:
            recorder.outputs(*pair, output)


@contextmanager
def present(sites: Mapping[str, Site], hits: Hits) -> Iterator[list[Edit]]:
    """Stored values hold their faults in this context; what is to be done to signals is given back."""
    edits: list[Edit] = []
    with ExitStack() as stack:
        for name, there in hits.by_site().items():
            site = sites[name]
            if isinstance(site, Memory):
                elements = np.unique(there.element)
                words = corrupted(site.words(elements), elements, there, site.format_at)
                stack.enter_context(site.overwritten(elements, words))
            else:
                assert isinstance(site, Signal)
                edits.append((site, there))
        yield edits
