"""A testbench that answers the design: each faulty machine has its own, and faults strike the design alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saboteur.campaign.target import Resources
from saboteur.errors import FaultError, TargetError
from saboteur.faults import BitFlip, Faults, StuckAt
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.spec import HardwareFault, HardwareTarget
from saboteur.levels.hardware.target import DesignTarget
from tests.hardware.icarus import Event, agree, needs_icarus, simulate
from tests.hardware.test_golden import DESIGNS

SOURCE = DESIGNS / "reader.v"
CYCLES = 60


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> DesignTarget:
    folder: Path = tmp_path_factory.mktemp("bench")
    (folder / "reader.v").write_text(SOURCE.read_text())
    rows = "".join(f"{int(t < 2)},{int(t == 3)}\n" for t in range(CYCLES))
    (folder / "in.csv").write_text("rst,start\n" + rows)
    spec = HardwareTarget(
        sources=("reader.v",),
        top="bench",
        under_test="dut",
        stimulus="in.csv",
        outputs=("sum",),
        valid="done",
        first_cycle=2,
    )
    opened = spec.located(folder).open(Resources())
    assert isinstance(opened, DesignTarget)
    return opened


def upsets(target: DesignTarget, count: int) -> tuple[object, Faults, np.ndarray, np.ndarray, list[str]]:
    """Random upsets of bits of the design: the space, the faults, cycles, bits and registers."""
    space = target.space([HardwareFault(where="flip_flops", model=BitFlip(), duration="transient")])
    whole = space.strata("network")[0]
    chosen = np.sort(np.random.default_rng(5).choice(whole.size, count, replace=False))
    region, element, step, variant = space.decode(whole, chosen)
    trials = np.arange(count)
    faults = Faults(trials.astype(np.uint64), trials, region.astype(np.int32), element, step, variant)
    return space, faults, step + 2, variant, [space.regions[r].site for r in region]


def test_golden_run(target: DesignTarget) -> None:
    assert target.golden().outputs.tolist() == [[sum(17 * i + 5 for i in range(8)) % 256]]
    trace = target.golden_trace(0)
    slots = {slot.name: i for i, slot in enumerate(target.simulator.design.slots)}
    # eight requests of 2 cycles and the memory's 0 + 1 + 2 + 3 + 0 + 1 + 2 + 3 cycles
    assert np.flatnonzero(trace[:-1, slots["dut.done"]]).tolist() == [4 + 8 * 2 + 12]


def test_faults_strike_the_design_alone(target: DesignTarget) -> None:
    for where in ("flip_flops", "nets", "pins"):
        space = target.space([HardwareFault(where=where, model=StuckAt())])
        assert {region.layer for region in space.regions} == {"dut"}
    with pytest.raises(FaultError, match="where: dut has no memories"):
        target.space([HardwareFault(where="memories", model=StuckAt())])
    with pytest.raises(FaultError, match="where: dut has no inputs"):
        target.space([HardwareFault(where="inputs", model=StuckAt())])
    with pytest.raises(TargetError, match="under_test: no instance 'dot'; did you mean 'dut'"):
        Design(read_verilog([SOURCE], "bench"), "dot")


@needs_icarus
def test_later_answers_equal_icarus(target: DesignTarget) -> None:
    """Cycle by cycle: a request that an upset delays is answered later, and so is everything after it."""
    count = 200
    space, faults, on, bit, names = upsets(target, count)
    rows = target.rows(space, faults)
    ports = {"done": 1, "sum": 8, "req": 1, "addr": 3}
    inputs = {name: (1, np.tile(words[0], count).tolist()) for name, words in target.stimulus.inputs.items()}
    flips = [f"dut.{name} = dut.{name} ^ {1 << int(b)};" for name, b in zip(names, bit, strict=True)]
    events = [Event(f * CYCLES + int(on[f]), flips[f]) for f in range(count)]
    theirs = simulate([SOURCE], "bench", inputs, ports, events=events)
    outcomes = target.outcomes(space, faults, 0)["outcome"].to_pylist()
    later = 0
    design = target.simulator.design
    clean = target.golden_trace(0)[:-1]
    first = np.flatnonzero(target.simulator.read(clean, design.outputs["done"]))[0]
    total = target.golden().outputs[0, 0]
    for f in range(count):
        _, trace = target.traces(rows[rows["fault"] == f], 0)
        mine = slice(f * CYCLES, (f + 1) * CYCLES)
        for port in ports:
            ours = target.simulator.read(trace, design.outputs[port])
            assert agree(ours[2:].tolist(), theirs[port][mine][2:]), (port, flips[f])
        done = [t for t in range(2, CYCLES) if theirs["done"][mine][t] == "1"]
        sums = [int(theirs["sum"][mine][t], 2) for t in done]
        if not done:
            assert outcomes[f] == "hang"
        else:
            assert (outcomes[f] in ("masked", "latent")) == (sums[0] == total), flips[f]
            later += sums[0] == total and done[0] > first
    assert later > 0 and {"hang", "sdc", "masked"} <= set(outcomes)
