"""Every product of a layer has one place in an array, and the registers there hold its operands."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saboteur.errors import TargetError

pytest.importorskip("torch")

from saboteur.levels.crosslayer.lowering import Window
from saboteur.levels.crosslayer.mapping import (
    Mapping,
    OutputStationary,
    RowStationary,
    WeightStationary,
)
from saboteur.levels.hardware import designs

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZE = st.integers(1, 7)
SYSTOLIC = [(OutputStationary, designs.OutputStationary), (WeightStationary, designs.WeightStationary)]


def every_operation(mapping: Mapping) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, k, n = np.meshgrid(np.arange(mapping.m), np.arange(mapping.k), np.arange(mapping.n), indexing="ij")
    return m.ravel(), k.ravel(), n.ravel()


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    rows, cols, n = draw(SIZE), draw(SIZE), draw(SIZE)
    kind = draw(st.sampled_from([OutputStationary, WeightStationary, RowStationary]))
    if kind is RowStationary:
        window = Window(
            *(draw(st.integers(1, 3)) for _ in range(5)), draw(st.integers(1, 3)), draw(st.integers(0, 2)), 9, 9
        )
        m, k = window.out_rows * window.out_columns, window.channels * window.kernel_rows * window.kernel_columns
        return RowStationary(rows, cols, m, k, n, window)
    return kind(rows, cols, draw(SIZE), draw(SIZE), n)


@given(mappings())
def test_every_operation_has_one_place_and_comes_back_from_it(mapping: Mapping) -> None:
    wanted = every_operation(mapping)
    place = mapping.where(*wanted)
    assert len(np.unique(np.stack(place), axis=1).T) == mapping.m * mapping.k * mapping.n
    assert place.tile.min() == 0
    assert place.tile.max() == mapping.tiles - 1
    assert (place.row < mapping.rows).all() and (place.col < mapping.cols).all()
    assert place.cycle.max() < mapping.cycles
    np.testing.assert_array_equal(np.stack(mapping.operation(place.row, place.col, place.cycle)), np.stack(wanted))


@given(mappings())
def test_no_other_place_does_an_operation(mapping: Mapping) -> None:
    row, col, cycle = np.meshgrid(
        np.arange(mapping.rows), np.arange(mapping.cols), np.arange(mapping.cycles + 2), indexing="ij"
    )
    found = mapping.operation(row, col, cycle)
    busy = found.m >= 0
    assert busy.sum() == mapping.m * mapping.k * mapping.n
    for axis in found:
        assert ((axis >= 0) == busy).all()


@given(mappings())
def test_blocks_hold_their_tile_s_operations_and_nothing_else(mapping: Mapping) -> None:
    m, k, n = every_operation(mapping)
    block = mapping.block(mapping.where(m, k, n).tile)
    for index, first, size in ((m, block.m, block.m_size), (k, block.k, block.k_size), (n, block.n, block.n_size)):
        assert ((first <= index) & (index < first + size)).all()
    sizes = mapping.block(np.arange(mapping.tiles))
    assert (sizes.m_size * sizes.k_size * sizes.n_size).sum() == mapping.m * mapping.k * mapping.n


@pytest.mark.parametrize(("kind", "design"), SYSTOLIC)
@pytest.mark.parametrize("shape", [(3, 4, 2), (5, 7, 4), (1, 3, 7), (6, 1, 1)])
def test_registers_of_the_shipped_arrays_hold_the_operands(
    kind: type, design: type, shape: tuple[int, int, int]
) -> None:
    m, k, n = shape
    mapping, array = kind(3, 2, m, k, n), design(3, 2)
    generator = np.random.default_rng(1)
    a, b = generator.integers(-128, 128, (m, k)).astype(np.int8), generator.integers(-128, 128, (k, n)).astype(np.int8)
    tiles = mapping.operands(a, b, np.arange(mapping.tiles))
    stimulus = array.stimulus(*tiles)
    assert len(stimulus["rst"]) == mapping.cycles == array.cycles(designs.TileShape.of(*tiles))
    held = array.trace(stimulus)
    wanted = every_operation(mapping)
    place = mapping.where(*wanted)
    at = place.cycle, place.row, place.col
    first, second, _ = mapping.registers
    np.testing.assert_array_equal(held[first][at], a[wanted[0], wanted[1]])
    np.testing.assert_array_equal(held[second][at], b[wanted[1], wanted[2]])
    assert (held["valid"][at] == 1).all()


@pytest.mark.parametrize(("kind", "design"), SYSTOLIC)
def test_sums_hold_what_the_mapping_says(kind: type, design: type) -> None:
    mapping, array = kind(3, 2, 4, 5, 3), design(3, 2)
    generator = np.random.default_rng(2)
    a, b = generator.integers(-128, 128, (4, 5)).astype(np.int8), generator.integers(-128, 128, (5, 3)).astype(np.int8)
    register = list(mapping.registers)[-1]
    held = array.trace(array.stimulus(*mapping.operands(a, b, np.arange(mapping.tiles))))[register]
    cycle, row, col = (axis.ravel() for axis in np.meshgrid(*map(np.arange, held.shape), indexing="ij"))
    reach = mapping.reach(register, row, col, cycle)
    assert len(np.unique(reach.fault)) == len(reach.fault) > 50
    products = a.astype(np.int64)[:, :, None] * b
    expected = [products[m, k:stop, n].sum() for m, k, stop, n in zip(*reach[1:], strict=True)]
    np.testing.assert_array_equal(held.ravel()[reach.fault], expected)


@pytest.mark.parametrize(("kind", "design"), SYSTOLIC)
def test_tiles_add_up_to_the_product(kind: type, design: type) -> None:
    mapping = kind(3, 2, 4, 7, 5)
    generator = np.random.default_rng(3)
    a = generator.integers(-128, 128, (2, 4, 7)).astype(np.int8)
    b = generator.integers(-128, 128, (1, 7, 5)).astype(np.int8)
    tiles = np.arange(mapping.tiles)
    left, right = (operand.astype(np.int64) for operand in mapping.operands(a, b, tiles))
    found, block = np.zeros((2, 12, 12), np.int64), mapping.block(tiles)
    for tile, product in enumerate(np.moveaxis(left @ right, 1, 0)):
        rows = slice(block.m[tile], block.m[tile] + product.shape[1])
        found[:, rows, block.n[tile] : block.n[tile] + mapping.cols] += product
    np.testing.assert_array_equal(found[:, :4, :5], a.astype(np.int64) @ b)


class RowStationaryArray:
    """PEs stepped one by one, after Chen et al. and the words of :class:`RowStationary` only: the oracle."""

    def __init__(self, window: Window, rows: int, cols: int):
        self.window, self.cols = window, cols
        self.height = rows // window.kernel_rows * window.kernel_rows or rows

    def product(
        self, a: np.ndarray, b: np.ndarray, hit: tuple | None = None, memory: tuple | None = None
    ) -> np.ndarray:
        """``A @ B``, with a fault.

        Args:
            a: operand.
            b: operand.
            hit: (register, row, col, cycle, word, bit): one register's bit flips in one cycle.
            memory: (position, cells of A or B, cycle, bit): what is fetched of these cells from the cycle on is wrong.
        """
        position, cells, since, bit = memory or ("", set(), 0, 0)

        def fetch(m: int, k: int, n: int, cycle: int, what: str) -> int:
            value = int(a[m, k]) if what == "memory_a" else int(b[k, n])
            cell = (m, k) if what == "memory_a" else (k, n)
            return flipped(value, bit, 8) if position == what and cell in cells and cycle >= since else value

        _, _, taps, out_rows, width, *_ = self.window
        filter_rows = len(b) // taps
        sums, cycle0 = np.zeros((len(a), b.shape[1]), np.int64), 1
        for n in range(b.shape[1]):
            for first_row in range(0, out_rows, self.cols):
                for first in range(0, filter_rows, self.height):
                    for col in range(min(self.cols, out_rows - first_row)):
                        out_row = first_row + col
                        north = np.zeros(width, np.int64)
                        for row in range(min(self.height, filter_rows - first)):
                            corner = out_row * width, (first + row) * taps, n
                            north = self.one(fetch, corner, north, cycle0 + row, (row, col), hit)
                        sums[out_row * width : (out_row + 1) * width, n] += north
                    cycle0 += taps * (1 + width)
        return sums

    def one(self, fetch, corner, north, start, where, hit):
        """One PE in one pass. A register changes just before the cycle from which it holds the new value."""
        _, _, taps, _, width, stride, *_ = self.window
        m, k, n = corner
        filters, image, psum, out = [0] * taps, [0] * taps, 0, np.zeros(width, np.int64)
        held = {"filter": filters, "image": image}
        last = taps * (1 + width)
        for age in range(last + 1):
            x, s = divmod(age - taps, taps)
            if age < taps:
                filters[age] = fetch(m, k + age, n, start + age, "memory_b")
            elif age < last:
                column = x * stride + s
                if x == 0 or column > (x - 1) * stride + taps - 1:
                    image[column % taps] = fetch(m + x, k + s, n, start + age, "memory_a")
            if hit and hit[1:4] == (*where, start + age):
                register, _, _, _, word, bit = hit
                if register == "psum":
                    psum = flipped(psum, bit, 32)
                elif age < last:
                    held[register][word] = flipped(held[register][word], bit, 8)
            if age > taps and s == 0:
                out[x - 1] = psum
            if taps <= age < last:
                psum = (0 if s == 0 else psum) + image[(x * stride + s) % taps] * filters[s]
                if s == taps - 1:
                    psum += int(north[x])
        return out


def flipped(value: int, bit: int, width: int) -> int:
    word = (value % 2**width) ^ (1 << bit)
    return word - 2**width * (word >> (width - 1))


WINDOWS = [
    Window(2, 3, 3, 4, 4, 1, 1, 4, 4),
    Window(3, 2, 3, 3, 2, 2, 0, 6, 5),
    Window(1, 3, 2, 2, 3, 3, 0, 6, 8),
    Window(5, 1, 1, 4, 1, 1, 0, 4, 1),
]


def layer_of(window: Window, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Operands of a convolution: words of A that are one pixel are equal."""
    generator = np.random.default_rng(seed)
    height = (window.out_rows - 1) * window.stride + window.kernel_rows
    width = (window.out_columns - 1) * window.stride + window.kernel_columns
    image = generator.integers(-128, 128, (window.channels, height, width)).astype(np.int8)
    rows = [
        image[:, y : y + window.kernel_rows, x : x + window.kernel_columns].ravel()
        for y in range(0, window.out_rows * window.stride, window.stride)
        for x in range(0, window.out_columns * window.stride, window.stride)
    ]
    return np.array(rows), generator.integers(-128, 128, (len(rows[0]), n)).astype(np.int8)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(7, 3), (2, 2)])
def test_row_stationary_registers_reach_what_pes_stepped_one_by_one_do(window: Window, rows: int, cols: int) -> None:
    a, b = layer_of(window, 2, 4)
    mapping = RowStationary(rows, cols, *a.shape, 2, window)
    array = RowStationaryArray(window, rows, cols)
    golden = array.product(a, b)
    np.testing.assert_array_equal(golden, a.astype(np.int64) @ b)
    generator = np.random.default_rng(5)
    for register, matrix in mapping.registers.items():
        row, col = generator.integers(0, mapping.rows_in_use, 40), generator.integers(0, cols, 40)
        cycle = generator.integers(0, min(mapping.cycles, 3 * mapping.interval), 40)
        word = generator.integers(0, mapping.words(register), 40)
        bit = generator.integers(0, 32 if matrix == "C" else 8, 40)
        reach = mapping.reach(register, row, col, cycle, word)
        assert len(reach.fault)
        for i in range(40):
            hit = (register, *(int(column[i]) for column in (row, col, cycle, word, bit)))
            faulty = array.product(a, b, hit)
            expected = golden.copy()
            for fault, m, k, stop, n in zip(*reach, strict=True):
                if fault == i:
                    if matrix == "A":
                        expected[m, n] += (flipped(int(a[m, k]), hit[-1], 8) - int(a[m, k])) * int(b[k, n])
                    elif matrix == "B":
                        expected[m, n] += (flipped(int(b[k, n]), hit[-1], 8) - int(b[k, n])) * int(a[m, k])
                    else:
                        partial = int(a[m, k:stop].astype(np.int64) @ b[k:stop, n])
                        expected[m, n] += flipped(partial, hit[-1], 32) - partial
            np.testing.assert_array_equal(faulty, expected, err_msg=str(hit))


def test_sizes_and_names_that_cannot_be_are_named() -> None:
    with pytest.raises(TargetError, match="k is 0; it must be at least 1"):
        OutputStationary(2, 2, 1, 0, 1)
    with pytest.raises(TargetError, match="'sum' is not a data register of a output_stationary PE: a, b, acc"):
        OutputStationary(2, 2, 1, 1, 1).reach("sum", [0], [0], [0])
    with pytest.raises(TargetError, match="does not fit m = 3 and k = 9"):
        RowStationary(2, 2, 3, 9, 1, Window(1, 3, 3, 2, 2, 1, 0, 4, 4))


def labels(picture: Path) -> list[str | None]:
    return [element.text for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_the_pictures_of_the_documentation_are_up_to_date(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("draw_mappings", DOCS / "draw_mappings.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for drawn in script.draw(tmp_path):
        assert labels(drawn) == labels(DOCS / drawn.name)


def test_a_picture_shows_the_operands_of_every_pe(tmp_path: Path) -> None:
    mapping = OutputStationary(2, 2, 4, 3, 4)
    mapping.picture(tmp_path / "tile.svg", tile=3, pe=(1, 1), cycle=1 + 3 * 5 + 1 + 2)
    shown = labels(tmp_path / "tile.svg")
    assert "tile 3 of 4: m 2…3, k 0…2, n 2…3" in shown
    for place, k in (((0, 0), 2), ((0, 1), 1), ((1, 0), 1), ((1, 1), 0)):
        m, n = 2 + place[0], 2 + place[1]
        assert {f"{m},{k}", f"{k},{n}", f"{m},{n}"} <= set(shown)
    mapping.picture(tmp_path / "again.svg", tile=3, pe=(1, 1), cycle=1 + 3 * 5 + 1 + 2)
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "tile.svg").read_bytes()
    mapping.picture(tmp_path / "tile.png")
    assert (tmp_path / "tile.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 4}, "tile is 4; this layer has tiles 0 to 3"),
        ({"pe": (2, 0)}, r"pe is \(2, 0\); the array has 2 × 2"),
        ({"cycle": 24}, "cycle is 24; the stream has cycles 0 to 23"),
    ],
)
def test_a_picture_of_what_is_not_there_is_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        OutputStationary(2, 2, 4, 3, 4).picture(tmp_path / "tile.svg", **arguments)
