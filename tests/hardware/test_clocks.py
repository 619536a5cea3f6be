"""Several clocks, both edges, gated, divided and inverted clocks: against Icarus, fault-free and with upsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saboteur.campaign.target import Target
from saboteur.errors import TargetError
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import ROW, Simulator, Stimulus
from saboteur.levels.hardware.sites import Sites
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from tests.hardware.icarus import Event, agree, needs_icarus, simulate
from tests.hardware.test_contract import DesignContract
from tests.hardware.test_golden import DESIGNS, random_words
from tests.hardware.test_liberty import LIBERTY

SOURCE = DESIGNS / "clocks.v"
ALL = (1 << 64) - 1
CASES: dict[str, tuple[dict[str, int], tuple[str, ...], int]] = {
    "crossing": ({"rst_n": 1, "d": 4, "send": 1}, ("clk_a", "clk_b"), 2),
    "edges": ({"rst": 1, "d": 4}, ("clk",), 2),
    "gated": ({"rst": 1, "en": 1, "d": 4}, ("clk",), 4),
    "divided": ({"rst_n": 1, "d": 4}, ("clk",), 4),
    "two_port": ({"rst": 1, "we": 1, "wa": 2, "ra": 2, "d": 70}, ("wclk", "rclk"), 2),
}


def stimulus_of(name: str, cycles: int = 60) -> tuple[Stimulus, np.ndarray]:
    """Data change in the first step of each cycle, clocks in the second; and which steps are the first."""
    widths, clocks, steps = CASES[name]
    first = np.arange(cycles * steps) % steps == 0
    cycle = np.arange(cycles * steps) // steps
    inputs = {port: random_words(k, width, 1, cycles)[:, cycle] for k, (port, width) in enumerate(widths.items())}
    for port, active in (("rst", 1), ("rst_n", 0)):
        if port in inputs:
            inputs[port][0] = np.where((cycle < 8) | (cycle == 30), active, 1 - active)
    rng = np.random.default_rng(7)
    for clock in clocks:
        level = np.arange(cycles) % 2 if len(clocks) == 1 else rng.integers(0, 2, cycles)
        level[:8] = np.arange(8) % 2
        inputs[clock] = np.concatenate([[0], np.repeat(level, steps)])[: cycles * steps][None].astype(np.uint64)
    return Stimulus(inputs), first


def theirs(name: str, stimulus: Stimulus, outputs: dict[str, int], events: list[Event] | None = None) -> dict:
    widths = CASES[name][0]
    inputs = {port: (widths.get(port, 1), words[0].tolist()) for port, words in stimulus.inputs.items()}
    return simulate([SOURCE], name, inputs, outputs, clock="", events=events or ())


@needs_icarus
@pytest.mark.parametrize("level", ["word", "gate", "liberty"])
@pytest.mark.parametrize("name", CASES)
def test_equals_icarus(name: str, level: str) -> None:
    cells = [LIBERTY] if level == "liberty" else []
    design = Design(read_verilog([SOURCE], name, "word" if level == "word" else "gate", liberty=cells))
    assert design.clock is None and set(design.clocks) <= {*CASES[name][1]}
    simulator = Simulator(design)
    stimulus, first = stimulus_of(name)
    trace = simulator.run(stimulus)
    assert trace is not None
    widths = {port: sum(piece[2] for piece in pieces) for port, pieces in design.outputs.items()}
    expected = theirs(name, stimulus, widths)
    settled = np.flatnonzero(first)[12:]
    for port, pieces in design.outputs.items():
        ours = simulator.read(trace[0, :-1], pieces)
        assert len(set(ours[settled].tolist())) > 1, port
        assert agree(ours[settled].tolist(), [expected[port][t] for t in settled]), port


@needs_icarus
@pytest.mark.parametrize("name", CASES)
def test_upsets_equal_icarus(name: str) -> None:
    """Each bit of each register, in one random step in which data change."""
    simulator = Simulator(Design(read_verilog([SOURCE], name)))
    stimulus, first = stimulus_of(name)
    groups = Sites(simulator).groups("flip_flops").values()
    bits = [(group, k, bit) for group in groups for k in range(len(group.places)) for bit in range(group.width)][:40]
    steps = np.flatnonzero(first)
    rng = np.random.default_rng(1)
    on = steps[rng.integers(14, len(steps) - 4, len(bits))]
    rows = np.zeros(len(bits), ROW)
    upsets = []
    for f, (group, k, bit) in enumerate(bits):
        rows[f]["fault"], rows[f]["place"], rows[f]["a"], rows[f]["x"] = f, group.places["place"][k], ALL, 1 << bit
        rows[f]["on"], rows[f]["off"] = on[f], on[f] + 1
        upsets.append(f"dut.{group.names[k]} = dut.{group.names[k]} ^ ({1 << bit});")
    trace = simulator.run(stimulus, np.zeros(len(bits), np.int64), rows)
    golden = simulator.run(stimulus)
    assert trace is not None and golden is not None
    assert (trace != golden).any(axis=(1, 2)).all()
    widths = {port: sum(piece[2] for piece in pieces) for port, pieces in simulator.design.outputs.items()}
    for f in range(0, len(bits), 3):
        expected = theirs(name, stimulus, widths, [Event(int(on[f]), upsets[f])])
        for port, pieces in simulator.design.outputs.items():
            ours = simulator.read(trace[f, :-1], pieces)
            assert agree(ours[steps[12:]].tolist(), [expected[port][t] for t in steps[12:]]), (port, upsets[f])


def test_registers_of_the_source_are_the_sites() -> None:
    """What finds the edges is not part of the design."""
    simulator = Simulator(Design(read_verilog([SOURCE], "crossing")))
    names = set(Sites(simulator).groups("flip_flops"))
    assert names == {"request", "a1", "a2", "held", "b1", "b2", "b3", "got"}
    assert not [n for g in Sites(simulator).groups("nets").values() for n in g.names if "edge" in n]
    data = [n for g in Sites(simulator).groups("pins").values() for n in g.names if n.endswith(".D")]
    assert len(data) == len(names)


def test_a_tree_of_inverters_is_one_clock() -> None:
    """Its cells are no sites: faults in it would be faults of the clock."""
    design = Design(read_verilog([SOURCE], "tree"))
    assert design.clock == "clk" and not design.clocks
    simulator = Simulator(design)
    rst, d = np.array([[1, 0, 0, 0, 0]], np.uint64), np.array([[1, 2, 3, 4, 5]], np.uint64)
    trace = simulator.run(Stimulus({"rst": rst, "d": d}))
    assert trace is not None
    assert simulator.read(trace[0], design.outputs["q"]).tolist()[1:] == [0, 2, 5, 9, 14]
    assert simulator.read(trace[0], design.outputs["r"]).tolist()[1:] == [0, 0, 2, 5, 9]
    names = {name for kind in ("nets", "pins") for g in Sites(simulator).groups(kind).values() for name in g.names}
    assert not {"n1", "n2"} & names


@pytest.mark.parametrize(("name", "clock"), [("crossing", "clk_a"), ("edges", "clk"), ("gated", "clk")])
def test_clocks_are_driven(name: str, clock: str, tmp_path: Path) -> None:
    stimulus, _ = stimulus_of(name)
    inputs = {port: words for port, words in stimulus.inputs.items() if port != clock}
    simulator = Simulator(Design(read_verilog([SOURCE], name)))
    with pytest.raises(TargetError, match=rf"stimulus: {clock} clocks .*clocks\.v:\d+.* drive them"):
        simulator.run(Stimulus(inputs))


class TestTwoClocks(DesignContract):
    """Every kind of fault, side by side and one by one, in a design that runs in steps."""

    ports = (Observed("got"), Observed("busy"), Observed("parity"))

    def _target(self, stimulus: Stimulus) -> Target:
        strobe = np.arange(stimulus.cycles) >= 20
        return DesignTarget(
            read_verilog([SOURCE], "crossing"), stimulus, Observation(self.ports, strobe=strobe), first_cycle=16
        )

    def _stimulus(self) -> Stimulus:
        whole = stimulus_of("crossing")[0].inputs
        runs = {port: np.repeat(words, 3, axis=0) for port, words in whole.items()}
        runs["d"][:, 40:] = random_words(9, 4, 3, runs["d"].shape[1] - 40)
        return Stimulus(runs)
