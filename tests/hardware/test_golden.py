"""Fault-free runs of small designs equal Icarus' at both levels."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import Simulator, Stimulus
from tests.hardware.icarus import agree, needs_icarus, simulate

DESIGNS = Path(__file__).parent / "designs"
CYCLES = 60


def random_words(seed: int, width: int, runs: int, cycles: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    words = np.zeros((runs, cycles), object)
    for low in range(0, width, 32):
        words = words | (rng.integers(0, 2**32, (runs, cycles), np.uint64).astype(object) << low)
    words &= (1 << width) - 1
    return words if width > 64 else words.astype(np.uint64)


def random_stimulus(name: str, widths: dict[str, int], runs: int, cycles: int = CYCLES) -> Stimulus:
    inputs = {port: random_words(k, width, runs, cycles) for k, (port, width) in enumerate(widths.items())}
    if "rst" in inputs:
        inputs["rst"][:] = 0
        inputs["rst"][:, :2] = 1
    if "rst_n" in inputs:
        inputs["rst_n"][:] = 1
        inputs["rst_n"][:, [0, 1, cycles // 2]] = 0
    return Stimulus(inputs)


INPUTS: dict[str, dict[str, int]] = {
    "counter": {"rst_n": 1, "enable": 1, "load": 1, "start": 4},
    "latch": {"rst": 1, "open_": 1, "d": 4},
    "alu": {"op": 5, "a": 16, "b": 12, "sa": 16, "sb": 10},
    "fifo": {"rst": 1, "push": 1, "pop": 1, "din": 8, "lanes": 2},
    "wide": {"rst": 1, "a": 100, "b": 130, "k": 6, "s": 1},
    "ripple": {"a": 8, "b": 8},
    "multiplier": {"a": 8, "b": 8},
    "array": {"rst": 1, "clear": 8, "en": 8, "a": 64, "b": 64},
}


@needs_icarus
@pytest.mark.parametrize("level", ["word", "gate"])
@pytest.mark.parametrize("name", INPUTS)
def test_equals_icarus(name: str, level: str) -> None:
    source = DESIGNS / f"{name}.v"
    design = Design(read_verilog([source], name, level))
    simulator = Simulator(design)
    stimulus = random_stimulus(name, INPUTS[name], runs=3)
    trace = simulator.run(stimulus)
    widths = {port: sum(piece[2] for piece in pieces) for port, pieces in design.outputs.items()}
    for run in range(2):
        inputs = {port: (INPUTS[name][port], words[run].tolist()) for port, words in stimulus.inputs.items()}
        theirs = simulate([source], name, inputs, widths)
        for port, pieces in design.outputs.items():
            ours = simulator.read(trace[run, :CYCLES], pieces)
            assert agree(ours.tolist(), theirs[port]), port


def test_code_is_vectorised() -> None:
    """64 machines cost far less than 64 times one: the loop over the lanes is SIMD code."""
    design = Design(read_verilog([DESIGNS / "array.v"], "array"))
    simulator = Simulator(design)
    many = random_stimulus("array", INPUTS["array"], runs=1, cycles=4000)
    runs = np.zeros(simulator.lanes, np.int64)

    def seconds() -> float:
        begin = time.process_time()
        simulator.run(many, runs, keep=False)
        return time.process_time() - begin

    cells = sum(len(part.cells) for part in simulator.compiled.slices) * 64
    operations = cells * many.cycles * simulator.lanes
    best = min(seconds() for _ in range(3))
    assert operations / best > 4e9, f"{operations / best:.3g} word operations a second"


@pytest.mark.parametrize("level", ["word", "gate"])
def test_generated_code(level: str) -> None:
    """What a generator writes: packed arrays, casts, parts for simulators only; against its meaning in Python."""
    design = Design(read_verilog([DESIGNS / "generated.sv"], "PE_256", level))
    simulator = Simulator(design)
    widths = {"reset": 1, "io_in_a": 8, "io_in_b": 20, "io_in_d": 20, "io_sel": 2, "io_valid": 1}
    inputs = {port: random_words(k, width, 1, CYCLES) for k, (port, width) in enumerate(widths.items())}
    inputs["reset"][:] = np.arange(CYCLES) < 2
    trace = simulator.run(Stimulus(inputs))
    values = {port: words[0].tolist() for port, words in inputs.items()}

    def signed(word: int, width: int) -> int:
        return word - (word >> (width - 1) << width)

    c1 = c2 = 0
    table, expected = [0] * 4, []
    for t in range(CYCLES):
        now = {port: words[t] for port, words in values.items()}
        expected.append(c2 & 0xFFFFF ^ table[now["io_sel"]])
        picked = (c1 + c2, signed(now["io_in_d"], 20), c2, c1)[now["io_sel"]]
        product = signed(now["io_in_b"], 20) * signed(now["io_in_a"], 8)
        if now["reset"]:
            c1, c2, table = 0, 0, [0] * 4
        elif now["io_valid"]:
            c1, c2 = (picked + product) & 0xFFFFFFFF, c1
            table[now["io_sel"]] = now["io_in_a"]
    assert simulator.read(trace[0, :CYCLES], design.outputs["io_out_c"]).tolist() == expected
