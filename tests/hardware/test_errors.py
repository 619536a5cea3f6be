"""What cannot be simulated is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from saboteur.campaign.target import Resources
from saboteur.errors import FaultError, TargetError
from saboteur.faults import BitFlip, Noise
from saboteur.levels.hardware.importing import from_json, read_verilog
from saboteur.levels.hardware.models import Delay
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import Simulator, Stimulus
from saboteur.levels.hardware.spec import HardwareFault, HardwareTarget
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from tests.hardware.test_golden import DESIGNS, INPUTS, random_stimulus


def elaborate(folder: Path, text: str, top: str = "t") -> Design:
    source = folder / "broken.v"
    source.write_text(text)
    return Design(read_verilog([source], top))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("module t(input a, output b);\nassign b = ;\nendmodule", r"broken\.v:2.*syntax error"),
        ("module t(input a, output b);\nmissing m(a, b);\nendmodule", r"missing"),
        ("module t(input a, input b, output y);\nassign y = a ? b : 1'bz;\nendmodule", r"broken\.v:2.*Z"),
        ("module t(input a, inout b);\nassign b = a;\nendmodule", r"t\.b: a bidirectional port at broken\.v:1"),
        ("module t(input a,\noutput y);\nassign y = 1'bz;\nendmodule", r"t\.y: is Z at broken\.v:2"),
        (
            "module t(input c, a, b,\noutput reg y);\n"
            "always @(posedge c) y <= a;\nalways @(negedge c) y <= b;\nendmodule",
            r"t\.y: has several drivers at broken\.v:2",
        ),
        (
            "module t(input a, b, output logic y);\nalways_comb if (a) y = b;\nendmodule",
            r"Latch inferred for signal.*broken\.v:2",
        ),
        (
            "module t(input c, a, output reg q);\nalways @(posedge c) fork q <= a; join\nendmodule",
            r"broken\.v:2: ERROR",
        ),
        (
            "module t(input c, a, output reg q);\nreal r;\nalways @(posedge c) r = r + 0.5;\nendmodule",
            r"broken\.v:2: ERROR",
        ),
        (
            "module t(input c, a, output reg q);\nalways @(posedge c) begin q <= a; @(negedge c); end\nendmodule",
            r"v:2: ERROR",
        ),
        (
            "module t(input a, input b, output y);\nwire p = ~(a & q), q = ~(b & p);\nassign y = p;\nendmodule",
            r"loop.*[pq] at broken\.v:2",
        ),
    ],
)
def test_designs(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        elaborate(tmp_path, text)


def test_loop_through_instances(tmp_path: Path) -> None:
    text = (
        "module inverter(input a, output y);\nassign y = ~a;\nendmodule\n"
        "module t(output y);\nwire x;\ninverter u(x, y);\ninverter v(y, x);\nendmodule"
    )
    with pytest.raises(TargetError, match=r"loop through .*[uv]\.y at broken\.v:2"):
        elaborate(tmp_path, text)


def test_names_with_spaces_and_includes(tmp_path: Path) -> None:
    folder = tmp_path / "my files"
    folder.mkdir()
    (folder / "width.vh").write_text("`define WIDTH 4\n")
    (folder / "my t.v").write_text(
        '`include "width.vh"\nmodule t(input [`WIDTH-1:0] a, output y); assign y = ^a; endmodule'
    )
    netlist = read_verilog([folder / "my t.v"], "t")
    assert len(netlist.modules["t"]["ports"]["a"]["bits"]) == 4
    assert str(tmp_path) not in str(netlist.modules)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no file"):
        read_verilog([tmp_path / "none.v"], "t")
    with pytest.raises(TargetError, match="parameters: counter has no parameter 'WIDTH'"):
        read_verilog([DESIGNS / "counter.v"], "counter", parameters={"WIDTH": 8})
    with pytest.raises(TargetError, match="level"):
        read_verilog([DESIGNS / "counter.v"], "counter", "transistor")
    with pytest.raises(TargetError, match="cannot read"):
        from_json(tmp_path / "none.json")
    with pytest.raises(TargetError, match=r"no module 'couter'.*'counter'"):
        from_json({"modules": {"counter": {"cells": {}, "ports": {}, "netnames": {}}}}, "couter")


def counter(**settings: object) -> DesignTarget:
    stimulus = random_stimulus("counter", INPUTS["counter"], runs=2)
    observation = settings.pop("observation", Observation((Observed("count"),)))
    netlist = read_verilog([DESIGNS / "counter.v"], "counter")
    return DesignTarget(netlist, settings.pop("stimulus", stimulus), observation, **settings)


def test_testbenches() -> None:
    with pytest.raises(TargetError, match=r"'cuont' is not an output.*'count'"):
        counter(observation=Observation((Observed("cuont"),)))
    with pytest.raises(TargetError, match="3 lanes must share"):
        counter(observation=Observation((Observed("count", lanes=3),)))
    with pytest.raises(TargetError, match=r"'enabel' is not an input.*'enable'"):
        counter(stimulus=Stimulus({"enabel": np.zeros((1, 9), np.uint64)})).golden()
    with pytest.raises(TargetError, match=r"alarm wrap is raised in cycle \d+ of input 0"):
        counter(observation=Observation((Observed("count"),), alarms=("wrap",))).golden()
    with pytest.raises(TargetError, match="same number of words"):
        counter(observation=Observation((Observed("count"),), valid="wrap")).golden()


def test_unknown_outputs() -> None:
    """A counter that is never reset gives X."""
    inputs = {"rst_n": np.ones((1, 9), np.uint64), "enable": np.ones((1, 9), np.uint64)}
    with pytest.raises(TargetError, match=r"count is unknown \(X\) in cycle 0.*reset the design"):
        counter(stimulus=Stimulus(inputs)).golden()


def test_undriven_nets(tmp_path: Path) -> None:
    """A net that nothing drives, and an input of an instance that is left open: unknown where they are seen."""
    source = tmp_path / "open.v"
    source.write_text(
        "module inner(input a, b, output y, z);\nassign y = a ^ b;\nassign z = a;\nendmodule\n"
        "module t(input a, output y, z);\nwire n;\ninner u(.a(a), .y(y), .z(z));\nendmodule\n"
        "module n(input a, output y);\nwire w;\nassign y = a & w;\nendmodule\n"
    )
    stimulus = Stimulus({"a": np.ones((1, 64), np.uint64)})

    def opened(top: str, port: str) -> DesignTarget:
        return DesignTarget(read_verilog([source], top), stimulus, Observation((Observed(port),)))

    for top in ("t", "n"):
        with pytest.raises(TargetError, match=r"y is unknown \(X\) in cycle 0: .*, or on a net that nothing drives"):
            opened(top, "y").golden()
    assert (opened("t", "z").golden().outputs == 1).all()


def test_unknown_words_and_values(tmp_path: Path) -> None:
    """Words of a memory that nothing wrote, and X where it is chosen; a register of one bit is found as well."""
    source = tmp_path / "unknown.v"
    source.write_text(
        "module ram(input clk, we, input [1:0] a, input [7:0] d, output [7:0] q);\n"
        "reg [7:0] m [0:3];\ninitial m[2] = 8'd9;\n"
        "always @(posedge clk) if (we) m[a] <= d;\nassign q = m[a];\nendmodule\n"
        "module pick(input [1:0] a, input [7:0] d, output reg [7:0] q);\n"
        "always @* case (a) 2'd0: q = d; 2'd1: q = ~d; 2'd2: q = d + 8'd1; default: q = 8'bx; endcase\nendmodule\n"
        "module bit_(input clk, input a, output q);\nreg r;\n"
        "always @(posedge clk) r <= r;\nassign q = r & a;\nendmodule\n"
    )

    def golden(top: str, **inputs: list[int]) -> list[int]:
        stimulus = Stimulus({port: np.array([words], np.uint64) for port, words in inputs.items()})
        target = DesignTarget(read_verilog([source], top), stimulus, Observation((Observed("q"),)))
        return target.golden().outputs[0].tolist()

    assert golden("ram", a=[2, 2, 2], we=[0, 1, 0], d=[1, 7, 0]) == [9, 9, 7]
    with pytest.raises(TargetError, match=r"q is unknown \(X\) in cycle 1: it depends on a register or memory"):
        golden("ram", a=[2, 1, 2], we=[0, 1, 0], d=[1, 7, 0])
    assert golden("pick", a=[0, 1, 2], d=[3, 3, 3]) == [3, 252, 4]
    with pytest.raises(TargetError, match=r"q is unknown \(X\) in cycle 2: .* on X"):
        golden("pick", a=[0, 1, 3], d=[3, 3, 3])
    with pytest.raises(TargetError, match=r"q is unknown \(X\) in cycle 2"):
        golden("bit_", a=[0, 0, 1])


def test_black_boxes(tmp_path: Path) -> None:
    source = tmp_path / "box.v"
    source.write_text(
        "(* blackbox *) module macro(input a, output y);\nendmodule\n"
        "module t(input a, output y);\nmacro u(.a(a), .y(y));\nendmodule\n"
    )
    with pytest.raises(TargetError, match="macro is a black box"):
        read_verilog([source], "t")


def test_faults() -> None:
    target = counter()
    with pytest.raises(FaultError, match="names: no flip_flops match cuont; did you mean 'count'"):
        target.space([HardwareFault(where="flip_flops", names="cuont", model=BitFlip())])
    with pytest.raises(FaultError, match="instances: none matches 'pe'"):
        target.space([HardwareFault(where="flip_flops", instances="pe", model=BitFlip())])
    with pytest.raises(FaultError, match="delay is a fault of nets"):
        target.space([HardwareFault(where="flip_flops", model=Delay())])
    noisy = target.space([HardwareFault(where="flip_flops", model=Noise(additive=1.0))])
    from saboteur.testing.targets import draw_faults

    with pytest.raises(FaultError, match="does not act bit by bit"):
        target.rows(noisy, draw_faults(noisy, 1))


def test_specs(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="name one of network, array and sources"):
        HardwareTarget()
    with pytest.raises(ValidationError, match="need top, stimulus and outputs"):
        HardwareTarget(sources="a.v")
    with pytest.raises(ValidationError, match="captured"):
        HardwareFault(where="flip_flops", model=BitFlip(), duration="transient", captured=0.5)
    with pytest.raises(TargetError, match="no_such"):
        HardwareTarget(
            sources=str(DESIGNS / "counter.v"), top="counter", stimulus="no_such.module:f", outputs="count"
        ).open(Resources())


def test_simulators_are_independent() -> None:
    """Two simulators of one design do not share state."""
    design = Design(read_verilog([DESIGNS / "counter.v"], "counter"))
    stimulus = random_stimulus("counter", INPUTS["counter"], runs=2)
    one, two = Simulator(design), Simulator(design)
    first = one.run(stimulus)
    two.run(stimulus, [1])
    assert (one.run(stimulus) == first).all()
