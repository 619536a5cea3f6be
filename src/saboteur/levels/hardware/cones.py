"""What a fault can reach, and what must be computed to know it: cones through a design, flip-flops included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from saboteur.levels.hardware.netlist import Node, Slice, Source
from saboteur.levels.hardware.simulate import FORM, Simulator

_AT_HOOK = 1


class Cones:
    """The fan-in of groups of slots.

    Args:
        simulator: of the design. With memories in it, everything is taken to reach everything.
        groups: slots of each group.
    """

    def __init__(self, simulator: Simulator, groups: Sequence[NDArray[np.int32]]):
        self._simulator, self._design = simulator, simulator.design
        self._inside: dict[int, _Inside] = {}
        self.fan_in = np.ones((len(groups), len(self._design.slots)), np.bool_)
        """[groups, slots]: whether a slot, in any cycle, can change a slot of the group."""
        if not self._design.memories:
            self._search(groups)

    def _search(self, groups: Sequence[NDArray[np.int32]]) -> None:
        design = self._design
        slots, written, read = len(design.slots), [], []
        for node in design.nodes:
            reads, writes = np.array(node.reads, np.int64), np.array(node.writes, np.int64)
            if isinstance(node, Node):
                inside = self._paths(node.slice)
                read.append(reads[inside.read])
                written.append(writes[inside.write])
            else:
                read.append(np.repeat(reads, len(writes)))
                written.append(np.tile(writes, len(reads)))
        for number, members in enumerate(groups):
            written.append(np.full(len(members), slots + number))
            read.append(np.asarray(members, np.int64))
        end, begin = np.concatenate(written), np.concatenate(read)
        size = slots + len(groups)
        graph = csr_array((np.ones(len(end), np.int8), (end, begin)), (size, size))
        for number, fan_in in enumerate(self.fan_in):
            found = breadth_first_order(graph, slots + number, return_predecessors=False)
            fan_in[:] = False
            fan_in[found[found < slots]] = True

    def _paths(self, part: Slice) -> _Inside:
        if id(part) not in self._inside:
            self._inside[id(part)] = _Inside(part)
        return self._inside[id(part)]

    def reached(self, rows: NDArray) -> NDArray[np.bool_]:
        """[rows, groups]: which groups each of the ROWs can change."""
        if self._design.memories:
            return np.ones((len(rows), len(self.fan_in)), np.bool_)
        places, which = np.unique(rows[["kind", "place", "offset"]], return_inverse=True)
        found = np.zeros((len(places), len(self.fan_in)), np.bool_)
        for number, (kind, place, offset) in enumerate(places.tolist()):
            slots = self._changed(place, offset) if kind == _AT_HOOK else [place]
            found[number] = self.fan_in[:, slots].any(axis=1)
        return found[which]

    def _changed(self, number: int, offset: int) -> list[int]:
        """What a fault at a hook of a node changes first."""
        node = self._design.nodes[number]
        if not isinstance(node, Node):
            return list(node.writes)
        compiled = self._simulator.compiled
        code = compiled.hooked_code[compiled.number[node.slice.module.name, node.slice.index]]
        inside = self._paths(node.slice)
        if not inside.cell_at:
            inside.cell_at.update((site.offset, site.cell) for site in code.sites)
        mask = inside.writes_of[inside.cell_at[offset]]
        return [slot for i, slot in enumerate(node.writes) if mask >> i & 1]

    def slots(self, groups: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[slots]: which slots must be right for these groups to be right."""
        return np.logical_or.reduce(self.fan_in[groups], axis=0, dtype=np.bool_)

    def computed(self, groups: NDArray[np.bool_]) -> tuple[NDArray, float]:
        """What must be computed for these groups to be right.

        Returns:
            Nodes of dtype FORM, in order, each in the shortest form that does; which share of all cells they have.
        """
        needed, compiled = self.slots(groups), self._simulator.compiled
        forms, computed, every = [], 0, 0
        for number, node in enumerate(self._design.nodes):
            wanted = {i for i, slot in enumerate(node.writes) if needed[slot]}
            size = whole = 1
            address = 0
            if isinstance(node, Node):
                at = compiled.number[node.slice.module.name, node.slice.index]
                size = whole = len(node.slice.cells) + len(node.slice.flip_flops)
                address, moves = compiled.clean[at], compiled.moves[at]
                if wanted <= moves.writes:
                    size, address = moves.size, moves.address
            every += whole
            if wanted:
                computed += size
                forms.append((number, 0, address))
        return np.array(forms, FORM), computed / max(every, 1)


class _Inside:
    """Which of its writes each read and each cell of a slice can change."""

    def __init__(self, part: Slice):
        module = part.module

        def sources(cell: int) -> set[Source]:
            bits = (bit for word in module.cells[cell].inputs.values() for bit in word)
            return {source for bit in bits if (source := module.source_of(bit)) is not None}

        seen: dict[Source, int] = defaultdict(int)
        self.writes_of: dict[int, int] = defaultdict(int)
        self.cell_at: dict[int, int] = {}
        for i, (kind, cell) in enumerate(part.writes):
            if kind == "cell":
                seen[kind, cell] |= 1 << i
                continue
            self.writes_of[cell] |= 1 << i
            for source in sources(cell):
                seen[source] |= 1 << i
        for cell in reversed(part.cells):
            self.writes_of[cell] |= seen["cell", cell]
            for source in sources(cell):
                seen[source] |= seen["cell", cell]
        pairs = [
            (k, i) for k, source in enumerate(part.reads) for i in range(len(part.writes)) if seen[source] >> i & 1
        ]
        self.read, self.write = np.array(pairs, np.int64).reshape(-1, 2).T
