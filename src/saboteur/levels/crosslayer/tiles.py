"""What faults in an array leave in the sums of a layer.

A layer's tiles go through the array one after the other, one a *period* (:class:`.arrays.Schedule`). Only the *window*
of a fault is simulated: from the cycle of the fault, or a few before it, until its period and what the array still owes
of it are over. The state at its beginning comes from a fault-free run that begins as many periods earlier as the array
remembers, which is tried out. A machine whose state differs from the fault-free run's at the end of its window goes on,
period by period, until it does not. Faults that last longer than a window run through the whole stream. Every result
that differs is an error: nothing is approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from saboteur.errors import FaultError, TargetError
from saboteur.levels.crosslayer.arrays import ArrayAdapter, ShippedArray, learn
from saboteur.levels.crosslayer.mapping import Mapping
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.compile import lane_bytes
from saboteur.levels.hardware.cones import Cones
from saboteur.levels.hardware.designs import TileShape
from saboteur.levels.hardware.importing import Level, read_verilog
from saboteur.levels.hardware.netlist import Design, Pieces
from saboteur.levels.hardware.simulate import ROW, Simulator, Stimulus
from saboteur.levels.hardware.sites import Sites
from saboteur.levels.hardware.windows import GROUP, PIECE, SNAPSHOT, WIRE, Chunk, Layer, Tables, Windows

_LONGEST_MEMORY = 6
_MARGINS = (2, 4, 8, 16, 32, 64)
_TRIED_LANES = 64
_WINDOWS_AT_ONCE = 8192
_BYTES_AT_ONCE = 1 << 28
_ACTS = ["kind", "place", "offset", "word", "a", "x"]
_RUN_SHARE = 0.05
"""What a chunk takes in any period beside its nodes; all nodes take 1."""
_CHUNK_SHARE = 0.03
"""What a chunk takes beside its periods; all periods of a stream take 1."""


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
        self._plans: dict[TileShape, _Plan] = {}

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

        Raises:
            TargetError: when the operands do not fit the mapping, the mapping does not fit the array, or the array's
                adapter is not as it must be (:func:`~saboteur.levels.crosslayer.arrays.learn`).
        """
        image, rows = self._checked(mapping, a, b, image, rows)
        plan = self._plan(self._shape(mapping))
        layer, which = _layer(mapping, plan, a, b, image)
        plan.windows.load(layer)
        stream = _Stream(plan, layer, mapping, which, rows)
        found = stream.transient()
        if stream.lasts:
            found += stream.lasting(a, b, image)
        return _summed(found, mapping, self.array.acc_width)

    def stream(
        self,
        mapping: Mapping,
        a: NDArray[np.int8],
        b: NDArray[np.int8],
        image: NDArray[np.int64],
        rows: NDArray,
    ) -> Errors:
        """The plain way to :meth:`errors`: every fault's whole stream is simulated from the reset on."""
        image, rows = self._checked(mapping, a, b, image, rows)
        shape = self._shape(mapping)
        images, which = np.unique(image, return_inverse=True)
        streams = [
            self.array.stimulus(*_tiles(mapping, shape, a[chosen], b[chosen if len(b) > 1 else 0])) for chosen in images
        ]
        stimulus = Stimulus({port: np.stack([stream[port] for stream in streams]) for port in streams[0]})
        golden = self._products(mapping, shape, stimulus, np.arange(len(images)), rows[:0])
        step = self.simulator.lanes
        found = []
        for first in range(0, len(which), step):
            chosen = which[first : first + step]
            mine = rows[(rows["fault"] >= first) & (rows["fault"] < first + step)].copy()
            mine["fault"] -= first
            delta = self._products(mapping, shape, stimulus, chosen, mine) - golden[chosen]
            fault, row, column = np.nonzero(delta)
            found.append((fault + first, row, column, delta[fault, row, column]))
        return _summed(found, mapping, self.array.acc_width)

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
        block = mapping.block(np.arange(mapping.tiles))
        sums = np.zeros((len(runs), _up(mapping.m, shape.m), _up(mapping.n, shape.n)), np.int64)
        for run, trace in enumerate(kept[:, :-1]):
            words = {port: self.simulator.read(trace, pieces) for port, pieces in local.items()}
            for tile, m, n in zip(self.array.result(words, shape), block.m, block.n, strict=True):
                sums[run, m : m + shape.m, n : n + shape.n] += tile
        return sums[:, : mapping.m, : mapping.n]

    def _shape(self, mapping: Mapping) -> TileShape:
        array = self.array
        if (mapping.dataflow, mapping.rows, mapping.cols) != (array.dataflow, array.rows, array.cols):
            raise TargetError(
                f"mapping: {mapping.dataflow} on {mapping.rows} × {mapping.cols}; the array is {array.dataflow}, "
                f"{array.rows} × {array.cols}"
            )
        if array.dataflow == "output_stationary":
            return TileShape(mapping.tiles, array.rows, mapping.k, array.cols)
        if array.dataflow == "weight_stationary":
            return TileShape(mapping.tiles, mapping.m, array.rows, array.cols)
        raise TargetError(
            f"array: dataflow: {array.dataflow!r}; arrays in HDL are output_stationary or weight_stationary"
        )

    def _checked(
        self, mapping: Mapping, a: NDArray, b: NDArray, image: NDArray[np.int64], rows: NDArray
    ) -> tuple[NDArray[np.int64], NDArray]:
        if a.shape[1:] != (mapping.m, mapping.k) or b.shape[1:] != (mapping.k, mapping.n):
            raise TargetError(
                f"operands: A is {a.shape} and B {b.shape}; the mapping needs [images, {mapping.m}, {mapping.k}] and "
                f"[1 or images, {mapping.k}, {mapping.n}]"
            )
        if len(b) not in (1, len(a)):
            raise TargetError(f"operands: B is for {len(b)} images, A for {len(a)}")
        image = np.asarray(image, np.int64)
        if len(image) and not 0 <= image.min() <= image.max() < len(a):
            raise FaultError(f"image: from {image.min()} to {image.max()}; there are {len(a)} images")
        if len(rows) and not 0 <= rows["fault"].min() <= rows["fault"].max() < len(image):
            raise FaultError(
                f"rows: fault: from {rows['fault'].min()} to {rows['fault'].max()}; image has {len(image)}"
            )
        return image, rows[np.argsort(rows["fault"], kind="stable")]

    def _plan(self, shape: TileShape) -> _Plan:
        plan = self._plans.get(shape)
        if plan is None:
            self._plans[shape] = plan = _Plan(self.array, self.simulator, shape)
        return plan


class _Plan:
    """What there is to know of streams of tiles of one shape."""

    def __init__(self, array: ArrayAdapter, simulator: Simulator, shape: TileShape):
        design = simulator.design
        self.array, self.simulator, self.shape = array, simulator, shape
        inputs = {port: _width(pieces) for port, pieces in design.inputs.items() if port != design.clock}
        outputs = {port: _width(pieces) for port, pieces in design.outputs.items()}
        self.schedule = learn(array, shape, inputs, outputs)
        self.tables = self._tables()
        self.windows = Windows(simulator, self.tables)
        self.settles = self._settles()
        self.unsettled: set[tuple[int, ...]] = set()
        """Faults, as they act, in which parts of the stream were found to begin in the wrong state."""
        self._computed: dict[bytes, tuple[NDArray, float]] = {}

    @property
    def total(self) -> int:
        """Cycles of the stream."""
        return self.schedule.cycles(self.shape.tiles)

    @property
    def span(self) -> int:
        """Cycles from the start of a fault's period to the end of its window: then results are out, states settled."""
        after = self.settles if self.settles <= 2 * self.schedule.interval else 0
        return self.schedule.interval + max(after, self.schedule.flush)

    @property
    def lead(self) -> int | None:
        """Periods from which on fault-free machines are in the same state, whatever they began in; None: too many."""
        interval = self.schedule.interval
        return -(-self.settles // interval) if self.settles <= _LONGEST_MEMORY * interval < self.total else None

    @cached_property
    def _group_of_keep(self) -> NDArray[np.int64]:
        """Keeps whose slots hold parts of the same elements are in one group."""
        tables = self.tables
        slots, slot = np.unique(tables.keep_slots, return_inverse=True)
        each = np.repeat(slot, np.diff(tables.piece_first))
        places = tables.pieces["row"].astype(np.int64) * self.shape.n + tables.pieces["column"]
        elements, element = np.unique(places, return_inverse=True)
        size = len(slots) + len(elements)
        links = csr_array((np.ones(len(each), np.int8), (each, len(slots) + element)), (size, size))
        return connected_components(links, directed=False)[1][slot].astype(np.int64)

    @cached_property
    def cones(self) -> Cones:
        """What reaches which groups of keeps."""
        group, slots = self._group_of_keep, self.tables.keep_slots
        return Cones(self.simulator, [np.unique(slots[group == number]) for number in range(group.max() + 1)])

    def results_in(self, groups: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[keeps]: which are in these groups."""
        return groups[self._group_of_keep]

    def computed(self, groups: NDArray[np.bool_]) -> tuple[NDArray, float]:
        """What must be computed for these groups of results, and which share of the array's cells that is."""
        key = groups.tobytes()
        if key not in self._computed:
            self._computed[key] = self.cones.computed(groups)
        return self._computed[key]

    def _tables(self) -> Tables:
        schedule, design = self.schedule, self.simulator.design
        _, m, k, n = self.shape
        tiles = min(self.shape.tiles, schedule.reference_tiles)
        idle = self.array.stimulus(np.zeros((tiles, m, k), np.int64), np.zeros((tiles, k, n), np.int64))
        pieces = [(port, *piece) for port in idle for piece in design.inputs[port]]
        references = tiles + schedule.spill
        constants = np.zeros((references * schedule.interval, len(pieces)), np.uint64)
        counted = schedule.cycles(tiles)
        for column, (port, _, _, bits, low) in zip(constants.T, pieces, strict=True):
            values = idle[port]
            if values.any():
                shifted = values >> (low if values.dtype == object else np.uint64(low))
                column[:counted] = shifted & ((1 << bits) - 1 if values.dtype == object else np.uint64((1 << bits) - 1))
        width, a_words = self.array.data_width, _up(m * k, GROUP)
        word = np.where(schedule.word < m * k, schedule.word, schedule.word - m * k + a_words)
        keep_slots, keep_phase, piece_first, parts = self._keeps()
        return Tables(
            interval=schedule.interval,
            spill=schedule.spill,
            references=references,
            middle=schedule.head if tiles == schedule.reference_tiles else tiles - 1,
            a_words=a_words,
            words=a_words + _up(k * n, GROUP),
            operand_bits=width,
            input_slots=np.array([piece[1] for piece in pieces], np.int32),
            constants=constants.reshape(references, schedule.interval, -1),
            counted=counted,
            back=schedule.back,
            word=word,
            wires=tuple(self._wires(port, low) for port, low in schedule.fields),
            keep_slots=keep_slots,
            keep_phase=keep_phase,
            piece_first=piece_first,
            pieces=parts,
        )

    def _wires(self, port: str, low: int) -> NDArray:
        width, found = self.array.data_width, []
        gate = self.simulator.design.level == "gate"
        for slot, _, bits, at in self.simulator.design.inputs[port]:
            begin, end = max(at, low), min(at + bits, low + width)
            if begin < end:
                whole = gate or (end - begin == width == bits and width in (8, 16, 32, 64))
                found.append((slot, begin - at, begin - low, whole, (1 << (end - begin)) - 1))
        return np.array(found, WIRE)

    def _keeps(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray]:
        """In which slots and phases results are: slots, phases, and their pieces as Tables has them."""
        schedule, width = self.schedule, self.array.acc_width
        n = self.shape.n
        found, lanes = [], {}
        for element, lane in enumerate(schedule.due_at):
            lanes.setdefault(lane, []).append(element)
        for (port, low), elements in lanes.items():
            for slot, first, bits, at in self.simulator.design.outputs[port]:
                begin, end = max(at, low), min(at + bits, low + width)
                if slot < 0 or begin >= end:
                    continue
                parts = np.zeros(len(elements), PIECE)
                parts["low"], parts["to"], parts["ones"] = first + begin - at, begin - low, (1 << (end - begin)) - 1
                parts["back"], phase = np.divmod(schedule.due[elements], schedule.interval)
                parts["row"], parts["column"] = np.divmod(elements, n)
                found.append((phase, np.full(len(elements), slot), parts))
        phase, slot, parts = (np.concatenate(columns) for columns in zip(*found, strict=True))
        slots = len(self.simulator.design.slots)
        keys, keep = np.unique(phase * slots + slot, return_inverse=True)
        order = np.argsort(keep, kind="stable")
        keep_phase, keep_slots = np.divmod(keys, slots)
        first = np.searchsorted(keep[order], np.arange(len(keys) + 1))
        return keep_slots.astype(np.int32), keep_phase.astype(np.int32), first.astype(np.int32), parts[order]

    def _settles(self) -> int:
        """After how many cycles machines that begin a period in different states are in the same one.

        Tried out with random states and operands; the whole stream where it takes more than a few periods. Checks the
        array's results on the way.

        Raises:
            TargetError: when the array does not compute products.
        """
        generator = np.random.default_rng(0)
        schedule, windows = self.schedule, self.windows
        tiles = self.shape.tiles if self.shape.tiles < schedule.reference_tiles else schedule.head + _LONGEST_MEMORY + 1
        tiles = max(tiles, min(self.shape.tiles, schedule.reference_tiles))
        _, m, k, n = self.shape
        limit = 1 << (self.array.data_width - 1)
        kind = _operand_type(self.array.data_width)
        a = np.zeros((_TRIED_LANES, tiles, self.tables.a_words), kind)
        b = np.zeros((_TRIED_LANES, tiles, self.tables.words - self.tables.a_words), kind)
        a[..., : m * k] = generator.integers(-limit, limit, (_TRIED_LANES, tiles, m * k))
        b[..., : k * n] = generator.integers(-limit, limit, (_TRIED_LANES, tiles, k * n))
        every = np.arange(tiles, dtype=np.int32)
        windows.load(Layer(a, b, every, every, every * m, np.zeros(tiles, np.int32), tiles * m, n))
        lanes = np.arange(_TRIED_LANES, dtype=np.int32)
        nowhere = np.zeros_like(lanes)
        sums = np.zeros((tiles * m, n, self.simulator.lanes), np.uint64)
        first = Chunk(lanes, nowhere, 0, schedule.cycles(tiles), self.power_on, nowhere.astype(np.int64), sums=sums)
        windows.run(first)
        products = a[..., : m * k].reshape(*a.shape[:2], m, k).astype(np.float64)
        products = products @ b[..., : k * n].reshape(*b.shape[:2], k, n).astype(np.float64)
        wrong = _wrap(
            np.moveaxis(sums[..., :_TRIED_LANES].astype(np.int64), 2, 0).reshape(products.shape), self.array.acc_width
        )
        wrong -= _wrap(products.astype(np.int64), self.array.acc_width)
        if wrong.any():
            _, tile, row, column = np.argwhere(wrong)[0]
            raise TargetError(
                f"array: element ({row}, {column}) of tile {tile} of a stream of random tiles is not A @ B; check "
                "stimulus and result of the adapter"
            )
        if self.shape.tiles < schedule.reference_tiles:
            return self.total
        lengths = [schedule.flush + margin for margin in _MARGINS if schedule.flush + margin < schedule.interval]
        lengths += [(period + 1) * schedule.interval for period in range(_LONGEST_MEMORY)]
        states = []
        for start in (np.zeros((1, windows.state_words), np.uint64), self._random_states(generator)):
            snapshots = np.zeros(len(lengths) * _TRIED_LANES, SNAPSHOT)
            snapshots["cycle"] = np.repeat(lengths, _TRIED_LANES)
            snapshots["lane"], snapshots["to"] = np.tile(lanes, len(lengths)), np.arange(len(snapshots))
            found = np.zeros((len(snapshots), windows.state_words), self.simulator.golden_type)
            start_of = np.arange(_TRIED_LANES) % len(start)
            period = np.full(_TRIED_LANES, schedule.head, np.int32)
            start = start.astype(self.simulator.golden_type)
            windows.run(Chunk(lanes, period, 0, lengths[-1], start, start_of, snapshots=snapshots, states=found))
            states.append(found.reshape(len(lengths), -1))
        settled = (states[0] == states[1]).all(axis=1)
        return lengths[int(settled.argmax())] if settled.any() else self.total

    @cached_property
    def power_on(self) -> NDArray:
        """[1, words]: the state before the first cycle."""
        design = self.simulator.design
        words = [design.slots[slot].initial or 0 for slot in design.states]
        words += [word for memory in design.memories for word in memory.initial]
        return np.array([words], np.uint64).astype(self.simulator.golden_type)

    def _random_states(self, generator: np.random.Generator) -> NDArray[np.uint64]:
        design = self.simulator.design
        widths = [design.slots[slot].width for slot in design.states]
        widths += [memory.width for memory in design.memories for _ in range(memory.words)]
        words = generator.integers(0, 1 << 64, (_TRIED_LANES, len(widths)), np.uint64)
        return words & ((np.uint64(1) << (np.array(widths, np.uint64) - np.uint64(1))) * np.uint64(2) - np.uint64(1))


class _Stream:
    """Faults in one layer's stream.

    Args:
        plan: of the shape of the layer's tiles.
        layer: its operands, loaded.
        mapping: of the layer.
        image: [faults], index into the operands.
        rows: in order of ``fault``.
    """

    def __init__(self, plan: _Plan, layer: Layer, mapping: Mapping, image: NDArray[np.int64], rows: NDArray):
        self._plan, self._layer, self._mapping, self._image, self._rows = plan, layer, mapping, image, rows
        self._lanes = plan.simulator.lanes
        self._interval = plan.schedule.interval
        rows["on"] = np.maximum(rows["on"], 0)
        faults, first = np.unique(rows["fault"], return_index=True)
        on, off = np.zeros(len(image), np.int64), np.zeros(len(image), np.int64)
        if len(rows):
            on[faults], off[faults] = np.minimum.reduceat(rows["on"], first), np.maximum.reduceat(rows["off"], first)
        self._on = on
        acts = (off > on) & (on < plan.total)
        short = off <= on // self._interval * self._interval + plan.span
        self._short, self._long = np.flatnonzero(acts & short), np.flatnonzero(acts & ~short)

    @property
    def lasts(self) -> bool:
        """Whether any fault is longer than a window."""
        return len(self._long) > 0

    # -- faults that are over within a window -----------------------------------------------------------------

    def transient(self) -> list[tuple[NDArray, ...]]:
        """Errors of the faults that are over before their window ends: columns fault, row, column, delta."""
        found = []
        each = 4 * self._plan.tables.kept_row * self._plan.simulator.golden_type.itemsize
        together = max(min(_WINDOWS_AT_ONCE, _BYTES_AT_ONCE // each), self._lanes)
        for first in range(0, len(self._short), together):
            faults = self._short[first : first + together]
            period, phase = np.divmod(self._on[faults], self._interval)
            order = np.argsort(phase, kind="stable")
            faults, period, phase = faults[order], period[order], phase[order]
            begin = phase[np.arange(len(faults)) // self._lanes * self._lanes]
            span = self._plan.span
            states = None
            while len(faults):
                errors, alive, states = self._round(faults, period, begin, span, states)
                found += errors
                later, phase = divmod(span, self._interval)
                faults, period = faults[alive], period[alive] + later
                begin, span = np.full(len(faults), phase), phase + self._interval
        return found

    def _round(
        self,
        faults: NDArray[np.int64],
        period: NDArray[np.int64],
        begin: NDArray[np.int64],
        span: int,
        states: NDArray | None,
    ) -> tuple[list[tuple[NDArray, ...]], NDArray[np.int64], NDArray]:
        """Run windows from phase ``begin`` of ``period`` until ``span`` cycles after its start.

        Args:
            faults: which.
            period: [faults].
            begin: [faults], the same in each chunk of as many as there are lanes.
            span: in cycles.
            states: [faults, words] to begin with; those of the fault-free run if absent, and then the faults act.

        Returns:
            Columns of errors, which windows end in another state, and these states.
        """
        plan, lanes = self._plan, self._lanes
        image = self._image[faults]
        golden = _Golden(self, image, period, begin, span, states is None)
        start, start_of = (golden.states, golden.start_of) if states is None else (states, np.arange(len(faults)))
        chunk_rows = self._chunked(faults, period * self._interval + begin) if states is None else None
        errors, alive, left = [], [], []
        for number, first in enumerate(range(0, len(faults), lanes)):
            mine = slice(first, first + lanes)
            ended = np.zeros((len(faults[mine]), plan.windows.state_words), plan.simulator.golden_type)
            chunk = Chunk(
                image=image[mine],
                period=period[mine],
                first=int(begin[first]),
                cycles=span - int(begin[first]),
                start=start,
                start_of=start_of[mine],
                rows=np.zeros(0, ROW) if chunk_rows is None else chunk_rows[number],
                states=ended,
                golden=golden.kept,
                kept_of=golden.kept_of[mine],
                end=golden.states,
                end_of=golden.end_of[mine],
            )
            differences, differs = plan.windows.run(chunk)
            lane, step, keep = (differences[name].astype(np.int64) for name in ("fault", "cycle", "output"))
            was = golden.kept[golden.kept_of[mine][lane] + step, keep].astype(np.uint64)
            errors.append(
                self._elements(faults[mine][lane], period[mine][lane] + step, keep, differences["value"], was)
            )
            alive.append(first + np.flatnonzero(differs))
            left.append(ended[differs])
        return errors, np.concatenate(alive), np.concatenate(left)

    def _chunked(self, faults: NDArray[np.int64], begin: NDArray[np.int64]) -> list[NDArray]:
        """The rows of the faults of each chunk, with cycles since the beginning of their windows."""
        place = np.full(len(self._image), -1)
        place[faults] = np.arange(len(faults))
        at = place[self._rows["fault"]]
        rows, at = self._rows[at >= 0], at[at >= 0]
        rows["on"] -= begin[at].astype(np.int32)
        rows["off"] -= begin[at].astype(np.int32)
        chunk, rows["fault"] = np.divmod(at, self._lanes)
        order = np.lexsort((rows["place"], rows["on"], chunk))
        rows, chunk = rows[order], chunk[order]
        bounds = np.searchsorted(chunk, np.arange(-(-len(faults) // self._lanes) + 1))
        return [rows[low:high] for low, high in pairwise(bounds.tolist())]

    def _elements(
        self,
        fault: NDArray[np.int64],
        period: NDArray[np.int64],
        keep: NDArray[np.int64],
        value: NDArray[np.uint64],
        was: NDArray[np.uint64],
    ) -> tuple[NDArray, ...]:
        """Slots that differ, as elements of C."""
        tables, layer = self._plan.tables, self._layer
        counts = np.diff(tables.piece_first)[keep]
        each = np.repeat(np.arange(len(keep)), counts)
        piece = tables.pieces[
            np.repeat(tables.piece_first[keep] - np.cumsum(counts) + counts, counts) + np.arange(len(each))
        ]
        low = piece["low"].astype(np.uint64)
        parts = ((word[each] >> low) & piece["ones"] for word in (value, was))
        faulty, golden = (part << piece["to"].astype(np.uint64) for part in parts)
        tile = period[each] - piece["back"]
        inside = (tile >= 0) & (tile < self._plan.shape.tiles)
        tile = np.where(inside, tile, 0)
        row, column = layer.first_row[tile] + piece["row"], layer.first_column[tile] + piece["column"]
        inside &= (row < layer.rows) & (column < layer.columns) & (faulty != golden)
        return fault[each][inside], row[inside], column[inside], (faulty - golden).view(np.int64)[inside]

    # -- faults that last -------------------------------------------------------------------------------------

    def lasting(self, a: NDArray, b: NDArray, image: NDArray[np.int64]) -> list[tuple[NDArray, ...]]:
        """Errors of the other faults: each has ``image`` of the operands a and b."""
        layer = self._layer
        images, golden_of = np.unique(image[self._long], return_inverse=True)
        golden = _products(a[images], b if len(b) == 1 else b[images])
        which = np.zeros(len(self._image), np.int64)
        which[self._long] = golden_of
        sums = np.zeros((layer.rows, layer.columns, self._lanes), np.uint64)
        found, again = [], []
        for bundle in self._bundles():
            changed, wrong = self._run(bundle, golden, which, sums)
            found.append(changed)
            if len(wrong):
                again.append(_Bundle(bundle.reached, wrong, False))
                self._plan.unsettled.update(self._rows[_ACTS][np.isin(self._rows["fault"], wrong)].tolist())
        for bundle in self._merged(again):
            found.append(self._run(bundle, golden, which, sums)[0])
        return found

    def _bundles(self) -> list[_Bundle]:
        """The faults that can change a result, in the chunks that are expected to take the least time."""
        cones = self._plan.cones
        rows = self._rows[np.isin(self._rows["fault"], self._long)]
        reached = np.zeros((len(self._image), len(cones.fan_in)), np.bool_)
        np.logical_or.at(reached, rows["fault"], cones.reached(rows))
        cuts = np.full(len(self._image), self._plan.lead is not None)
        elsewhere = rows["fault"][rows["way"] != 0]
        reached[elsewhere], cuts[elsewhere] = True, False
        if self._plan.unsettled:
            cuts[rows["fault"][[row in self._plan.unsettled for row in rows[_ACTS].tolist()]]] = False
        faults = self._long[reached[self._long].any(axis=1)]
        if not len(faults):
            return []
        keys, kind = np.unique(np.column_stack([reached[faults], cuts[faults]]), axis=0, return_inverse=True)
        bundles, rest = [], []
        for number, key in enumerate(keys):
            mine = faults[kind == number]
            whole = len(mine) // self._lanes * self._lanes
            each = [mine[first : first + self._lanes] for first in range(0, len(mine), self._lanes)]
            some = [_Bundle(key[:-1], part, bool(key[-1])) for part in each]
            bundles += some[: whole // self._lanes]
            rest += some[whole // self._lanes :]
        return bundles + self._merged(rest)

    def _merged(self, bundles: list[_Bundle]) -> list[_Bundle]:
        """Put together what takes less time together: the longest and fullest first, each where it costs least."""
        merged: list[_Bundle] = []
        for bundle in sorted(bundles, key=lambda bundle: (bundle.cuts, -len(bundle.faults))):
            costs = [self._cost(other.with_(bundle)) - self._cost(other) for other in merged]
            best = int(np.argmin(costs)) if costs else 0
            if costs and costs[best] < self._cost(bundle):
                merged[best] = merged[best].with_(bundle)
            else:
                merged.append(bundle)
        return merged

    def _cost(self, bundle: _Bundle) -> float:
        if len(bundle.faults) > self._lanes:
            return np.inf
        share = self._plan.computed(bundle.reached)[1]
        return (share + _RUN_SHARE) * self._cut(bundle)[1] + _CHUNK_SHARE * self._periods

    @property
    def _periods(self) -> int:
        return -(-self._plan.total // self._interval)

    def _cut(self, bundle: _Bundle) -> tuple[int, int, int]:
        """Into how many parts of the stream its machines are cut, how long each is, how much of it is no result's."""
        lead = self._plan.lead or 0
        most = self._lanes // len(bundle.faults)
        if not bundle.cuts or most < 2 or self._periods <= lead + 1:
            return 1, self._periods, 0
        each = -(-(self._periods - lead) // most)
        return -(-(self._periods - lead) // each), lead + each, lead

    def _run(
        self, bundle: _Bundle, golden: NDArray[np.int64], golden_of: NDArray[np.int64], sums: NDArray[np.uint64]
    ) -> tuple[tuple[NDArray, ...], NDArray[np.int64]]:
        """Run a chunk of faults, each in as many lanes as the stream has parts.

        Part j of the stream begins at period j × each in the state after power-on, in which it is not, and is counted
        from ``lead`` periods later on, when it should be in the state in which part j − 1 ends. Where all parts are,
        they are, one after the other, what one machine does.

        Returns:
            Columns of errors; the faults of which some part was in another state.
        """
        plan, layer, interval, cones = self._plan, self._layer, self._interval, self._plan.cones
        faults, (parts, length, lead) = bundle.faults, self._cut(bundle)
        lanes = len(faults) * parts
        part = np.tile(np.arange(parts), len(faults))
        of = np.repeat(np.arange(len(faults)), parts)
        period = part * (length - lead)
        cycles = length * interval if parts > 1 else plan.total
        needed = cones.slots(bundle.reached)
        counted = plan.results_in(bundle.reached)
        joints = np.flatnonzero(part > 0)
        snapshots = np.zeros(2 * len(joints), SNAPSHOT)
        snapshots["cycle"] = np.repeat([lead * interval, cycles], len(joints))
        snapshots["lane"], snapshots["to"] = np.concatenate([joints, joints - 1]), np.arange(2 * len(joints))
        states = np.empty((2, len(joints), plan.windows.state_words), plan.simulator.golden_type)
        sums.fill(0)
        plan.windows.run(
            Chunk(
                image=self._image[faults][of],
                period=period,
                first=0,
                cycles=cycles,
                start=plan.power_on,
                start_of=np.zeros(lanes, np.int64),
                rows=self._rows_in(faults, parts, period * interval, cycles),
                snapshots=snapshots,
                states=states,
                sums=sums,
                nodes=plan.computed(bundle.reached)[0],
                fields=np.array([needed[wires["slot"]].any() for wires in plan.tables.wires]),
                counted=counted,
                add_from=np.where(part > 0, lead, 0) if parts > 1 else None,
                add_to=of if parts > 1 else None,
            )
        )
        differs = (states[0] != states[1])[:, np.flatnonzero(needed[plan.simulator.design.states])].any(axis=1)
        wrong = np.zeros(len(faults), np.bool_)
        wrong[of[joints[differs]]] = True
        compared = self._elements_of(counted)
        changed = plan.windows.changed(sums, golden, golden_of[faults], plan.array.acc_width, compared)
        changed = changed[~wrong[changed["fault"]]]
        row, column = np.divmod(changed["output"], layer.columns)
        return (faults[changed["fault"]], row, column, changed["value"].view(np.int64)), faults[wrong]

    def _rows_in(self, faults: NDArray[np.int64], parts: int, begin: NDArray[np.int64], cycles: int) -> NDArray:
        """The rows of each lane in turn, ``parts`` a fault; cycles since ``begin`` of the lane."""
        place = np.full(len(self._image), -1)
        place[faults] = np.arange(len(faults))
        mine = self._rows[place[self._rows["fault"]] >= 0]
        rows = np.repeat(mine, parts)
        lane = np.repeat(place[mine["fault"]], parts) * parts + np.tile(np.arange(parts), len(mine))
        on, off = rows["on"] - begin[lane], rows["off"] - begin[lane]
        rows["fault"], rows["on"], rows["off"] = lane, np.maximum(on, 0), off
        rows = rows[(off > 0) & (on < cycles)]
        return rows[np.lexsort((rows["place"], rows["on"]))]

    def _elements_of(self, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[rows, columns]: the elements of C that these keeps hold."""
        tables, layer = self._plan.tables, self._layer
        pieces = tables.pieces[np.repeat(counted, np.diff(tables.piece_first))]
        spots = np.unique(pieces[["row", "column"]])
        row = layer.first_row[:, None] + spots["row"]
        column = layer.first_column[:, None] + spots["column"]
        inside = (row < layer.rows) & (column < layer.columns)
        found = np.zeros((layer.rows, layer.columns), np.bool_)
        found[row[inside], column[inside]] = True
        return found


@dataclass(frozen=True, eq=False)
class _Bundle:
    """Faults that run side by side.

    Attributes:
        reached: [groups]: which results they can change.
        faults: [at most as many as there are lanes].
        cuts: whether a machine of theirs may be several, each for a part of the stream.
    """

    reached: NDArray[np.bool_]
    faults: NDArray[np.int64]
    cuts: bool

    def with_(self, other: _Bundle) -> _Bundle:
        faults = np.concatenate([self.faults, other.faults])
        return _Bundle(self.reached | other.reached, faults, self.cuts and other.cuts)


class _Golden:
    """What the fault-free run has in the windows of faults.

    Attributes:
        states: [count, words].
        start_of: int64 [windows]: which of the states each begins in.
        end_of: int64 [windows]: in which it would end; −1 at the end of the stream.
        kept: [rows, kept_row], results of periods.
        kept_of: int64 [windows]: the row of each window's first period.
    """

    def __init__(
        self,
        stream: _Stream,
        image: NDArray[np.int64],
        period: NDArray[np.int64],
        begin: NDArray[np.int64],
        span: int,
        starts: bool,
    ):
        plan, lanes, interval = stream._plan, stream._lanes, stream._interval
        periods = plan.shape.tiles + plan.schedule.spill
        more = -(-span // interval)
        place, of = np.unique(image * periods + period, return_inverse=True)
        # A machine begins at a period from which it settles in time.
        lead = np.zeros(len(place), np.int64)
        np.maximum.at(lead, of, -(np.minimum(begin - plan.settles, 0) // interval))
        image, period = np.divmod(place, periods)
        # Successive periods of an image are computed by one machine, as long as all machines have something to do.
        gap = np.diff(period, prepend=0)
        breaks = (np.diff(image, prepend=-1) != 0) | (gap > lead + more)
        leading = np.flatnonzero(breaks)
        run = np.cumsum(breaks) - 1
        since = period - period[leading][run]
        spans = np.add.reduceat(np.where(breaks, 1, gap), leading)
        longest = max(-(-int(spans.sum()) // lanes), 1)
        part = np.cumsum(breaks | (np.diff(since // longest, prepend=0) != 0)) - 1
        head = np.flatnonzero(np.diff(part, prepend=-1))
        last = np.append(head[1:], len(part)) - 1
        first_period = np.maximum(period[head] - lead[head], 0)
        length = period[last] - first_period
        order = np.argsort(-length, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        chunk, lane = np.divmod(rank, lanes)
        longest_of = length[order[::lanes]]
        rows_of = longest_of + more | 1
        sizes = np.minimum(lanes, len(order) - np.arange(len(longest_of)) * lanes)
        base = np.cumsum([0, *(rows_of * sizes)])
        lane_row = base[chunk] + lane * rows_of[chunk]
        kind = plan.simulator.golden_type
        self.kept = np.empty((int(base[-1]), plan.tables.kept_row), kind)
        at = period - first_period[part]
        self.kept_of = (lane_row[part] + at)[of]
        ends = period * interval + span < plan.total
        end_of = np.where(ends, np.cumsum(ends) - 1, -1)
        self.end_of = end_of[of]
        snapshots = [np.zeros(int(ends.sum()), SNAPSHOT)]
        owner = [part[ends]]
        snapshots[0]["cycle"], snapshots[0]["to"] = (at * interval + span)[ends], end_of[ends]
        self.start_of = np.zeros(len(of), np.int64)
        if starts:
            keys, which = np.unique(of * interval + begin, return_inverse=True)
            window, phase = np.divmod(keys, interval)
            self.start_of = len(snapshots[0]) + which
            more_snapshots = np.zeros(len(keys), SNAPSHOT)
            more_snapshots["cycle"] = at[window] * interval + phase
            more_snapshots["to"] = len(snapshots[0]) + np.arange(len(keys))
            snapshots.append(more_snapshots)
            owner.append(part[window])
        every, owners = np.concatenate(snapshots), np.concatenate(owner)
        every["lane"] = lane[owners]
        by_time = np.lexsort((every["cycle"], chunk[owners]))
        every, owners = every[by_time], owners[by_time]
        bounds = np.searchsorted(chunk[owners], np.arange(len(longest_of) + 1))
        self.states = np.empty((len(every), plan.windows.state_words), kind)
        for number, most in enumerate(longest_of.tolist()):
            mine = order[number * lanes : (number + 1) * lanes]
            plan.windows.run(
                Chunk(
                    image=image[head[mine]],
                    period=first_period[mine],
                    first=0,
                    cycles=most * interval + span,
                    start=plan.power_on,
                    start_of=np.zeros(len(mine), np.int64),
                    snapshots=every[bounds[number] : bounds[number + 1]],
                    states=self.states,
                    kept=self.kept,
                    kept_of=lane_row[mine],
                )
            )


def _layer(mapping: Mapping, plan: _Plan, a: NDArray, b: NDArray, image: NDArray[np.int64]) -> tuple[Layer, NDArray]:
    """The operands of a stream, block by block, and which of them each fault meets."""
    m, k, n = plan.schedule.shape
    tables, kind = plan.tables, _operand_type(plan.tables.operand_bits)
    block = mapping.block(np.arange(mapping.tiles))

    def cut(whole: NDArray, first: NDArray, second: NDArray, sizes: tuple[int, int], words: int) -> tuple[NDArray, ...]:
        count, high, wide = whole.shape
        down, across = -(-high // sizes[0]), -(-wide // sizes[1])
        padded = np.zeros((count, down * sizes[0], across * sizes[1]), kind)
        padded[:, :high, :wide] = whole
        tiled = padded.reshape(count, down, sizes[0], across, sizes[1]).swapaxes(2, 3)
        blocks = np.zeros((count, down * across, words), kind)
        blocks[..., : sizes[0] * sizes[1]] = tiled.reshape(count, down * across, sizes[0] * sizes[1])
        return blocks, first // sizes[0] * across + second // sizes[1]

    images, which = np.unique(image, return_inverse=True)
    whole_rows = k == mapping.k and mapping.m % m == 0 and tables.a_words == m * k
    if whole_rows and a.dtype == kind and a.flags.c_contiguous and (len(b) == 1 or len(images) == len(a)):
        a_blocks, a_of, which = a.reshape(len(a), mapping.m // m, m * k), block.m // m, image
    else:
        a_blocks, a_of = cut(a[images], block.m, block.k, (m, k), tables.a_words)
    b_blocks, b_of = cut(b if len(b) == 1 else b[images], block.k, block.n, (k, n), tables.words - tables.a_words)
    return Layer(a_blocks, b_blocks, a_of, b_of, block.m, block.n, mapping.m, mapping.n), which


def _products(a: NDArray, b: NDArray) -> NDArray[np.int64]:
    """A @ B, exact: floating-point numbers hold integers of this size."""
    largest = a.shape[-1] * int(np.iinfo(a.dtype).min) * int(np.iinfo(b.dtype).min)
    kind = np.float32 if largest <= 1 << 24 else np.float64
    return (a.astype(kind) @ b.astype(kind)).astype(np.int64)


def _tiles(mapping: Mapping, shape: TileShape, a: NDArray, b: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The padded operands of all tiles of one image."""
    block = mapping.block(np.arange(mapping.tiles))
    padded_a = np.zeros((_up(mapping.m, shape.m), _up(mapping.k, shape.k)), np.int64)
    padded_b = np.zeros((_up(mapping.k, shape.k), _up(mapping.n, shape.n)), np.int64)
    padded_a[: mapping.m, : mapping.k], padded_b[: mapping.k, : mapping.n] = a, b
    tiles_a = [padded_a[m : m + shape.m, k : k + shape.k] for m, k in zip(block.m, block.k, strict=True)]
    tiles_b = [padded_b[k : k + shape.k, n : n + shape.n] for k, n in zip(block.k, block.n, strict=True)]
    return np.stack(tiles_a), np.stack(tiles_b)


def _summed(found: list[tuple[NDArray, ...]], mapping: Mapping, width: int) -> Errors:
    """Add up what belongs to one element, modulo 2 ** ``width``."""
    none = (np.zeros(0, np.int64),) * 4
    fault, row, column, delta = (np.concatenate(columns).astype(np.int64) for columns in zip(none, *found, strict=True))
    key, which = np.unique((fault * mapping.m + row) * mapping.n + column, return_inverse=True)
    total = np.zeros(len(key), np.int64)
    np.add.at(total, which, delta)
    total = _wrap(total, width)
    fault, element = np.divmod(key[total != 0], mapping.m * mapping.n)
    return Errors(fault, *np.divmod(element, mapping.n), total[total != 0])


def _wrap(sums: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    return sums << (64 - width) >> (64 - width)


def _operand_type(bits: int) -> np.dtype:
    return np.dtype(f"i{lane_bytes(bits, 'word')}")


def _width(pieces: Pieces) -> int:
    return sum(bits for _, _, bits, _ in pieces)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
