"""Bridged nets against the naive simulator."""

from __future__ import annotations

import numpy as np
import pytest

from saboteur.errors import FaultError
from saboteur.faults import Faults
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.models import Bridge
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
    answers, mine = target.answers(space, faults, 0)
    given = np.repeat(golden[None], len(trials), axis=0)
    given[mine[answers.affected]] = answers.outputs
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
