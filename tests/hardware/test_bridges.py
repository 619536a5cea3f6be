"""Bridged nets against the naive simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saboteur.errors import FaultError
from saboteur.faults import Faults
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.models import Bridge
from saboteur.levels.hardware.simulate import Stimulus
from saboteur.levels.hardware.spec import HardwareFault
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from tests.hardware.gates import NaiveSimulator
from tests.hardware.test_golden import DESIGNS, random_stimulus

CYCLES = 10


def multiplier(level: str = "gate") -> DesignTarget:
    netlist = read_verilog([DESIGNS / "multiplier.v"], "multiplier", level, {"N": 3})
    stimulus = random_stimulus("multiplier", {"a": 3, "b": 3}, runs=1, cycles=CYCLES)
    observation = Observation((Observed("p"), Observed("held")), strobe=np.arange(CYCLES) >= 1)
    return DesignTarget(netlist, stimulus, observation)


@pytest.mark.parametrize("effect", ["wired_and", "wired_or", "dominant"])
def test_bridges_equal_a_naive_simulation(effect: str) -> None:
    target = multiplier()
    golden = target.golden().outputs[0]
    naive = NaiveSimulator(target.netlist)
    keys = {name: line for line, (_, name) in target.sites.lines().items() if line[-1] == "Y"}
    modules = dict(target.simulator.design.instances())
    stem = {
        name: ".".join(filter(None, [path, modules[path].cells[cell].name.rsplit("\\", 1)[-1], "Y"]))
        for name, (path, cell, _) in keys.items()
    }
    names = sorted(stem)
    rng = np.random.default_rng(4)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < 40:
        one, other = (names[k] for k in rng.choice(len(names), 2, replace=False))
        loops = stem[one] in naive.fan_in(stem[other]) or stem[other] in naive.fan_in(stem[one])
        if not loops and (one, other) not in pairs and (other, one) not in pairs:
            pairs.append((one, other))
    space = target.space([HardwareFault(where="bridges", pairs=tuple(pairs), model=Bridge(effect=effect))])
    assert space.size == 40 * (2 if effect == "dominant" else 1)
    trials = np.arange(space.size)
    region, element, step, variant = space.decode(space.strata("network")[0], trials)
    faults = Faults(trials.astype(np.uint64), trials, region.astype(np.int32), element, step, variant)
    answers = target.answers(space, faults, 0)
    given = np.repeat(golden[None], len(trials), axis=0)
    given[answers.affected] = answers.outputs
    inputs = {port: [int(word) for word in words[0]] for port, words in target.stimulus.inputs.items()}
    for trial in trials:
        first, second = (stem[name] for name in pairs[region[trial]])
        how = (first, second, effect)
        if effect == "dominant":
            how = (first, second, "first") if variant[trial] == 0 else (second, first, "first")
        outputs = NaiveSimulator(target.netlist, bridge=how).run(inputs)[1:]
        assert given[trial].tolist() == [cycle[port] for cycle in outputs for port in ("p", "held")], how
    assert answers.changed.mean() > 0.5
    plain = target.simulator.run(target.stimulus, np.zeros(len(trials), np.int64), target.rows(space, faults))
    assert (target.observer.golden(plain) == given).all()


def test_bad_pairs() -> None:
    target = multiplier()
    net = target.sites.groups("nets")["row[0].col[0].m:nets"].names[0]
    with pytest.raises(FaultError, match="not a net that a gate drives; did you mean"):
        target.space([HardwareFault(where="bridges", pairs=((net, net + "x"),), model=Bridge())])
    with pytest.raises(FaultError, match="with itself"):
        target.space([HardwareFault(where="bridges", pairs=((net, net),), model=Bridge())])
    with pytest.raises(FaultError, match="gate level"):
        multiplier("word").space([HardwareFault(where="bridges", pairs=((net, net),), model=Bridge())])
    with pytest.raises(ValueError, match="bridges need pairs"):
        HardwareFault(where="nets", model=Bridge())


def test_neighbours_are_nets_that_meet_at_a_cell() -> None:
    """ISCAS'85 c17: by hand, of the six NAND gates' outputs."""
    netlist = read_verilog([DESIGNS / "c17.v"], "c17", "gate")
    target = DesignTarget(netlist, random_stimulus("c17", C17, runs=1, cycles=8), Observation((Observed("N22"),)))
    (group,) = target.sites.groups("bridges").values()
    pairs = {frozenset(name.split("~")) for name in group.names}
    expected = ["11 16", "11 19", "10 16", "10 22", "16 22", "16 19", "16 23", "19 23"]
    assert len(group.names) == len(pairs)
    assert pairs == {frozenset(f"N{k}" for k in pair.split()) for pair in expected}
    space = target.space([HardwareFault(where="bridges", neighbours=True, model=Bridge(effect="dominant"))])
    assert space.size == 16
    given = tuple(tuple(name.split("~")) for name in group.names)
    listed = target.space([HardwareFault(where="bridges", pairs=given, model=Bridge(effect="dominant"))])
    answers = []
    for of in (space, listed):
        region, element, step, variant = of.decode(of.strata("network")[0], np.arange(16))
        trials = np.arange(16)
        faults = Faults(trials.astype(np.uint64), trials, region.astype(np.int32), element, step, variant)
        outcomes = target.outcomes(of, faults, 0)["outcome"].to_pylist()
        names = [target.names(of.regions[r])[e] for r, e in zip(region, element, strict=True)]
        answers.append(sorted(zip(names, variant.tolist(), outcomes, strict=True)))
    assert answers[0] == answers[1]
    assert len({outcome for *_, outcome in answers[0]}) > 1


C17 = {f"N{k}": 1 for k in (1, 2, 3, 6, 7)}


def test_a_loop_without_a_stable_value_hangs(tmp_path: Path) -> None:
    """An inverter whose input is shorted to its output, the output being the stronger; the AND of both is stable."""
    source = tmp_path / "ring.v"
    source.write_text(
        "module ring(input clk, input a, input b, output y); wire p, q; assign p = a ^ b; assign q = ~p; "
        "assign y = q; endmodule\n"
    )
    stimulus = Stimulus({"a": np.array([[0, 1, 0, 1]], np.uint64), "b": np.array([[0, 0, 0, 0]], np.uint64)})
    target = DesignTarget(read_verilog([source], "ring", "gate"), stimulus, Observation((Observed("y"),)))
    nets = [name for name in target.sites.groups("nets")["ring:nets"].names if name in ("p", "q", "y")]
    p, q = "p", next(name for name in nets if name != "p")
    outcomes = {}
    for effect in ("wired_and", "wired_or", "dominant"):
        space = target.space([HardwareFault(where="bridges", pairs=((p, q),), model=Bridge(effect=effect))])
        trials = np.arange(space.size)
        region, element, step, variant = space.decode(space.strata("network")[0], trials)
        faults = Faults(trials.astype(np.uint64), trials, region.astype(np.int32), element, step, variant)
        outcomes[effect] = target.outcomes(space, faults, 0)["outcome"].to_pylist()
    # AND: p = 0 is stable at 0, but p = 1 and not p never agree; OR: the other way round; p wins: y = p; q wins: never
    assert outcomes == {"wired_and": ["hang"], "wired_or": ["hang"], "dominant": ["sdc", "hang"]}
