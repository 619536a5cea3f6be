"""Where a design can fail: its flip-flops, memories, inputs, and the nets and pins of its cells, by name.

Sites come in groups of words of one width: the bits of a register, the words of a memory, all nets or pins of a
module instance. An element of a group is a *place*: a row of dtype PLACE, which says where the runtime acts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import FaultError, near
from saboteur.levels.hardware.compile import slot_bytes
from saboteur.levels.hardware.netlist import Bit, Design, MemoryRead, Node, plain
from saboteur.levels.hardware.simulate import PLACES, Simulator

Kind = Literal["flip_flops", "memories", "inputs", "nets", "pins", "bridges"]

PLACE = np.dtype([(name, "i4") for name in ("kind", "place", "offset", "size")] + [("word", "i8")])
_BIT = re.compile(r"(.*)\[(\d+)\]$")


def literal(pattern: str) -> str:
    """The pattern for ``fnmatch`` in which brackets are part of a name, not sets of characters."""
    return pattern.replace("[", "[[]")


@dataclass(frozen=True)
class Group:
    """Words of one width that are hit alike.

    Attributes:
        name: unique in the design, such as ``row[0].col[1].pe.acc`` or ``row[0].col[1].pe:nets``.
        instance: the path of the module instance; empty for the top module.
        kind: what they are.
        width: bits of a word.
        places: [words], of dtype PLACE.
        names: the name of each word, as far as the source gives one; the slot's, the net's, ``cell.port`` of a pin.
        partners: [words], of dtype PLACE: the other net of each bridge.
        joined: whether the words are single bits, lowest first, that are hit as one word: a register at gate level.
    """

    name: str
    instance: str
    kind: Kind
    width: int
    places: NDArray
    names: tuple[str, ...]
    partners: NDArray | None = None
    joined: bool = False


class Sites:
    """All sites of a design.

    Args:
        simulator: of the design; its hooked code is only compiled once faults act on nets or pins.
    """

    def __init__(self, simulator: Simulator):
        self._simulator, self._design = simulator, simulator.design
        self._found: dict[Kind, dict[str, Group]] = {}
        self._keys: dict[str, list[tuple]] = {"nets": [], "pins": []}

    def groups(self, kind: Kind) -> dict[str, Group]:
        """The groups of one kind by name, in order of the design."""
        if kind not in self._found:
            build = {
                "flip_flops": lambda: self._slots("state", "flip_flops"),
                "inputs": lambda: self._slots("input", "inputs"),
                "memories": self._memories,
                "nets": lambda: self._hooks("nets"),
                "pins": lambda: self._hooks("pins"),
                "bridges": self._neighbours,
            }
            self._found[kind] = {group.name: group for group in build[kind]()}
        return self._found[kind]

    def bridge(self, first: str, second: str) -> Group:
        """Two nets of a gate-level design, by name.

        Raises:
            FaultError: when one is no net with a cell that drives it (with near names), or both are the same.
        """
        self._check_bridges()
        nets = self._nets
        for name in (first, second):
            if name not in nets:
                raise FaultError(f"pairs: {name!r} is not a net that a gate drives{near(name, nets)}")
        if first == second:
            raise FaultError(f"pairs: {first!r} cannot be bridged with itself")
        one, other = (np.array([nets[name]], PLACE) for name in (first, second))
        return Group(f"{first}~{second}", "", "bridges", 1, one, (f"{first}~{second}",), other)

    def _check_bridges(self) -> None:
        if self._design.level != "gate":
            raise FaultError("bridges: need the gate level, where a net is one wire")

    def _neighbours(self) -> Iterator[Group]:
        """Pairs of nets that meet at a cell: two of its inputs, or an input and its output.

        Without a layout, these are the bridges that lists of cell-level bridges hold, and those of the classical
        analyses of input bridges and feedback bridges (Mei, IEEE Transactions on Computers C-23(7), 1974). A pair
        belongs to the module instance of the first cell at which it meets; nets of flip-flops, inputs and constants
        take no part.
        """
        self._check_bridges()
        nets = {
            key: (place, name)
            for group, keys in zip(self.groups("nets").values(), self._keys["nets"], strict=True)
            for key, place, name in zip(keys, group.places, group.names, strict=True)
        }
        seen: set[frozenset] = set()
        for path, module in self._design.instances():
            cells: dict[str, dict[tuple, None]] = {}
            for i, cell in enumerate(module.cells):
                stems = [stem(self._design, path, bits[0]) for bits in cell.inputs.values()]
                met: list[tuple] = [line for line in (*stems, (path, i, "Y")) if line is not None and line in nets]
                cells.setdefault(cell.name, {}).update(dict.fromkeys(met))
            found = []
            for lines in cells.values():
                for one, other in combinations(lines, 2):
                    pair = frozenset((one, other))
                    if pair not in seen:
                        seen.add(pair)
                        found.append((nets[one][0], nets[other][0], f"{nets[one][1]}~{nets[other][1]}"))
            if found:
                first, second, pairs = zip(*found, strict=True)
                label = f"{path or plain(self._design.netlist.top)}:bridges"
                yield Group(label, path, "bridges", 1, np.array(list(first)), pairs, np.array(list(second)))

    @cached_property
    def _nets(self) -> dict[str, NDArray]:
        groups = self.groups("nets").values()
        return {name: place for group in groups for name, place in zip(group.names, group.places, strict=True)}

    def lines(self) -> dict[tuple, tuple[NDArray, str]]:
        """At gate level, place and name of each line.

        ``(instance, cell, port)``, ``(None, input port, bit)``, or ``(instance, "memory", (memory, port), bit)``.
        """
        found: dict[tuple, tuple[NDArray, str]] = {}
        for port, pieces in self._design.inputs.items() if self._design.strikes("") else ():
            for slot, _, bits, low in pieces:
                for k in range(bits):
                    found[None, port, low + k] = (_places("slot", [slot])[0], self._design.slots[slot].name)
        kinds: tuple[Kind, ...] = ("nets", "pins")
        for kind in kinds:
            for group, keys in zip(self.groups(kind).values(), self._keys[kind], strict=True):
                found |= {key: (group.places[k], group.names[k]) for k, key in enumerate(keys)}
        for node in self._design.nodes:
            if isinstance(node, Node):
                for slot in node.writes:
                    if self._design.slots[slot].kind == "state" and self._design.slots[slot].struck:
                        cell = node.slice.writes[node.writes.index(slot)][1]
                        place = _places("slot", [slot])[0]
                        found[node.instance, cell, "Q"] = (place, self._design.slots[slot].name)
        return found

    def _slots(self, of: str, kind: Kind) -> Iterator[Group]:
        registers: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
        for i, slot in enumerate(self._design.slots):
            if slot.kind != of or slot.name == self._design.clock or not slot.struck:
                continue
            bit = _BIT.match(slot.name) if slot.width == 1 else None
            name, k = (bit[1], int(bit[2])) if bit else (slot.name, 0)
            registers.setdefault((name, slot.instance, slot.width), []).append((k, i))
        for (name, instance, width), found in registers.items():
            slots = sorted(found)
            joined = self._design.level == "gate" and len(slots) > 1
            parts = [slots[k : k + 64] for k in range(0, len(slots), 64)] if joined else [slots]
            for part in parts:
                names = tuple(self._design.slots[i].name for _, i in part)
                label = name if len(part) > 1 else names[0]
                label += f"[{part[-1][0]}:{part[0][0]}]" if len(parts) > 1 else ""
                places = _places("slot", [i for _, i in part])
                yield Group(label, instance, kind, width, places, names, joined=len(part) > 1 and joined)

    def _memories(self) -> Iterator[Group]:
        for i, memory in enumerate(self._design.memories):
            if not self._design.strikes(memory.instance):
                continue
            places = _places("memory", [i] * memory.words)
            places["word"] = np.arange(memory.words)
            names = tuple(f"{memory.name}[{k + memory.offset}]" for k in range(memory.words))
            yield Group(memory.name, memory.instance, "memories", memory.width, places, names)

    def _hooks(self, kind: Kind) -> Iterator[Group]:
        compiled, level = self._simulator.compiled, self._design.level
        found: dict[tuple[str, int], list[tuple[int, int, str, tuple]]] = {}
        for n, node in enumerate(self._design.nodes):
            if isinstance(node, Node | MemoryRead) and not self._design.strikes(node.instance):
                continue
            if isinstance(node, MemoryRead) and kind == "nets":
                offset = 0
                for k, slot in enumerate(self._design.slots[slot] for slot in node.data):
                    name, key = slot.name.removeprefix(f"{node.instance}."), (node.instance, "memory", node.port, k)
                    found.setdefault((node.instance, slot.width), []).append((n, offset, name, key))
                    offset += 3 * slot_bytes(slot.width, level)
            if not isinstance(node, Node):
                continue
            module = node.slice.module
            for site in compiled.hooked_code[compiled.number[module.name, node.slice.index]].sites:
                if (site.port == "Y") == (kind == "nets"):
                    cell = module.cells[site.cell]
                    known = module.names.get(cell.output[0])
                    named = kind == "nets" and known is not None and not known[0].startswith("$")
                    name = module.name_of(cell.output) if named else f"{plain(cell.name)}.{cell.pin(site.port)}"
                    found.setdefault((node.instance, site.width), []).append(
                        (n, site.offset, name, (node.instance, site.cell, site.port))
                    )
        for (instance, width), sites in found.items():
            nodes, offsets, names, keys = zip(*sites, strict=True)
            self._keys[kind].append(keys)
            places = _places("hook", nodes)
            places["offset"], places["size"] = offsets, slot_bytes(width, self._design.level)
            where = instance or plain(self._design.netlist.top)
            label = f"{where}:{kind}" if self._design.level == "gate" else f"{where}:{kind}[{width}]"
            paths = tuple(f"{instance}.{name}" if instance else name for name in names)
            yield Group(label, instance, kind, width, places, paths)


def stem(design: Design, path: str, bit: Bit) -> tuple | None:
    """The line that drives a bit of an instance, as :meth:`Sites.lines` calls it; None of constants."""
    origin = design.origin(path, bit)
    if origin is None or origin[0] == "constant":
        return None
    if origin[0] == "port" and len(origin) == 3:
        return (None, origin[1], origin[2])
    where, kind, i, position = origin
    if kind == "memory":
        return (where, "memory", i, position)
    return (where, i, "Q" if kind == "state" else "Y")


def _places(kind: str, where: object) -> NDArray:
    numbers = np.asarray(where, np.int32)
    places = np.zeros(len(numbers), PLACE)
    places["kind"], places["place"] = PLACES.index(kind), numbers
    return places
