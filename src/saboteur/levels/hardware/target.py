"""An HDL design on its bench, as a target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur.campaign.target import FaultSpec, Resources, Target
from saboteur.errors import FaultError, TargetError, near
from saboteur.faults import draws
from saboteur.faults.formats import NumberFormat
from saboteur.faults.space import Faults, FaultSpace, Region
from saboteur.levels.hardware.compile import slot_bytes
from saboteur.levels.hardware.effects import FaultTable, bit_by_bit, one_effect_at_a_time, with_both_nets
from saboteur.levels.hardware.golden import GoldenRun, WatchedTrace
from saboteur.levels.hardware.importing import Netlist
from saboteur.levels.hardware.models import Bits
from saboteur.levels.hardware.netlist import Design, Node, Slot
from saboteur.levels.hardware.simulate import PLACES, WAYS, Simulator, Stimulus, first_cycles
from saboteur.levels.hardware.sites import PLACE, Group, Kind, Sites, literal
from saboteur.levels.hardware.spec import HardwareFault, HardwareTarget
from saboteur.levels.hardware.testbench import Answers, Observation, Observer
from saboteur.outcomes.golden import Golden, OutputKind
from saboteur.outcomes.recorder import Recorder

_KINDS: tuple[Kind, ...] = ("flip_flops", "memories", "inputs", "nets", "pins", "bridges")
_POWER_ON_LANE = 212
_TOP = "top"


@dataclass(frozen=True)
class _SpaceTable:
    """A fault space as columns.

    ``partners`` and ``joined`` (bits of the word that begins here, 0 where each place is a word) go with the places of
    ``faults``.
    """

    faults: FaultTable
    partners: NDArray
    joined: NDArray[np.uint8]


class DesignTarget(Target):
    """A design, its stimulus, and what is looked at; every run of the stimulus is an input.

    Args:
        netlist: the design.
        stimulus: its runs.
        observation: what is looked at.
        labels: the true class of each run, where known.
        answer: how the outputs are read.
        first_cycle: faults begin, and alarms are heeded, in this cycle or later.
        under_test: the instance that faults strike, where the rest of the design is a testbench around it.
        resources: of the campaign.

    Raises:
        TargetError: when design, stimulus and observation do not fit each other.
    """

    def __init__(
        self,
        netlist: Netlist,
        stimulus: Stimulus,
        observation: Observation,
        labels: NDArray[np.int64] | None = None,
        answer: OutputKind = "values",
        first_cycle: int = 0,
        under_test: str | None = None,
        resources: Resources = Resources(),  # noqa: B008
    ):
        if first_cycle >= stimulus.cycles:
            raise TargetError(f"first_cycle: {first_cycle} with {stimulus.cycles} cycles in a run")
        self.netlist, self.stimulus, self._observation = netlist, stimulus, observation
        self._labels, self._first = labels, first_cycle
        self._answer: OutputKind = answer
        self._resources = resources
        self._traces: dict[int, NDArray] = {}
        self._golden_run: tuple[int, GoldenRun] | None = None
        self.simulator = Simulator(Design(netlist, under_test))
        self.observer = Observer(self.simulator, observation, stimulus.cycles, first_cycle)
        self.sites = Sites(self.simulator)
        self._captured: dict[Region, float] = {}
        self._last_table: tuple[FaultSpace, _SpaceTable] | None = None

    @classmethod
    def from_spec(cls, spec: HardwareTarget, resources: Resources) -> DesignTarget:
        """Read the design and the stimulus that a campaign file names.

        Raises:
            TargetError: when a file or function is missing or gives something else.
        """
        from saboteur.levels.hardware import loading

        bench = loading.load(spec)
        answer: OutputKind = "logits" if spec.network else spec.answer
        first = spec.first_cycle or int(spec.network is not None or spec.array is not None)
        given = (bench.netlist, bench.stimulus, bench.observation, bench.labels, answer, first, spec.under_test)
        return cls(*given, resources)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """A hash of the netlist, the stimulus, the labels and what is looked at."""
        digest = hashlib.sha256(self.netlist.digest.encode())
        observation = self._observation
        strobe = None if observation.strobe is None else observation.strobe.tobytes()
        settings = (observation.ports, observation.valid, strobe, observation.alarms, self._answer, self._first)
        digest.update(repr(settings).encode())
        memories = self.stimulus.memories or {}
        for name, values in (*sorted(self.stimulus.inputs.items()), *sorted(memories.items())):
            content = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
            digest.update(f"{name}\x1f{values.dtype}\x1f{values.shape}\x1f".encode() + content)
        digest.update(b"" if self._labels is None else self._labels.tobytes())
        return digest.hexdigest()[:32]

    # -- golden run -------------------------------------------------------------------------------------------

    def golden(self) -> Golden:
        """Run fault-free, with what nothing initialises at 0, at 1, and at random values at power-on.

        That is registers and memories that the source does not set, X, and nets that nothing drives.

        Raises:
            TargetError: when the answer depends on one of these, or an alarm is raised.
        """
        outputs = self._answers
        for initial, stimulus in self._other_starts():
            for runs in self._chunks():
                other = self._watched(runs, initial, stimulus)
                if not np.array_equal(self.observer.golden(other), outputs[runs]):
                    self._explain_unknown(runs, other)
        return Golden(outputs, self._labels, self._answer, {"level": self.netlist.level, "engine": "compiled"})

    def _other_starts(self) -> Iterator[tuple[NDArray, Stimulus]]:
        """All bits at power-on that may be anything at 1, and then at random; none where there are none."""
        design, given = self.simulator.design, self.stimulus.memories or {}
        states = [i for i in design.states if design.slots[i].initial is None]
        memories = [memory for memory in design.memories if memory.name not in given and any(memory.unknown)]
        if not states and not memories:
            return
        ones = np.array([(1 << design.slots[i].width) - 1 for i in states], np.uint64)
        for lane in (None, _POWER_ON_LANE):
            initial, images = self.simulator.initial.copy(), dict(given)
            count = len(states) + sum(memory.words for memory in memories)
            filler = np.full(count, ~np.uint64(0)) if lane is None else draws.words(lane, np.arange(count))
            initial[states] = filler[: len(states)] & ones
            at = len(states)
            for memory in memories:
                unknown = np.array(memory.unknown, np.uint64)
                images[memory.name] = np.array(memory.initial, np.uint64) | filler[at : at + memory.words] & unknown
                at += memory.words
            yield initial, replace(self.stimulus, memories=images)

    def _explain_unknown(self, runs: NDArray[np.int64], other: WatchedTrace) -> None:
        cycles = (self._watched(runs).values[:, :-1] != other.values[:, :-1]).any(axis=0)
        cycle, column = np.argwhere(cycles)[0]
        name = self.simulator.design.slots[int(self.observer.slots[column])].name
        raise TargetError(
            f"golden run: {name} is unknown (X) in cycle {cycle}: it depends on a register or memory that nothing has "
            "initialised, on X, or on a net that nothing drives; reset the design, and set first_cycle to the first "
            "cycle in which the outputs are defined"
        )

    def _watched(
        self, runs: NDArray[np.int64], initial: NDArray | None = None, stimulus: Stimulus | None = None
    ) -> WatchedTrace:
        """What is watched of fault-free runs, [runs, cycles + 1, slots]."""
        slots, stimulus = self.observer.slots, stimulus or self.stimulus
        if self._in_windows:
            golden = [self._windows(run, initial, stimulus) for run in runs.tolist()]
            values = np.stack([run.watched(slots).values for run in golden])
        else:
            values = self.simulator.run(stimulus, runs, initial=initial, slots=slots)
            assert values is not None
        return WatchedTrace(values, slots, len(self.simulator.design.slots))

    def _chunks(self) -> Iterator[NDArray[np.int64]]:
        """Runs whose traces fit in the memory together."""
        step = max(1, min(self.simulator.lanes, self._resources.memory_bytes // (4 * self._trace_bytes)))
        for first in range(0, self.stimulus.runs, step):
            yield np.arange(first, min(first + step, self.stimulus.runs))

    @cached_property
    def _trace_bytes(self) -> int:
        row = len(self.simulator.design.slots) * self.simulator.golden_type.itemsize
        return row * (self.stimulus.cycles + 1)

    @cached_property
    def _in_windows(self) -> bool:
        """Whether a golden run is too long to be in memory as a whole."""
        return self._trace_bytes > self._resources.memory_bytes // 2

    @cached_property
    def _answers(self) -> NDArray[np.int64]:
        parts = []
        for runs in self._chunks():
            if self._in_windows:
                trace = self._watched(runs)
            else:
                trace = self.simulator.run(self.stimulus, runs)
                assert trace is not None
                self._keep(runs, trace)
            parts.append(self.observer.golden(trace))
        if len({part.shape[1] for part in parts}) > 1:
            raise TargetError("golden run: every input must give the same number of words")
        return np.concatenate(parts)

    def _keep(self, runs: NDArray[np.int64], trace: NDArray) -> None:
        kept, room = self._traces, self._resources.memory_bytes // 2
        for run, rows in zip(runs.tolist(), trace, strict=True):
            if (len(kept) + 1) * self._trace_bytes > room and kept:
                kept.pop(next(iter(kept)))
            kept[run] = rows

    def _golden(self, run: int) -> NDArray | GoldenRun:
        """A fault-free run, in windows where it is too long for the memory."""
        if not self._in_windows:
            return self.golden_trace(run)
        if self._golden_run is None or self._golden_run[0] != run:
            self._golden_run = run, self._windows(run, None, self.stimulus)
        return self._golden_run[1]

    def golden_trace(self, run: int) -> NDArray:
        """[cycles + 1, slots] of a fault-free run."""
        if run not in self._traces:
            trace = self.simulator.run(self.stimulus, [run])
            assert trace is not None
            self._keep(np.array([run]), trace)
        return self._traces[run]

    def _windows(self, run: int, initial: NDArray | None, stimulus: Stimulus) -> GoldenRun:
        design, level = self.simulator.design, self.netlist.level
        fed = sum(slot_bytes(slot.width, level) for slot in design.slots if slot.kind == "input")
        cycle = len(design.slots) * self.simulator.golden_type.itemsize + fed
        cycles = max(16, self._resources.memory_bytes // (8 * cycle))
        return GoldenRun(self.simulator, stimulus, run, cycles, initial=initial)

    # -- faults -----------------------------------------------------------------------------------------------

    def space(self, specs: Sequence[FaultSpec]) -> FaultSpace:
        """Every fault that ``specs`` describe."""
        regions: dict[tuple, Region] = {}
        for spec in specs:
            if not isinstance(spec, HardwareFault):
                raise FaultError(f"faults: a {type(spec).__name__} is not a fault of the hardware level")
            for group in self._selected(spec):
                if WAYS.index(getattr(spec.model, "way", "apply")) and group.kind not in ("nets", "pins", "bridges"):
                    raise FaultError(f"model: {spec.model.kind} is a fault of nets, not of {group.kind}")
                region = Region(
                    site=group.name,
                    layer=group.instance or _TOP,
                    component=group.kind.removesuffix("s"),
                    shape=(1,) if group.joined else (len(group.places),),
                    format=Bits(_word_bits(group)),
                    model=spec.model,
                    duration=spec.duration,
                    steps=self.stimulus.cycles - self._first if spec.duration == "transient" else 1,
                    activity=spec.activity,
                )
                regions.setdefault((group.name, spec.model, spec.duration, spec.activity), region)
                if self._captured.setdefault(region, spec.captured) != spec.captured:
                    raise FaultError(f"captured: {group.name} has it twice, with {spec.captured} and another value")
        return FaultSpace(tuple(regions.values()))

    def _selected(self, spec: HardwareFault) -> Iterator[Group]:
        if spec.pairs:
            yield from (self.sites.bridge(*pair) for pair in spec.pairs)
            return
        groups = self.sites.groups(spec.where)
        if spec.where == "pins" and getattr(spec.model, "way", "apply") != "apply":
            raise FaultError(f"model: {spec.model.kind}: on nets only; a pin's old value is its net's")
        known = {group.instance for group in groups.values()}
        if not known:
            within = self.simulator.design.under_test
            raise FaultError(f"where: {within or 'the design'} has no {spec.where} that faults can strike")
        for pattern in spec.instances:
            if not any(fnmatchcase(name, literal(pattern)) for name in known):
                raise FaultError(f"instances: none matches {pattern!r}{near(pattern, known)}")
        found = False
        for group in groups.values():
            prefix = f"{group.instance}." if group.instance else ""
            name = group.name.removeprefix(prefix)
            if any(fnmatchcase(group.instance, literal(pattern)) for pattern in spec.instances) and (
                spec.where in ("nets", "pins", "bridges") or any(fnmatchcase(name, literal(p)) for p in spec.names)
            ):
                found = True
                yield group
        if not found:
            names = {group.name.rsplit(".", 1)[-1] for group in groups.values()}
            raise FaultError(f"names: no {spec.where} match {', '.join(spec.names)}{near(spec.names[0], names)}")

    def names(self, region: Region) -> tuple[str, ...]:
        """The hierarchical name of each element of a region."""
        group = self._group(region)
        return (group.name,) if group.joined else group.names

    def stored(self, region: Region) -> tuple[NDArray, NumberFormat]:
        """The words that lie in a memory at the start, where all runs start with the same."""
        group = self._group(region)
        if group.kind != "memories":
            return super().stored(region)
        given = (self.stimulus.memories or {}).get(group.name)
        if given is not None and np.ndim(given) == 2:
            raise TargetError(f"{region.site}: its contents differ from run to run")
        memory = self.simulator.design.memories[int(group.places["place"][0])]
        return np.asarray(memory.initial if given is None else given, np.uint64), region.format

    def _group(self, region: Region) -> Group:
        if region.component == "bridge" and "~" in region.site:
            return self.sites.bridge(*region.site.split("~"))
        for kind in _KINDS:
            if region.component == kind.removesuffix("s"):
                groups = self.sites.groups(kind)
                if region.site in groups:
                    return groups[region.site]
        raise FaultError(f"site: {region.site!r} is not in this design")

    def rows(self, space: FaultSpace, faults: Faults) -> NDArray:
        """What each single fault does, as rows of dtype ROW with ``fault`` its trial.

        Pulses that miss the capture window are left out.

        Raises:
            FaultError: when a model does not act bit by bit.
        """
        table = self._table(space)
        rows, at = table.faults.rows(faults, self._first, self.stimulus.cycles + 1), table.faults.at(faults)
        caught = table.faults.caught(faults)
        if not caught.all():
            rows, at = rows[caught], at[caught]
        bridged = rows["way"] >= WAYS.index("bridge_and")
        if bridged.any():
            rows, at = with_both_nets(rows, at, table.partners, bridged)
        joined = table.joined[at]
        return bit_by_bit(rows, joined, at, table.faults.places) if joined.any() else rows

    def _table(self, space: FaultSpace) -> _SpaceTable:
        if self._last_table is None or self._last_table[0] is not space:
            groups = [self._group(region) for region in space.regions]
            table = _SpaceTable(
                FaultTable.of(
                    space.regions,
                    [group.places for group in groups],
                    [self._captured.get(region, 1.0) for region in space.regions],
                ),
                partners=np.concatenate([g.places if g.partners is None else g.partners for g in groups]),
                joined=np.concatenate([np.full(len(g.places), len(g.places) * g.joined, np.uint8) for g in groups]),
            )
            self._last_table = space, table
        return self._last_table[1]

    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        """Run each trial over the inputs that the recorder gives it, side by side."""
        steady = all(region.activity == 1 for region in space.regions)
        rows = self.rows(space, faults)
        for run, trials in self._trials_by_run(faults.trials, recorder):
            if not steady:
                rows = self.rows(space, self._acting(space, faults, run))
            answers = self._respond(run, rows, trials)
            inputs = np.full(len(trials), run)
            detected = answers.alarm >= 0
            changed = answers.changed & ~detected & ~answers.hang
            hang = answers.hang & ~detected
            same = ~(detected | changed | hang)
            recorder.identical(trials[same], inputs[same])
            recorder.abnormal(trials[detected], inputs[detected], "detected")
            recorder.abnormal(trials[hang], inputs[hang], "hang")
            recorder.outputs(trials[changed], inputs[changed], answers.outputs[changed[answers.affected]])

    def answers(self, space: FaultSpace, faults: Faults, run: int) -> Answers:
        """What the machines of all trials answer in one run."""
        return self._respond(run, self.rows(space, self._acting(space, faults, run)), np.arange(faults.trials))

    def _trials_by_run(self, trials: int, recorder: Recorder) -> Iterator[tuple[int, NDArray[np.int64]]]:
        everything = np.arange(trials)
        for run in range(self.stimulus.runs):
            chosen = everything if recorder.inputs is None else np.flatnonzero((recorder.inputs == run).any(axis=1))
            if len(chosen):
                yield run, chosen

    def _acting(self, space: FaultSpace, faults: Faults, run: int) -> Faults:
        """The single faults that act in a run."""
        activity = np.array([region.activity for region in space.regions])[faults.region]
        if (activity == 1).all():
            return faults
        acts = np.ones(len(activity), np.bool_)
        for k in np.flatnonzero(activity < 1):
            acts[k] = faults.acts(float(activity[k]), np.array([run]), int(faults.trial[k]))[0]
        return faults.rows(acts)

    def _respond(self, run: int, rows: NDArray, trials: NDArray[np.int64]) -> Answers:
        """Answers of ``trials``, in ascending order, in one run."""
        rows, count = one_effect_at_a_time(rows), len(trials)
        if not np.array_equal(trials, np.arange(count)):
            rows = rows[np.isin(rows["fault"], trials)]
            rows["fault"] = np.searchsorted(trials, rows["fault"])
        order = None
        if len(rows):
            single = np.array_equal(rows["fault"], np.arange(count))
            first = rows
            if not single:
                first = rows[np.minimum(np.searchsorted(rows["fault"], np.arange(count)), len(rows) - 1)]
            order = np.argsort(self._place_and_time(first))
        golden = self._golden(run)
        trace = golden if isinstance(golden, np.ndarray) else golden.watched(self.observer.slots)
        watch = self.observer.watch(trace)
        response = self.simulator.respond(golden, self._images(run), watch, rows, count, order=order)
        answers = self.observer.answers(trace, self._answers[run], response, count)
        return replace(answers, hang=answers.hang | response.oscillates)

    def _place_and_time(self, rows: NDArray) -> NDArray[np.int64]:
        """A number by which rows that share what is computed follow each other."""
        place = rows["place"].astype(np.int64)
        in_slot = rows["kind"] == PLACES.index("slot")
        place[in_slot] = self._neighbours[place[in_slot]]
        return (rows["kind"].astype(np.int64) << 60) + place * (self.stimulus.cycles + 2) + rows["on"]

    @cached_property
    def _neighbours(self) -> NDArray[np.int64]:
        """A number for each slot, by which like registers of like instances follow each other: they spread alike."""
        kind = np.full(len(self.simulator.design.slots), -1)
        for node in self.simulator.design.nodes:
            if isinstance(node, Node):
                for slot, (_, cell) in zip(node.writes, node.slice.writes, strict=True):
                    kind[slot] = cell
        order = np.argsort(kind, kind="stable")
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order))
        return number

    def _images(self, run: int) -> list[NDArray[np.uint64]]:
        return [words[:, 0] for words in self.simulator.memories(self.stimulus, np.array([run]))]

    def outcomes(self, space: FaultSpace, faults: Faults, run: int) -> pa.Table:
        """What became of each trial in one run, in the terms of ISO 26262-5 (2018, annex D).

        Returns:
            A row a trial: ``outcome`` (``masked``, ``latent``: same answer but another state at the end, ``sdc``,
            ``detected``, ``hang``), ``latency`` (cycles from the first act of the fault to the first alarm, else
            null) and ``corrupted`` (the answer differs, whether or not an alarm was raised).
        """
        rows = self.rows(space, self._acting(space, faults, run))
        answers = self._respond(run, rows, np.arange(faults.trials))
        start = first_cycles(rows, faults.trials, self.stimulus.cycles)
        names = pa.array(["masked", "latent", "sdc", "hang", "detected"])
        outcome = np.zeros(faults.trials, np.int8)
        for number, of in enumerate((answers.latent, answers.changed, answers.hang, answers.alarm >= 0), 1):
            outcome[of] = number
        latency = pa.array(answers.alarm - start, pa.int32(), mask=answers.alarm < 0)
        corrupted = answers.changed | answers.hang
        return pa.table({"outcome": names.take(pa.array(outcome)), "latency": latency, "corrupted": corrupted})

    def trace(self, space: FaultSpace, faults: Faults, input: int) -> pa.Table:
        """How the error of the first trial spreads over the module instances, in order of first difference."""
        if not 0 <= input < self.stimulus.runs:
            raise TargetError(f"input: {input} is outside 0 .. {self.stimulus.runs - 1}")
        one = faults.take([0])
        rows = self.rows(space, self._acting(space, one, input))
        golden, faulty = self.traces(rows, input)
        slots = self.simulator.design.slots
        places: dict[str, list[int]] = {}
        for i, slot in enumerate(slots):
            places.setdefault(slot.instance or _TOP, []).append(i)
        table = []
        for place, mine in places.items():
            differs = golden[:, mine] != faulty[:, mine]
            when = int(differs.any(axis=1).argmax()) if differs.any() else self.stimulus.cycles
            table.append((when, _spread(place, golden[:, mine].ravel(), faulty[:, mine].ravel())))
        table.sort(key=lambda row: row[0])
        answers = self._respond(input, rows, np.arange(1))
        expected = self._answers[input]
        ended = answers.alarm[0] >= 0 or answers.hang[0] or not len(answers.outputs)
        given = expected if ended else answers.outputs[0]
        return pa.Table.from_pylist([row for _, row in table] + [_spread("output", expected, given)])

    def traces(self, rows: NDArray, run: int, nets: bool = False) -> tuple[NDArray, NDArray]:
        """The golden and the faulty trace [cycles, signals] of one trial (rows with ``fault`` 0) in one run.

        Signals are the slots of the design; with ``nets``, those of :attr:`inner_nets` follow.
        """
        mine = one_effect_at_a_time(rows).copy()
        mine["fault"] = 1
        places = self._inner_nets[1] if nets else None
        trace = self.simulator.run(self.stimulus, [run, run], mine, nets=places)
        assert trace is not None
        return trace[0, :-1], trace[1, :-1]

    @property
    def inner_nets(self) -> list[Slot]:
        """The nets that are no slots: what operators and gates drive for readers next to them only."""
        return self._inner_nets[0]

    @cached_property
    def _inner_nets(self) -> tuple[list[Slot], NDArray]:
        known = {slot.name for slot in self.simulator.design.slots}
        found = [
            (Slot(name, group.instance, group.width, "net"), place)
            for group in self.sites.groups("nets").values()
            for name, place in zip(group.names, group.places, strict=True)
            if name not in known
        ]
        return [slot for slot, _ in found], np.array([place for _, place in found], PLACE)


def safety_split(outcomes: pa.Table) -> dict[str, float]:
    """The faults of :meth:`DesignTarget.outcomes` as ISO 26262-5:2018 (annexes B and C) sorts them.

    Returns:
        Shares of all faults: ``safe`` (no effect on the answer, no alarm, no error left), ``detected`` (an alarm),
        ``residual`` (a wrong or missing answer without an alarm), ``latent`` (an error left in the state that has
        neither); and ``diagnostic_coverage``, the share of detected ones among those that corrupt the answer
        (NaN where none does).
    """
    outcome = np.array(outcomes["outcome"].to_pylist())
    corrupted = outcomes["corrupted"].to_numpy()
    detected = outcome == "detected"
    dangerous = int(corrupted.sum())
    return {
        "safe": float((outcome == "masked").mean()),
        "detected": float(detected.mean()),
        "residual": float(np.isin(outcome, ["sdc", "hang"]).mean()),
        "latent": float((outcome == "latent").mean()),
        "diagnostic_coverage": float((detected & corrupted).sum() / dangerous) if dangerous else float("nan"),
    }


def _spread(place: str, golden: NDArray, faulty: NDArray) -> dict[str, object]:
    with np.errstate(over="ignore"):
        error = np.abs(faulty.astype(np.float64) - golden.astype(np.float64))
    return {
        "place": place,
        "elements": int(golden.size),
        "changed": int((golden != faulty).sum()),
        "nonfinite": 0,
        "max_abs_error": float(error.max(initial=0.0)),
        "rms_error": float(np.sqrt(np.mean(error**2))) if error.size else 0.0,
    }


def _word_bits(group: Group) -> int:
    """Bits of a word that is hit."""
    return len(group.places) if group.joined else group.width
