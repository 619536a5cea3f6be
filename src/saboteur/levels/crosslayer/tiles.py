"""What faults in an array leave in the sums of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from saboteur.levels.crosslayer.arrays import ArrayAdapter, ShippedArray
from saboteur.levels.crosslayer.mapping import Mapping
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.designs import TileShape
from saboteur.levels.hardware.importing import Level, read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import Simulator, Stimulus
from saboteur.levels.hardware.sites import Sites


@dataclass(frozen=True)
class Errors:
    """Changed elements of C, in order of fault, row, column.

    Attributes:
        fault: int64 [count].
        row: int64 [count], m.
        column: int64 [count], n.
        delta: int64 [count]: faulty minus golden, never 0, in two's complement of the accumulator's width: added to the
            golden element and wrapped to that width, it gives the faulty one.
    """

    fault: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    delta: NDArray[np.int64]


class ArraySimulator:
    """Simulates an array while it computes the tiles of layers, with faults.

    Args:
        array: a shipped array, or an adapter of the user's own.
        level: of the simulation.

    Raises:
        TargetError: when the sources cannot be read or simulated.
    """

    def __init__(self, array: designs.SystolicArray | ArrayAdapter, level: Level = "word"):
        self.array: ArrayAdapter = ShippedArray(array) if isinstance(array, designs.SystolicArray) else array
        self.netlist = read_verilog(self.array.sources, self.array.top, level, self.array.parameters)
        self.simulator = Simulator(Design(self.netlist))

    @cached_property
    def sites(self) -> Sites:
        """Where the array can fail."""
        return Sites(self.simulator)

    def cycles(self, mapping: Mapping) -> int:
        """Cycles of a layer's stream of tiles."""
        return self.array.cycles(self._shape(mapping))

    def errors(
        self,
        mapping: Mapping,
        a: NDArray[np.int8],
        b: NDArray[np.int8],
        image: NDArray[np.int64],
        rows: NDArray,
    ) -> Errors:
        """What each fault changes in C = A @ B.

        Args:
            mapping: of the layer.
            a: [images, m, k] operands.
            b: [1 or images, k, n] operands.
            image: [faults]: which image each fault meets.
            rows: of dtype ROW; ``fault`` is the index into ``image``, ``on`` and ``off`` are cycles of the stream.
        """
        return self.stream(mapping, a, b, image, rows)

    def stream(
        self,
        mapping: Mapping,
        a: NDArray[np.int8],
        b: NDArray[np.int8],
        image: NDArray[np.int64],
        rows: NDArray,
    ) -> Errors:
        """The plain way to :meth:`errors`: every fault's whole stream is simulated from the reset on."""
        shape = self._shape(mapping)
        m0, k0, n0, *_ = mapping.block(np.arange(mapping.tiles))
        images, which = np.unique(image, return_inverse=True)
        padded_a = np.zeros((len(images), _up(mapping.m, shape.m), _up(mapping.k, shape.k)), np.int64)
        padded_a[:, : mapping.m, : mapping.k] = a[images]
        padded_b = np.zeros((len(b), _up(mapping.k, shape.k), _up(mapping.n, shape.n)), np.int64)
        padded_b[:, : mapping.k, : mapping.n] = b
        streams = []
        for number, chosen in enumerate(images):
            of_b = padded_b[chosen if len(b) > 1 else 0]
            tiles_a = np.stack(
                [padded_a[number, m : m + shape.m, k : k + shape.k] for m, k in zip(m0, k0, strict=True)]
            )
            tiles_b = np.stack([of_b[k : k + shape.k, n : n + shape.n] for k, n in zip(k0, n0, strict=True)])
            streams.append(self.array.stimulus(tiles_a, tiles_b))
        stimulus = Stimulus({port: np.stack([stream[port] for stream in streams]) for port in streams[0]})
        golden = self._products(mapping, shape, stimulus, np.arange(len(images)), rows[:0])
        step = self.simulator.lanes
        found = []
        for first in range(0, len(which), step):
            chosen = which[first : first + step]
            mine = rows[(rows["fault"] >= first) & (rows["fault"] < first + step)].copy()
            mine["fault"] -= first
            faulty = self._products(mapping, shape, stimulus, chosen, mine)
            unused = 64 - self.array.acc_width
            delta = (faulty - golden[chosen]) << unused >> unused
            fault, row, column = np.nonzero(delta)
            found.append((fault + first, row, column, delta[fault, row, column]))
        empty = [(np.zeros(0, np.int64),) * 4]
        return Errors(*(np.concatenate(columns) for columns in zip(*(found or empty), strict=True)))

    def _products(
        self, mapping: Mapping, shape: TileShape, stimulus: Stimulus, runs: NDArray[np.int64], rows: NDArray
    ) -> NDArray[np.int64]:
        """C, [runs, m, n]."""
        outputs = self.simulator.design.outputs
        slots = np.unique([slot for pieces in outputs.values() for slot, *_ in pieces if slot >= 0])
        place = {slot: k for k, slot in enumerate(slots.tolist())}
        local = {
            port: [(place.get(slot, slot), low, bits, to) for slot, low, bits, to in pieces]
            for port, pieces in outputs.items()
        }
        kept = self.simulator.run(stimulus, runs, rows, slots=slots)
        assert kept is not None
        m0, _, n0, *_ = mapping.block(np.arange(mapping.tiles))
        sums = np.zeros((len(runs), _up(mapping.m, shape.m), _up(mapping.n, shape.n)), np.int64)
        for run, trace in enumerate(kept[:, :-1]):
            words = {port: self.simulator.read(trace, pieces) for port, pieces in local.items()}
            for tile, (m, n) in zip(self.array.result(words, shape), zip(m0, n0, strict=True), strict=True):
                sums[run, m : m + shape.m, n : n + shape.n] += tile
        return sums[:, : mapping.m, : mapping.n]

    def _shape(self, mapping: Mapping) -> TileShape:
        rows, cols = self.array.rows, self.array.cols
        if self.array.dataflow == "output_stationary":
            return TileShape(mapping.tiles, rows, mapping.k, cols)
        return TileShape(mapping.tiles, mapping.m, rows, cols)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
