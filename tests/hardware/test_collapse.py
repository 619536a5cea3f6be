"""Collapsed fault lists: known sizes, and every fault of small designs against a naive simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saboteur.errors import FaultError
from saboteur.levels.hardware.collapse import Collapsed, collapse, coverage, first_detections
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import Simulator, Stimulus, Watch
from saboteur.levels.hardware.sites import Sites
from tests.hardware.gates import NaiveSimulator
from tests.hardware.test_golden import DESIGNS, INPUTS, random_stimulus


def opened(name: str, parameters: dict[str, int] | None = None) -> tuple[Simulator, Sites]:
    simulator = Simulator(Design(read_verilog([DESIGNS / f"{name}.v"], name, "gate", parameters)))
    return simulator, Sites(simulator)


def outputs(simulator: Simulator) -> list[int]:
    return sorted({p[0] for pieces in simulator.design.outputs.values() for p in pieces if p[0] >= 0})


def detections(simulator: Simulator, sites: Sites, stimulus: Stimulus, drop: bool = True) -> np.ndarray:
    collapsed = collapse(sites, simulator.design)
    slots = np.array(outputs(simulator), np.int32)
    watch = Watch(slots, np.ones((stimulus.cycles, len(slots)), np.bool_))
    golden = simulator.run(stimulus)[0]
    rows = collapsed.rows(stimulus.cycles)
    response = simulator.respond(golden, [], watch, rows, len(rows), drop=drop)
    return first_detections(response.differences, len(rows))


def vectors(numbers: list[int]) -> Stimulus:
    ports = ("N1", "N2", "N3", "N6", "N7")
    return Stimulus({port: np.array([[n >> k & 1 for n in numbers]], np.uint64) for k, port in enumerate(ports)})


def test_c17() -> None:
    """ISCAS'85 c17: 17 lines, 22 collapsed faults, all found by all vectors, and by few."""
    simulator, sites = opened("c17")
    collapsed = collapse(sites, simulator.design)
    assert collapsed.total == 34 and len(collapsed.places) == 22 and collapsed.untestable == 0
    assert collapsed.size.sum() == 34
    assert len(collapse(sites, simulator.design, dominance=True).places) == 16
    assert (detections(simulator, sites, vectors(list(range(32)))) >= 0).all()
    few = [int(v[::-1], 2) for v in ("10010", "01111", "11010", "10101", "01000")]
    found = detections(simulator, sites, vectors(few)) >= 0
    expected = naive_detections("c17", {p: w[0].tolist() for p, w in vectors(few).inputs.items()}, collapsed, sites)
    assert found.tolist() == [cycle >= 0 for cycle in expected]
    assert coverage(collapsed, found) == pytest.approx(collapsed.size[found].sum() / 34)


def naive_detections(
    name: str,
    inputs: dict[str, list[int]],
    collapsed: Collapsed,
    sites: Sites,
    parameters: dict[str, int] | None = None,
) -> list[int]:
    netlist = read_verilog([DESIGNS / f"{name}.v"], name, "gate", parameters)
    design = Design(netlist)
    cells = dict(design.instances())
    by_place = {}
    for line, (place, _) in sites.lines().items():
        by_place[tuple(place.tolist())] = line
    golden = NaiveSimulator(netlist).run(inputs)
    found = []
    for place, value in zip(collapsed.places, collapsed.value, strict=True):
        line = by_place[tuple(place.tolist())]
        if line[0] is None:
            _, port, bit = line
            forced = [(word & ~(1 << bit)) | int(value) << bit for word in inputs[port]]
            faulty = NaiveSimulator(netlist).run({**inputs, port: forced})
        else:
            path, cell, port = line
            label = cells[path].cells[cell].name.rsplit("\\", 1)[-1]
            site = ".".join(filter(None, [path, label, port]))
            faulty = NaiveSimulator(netlist, {site: int(value)}).run(inputs)
        differs = [cycle for cycle, (a, b) in enumerate(zip(golden, faulty, strict=True)) if a != b]
        found.append(differs[0] if differs else -1)
    return found


@pytest.mark.parametrize(
    ("name", "parameters", "cycles"), [("counter", None, 30), ("ripple", None, 6), ("multiplier", {"N": 3}, 8)]
)
def test_every_fault_equals_a_naive_simulation(name: str, parameters: dict[str, int] | None, cycles: int) -> None:
    simulator, sites = opened(name, parameters)
    widths = dict(INPUTS[name]) if parameters is None else {"a": parameters["N"], "b": parameters["N"]}
    stimulus = random_stimulus(name, widths, runs=1, cycles=cycles)
    collapsed = collapse(sites, simulator.design)
    inputs = {port: [int(w) for w in words[0]] for port, words in stimulus.inputs.items()}
    expected = naive_detections(name, inputs, collapsed, sites, parameters)
    assert detections(simulator, sites, stimulus).tolist() == expected
    assert detections(simulator, sites, stimulus, drop=False).tolist() == expected
    assert sum(cycle >= 0 for cycle in expected) > len(expected) // 2


@pytest.mark.slow
def test_every_fault_of_the_multiplier() -> None:
    simulator, sites = opened("multiplier")
    stimulus = random_stimulus("multiplier", INPUTS["multiplier"], runs=1, cycles=12)
    collapsed = collapse(sites, simulator.design)
    inputs = {port: [int(w) for w in words[0]] for port, words in stimulus.inputs.items()}
    assert detections(simulator, sites, stimulus).tolist() == naive_detections("multiplier", inputs, collapsed, sites)


def test_collapsing_loses_no_detection() -> None:
    """The faults of all lines are first seen in the cycles in which the collapsed ones are."""
    simulator, sites = opened("multiplier", {"N": 3})
    stimulus = random_stimulus("multiplier", {"a": 3, "b": 3}, runs=1, cycles=30)
    collapsed = collapse(sites, simulator.design)
    seen = detections(simulator, sites, stimulus)
    everything = [(place, value) for place, _ in sites.lines().values() for value in (0, 1)]
    everything.sort(key=lambda fault: fault[0].tolist())
    places, values = zip(*everything, strict=True)
    whole = replace(collapsed, places=np.array(places), value=np.array(values, np.uint8))
    rows = whole.rows(stimulus.cycles)
    slots = np.array(outputs(simulator), np.int32)
    watch = Watch(slots, np.ones((stimulus.cycles, len(slots)), np.bool_))
    response = simulator.respond(simulator.run(stimulus)[0], [], watch, rows, len(rows))
    every = first_detections(response.differences, len(rows))
    assert len(rows) >= collapsed.total
    assert set(every[every >= 0]) == set(seen[seen >= 0])


def test_what_nothing_can_show(tmp_path: Path) -> None:
    """An OR whose output is left open: its output and its pins are untestable, the stems before it are not."""
    source = tmp_path / "open.v"
    source.write_text(
        "module half(input a, input b, output x, output y); assign x = a & b; assign y = a | b; endmodule\n"
        "module t(input a, input b, output x); half h(.a(a), .b(b), .x(x), .y()); endmodule\n"
    )
    simulator = Simulator(Design(read_verilog([source], "t", "gate")))
    collapsed = collapse(Sites(simulator), simulator.design)
    # lines: a, b, x, y, and a branch of a and of b at each gate; the AND's faults at 0 are one class of three
    assert (collapsed.total, collapsed.untestable) == (16, 6)
    assert sorted(collapsed.size.tolist()) == [1] * 7 + [3]


def test_word_level_has_no_such_rules() -> None:
    simulator = Simulator(Design(read_verilog([DESIGNS / "counter.v"], "counter")))
    with pytest.raises(FaultError, match="gate level"):
        collapse(Sites(simulator), simulator.design)
