"""Arrays in HDL that multiply matrix tiles: what Saboteur must know of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import TargetError, near
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.designs import TileShape


class ArrayAdapter(Protocol):
    """What a user's own array must tell.

    The array computes a *stream* of tile products ``C[t] = A[t] @ B[t]`` of one shape, one after the other. Cycle 0 is
    the first cycle, and a reset of the array is part of :meth:`stimulus`. The clock is not told: it is the input that
    clocks the flip-flops.

    Attributes:
        sources: Verilog or SystemVerilog files.
        top: name of the top module.
        parameters: of the top module.
        dataflow: ``output_stationary`` or ``weight_stationary``.
        rows: output-stationary: rows of C in a tile; weight-stationary: rows of B in a tile.
        cols: columns of C and B in a tile.
        data_width: bits of an operand, two's complement.
        acc_width: bits of an element of C, two's complement; sums wrap.
    """

    @property
    def sources(self) -> Sequence[Path | str]: ...  # noqa: D102
    @property
    def top(self) -> str: ...  # noqa: D102
    @property
    def parameters(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def dataflow(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def cols(self) -> int: ...  # noqa: D102
    @property
    def data_width(self) -> int: ...  # noqa: D102
    @property
    def acc_width(self) -> int: ...  # noqa: D102

    def cycles(self, shape: TileShape) -> int:
        """How many cycles a stream takes, until its last result has been read."""
        ...

    def stimulus(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Mapping[str, NDArray]:
        """The port values of a stream.

        Args:
            a: [tiles, m, k] operands.
            b: [tiles, k, n] operands.

        Returns:
            ``[cycles]`` for each input port except the clock: uint64, or Python integers where a port is wider than 64
            bits.
        """
        ...

    def result(self, outputs: Mapping[str, NDArray], shape: TileShape) -> NDArray[np.int64]:
        """Read the results of a stream, [tiles, m, n], from the output ports, ``[cycles]`` each."""
        ...


@dataclass(frozen=True)
class ShippedArray:
    """A systolic array that ships with Saboteur, as an adapter; see :class:`ArrayAdapter`."""

    array: designs.SystolicArray

    @property
    def sources(self) -> Sequence[Path]:  # noqa: D102
        return designs.sources(self.array.design)

    @property
    def top(self) -> str:  # noqa: D102
        return self.array.design

    @property
    def dataflow(self) -> str:  # noqa: D102
        return self.array.design

    @property
    def parameters(self) -> Mapping[str, int]:  # noqa: D102
        return self.array.parameters

    @property
    def rows(self) -> int:  # noqa: D102
        return self.array.rows

    @property
    def cols(self) -> int:  # noqa: D102
        return self.array.cols

    @property
    def data_width(self) -> int:  # noqa: D102
        return self.array.data_width

    @property
    def acc_width(self) -> int:  # noqa: D102
        return self.array.acc_width

    def cycles(self, shape: TileShape) -> int:  # noqa: D102
        return self.array.cycles(shape)

    def stimulus(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Mapping[str, NDArray]:  # noqa: D102
        return self.array.stimulus(a, b)

    def result(self, outputs: Mapping[str, NDArray], shape: TileShape) -> NDArray[np.int64]:  # noqa: D102
        return self.array.result(outputs, shape)


@dataclass(frozen=True, eq=False)
class Schedule:
    """Where the operands and results of tiles are on the ports: what :func:`learn` finds out about an adapter.

    A *period* is the ``interval`` cycles from one tile to the next; tile *t* begins in period *t*. In every period an
    operand port shows words of the tile of this period and of those before it, in the same phases.

    Attributes:
        shape: of a tile: m, k, n.
        interval: cycles of a period.
        flush: cycles from the end of the last period to the end of the stream.
        spill: how many periods after its own a tile is still at work.
        fields: operand lanes: (port, lowest bit); each is ``data_width`` bits.
        back: int32 [interval, fields]: how many periods before this one the tile begins whose word is shown; −1 where
            the field shows no operand.
        word: int32 [interval, fields]: which word: flat index into A, then B.
        due: int64 [m · n]: in which cycle since the tile's start an element of C is read.
        due_at: for each element of C the output lane: (port, lowest bit); each is ``acc_width`` bits.
    """

    shape: tuple[int, int, int]
    interval: int
    flush: int
    spill: int
    fields: tuple[tuple[str, int], ...]
    back: NDArray[np.int32]
    word: NDArray[np.int32]
    due: NDArray[np.int64]
    due_at: tuple[tuple[str, int], ...]

    @property
    def head(self) -> int:
        """How many periods at the start differ from those in the middle."""
        return self.spill + 1

    @property
    def reference_tiles(self) -> int:
        """Tiles of a stream that has every kind of period."""
        return 2 * self.spill + 3

    def cycles(self, tiles: int) -> int:
        """Cycles of a stream."""
        return tiles * self.interval + self.flush

    def like(self, tiles: int) -> NDArray[np.int64]:
        """For each period of a stream, the period of the reference stream that has the same controls."""
        period = np.arange(tiles + self.spill)
        skipped = tiles - self.reference_tiles
        if skipped <= 0:
            return period
        return np.where(period < self.head, period, np.where(period < tiles, self.head, period - skipped))


def learn(array: ArrayAdapter, shape: TileShape, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Schedule:
    """Find out by probing where an adapter puts operands and reads results, and check that it always does so.

    Operands are numbered, the numbers are looked for on the ports; outputs are numbered, and the numbers looked for in
    the result. A longer stream of random operands and outputs must then be as foretold.

    Args:
        array: the adapter.
        shape: of a stream.
        inputs: width of each input port, without the clock.
        outputs: width of each output port.

    Raises:
        TargetError: when the adapter's stimulus or result is not of this kind; the message says in what.
    """
    _, m, k, n = shape
    one, two = (array.cycles(TileShape(tiles, m, k, n)) for tiles in (1, 2))
    interval, flush = two - one, 2 * one - two
    if interval < 1 or flush < 0:
        raise TargetError(
            f"array: cycles is {one} for a tile and {two} for two; each tile must take as long as the others"
        )
    spill = -(-flush // interval)
    tiles = 2 * spill + 3
    probe = _Probe(array, (m, k, n), inputs, outputs, interval, flush)
    fields, back, word = probe.operands(tiles, spill)
    due, due_at = probe.results(tiles)
    schedule = Schedule((m, k, n), interval, flush, spill, fields, back, word, due, due_at)
    probe.verify(schedule, tiles + 2)
    if shape.tiles < tiles:
        probe.verify(schedule, shape.tiles)
    return schedule


class _Probe:
    def __init__(
        self,
        array: ArrayAdapter,
        shape: tuple[int, int, int],
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        interval: int,
        flush: int,
    ):
        self.array, self.interval, self.flush = array, interval, flush
        self.m, self.k, self.n = shape
        self.inputs, self.outputs = inputs, outputs

    def stimulus(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Mapping[str, NDArray]:
        found = self.array.stimulus(a, b)
        cycles = len(a) * self.interval + self.flush
        if self.array.cycles(TileShape(len(a), self.m, self.k, self.n)) != cycles:
            raise TargetError(f"array: cycles must grow by {self.interval} with each tile, as from one to two")
        for port, values in found.items():
            if port not in self.inputs:
                raise TargetError(f"array: stimulus: {port!r} is not an input of the design{near(port, self.inputs)}")
            if np.shape(values) != (cycles,):
                raise TargetError(
                    f"array: stimulus: {port} has the shape {np.shape(values)}; it must be [cycles] = ({cycles},)"
                )
        return found

    def lanes(self, ports: Mapping[str, NDArray]) -> tuple[list[tuple[str, int]], NDArray[np.int64]]:
        """Ports as lanes of operands: where each lies, and [cycles, lanes]."""
        width = self.array.data_width
        places, columns = [], []
        for port, values in ports.items():
            count = self.inputs[port] // width
            if self.inputs[port] % width == 0:
                places += [(port, lane * width) for lane in range(count)]
                columns.append(designs.unpack(values, width, count, signed=False))
        return places, np.concatenate(columns, axis=1)

    def tiles(self, words: NDArray[np.int64], tiles: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A and B from words [tiles, m · k + k · n] of ``data_width`` bits."""
        unused = 64 - self.array.data_width
        signed = words.astype(np.int64) << unused >> unused
        a, b = signed[:, : self.m * self.k], signed[:, self.m * self.k :]
        return a.reshape(tiles, self.m, self.k), b.reshape(tiles, self.k, self.n)

    def operands(
        self, tiles: int, spill: int
    ) -> tuple[tuple[tuple[str, int], ...], NDArray[np.int32], NDArray[np.int32]]:
        width, words = self.array.data_width, self.m * self.k + self.k * self.n
        number = 1 + np.arange(tiles * words).reshape(tiles, words)
        digits = range(-(-int(number[-1, -1]).bit_length() // width))
        idle = self.stimulus(*self.tiles(np.zeros_like(number), tiles))
        places, baseline = self.lanes(idle)
        code, moves = np.zeros_like(baseline), np.zeros(baseline.shape, np.bool_)
        for digit in digits:
            given = self.stimulus(*self.tiles(number >> digit * width, tiles))
            for port, values in given.items():
                if self.inputs[port] % width and not np.array_equal(values, idle[port]):
                    raise TargetError(
                        f"array: stimulus: {port} has operands on its {self.inputs[port]} bits, which are not a whole "
                        f"number of lanes of data_width = {width} bits"
                    )
            lanes = self.lanes(given)[1]
            moves |= lanes != baseline
            code |= lanes << digit * width
        if (moves & (baseline != 0)).any() or (code[moves] > number[-1, -1]).any():
            raise TargetError("array: stimulus: operands must be on the ports as they are, each in a lane of its own")
        used = np.flatnonzero(moves.any(axis=0))
        tile, word = np.divmod(code[:, used] - 1, words)
        back = np.arange(len(code))[:, None] // self.interval - tile
        middle = slice((spill + 1) * self.interval, (spill + 2) * self.interval)
        back = np.where(moves[:, used], back, -1)[middle].astype(np.int32)
        if (back < -1).any() or (back > spill).any():
            raise TargetError(
                f"array: stimulus: words of a tile must be on the ports in its period or the {spill} after it"
            )
        return tuple(places[lane] for lane in used), back, word[middle].astype(np.int32)

    def results(self, tiles: int) -> tuple[NDArray[np.int64], tuple[tuple[str, int], ...]]:
        width, cycles = self.array.acc_width, tiles * self.interval + self.flush
        places = [
            (port, low) for port, bits in self.outputs.items() if bits % width == 0 for low in range(0, bits, width)
        ]
        number = 1 + np.arange(cycles * len(places)).reshape(cycles, len(places))
        code = np.zeros((tiles, self.m, self.n), np.int64)
        for digit in range(-(-int(number[-1, -1]).bit_length() // width)):
            found = self.result(number >> min(digit * width, 63), tiles)
            code |= (found & ((1 << min(width, 63)) - 1)) << digit * width
        cycle, place = np.divmod(code.reshape(tiles, -1) - 1, len(places))
        due = cycle - self.interval * np.arange(tiles)[:, None]
        if (due != due[0]).any() or (place != place[0]).any() or (due[0] < 0).any() or (cycle >= cycles).any():
            raise TargetError(
                "array: result: every element of C must be read as it is, from a lane of acc_width bits of an output "
                "port, in a cycle that is fixed from the start of its tile"
            )
        return due[0], tuple(places[at] for at in place[0])

    def result(self, lanes: NDArray[np.int64], tiles: int) -> NDArray[np.int64]:
        """What the adapter reads where the result lanes are [cycles, lanes]."""
        width, ports, first = self.array.acc_width, {}, 0
        for port, bits in self.outputs.items():
            count = bits // width if bits % width == 0 else 0
            whole = lanes[:, first : first + count]
            ports[port] = (
                designs.pack(whole, width) if count else np.zeros(len(lanes), np.uint64 if bits <= 64 else object)
            )
            first += count
        found = np.asarray(self.array.result(ports, TileShape(tiles, self.m, self.k, self.n)))
        if found.shape != (tiles, self.m, self.n):
            wanted = tiles, self.m, self.n
            raise TargetError(f"array: result has the shape {found.shape}; it must be [tiles, m, n] = {wanted}")
        return found.astype(np.int64)

    def verify(self, schedule: Schedule, tiles: int) -> None:
        """Random operands and outputs of a longer stream are where the schedule says."""
        generator = np.random.default_rng(tiles)
        words = generator.integers(0, 1 << self.array.data_width, (tiles, self.m * self.k + self.k * self.n))
        short = min(schedule.reference_tiles, tiles)
        idle = self.stimulus(*self.tiles(np.zeros_like(words[:short]), short))
        given = self.stimulus(*self.tiles(words, tiles))
        cycle = np.arange(schedule.cycles(tiles))
        period, phase = np.divmod(cycle, self.interval)
        source = schedule.like(tiles)[period] * self.interval + phase
        for port, values in given.items():
            expected = idle[port][source]
            for field, (where, low) in enumerate(schedule.fields):
                if where == port:
                    back = schedule.back[phase, field]
                    tile = period - back
                    shown = (back >= 0) & (tile >= 0) & (tile < tiles)
                    word = words[np.clip(tile, 0, tiles - 1), schedule.word[phase, field]] * shown
                    expected = expected | (
                        word.astype(expected.dtype) << (low if expected.dtype == object else np.uint64(low))
                    )
            if not np.array_equal(expected, values):
                bad = int(np.flatnonzero(expected != values)[0])
                raise TargetError(
                    f"array: stimulus: {port} in cycle {bad} of a stream of {tiles} tiles is not what a shorter stream "
                    "lets expect; every period must be like the others, whatever the operands are"
                )
        lanes = {place: k for k, place in enumerate(dict.fromkeys(self._result_lanes()))}
        outputs = generator.integers(-(1 << 62), 1 << 62, (len(cycle), len(lanes)))
        at = np.array([lanes[place] for place in schedule.due_at])
        unused = 64 - self.array.acc_width
        expected = outputs[np.arange(tiles)[:, None] * self.interval + schedule.due, at] << unused >> unused
        if not np.array_equal(self.result(outputs, tiles).reshape(tiles, -1), expected):
            raise TargetError("array: result: elements of C must be read as they are, in fixed cycles of their tile")

    def _result_lanes(self) -> list[tuple[str, int]]:
        width = self.array.acc_width
        return [
            (port, low) for port, bits in self.outputs.items() if bits % width == 0 for low in range(0, bits, width)
        ]
