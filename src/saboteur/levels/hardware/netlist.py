"""The elaborated design: which words travel between which pieces of code, and in which order they are computed.

Every module is cut once into *slices*: runs of cells that are computed together. A slice of a module instance is
a *node* of the design. Nodes read and write *slots*: words of at most 64 bits (one bit at gate level) that are a
primary input, the state of flip-flops, or a net between nodes. Whatever a slot does not hold is a local value
inside of a slice. Nodes are ordered so that each runs after those that it reads from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from saboteur.errors import TargetError, near
from saboteur.levels.hardware.importing import Level, Netlist
from saboteur.levels.hardware.library import ASYNCHRONOUS, LibraryCell, follow, is_library_cell, library_cell

Bit = int | str
WORD_BITS = 64
_SLICE_CELLS: dict[Level, int] = {"word": 128, "gate": 512}
_BITWISE = {"$and", "$or", "$xor", "$xnor", "$not", "$pos", "$mux", "$bwmux", "$pmux"}
_OPERATORS = _BITWISE | {
    *("$neg", "$add", "$sub", "$mul", "$div", "$mod", "$divfloor", "$modfloor"),
    *("$shl", "$sshl", "$shr", "$sshr", "$shift", "$shiftx"),
    *("$lt", "$le", "$eq", "$eqx", "$ne", "$nex", "$ge", "$gt"),
    *("$reduce_and", "$reduce_or", "$reduce_xor", "$reduce_xnor", "$reduce_bool"),
    *("$logic_not", "$logic_and", "$logic_or"),
    *("$_NOT_", "$_BUF_", "$_AND_", "$_NAND_", "$_OR_", "$_NOR_", "$_XOR_", "$_XNOR_", "$_MUX_"),
    *("$_ANDNOT_", "$_ORNOT_", "$_NMUX_", "$_AOI3_", "$_OAI3_", "$_AOI4_", "$_OAI4_"),
}
_FLIP_FLOPS = {"$dff": None, "$ff": None, "$_DFF_P_": 1, "$_DFF_N_": 0, "$_FF_": None}
_IGNORED = {"$scopeinfo", "$print", "$check", "$assert", "$assume", "$cover", "$live", "$fair"}


@dataclass
class Cell:
    """One operator, or the flip-flops of one register word; several are a cell of a Liberty file.

    Attributes:
        pins: which ports are fault sites, and how they are called: ``Q`` is the state of a flip-flop, ``Y`` the output
            of any other cell. All ports, by their own names, if absent.
        clock: of flip-flops, and whether they act on its rising edge; None where every step is one.
    """

    name: str
    kind: str
    parameters: dict[str, int]
    inputs: dict[str, list[Bit]]
    output: list[int]
    source: str = ""
    initial: int | None = None
    pins: dict[str, str] | None = None
    clock: tuple[Bit, bool] | None = None

    def pin(self, port: str) -> str | None:
        """What a port is called as a fault site; None where it is none."""
        return port if self.pins is None else self.pins.get(port)

    @property
    def is_flip_flop(self) -> bool:
        """Whether it holds state."""
        return self.kind in _FLIP_FLOPS


@dataclass
class Memory:
    """A memory of one module: words that ports read at any time and write at the clock edge."""

    name: str
    words: int
    width: int
    offset: int
    initial: list[int]
    unknown: list[int]
    """The bits of each word that the source does not set."""
    reads: list[tuple[list[Bit], list[Bit]]]
    """(address, data) of each read port."""
    writes: list[tuple[list[Bit], list[Bit], list[Bit]]]
    """(address, data, enable of each bit) of each write port; later ports win."""
    clocks: list[tuple[Bit, bool]]
    """Of each write port, and whether it acts on the rising edge."""


Source = tuple[str, int]
"""``("in", word)``, ``("cell", cell)`` or ``("state", cell)`` of a module: what a slice reads or writes."""


@dataclass
class Slice:
    """Cells of one module that are computed together, in order."""

    module: Module
    index: int
    cells: list[int]
    flip_flops: list[int]
    reads: list[Source] = field(default_factory=list)
    writes: list[Source] = field(default_factory=list)


class Module:
    """One module of the netlist, cut into slices.

    Args:
        name: of the module.
        content: in Yosys' JSON form.
        level: of its cells.
        known: the names of all modules.
        library: the cells of Liberty files.
        stepped: clocks are signals like others: a flip-flop takes its data in steps in which its clock has an edge.
    """

    def __init__(
        self,
        name: str,
        content: Mapping[str, Any],
        level: Level,
        known: Iterable[str],
        library: Mapping[str, LibraryCell],
        stepped: bool = False,
    ):
        self.name = name
        self.level: Level = level
        self.ports: dict[str, tuple[str, list[Bit]]] = {}
        for port, entry in content["ports"].items():
            if entry["direction"] == "inout":
                where = _at(content["netnames"].get(port, {}).get("attributes", {}).get("src", ""))
                raise TargetError(
                    f"{plain(name)}.{port}: a bidirectional port{where}; split it into an input and an output"
                )
            self.ports[port] = (entry["direction"], entry["bits"])
        self.names = _bit_names(content["netnames"])
        self._declared: dict[Bit, str] = {}
        for net in content["netnames"].values():
            for bit in net["bits"] if not net.get("hide_name") else ():
                self._declared.setdefault(bit, net.get("attributes", {}).get("src", ""))
        for port, (direction, bits) in self.ports.items():
            if direction == "output" and "z" in bits:
                where = _at(content["netnames"].get(port, {}).get("attributes", {}).get("src", ""))
                raise TargetError(f"{plain(name)}.{port}: is Z{where}; tri-state logic cannot be simulated")
        self._initial = _initial_values(content["netnames"])
        self._fresh = -1
        self.cells: list[Cell] = []
        self.children: dict[str, tuple[str, dict[str, list[Bit]]]] = {}
        self.memories: list[Memory] = []
        self.clocks: dict[tuple[Bit, bool], str] = {}
        self._held: dict[Bit, Bit] = {}
        known = set(known)
        for cell, entry in content["cells"].items():
            if entry["type"] in library:
                self._add_library_cell(cell, library[entry["type"]], entry)
            else:
                self._add(cell, entry, known)
        if stepped:
            self._take_steps()
        self._index_drivers()
        self._name_registers()

    def _name_registers(self) -> None:
        """A register with an asynchronous reset is the multiplexer behind the flip-flop: they share its name."""
        behind: dict[Bit, Bit] = {}
        for cell in self.cells:
            if cell.kind in ("$mux", "$_MUX_"):
                for port in "AB":
                    behind |= dict(zip(cell.inputs[port], cell.output, strict=True))
        for cell in self.cells:
            if cell.is_flip_flop:
                for bit in cell.output:
                    shown = self.names.get(behind.get(bit, "none"))
                    if shown is not None and self.names.get(bit, ("$",))[0].startswith("$") and shown[0][0] != "$":
                        self.names[bit] = shown

    def _add(self, name: str, entry: Mapping[str, Any], known: set[str]) -> None:
        kind, connections = entry["type"], entry["connections"]
        source = entry.get("attributes", {}).get("src", "")
        where = f"{plain(self.name)}: {kind} {plain(name)}{_at(source)}"
        for port, bits in connections.items():
            if "z" in bits:
                raise TargetError(f"{where}: port {port} reads Z; tri-state logic cannot be simulated")
        if kind in known:
            self.children[name] = (kind, dict(connections))
        elif kind in _FLIP_FLOPS:
            clock = None
            if "CLK" in connections or "C" in connections:
                (bit,) = connections.get("CLK") or connections["C"]
                rising = _FLIP_FLOPS[kind] if "C" in connections else _number(entry["parameters"]["CLK_POLARITY"])
                clock = bit, bool(rising)
                self.clocks.setdefault(clock, where)
            for part in _cut(connections["Q"]):
                bits = [connections["Q"][i] for i in part]
                data = [connections["D"][i] for i in part]
                set_at_start = any(bit in self._initial for bit in bits)
                initial = sum(self._initial.get(bit, 0) << i for i, bit in enumerate(bits)) if set_at_start else None
                self.cells.append(Cell(name, kind, {}, {"D": data}, bits, source, initial, None, clock))
        elif kind == "$mem_v2":
            self._add_memory(name, entry, where)
        elif kind in _OPERATORS:
            parameters = {key: _number(value) for key, value in entry["parameters"].items()}
            inputs = {port: list(bits) for port, bits in connections.items() if port != "Y"}
            self._add_operator(Cell(name, kind, parameters, inputs, connections["Y"], source))
        elif kind not in _IGNORED:
            raise TargetError(f"{where}: cells of this kind cannot be simulated")

    def _add_library_cell(self, name: str, cell: LibraryCell, entry: Mapping[str, Any]) -> None:
        """Put the gates and flip-flops of a cell in its place."""
        source = entry.get("attributes", {}).get("src", "")
        where = f"{plain(self.name)}: {entry['type']} {plain(name)}{_at(source)}"
        outer: dict[Bit, Bit] = {"0": "0", "1": "1", "x": "x"}
        for port, labels in cell.ports.items():
            outer |= dict(zip(labels, entry["connections"].get(port, ()), strict=False))
        inner = {part.output: self._new()[0] for part in cell.parts if not isinstance(outer.get(part.output), int)}
        value = {**outer, **inner}
        for part in cell.parts:
            if "Q" in part.pins and part.kind not in _FLIP_FLOPS:
                raise TargetError(f"{where}: holds a {part.kind}, which cannot be simulated")
            inputs = {port: [value.get(bit, "x")] for port, bit in part.inputs.items()}
            state = value[part.output]
            assert isinstance(state, int)
            clock = None
            if part.clock is not None:
                clock = value.get(part.clock[0], "x"), part.clock[1]
                self.clocks.setdefault(clock, where)
            if "Q" in part.pins:
                self._held[state] = value[part.held]
            if "Q" in part.pins and state < 0:
                nets = [self.names.get(outer.get(label, "x"), ("$", 0, 1, 0)) for label in part.shown]
                shown = next((net for net in nets if not net[0].startswith("$")), None)
                self.names[state] = shown or (plain(name), 0, 1, 0)
            self.cells.append(Cell(name, part.kind, {}, inputs, [state], source, None, part.pins, clock))

    def _take_steps(self) -> None:
        """Turn clocks into enables: an edge is a step in which the clock is another than in the step before."""
        ones: dict[tuple[Bit, bool], Bit] = {}
        store, mux = ("$ff", "$mux") if self.level == "word" else ("$_FF_", "$_MUX_")

        def edge(clock: tuple[Bit, bool]) -> Bit:
            bit, rising = clock
            if isinstance(bit, str):
                return "0"
            if clock not in ones:
                before, ones[clock] = self._new(2)
                name = f"$edge${self.name_of([bit])}"
                now, then = "AB" if rising else "BA"
                operands: dict[str, list[Bit]] = {now: [bit], then: [before]}
                self.cells.append(Cell(name, store, {}, {"D": operands[now]}, [before], initial=0, pins={}))
                self.cells.append(Cell(name, "$_ANDNOT_", {}, operands, [int(ones[clock])], pins={}))
            return ones[clock]

        after: dict[Bit, Bit] = {}
        for cell in self.cells:
            for port in "AB" if not cell.is_flip_flop else "":
                for bit, out in zip(cell.inputs.get(port, ()), cell.output, strict=False):
                    if self.names.get(bit, ("",))[0].startswith(ASYNCHRONOUS):
                        after[bit] = out
        for cell in [cell for cell in self.cells if cell.clock is not None]:
            assert cell.clock is not None
            held = [self._held.get(bit, follow(bit, after)) for bit in cell.output]
            operands, taken = {"A": held, "B": cell.inputs["D"], "S": [edge(cell.clock)]}, self._new(len(held))
            pin = cell.pin("D")
            pins = {} if pin is None else {"B": pin}
            self.cells.append(Cell(cell.name, mux, {}, operands, taken, cell.source, None, pins))
            cell.inputs, cell.pins, cell.clock = {"D": list(taken)}, {"Q": "Q"}, None
        for memory in self.memories:
            for k, ((address, data, enable), clock) in enumerate(zip(memory.writes, memory.clocks, strict=True)):
                gated: dict[Bit, int] = {}
                for bit in dict.fromkeys(enable):
                    (gated[bit],) = self._new()
                    operands = {"A": [bit], "B": [edge(clock)]}
                    self.cells.append(Cell(f"$edge${memory.name}", "$_AND_", {}, operands, [gated[bit]], pins={}))
                memory.writes[k] = address, data, [gated[bit] for bit in enable]

    def _new(self, count: int = 1) -> list[int]:
        self._fresh -= count
        return list(range(self._fresh + 1, self._fresh + count + 1))

    def _add_operator(self, cell: Cell) -> None:
        """Cut operators on more than 64 bits into pieces."""
        wide = max(len(bits) for bits in (*cell.inputs.values(), cell.output)) > WORD_BITS
        kind, inputs = cell.kind, cell.inputs
        if not wide or (kind in ("$shiftx", "$shr") and len(cell.output) <= WORD_BITS and len(inputs["B"]) <= 32):
            self.cells.append(cell)
        elif kind in _BITWISE:
            width = len(cell.output)
            words = dict(inputs)
            if kind not in ("$mux", "$bwmux", "$pmux"):
                words = {
                    port: _extended(bits, width, cell.parameters[f"{port}_SIGNED"]) for port, bits in words.items()
                }
            for part in _cut(cell.output):
                pieces = {
                    port: bits
                    if port == "S" and kind != "$bwmux"
                    else [bits[k + i] for k in range(0, len(bits), width) for i in part]
                    for port, bits in words.items()
                }
                parameters = dict(cell.parameters) | {"A_WIDTH": len(part), "B_WIDTH": len(part), "WIDTH": len(part)}
                output = [cell.output[i] for i in part]
                self.cells.append(Cell(cell.name, kind, parameters, pieces, output, cell.source))
        elif kind in ("$eq", "$eqx", "$ne", "$nex"):
            width = max(len(inputs["A"]), len(inputs["B"]))
            signed = cell.parameters["A_SIGNED"] and cell.parameters["B_SIGNED"]
            a, b = (_extended(inputs[port], width, signed) for port in "AB")
            partial = []
            for part in _cut(a):
                differ = self._new()
                pieces = {"A": [a[i] for i in part], "B": [b[i] for i in part]}
                unsigned = {"A_SIGNED": 0, "B_SIGNED": 0}
                self.cells.append(Cell(cell.name, "$ne", unsigned, pieces, differ, cell.source))
                partial += differ
            last = "$reduce_or" if kind in ("$ne", "$nex") else "$logic_not"
            self._add_operator(Cell(cell.name, last, {"A_SIGNED": 0}, {"A": partial}, cell.output, cell.source))
        elif kind.startswith(("$reduce_", "$logic_")):
            first = kind if kind in ("$reduce_and", "$reduce_xor") else "$reduce_or"
            first = "$reduce_xor" if kind == "$reduce_xnor" else first
            reduced = {}
            for port, bits in inputs.items():
                reduced[port] = []
                for part in _cut(bits):
                    piece = self._new()
                    operand = {"A": [bits[i] for i in part]}
                    self.cells.append(Cell(cell.name, first, {"A_SIGNED": 0}, operand, piece, cell.source))
                    reduced[port] += piece
            parameters = {"A_SIGNED": 0, "B_SIGNED": 0}
            self._add_operator(Cell(cell.name, kind, parameters, reduced, cell.output, cell.source))
        else:
            raise TargetError(
                f"{plain(self.name)}: {kind} {plain(cell.name)}{_at(cell.source)}: on more than {WORD_BITS} bits; "
                f"map it to gates first (techmap t:{kind})"
            )

    def _add_memory(self, name: str, entry: Mapping[str, Any], where: str) -> None:
        parameters, connections = entry["parameters"], entry["connections"]
        width, words = _number(parameters["WIDTH"]), _number(parameters["SIZE"])
        address = _number(parameters["ABITS"])
        clocked = {
            port: _digits(parameters[f"{port}_CLK_ENABLE"])[: _number(parameters[f"{port}_PORTS"])]
            for port in ("RD", "WR")
        }
        if "1" in clocked["RD"] or "0" in clocked["WR"]:
            raise TargetError(f"{where}: memories must be read without and written with a clock; run memory_nordff")
        clocks = [
            (connections["WR_CLK"][port], _digits(parameters["WR_CLK_POLARITY"])[port] == "1")
            for port in range(_number(parameters["WR_PORTS"]))
        ]
        self.clocks |= {clock: where for clock in clocks if clock not in self.clocks}
        image = _digits(parameters["INIT"]) if isinstance(parameters["INIT"], str) else ""
        image = image.ljust(width * words, "0" if "1" in image or "0" in image else "x")
        unset = image.replace("1", "0").replace("x", "1").replace("z", "1")
        image = image.replace("x", "0").replace("z", "0")
        title = plain(str(parameters.get("MEMID", name)))
        for part in _cut(list(range(width))):
            low, bits = part[0], len(part)
            starts = range(low, low + width * words, width)
            initial, unknown = ([int(digits[k : k + bits][::-1], 2) for k in starts] for digits in (image, unset))

            def column(port: str, k: int, part: list[int] = part) -> list[Bit]:
                return [connections[port][k * width + i] for i in part]

            def row(port: str, k: int) -> list[Bit]:
                return connections[port][k * address : (k + 1) * address]

            reads = [(row("RD_ADDR", k), column("RD_DATA", k)) for k in range(_number(parameters["RD_PORTS"]))]
            writes = [
                (row("WR_ADDR", k), column("WR_DATA", k), column("WR_EN", k))
                for k in range(_number(parameters["WR_PORTS"]))
            ]
            label = title if bits == width else f"{title}[{low + bits - 1}:{low}]"
            offset = _number(parameters.get("OFFSET", 0))
            self.memories.append(Memory(label, words, bits, offset, initial, unknown, reads, writes, clocks))

    def _index_drivers(self) -> None:
        self.drivers: dict[Bit, tuple] = {}

        def drive(bits: Sequence[Bit], *driver: Any) -> None:
            for i, bit in enumerate(bits):
                if isinstance(bit, str):
                    continue
                if bit in self.drivers:
                    where = self._declared.get(bit, "")
                    raise TargetError(f"{plain(self.name)}.{self.name_of([bit])}: has several drivers{_at(where)}")
                self.drivers[bit] = (*driver, i)

        for port, (direction, bits) in self.ports.items():
            if direction == "input":
                drive(bits, "port", port)
        for i, cell in enumerate(self.cells):
            drive(cell.output, "state" if cell.is_flip_flop else "cell", i)
        for i, memory in enumerate(self.memories):
            for k, (_, data) in enumerate(memory.reads):
                drive(data, "memory", (i, k))

    def connect_children(self, modules: Mapping[str, Module]) -> None:
        """Learn which connections of child instances are their outputs, and which bits are unknown.

        These are bits that nothing drives, and X: a state that nothing ever sets, so that what depends on them shows
        in golden runs that begin with other states.
        """

        def distinct(bits: list[Bit]) -> list[Bit]:
            return [self._new()[0] if bit == "x" else bit for bit in bits]

        for cell in self.cells:
            cell.inputs = {port: distinct(bits) for port, bits in cell.inputs.items()}
        for memory in self.memories:
            memory.writes = [(distinct(a), distinct(data), distinct(enable)) for a, data, enable in memory.writes]
        self.ports = {port: (direction, distinct(bits)) for port, (direction, bits) in self.ports.items()}
        for _, connections in self.children.values():
            connections |= {port: distinct(bits) for port, bits in connections.items()}
        read = [bit for cell in self.cells for bits in cell.inputs.values() for bit in bits]
        read += [bit for direction, bits in self.ports.values() if direction == "output" for bit in bits]
        read += self.memory_bits()
        for name, (kind, connections) in self.children.items():
            ports = modules[kind].ports if kind in modules else {}
            inputs = {port: bits for port, (direction, bits) in ports.items() if direction == "input"}
            for port, bits in inputs.items():
                if port not in connections:
                    connections[port] = list[Bit](self._new(len(bits)))
                read += connections[port]
            for port, bits in connections.items():
                if port not in modules[kind].ports:
                    raise TargetError(f"{plain(self.name)}.{plain(name)}: {plain(kind)} has no port {port!r}")
                if modules[kind].ports[port][0] == "output":
                    for i, bit in enumerate(bits):
                        if isinstance(bit, int):
                            self.drivers.setdefault(bit, ("child", (name, port), i))
        store, width = ("$ff", WORD_BITS) if self.level == "word" else ("$_FF_", 1)
        unknown = [bit for bit in dict.fromkeys(read) if isinstance(bit, int) and bit not in self.drivers]
        for first in range(0, len(unknown), width):
            word = unknown[first : first + width]
            self.drivers |= {bit: ("state", len(self.cells), i) for i, bit in enumerate(word)}
            self.cells.append(Cell("$unknown", store, {}, {"D": list[Bit](word)}, word, pins={}))

    def name_of(self, bits: Sequence[Bit]) -> str:
        """What the source calls these bits: ``acc``, or ``acc[7:0]`` for a part."""
        entry = next((self.names[bit] for bit in bits if bit in self.names), None)
        if entry is None:
            return "constant" if all(isinstance(bit, str) for bit in bits) else f"${self.name}${bits[0]}"
        name, position, width, offset = entry
        if len(bits) == width:
            return name
        low = position + offset
        return f"{name}[{low}]" if len(bits) == 1 else f"{name}[{low + len(bits) - 1}:{low}]"

    # -- slices ---------------------------------------------------------------------------------------------------

    def slice(self, fine: bool) -> None:
        """Cut the cells into slices; ``fine`` tells apart every interface word, else every interface bus."""
        self._interface()
        self._order()
        depends = self._dependencies(fine)
        exposed = self._exposed()
        groups: dict[int, list[int]] = {}
        for cell in exposed:
            if not self.cells[cell].is_flip_flop:
                groups.setdefault(depends[cell], []).append(cell)
        ordered = sorted(groups.items(), key=lambda group: (group[0].bit_count(), group[0]))
        owner: dict[int, int] = {}
        self.slices: list[Slice] = []
        limit = _SLICE_CELLS[self.level]
        for _, sinks in ordered:
            self._fill(sinks, owner, limit)
        self._fill([i for i, cell in enumerate(self.cells) if cell.is_flip_flop], owner, limit)
        crossing = set(exposed)
        for part in self.slices:
            needed = [s for c in (*part.cells, *part.flip_flops) for s in self._sources(c)]
            for kind, i in dict.fromkeys(needed):
                if kind != "cell" or owner[i] != part.index:
                    part.reads.append((kind, i))
                    if kind == "cell":
                        crossing.add(i)
        for part in self.slices:
            part.writes = [("cell", c) for c in part.cells if c in crossing] + [("state", f) for f in part.flip_flops]

    def _fill(self, sinks: Sequence[int], owner: dict[int, int], limit: int) -> None:
        part: Slice | None = None
        for sink in sinks:
            if part is None or len(part.cells) + len(part.flip_flops) >= limit:
                part = Slice(self, len(self.slices), [], [])
                self.slices.append(part)
            fresh = self._cone(sink, owner)
            for cell in fresh:
                if len(part.cells) >= limit:
                    part = Slice(self, len(self.slices), [], [])
                    self.slices.append(part)
                owner[cell] = part.index
                part.cells.append(cell)
            if self.cells[sink].is_flip_flop:
                part.flip_flops.append(sink)
        if part is not None and not part.cells and not part.flip_flops:
            self.slices.pop()

    def _cone(self, sink: int, owner: Mapping[int, int]) -> list[int]:
        """Cells before ``sink`` (and itself, unless a flip-flop) that no slice has yet, in order of computation."""
        seen: set[int] = set()
        order: list[int] = []
        stack: list[tuple[int, bool]] = [(sink, False)]
        while stack:
            cell, done = stack.pop()
            if done:
                order.append(cell)
            elif cell not in seen and cell not in owner:
                seen.add(cell)
                stack.append((cell, True))
                stack += [(i, False) for i in reversed(self._before[cell])]
        return [cell for cell in order if not self.cells[cell].is_flip_flop]

    def _interface(self) -> None:
        """Group the bits that cells read from ports, children and memories into words."""
        buses: dict[tuple, dict[int, Bit]] = {}
        runs: dict[tuple, set[int]] = {}
        for cell in self.cells:
            for bits in cell.inputs.values():
                before = None
                for bit in bits:
                    driver = self.drivers.get(bit, ("none",))
                    if driver[0] not in ("port", "child", "memory"):
                        before = None
                        continue
                    bus, i = driver[:2], driver[2]
                    buses.setdefault(bus, {})[i] = bit
                    if before != (bus, i - 1):
                        runs.setdefault(bus, set()).add(i)
                    before = (bus, i)
                    runs[bus].add(-i - 2)
        self.words: list[list[Bit]] = []
        self.word_of: dict[Bit, tuple[int, int]] = {}
        self.bus_of: list[int] = []
        for number, (bus, bits) in enumerate(buses.items()):
            for part in self._words_of_bus(sorted(bits), runs[bus]):
                for position, i in enumerate(part):
                    self.word_of[bits[i]] = (len(self.words), position)
                self.words.append([bits[i] for i in part])
                self.bus_of.append(number)

    def _words_of_bus(self, used: list[int], marks: set[int]) -> list[list[int]]:
        if self.level == "gate":
            return [[i] for i in used]
        parts: list[list[int]] = []
        for i in used:
            contiguous = parts and parts[-1][-1] == i - 1 and len(parts[-1]) < WORD_BITS
            if not contiguous or (len(used) > WORD_BITS and i in marks):
                parts.append([])
            parts[-1].append(i)
        return parts

    def _sources(self, cell: int) -> list[Source]:
        """What a cell reads, each once."""
        found: dict[Source, None] = {}
        for bits in self.cells[cell].inputs.values():
            for bit in bits:
                if (source := self.source_of(bit)) is not None:
                    found[source] = None
        return list(found)

    def source_of(self, bit: Bit) -> Source | None:
        """The interface word, cell or flip-flop that drives a bit; None for constants."""
        driver = self.drivers.get(bit)
        if driver is None:
            return None
        if driver[0] in ("cell", "state"):
            return driver[0], driver[1]
        return "in", self.word_of[bit][0]

    def _order(self) -> None:
        self._before = [[i for kind, i in self._sources(c) if kind == "cell"] for c in range(len(self.cells))]
        state = [0] * len(self.cells)
        self.order: list[int] = []
        for root in range(len(self.cells)):
            path: list[tuple[int, int]] = [(root, 0)] if not state[root] else []
            while path:
                cell, k = path.pop()
                if k == 0:
                    state[cell] = 1
                before = self._before[cell] if not self.cells[cell].is_flip_flop else []
                if k < len(before):
                    path.append((cell, k + 1))
                    if state[before[k]] == 1:
                        cells = [self.cells[c] for c, _ in path[[c for c, _ in path].index(before[k]) :]]
                        named = dict.fromkeys(self.name_of(cell.output) + _at(cell.source) for cell in cells)
                        raise TargetError(f"{plain(self.name)}: combinational loop through {', '.join(named)}")
                    if not state[before[k]]:
                        path.append((before[k], 0))
                else:
                    state[cell] = 2
                    self.order.append(cell)

    def _dependencies(self, fine: bool) -> list[int]:
        depends = [0] * len(self.cells)
        for cell in self.order:
            if self.cells[cell].is_flip_flop:
                continue
            for kind, i in self._sources(cell):
                if kind == "in":
                    depends[cell] |= 1 << (i if fine else self.bus_of[i])
                elif kind == "cell":
                    depends[cell] |= depends[i]
        return depends

    def memory_bits(self) -> list[Bit]:
        """The bits that ports of memories read: addresses, data, enables."""
        bits = [bit for memory in self.memories for address, _ in memory.reads for bit in address]
        return bits + [bit for memory in self.memories for port in memory.writes for part in port for bit in part]

    def _exposed(self) -> list[int]:
        """Cells whose output leaves the module's own logic."""
        leaving: list[Bit] = [bit for direction, bits in self.ports.values() if direction == "output" for bit in bits]
        for _, connections in self.children.values():
            leaving += [bit for bits in connections.values() for bit in bits]
        leaving += self.memory_bits()
        drivers = [self.drivers.get(bit, ("none",)) for bit in leaving]
        return list(dict.fromkeys(driver[1] for driver in drivers if driver[0] in ("cell", "state")))


@dataclass(frozen=True)
class Slot:
    """A word that nodes read or write.

    Attributes:
        name: hierarchical, as in the source.
        instance: the path of the module instance that drives it; empty for the top module.
        width: in bits.
        kind: ``input`` (of the design), ``net`` or ``state``.
        initial: the value at power-on where the source gives one.
        source: file and line.
        struck: whether it can be a fault site.
    """

    name: str
    instance: str
    width: int
    kind: str
    initial: int | None = None
    source: str = ""
    struck: bool = True


@dataclass(frozen=True)
class Node:
    """A slice of one instance, with the slots that it reads and writes."""

    slice: Slice
    instance: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class Glue:
    """A word put together from parts of others: (slot, its low bit, bits, low bit in the word), and constants."""

    write: int
    parts: tuple[tuple[int, int, int, int], ...]
    constant: int

    @property
    def reads(self) -> tuple[int, ...]:
        """The slots that it takes parts of."""
        return tuple(dict.fromkeys(part[0] for part in self.parts))

    @property
    def writes(self) -> tuple[int, ...]:
        """Its one slot."""
        return (self.write,)


@dataclass(frozen=True)
class MemoryRead:
    """Read port (memory of the module, port of the memory) of an instance; the data slots follow the address."""

    memory: int
    address: tuple[int, ...]
    data: tuple[int, ...]
    instance: str
    port: tuple[int, int]

    @property
    def reads(self) -> tuple[int, ...]:
        """The address."""
        return self.address

    @property
    def writes(self) -> tuple[int, ...]:
        """The data."""
        return self.data


@dataclass
class FlatMemory:
    """A memory of one instance."""

    name: str
    instance: str
    words: int
    width: int
    offset: int
    initial: list[int]
    unknown: list[int]
    writes: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """Slots of (address, data, enable of each bit) for each port."""


Pieces = list[tuple[int, int, int, int]]


class Design:
    """The elaborated design.

    Attributes:
        slots: every word between nodes.
        nodes: slices, glue and memory reads in an order in which all can be computed.
        memories: of all instances.
        inputs: for each input port of the top module, its pieces (slot, low bit in slot, bits, low bit in port).
        outputs: for each output port the same; slot −1 is a constant whose value is the low bit's number.

        clock: the input that clocks all flip-flops, a step being one of its cycles; None where there is none, or where
            clocks are inputs like others.
        clocks: the inputs that clock, of a design with several clocks, with both edges of one, or with clocks that
            logic computes: a step is then a row of the stimulus, in which the clocks are.

    Args:
        netlist: the design.
        under_test: the instance that faults strike, where the rest of the design is a testbench around it.

    Raises:
        TargetError: for combinational loops, tri-states, cells that cannot be simulated, and unknown instances.
    """

    def __init__(self, netlist: Netlist, under_test: str | None = None):
        self.netlist, self.under_test = netlist, under_test
        self.level: Level = netlist.level
        self.clocks: dict[str, str] = {}
        self._read_modules(stepped=False)
        if under_test is not None and under_test not in self._instances:
            raise TargetError(f"under_test: no instance {under_test!r}{near(under_test, self._instances)}")
        self.clock = self._find_clock()
        if self.clocks:
            self._read_modules(stepped=True)
        for fine in (False, True):
            try:
                self._elaborate(fine)
            except _Loop as loop:
                if fine:
                    raise TargetError(f"combinational loop through {loop}") from None
            else:
                break

    def _read_modules(self, stepped: bool) -> None:
        library = {name: library_cell(cell) for name, cell in self.netlist.modules.items() if is_library_cell(cell)}
        own = {name: content for name, content in self.netlist.modules.items() if name not in library}
        self.modules = {name: Module(name, content, self.level, own, library, stepped) for name, content in own.items()}
        for module in self.modules.values():
            module.connect_children(self.modules)
        self._instances: dict[str, tuple[Module, str | None, str]] = {}
        self._walk("", self.netlist.top, None, "")

    def strikes(self, instance: str) -> bool:
        """Whether faults can be in an instance: in the design under test, not in a testbench around it."""
        return self.under_test is None or instance == self.under_test or instance.startswith(f"{self.under_test}.")

    def instances(self) -> Iterator[tuple[str, Module]]:
        """The path and the module of every instance; the top module's path is empty."""
        for path, (module, _, _) in self._instances.items():
            yield path, module

    def output_bits(self) -> list[Bit]:
        """The bits of the top module's outputs."""
        ports = self.modules[self.netlist.top].ports.values()
        return [bit for direction, bits in ports if direction == "output" for bit in bits]

    def _walk(self, path: str, module: str, parent: str | None, name: str) -> None:
        self._instances[path] = (self.modules[module], parent, name)
        for child, (kind, _) in self.modules[module].children.items():
            self._walk(f"{path}.{plain(child)}" if path else plain(child), kind, path, child)

    def _elaborate(self, fine: bool) -> None:
        for module in self.modules.values():
            module.slice(fine)
        self.slots: list[Slot] = []
        self._slot_of: dict[tuple, int] = {}
        self._glued: dict[tuple, int] = {}
        self._resolved: dict[tuple[str, Bit], tuple[int, int]] = {}
        self.memories: list[FlatMemory] = []
        nodes: list[Node | Glue | MemoryRead] = []
        self._glue: list[Glue] = []
        for path, (module, _, _) in self._instances.items():
            self._make_slots(path, module)
        self._cut_inputs()
        for path, (module, _, _) in self._instances.items():
            for part in module.slices:
                reads = tuple(self._read(path, module, source) for source in part.reads)
                writes = tuple(self._slot_of[(path, *target)] for target in part.writes)
                nodes.append(Node(part, path, reads, writes))
            for i, memory in enumerate(module.memories):
                self._add_memory(path, i, memory, nodes)
        self.outputs = {
            port: self._pieces(path="", bits=bits)
            for port, (direction, bits) in self.modules[self.netlist.top].ports.items()
            if direction == "output"
        }
        self.nodes = self._ordered([*nodes, *self._glue])

    def _make_slots(self, path: str, module: Module) -> None:
        written = {target for part in module.slices for target in part.writes}
        for kind, i in sorted(written):
            cell = module.cells[i]
            self._new_slot((path, kind, i), path, module.name_of(cell.output), len(cell.output), kind, cell)
        for i, memory in enumerate(module.memories):
            for k, (_, data) in enumerate(memory.reads):
                for part in _cut(data) if self.level == "word" else [[j] for j in range(len(data))]:
                    bits = [data[j] for j in part]
                    self._new_slot((path, "memory", i, k, part[0]), path, module.name_of(bits), len(part), "net")

    def _new_slot(self, key: tuple, path: str, name: str, width: int, kind: str, cell: Cell | None = None) -> None:
        self._slot_of[key] = len(self.slots)
        full = f"{path}.{name}" if path else name
        kind = {"cell": "net"}.get(kind, kind)
        initial, source = (cell.initial, cell.source) if cell else (None, "")
        struck = self.strikes(path) and (kind != "state" or cell is None or cell.pin("Q") is not None)
        self.slots.append(Slot(full, path, width, kind, initial, source, struck))

    def _cut_inputs(self) -> None:
        """Slots for the design's inputs, cut where those who read them cut them, if they agree."""
        top = self.modules[self.netlist.top]
        wanted: dict[str, set[tuple[int, int]]] = {port: set() for port, (d, _) in top.ports.items() if d == "input"}
        for path, (module, _, _) in self._instances.items():
            words = [module.words[i] for part in module.slices for kind, i in part.reads if kind == "in"]
            words += [bits for memory in module.memories for address, _ in memory.reads for bits in [address]]
            words += [bits for memory in module.memories for port in memory.writes for bits in port]
            for bits in words:
                origins = [self.origin(path, bit) or () for bit in bits]
                first = origins[0] if origins else ()
                if len(first) == 3 and all(len(o) == 3 and o[:2] == first[:2] for o in origins):
                    wanted[first[1]].add((first[2], len(bits)))
        self.inputs: dict[str, Pieces] = {}
        self._input_slot: dict[tuple[str, int], tuple[int, int]] = {}
        for port, spans in wanted.items():
            width = len(top.ports[port][1])
            self.inputs[port] = []
            for low, high in _agreed_cuts(width, spans, 1 if self.level == "gate" else WORD_BITS):
                name = (
                    port if high - low == width else f"{port}[{high - 1}:{low}]" if high - low > 1 else f"{port}[{low}]"
                )
                self.inputs[port].append((len(self.slots), 0, high - low, low))
                for i in range(low, high):
                    self._input_slot[port, i] = (len(self.slots), i - low)
                self.slots.append(Slot(name, "", high - low, "input", struck=self.strikes("")))

    def origin(self, path: str, bit: Bit) -> tuple | None:
        """The driver of a bit: ``("port", name, i)`` of the design, or ``(path, …)`` of an instance; None: constant."""
        while True:
            module, parent, name = self._instances[path]
            driver = module.drivers.get(bit)
            if driver is None:
                return ("constant", 1) if bit == "1" else None
            if driver[0] == "port":
                if parent is None:
                    return driver
                connections = self._instances[parent][0].children[name][1]
                if driver[1] not in connections:
                    return None
                path, bit = parent, connections[driver[1]][driver[2]]
            elif driver[0] == "child":
                child, port = driver[1]
                path = f"{path}.{plain(child)}" if path else plain(child)
                bit = self._instances[path][0].ports[port][1][driver[2]]
            else:
                return (path, *driver)

    def _resolve(self, path: str, bit: Bit) -> tuple[int, int]:
        """(slot, position) of a bit, or (−1, its constant value)."""
        if (path, bit) not in self._resolved:
            origin = self.origin(path, bit)
            if origin is None or origin[0] == "constant":
                found = (-1, 0 if origin is None else 1)
            elif origin[0] == "port" and len(origin) == 3:
                found = self._input_slot[origin[1], origin[2]]
            else:
                where, kind, i, position = origin
                if kind == "memory":
                    low = position if self.level == "gate" else position // WORD_BITS * WORD_BITS
                    found = (self._slot_of[(where, "memory", *i, low)], position - low)
                else:
                    found = (self._slot_of[(where, kind, i)], position)
            self._resolved[path, bit] = found
        return self._resolved[path, bit]

    def _pieces(self, path: str, bits: Sequence[Bit]) -> Pieces:
        pieces: Pieces = []
        for i, bit in enumerate(bits):
            slot, position = self._resolve(path, bit)
            if pieces and slot >= 0 and pieces[-1][0] == slot and pieces[-1][1] + pieces[-1][2] == position:
                last = pieces[-1]
                pieces[-1] = (slot, last[1], last[2] + 1, last[3])
            else:
                pieces.append((slot, position, 1, i))
        return pieces

    def _word(self, path: str, bits: Sequence[Bit]) -> int:
        """The slot that holds exactly these bits: an existing one, or glue."""
        pieces = self._pieces(path, bits)
        if len(pieces) == 1 and pieces[0][0] >= 0 and pieces[0][1] == 0 and self.slots[pieces[0][0]].width == len(bits):
            return pieces[0][0]
        key = tuple(pieces)
        if key not in self._glued:
            slot = self._glued[key] = len(self.slots)
            name = self._instances[path][0].name_of(bits)
            self.slots.append(Slot(f"{path}.{name}" if path else name, path, len(bits), "net"))
            constant = sum(low << position for s, low, _, position in pieces if s < 0)
            self._glue.append(Glue(slot, tuple(p for p in pieces if p[0] >= 0), constant))
        return self._glued[key]

    def _read(self, path: str, module: Module, source: Source) -> int:
        if source[0] == "in":
            return self._word(path, module.words[source[1]])
        return self._slot_of[(path, *source)]

    def _add_memory(self, path: str, i: int, memory: Memory, nodes: list) -> None:
        def words(bits: Sequence[Bit]) -> tuple[int, ...]:
            parts = [[j] for j in range(len(bits))] if self.level == "gate" else _cut(bits)
            return tuple(self._word(path, [bits[j] for j in part]) for part in parts)

        name = f"{path}.{memory.name}" if path else memory.name
        flat = FlatMemory(name, path, memory.words, memory.width, memory.offset, memory.initial, memory.unknown)
        for k, (address, data) in enumerate(memory.reads):
            starts = range(len(data)) if self.level == "gate" else range(0, len(data), WORD_BITS)
            slots = tuple(self._slot_of[(path, "memory", i, k, low)] for low in starts)
            nodes.append(MemoryRead(len(self.memories), words(address), slots, path, (i, k)))
        flat.writes = [(words(address), words(data), words(enable)) for address, data, enable in memory.writes]
        self.memories.append(flat)

    def _find_clock(self) -> str | None:
        """The one clock; where there is not just one edge of one input, all inputs that clock are in ``clocks``."""
        found: dict[tuple[str, int, bool], str] = {}
        computed: dict[tuple[str, Bit], str] = {}
        tree: set[tuple[str, int]] = set()
        for path, (module, _, _) in self._instances.items():
            for (bit, rising), where in module.clocks.items():
                origin, rising = self._clock_origin(path, bit, rising, tree)
                if origin is not None and origin[0] == "port" and len(origin) == 3:
                    found.setdefault((origin[1], origin[2], rising), where)
                else:
                    computed.setdefault((path, bit), where)
        for path, i in tree:
            self._instances[path][0].cells[i].pins = {}
        port, bit, _ = next(iter(found), ("", 0, True))
        if len(found) == 1 and not computed and not self._is_data(port, bit, tree):
            return port
        if found or computed:
            self.clocks = {name: where for (name, _, _), where in found.items()}
            if not found:
                self.clocks = {name: where for place, where in computed.items() for name in self._inputs_before(*place)}
        return None

    def _inputs_before(self, path: str, bit: Bit) -> list[str]:
        """The inputs of the design from which logic computes a bit."""
        ports: dict[str, None] = {}
        seen: set[tuple[str, Bit]] = set()
        queue = [(path, bit)]
        while queue:
            place = queue.pop()
            origin = None if place in seen else self.origin(*place)
            seen.add(place)
            if origin is not None and origin[0] == "port" and len(origin) == 3:
                ports[origin[1]] = None
            elif origin is not None and len(origin) == 4 and origin[1] == "cell":
                where, _, i, _ = origin
                queue += [(where, b) for bits in self._instances[where][0].cells[i].inputs.values() for b in bits]
        return list(ports)

    def _clock_origin(self, path: str, bit: Bit, rising: bool, tree: set[tuple[str, int]]) -> tuple[tuple | None, bool]:
        """Where a clock comes from, before the buffers and inverters of its tree, and its edge there."""
        while True:
            origin = self.origin(path, bit)
            if origin is None or len(origin) != 4 or origin[1] != "cell":
                return origin, rising
            path, _, i, position = origin
            cell = self._instances[path][0].cells[i]
            if cell.kind not in ("$not", "$pos", "$_NOT_", "$_BUF_") or position >= len(cell.inputs["A"]):
                return origin, rising
            tree.add((path, i))
            rising ^= cell.kind in ("$not", "$_NOT_")
            bit = cell.inputs["A"][position]

    def _is_data(self, port: str, bit: int, tree: set[tuple[str, int]]) -> bool:
        """Whether something else than clocks of flip-flops reads the clock."""
        clocked: dict[str, set[Bit]] = {}
        for path, (module, parent, name) in self._instances.items():
            if parent is None:
                mine: set[Bit] = {module.ports[port][1][bit]}
            else:
                outer, inner = self._instances[parent][0].children[name][1], module.ports
                given = [(inner[p][1], bits) for p, bits in outer.items() if inner[p][0] == "input"]
                pairs = [pair for own, bits in given for pair in zip(own, bits, strict=False)]
                mine = {own for own, bit in pairs if bit in clocked[parent]}
            mine |= {out for i, cell in enumerate(module.cells) if (path, i) in tree for out in cell.output}
            clocked[path] = mine
            cells = [cell for i, cell in enumerate(module.cells) if (path, i) not in tree]
            read = {bit for cell in cells for bits in cell.inputs.values() for bit in bits} | {*module.memory_bits()}
            shown = self.output_bits() if parent is None else []
            if mine.intersection(read) or mine.intersection(shown):
                return True
        return False

    def _ordered(self, nodes: list) -> list:
        writer = {slot: i for i, node in enumerate(nodes) for slot in node.writes if self.slots[slot].kind == "net"}
        before = [{writer[s] for s in node.reads if s in writer} for node in nodes]
        after: list[list[int]] = [[] for _ in nodes]
        for i, needed in enumerate(before):
            for j in needed:
                after[j].append(i)
        waiting = [len(needed) for needed in before]
        ready, order = [i for i in range(len(nodes)) if not waiting[i]], []
        for i in ready:
            order.append(i)
            for j in after[i]:
                waiting[j] -= 1
                if not waiting[j]:
                    ready.append(j)
        if len(order) < len(nodes):
            stuck = {i for i in range(len(nodes)) if waiting[i]}
            raise _Loop(self._cycle(nodes, before, stuck))
        return [nodes[i] for i in order]

    def _cycle(self, nodes: list, before: list[set[int]], stuck: set[int]) -> str:
        path = [min(stuck)]
        while True:
            step = min(before[path[-1]] & stuck)
            if step in path:
                cycle = path[path.index(step) :]
                names = [
                    self.slots[slot].name + _at(self.slots[slot].source)
                    for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True)
                    for slot in nodes[a].reads
                    if slot in nodes[b].writes
                ]
                return ", ".join(dict.fromkeys(names))
            path.append(step)

    @cached_property
    def states(self) -> list[int]:
        """The slots of flip-flops."""
        return [i for i, slot in enumerate(self.slots) if slot.kind == "state"]


class _Loop(Exception):
    pass


def plain(name: str) -> str:
    """A name as its source has it: without Yosys' escapes and parameter hashes."""
    return name.rsplit("\\", 1)[-1]


def _at(source: str) -> str:
    return f" at {source}" if source else ""


def _cut(bits: Sequence) -> list[list[int]]:
    return [list(range(low, min(low + WORD_BITS, len(bits)))) for low in range(0, len(bits), WORD_BITS)]


def _agreed_cuts(width: int, spans: set[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Cut [0, width) at the ends of spans unless one of at most ``limit`` bits would be cut in two."""
    cuts = {0, width}
    for low, length in sorted(spans, key=lambda span: -span[1]):
        for cut in (low, low + length):
            if not any(a < cut < a + n and n <= limit for a, n in spans):
                cuts.add(cut)
    ends = sorted(cuts)
    return [(low, min(low + limit, high)) for first, high in pairwise(ends) for low in range(first, high, limit)]


def _digits(value: str) -> str:
    """A binary parameter, least significant digit first."""
    return value[::-1]


def _number(value: str | int) -> int:
    if isinstance(value, int):
        return value
    digits = value.replace("x", "0").replace("z", "0")
    return int(digits, 2) if digits and set(digits) <= {"0", "1"} else 0


def _extended(bits: list[Bit], width: int, signed: int) -> list[Bit]:
    return bits[:width] + [bits[-1] if signed else "0"] * (width - len(bits))


def _bit_names(nets: Mapping[str, Any]) -> dict[Bit, tuple[str, int, int, int]]:
    names: dict[Bit, tuple[str, int, int, int]] = {}
    ranked = sorted(nets.items(), key=lambda net: (net[1].get("hide_name", 0), net[0].count("."), len(net[1]["bits"])))
    for name, net in ranked:
        for i, bit in enumerate(net["bits"]):
            if isinstance(bit, int):
                names.setdefault(
                    bit, (plain(name) if not net.get("hide_name") else name, i, len(net["bits"]), net.get("offset", 0))
                )
    return names


def _initial_values(nets: Mapping[str, Any]) -> dict[Bit, int]:
    values: dict[Bit, int] = {}
    for net in nets.values():
        if "init" in net.get("attributes", {}):
            digits = _digits(net["attributes"]["init"])
            values |= {bit: int(digit == "1") for bit, digit in zip(net["bits"], digits, strict=False)}
    return values
