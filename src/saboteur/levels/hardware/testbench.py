"""What is watched while a design runs, and what becomes of the answers of faulty machines.

The *answer* of a run is a row of numbers: the values of output ports, or of equal lanes of them, in the cycles in
which they are looked at: given cycles, or those in which a ``valid`` output is 1. A machine that gives fewer words
than the golden one within the cycles of the run *hangs*; one in which an alarm output is 1 once out of reset is
*detected*, with the latency from the fault to the first alarm.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import TargetError, near
from saboteur.levels.hardware.golden import WatchedTrace
from saboteur.levels.hardware.netlist import Design, Pieces
from saboteur.levels.hardware.simulate import Response, Simulator, Stimulus, Watch
from saboteur.levels.hardware.waves import WAVE_FILES, read_waves

Trace = NDArray | WatchedTrace


@dataclass(frozen=True)
class Observed:
    """An output port that is part of the answer.

    Attributes:
        port: its name.
        lanes: it is a row of so many equal numbers, the first in the lowest bits.
        signed: they are in two's complement.
    """

    port: str
    lanes: int = 1
    signed: bool = False


@dataclass(frozen=True)
class Observation:
    """What is looked at, and when.

    Attributes:
        ports: the parts of the answer.
        valid: the output that is 1 in the cycles in which the ports count; every cycle if absent.
        strobe: bool [cycles] or [cycles, numbers]: when they are looked at; always if absent. With ``valid``, in which
            cycles it is heeded.
        alarms: outputs of safety mechanisms, 0 as long as all is well.
    """

    ports: tuple[Observed, ...]
    valid: str | None = None
    strobe: NDArray[np.bool_] | None = None
    alarms: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Answers:
    """What became of the machines of one run.

    Attributes:
        affected: int64 [affected], the faults of which some watched value differs, in order.
        hang: bool [faults].
        alarm: int32 [faults]: the first cycle with an alarm; −1 for none.
        changed: bool [faults]: some number differs from the golden one.
        latent: bool [faults]: the state differs at the end.
    """

    affected: NDArray[np.int64]
    hang: NDArray[np.bool_]
    alarm: NDArray[np.int32]
    changed: NDArray[np.bool_]
    latent: NDArray[np.bool_]
    _outputs: Callable[[], NDArray[np.int64]] = field(repr=False)

    @cached_property
    def outputs(self) -> NDArray[np.int64]:
        """[affected, numbers], the answers; meaningless where the machine hangs."""
        return self._outputs()


class Observer:
    """Reads answers from traces and from responses.

    Args:
        simulator: of the design.
        observation: what is looked at.
        cycles: of a run.
        first_cycle: alarms are heeded from then on, when the design is out of reset.

    Raises:
        TargetError: for an unknown port (with near names), lanes that do not divide it, or a strobe of another shape.
    """

    def __init__(self, simulator: Simulator, observation: Observation, cycles: int, first_cycle: int = 0):
        self._simulator, self._observation, self._cycles = simulator, observation, cycles
        self._first = first_cycle
        self._numbers: list[tuple[Pieces, int, bool]] = []
        for observed in observation.ports:
            pieces = self._port(observed.port)
            width = sum(bits for _, _, bits, _ in pieces)
            if observed.lanes < 1 or width % observed.lanes or width // observed.lanes > 64:
                raise TargetError(
                    f"outputs: {observed.port} has {width} bits; {observed.lanes} lanes must share them equally, at "
                    "most 64 bits each"
                )
            lane = width // observed.lanes
            self._numbers += [(_part(pieces, k * lane, lane), lane, observed.signed) for k in range(observed.lanes)]
        if not self._numbers:
            raise TargetError("outputs: none is named; an answer needs at least one output port")
        self._valid = None if observation.valid is None else self._single(observation.valid)
        self._alarms = [self._port(name) for name in observation.alarms]
        if observation.strobe is None:
            self._strobe = np.ones((cycles, len(self._numbers)), np.bool_)
        else:
            strobe = np.asarray(observation.strobe, np.bool_)
            if strobe.shape not in ((cycles,), (cycles, len(self._numbers))) or not strobe.any():
                raise TargetError(
                    f"strobe: shape {list(strobe.shape)}; needs [{cycles}] or [{cycles}, {len(self._numbers)}] with "
                    "some cycle in it"
                )
            self._strobe = np.broadcast_to(strobe.reshape(cycles, -1), (cycles, len(self._numbers)))
        slots = [piece[0] for pieces, _, _ in self._numbers for piece in pieces]
        slots += [piece[0] for pieces in self._alarms for piece in pieces]
        slots += [] if self._valid is None else [self._valid[0][0]]
        self._window: NDArray[np.bool_] = np.any(self._strobe, axis=1)
        self._widths = np.array([width for _, width, _ in self._numbers])
        self._signed = np.array([signed for _, _, signed in self._numbers])
        self._position = np.where(self._strobe, np.cumsum(self._strobe).reshape(self._strobe.shape) - 1, -1)
        self.slots = np.array(sorted(set(slots) - {-1}), np.int32)
        self._column = {int(slot): k for k, slot in enumerate(self.slots)}
        self._slots = len(simulator.design.slots)
        self._parts = _Parts.of(self._numbers, self._column)
        self._alarm_bits = np.zeros(len(self.slots), np.uint64)
        for slot, low, bits, _ in (piece for pieces in self._alarms for piece in pieces if piece[0] >= 0):
            self._alarm_bits[self._column[slot]] |= np.uint64(((1 << bits) - 1) << low)

    @property
    def ports(self) -> list[str]:
        """The names of the ports that make up the answer."""
        return [observed.port for observed in self._observation.ports]

    def _port(self, name: str) -> Pieces:
        outputs = self._simulator.design.outputs
        if name not in outputs:
            raise TargetError(f"outputs: {name!r} is not an output of the design{near(name, outputs)}")
        return outputs[name]

    def _single(self, name: str) -> Pieces:
        pieces = self._port(name)
        if len(pieces) != 1 or pieces[0][2] != 1 or pieces[0][0] < 0:
            raise TargetError(f"valid: {name} must be one bit that is computed")
        return pieces

    def golden(self, trace: Trace) -> NDArray[np.int64]:
        """The answers [runs, numbers] of fault-free runs, from their trace [runs, cycles + 1, slots].

        Raises:
            TargetError: when an alarm is raised, or runs give different numbers of words.
        """
        trace = trace[:, : self._cycles]
        for name, pieces in zip(self._observation.alarms, self._alarms, strict=True):
            raised = self._simulator.read(trace, pieces) != 0
            raised[:, : self._first] = False
            if raised.any():
                run, cycle = np.argwhere(raised)[0]
                raise TargetError(f"golden run: alarm {name} is raised in cycle {cycle} of input {run}")
        words = self._read(trace)
        if self._valid is None:
            return words[:, self._strobe]
        valid = (self._simulator.read(trace, self._valid) == 1) & self._window
        counts = valid.sum(axis=1)
        if counts.min() != counts.max() or not counts.max():
            raise TargetError(
                f"golden run: {self._observation.valid} is 1 in {counts.min()} to {counts.max()} cycles; every input "
                "must give the same number of words, at least one"
            )
        return words[valid].reshape(len(trace), -1)

    def watch(self, trace: Trace) -> Watch:
        """What is compared in a run with this golden trace [cycles + 1, slots]."""
        strobe = np.zeros((self._cycles, len(self.slots)), np.bool_)
        always = [piece[0] for pieces in self._alarms for piece in pieces]
        valid = -1
        when = self._strobe
        if self._valid is not None:
            valid = self._valid[0][0]
            always.append(valid)
            now = (self._simulator.read(trace[: self._cycles], self._valid) == 1) & self._window
            when = np.broadcast_to(now[:, None], self._strobe.shape)
        for k, (pieces, _, _) in enumerate(self._numbers):
            for slot, *_ in pieces:
                if slot >= 0:
                    strobe[:, self._column[slot]] |= when[:, k]
        for slot in always:
            if slot >= 0:
                strobe[:, self._column[slot]] = True
        return Watch(self.slots, strobe, valid)

    def answers(
        self, trace: Trace, golden: NDArray[np.int64], response: Response, faults: int, chunk: int = 1 << 24
    ) -> Answers:
        """The answers of faulty machines in one run.

        Args:
            trace: [cycles + 1, slots] of the golden run.
            golden: [numbers], its answer.
            response: to :meth:`watch`.
            faults: how many.
            chunk: how many values are put together at a time; changes no result.
        """
        found = response.differences
        alarm = np.full(faults, self._cycles, np.int32)
        raised = ((found["value"] & self._alarm_bits[found["output"]]) != 0) & (found["cycle"] >= self._first)
        np.minimum.at(alarm, found["fault"][raised], found["cycle"][raised])
        alarm[alarm == self._cycles] = -1
        hang, changed = np.zeros(faults, np.bool_), np.zeros(faults, np.bool_)
        hit = np.zeros(faults, np.bool_)
        hit[found["fault"]] = True
        affected = np.flatnonzero(hit)
        if self._valid is None:
            place, position, bits = self._changes(trace, found, np.cumsum(hit) - 1)
            changed[affected[place]] = True
            outputs = partial(self._patched, golden, place, position, bits, len(affected))
        else:
            words, hang[affected] = self._collected(trace, golden, found, affected, chunk)
            changed[affected] = (words != golden).any(axis=1)
            outputs = partial(np.asarray, words)
        return Answers(affected, hang, alarm, changed, response.converged == -1, outputs)

    def _changes(
        self, trace: Trace, found: NDArray, place_of: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
        """At given strobes, which bits of which number of which affected machine differ: place, position, bits."""
        parts = self._parts
        fault, cycle, slot, value = (
            np.ascontiguousarray(found[name]) for name in ("fault", "cycle", "output", "value")
        )
        repeats = parts.count[slot]
        row = np.repeat(np.arange(len(found)), repeats)
        part = np.arange(len(row)) + np.repeat(parts.first[slot] - np.cumsum(repeats) + repeats, repeats)
        position = self._position[cycle[row], parts.number[part]]
        kept = np.flatnonzero(position >= 0)
        row, part, position = row[kept], part[kept], position[kept]
        before = trace[cycle[row], self.slots[slot[row]]].astype(np.uint64)
        bits = ((value[row] ^ before) >> parts.low[part] & parts.mask[part]) << parts.to[part]
        differs = np.flatnonzero(bits)
        return place_of[fault[row[differs]]], position[differs], bits[differs]

    def _patched(
        self,
        golden: NDArray[np.int64],
        place: NDArray[np.int64],
        position: NDArray[np.int64],
        bits: NDArray[np.uint64],
        count: int,
    ) -> NDArray[np.int64]:
        """Golden answers with these bits changed."""
        outputs = np.repeat(golden.view(np.uint64)[None], count, axis=0)
        np.bitwise_xor.at(outputs, (place, position), bits)
        number = np.nonzero(self._strobe)[1][position]
        unused = (64 - self._widths[number]).astype(np.uint64)
        raised = outputs[place, position] << unused
        signed = (raised.view(np.int64) >> unused.view(np.int64)).view(np.uint64)
        outputs[place, position] = np.where(self._signed[number], signed, raised >> unused)
        return outputs.view(np.int64)

    def _collected(
        self, trace: Trace, golden: NDArray[np.int64], found: NDArray, affected: NDArray[np.int64], chunk: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The words of the valid cycles of each affected machine, and whether it has too few."""
        assert self._valid is not None
        found = found[np.argsort(found["fault"], kind="stable")]
        ends = np.append(np.searchsorted(found["fault"], affected), len(found))
        outputs, hang = np.empty((len(affected), len(golden)), np.int64), np.zeros(len(affected), np.bool_)
        usual = np.flatnonzero(self._simulator.read(trace[: self._cycles], self._valid) == 1)
        cycles = np.union1d(np.unique(found["cycle"]), usual)
        needed = len(golden) // len(self._numbers)
        step = max(1, chunk // max(1, len(cycles) * len(self.slots)))
        for begin in range(0, len(affected), step):
            mine = slice(begin, begin + step)
            rows = found[ends[begin] : ends[min(begin + step, len(affected))]]
            values = np.repeat(trace[cycles][None][:, :, self.slots], len(affected[mine]), axis=0)
            where = np.searchsorted(affected[mine], rows["fault"]), np.searchsorted(cycles, rows["cycle"])
            values[(*where, rows["output"])] = rows["value"]
            full = WatchedTrace(values, self.slots, self._slots)
            valid = (self._simulator.read(full, self._valid) == 1) & self._window[cycles]
            order = np.argsort(~valid, axis=1, kind="stable")[:, :needed]
            hang[mine] = valid.sum(axis=1) < needed
            words = np.take_along_axis(self._read(full), order[:, :, None], axis=1)
            outputs[mine] = words.reshape(len(words), -1)
        return outputs, hang

    def _read(self, trace: Trace) -> NDArray[np.int64]:
        numbers = []
        for pieces, width, signed in self._numbers:
            words = self._simulator.read(trace, pieces).astype(np.uint64).view(np.int64)
            if signed and width < 64:
                words = (words ^ (1 << (width - 1))) - (1 << (width - 1))
            numbers.append(words)
        return np.stack(numbers, axis=-1)


@dataclass(frozen=True)
class _Parts:
    """Which bits of which numbers each watched slot gives: rows sorted by slot."""

    first: NDArray[np.int64]
    count: NDArray[np.int64]
    number: NDArray[np.int64]
    low: NDArray[np.uint64]
    mask: NDArray[np.uint64]
    to: NDArray[np.uint64]

    @classmethod
    def of(cls, numbers: Sequence[tuple[Pieces, int, bool]], column: Mapping[int, int]) -> _Parts:
        rows = sorted(
            (column[slot], k, low, (1 << bits) - 1, to)
            for k, (pieces, _, _) in enumerate(numbers)
            for slot, low, bits, to in pieces
            if slot >= 0
        )
        columns = np.array([row[0] for row in rows], np.int64)
        number = np.array([row[1] for row in rows], np.int64)
        low, mask, to = (np.array([row[k] for row in rows], np.uint64) for k in (2, 3, 4))
        count = np.bincount(columns, minlength=len(column)) if rows else np.zeros(len(column), np.int64)
        return cls(np.cumsum(count) - count, count, number, low, mask, to)


def _part(pieces: Pieces, low: int, width: int) -> Pieces:
    part = []
    for slot, first, bits, to in pieces:
        begin, end = max(low, to), min(low + width, to + bits)
        if begin < end:
            at = first if slot < 0 else first + begin - to
            part.append((slot, at, end - begin, begin - low))
    return part


# -- files ---------------------------------------------------------------------------------------------------------


def read_stimulus(path: Path, design: Design | None = None) -> tuple[Stimulus, NDArray | None]:
    """Inputs from a file; and labels, where it has them.

    - ``.npz``: an array [cycles] or [runs, cycles] for each port, ``memory:NAME`` [words] or [runs, words],
      ``labels`` [runs];
    - ``.csv``: a column for each port, a row for each cycle, numbers as in Python;
    - ``.vcd`` and ``.fst``: the values of signals of the names of the design's inputs just before each rising edge of
      its clock. Where the design has several clocks, a step for each time at which an input changes, and where others
      change together with a clock, two steps later.

    Args:
        path: of the file.
        design: whose inputs a dump of waveforms is searched for.

    Raises:
        TargetError: when the file cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return stimulus_of(dict(arrays))
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            return stimulus_of({port: _integers([int(row[port], 0) for row in rows]) for port in rows[0]})
        if path.suffix in WAVE_FILES and design is not None:
            return stimulus_of(_from_waves(path, design))
    except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
        raise TargetError(f"stimulus: cannot read {path}: {error}") from error
    raise TargetError(f"stimulus: {path}: must be an .npz, .csv, .vcd or .fst file, or a function")


def stimulus_of(given: object) -> tuple[Stimulus, NDArray | None]:
    """A stimulus, or arrays by name as :func:`read_stimulus` reads them.

    Raises:
        TargetError: when arrays differ in runs or cycles.
    """
    if isinstance(given, Stimulus):
        return given, None
    if not isinstance(given, Mapping) or not given:
        raise TargetError(f"stimulus: a {type(given).__name__}; needs a Stimulus, or arrays by input port")
    arrays = {str(name): np.asarray(values) for name, values in given.items()}
    labels = arrays.pop("labels", None)
    memories = {name.removeprefix("memory:"): arrays.pop(name) for name in list(arrays) if name.startswith("memory:")}
    inputs = {name: values[None] if values.ndim == 1 else values for name, values in arrays.items()}
    shapes = {values.shape for values in inputs.values()}
    if len(shapes) != 1 or any(len(shape) != 2 for shape in shapes):
        listed = ", ".join(f"{name} {list(values.shape)}" for name, values in inputs.items())
        raise TargetError(f"stimulus: all ports need the same [runs, cycles]; got {listed}")
    return Stimulus(inputs, memories), labels


def read_hex(path: Path) -> list[int]:
    """The words of a ``$readmemh`` file; ``@`` addresses and comments as there, gaps are 0.

    Raises:
        TargetError: when it cannot be read.
    """
    words: list[int] = []
    try:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        at = 0
        for item in text.replace("_", "").split():
            if item.startswith("@"):
                at = int(item[1:], 16)
                continue
            words += [0] * (at + 1 - len(words))
            words[at] = int(item, 16)
            at += 1
    except (OSError, ValueError) as error:
        raise TargetError(f"memories: cannot read {path}: {error}") from error
    return words


def _integers(values: Sequence[int]) -> NDArray:
    return np.array(values, np.uint64 if max(values) < 2**64 else object)


def _from_waves(path: Path, design: Design) -> dict[str, NDArray]:
    clocks = {*design.clocks} if design.clock is None else {design.clock}
    now: dict[str, int] = {}
    rows: list[dict[str, int]] = []
    for new in read_waves(path, design.inputs):
        before, now = now, now | new
        clocked = {name: value for name, value in new.items() if name in clocks}
        if design.clock is None:
            rows += 2 * [before | clocked] if before and clocked and len(clocked) < len(new) else []
            rows.append(now)
        elif before and before[design.clock] < now[design.clock]:
            rows.append(before)
    if not rows:
        raise ValueError(f"{', '.join(clocks) or 'no input'} never changes")
    return {name: _integers([row[name] for row in rows]) for name in design.inputs if name != design.clock}
