"""The systolic arrays compute matrix products, and their registers hold what the reference model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saboteur.errors import TargetError
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.designs import OutputStationary, SystolicArray, TileShape, WeightStationary
from tests.designs import simulators

ARRAYS = [OutputStationary, WeightStationary]
SIZES = [(1, 1), (2, 3), (4, 4), (8, 8)]


def operands(array: SystolicArray, tiles: int, free: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tiles that fill the array; ``free`` is the size that the dataflow leaves free."""
    shape = {OutputStationary: (array.rows, free), WeightStationary: (free, array.rows)}[type(array)]
    generator = np.random.default_rng(seed)
    lowest = -(2 ** (array.data_width - 1))
    a = generator.integers(lowest, -lowest, (tiles, *shape))
    b = generator.integers(lowest, -lowest, (tiles, shape[1], array.cols))
    a[0], b[0] = lowest, lowest
    return a, b


def widths(array: SystolicArray) -> dict[str, int]:
    rows, cols, data, acc = array.rows, array.cols, array.data_width, array.acc_width
    if isinstance(array, OutputStationary):
        return {"rst": 1, "valid": rows, "clear": rows, "drain": rows, "west": rows * data, "north": cols * data}
    return {
        "rst": 1,
        "valid": rows,
        "load": rows,
        "west": rows * data,
        "north_weight": cols * data,
        "north_sum": cols * acc,
    }


def outputs(array: SystolicArray) -> dict[str, int]:
    return {"south": array.cols * array.acc_width, "south_valid": array.cols}


def register_probes(array: SystolicArray) -> dict[str, int]:
    sizes = {"acc": array.acc_width, "sum": array.acc_width}
    sizes |= dict.fromkeys(("a", "b", "activation", "weight"), array.data_width)
    return {
        f"row[{i}].column[{j}].pe.{register}": sizes.get(register, 1)
        for register in array.registers
        for i in range(array.rows)
        for j in range(array.cols)
    }


def simulate(folder: Path, array: SystolicArray, stimulus: dict[str, np.ndarray], **probes: dict[str, int]) -> dict:
    files = designs.sources(array.design)
    return simulators.icarus(
        folder, files, array.design, array.parameters, stimulus, widths(array), outputs(array), **probes
    )


@simulators.needs_icarus
@pytest.mark.parametrize("free", [1, 5])
@pytest.mark.parametrize(("rows", "cols"), SIZES)
@pytest.mark.parametrize("kind", ARRAYS)
def test_random_tiles_and_negative_extremes_equal_numpy(
    tmp_path: Path, kind: type[SystolicArray], rows: int, cols: int, free: int
) -> None:
    array = kind(rows, cols)
    a, b = operands(array, tiles=3, free=free, seed=rows * 10 + cols)
    shape = TileShape.of(a, b)
    found = simulate(tmp_path, array, array.stimulus(a, b))
    assert len(found["south"]) == array.cycles(shape)
    np.testing.assert_array_equal(array.result(found, shape), a @ b)


@simulators.needs_icarus
@pytest.mark.parametrize("kind", ARRAYS)
def test_sixteen_bit_operands(tmp_path: Path, kind: type[SystolicArray]) -> None:
    array = kind(3, 2, data_width=16, acc_width=40)
    a, b = operands(array, tiles=2, free=4, seed=1)
    found = simulate(tmp_path, array, array.stimulus(a, b))
    np.testing.assert_array_equal(array.result(found, TileShape.of(a, b)), a @ b)


@simulators.needs_icarus
def test_output_stationary_accumulator_wraps(tmp_path: Path) -> None:
    array = OutputStationary(1, 1, data_width=8, acc_width=16)
    a, b = np.full((1, 1, 2), -128), np.full((1, 2, 1), -128)
    found = simulate(tmp_path, array, array.stimulus(a, b))
    # Twice 2^14 is 2^15, which reads as -2^15 in 16 bits.
    assert array.result(found, TileShape(1, 1, 2, 1)).item() == -(2**15)
    assert array.reference(a, b).item() == -(2**15)


@simulators.needs_icarus
def test_weight_stationary_adds_partial_sums_and_wraps(tmp_path: Path) -> None:
    array = WeightStationary(2, 2)
    a, b = operands(array, tiles=2, free=3, seed=2)
    partial = np.arange(12).reshape(2, 3, 2) - 6
    partial[0, 0, 0] = 2**31 - 1
    found = simulate(tmp_path, array, array.stimulus(a, b, partial))
    wrapped = (a @ b + partial + 2**31) % 2**32 - 2**31
    np.testing.assert_array_equal(array.result(found, TileShape(2, 3, 2, 2)), wrapped)
    assert wrapped[0, 0, 0] == 2 * 2**14 + 2**31 - 1 - 2**32


@simulators.needs_icarus
@pytest.mark.parametrize("kind", ARRAYS)
def test_every_register_holds_what_the_reference_model_says(tmp_path: Path, kind: type[SystolicArray]) -> None:
    array = kind(3, 2)
    generator = np.random.default_rng(3)
    # Any controls in any cycle, not only those of a product.
    stimulus = {port: designs.pack(generator.integers(0, 2, (300, width)), 1) for port, width in widths(array).items()}
    stimulus["rst"] = (np.arange(300) % 100 == 0).astype(np.uint64)
    probes = register_probes(array)
    found = simulate(tmp_path, array, stimulus, probes=probes)
    expected = array.trace(stimulus)
    for probe, width in probes.items():
        indices, register = probe.split("].pe.")
        row, column = (int(part) for part in indices.removeprefix("row[").split("].column["))
        values = designs.unpack(found[probe], width, 1, signed=width > 1)[:, 0]
        np.testing.assert_array_equal(values, expected[register][:, row, column], err_msg=probe)


@simulators.needs_icarus
@pytest.mark.parametrize("kind", ARRAYS)
def test_south_valid_marks_exactly_the_results(tmp_path: Path, kind: type[SystolicArray]) -> None:
    array = kind(3, 2)
    a, b = operands(array, tiles=2, free=4, seed=4)
    found = simulate(tmp_path, array, array.stimulus(a, b))
    valid = designs.unpack(found["south_valid"], 1, 2, signed=False).astype(bool)
    south = designs.unpack(found["south"], array.acc_width, 2)
    results = a @ b
    if isinstance(array, OutputStationary):
        results = results[:, ::-1]
    for column in range(2):
        assert south[valid[:, column], column].tolist() == results[:, :, column].flatten().tolist()


@simulators.needs_icarus
@pytest.mark.parametrize("kind", ARRAYS)
def test_a_reset_in_mid_tile_leaves_no_trace(tmp_path: Path, kind: type[SystolicArray]) -> None:
    array = kind(2, 2)
    a, b = operands(array, tiles=1, free=3, seed=5)
    stimulus = array.stimulus(a, b)
    interrupted = {port: np.concatenate([words[:5], words]) for port, words in stimulus.items()}
    found = simulate(tmp_path, array, interrupted)
    clean = {port: words[5:] for port, words in found.items()}
    np.testing.assert_array_equal(array.result(clean, TileShape.of(a, b)), a @ b)


@pytest.mark.slow
@simulators.needs_verilator
@pytest.mark.parametrize("kind", ARRAYS)
def test_verilator_agrees_without_a_lint_warning(tmp_path: Path, kind: type[SystolicArray]) -> None:
    array = kind()
    a, b = operands(array, tiles=200, free=16, seed=6)
    files = designs.sources(array.design)
    stimulus = array.stimulus(a, b)
    found = simulators.verilator(
        tmp_path, files, array.design, array.parameters, stimulus, widths(array), outputs(array)
    )
    np.testing.assert_array_equal(array.result(found, TileShape.of(a, b)), a @ b)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 3), (8, 8)])
@pytest.mark.parametrize("kind", ARRAYS)
def test_yosys_finds_no_latch_and_no_loop(tmp_path: Path, kind: type[SystolicArray], rows: int, cols: int) -> None:
    array = kind(rows, cols)
    log = simulators.yosys(tmp_path, designs.sources(array.design), array.design, array.parameters)
    assert log.count("Found and reported 0 problems.") >= 2


@pytest.mark.parametrize("kind", ARRAYS)
def test_the_reference_model_computes_the_product(kind: type[SystolicArray]) -> None:
    array = kind(4, 3)
    a, b = operands(array, tiles=3, free=6, seed=7)
    stimulus = array.stimulus(a, b)
    held = array.trace(stimulus)["acc" if kind is OutputStationary else "sum"]
    south = designs.pack(held[:, -1], array.acc_width)
    np.testing.assert_array_equal(array.result({"south": south}, TileShape.of(a, b)), array.reference(a, b))


def test_output_stationary_formulas_of_the_documentation() -> None:
    rows, cols, depth = 3, 2, 4
    array = OutputStationary(rows, cols)
    a, b = operands(array, tiles=2, free=depth, seed=8)
    held = array.trace(array.stimulus(a, b))
    for tile, i, j in np.ndindex(2, rows, cols):
        start = 1 + tile * (depth + rows)
        drain = start + depth + rows - 1
        for k in range(depth):
            cycle = start + 1 + i + j + k
            assert held["a"][cycle, i, j] == a[tile, i, k]
            assert held["b"][cycle, i, j] == b[tile, k, j]
            assert held["valid"][cycle, i, j] == 1
            assert held["clear"][cycle, i, j] == (k == 0)
            assert held["acc"][cycle + 1, i, j] == a[tile, i, : k + 1] @ b[tile, : k + 1, j]
        for step in range(i + 1):
            assert held["acc"][drain + 1 + j + step, i, j] == a[tile, i - step] @ b[tile, :, j]
        for step in range(rows if i == rows - 1 else i):
            assert held["drain"][drain + 1 + j + step, i, j] == 1
    assert held["valid"].sum() == 2 * depth * rows * cols
    assert held["clear"].sum() == 2 * rows * cols
    assert held["drain"].sum() == 2 * cols * (0 + 1 + 3)


def test_weight_stationary_formulas_of_the_documentation() -> None:
    rows, cols, height = 3, 2, 4
    array = WeightStationary(rows, cols)
    a, b = operands(array, tiles=2, free=height, seed=9)
    held = array.trace(array.stimulus(a, b))
    for tile, i, j in np.ndindex(2, rows, cols):
        load = 1 + tile * (height + rows)
        start = load + rows
        for step in range(i, rows):
            assert held["load"][load + 1 + j + step, i, j] == 1
            assert held["weight"][load + 2 + j + step, i, j] == b[tile, rows - 1 - step + i, j]
        for m in range(height):
            cycle = start + 1 + m + i + j
            assert held["activation"][cycle, i, j] == a[tile, m, i]
            assert held["weight"][cycle, i, j] == b[tile, i, j]
            assert held["valid"][cycle, i, j] == 1
            assert held["sum"][cycle + 1, i, j] == a[tile, m, : i + 1] @ b[tile, : i + 1, j]
    assert held["valid"].sum() == 2 * height * rows * cols
    assert held["load"].sum() == 2 * cols * (3 + 2 + 1)


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_tiles_are_named(kind: type[SystolicArray]) -> None:
    array = kind(2, 2)
    with pytest.raises(TargetError, match=r"\[-129, 0\]; 8 bits hold \[-128, 127\]"):
        array.stimulus(np.array([[[-129, 0]]]), np.zeros((1, 2, 2), np.int64))
    with pytest.raises(TargetError, match="n is 3; this array holds at most 2"):
        array.stimulus(np.zeros((1, 1, 1), np.int64), np.zeros((1, 1, 3), np.int64))
    with pytest.raises(TargetError, match=r"need \[tiles, m, k\]"):
        array.stimulus(np.zeros((1, 1, 2), np.int64), np.zeros((1, 1, 2), np.int64))
    with pytest.raises(TargetError, match="need integers"):
        array.stimulus(np.zeros((1, 1, 1)), np.zeros((1, 1, 1), np.int64))
    with pytest.raises(TargetError, match="acc_width is 8"):
        kind(1, 1, data_width=8, acc_width=8)
    with pytest.raises(TargetError, match="rows is 0"):
        kind(0, 1)


def test_an_unknown_design_is_named_with_those_there_are() -> None:
    with pytest.raises(TargetError, match="did you mean 'weight_stationary'"):
        designs.sources("weight_stationery")
    assert all(path.is_file() for name in designs.names() for path in designs.sources(name))
