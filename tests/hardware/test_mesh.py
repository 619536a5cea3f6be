"""A mesh that another tool wrote: imported as it is, and upsets of its registers equal Verilator's, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from benchmarks import _mesh

from saboteur.faults import BitFlip
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.simulate import Stimulus, Watch
from saboteur.levels.hardware.spec import HardwareFault
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from saboteur.testing.targets import draw_faults
from tests.hardware.test_golden import DESIGNS

CYCLES, FAULTS = 48, 300
HARNESS = """
#include "Vmesh.h"
#include "Vmesh___024root.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
static const uint64_t in[][{ports}] = {{{inputs}}};
static const int fault[][3] = {{{faults}}};
static void upset(Vmesh *m, int which, int bit) {{
    switch (which) {{ {cases} }}
}}
int main() {{
    for (auto &f : fault) {{
        Vmesh *m = new Vmesh;
        for (int t = 0; t < {cycles}; t++) {{
            {apply}
            m->clock = 0; m->eval();
            if (t == f[2]) {{ upset(m, f[0], f[1]); m->eval(); }}
            {show}
            m->clock = 1; m->eval();
        }}
        delete m;
    }}
}}
"""


def mesh_target() -> DesignTarget:
    rng = np.random.default_rng(1)
    inputs = {port: rng.integers(0, 1 << bits, (1, CYCLES), np.uint64) for port, bits in _mesh.ports(2).items()}
    for k in range(2):
        inputs[f"in_valid_{k}"][:] = rng.random(CYCLES) < 0.9
    inputs["reset"] = (np.arange(CYCLES) < 2).astype(np.uint64)[None]
    observation = Observation(tuple(map(Observed, _mesh.outputs(2))), strobe=np.arange(CYCLES) >= 16)
    return DesignTarget(read_verilog([DESIGNS / "mesh.sv"], "Mesh"), Stimulus(inputs), observation, first_cycle=3)


@pytest.mark.skipif(shutil.which("verilator") is None, reason="Verilator is not installed")
def test_upsets_equal_verilator(tmp_path: Path) -> None:
    target = mesh_target()
    space = target.space([HardwareFault(where="flip_flops", model=BitFlip(), duration="transient")])
    faults = draw_faults(space, FAULTS)
    rows, golden = target.rows(space, faults), target.golden_trace(0)
    outputs = _mesh.outputs(2)
    slots = sorted({piece[0] for pieces in target.simulator.design.outputs.values() for piece in pieces})
    watch = Watch(np.array(slots, np.int32), np.ones((CYCLES, len(slots)), np.bool_))
    found = target.simulator.respond(golden, [], watch, rows, FAULTS).differences
    trace = np.repeat(golden[None, :CYCLES], FAULTS, axis=0)
    trace[found["fault"], found["cycle"], watch.slots[found["output"]]] = found["value"]
    ours = np.stack([target.simulator.read(trace, target.simulator.design.outputs[p]) for p in outputs], axis=2)
    assert len(np.unique(found["fault"])) > FAULTS // 2

    inputs = target.stimulus.inputs
    words = "}, {".join(", ".join(f"{inputs[p][0, t]}ull" for p in inputs) for t in range(CYCLES))
    registers = [_in_verilator(region.site) for region in space.regions]
    variant, step = faults.variant.tolist(), (faults.step + 3).tolist()
    table = zip(faults.region.tolist(), variant, step, strict=True)
    text = HARNESS.format(
        ports=len(inputs),
        cycles=CYCLES,
        inputs=f"{{{words}}}",
        faults=", ".join(f"{{{r}, {b}, {t}}}" for r, b, t in table),
        cases=" ".join(f"case {k}: m->rootp->{name} ^= 1u << bit; break;" for k, name in enumerate(registers)),
        apply=" ".join(f"m->{port} = in[t][{k}];" for k, port in enumerate(inputs)),
        show=" ".join(f'std::printf("%u ", (unsigned)m->{port});' for port in outputs) + ' std::printf("\\n");',
    )
    (tmp_path / "harness.cpp").write_text(text)
    command = ["verilator", "--cc", "--exe", "--build", "-O3", "--public-flat-rw", "-Wno-fatal", "-DSYNTHESIS"]
    command += ["--x-initial", "fast", "--x-assign", "fast", "--prefix", "Vmesh", "--top-module", "Mesh"]
    command += ["--Mdir", str(tmp_path / "built"), "-MAKEFLAGS", "OPT_FAST=-O0 OPT_GLOBAL=-O0", "-o", "run"]
    subprocess.run([*command, str(DESIGNS / "mesh.sv"), str(tmp_path / "harness.cpp")], check=True, capture_output=True)
    run = subprocess.run([str(tmp_path / "built" / "run")], check=True, capture_output=True, text=True)
    theirs = np.array(run.stdout.split(), np.int64).reshape(FAULTS, CYCLES, len(outputs))
    assert (theirs == ours.astype(np.int64)).all()


def _in_verilator(register: str) -> str:
    """``out_id_0`` is another name of the register ``id_1_0``."""
    if register.startswith("out_"):
        _, word, column = register.split("_")
        register = f"{word}_1_{column}"
    return "Mesh__DOT__" + register.replace(".", "__DOT__")


@pytest.mark.skipif(find_spec("circt") is None, reason="CIRCT is not installed")
def test_the_fixture_is_what_circt_writes() -> None:
    kept = (DESIGNS / "mesh.sv").read_text().split("\n", 1)[1]
    written = [line.split("//")[0].rstrip() for line in _mesh.verilog(2).splitlines()]
    assert [line for line in written if line] == [line.split("//")[0].rstrip() for line in kept.splitlines() if line]
