"""The hardware level against Verilator simulating one faulty machine at a time.

Verilator runs the same design on the same stimulus from reset, compiled with -O3 for this processor. It is charged
for no injection, no comparison and no checkpoint: it only runs, so that every ratio errs in its favour. Before it is
timed, the outputs of its run are compared with ours, bit by bit in every cycle. All times are CPU seconds of one core.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from benchmarks import _mesh
from numpy.typing import NDArray

from saboteur.campaign.target import Resources
from saboteur.faults import BitFlip
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.collapse import collapse
from saboteur.levels.hardware.importing import read_verilog, write_verilog
from saboteur.levels.hardware.simulate import Stimulus
from saboteur.levels.hardware.spec import HardwareFault, HardwareTarget
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from saboteur.testing.targets import draw_faults

Row = dict[str, object]

_FAULTS = 20_000
_PRIME = 0x100000001B3
_HARNESS = """
#include "V{top}.h"
#include "verilated.h"
#include <cstdio>
#include <ctime>
#include <cstdint>
#include <vector>
{data}
int main() {{
    Verilated::randReset(0);
    V{top} *m = new V{top};
    uint64_t sum = 0, digest = 0;
    for (int t = 0; t < {cycles}; t++) {{
        {apply}
        m->{clock} = 0; m->eval();
        {look}
        m->{clock} = 1; m->eval();
    }}
    delete m;
    m = new V{top};
    std::clock_t begin = std::clock();
    long runs = 0;
    do {{
        for (int t = 0; t < {cycles}; t++) {{
            {apply}
            m->{clock} = 0; m->eval();
            sum += {output};
            m->{clock} = 1; m->eval();
        }}
        runs++;
    }} while (std::clock() - begin < {seconds} * CLOCKS_PER_SEC);
    double seconds = double(std::clock() - begin) / CLOCKS_PER_SEC;
    std::printf("%ld %f %llu %llu\\n", runs, seconds, (unsigned long long)digest, (unsigned long long)sum);
}}
"""


def word(full: bool = False) -> list[Row]:
    """Register upsets at word level on the output-stationary array running a random tile of depth 128."""
    rows: list[Row] = []
    for size in (8, 16) if full else (8,):
        target = _array(size, "word")
        cycles = target.stimulus.cycles
        reference = _verilator(target, designs.sources("output_stationary"), {"ROWS": size, "COLS": size})
        plain = _plain_cycles(target)
        simulated, answered = _upsets(target)
        where, serial = f"{size}x{size}", _divided(reference, cycles)
        rows += [
            _row("hardware.word", f"{where}: faulty cycles simulated", plain, "cycles/s", reference),
            _row("hardware.word", f"{where}: upsets simulated", simulated, "faults/s", serial),
            _row(
                "hardware.word", f"{where}: upsets, list to outcomes", answered, "faults/s", _divided(reference, cycles)
            ),
        ]
    return rows + _wide_mesh(16 if full else 8) + _network()


def gate(full: bool = False) -> list[Row]:
    """All collapsed stuck-at faults of the synthesised output-stationary array on a random tile of depth 128."""
    rows: list[Row] = []
    size = 2
    target = _array(size, "gate")
    with tempfile.TemporaryDirectory() as folder:
        netlist = Path(folder, "gates.v")
        write_verilog(target.netlist, netlist)
        reference = _verilator(target, [netlist], {})
    speed, faults, _ = _stuck_at(target, runs=1)
    label = f"{size}x{size}: stuck-at, machine cycles covered"
    rows.append(_row("hardware.gate", label, speed, "cycles/s", reference))
    target = _array(8, "gate", tiles=100 if full else 1)
    speed, faults, seconds = _stuck_at(target, runs=target.stimulus.runs)
    rows.append(_row("hardware.gate", "8x8: collapsed stuck-at faults", faults, "faults"))
    label = f"8x8: all of them on {target.stimulus.runs} tile(s)"
    rows.append(_row("hardware.gate", label, seconds, "s"))
    return rows


def _row(benchmark: str, quantity: str, value: float, unit: str, baseline: float | None = None) -> Row:
    ratio = None if baseline is None else value / baseline
    return dict(benchmark=benchmark, quantity=quantity, value=value, unit=unit, baseline=baseline, ratio=ratio)


def _divided(rate: float | None, by: int) -> float | None:
    return None if rate is None else rate / by


def _array(size: int, level: str, tiles: int = 1) -> DesignTarget:
    spec = HardwareTarget(array="output_stationary", parameters={"rows": size, "cols": size}, level=level, inputs=tiles)
    target = spec.open(Resources())
    assert isinstance(target, DesignTarget)
    target.golden()
    return target


def _plain_cycles(target: DesignTarget) -> float:
    """Faulty cycles a second with every node computed in every cycle, an upset in each machine."""
    lanes = target.simulator.lanes
    runs = np.zeros(16 * lanes, np.int64)
    space = target.space([HardwareFault(where="flip_flops", model=BitFlip(), duration="transient")])
    rows = target.rows(space, draw_faults(space, len(runs)))
    target.simulator.run(target.stimulus, runs[:lanes], keep=False)
    begin = time.process_time()
    target.simulator.run(target.stimulus, runs, rows, keep=False)
    return len(runs) * target.stimulus.cycles / (time.process_time() - begin)


def _upsets(target: DesignTarget) -> tuple[float, float]:
    """Upsets a second: the simulation alone, and from a list of faults to what became of each."""
    space = target.space([HardwareFault(where="flip_flops", model=BitFlip(), duration="transient")])
    faults = draw_faults(space, _FAULTS)
    target.outcomes(space, faults, 0)
    begin = time.process_time()
    target.outcomes(space, faults, 0)
    answered = time.process_time() - begin
    trace, rows = target.golden_trace(0), target.rows(space, faults)
    rows = rows[np.lexsort((rows["on"], rows["place"]))]
    rows["fault"] = np.arange(len(rows))
    watch = target.observer.watch(trace)
    begin = time.process_time()
    target.simulator.respond(trace, [], watch, rows, len(rows))
    return _FAULTS / (time.process_time() - begin), _FAULTS / answered


def _stuck_at(target: DesignTarget, runs: int) -> tuple[float, int, float]:
    """Machine cycles covered a second, faults, and seconds, for all collapsed faults; compiling is not counted."""
    simulator = target.simulator
    collapsed = collapse(target.sites, simulator.design)
    rows = collapsed.rows(target.stimulus.cycles)
    trace = target.golden_trace(0)
    simulator.respond(trace, [], target.observer.watch(trace), rows[:1], 1)
    begin = time.process_time()
    for run in range(runs):
        trace = target.golden_trace(run)
        simulator.respond(trace, [], target.observer.watch(trace), rows, len(rows))
    seconds = time.process_time() - begin
    return len(rows) * target.stimulus.cycles * runs / seconds, len(rows), seconds


def _wide_mesh(size: int) -> list[Row]:
    """A mesh as CIRCT writes it, on random operands and controls."""
    name, label = "hardware.word", f"{size}x{size} mesh of CIRCT: faulty cycles simulated"
    if find_spec("circt") is None:
        print(f"{name}: {label}: left out, needs: pip install circt", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "mesh.sv")
        source.write_text(_mesh.verilog(size))
        cycles = 256
        drawn = np.random.default_rng(0)
        inputs = {
            port: drawn.integers(0, 1 << bits, (1, cycles), np.uint64) for port, bits in _mesh.ports(size).items()
        }
        for k in range(size):
            inputs[f"in_shift_{k}"] %= np.uint64(12)
            inputs[f"in_valid_{k}"][:] = drawn.random(cycles) < 0.9
        inputs["reset"] = (np.arange(cycles) < 2).astype(np.uint64)[None]
        observation = Observation(tuple(map(Observed, _mesh.outputs(size))), strobe=np.arange(cycles) >= 8 * size)
        netlist = read_verilog([source], "Mesh")
        target = DesignTarget(netlist, Stimulus(inputs), observation, first_cycle=2)
        target.golden()
        reference = _verilator(target, [source], {})
    return [_row(name, label, _plain_cycles(target), "cycles/s", reference)]


def _network() -> list[Row]:
    """A LeNet-style CNN of seven layers, end to end at register-transfer level."""
    begin = time.process_time()
    target = HardwareTarget(network="digits-lenet7-int8", inputs=1).open(Resources())
    assert isinstance(target, DesignTarget)
    target.golden()
    opened = time.process_time() - begin
    begin = time.process_time()
    target.simulator.run(target.stimulus, keep=False)
    golden = time.process_time() - begin
    space = target.space([HardwareFault(where="flip_flops", model=BitFlip(), duration="transient")])
    faults = draw_faults(space, 1000)
    begin = time.process_time()
    target.answers(space, faults, 0)
    seconds = time.process_time() - begin
    name, published = "hardware.word", "an inference (25 min in Ruospo et al., DFT 2020)"
    return [
        _row(name, "LeNet-style CNN: open and first golden run", opened, "s"),
        _row(name, f"LeNet-style CNN: {published}", golden, "s"),
        _row(name, "LeNet-style CNN: 1,000 register upsets", seconds, "s"),
    ]


# -- Verilator -----------------------------------------------------------------------------------------------------


def _verilator(target: DesignTarget, sources: Sequence[Path], parameters: Mapping[str, int]) -> float | None:
    """Cycles a second of one machine; None where Verilator is not installed.

    Raises:
        AssertionError: when any output differs from ours in any cycle.
    """
    if shutil.which("verilator") is None:
        return None
    top = target.netlist.top if not parameters else "output_stationary"
    with tempfile.TemporaryDirectory() as folder:
        harness = Path(folder, "harness.cpp")
        harness.write_text(_harness(target, "design", seconds=2.0))
        command = ["verilator", "--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--x-initial", "fast"]
        command += ["--noassert", "-Wno-fatal", "--prefix", "Vdesign", "--top-module", top, "--Mdir", folder]
        command += ["-CFLAGS", "-O3 -march=native", "-o", "run", *(f"-G{k}={v}" for k, v in parameters.items())]
        subprocess.run([*command, *map(str, sources), str(harness)], check=True, capture_output=True)
        run = subprocess.run([str(Path(folder, "run"))], check=True, capture_output=True, text=True)
    runs, seconds, digest, _ = run.stdout.split()
    assert int(digest) == _digest(target), "Verilator's outputs differ from ours"
    return int(runs) * target.stimulus.cycles / float(seconds)


def _harness(target: DesignTarget, top: str, seconds: float) -> str:
    data, apply = [], []
    design = target.simulator.design
    for port, values in target.stimulus.inputs.items():
        width = sum(bits for _, _, bits, _ in design.inputs[port])
        words = _words(values[0], width)
        table = ", ".join(f"{word}u" for word in words.ravel())
        data.append(f"static const uint32_t {port}_at[{len(words)}][{words.shape[1]}] = {{{table}}};")
        if width <= 32:
            apply.append(f"m->{port} = {port}_at[t][0];")
        elif width <= 64:
            apply.append(f"m->{port} = {port}_at[t][0] | (uint64_t){port}_at[t][1] << 32;")
        else:
            apply += [f"m->{port}[{k}] = {port}_at[t][{k}];" for k in range(words.shape[1])]
    look = []
    for port, pieces in design.outputs.items():
        width = sum(bits for _, _, bits, _ in pieces)
        if width > 64:
            words = [f"m->{port}[{k}]" for k in range((width + 31) // 32)]
        else:
            words = [f"(uint32_t)m->{port}", f"(uint32_t)((uint64_t)m->{port} >> 32)"][: (width + 31) // 32]
        look += [f"digest = (digest ^ {word}) * {_PRIME}ull;" for word in words]
    observed = target.observer.ports[0]
    wide = sum(bits for _, _, bits, _ in design.outputs[observed]) > 64
    return _HARNESS.format(
        top=top,
        data="\n".join(data),
        apply=" ".join(apply),
        look=" ".join(look),
        clock=design.clock,
        cycles=target.stimulus.cycles,
        output=f"m->{observed}{'[0]' * wide}",
        seconds=seconds,
    )


def _digest(target: DesignTarget) -> int:
    """What the harness makes of all outputs of the first run."""
    trace, simulator = target.golden_trace(0)[:-1], target.simulator
    columns = [
        _words(simulator.read(trace, pieces), sum(bits for _, _, bits, _ in pieces))
        for pieces in simulator.design.outputs.values()
    ]
    digest = 0
    for word in np.concatenate(columns, axis=1).ravel().tolist():
        digest = ((digest ^ word) * _PRIME) & 0xFFFFFFFFFFFFFFFF
    return digest


def _words(values: NDArray, width: int) -> NDArray[np.uint32]:
    parts = [(values >> low) & 0xFFFFFFFF for low in range(0, width, 32)]
    return np.stack([part.astype(np.uint32) for part in parts], axis=1)
