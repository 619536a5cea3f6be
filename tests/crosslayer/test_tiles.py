"""Errors of faults in an array against the whole stream, trial by trial."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.errors import FaultError, TargetError
from saboteur.levels.crosslayer import mapping as mappings
from saboteur.levels.crosslayer.tiles import ArraySimulator, Errors
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.simulate import ROW, WAYS
from saboteur.levels.hardware.sites import PLACE, Group

ONES = 0xFFFFFFFFFFFFFFFF
MAPPINGS = {"output_stationary": mappings.OutputStationary, "weight_stationary": mappings.WeightStationary}
ARRAYS = {"output_stationary": designs.OutputStationary, "weight_stationary": designs.WeightStationary}
_built: dict[tuple[str, int, int, str], ArraySimulator] = {}


def simulator(dataflow: str, rows: int = 3, cols: int = 2, level: Any = "word") -> ArraySimulator:
    key = dataflow, rows, cols, level
    if key not in _built:
        _built[key] = ArraySimulator(ARRAYS[dataflow](rows, cols), level)
    return _built[key]


def layer(
    array: ArraySimulator, sizes: tuple[int, int, int], images: int = 3, seed: int = 0, own_b: bool = False
) -> tuple[mappings.Mapping, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    m, k, n = sizes
    mapping = MAPPINGS[array.array.dataflow](array.array.rows, array.array.cols, m, k, n)
    a = generator.integers(-128, 128, (images, m, k)).astype(np.int8)
    b = generator.integers(-128, 128, (images if own_b else 1, k, n)).astype(np.int8)
    return mapping, a, b


def rows_at(groups: list[Group], count: int, generator: np.random.Generator) -> np.ndarray:
    """Bit flips of no duration at random places."""
    widths = np.concatenate([np.full(len(group.places), group.width) for group in groups])
    places = np.concatenate([group.places for group in groups])
    chosen = generator.integers(0, len(places), count)
    rows = np.zeros(count, ROW)
    rows["fault"] = np.arange(count)
    for column in PLACE.names or ():
        rows[column] = places[column][chosen]
    rows["a"] = ONES
    rows["x"] = np.uint64(1) << (generator.integers(0, 64, count) % widths[chosen]).astype(np.uint64)
    return rows


def upsets(array: ArraySimulator, cycles: int, count: int, seed: int = 1, kind: Any = "flip_flops") -> np.ndarray:
    """Bit flips at any site of a kind in any cycle; the first and the last cycle are always hit."""
    generator = np.random.default_rng(seed)
    rows = rows_at(list(array.sites.groups(kind).values()), count, generator)
    rows["on"] = generator.integers(0, cycles, count)
    rows["on"][:2] = 0, cycles - 1
    rows["off"] = rows["on"] + 1
    return rows


def stuck(array: ArraySimulator, cycles: int, count: int, seed: int = 1, kind: Any = "flip_flops") -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = rows_at(list(array.sites.groups(kind).values()), count, generator)
    rows["a"] = ~rows["x"]
    rows["x"] *= generator.integers(0, 2, count, np.uint64)
    rows["off"] = cycles + 1
    return rows


def same(found: Errors, plain: Errors) -> None:
    for name in ("fault", "row", "column", "delta"):
        assert np.array_equal(getattr(found, name), getattr(plain, name)), name


def test_accumulator_flip_changes_one_element() -> None:
    array = simulator("output_stationary")
    mapping, a, b = layer(array, (6, 5, 4), 2)
    (slot,) = [k for k, slot in enumerate(array.simulator.design.slots) if slot.name == "row[1].column[1].pe.acc"]
    rows = np.zeros(1, ROW)
    # Tile 3 holds rows 3 to 5 and columns 2 and 3; its last product is in the sum in cycle T + 1 + 1 + 1 + 5.
    rows["place"], rows["a"], rows["x"] = slot, ONES, 1 << 20
    rows["on"] = 1 + 3 * (5 + 3) + 1 + 1 + 1 + 5
    rows["off"] = rows["on"] + 1
    golden = int(a[1, 4].astype(np.int64) @ b[0, :, 3].astype(np.int64))
    for found in (array.errors(mapping, a, b, np.array([1]), rows), array.stream(mapping, a, b, np.array([1]), rows)):
        assert found.fault.tolist() == [0] and found.row.tolist() == [4] and found.column.tolist() == [3]
        assert found.delta.tolist() == [-(1 << 20) if golden >> 20 & 1 else 1 << 20]


def test_stuck_weight_bit_changes_its_products() -> None:
    array = simulator("weight_stationary")
    mapping, a, b = layer(array, (4, 6, 2), 1)
    (slot,) = [k for k, slot in enumerate(array.simulator.design.slots) if slot.name == "row[2].column[1].pe.weight"]
    rows = np.zeros(1, ROW)
    rows["place"], rows["a"], rows["x"], rows["off"] = slot, ONES ^ 4, 0, array.cycles(mapping) + 1
    found = array.errors(mapping, a, b, np.array([0]), rows)
    weight = b[0].astype(np.int64)
    faulty = weight.copy()
    faulty[2::3, 1] &= ~4
    delta = a[0].astype(np.int64) @ (faulty - weight)
    assert np.array_equal(np.stack([found.row, found.column]), np.stack(np.nonzero(delta)))
    assert np.array_equal(found.delta, delta[delta != 0])


SIZES = [(7, 8, 5), (1, 1, 1), (2, 1, 1), (9, 3, 4), (5, 1, 9), (3, 20, 2), (8, 2, 4), (31, 4, 8), (1, 30, 3)]


@pytest.mark.parametrize("dataflow", ARRAYS)
@pytest.mark.parametrize("sizes", SIZES)
def test_upsets_equal_the_stream(dataflow: str, sizes: tuple[int, int, int]) -> None:
    array = simulator(dataflow)
    mapping, a, b = layer(array, sizes, own_b=sizes[0] % 2 == 0)
    rows = upsets(array, array.cycles(mapping), 300)
    image = np.random.default_rng(2).integers(0, 3, len(rows))
    plain = array.stream(mapping, a, b, image, rows)
    assert len(plain.fault) > 5
    same(array.errors(mapping, a, b, image, rows), plain)


@pytest.mark.parametrize("dataflow", ARRAYS)
@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("nets", "word"),
        ("pins", "word"),
        ("inputs", "word"),
        *((kind, "gate") for kind in ("flip_flops", "nets", "pins", "inputs")),
    ],
)
def test_pulses_equal_the_stream(dataflow: str, kind: str, level: str) -> None:
    array = simulator(dataflow, level=level)
    mapping, a, b = layer(array, (7, 5, 5))
    rows = upsets(array, array.cycles(mapping), 400, kind=kind)
    image = np.random.default_rng(2).integers(0, 3, len(rows))
    plain = array.stream(mapping, a, b, image, rows)
    assert len(plain.fault) > 50
    same(array.errors(mapping, a, b, image, rows), plain)


@pytest.mark.parametrize("dataflow", ARRAYS)
@pytest.mark.parametrize(
    ("kind", "level"),
    [("flip_flops", "word"), ("nets", "word"), ("flip_flops", "gate"), ("nets", "gate"), ("pins", "gate")],
)
def test_stuck_at_faults_equal_the_stream(dataflow: str, kind: str, level: str) -> None:
    array = simulator(dataflow, level=level)
    mapping, a, b = layer(array, (7, 5, 5))
    rows = stuck(array, array.cycles(mapping), 150, kind=kind)
    image = np.random.default_rng(2).integers(0, 3, len(rows))
    plain = array.stream(mapping, a, b, image, rows)
    assert len(plain.fault) > 500
    same(array.errors(mapping, a, b, image, rows), plain)


PLACES = {
    "corner": ["row[0].column[0].pe"],
    "last": ["row[2].column[1].pe"],
    "west_edge": ["row[1].column[0].pe"],
    "all": [f"row[{i}].column[{j}].pe" for i in range(3) for j in range(2)],
}


def stuck_in(array: ArraySimulator, instances: list[str], kind: Any, count: int) -> np.ndarray:
    """Stuck-at faults at random places of some instances that last longer than any stream."""
    groups = [group for group in array.sites.groups(kind).values() if group.instance in instances]
    assert len(groups) >= len(instances)
    generator = np.random.default_rng(4)
    rows = rows_at(groups, count, generator)
    rows["a"] = ~rows["x"]
    rows["x"] *= generator.integers(0, 2, count, np.uint64)
    rows["off"] = 1 << 20
    return rows


@pytest.mark.parametrize("dataflow", ARRAYS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("kind", "level", "count"),
    [("nets", "gate", 40), ("pins", "gate", 600), ("flip_flops", "gate", 40), ("flip_flops", "word", 150)],
)
def test_stuck_in_one_element_through_many_tiles(dataflow: str, place: str, kind: Any, level: str, count: int) -> None:
    array = simulator(dataflow, level=level)
    mapping, a, b = layer(array, (20, 9, 10))
    rows = stuck_in(array, PLACES[place], kind, count)
    rows["on"][::3] = np.random.default_rng(3).integers(0, array.cycles(mapping), len(rows[::3]))
    image = np.random.default_rng(2).integers(0, 3, count)
    plain = array.stream(mapping, a, b, image, rows)
    assert len(plain.fault) > 200
    same(array.errors(mapping, a, b, image, rows), plain)


def test_faults_in_nets_and_pins_of_like_cells_do_not_meet() -> None:
    """Machines with faults in the output and in the inputs of one cell run together as they do apart."""
    array = simulator("output_stationary", level="gate")
    mapping, a, b = layer(array, (7, 5, 5))
    nets, pins = (stuck_in(array, PLACES["west_edge"], kind, 250) for kind in ("nets", "pins"))
    code = array.simulator.compiled.hooked_code[0]
    cells = [{site.cell for site in code.sites if site.offset in rows["offset"]} for rows in (nets, pins)]
    assert len(cells[0] & cells[1]) > 50
    image = np.random.default_rng(2).integers(0, 3, 500)
    together = np.concatenate([nets, pins])
    together["fault"][250:] += 250
    for errors in (array.errors, array.stream):
        parts = [errors(mapping, a, b, image[:250], nets.copy()), errors(mapping, a, b, image[250:], pins.copy())]
        columns = zip(*((part.fault, part.row, part.column, part.delta) for part in parts), strict=True)
        fault, row, column, delta = map(np.concatenate, columns)
        fault[len(parts[0].fault) :] += 250
        same(errors(mapping, a, b, image, together.copy()), Errors(fault, row, column, delta))


@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (6, 1, 4), (9, 3, 4), (60, 4, 12)])
def test_parts_of_the_stream_side_by_side(count: int, sizes: tuple[int, int, int]) -> None:
    array = simulator("output_stationary")
    mapping, a, b = layer(array, sizes)
    rows = stuck(array, array.cycles(mapping), count)
    image = np.random.default_rng(2).integers(0, 3, count)
    same(array.errors(mapping, a, b, image, rows), array.stream(mapping, a, b, image, rows))


def test_state_that_a_fault_keeps_from_settling() -> None:
    """A sum that is never cleared goes from tile to tile, so that parts of the stream cannot begin anywhere."""
    array = simulator("output_stationary")
    mapping, a, b = layer(array, (30, 4, 8))
    rows = np.zeros(2, ROW)
    slots = [slot.name for slot in array.simulator.design.slots]
    rows["fault"] = 0
    rows["place"] = [slots.index(f"row[2].column[1].pe.{name}") for name in ("clear", "drain")]
    rows["off"] = 1 << 20
    image = np.array([1])
    plain = array.stream(mapping, a, b, image, rows)
    same(array.errors(mapping, a, b, image, rows), plain)
    assert set(plain.column.tolist()) == {1, 3, 5, 7}


@pytest.mark.parametrize("level", ["word", "gate"])
def test_cones_are_columns(level: str) -> None:
    """Sums and B stay in their column; A and the controls of column 0 reach all, those of the last only theirs."""
    array = simulator("output_stationary", level=level)
    mapping, _, _ = layer(array, (7, 5, 5))
    cones = array._plan(array._shape(mapping)).cones
    reached: dict[str, set[int]] = {}
    for slot, groups in zip(array.simulator.design.slots, cones.fan_in.T, strict=True):
        if slot.kind == "state":
            reached.setdefault(slot.name, set()).add(int(groups.sum()))
    assert cones.fan_in.shape[0] == 2
    for name, counts in reached.items():
        register = name.rsplit(".", 1)[1].split("[")[0]
        spreads = register in ("a", "valid", "clear", "drain") and "column[0]" in name
        assert counts == {2 if spreads else 1}, name


@pytest.mark.parametrize("dataflow", ARRAYS)
@pytest.mark.parametrize("level", ["word", "gate"])
def test_elements_beside_those_of_a_column_only_pass_words_on(dataflow: str, level: str) -> None:
    array = simulator(dataflow, level=level)
    mapping, _, _ = layer(array, (7, 5, 5))
    plan, compiled = array._plan(array._shape(mapping)), array.simulator.compiled
    moving = {moves.address for moves in compiled.moves}
    (west, share), (east, larger) = sorted((plan.computed(one) for one in np.eye(2, dtype=bool)), key=lambda x: x[1])
    assert not moving.intersection(west["clean"].tolist())
    assert moving.intersection(east["clean"].tolist())
    assert share < larger < share * {"word": 1.7, "gate": 1.3}[level]
    assert plan.computed(np.ones(2, bool))[1] > larger


@pytest.mark.parametrize("dataflow", ARRAYS)
@pytest.mark.parametrize("way", ["delay_rise", "delay_fall", "delay", "hold"])
def test_late_and_open_nets_equal_the_stream(dataflow: str, way: str) -> None:
    array = simulator(dataflow, level="gate")
    mapping, a, b = layer(array, (7, 5, 5))
    cycles = array.cycles(mapping)
    rows = upsets(array, cycles, 200, kind="nets")
    rows["way"], rows["a"], rows["on"] = WAYS.index(way), 0, np.maximum(rows["on"] - 1, 0)
    rows["on"][::4], rows["off"][::4] = 0, cycles + 1
    image = np.random.default_rng(2).integers(0, 3, len(rows))
    plain = array.stream(mapping, a, b, image, rows)
    assert len(plain.fault) > 50
    same(array.errors(mapping, a, b, image, rows), plain)


@pytest.mark.parametrize("way", ["bridge_and", "bridge_or", "bridge_take"])
def test_bridges_equal_the_stream(way: str) -> None:
    array = simulator("output_stationary", level="gate")
    mapping, a, b = layer(array, (7, 5, 5))
    cycles = array.cycles(mapping)
    first, second = (upsets(array, cycles, 100, seed, kind="nets") for seed in (6, 7))
    for name in ("on", "off"):
        second[name] = first[name]
        first[name][::3] = second[name][::3] = 0 if name == "on" else cycles + 1
    for row, partner in ((first, second), (second, first)):
        row["way"], row["word"], row["a"], row["x"] = WAYS.index(way), partner["place"], partner["offset"], 1
    rows = np.concatenate([first, second])
    rows = rows[np.isin(rows["fault"], np.flatnonzero(first[["place", "offset"]] != second[["place", "offset"]]))]
    image = np.random.default_rng(2).integers(0, 3, 100)
    plain = array.stream(mapping, a, b, image, rows[np.argsort(rows["fault"], kind="stable")])
    assert len(plain.fault) > 50
    same(array.errors(mapping, a, b, image, rows), plain)


@pytest.mark.parametrize("dataflow", ARRAYS)
@pytest.mark.parametrize(("kind", "level"), [("flip_flops", "word"), ("nets", "word"), ("nets", "gate")])
def test_faults_of_several_rows_and_any_length(dataflow: str, kind: str, level: str) -> None:
    array = simulator(dataflow, level=level)
    mapping, a, b = layer(array, (7, 8, 5))
    cycles = array.cycles(mapping)
    rows = np.concatenate([upsets(array, cycles, 120, seed, kind) for seed in (3, 4)])
    rows["off"] = rows["on"] + np.random.default_rng(5).integers(0, 40, len(rows))
    rows = rows[rows["fault"] % 7 != 0]  # some faults do nothing
    image = np.random.default_rng(2).integers(0, 3, 120)
    plain = array.stream(mapping, a, b, image, rows)
    assert len(plain.fault) > 100
    assert not (plain.fault % 7 == 0).any()
    same(array.errors(mapping, a, b, image, rows), plain)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_layer_on_any_array(data: st.DataObject) -> None:
    dataflow = data.draw(st.sampled_from(sorted(ARRAYS)))
    rows, cols = data.draw(st.sampled_from([(1, 1), (3, 2), (2, 4)]))
    array = simulator(dataflow, rows, cols)
    sizes = data.draw(st.tuples(*(st.integers(1, 12),) * 3))
    seed = data.draw(st.integers(0, 1 << 20))
    mapping, a, b = layer(array, sizes, images=2, seed=seed)
    faults = upsets(array, array.cycles(mapping), 130, seed)
    image = np.random.default_rng(seed).integers(0, 2, len(faults))
    same(array.errors(mapping, a, b, image, faults), array.stream(mapping, a, b, image, faults))


@pytest.mark.parametrize("dataflow", ARRAYS)
def test_more_faults_than_lanes_in_many_tiles(dataflow: str) -> None:
    array = simulator(dataflow)
    mapping, a, b = layer(array, (40, 9, 10), images=5)
    rows = upsets(array, array.cycles(mapping), 1500)
    image = np.random.default_rng(2).integers(0, 5, len(rows))
    same(array.errors(mapping, a, b, image, rows), array.stream(mapping, a, b, image, rows))


def test_no_faults() -> None:
    array = simulator("output_stationary")
    mapping, a, b = layer(array, (7, 8, 5))
    assert len(array.errors(mapping, a, b, np.zeros(0, np.int64), np.zeros(0, ROW)).fault) == 0
    assert len(array.errors(mapping, a, b, np.zeros(4, np.int64), np.zeros(0, ROW)).fault) == 0


def test_what_does_not_fit_is_named() -> None:
    array = simulator("output_stationary")
    mapping, a, b = layer(array, (7, 8, 5))
    rows = upsets(array, array.cycles(mapping), 2)
    image = np.zeros(2, np.int64)
    with pytest.raises(TargetError, match=r"operands: A is \(3, 7, 7\)"):
        array.errors(mapping, a[..., 1:], b, image, rows)
    with pytest.raises(TargetError, match="operands: B is for 2 images, A for 3"):
        array.errors(mapping, a, np.repeat(b, 2, axis=0), image, rows)
    with pytest.raises(FaultError, match="image: from 0 to 3; there are 3 images"):
        array.errors(mapping, a, b, np.array([0, 3]), rows)
    with pytest.raises(FaultError, match="rows: fault: from 0 to 1; image has 1"):
        array.errors(mapping, a, b, image[:1], rows)
    with pytest.raises(TargetError, match="weight_stationary on 3 × 2; the array is output_stationary"):
        array.errors(mappings.WeightStationary(3, 2, 7, 8, 5), a, b, image, rows)
    with pytest.raises(TargetError, match="output_stationary on 4 × 2; the array is output_stationary, 3 × 2"):
        array.errors(mappings.OutputStationary(4, 2, 7, 8, 5), a, b, image, rows)
