"""Short forms of slices against the whole ones, on random words."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from saboteur.levels.hardware import designs
from saboteur.levels.hardware.compile import CompiledDesign, slot_bytes
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.netlist import Design, Node


@pytest.mark.parametrize("level", ["word", "gate"])
@pytest.mark.parametrize(
    ("array", "registers"),
    [
        (designs.OutputStationary(2, 2), {"a", "b", "valid", "clear", "drain"}),
        (designs.WeightStationary(2, 2), {"activation", "weight", "valid", "load"}),
    ],
)
def test_moves_are_what_the_whole_slice_gives(array: designs.SystolicArray, registers: set[str], level: Any) -> None:
    design = Design(read_verilog(designs.sources(array.design), array.design, level, array.parameters))
    compiled, generator = CompiledDesign(design), np.random.default_rng(0)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    moved = set()
    for node in design.nodes:
        if not isinstance(node, Node):
            continue
        number = compiled.number[node.slice.module.name, node.slice.index]
        moves = compiled.moves[number]
        slots = [design.slots[slot] for slot in (*node.reads, *node.writes)]
        reads = [aligned(slot_bytes(slot.width, level)) for slot in slots[: len(node.reads)]]
        for read, slot in zip(reads, slots, strict=False):
            lane = len(read) // 64
            words = generator.integers(0, 1 << min(slot.width, 63), len(read) // lane, np.uint64)
            read[:] = generator.integers(0, 256, len(read)) if level == "gate" else words.astype(f"u{lane}").view("u1")
        results = []
        for address in (compiled.clean[number], moves.address):
            writes = [aligned(slot_bytes(slot.width, level)) for slot in slots[len(node.reads) :]]
            pointers = (ctypes.c_void_p * len(slots))(*(lanes.ctypes.data for lanes in (*reads, *writes)))
            kind(address)(ctypes.addressof(pointers))
            results.append(writes)
        for i, (whole, short) in enumerate(zip(*results, strict=True)):
            assert np.array_equal(short, whole if i in moves.writes else np.zeros_like(short))
        moved |= {slots[len(node.reads) + i].name.rsplit(".", 1)[-1].split("[")[0] for i in moves.writes}
        assert moves.size <= 3 * len(moves.writes)
    assert registers <= moved
    assert not moved & set(array.registers) - registers


def aligned(size: int) -> np.ndarray:
    """Zeros at an address that is a multiple of 64."""
    room = np.zeros(size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size]
