"""Golden runs in windows give what whole ones give."""

from __future__ import annotations

import numpy as np
import pytest

from saboteur.campaign.target import Resources
from saboteur.faults import BitFlip, StuckAt
from saboteur.levels.hardware.golden import GoldenRun, WatchedTrace
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.models import Delay, Open
from saboteur.levels.hardware.sites import Sites
from saboteur.levels.hardware.spec import HardwareFault
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from saboteur.testing.targets import draw_faults
from tests.hardware.test_faults import faulty, opened, single_faults, watched
from tests.hardware.test_golden import DESIGNS, INPUTS, random_stimulus


@pytest.mark.parametrize(
    ("name", "level"), [("counter", "gate"), ("fifo", "word"), ("fifo", "gate"), ("array", "word")]
)
@pytest.mark.parametrize("cycles", [1, 7, 39, 1000])
def test_responses_in_windows(name: str, level: str, cycles: int) -> None:
    simulator, stimulus = opened(name, level)
    kinds = tuple(k for k in ("flip_flops", "inputs", "memories", "nets", "pins") if Sites(simulator).groups(k))
    rows = single_faults(simulator, kinds, 300)
    whole = simulator.run(stimulus)[0]
    memories = [np.array(memory.initial, np.uint64) for memory in simulator.design.memories]
    golden, watch = GoldenRun(simulator, stimulus, 0, cycles), watched(simulator)
    assert len(golden) == len(whole)
    for cycle in (0, 25, 6, 39):
        first, values, _ = golden.window(cycle)
        assert first <= cycle < first + len(values) - 1
        # nets of the last row belong to the next window
        assert (values[:-1] == whole[first : first + len(values) - 1]).all()
        states = simulator.design.states
        assert (values[-1, states] == whole[first + len(values) - 1, states]).all()
    expected = simulator.respond(whole, memories, watch, rows, 300)
    found = simulator.respond(golden, memories, watch, rows, 300, group=20)
    ours, theirs = (faulty(simulator, whole, watch, r.differences, 300) for r in (found, expected))
    assert (ours == theirs).all()
    assert (found.converged == expected.converged).all()
    assert len(found.differences) == len(expected.differences) > 100
    assert (golden.watched(watch.slots).values[:-1] == whole[:-1, watch.slots]).all()


def test_an_error_in_a_window_is_raised() -> None:
    simulator, stimulus = opened("counter", "word")
    rows = single_faults(simulator, ("flip_flops",), 10)

    class Broken:
        def __len__(self) -> int:
            return stimulus.cycles + 1

        def window(self, cycle: int) -> tuple:
            raise OSError(f"no cycle {cycle}")

    with pytest.raises(OSError, match="no cycle"):
        simulator.respond(Broken(), [], watched(simulator), rows, 10)


@pytest.mark.parametrize("valid", [None, "empty"])
def test_a_target_with_little_memory(valid: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    stimulus = random_stimulus("fifo", INPUTS["fifo"], runs=3)
    stimulus.inputs["lanes"][:] = 3
    stimulus.inputs["push"][:] = np.arange(stimulus.cycles) < 20
    stimulus.inputs["pop"][:] = np.arange(stimulus.cycles) % 2
    netlist = read_verilog([DESIGNS / "fifo.v"], "fifo")
    specs = [
        HardwareFault(where="flip_flops", model=BitFlip(), duration="transient"),
        HardwareFault(where="memories", model=StuckAt()),
        HardwareFault(where="nets", model=Delay()),
        HardwareFault(where="nets", model=Open(), duration="transient"),
    ]
    ports = (Observed("dout"), Observed("last"))
    observation = Observation(ports, valid=valid, strobe=np.arange(stimulus.cycles) >= 30)
    answers = []
    for memory in (1 << 30, 40 * 8 * 20):
        monkeypatch.setattr(Resources, "memory_bytes", memory)
        target = DesignTarget(netlist, stimulus, observation, first_cycle=2)
        golden = target.golden().outputs
        space = target.space(specs)
        faults = draw_faults(space, 200)
        found = [target.answers(space, faults, run) for run in range(3)]
        answers.append([golden.tolist()])
        for each in found:
            given = each.outputs[~each.hang[each.affected]]
            answers[-1] += [each.changed.tolist(), each.hang.tolist(), each.latent.tolist(), given.tolist()]
        assert all(each.changed.any() for each in found)
        assert isinstance(target._golden(0), GoldenRun) == (memory < 1 << 20)
    assert answers[0] == answers[1]


def test_traces_of_what_is_watched() -> None:
    values = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    slots = np.array([1, 4, 6], np.int32)
    trace = WatchedTrace(values, slots, 9)
    assert trace.shape == (2, 5, 9) and len(trace) == 2
    assert trace[..., 4].tolist() == values[..., 1].tolist()
    assert trace[:, :3][..., 6].tolist() == values[:, :3, 2].tolist()
    assert trace[1][np.array([0, 4]), np.array([1, 6])].tolist() == [values[1, 0, 0], values[1, 4, 2]]
    assert trace[0][[2, 1]][None][:, :, slots].tolist() == values[0][[2, 1]][None].tolist()
