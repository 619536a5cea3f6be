"""Adapters of arrays: what is learned of them, a second array, and what is wrong with bad ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saboteur.errors import TargetError
from saboteur.levels.crosslayer import mapping as mappings
from saboteur.levels.crosslayer.arrays import Schedule, ShippedArray, learn
from saboteur.levels.crosslayer.tiles import ArraySimulator
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.designs import TileShape
from tests.crosslayer.test_tiles import same, stuck, upsets

EXAMPLE = Path(__file__).parents[2] / "examples" / "user_array"


def example_class() -> Any:
    spec = importlib.util.spec_from_file_location("user_array_example", EXAMPLE / "broadcast_array.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.BroadcastArray


BroadcastArray: Any = example_class()


def learned(array: Any, tiles: int, m: int, k: int, n: int) -> Schedule:
    rows, cols = array.rows, array.cols
    inputs = {"reset_n": 1, "step": 3, "column_of_a": rows * 8, "row_of_b": cols * 8}
    return learn(array, TileShape(tiles, m, k, n), inputs, {"reading": 1, "row_of_c": cols * 32})


# -- what is learned ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "cols", "k"), [(3, 2, 7), (2, 5, 1), (8, 8, 40)])
def test_output_stationary_schedule_is_the_documented_one(rows: int, cols: int, k: int) -> None:
    array = ShippedArray(designs.OutputStationary(rows, cols))
    controls = dict.fromkeys(("valid", "clear", "drain"), rows)
    inputs = {"rst": 1, "west": 8 * rows, "north": 8 * cols} | controls
    schedule = learn(array, TileShape(30, rows, k, cols), inputs, {"south": 32 * cols, "south_valid": cols})
    assert (schedule.interval, schedule.flush) == (k + rows, rows + cols)
    i, j = np.divmod(np.arange(rows * cols), cols)
    # C[i, j] leaves in cycle D + 1 + j + (R - 1 - i), D = T + K + R - 1, T = 1 + t (K + R): docs/designs.md.
    assert np.array_equal(schedule.due, 1 + k + rows - 1 + 1 + j + rows - 1 - i)
    assert schedule.due_at == tuple(("south", 32 * column) for column in j.tolist())
    shown = {}
    for field, (port, low) in enumerate(schedule.fields):
        for phase in np.flatnonzero(schedule.back[:, field] >= 0).tolist():
            cycle = phase + schedule.interval * int(schedule.back[phase, field])
            shown[port, low // 8, cycle] = int(schedule.word[phase, field])
    west = {("west", r, 1 + r + d): r * k + d for r in range(rows) for d in range(k)}
    north = {("north", c, 1 + c + d): rows * k + d * cols + c for c in range(cols) for d in range(k)}
    assert shown == west | north


def test_narrow_operands_and_sums_are_numbered_in_several_probes() -> None:
    array = dataclasses.replace(BroadcastArray(2, 3), data_width=2, acc_width=4)
    inputs = {"reset_n": 1, "step": 3, "column_of_a": 4, "row_of_b": 6}
    schedule = learn(array, TileShape(9, 2, 11, 3), inputs, {"reading": 1, "row_of_c": 12})
    assert schedule.interval == 11
    assert schedule.due.tolist() == [13, 13, 13, 14, 14, 14]
    assert schedule.word[1].tolist() == [0, 11, 22, 23, 24]


# -- a second array ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["word", "gate"])
@pytest.mark.parametrize("sizes", [(9, 7, 5), (20, 2, 9), (4, 1, 3)])
def test_broadcast_array_equals_its_stream(level: Any, sizes: tuple[int, int, int]) -> None:
    array = ArraySimulator(BroadcastArray(4, 3), level)
    mapping = mappings.OutputStationary(4, 3, *sizes)
    generator = np.random.default_rng(0)
    m, k, n = sizes
    a = generator.integers(-128, 128, (3, m, k)).astype(np.int8)
    b = generator.integers(-128, 128, (1, k, n)).astype(np.int8)
    cycles = array.cycles(mapping)
    samples = [make(array, cycles, 200, kind=kind) for make in (upsets, stuck) for kind in ("flip_flops", "nets")]
    for rows in samples:
        image = generator.integers(0, 3, len(rows))
        plain = array.stream(mapping, a, b, image, rows)
        assert len(plain.fault) > 20
        same(array.errors(mapping, a, b, image, rows), plain)


def test_counter_upset_of_the_broadcast_array_reads_another_row() -> None:
    array = ArraySimulator(BroadcastArray(2, 2))
    mapping = mappings.OutputStationary(2, 2, 2, 5, 2)
    a, b = np.arange(10, dtype=np.int8).reshape(1, 2, 5), np.arange(10, dtype=np.int8).reshape(1, 5, 2)
    rows = upsets(array, 2, 2)[:1]
    (slot,) = [k for k, slot in enumerate(array.simulator.design.slots) if slot.name == "row_q"]
    # The first row is read in cycle T + k + 1; with bit 0 flipped, it is the second, and then nothing is left.
    rows["place"], rows["x"], rows["on"], rows["off"] = slot, 1, 7, 8
    found = array.errors(mapping, a, b, np.array([0]), rows)
    c = a[0].astype(np.int64) @ b[0].astype(np.int64)
    assert found.row.tolist() == [0, 0, 1, 1]
    assert found.delta.tolist() == [*(c[1] - c[0]), *(-c[1])]


# -- an array that never forgets, and has a memory ---------------------------------------------------------------

PING_PONG = """
module ping_pong (
    input logic clk, input logic rst, input logic first, input logic last, input logic signed [7:0] a,
    input logic [1:0][7:0] b, output logic [63:0] c
);
    logic signed [31:0] sum [2];
    logic signed [31:0] next [2];
    logic signed [7:0] factor [2];
    logic [63:0] bank [2];
    logic side;
    for (genvar j = 0; j < 2; j++) begin : column
        assign factor[j] = b[j];
        wire signed [31:0] base = first ? 32'sd0 : sum[j];
        assign next[j] = base + a * factor[j];
        always_ff @(posedge clk) sum[j] <= next[j];
    end
    always_ff @(posedge clk) begin
        if (rst) side <= 0;
        else if (last) side <= !side;
        if (last) bank[side] <= {next[1], next[0]};
    end
    assign c = bank[!side];
endmodule
"""


@dataclass(frozen=True)
class PingPong:
    sources: tuple[Path, ...]
    top: str = "ping_pong"
    dataflow: str = "output_stationary"
    rows: int = 1
    cols: int = 2
    data_width: int = 8
    acc_width: int = 32

    @property
    def parameters(self) -> dict[str, int]:
        return {}

    def cycles(self, shape: TileShape) -> int:
        return 2 + shape.tiles * shape.k

    def stimulus(self, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        tiles, _, k = a.shape
        cycle = np.arange(2 + tiles * k)
        inside = (cycle > 0) & (cycle <= tiles * k)
        of_a, of_b = np.zeros((len(cycle), 1), np.int64), np.zeros((len(cycle), 2), np.int64)
        of_a[inside, 0], of_b[inside] = a.ravel(), b.reshape(-1, 2)
        return {
            "rst": (cycle == 0).astype(np.uint64),
            "first": (inside & (cycle % k == 1 % k)).astype(np.uint64),
            "last": (inside & (cycle % k == 0)).astype(np.uint64),
            "a": designs.pack(of_a, 8),
            "b": designs.pack(of_b, 8),
        }

    def result(self, outputs: Mapping[str, np.ndarray], shape: TileShape) -> np.ndarray:
        read = 1 + (1 + np.arange(shape.tiles)) * shape.k
        return designs.unpack(outputs["c"], 32, 2)[read][:, None]


@pytest.mark.parametrize("level", ["word", "gate"])
def test_array_with_a_memory_and_a_state_that_lasts(tmp_path: Path, level: Any) -> None:
    source = tmp_path / "ping_pong.sv"
    source.write_text(PING_PONG)
    array = ArraySimulator(PingPong((source,)), level)
    assert [memory.words for memory in array.simulator.design.memories][:1] == [2]
    mapping = mappings.OutputStationary(1, 2, 9, 6, 5)
    generator = np.random.default_rng(0)
    a = generator.integers(-128, 128, (2, 9, 6)).astype(np.int8)
    b = generator.integers(-128, 128, (1, 6, 5)).astype(np.int8)
    cycles = array.cycles(mapping)
    for make in (upsets, stuck):
        for kind in ("flip_flops", "memories"):
            rows = make(array, cycles, 150, kind=kind)
            image = generator.integers(0, 2, len(rows))
            plain = array.stream(mapping, a, b, image, rows)
            assert len(plain.fault) > 5
            same(array.errors(mapping, a, b, image, rows), plain)
    assert array._plan(array._shape(mapping)).settles == cycles


# -- adapters that are wrong -------------------------------------------------------------------------------------


def wrong(**methods: Any) -> Any:
    return dataclasses.dataclass(frozen=True)(type("Wrong", (BroadcastArray,), methods))(2, 3)


def refused(array: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        learned(array, 9, 2, 5, 3)


def test_tiles_must_take_equally_long() -> None:
    refused(wrong(cycles=lambda self, shape: 10 + shape.tiles**2), "cycles must grow by 3 with each tile")
    refused(wrong(cycles=lambda self, shape: 10), "cycles is 10 for a tile and 10 for two")


def test_inputs_must_be_those_of_the_design() -> None:
    def stimulus(self: Any, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        found = BroadcastArray.stimulus(self, a, b)
        return found | {"row_of_d": found["row_of_b"]}

    refused(wrong(stimulus=stimulus), "'row_of_d' is not an input of the design.*row_of_b")

    def short(self: Any, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        return {port: values[1:] for port, values in BroadcastArray.stimulus(self, a, b).items()}

    refused(wrong(stimulus=short), r"step has the shape|reset_n has the shape \(.*\); it must be \[cycles\]")


def test_operands_must_be_on_the_ports_as_they_are() -> None:
    def doubled(self: Any, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        return BroadcastArray.stimulus(self, a * 2, b)

    refused(wrong(stimulus=doubled), "operands must be on the ports as they are|not what a shorter stream lets expect")

    def control(self: Any, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        found = BroadcastArray.stimulus(self, a, b)
        return found | {"step": found["step"] & (found["row_of_b"] != 0)}

    refused(wrong(stimulus=control), "step has operands on its 3 bits")


def test_periods_must_be_alike() -> None:
    def sparse(self: Any, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        found = BroadcastArray.stimulus(self, a, b)
        found["reset_n"][60:] = 0
        return found

    array = wrong(stimulus=sparse)
    with pytest.raises(TargetError, match="reset_n in cycle 60 of a stream of"):
        learned(array, 20, 2, 12, 3)


def test_results_must_be_read_as_they_are() -> None:
    def scaled(self: Any, outputs: Mapping[str, np.ndarray], shape: TileShape) -> np.ndarray:
        return 3 * BroadcastArray.result(self, outputs, shape)

    refused(wrong(result=scaled), "every element of C must be read as it is|elements of C must be read as they are")

    def shaped(self: Any, outputs: Mapping[str, np.ndarray], shape: TileShape) -> np.ndarray:
        return BroadcastArray.result(self, outputs, shape).swapaxes(1, 2)

    refused(wrong(result=shaped), r"result has the shape \(.*3, 2\); it must be \[tiles, m, n\] = \(.*2, 3\)")


def test_an_array_that_computes_something_else_is_refused() -> None:
    def swapped(self: Any, outputs: Mapping[str, np.ndarray], shape: TileShape) -> np.ndarray:
        return BroadcastArray.result(self, outputs, shape)[:, ::-1]

    array = ArraySimulator(wrong(result=swapped))
    mapping = mappings.OutputStationary(2, 3, 4, 5, 3)
    a, b = np.ones((1, 4, 5), np.int8), np.ones((1, 5, 3), np.int8)
    rows = upsets(array, 10, 2)
    with pytest.raises(TargetError, match=r"element \(0, 0\) of tile 0 of a stream of random tiles is not A @ B"):
        array.errors(mapping, a, b, np.zeros(2, np.int64), rows)


def test_other_dataflows_are_refused() -> None:
    array = ArraySimulator(wrong(dataflow="row_stationary"))
    mapping = mappings.OutputStationary(2, 3, 4, 5, 3)
    with pytest.raises(TargetError, match="output_stationary on 2 × 3; the array is row_stationary"):
        array.cycles(mapping)
