"""Faults in the components of an architecture against the same faults at register-transfer level and in oracles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saboteur.errors import TargetError
from saboteur.faults.models import BitFlip, Dead, RandomValue
from saboteur.levels.hardware import compile, designs, importing
from saboteur.levels.hardware.simulate import ROW

pytest.importorskip("torch")

from saboteur.levels.crosslayer.architecture import (
    Architecture,
    Component,
    Errors,
    Position,
    component_fit_rate,
    shipped,
)
from saboteur.levels.crosslayer.lowering import LoweredLayer, Window
from saboteur.levels.crosslayer.mapping import Dataflow
from saboteur.levels.crosslayer.tiles import ArraySimulator
from saboteur.workloads.int8 import Int8Conv2d, Int8Linear
from tests.crosslayer.test_mapping import RowStationaryArray, flipped

ROWS, COLS = 3, 2
DESIGNS = {"output_stationary": designs.OutputStationary, "weight_stationary": designs.WeightStationary}
REGISTERS = {
    "output_stationary": {"operand_a": "a", "operand_b": "b", "sum": "acc"},
    "weight_stationary": {"operand_a": "activation", "operand_b": "weight", "sum": "sum"},
}
PORTS = {
    "output_stationary": {"entry_a": "west", "entry_b": "north"},
    "weight_stationary": {"entry_a": "west", "entry_b": "north_weight"},
}
CONVOLUTION = Window(2, 3, 3, 3, 4, 1, 1, 3, 4)
STRIDED = Window(3, 2, 3, 2, 2, 2, 1, 4, 4)


@pytest.fixture(scope="module")
def simulators() -> dict[str, ArraySimulator]:
    try:
        importing.yosys()
        compile.compiler()
    except TargetError as error:
        pytest.skip(str(error))
    return {name: ArraySimulator(kind(ROWS, COLS)) for name, kind in DESIGNS.items()}


def architecture(dataflow: Dataflow, *components: Component) -> Architecture:
    return Architecture(name="tested", dataflow=dataflow, rows=ROWS, cols=COLS, components=components)


def matrix_layer(m: int, k: int, n: int) -> LoweredLayer:
    return LoweredLayer("fc", "fc", Int8Linear(k, n), 0, 0, m, k, n, (m, n))


def convolution_layer(window: Window, n: int) -> LoweredLayer:
    m, k = window.out_rows * window.out_columns, window.channels * window.kernel_rows * window.kernel_columns
    module = Int8Conv2d(window.channels, n, 3, stride=window.stride, padding=window.padding)
    return LoweredLayer("conv", "conv", module, 0, 0, m, k, n, (n, window.out_rows, window.out_columns), window)


def operands(layer: LoweredLayer, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random words; those of A that are one pixel are equal, and padding is 7."""
    generator = np.random.default_rng(seed)
    b = generator.integers(-128, 128, (1, layer.k, layer.n)).astype(np.int8)
    if layer.window is None:
        return generator.integers(-128, 128, (images, layer.m, layer.k)).astype(np.int8), b
    window = layer.window
    pictures = generator.integers(-128, 128, (images, window.channels, window.in_rows, window.in_columns))
    return np.array([patches(picture, window) for picture in pictures]).astype(np.int8), b


def patches(picture: np.ndarray, window: Window) -> np.ndarray:
    border = window.padding
    padded = np.pad(picture, ((0, 0), (border, border), (border, border)), constant_values=7)
    return np.array(
        [
            padded[:, y : y + window.kernel_rows, x : x + window.kernel_columns].ravel()
            for y in range(0, window.out_rows * window.stride, window.stride)
            for x in range(0, window.out_columns * window.stride, window.stride)
        ]
    )


def bit_flips(bit: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda words, fault: words ^ (np.uint64(1) << bit[fault].astype(np.uint64))


def same(found: Errors, expected: Errors) -> None:
    for name in ("fault", "row", "column", "delta"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def upsets(slots: list[int], bits: np.ndarray, cycle: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(cycle), ROW)
    rows["fault"], rows["place"] = np.arange(len(cycle)), slots
    rows["a"], rows["x"] = 0xFFFFFFFFFFFFFFFF, np.uint64(1) << bits.astype(np.uint64)
    rows["on"], rows["off"] = cycle, cycle + 1
    return rows


@pytest.mark.parametrize("position", ["operand_a", "operand_b", "sum"])
@pytest.mark.parametrize("dataflow", list(DESIGNS))
@pytest.mark.parametrize("sizes", [(7, 5, 3), (2, 8, 5)])
def test_a_register_upset_is_the_same_through_two_levels(
    simulators: dict[str, ArraySimulator], dataflow: Dataflow, position: Position, sizes: tuple[int, int, int]
) -> None:
    simulator, layer, component = simulators[dataflow], matrix_layer(*sizes), Component(name="it", position=position)
    tested = architecture(dataflow, component)
    mapping = tested.mapping(layer)
    generator = np.random.default_rng(1)
    a, b = operands(layer, 3, 2)
    count = 400
    image, word = generator.integers(0, 3, count), generator.integers(0, ROWS * COLS, count)
    cycle, bit = generator.integers(0, mapping.cycles, count), generator.integers(0, component.word_bits, count)
    slot = {entry.name: k for k, entry in enumerate(simulator.simulator.design.slots)}
    register = REGISTERS[dataflow][position]
    slots = [slot[f"row[{place // COLS}].column[{place % COLS}].pe.{register}"] for place in word]
    found = tested.errors(component, layer, a, b, image, word, cycle, bit_flips(bit))
    same(found, simulator.stream(mapping, a, b, image, upsets(slots, bit, cycle)))
    assert 0.1 * count < len(np.unique(found.fault)) < count


@pytest.mark.parametrize("position", ["entry_a", "entry_b"])
@pytest.mark.parametrize("dataflow", list(DESIGNS))
def test_an_upset_at_a_port_is_the_same_through_two_levels(
    simulators: dict[str, ArraySimulator], dataflow: Dataflow, position: Position
) -> None:
    simulator, layer, component = simulators[dataflow], matrix_layer(5, 7, 3), Component(name="it", position=position)
    tested = architecture(dataflow, component)
    mapping = tested.mapping(layer)
    generator = np.random.default_rng(3)
    a, b = operands(layer, 2, 4)
    count, lanes = 300, tested.shape(component, layer)[0]
    image, word = generator.integers(0, 2, count), generator.integers(0, lanes, count)
    cycle, bit = generator.integers(0, mapping.cycles, count), generator.integers(0, 8, count)
    pieces = simulator.simulator.design.inputs[PORTS[dataflow][position]]
    wire = {to + k: (slot, low + k) for slot, low, bits, to in pieces for k in range(bits)}
    slots, bits = zip(*(wire[at] for at in (bit + 8 * word).tolist()), strict=True)
    found = tested.errors(component, layer, a, b, image, word, cycle, bit_flips(bit))
    same(found, simulator.stream(mapping, a, b, image, upsets(list(slots), np.array(bits), cycle)))
    assert 0.1 * count < len(np.unique(found.fault)) < count


@pytest.mark.parametrize("dataflow", list(DESIGNS))
def test_what_leaves_is_the_last_row_s_sum_in_its_last_cycle(dataflow: Dataflow) -> None:
    layer = matrix_layer(5, 4, 3)
    leaving, kept = Component(name="exit", position="exit"), Component(name="sum", position="sum")
    tested = architecture(dataflow, leaving, kept)
    a, b = operands(layer, 1, 5)
    residence = tested.residence(leaving, layer)
    assert residence.size == 5 * 3 * len({0, *range(0, 4, ROWS)} if dataflow == "weight_stationary" else {0})
    col, cycle = residence.at(np.arange(residence.size))
    arguments = a, b, np.zeros(len(col), int)
    flip = bit_flips(np.full(len(col), 9))
    found = tested.errors(leaving, layer, *arguments, col, cycle, flip)
    same(found, tested.errors(kept, layer, *arguments, (ROWS - 1) * COLS + col, cycle, flip))
    np.testing.assert_array_equal(np.abs(found.delta), np.full(len(col), 2**9))
    # Where the driver of the array reads its results, and nowhere else.
    array = DESIGNS[dataflow](ROWS, COLS)
    mapping = tested.mapping(layer)
    cycles = np.arange(mapping.cycles)[:, None] * COLS + np.arange(COLS)
    shape = designs.TileShape.of(*mapping.operands(a[0], b[0], np.arange(mapping.tiles)))
    read = array.result({"south": designs.pack(cycles, array.acc_width)}, shape)
    assert set((cycle * COLS + col).tolist()) <= set(read.ravel().tolist())


def spliced_product(dataflow: str, mapping, golden: tuple, faulty: tuple, cycle: int) -> np.ndarray:
    """C where the ports get the faulty operands from ``cycle`` on, by the array's reference model."""
    array = DESIGNS[dataflow](ROWS, COLS)
    tiles = np.arange(mapping.tiles)
    before, after = (array.stimulus(*mapping.operands(*pair, tiles)) for pair in (golden, faulty))
    ports = {port: np.concatenate([words[:cycle], after[port][cycle:]]) for port, words in before.items()}
    register = "acc" if dataflow == "output_stationary" else "sum"
    south = designs.pack(array.trace(ports)[register][:, -1], array.acc_width)
    products = array.result({"south": south}, designs.TileShape.of(*mapping.operands(*golden, tiles)))
    total, block = np.zeros((mapping.m + ROWS, mapping.n + COLS), np.int64), mapping.block(tiles)
    for t, product in enumerate(products):
        total[block.m[t] : block.m[t] + len(product), block.n[t] : block.n[t] + COLS] += product
    return total[: mapping.m, : mapping.n]


@pytest.mark.parametrize("position", ["memory_a", "memory_b"])
@pytest.mark.parametrize("window", [CONVOLUTION, STRIDED, None], ids=["convolution", "strided", "matrix"])
@pytest.mark.parametrize("dataflow", list(DESIGNS))
def test_an_upset_in_a_memory_reaches_what_is_fetched_after_it(
    dataflow: Dataflow, position: Position, window: Window | None
) -> None:
    layer = convolution_layer(window, 3) if window else matrix_layer(4, 7, 3)
    component = Component(name="it", position=position)
    tested = architecture(dataflow, component)
    mapping = tested.mapping(layer)
    generator = np.random.default_rng(6)
    shape, count = tested.shape(component, layer), 25
    a, b = operands(layer, 1, 7)
    word, cycle = generator.integers(0, np.prod(shape), count), generator.integers(0, mapping.cycles, count)
    bit = generator.integers(0, 8, count)
    found = tested.errors(component, layer, a, b, np.zeros(count, int), word, cycle, bit_flips(bit))
    golden = a[0].astype(np.int64) @ b[0]
    for fault in range(count):
        marked = np.zeros(shape, int)
        marked.ravel()[word[fault]] = 1
        left, right = a[0], b[0]
        if position == "memory_b":
            right = np.where(marked, b[0] ^ np.int8(-128 if bit[fault] == 7 else 1 << bit[fault]), b[0])
        else:
            hit = marked[:, :, 0].T if window is None else patches(marked, window) == 1
            left = np.where(hit, a[0] ^ np.int8(-128 if bit[fault] == 7 else 1 << bit[fault]), a[0])
        faulty = spliced_product(dataflow, mapping, (a[0], b[0]), (left, right), int(cycle[fault]))
        mine = found.fault == fault
        row, column = np.nonzero(faulty - golden)
        np.testing.assert_array_equal(found.row[mine], row)
        np.testing.assert_array_equal(found.column[mine], column)
        np.testing.assert_array_equal(found.delta[mine], (faulty - golden)[row, column])
    assert len(np.unique(found.fault)) > 5


def test_partial_sums_wait_in_a_memory_for_the_next_tile() -> None:
    layer, component = matrix_layer(4, 8, 3), Component(name="it", position="memory_c")
    tested = architecture("weight_stationary", component)
    mapping = tested.mapping(layer)
    a, b = operands(layer, 1, 8)
    products = a[0].astype(np.int64)[:, :, None] * b[0].astype(np.int64)
    word, cycle = (axis.ravel() for axis in np.meshgrid(np.arange(12), np.arange(mapping.cycles), indexing="ij"))
    found = tested.errors(
        component, layer, a, b, np.zeros(len(word), int), word, cycle, bit_flips(np.full(len(word), 4))
    )
    expected = []
    for fault, (place, when) in enumerate(zip(word.tolist(), cycle.tolist(), strict=True)):
        m, n = divmod(place, 3)
        total, delta, before = 0, 0, None
        for block in range(3):
            tile = n // COLS * 3 + block
            leaves = 1 + tile * (4 + ROWS) + ROWS + 1 + ROWS + m + n % COLS
            if before is not None and before < when <= leaves:
                delta = flipped(total, 4, 32) - total
            total += int(products[m, block * ROWS : (block + 1) * ROWS, n].sum())
            before = leaves
        if delta:
            expected.append((fault, m, n, delta))
    assert len(expected) > 100
    np.testing.assert_array_equal(np.stack([found.fault, found.row, found.column, found.delta], 1), expected)


@pytest.mark.parametrize("window", [CONVOLUTION, STRIDED], ids=["convolution", "strided"])
def test_row_stationary_memories_reach_what_pes_fetch(window: Window) -> None:
    layer = convolution_layer(window, 2)
    a, b = operands(layer, 1, 9)
    array = RowStationaryArray(window, ROWS, COLS)
    golden = array.product(a[0], b[0])
    np.testing.assert_array_equal(golden, a[0].astype(np.int64) @ b[0])
    generator = np.random.default_rng(10)
    positions: list[Position] = ["memory_a", "memory_b"]
    for position in positions:
        component = Component(name="it", position=position)
        tested = architecture("row_stationary", component)
        shape, mapping = tested.shape(component, layer), tested.mapping(layer)
        word, cycle = generator.integers(0, np.prod(shape), 25), generator.integers(0, mapping.cycles, 25)
        found = tested.errors(component, layer, a, b, np.zeros(25, int), word, cycle, bit_flips(np.full(25, 3)))
        for fault in range(25):
            marked = np.zeros(shape, int)
            marked.ravel()[word[fault]] = 1
            cells = np.argwhere(patches(marked, window) == 1 if position == "memory_a" else marked)
            memory = position, {tuple(cell) for cell in cells.tolist()}, int(cycle[fault]), 3
            delta = array.product(a[0], b[0], memory=memory) - golden
            mine = found.fault == fault
            row, column = np.nonzero(delta)
            np.testing.assert_array_equal(np.stack([found.row[mine], found.column[mine]]), [row, column])
            np.testing.assert_array_equal(found.delta[mine], delta[row, column])
        assert len(np.unique(found.fault)) > 5


@pytest.mark.parametrize("dataflow", ["output_stationary", "weight_stationary", "row_stationary"])
def test_each_resident_word_and_cycle_is_drawn_once_and_no_other(dataflow: Dataflow) -> None:
    layer = convolution_layer(STRIDED._replace(padding=0, in_rows=4, in_columns=5), 3)
    positions: list[Position] = ["memory_a", "memory_b", "operand_a", "operand_b", "sum"]
    if dataflow != "row_stationary":
        positions += ["entry_a", "entry_b", "exit"]
    if dataflow != "output_stationary":
        positions += ["memory_c"]
    # Of ones, so that a flipped lowest bit always shows.
    a, b = np.ones((1, layer.m, layer.k), np.int8), np.ones((1, layer.k, layer.n), np.int8)
    for position in positions:
        component = Component(name="it", position=position)
        tested = architecture(dataflow, component)
        residence = tested.residence(component, layer)
        words, cycles = int(np.prod(tested.shape(component, layer))), tested.mapping(layer).cycles
        assert (residence.words, residence.cycles) == (words, cycles)
        word, cycle = (axis.ravel() for axis in np.meshgrid(np.arange(words), np.arange(cycles), indexing="ij"))
        found = tested.errors(
            component, layer, a, b, np.zeros(len(word), int), word, cycle, bit_flips(np.zeros(len(word), int))
        )
        live = np.unique(found.fault)
        drawn = residence.at(np.arange(residence.size))
        np.testing.assert_array_equal(np.sort(drawn[0] * cycles + drawn[1]), live, err_msg=position)
        assert residence.occupancy == pytest.approx(len(live) / len(word))
        assert len(live) > 10


@pytest.mark.parametrize("position", ["operand_b", "sum"])
@pytest.mark.parametrize("dataflow", list(DESIGNS))
def test_control_is_resident_where_a_word_that_it_decides_on_is(dataflow: Dataflow, position: Position) -> None:
    layer = matrix_layer(4, 5, 3)
    component = Component(
        name="it", position=position, category="local_control", effect="random", flip_flops=2, delay=1, travels=True
    )
    tested = architecture(dataflow, component)
    a, b = np.ones((1, 4, 5), np.int8), np.ones((1, 5, 3), np.int8)
    residence, cycles = tested.residence(component, layer), tested.mapping(layer).cycles
    word, cycle = (axis.ravel() for axis in np.meshgrid(np.arange(ROWS * COLS), np.arange(cycles), indexing="ij"))
    found = tested.errors(component, layer, a, b, 0 * word, word, cycle, bit_flips(0 * word))
    drawn = residence.at(np.arange(residence.size))
    np.testing.assert_array_equal(np.sort(drawn[0] * cycles + drawn[1]), np.unique(found.fault))


def test_control_loses_or_garbles_the_word_it_goes_with() -> None:
    dropped = Component(name="valid", position="operand_a", category="local_control", effect="dropped", flip_flops=1)
    garbled = Component(name="load", position="operand_a", category="local_control", effect="random", flip_flops=3)
    stopped = Component(name="fsm", position="array", category="global_control", flip_flops=12)
    tested = architecture("output_stationary", dropped, garbled, stopped)
    assert isinstance(dropped.model, Dead) and isinstance(garbled.model, RandomValue)
    assert isinstance(Component(name="a", position="operand_a").model, BitFlip)
    assert (dropped.bits, garbled.bits, stopped.bits, dropped.word_bits) == (1, 3, 12, 8)
    layer = matrix_layer(3, 4, 2)
    a, b = operands(layer, 1, 11)
    # PE (1, 0) holds A[1, 2] in cycle 1 + 1 + 1 + 0 + 2.
    where = np.array([0]), np.array([2]), np.array([5])
    lost = tested.errors(dropped, layer, a, b, *where, lambda words, fault: words * np.uint64(0))
    assert (lost.row.tolist(), lost.column.tolist()) == ([1, 1], [0, 1])
    assert lost.delta.tolist() == (-int(a[0, 1, 2]) * b[0, 2].astype(int)).tolist()
    random = tested.errors(garbled, layer, a, b, *where, lambda words, fault: np.array([200], np.uint64))
    assert random.delta.tolist() == ((200 - 256 - int(a[0, 1, 2])) * b[0, 2].astype(int)).tolist()
    with pytest.raises(TargetError, match="fsm: a fault in global control is a failure of the run"):
        tested.errors(stopped, layer, a, b, *where, lambda words, fault: words)
    residence = tested.residence(stopped, layer)
    assert (residence.size, residence.occupancy) == (tested.mapping(layer).cycles, 1.0)


def control_upsets(
    simulator: ArraySimulator, tested: Architecture, name: str, layer: LoweredLayer, word: np.ndarray, cycle: np.ndarray
) -> tuple[Errors, Errors]:
    """The errors of a shipped description's control, and those of the flip-flop of that name at RTL."""
    a, b = operands(layer, 1, 12)
    component, image = tested.component(name), np.zeros(len(word), int)
    slot = {entry.name: k for k, entry in enumerate(simulator.simulator.design.slots)}
    slots = [slot[f"row[{place // COLS}].column[{place % COLS}].pe.{name}"] for place in word]
    random = np.random.default_rng(13).integers(0, 2**31, len(word)).astype(np.uint64)
    mask = np.uint64(2**component.word_bits - 1)

    def corrupt(words: np.ndarray, fault: np.ndarray) -> np.ndarray:
        return words * np.uint64(0) if component.effect == "dropped" else random[fault] & mask

    found = tested.errors(component, layer, a, b, image, word, cycle, corrupt)
    rows = upsets(slots, np.zeros(len(word), int), cycle)
    return found, simulator.stream(tested.mapping(layer), a, b, image, rows)


@pytest.mark.parametrize("name", ["valid", "clear"])
def test_control_that_loses_a_word_is_the_same_through_two_levels(
    simulators: dict[str, ArraySimulator], name: str
) -> None:
    tested = shipped("output_stationary").model_copy(update={"rows": ROWS, "cols": COLS})
    layer = matrix_layer(5, 6, 4)
    m, k, n = (axis.ravel() for axis in np.indices((5, 6, 4)))
    # The first product of a sum is another matter: then "clear" is set.
    place = tested.mapping(layer).where(m[k > 0], k[k > 0], n[k > 0])
    found, at_rtl = control_upsets(
        simulators["output_stationary"], tested, name, layer, place.row * COLS + place.col, place.cycle
    )
    same(found, at_rtl)
    assert len(np.unique(found.fault)) > 90


@pytest.mark.parametrize(
    ("dataflow", "name"),
    [("output_stationary", "drain"), ("weight_stationary", "valid"), ("weight_stationary", "load")],
)
def test_control_that_garbles_words_reaches_the_elements_that_it_reaches_at_rtl(
    simulators: dict[str, ArraySimulator], dataflow: Dataflow, name: str
) -> None:
    tested = shipped(dataflow).model_copy(update={"rows": ROWS, "cols": COLS})
    layer = matrix_layer(9, 9, 4)
    generator = np.random.default_rng(14)
    word, cycle = generator.integers(0, ROWS * COLS, 400), generator.integers(0, tested.mapping(layer).cycles, 400)
    found, at_rtl = control_upsets(simulators[dataflow], tested, name, layer, word, cycle)
    elements: list[dict[int, set]] = [{fault: set() for fault in range(400)} for _ in range(2)]
    for errors, into in zip((found, at_rtl), elements, strict=True):
        for fault, row, column in zip(errors.fault.tolist(), errors.row.tolist(), errors.column.tolist(), strict=True):
            into[fault].add((row, column))
    agreeing = sum(elements[0][fault] == elements[1][fault] for fault in range(400))
    assert agreeing > 0.85 * 400
    assert sum(map(len, elements[1].values())) > 200


@pytest.mark.parametrize("name", ["eyeriss", "output_stationary", "weight_stationary"])
def test_shipped_descriptions_can_be_read_and_used(name: str) -> None:
    found = shipped(name)
    layer = convolution_layer(CONVOLUTION, 3)
    sizes = {component.name: found.residence(component, layer).size for component in found.components}
    assert all(size > 0 for component, size in sizes.items() if component not in ("global_buffer_psums",))
    assert found.component(found.components[0].name) is found.components[0]


def test_a_name_that_is_not_there_is_named_with_those_near() -> None:
    with pytest.raises(TargetError, match=r"'eyeris' is not one of eyeriss, .*did you mean 'eyeriss'"):
        shipped("eyeris")
    with pytest.raises(TargetError, match="eyeriss has no 'psum_registers'; did you mean 'psum_register'"):
        shipped("eyeriss").component("psum_registers")


GOOD = "name: mine\ndataflow: {dataflow}\nrows: 2\ncols: 2\ncomponents:\n  - {{name: a, {fields}}}\n"


@pytest.mark.parametrize(
    ("dataflow", "fields", "message"),
    [
        ("systolic", "position: sum", r"dataflow: Input should be 'output_stationary', "),
        ("output_stationary", "position: latch", r"components\.0\.position: Input should be 'memory_a'"),
        ("output_stationary", "position: sum, width: 3", r"components\.0\.width: Extra inputs are not permitted"),
        ("output_stationary", "position: sum, effect: dropped", "effect: local_control needs dropped or random"),
        ("output_stationary", "position: sum, flip_flops: 3", "flip_flops: control needs their number"),
        (
            "output_stationary",
            "position: sum, category: global_control, flip_flops: 3",
            "position: global_control is at the position array",
        ),
        ("output_stationary", "position: sum, travels: true", "delay, travels: only local_control has them"),
        (
            "output_stationary",
            "position: exit, category: local_control, effect: random, flip_flops: 1, travels: true",
            "travels: needs a position in the PEs, operand_a, operand_b, sum, not exit",
        ),
        (
            "row_stationary",
            "position: sum, category: local_control, effect: random, flip_flops: 1, travels: true",
            "control travels in systolic dataflows only",
        ),
        ("output_stationary", "position: memory_c", "an output-stationary array puts no sums aside"),
        ("row_stationary", "position: exit", "exit is a position of systolic dataflows only"),
        ("output_stationary", "position: sum}\n  - {name: a, position: sum", "'a' is there 2 times"),
        ("output_stationary", "position: [", r"mine\.yaml: .*expected"),
    ],
)
def test_a_description_that_is_none_is_refused(tmp_path: Path, dataflow: str, fields: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.format(dataflow=dataflow, fields=fields), encoding="utf-8")
    with pytest.raises(TargetError, match=f"(?s){message}"):
        Architecture.read(path)


def test_a_description_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.yaml"):
        Architecture.read(tmp_path / "none.yaml")


def test_failure_rate_of_a_component() -> None:
    rate = component_fit_rate(bits=1_000_000, raw_fit_per_bit=2e-5, sdc_probability=0.1)
    assert rate == pytest.approx(2.0)
    assert component_fit_rate(
        bits=1_000_000, raw_fit_per_bit=2e-5, sdc_probability=0.4, occupancy=0.25
    ) == pytest.approx(rate)
    with pytest.raises(ValueError, match=r"sdc_probability is 1\.5; it must be in \[0, 1\]"):
        component_fit_rate(bits=1, raw_fit_per_bit=1.0, sdc_probability=1.5)
    with pytest.raises(ValueError, match="bits is -1; it must not be negative"):
        component_fit_rate(bits=-1, raw_fit_per_bit=1.0, sdc_probability=0.5)
