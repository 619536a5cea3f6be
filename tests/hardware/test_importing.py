"""SystemVerilog that Yosys' own reader refuses, and VHDL: what comes in, against its meaning in Python."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from saboteur.errors import TargetError
from saboteur.levels.hardware import importing
from saboteur.levels.hardware.importing import Netlist, read_design, read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import Simulator, Stimulus
from saboteur.levels.hardware.sites import Sites
from tests.hardware.test_golden import DESIGNS, INPUTS, random_stimulus, random_words

CYCLES = 40
needs_ghdl = pytest.mark.skipif(shutil.which("ghdl") is None, reason="GHDL is not installed")


@pytest.fixture(scope="session")
def slang() -> None:
    """Skip where this Yosys has no slang."""
    try:
        read_verilog([DESIGNS / "automatic.sv"], "Accumulator")
    except TargetError as error:
        if "a recent pyosys has slang" not in str(error):
            raise
        pytest.skip("this Yosys has no slang")


def run(netlist: Netlist, inputs: dict[str, np.ndarray]) -> dict[str, list[int]]:
    simulator = Simulator(Design(netlist))
    trace = simulator.run(Stimulus({port: words[None].astype(np.uint64) for port, words in inputs.items()}))
    assert trace is not None
    outputs = simulator.design.outputs.items()
    return {port: simulator.read(trace[0, : len(inputs["rst"])], pieces).tolist() for port, pieces in outputs}


@pytest.mark.usefixtures("slang")
@pytest.mark.parametrize("level", ["word", "gate"])
def test_variables_in_blocks(level: importing.Level) -> None:
    netlist = read_verilog([DESIGNS / "automatic.sv"], "Accumulator", level)
    widths = {"io_a": 8, "io_sel": 2, "io_valid": 1}
    given = {port: random_words(k, width, 1, CYCLES)[0] for k, (port, width) in enumerate(widths.items())}
    given["rst"] = np.arange(CYCLES) < 2
    simulator = Simulator(Design(netlist))
    named = {"reset" if port == "rst" else port: words[None].astype(np.uint64) for port, words in given.items()}
    trace = simulator.run(Stimulus(named))
    assert trace is not None
    total, table = 0, [0] * 4
    expected: dict[str, list[int]] = {"io_q": [], "io_y": [], "io_z": []}
    for t in range(CYCLES):
        a, select = int(given["io_a"][t]), int(given["io_sel"][t])
        for port, value in {"io_q": table[select], "io_y": (total + 1) % 256, "io_z": (a + 1) % 256}.items():
            expected[port].append(value)
        if given["rst"][t]:
            total, table = 0, [0] * 4
        elif given["io_valid"][t]:
            table[select] = a ^ total
            total = ((a ^ total) + 3) % 256
    for port, pieces in simulator.design.outputs.items():
        assert simulator.read(trace[0, :CYCLES], pieces).tolist() == expected[port], port
    assert sorted(netlist.modules) == ["Accumulator", "Step"]
    registers = {group.name.partition("[")[0] for group in Sites(simulator).groups("flip_flops").values()}
    assert registers == {"sum", "table_0"}
    assert {path for path, _ in simulator.design.instances()} == {"", "first", "second"}


@pytest.mark.usefixtures("slang")
def test_packages_structures_and_interfaces(tmp_path: Path) -> None:
    netlist = read_verilog([DESIGNS / "stream.sv"], "stream", parameters={"N": 4}, include=[DESIGNS])
    reset = np.arange(CYCLES) < 2
    outputs = run(netlist, {"rst": reset})
    data, last = [0] * 4, [0] * 4
    for t in range(1, CYCLES):
        if reset[t - 1]:
            data, last = [0] * 4, [0] * 4
        else:
            last = [int(word & 3 == 3) for word in data]
            data = [(word + step) % 32 for word, step in zip(data, (3, 3, 5, 5), strict=True)]
        assert outputs["data"][t] == sum(word << 5 * i for i, word in enumerate(data))
        assert outputs["last"][t] == sum(bit << i for i, bit in enumerate(last))
    # two lanes step by 3 and two by 5: one module for each
    assert len(netlist.modules) == 3
    assert {path for path, _ in Design(netlist).instances()} == {"", *(f"lane[{i}].from" for i in range(4))}
    moved = tmp_path / "a folder"
    shutil.copytree(DESIGNS, moved)
    again = read_verilog([moved / "stream.sv"], "stream", parameters={"N": 4}, include=[moved])
    assert again.digest == netlist.digest


@pytest.mark.usefixtures("slang")
def test_both_readers_are_heard(tmp_path: Path) -> None:
    source = tmp_path / "t.sv"
    source.write_text(
        "module t(input clk, a, output logic b);\nalways @(posedge clk) begin #3 b <= a; end\nalways @*\n"
    )
    words = rf"{re.escape(str(source))}:\d: ERROR: syntax error.*read by slang: {re.escape(str(source))}:\d: ERROR"
    with pytest.raises(TargetError, match=words):
        read_verilog([source], "t")
    loop = tmp_path / "loop.sv"
    loop.write_text("module t(input a, output logic q);\nalways_comb begin q = 0; while (a) q = ~q; end\nendmodule\n")
    with pytest.raises(TargetError, match=r"loop\.sv:2: ERROR: unroll limit"):
        read_verilog([loop], "t")


def test_without_slang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Yosys' own reader said, and what to install."""
    whole = importing._run_yosys

    def without(script: list[str], links: dict[str, Path]) -> dict:
        if any("slang" in line for line in script):
            raise TargetError("sources: ERROR: No such command: read_slang (type 'help' for a command overview)")
        return whole(script, links)

    monkeypatch.setattr(importing, "_run_yosys", without)
    with pytest.raises(TargetError, match=r"automatic\.sv:\d+: ERROR:.*; a recent pyosys has slang"):
        read_verilog([DESIGNS / "automatic.sv"], "Accumulator")


@needs_ghdl
@pytest.mark.parametrize("level", ["word", "gate"])
def test_vhdl(level: importing.Level) -> None:
    netlist = read_design([DESIGNS / "counter.vhd"], "Counter", level, {"step": 3})
    reset, enable = np.ones(CYCLES, np.int64), random_words(4, 1, 1, CYCLES)[0].astype(np.int64)
    reset[[0, 1, 20]] = 0
    simulator = Simulator(Design(netlist))
    words = {"rst_n": reset[None].astype(np.uint64), "enable": enable[None].astype(np.uint64)}
    trace = simulator.run(Stimulus(words))
    assert trace is not None
    count, expected = 0, []
    for t in range(CYCLES):
        count = count if reset[t] else 0
        expected.append(count)
        count = (count + 3 * int(enable[t])) % 16 if reset[t] else 0
    assert simulator.read(trace[0, :CYCLES], simulator.design.outputs["count"]).tolist() == expected
    assert {path for path, _ in simulator.design.instances()} == {"", "adder"}
    registers = {group.name.partition("[")[0] for group in Sites(simulator).groups("flip_flops").values()}
    assert registers <= {"count", "value"}


@needs_ghdl
def test_bad_vhdl(tmp_path: Path) -> None:
    source = tmp_path / "bad.vhd"
    source.write_text((DESIGNS / "counter.vhd").read_text().replace("value <= following", "value <= folowing"))
    with pytest.raises(TargetError, match=rf'{re.escape(str(source))}:35:18: no declaration for "folowing"'):
        read_design([source], "Counter")
    with pytest.raises(TargetError, match="cannot find entity or configuration conter"):
        read_design([DESIGNS / "counter.vhd"], "Conter")
    with pytest.raises(TargetError, match="VHDL and Verilog in one design"):
        read_design([DESIGNS / "counter.vhd", DESIGNS / "counter.v"], "counter")


def test_without_ghdl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing.shutil, "which", lambda name: None)
    with pytest.raises(TargetError, match="VHDL needs GHDL, which is not installed"):
        read_design([DESIGNS / "counter.vhd"], "Counter")


@pytest.mark.parametrize("script", ["synth -top counter", "prep -top counter; alumacc", "synth -top counter -lut 4"])
@pytest.mark.parametrize("level", ["word", "gate"])
def test_netlists_of_any_stage(script: str, level: importing.Level, tmp_path: Path) -> None:
    """Flip-flops with enables and asynchronous resets, as other Yosys scripts leave them."""
    source = {"counter.v": DESIGNS / "counter.v"}
    design = importing._run_yosys(["read_verilog -sv counter.v", *script.split("; ")], source)
    (tmp_path / "netlist.json").write_text(json.dumps(design))
    given = read_design([tmp_path / "netlist.json"], "counter", level)
    stimulus = random_stimulus("counter", INPUTS["counter"], runs=1)
    outputs = []
    for netlist in (given, read_verilog([DESIGNS / "counter.v"], "counter")):
        simulator = Simulator(Design(netlist))
        trace = simulator.run(stimulus)
        assert trace is not None
        ports = simulator.design.outputs
        outputs.append([simulator.read(trace[0, :-1], ports[port]).tolist() for port in ("count", "wrap")])
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("before", [[], ["read_liberty -lib small.lib"], ["read_liberty small.lib"]])
def test_mapped_netlists(before: list[str], tmp_path: Path) -> None:
    """Cells of the library stay, whether the netlist says what they are or not."""
    cells = Path(__file__).parent / "cells" / "small.lib"
    script = [*before, "read_verilog -sv counter.v", "synth -top counter", "dfflibmap -liberty small.lib"]
    links = {"counter.v": DESIGNS / "counter.v", "small.lib": cells}
    design = importing._run_yosys([*script, "abc -liberty small.lib"], links)
    (tmp_path / "netlist.json").write_text(json.dumps(design))
    netlist = read_design([tmp_path / "netlist.json"], "counter", "gate", liberty=[cells])

    def kinds(modules: dict) -> list[str]:
        return sorted(cell["type"] for cell in modules["counter"]["cells"].values())

    assert kinds(dict(netlist.modules)) == kinds(design["modules"])
    assert Design(netlist).clock == "clk"
