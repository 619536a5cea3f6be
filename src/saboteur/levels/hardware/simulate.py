"""Golden runs and fault-parallel runs of a compiled design.

Values of slots travel as arrays of the *golden type*: ``uint64`` words at word level, ``uint8`` bits at gate level.
Time is in clock cycles; the row of cycle t holds the states before the t-th clock edge and the nets that follow
from them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import TargetError, near
from saboteur.levels.hardware.compile import CompiledDesign, lane_bytes, slot_bytes
from saboteur.levels.hardware.netlist import Design, Glue, MemoryRead, Node, Pieces

Way = Literal["apply", "delay_rise", "delay_fall", "delay", "hold", "bridge_and", "bridge_or", "bridge_take"]
PLACES = ("slot", "hook", "memory")
WAYS: tuple[str, ...] = get_args(Way)

_NODE = np.dtype(
    [(name, "i4") for name in ("type", "reads", "writes", "first", "memory", "glue", "glues", "unused")]
    + [("constant", "u8"), ("clean", "u8"), ("hooked", "u8")]
)
_PART = np.dtype([(name, "i4") for name in ("argument", "low", "bits", "to")])
_MEMORY = np.dtype([(name, "i4") for name in ("words", "width", "offset", "first_write", "writes")])
_WRITE = np.dtype([(name, "i4") for name in ("address", "addresses", "data", "datas", "enable", "enables")])
_FAULT = np.dtype([(name, "i4") for name in ("first_row", "rows", "start")])
ROW = np.dtype(
    [(name, "i4") for name in ("fault", "kind", "place", "offset", "size", "way", "on", "off")]
    + [("word", "i8"), ("a", "u8"), ("x", "u8")]
)
"""One effect of a fault: in cycles ``on`` .. ``off`` − 1, v ← (v AND ``a``) XOR ``x``. ``kind`` indexes PLACES:
``place`` is a slot, a node (``offset`` and ``size`` of the site's masks), or a memory (``word``). ``way`` indexes
WAYS. A bridge has a row at each of its nets, in which ``word`` is the node of the other net, ``a`` its offset."""
FORM = np.dtype([("node", "i4"), ("unused", "i4"), ("clean", "u8")])
"""A node that is computed, and the address of the code for it, as long as there is no fault in it."""
DIFFERENCE = np.dtype([("fault", "i4"), ("cycle", "i4"), ("output", "i4"), ("pad", "i4"), ("value", "u8")])


@dataclass(frozen=True)
class Stimulus:
    """What the design gets, for a number of runs.

    Attributes:
        inputs: uint64 [runs, cycles] by input port of at most 64 bits, or Python integers (object) for wider ones.
            Ports that are not given are 0; the clock is not given.
        memories: uint64 [runs, words] by memory, or [words] for all runs: contents at the start; as the source
            has it if absent.
    """

    inputs: Mapping[str, NDArray]
    memories: Mapping[str, NDArray] | None = None

    @property
    def runs(self) -> int:
        """How many."""
        return len(next(iter(self.inputs.values())))

    @property
    def cycles(self) -> int:
        """How many clock cycles each run has."""
        return next(iter(self.inputs.values())).shape[1]


@dataclass(frozen=True)
class Watch:
    """Which slots are compared, and when.

    Attributes:
        slots: int32 [watched].
        strobe: bool [cycles, watched].
        valid: a slot that, where it differs, makes every watched slot compared in that cycle; −1 for none.
    """

    slots: NDArray[np.int32]
    strobe: NDArray[np.bool_]
    valid: int = -1


@dataclass(frozen=True)
class Response:
    """What faulty machines did.

    Attributes:
        differences: rows of DIFFERENCE, in no order: watched values that differ from golden.
        converged: int32 [faults]: the cycle from which on the machine was in the golden state again; −1 where it
            never was; −2 − t where it was dropped in cycle t.
        computed: how many nodes were computed, over all lanes at once.
        oscillates: bool [faults]: the machine was dropped, because a bridge closes a loop that does not settle.
    """

    differences: NDArray
    converged: NDArray[np.int32]
    computed: int
    oscillates: NDArray[np.bool_]


class Simulator:
    """Runs a design with many machines side by side.

    Args:
        design: the elaborated design.
        compiled: its native code, where it is already there.
    """

    def __init__(self, design: Design, compiled: CompiledDesign | None = None):
        self.design = design
        self.compiled = compiled or CompiledDesign(design)
        self.lanes = self.compiled.lanes
        self.golden_type = np.dtype(np.uint64 if design.level == "word" else np.uint8)
        self.initial = np.array([slot.initial or 0 for slot in design.slots], self.golden_type)
        self._runtime = self._declared(self.compiled.runtime)
        self._machine = self._make()
        self._hooked: set[int] = set()

    def __del__(self) -> None:
        if getattr(self, "_machine", None):
            self._runtime.machine_free(self._machine)
            self._machine = None

    @staticmethod
    def _declared(runtime: ctypes.CDLL) -> ctypes.CDLL:
        runtime.machine_new.restype = ctypes.c_void_p
        runtime.machine_free.argtypes = [ctypes.c_void_p]
        runtime.differences.restype = ctypes.c_void_p
        runtime.differences.argtypes = [ctypes.c_void_p]
        runtime.run_active.restype = ctypes.c_int64
        runtime.run_window.restype = ctypes.c_int64
        runtime.changed_sums.restype = ctypes.c_int64
        return runtime

    def _make(self) -> int:
        design = self.design
        table = self.compiled.clean
        nodes = np.zeros(len(design.nodes), _NODE)
        arguments: list[int] = []
        parts: list[tuple[int, int, int, int]] = []
        for row, node in zip(nodes, design.nodes, strict=True):
            row["reads"], row["writes"], row["first"] = len(node.reads), len(node.writes), len(arguments)
            arguments += [*node.reads, *node.writes]
            if isinstance(node, Node):
                row["clean"] = table[self.compiled.number[node.slice.module.name, node.slice.index]]
            elif isinstance(node, Glue):
                row["type"], row["glue"], row["glues"], row["constant"] = 1, len(parts), len(node.parts), node.constant
                parts += [(node.reads.index(slot), low, bits, to) for slot, low, bits, to in node.parts]
            elif isinstance(node, MemoryRead):
                row["type"], row["memory"] = 2, node.memory
        memories, writes = np.zeros(len(design.memories), _MEMORY), []
        for row, memory in zip(memories, design.memories, strict=True):
            row["words"], row["width"], row["offset"] = memory.words, memory.width, memory.offset
            row["first_write"], row["writes"] = len(writes), len(memory.writes)
            for port in memory.writes:
                entry = []
                for slots in port:
                    entry += [len(arguments), len(slots)]
                    arguments += slots
                writes.append(tuple(entry))
        sizes = np.array([lane_bytes(slot.width, design.level) for slot in design.slots], np.int32)
        is_state = np.array([slot.kind == "state" for slot in design.slots], np.uint8)
        return self._runtime.machine_new(
            len(nodes),
            _at(nodes),
            len(parts),
            _at(np.array(parts, _PART)),
            len(memories),
            _at(memories),
            len(writes),
            _at(np.array(writes, _WRITE)),
            len(arguments),
            _at(np.array(arguments, np.int32)),
            len(sizes),
            _at(sizes),
            _at(is_state),
        )

    # -- stimuli ----------------------------------------------------------------------------------------------

    @cached_property
    def _input_slots(self) -> NDArray[np.int32]:
        return np.array([i for i, slot in enumerate(self.design.slots) if slot.kind == "input"], np.int32)

    def _inputs(self, stimulus: Stimulus, runs: NDArray[np.int64]) -> NDArray[np.uint8]:
        """[cycles, bytes]: the lanes of each input slot, one slot after the other."""
        ports, level = self.design.inputs, self.design.level
        for name, where in self.design.clocks.items():
            if name in ports and name not in stimulus.inputs:
                raise TargetError(
                    f"stimulus: {name} clocks {where}; in a design with several clocks or edges, or with logic on its "
                    "clock, clocks are inputs like others: drive them, a row for each step in which one changes"
                )
        for name in stimulus.inputs:
            if name not in ports or name == self.design.clock:
                known = [port for port in ports if port != self.design.clock]
                raise TargetError(f"stimulus: {name!r} is not an input of the design{near(name, known)}")
        different, place = np.unique(runs, return_inverse=True)
        sizes = [slot_bytes(self.design.slots[slot].width, level) for slot in self._input_slots]
        at = dict(zip(self._input_slots.tolist(), np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        lanes = np.zeros((stimulus.cycles, sum(sizes)), np.uint8)
        for name, given in stimulus.inputs.items():
            words = np.asarray(given)[different].T
            for slot, _, bits, low in ports[name]:
                part = (words >> low) & ((1 << bits) - 1)
                lane = part.astype(np.uint8 if level == "gate" else f"u{lane_bytes(bits, level)}")
                if len(different) > 1:
                    lane = np.ascontiguousarray(lane[:, place])
                else:
                    lane = np.repeat(lane, len(runs), axis=1)
                packed = np.packbits(lane, axis=1, bitorder="little") if level == "gate" else lane.view(np.uint8)
                lanes[:, at[slot] : at[slot] + packed.shape[1]] = packed
        return lanes

    def memories(self, stimulus: Stimulus, runs: NDArray[np.int64]) -> list[NDArray[np.uint64]]:
        """The contents of each memory at the start: [words, runs]."""
        given = stimulus.memories or {}
        names = [memory.name for memory in self.design.memories]
        for name in given:
            if name not in names:
                raise TargetError(f"memories: {name!r} is not a memory of the design{near(name, names)}")
        images = []
        for memory in self.design.memories:
            image = np.array(memory.initial, np.uint64)
            if memory.name in given:
                image = np.asarray(given[memory.name], np.uint64)
                if image.shape[-1] != memory.words:
                    raise TargetError(f"memories: {memory.name} has {memory.words} words, not {image.shape[-1]}")
                image = image[runs].T if image.ndim == 2 else image
            whole = image[:, None] if image.ndim == 1 else image
            images.append(np.ascontiguousarray(np.broadcast_to(whole, (memory.words, len(runs)))))
        return images

    # -- runs -------------------------------------------------------------------------------------------------

    def run(
        self,
        stimulus: Stimulus,
        runs: Sequence[int] | NDArray[np.int64] | None = None,
        rows: NDArray | None = None,
        initial: NDArray | None = None,
        keep: bool = True,
        slots: NDArray[np.int32] | None = None,
        nets: NDArray | None = None,
        memories: list[NDArray[np.uint64]] | None = None,
    ) -> NDArray | None:
        """Compute everything in every cycle, a lane for each of ``runs``: the plain way.

        Args:
            stimulus: what the design gets.
            runs: which of the stimulus' runs; may repeat; all if absent.
            rows: faults, of dtype ROW; ``fault`` is the index into ``runs`` of the machine that has it.
            initial: [slots] states at power-on.
            keep: give back the trace.
            slots: which slots are in the trace; all if absent.
            nets: places of nets, which are in the trace behind the slots; none if absent.
            memories: [words, runs] of each memory, contents at the start, which become those at the end; the
                stimulus' if absent. For at most one run a lane.

        Returns:
            [runs, cycles + 1, slots and nets] in the golden type. In the last row only states count.
        """
        runs = np.arange(stimulus.runs) if runs is None else np.asarray(runs, np.int64)
        rows = np.zeros(0, ROW) if rows is None else rows
        self._prepare_hooks(rows)
        initial = self.initial if initial is None else np.ascontiguousarray(initial, self.golden_type)
        cycles = stimulus.cycles
        chosen_slots = np.arange(len(self.design.slots)) if slots is None else slots
        kept = np.ascontiguousarray(chosen_slots, np.int32)
        seen = np.zeros(0 if nets is None else len(nets), ROW)
        if nets is not None:
            for column in nets.dtype.names or ():
                seen[column] = nets[column]
            self._prepare_hooks(seen)
        trace = np.zeros((len(runs), cycles + 1, len(kept) + len(seen)), self.golden_type) if keep else None
        inputs = np.zeros(0, np.uint8)
        for first in range(0, len(runs), self.lanes):
            chosen, before = runs[first : first + self.lanes], runs[max(first - self.lanes, 0) : first]
            if not np.array_equal(chosen, before):
                inputs = self._inputs(stimulus, chosen)
            contents = self.memories(stimulus, chosen) if memories is None else memories
            mine = rows[(rows["fault"] >= first) & (rows["fault"] < first + len(chosen))].copy()
            mine["fault"] -= first
            self._runtime.run_plain(
                ctypes.c_void_p(self._machine),
                len(chosen),
                cycles,
                len(self._input_slots),
                _at(self._input_slots),
                _at(inputs),
                _pointers(contents),
                _at(initial),
                len(mine),
                _at(mine),
                _at(trace[first : first + len(chosen)]) if trace is not None else None,
                len(kept),
                _at(kept),
                len(seen),
                _at(seen),
            )
        return trace

    def respond(
        self,
        trace: NDArray | GoldenWindows,
        memories: Sequence[NDArray[np.uint64]],
        watch: Watch,
        rows: NDArray,
        faults: int,
        drop: bool = False,
        group: int | None = None,
        order: NDArray[np.int64] | None = None,
    ) -> Response:
        """Compute only what differs from a golden run, with the machines of many faults in the lanes.

        Args:
            trace: [cycles + 1, slots] of the golden run, or it in windows.
            memories: [words] of each memory at its start; a golden run in windows has its own.
            watch: what is compared.
            rows: of dtype ROW, in order of ``fault``.
            faults: how many.
            drop: let go of a machine as soon as a watched value differs.
            group: how many successive faults are brought together in order of time; two for each lane if absent.
            order: of the faults, in which those that act in one place and at about one time should follow each other:
                they share what is computed. By number if absent. Changes no result.
        """
        self._prepare_hooks(rows)
        cycles = len(trace) - 1
        windows = None if isinstance(trace, np.ndarray) else trace
        group = group or (2 if windows is None else 64) * self.lanes
        bounds = np.searchsorted(rows["fault"], np.arange(faults + 1))
        start = first_cycles(rows, faults, cycles)
        order = np.arange(faults) if order is None else order
        order = order[np.argsort((np.arange(faults) // group << 32) + start[order])]
        order = order[start[order] < cycles]
        table = np.zeros(len(order), _FAULT)
        table["first_row"], table["rows"] = bounds[order], np.diff(bounds)[order]
        table["start"] = np.maximum(start[order], 0)
        output_of = np.full(len(self.design.slots), -1, np.int32)
        output_of[watch.slots] = np.arange(len(watch.slots))
        whole = np.ascontiguousarray(trace, self.golden_type) if windows is None else None
        rows, fetch = np.ascontiguousarray(rows), _Fetch(self, windows)
        images = [np.ascontiguousarray(image, np.uint64) for image in memories]
        strobe = np.ascontiguousarray(watch.strobe, np.uint8)
        converged, computed = np.zeros(len(order), np.int32), np.zeros(1, np.int64)
        oscillates = np.zeros(len(order), np.bool_)
        count = self._runtime.run_active(
            ctypes.c_void_p(self._machine),
            _at(whole),
            cycles,
            len(table),
            _at(table),
            _at(rows),
            group,
            _at(output_of),
            _at(strobe),
            len(watch.slots),
            watch.valid,
            int(drop),
            _pointers(images),
            _at(converged),
            _at(oscillates),
            _at(computed),
            fetch.callback,
        )
        fetch.check()
        found = self._differences(count)
        found["fault"] = order[found["fault"]]
        everywhere, restless = np.zeros(faults, np.int32), np.zeros(faults, np.bool_)
        everywhere[order], restless[order] = converged, oscillates
        return Response(found, everywhere, int(computed[0]), restless)

    def run_window(
        self, stream: ctypes.Structure, chunk: ctypes.Structure, rows: NDArray, memories: Sequence[NDArray[np.uint64]]
    ) -> NDArray:
        """What differs from golden, of dtype DIFFERENCE, in a chunk of windows (see ``windows.c``)."""
        self._prepare_hooks(rows)
        machine = ctypes.c_void_p(self._machine)
        count = self._runtime.run_window(machine, ctypes.byref(stream), ctypes.byref(chunk), _pointers(memories))
        return self._differences(count)

    def changed_sums(
        self,
        sums: NDArray[np.uint64],
        golden: NDArray[np.int64],
        image: NDArray[np.int32],
        width: int,
        compared: NDArray[np.bool_],
    ) -> NDArray:
        """Sums that are not the golden ones, of dtype DIFFERENCE (see ``windows.c``)."""
        machine, elements = ctypes.c_void_p(self._machine), sums.size // self.lanes
        columns = (_at(column) for column in (sums, golden, image, compared))
        count = self._runtime.changed_sums(machine, len(image), elements, width, *columns)
        return self._differences(count)

    def _differences(self, count: int) -> NDArray:
        found = np.zeros(count, DIFFERENCE)
        if count:
            ctypes.memmove(found.ctypes.data, self._runtime.differences(ctypes.c_void_p(self._machine)), found.nbytes)
        return found

    def _prepare_hooks(self, rows: NDArray) -> None:
        for n in np.unique(rows["place"][rows["kind"] == 1]).tolist():
            if n in self._hooked:
                continue
            self._hooked.add(n)
            node, address = self.design.nodes[n], None
            if isinstance(node, MemoryRead):
                size = np.array([slot_bytes(self.design.slots[slot].width, self.design.level) for slot in node.data])
                offset, total = 3 * (np.cumsum(size) - size), 3 * int(size.sum())
                first = offset
            else:
                number = self.compiled.number[node.slice.module.name, node.slice.index]
                code, address = self.compiled.hooked_code[number], self.compiled.hooked(number)
                offset = np.array([site.offset for site in code.sites])
                first = np.array([code.first_site(site.cell) for site in code.sites])
                size = np.array([slot_bytes(site.width, self.design.level) for site in code.sites])
                total = code.hook_bytes
            self._runtime.make_hooks(
                ctypes.c_void_p(self._machine),
                n,
                total,
                len(offset),
                _at(offset.astype(np.int32)),
                _at(size.astype(np.int32)),
                _at(first.astype(np.int32)),
                ctypes.c_void_p(address),
            )

    def read(self, trace: Any, pieces: Pieces) -> NDArray:
        """The values of a port: uint64, or Python integers where wider than 64 bits.

        Args:
            trace: [..., slots], or what is indexed like it.
            pieces: of the port.
        """
        width = sum(bits for _, _, bits, _ in pieces)
        kind = np.dtype(np.uint64) if width <= 64 else np.dtype(object)
        value = np.zeros(trace.shape[:-1], kind)
        for slot, low, bits, to in pieces:
            if slot < 0:
                part = np.full(trace.shape[:-1], low, np.uint64)
            else:
                part = (trace[..., slot].astype(np.uint64) >> np.uint64(low)) & np.uint64((1 << bits) - 1)
            value = value | (part.astype(kind) << (np.uint64(to) if width <= 64 else to))
        return value


class GoldenWindows(Protocol):
    """A golden run of which only some cycles are in memory."""

    def __len__(self) -> int:
        """Its cycles and one."""
        ...

    def window(self, cycle: int) -> tuple[int, NDArray, list[NDArray[np.uint64]]]:
        """Cycles that begin at or before one and end after it.

        Returns:
            The first cycle, values [cycles, slots], and [words] of each memory in the first cycle.
        """
        ...


class _Fetch:
    """Gives windows to the runtime; what goes wrong meanwhile is raised after the run."""

    def __init__(self, simulator: Simulator, windows: GoldenWindows | None):
        self._simulator, self._windows = simulator, windows
        self._error: Exception | None = None
        self._held: tuple[Any, ...] = ()
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
        self.callback = kind() if windows is None else kind(self._fetch)

    def _fetch(self, cycle: int) -> None:
        assert self._windows is not None
        try:
            first, values, memories = self._windows.window(cycle)
        except Exception as error:
            self._error, design = self._error or error, self._simulator.design
            first, values = cycle, np.zeros((2, len(design.slots)), self._simulator.golden_type)
            memories = [np.zeros(memory.words, np.uint64) for memory in design.memories]
        pointers = _pointers(memories)
        self._held = values, memories, pointers
        machine = ctypes.c_void_p(self._simulator._machine)
        self._simulator._runtime.set_window(machine, _at(values), first, first + len(values) - 1, pointers)

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error


def first_cycles(rows: NDArray, faults: int, never: int) -> NDArray[np.int32]:
    """[faults]: the cycle in which each begins to act, from rows of dtype ROW; ``never`` without rows."""
    if len(rows) == faults and np.array_equal(rows["fault"], np.arange(faults)):
        return np.minimum(rows["on"], never)
    start = np.full(faults, never, np.int32)
    np.minimum.at(start, rows["fault"], rows["on"])
    return start


def _at(array: NDArray | None) -> Any:
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def _pointers(arrays: Sequence[NDArray]) -> Any:
    return (ctypes.c_void_p * max(len(arrays), 1))(*[array.ctypes.data for array in arrays])
