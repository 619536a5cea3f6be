"""Every fault model of logic, trial by trial, against Icarus on the same gates with a saboteur in every net.

In Icarus every gate has a delay of one unit, and the nets settle before they are looked at. Delays and opens put onto
a net what drove it before the last clock edge, pulses its inverse, and bridges what the drivers of both nets make of
it: either *tied*, continuously, so that a loop through a bridge runs in unit time; or *stepped*, so that the net holds
a value while its drivers are computed, as the model defines it.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from saboteur.faults import BitFlip, Faults, StuckAt
from saboteur.faults.models import FaultModel
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.models import Bridge, Delay, Open
from saboteur.levels.hardware.spec import HardwareFault
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from tests.hardware.gates import NaiveSimulator, as_verilog
from tests.hardware.icarus import needs_icarus
from tests.hardware.test_golden import DESIGNS, random_stimulus

CYCLES = 10
SETTLE, LOOKS = 150, 24
WAYS = ("ZERO", "ONE", "PULSE", "LATE", "LATE_RISE", "LATE_FALL", "HELD", "AND", "OR", "FIRST", "SECOND")
DECLARATIONS = f"""
localparam {", ".join(f"{name} = {k}" for k, name in enumerate(WAYS))};
integer t, net_a, net_b, way; reg clk = 0; reg moves, saved, stepped, value; reg [1:0] was;
wire a = driven[net_a], b = driven[net_b], old = earlier[net_a];
wire tied = way == AND ? a & b : way == OR ? a | b : way == FIRST ? a : b;
wire other = stepped ? value : tied;
wire one = way == ZERO ? 0 : way == ONE ? 1 : way == PULSE ? ~a : way == LATE ? old : way == LATE_RISE ? a & old
  : way == LATE_FALL ? a | old : way == HELD ? saved : other;
"""


@dataclass(frozen=True)
class Case:
    """A design of a few hundred gates."""

    name: str
    parameters: dict[str, int]
    inputs: dict[str, int]
    outputs: dict[str, int]


CASES = {
    "array": Case("array", {"N": 2, "W": 3, "A": 8}, {"rst": 1, "clear": 2, "en": 2, "a": 6, "b": 6}, {"c": 32}),
    "multiplier": Case("multiplier", {"N": 5}, {"a": 5, "b": 5}, {"p": 10, "held": 10}),
}


@dataclass
class Outcome:
    """Of each fault: the outputs [faults, cycles, ports], and the cycle in which it begins to oscillate, or −1."""

    outputs: NDArray[np.int64]
    oscillates: NDArray[np.int64]

    def until(self, faults: NDArray[np.int64]) -> list[list[list[int]]]:
        """The outputs of some faults, as long as they do not oscillate."""
        return [self.outputs[f, : self.oscillates[f] if self.oscillates[f] >= 0 else CYCLES].tolist() for f in faults]


class Bench:
    """One design, here and in Icarus."""

    def __init__(self, case: Case):
        self.case = case
        netlist = read_verilog([DESIGNS / f"{case.name}.v"], case.name, "gate", case.parameters)
        self.stimulus = random_stimulus(case.name, case.inputs, runs=1, cycles=CYCLES)
        self.target = DesignTarget(netlist, self.stimulus, Observation(tuple(Observed(p) for p in case.outputs)))
        self.text, self.where = as_verilog(netlist, saboteurs=True)
        self.naive = NaiveSimulator(netlist)
        self.top = f"m{list(netlist.modules).index(netlist.top)}"
        modules = dict(self.target.simulator.design.instances())
        self.stems: dict[str, str] = {}
        for line, (_, name) in self.target.sites.lines().items():
            if line[0] is not None and line[2] == "Y":
                label = modules[line[0]].cells[line[1]].name.rsplit("\\", 1)[-1]
                self.stems[name] = ".".join(filter(None, [line[0], label]))

    def loops(self, first: str, second: str) -> bool:
        """Whether one net is computed from the other."""
        one, other = f"{self.stems[first]}.Y", f"{self.stems[second]}.Y"
        return other in self.naive.fan_in(one) or one in self.naive.fan_in(other)

    def ours(self, specs: list[HardwareFault], most: int | None = None) -> tuple[list[dict], Outcome]:
        """Every fault of ``specs``, or ``most`` of them at random, described, and what each does."""
        target = self.target
        space = target.space(specs)
        (stratum,) = space.strata("network")
        chosen = np.arange(space.size)
        if most is not None and most < space.size:
            chosen = np.sort(np.random.default_rng(7).choice(space.size, most, replace=False))
        region, element, step, variant = space.decode(stratum, chosen)
        trials = np.arange(len(chosen))
        faults = Faults(trials.astype(np.uint64), trials, region.astype(np.int32), element, step, variant)
        rows, golden = target.rows(space, faults), target.golden_trace(0)
        watch = target.observer.watch(golden)
        response = target.simulator.respond(golden, [], watch, rows, len(trials))
        found = response.differences
        trace = np.repeat(golden[None, :CYCLES], len(trials), axis=0)
        trace[found["fault"], found["cycle"], watch.slots[found["output"]]] = found["value"]
        ports = [target.simulator.read(trace, target.simulator.design.outputs[p]) for p in self.case.outputs]
        described = []
        for t in trials:
            of = space.regions[region[t]]
            on, off = (int(step[t]), int(step[t]) + 1) if of.duration == "transient" else (0, CYCLES)
            nets = target.names(of)[element[t]].split("~")
            described.append({"model": of.model, "nets": nets, "on": on, "off": off, "variant": int(variant[t])})
        oscillates = np.where(response.oscillates, -2 - response.converged, -1)
        return described, Outcome(np.stack(ports, axis=2).astype(np.int64), oscillates)

    def icarus(self, faults: list[dict], folder: Path, stepped: bool = False) -> Outcome:
        """What Icarus says."""
        case = self.case
        taking_part = sorted({net for fault in faults for net in fault["nets"]})
        number = {net: k for k, net in enumerate(taking_part)}
        lines = ["`timescale 1ns/1ns", self.text, "module testbench;"]
        for bus, word in (("driven", "driven"), ("earlier", "before")):
            bits = ", ".join(self.where[f"{self.stems[net]}.{word}"] for net in reversed(taking_part))
            lines.append(f"wire [{len(number) - 1}:0] {bus} = {{{bits}}};")
        lines.append(DECLARATIONS)
        for name, width in case.inputs.items():
            (folder / f"{name}.hex").write_text("\n".join(f"{int(w):x}" for w in self.stimulus.inputs[name][0]) + "\n")
            lines.append(f"reg [{width - 1}:0] \\{name}_in , {name}_at [0:{CYCLES - 1}];")
        lines += [f"wire [{width - 1}:0] \\{name}_out ;" for name, width in case.outputs.items()]
        ports = [f".{name}(\\{name}_in )" for name in case.inputs] + [
            f".{name}(\\{name}_out )" for name in case.outputs
        ]
        lines += [f"{self.top} dut(.clk(clk), {', '.join(ports)});", "initial begin"]
        lines += [f'$readmemh("{folder}/{name}.hex", {name}_at);' for name in case.inputs]
        power_on = " ".join(f"{wire} = 0;" for site, wire in self.where.items() if site.endswith(".Q"))
        apply = " ".join(f"\\{name}_in = {name}_at[t];" for name in case.inputs)
        shown = ", ".join(f"\\{name}_out " for name in case.outputs)
        for fault in faults:
            nets = fault["nets"]
            lines += [f"net_a = {number[nets[0]]}; net_b = {number[nets[-1]]}; stepped = {int(stepped)}; {power_on}"]
            lines += [f"for (t = 0; t < {CYCLES}; t = t + 1) begin {apply} moves = 0;", *self._cycle(**fault)]
            lines += [f'$display("%b{" %0d" * len(case.outputs)}", moves, {shown}); clk = 1; #1; clk = 0; #1; end']
            lines += [f"{self.where[f'{self.stems[net]}.saboteur']} = 0;" for net in nets]
        (folder / "bench.v").write_text("\n".join([*lines, "end", "endmodule"]) + "\n")
        command = ["iverilog", "-g2012", "-s", "testbench", "-o", str(folder / "run"), str(folder / "bench.v")]
        subprocess.run(command, check=True, capture_output=True, text=True)
        run = subprocess.run(["vvp", "-n", str(folder / "run")], check=True, capture_output=True, text=True)
        rows = [line.split() for line in run.stdout.splitlines()]
        assert len(rows) == len(faults) * CYCLES
        outputs = np.array([[int(word) if word.isdigit() else -1 for word in row[1:]] for row in rows])
        moves = np.array([row[0] == "1" for row in rows]).reshape(-1, CYCLES)
        first = np.where(moves.any(axis=1), moves.argmax(axis=1), -1)
        return Outcome(outputs.reshape(len(faults), CYCLES, -1), first)

    def _cycle(self, model: FaultModel, nets: list[str], on: int, off: int, variant: int) -> list[str]:
        """Statements in every cycle, up to settled nets."""
        saboteurs = [self.where[f"{self.stems[net]}.saboteur"] for net in nets]
        release = " ".join(f"{saboteur} = 0;" for saboteur in saboteurs)
        way = _way(model, variant)
        acting = saboteurs[1:] if way == "FIRST" else saboteurs[:1] if way == "SECOND" else saboteurs
        force = f"saved = earlier[net_a]; way = {way}; " + " ".join(f"{s} = {saboteurs.index(s) + 1};" for s in acting)
        if isinstance(model, Delay | Open):
            on = max(on, 1)  # nothing came before the first cycle
        lines = [f"if (t == {off}) begin {release} end", f"if (t == {on} && t < {off}) begin"]
        if len(nets) == 1:
            return [*lines, force, "end", f"#{SETTLE};"]
        lines += [f"way = {way}; #{SETTLE} value = tied; {force} end #{SETTLE};"]
        lines += [f"if (t >= {on} && t < {off}) begin if (stepped) begin"]
        lines += [f"repeat (2) if (tied !== value) begin value = tied; #{SETTLE}; end moves = tied !== value;"]
        look = "{a, b}"
        lines += [f"end else repeat ({LOOKS}) begin was = {look}; #1 if (was !== {look}) moves = 1; end end"]
        return lines


def _way(model: FaultModel, variant: int) -> str:
    if isinstance(model, Bridge):
        return {"wired_and": "AND", "wired_or": "OR", "dominant": ("FIRST", "SECOND")[variant]}[model.effect]
    if isinstance(model, Delay):
        return {"rise": "LATE_RISE", "fall": "LATE_FALL", "both": "LATE"}[model.edge]
    if isinstance(model, StuckAt):
        return ("ZERO", "ONE")[variant]
    return "HELD" if isinstance(model, Open) else "PULSE"


@pytest.fixture(scope="module", params=CASES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(CASES[request.param])


def random_pairs(bench: Bench, count: int) -> tuple[tuple[str, str], ...]:
    """Most within one module instance, where loops are common."""
    rng = np.random.default_rng(3)
    names = sorted(bench.stems)
    places: dict[str, list[str]] = {}
    for name in names:
        places.setdefault(name.rpartition(".")[0], []).append(name)
    pairs: set[tuple[str, str]] = set()
    while len(pairs) < count:
        among = names if rng.random() < 0.3 else places[names[rng.integers(len(names))].rpartition(".")[0]]
        if len(among) > 1:
            one, other = sorted(rng.choice(len(among), 2, replace=False))
            pairs.add((among[one], among[other]))
    return tuple(sorted(pairs))


MODELS = {
    "delay": HardwareFault(where="nets", model=Delay()),
    "slow to rise": HardwareFault(where="nets", model=Delay(edge="rise")),
    "slow to fall": HardwareFault(where="nets", model=Delay(edge="fall")),
    "delay once": HardwareFault(where="nets", model=Delay(), duration="transient"),
    "open": HardwareFault(where="nets", model=Open()),
    "open once": HardwareFault(where="nets", model=Open(), duration="transient"),
    "pulse": HardwareFault(where="nets", model=BitFlip(), duration="transient"),
    "stuck": HardwareFault(where="nets", model=StuckAt()),
}


@needs_icarus
@pytest.mark.parametrize("name", MODELS)
def test_faults_of_one_net(bench: Bench, name: str, tmp_path: Path) -> None:
    described, ours = bench.ours([MODELS[name]], 60)
    theirs = bench.icarus(described, tmp_path)
    assert ours.outputs.tolist() == theirs.outputs.tolist()
    assert different(bench, ours) > 5


@needs_icarus
@pytest.mark.slow
def test_every_fault_of_one_net(bench: Bench, tmp_path: Path) -> None:
    described, ours = bench.ours(list(MODELS.values()), 12_000 if bench.case.name == "multiplier" else 1_500)
    assert ours.outputs.tolist() == bench.icarus(described, tmp_path).outputs.tolist()


def different(bench: Bench, outcome: Outcome) -> int:
    """How many faults change an output."""
    trace = bench.target.golden_trace(0)[:CYCLES]
    outputs = bench.target.simulator.design.outputs
    golden = np.stack([bench.target.simulator.read(trace, outputs[p]) for p in bench.case.outputs], axis=1)
    return int((outcome.outputs != golden.astype(np.int64)).any(axis=(1, 2)).sum())


@needs_icarus
@pytest.mark.parametrize("effect", ["wired_and", "wired_or", "dominant"])
def test_bridges(bench: Bench, effect: str, tmp_path: Path) -> None:
    """As the model defines them in every trial; and as unit delays have them, but for races through loops."""
    pairs = random_pairs(bench, 150 if bench.case.name == "multiplier" else 30)
    described, ours = bench.ours([HardwareFault(where="bridges", pairs=pairs, model=Bridge(effect=effect))])
    everyone = np.arange(len(described))
    stepped = bench.icarus(described, tmp_path, stepped=True)
    assert ours.oscillates.tolist() == stepped.oscillates.tolist()
    assert ours.until(everyone) == stepped.until(everyone)
    tied = bench.icarus(described, tmp_path)
    # what has no stable value oscillates with any delays
    never = ours.oscillates >= 0
    assert (tied.oscillates[never] >= 0).all() and (tied.oscillates[never] <= ours.oscillates[never]).all()
    same = (ours.outputs == tied.outputs).all(axis=(1, 2))
    loops = np.array([bench.loops(*fault["nets"]) for fault in described])
    assert same[~loops].all() and (tied.oscillates[~loops] < 0).all() and not never[~loops].any()
    calm = loops & ~never & (tied.oscillates < 0)
    assert 0 < loops.mean() < 0.7 and (not calm.any() or same[calm].mean() > 0.75)
    assert different(bench, ours) > 5
