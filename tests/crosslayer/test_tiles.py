"""Errors of faults in an array against the whole stream, trial by trial."""

from __future__ import annotations

import numpy as np
import pytest

from saboteur.levels.crosslayer import mapping as mappings
from saboteur.levels.crosslayer.tiles import ArraySimulator
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.simulate import ROW

ARRAYS = {
    "output_stationary": designs.OutputStationary(3, 2),
    "weight_stationary": designs.WeightStationary(3, 2),
}


@pytest.fixture(scope="module", params=ARRAYS)
def array(request: pytest.FixtureRequest) -> ArraySimulator:
    return ArraySimulator(ARRAYS[request.param])


def layer(array: ArraySimulator, m: int, k: int, n: int, images: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    kinds = {"output_stationary": mappings.OutputStationary, "weight_stationary": mappings.WeightStationary}
    mapping = kinds[array.array.dataflow](array.array.rows, array.array.cols, m, k, n)
    a = generator.integers(-128, 128, (images, m, k)).astype(np.int8)
    b = generator.integers(-128, 128, (1, k, n)).astype(np.int8)
    return mapping, a, b


def upsets(array: ArraySimulator, cycles: int, count: int, seed: int = 1) -> np.ndarray:
    """Bit flips in all flip-flops, at any cycle."""
    generator = np.random.default_rng(seed)
    slots = array.simulator.design.states
    rows = np.zeros(count, ROW)
    rows["fault"] = np.arange(count)
    rows["place"] = generator.choice(slots, count)
    width = np.array([slot.width for slot in array.simulator.design.slots])[rows["place"]]
    rows["a"] = 0xFFFFFFFFFFFFFFFF
    rows["x"] = np.uint64(1) << (generator.integers(0, 64, count) % width).astype(np.uint64)
    rows["on"] = generator.integers(0, cycles, count)
    rows["off"] = rows["on"] + 1
    return rows


def test_accumulator_flip_changes_one_element() -> None:
    array = ArraySimulator(ARRAYS["output_stationary"])
    mapping, a, b = layer(array, 6, 5, 4, 2)
    (slot,) = [k for k, slot in enumerate(array.simulator.design.slots) if slot.name == "row[1].column[1].pe.acc"]
    rows = np.zeros(1, ROW)
    # Tile 3 holds rows 3 to 5 and columns 2 and 3; its last product is in the sum in cycle T + 1 + 1 + 1 + 5.
    rows["place"], rows["a"], rows["x"] = slot, 0xFFFFFFFFFFFFFFFF, 1 << 20
    rows["on"] = 1 + 3 * (5 + 3) + 1 + 1 + 1 + 5
    rows["off"] = rows["on"] + 1
    found = array.stream(mapping, a, b, np.array([1]), rows)
    golden = int(a[1, 4].astype(np.int64) @ b[0, :, 3].astype(np.int64))
    assert found.fault.tolist() == [0] and found.row.tolist() == [4] and found.column.tolist() == [3]
    assert found.delta.tolist() == [-(1 << 20) if golden >> 20 & 1 else 1 << 20]


def test_errors_equal_the_stream(array: ArraySimulator) -> None:
    mapping, a, b = layer(array, 7, 8, 5, 3)
    rows = upsets(array, array.cycles(mapping), 300)
    image = np.random.default_rng(2).integers(0, 3, len(rows))
    plain = array.stream(mapping, a, b, image, rows)
    found = array.errors(mapping, a, b, image, rows)
    assert len(plain.fault) > 100
    for name in ("fault", "row", "column", "delta"):
        assert np.array_equal(getattr(found, name), getattr(plain, name)), name
