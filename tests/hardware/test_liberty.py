"""Cells of a Liberty file against the same cells written by hand, in Icarus: fault-free, and with every pin faulty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saboteur.campaign.target import Resources, Target
from saboteur.errors import TargetError
from saboteur.levels.hardware.collapse import collapse, first_detections
from saboteur.levels.hardware.importing import Netlist, from_json, read_verilog, write_verilog
from saboteur.levels.hardware.library import is_library_cell
from saboteur.levels.hardware.netlist import Design, Node
from saboteur.levels.hardware.simulate import ROW, Simulator, Stimulus
from saboteur.levels.hardware.sites import Sites
from saboteur.levels.hardware.spec import HardwareTarget
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from tests.hardware.icarus import Event, agree, needs_icarus, simulate
from tests.hardware.test_contract import DesignContract
from tests.hardware.test_faults import faulty, watched
from tests.hardware.test_golden import DESIGNS, INPUTS, random_stimulus, random_words

CELLS = Path(__file__).parent / "cells"
LIBERTY = CELLS / "small.lib"
CYCLES = 40
ALL = (1 << 64) - 1
SCAN = {"rst_n": 1, "set_n": 1, "en": 1, "se": 1, "si": 1, "d": 2}


def mapped(name: str) -> tuple[Netlist, Stimulus, dict[str, int]]:
    if name != "mapped":
        netlist = renamed(read_verilog([DESIGNS / f"{name}.v"], name, "gate", liberty=[LIBERTY]))
        return netlist, random_stimulus(name, INPUTS[name], runs=1, cycles=CYCLES), INPUTS[name]
    netlist = read_verilog([CELLS / "mapped.v"], "mapped", "gate", liberty=[LIBERTY])
    inputs = {port: random_words(k, width, 1, CYCLES) for k, (port, width) in enumerate(SCAN.items())}
    inputs["rst_n"] = (random_words(11, 3, 1, CYCLES) > 0).astype(np.uint64)
    inputs["set_n"] = (random_words(12, 3, 1, CYCLES) > 0).astype(np.uint64)
    inputs["rst_n"][:, :2], inputs["en"][:, :2], inputs["se"][:, :4] = 0, 1, 1
    return netlist, Stimulus(inputs), SCAN


def renamed(netlist: Netlist) -> Netlist:
    """Cells with names that Verilog can say."""
    modules = {
        name: {**module, "cells": {f"c{k}": cell for k, cell in enumerate(module["cells"].values())}}
        for name, module in netlist.modules.items()
    }
    return Netlist(modules, netlist.top, netlist.level)


def icarus(
    netlist: Netlist,
    folder: Path,
    inputs: dict[str, tuple[int, Sequence[int]]],
    outputs: dict[str, int],
    events: Sequence[Event] = (),
) -> dict[str, list[str]]:
    """The netlist as Verilog, with the cells by hand."""
    own = {name: module for name, module in netlist.modules.items() if not is_library_cell(module)}
    write_verilog(Netlist(own, netlist.top, netlist.level), folder / "netlist.v")
    return simulate([folder / "netlist.v", CELLS / "small.v"], netlist.top, inputs, outputs, events=events)


@needs_icarus
@pytest.mark.parametrize("name", ["mapped", "counter", "fifo", "latch"])
def test_equals_icarus(name: str, tmp_path: Path) -> None:
    netlist, stimulus, widths = mapped(name)
    kinds = {cell["type"] for module in netlist.modules.values() for cell in module["cells"].values()}
    assert len(kinds & {"NAND2_X1", "NOR2_X1", "INV_X1"}) >= 2
    simulator = Simulator(Design(netlist))
    trace = simulator.run(stimulus)[0]
    inputs = {port: (widths[port], words[0].tolist()) for port, words in stimulus.inputs.items()}
    outputs = {port: sum(piece[2] for piece in pieces) for port, pieces in simulator.design.outputs.items()}
    theirs = icarus(netlist, tmp_path, inputs, outputs)
    if name != "mapped":
        assert theirs == simulate([DESIGNS / f"{name}.v"], name, inputs, outputs)
    for port, pieces in simulator.design.outputs.items():
        assert agree(simulator.read(trace[:CYCLES], pieces).tolist(), theirs[port]), port


def pins(simulator: Simulator) -> list[tuple[np.void, str, str, str]]:
    """Place, cell, pin and name of every net and pin."""
    found = []
    for kind in ("nets", "pins"):
        for group in Sites(simulator).groups(kind).values():
            for place, name in zip(group.places, group.names, strict=True):
                node = simulator.design.nodes[place["place"]]
                assert isinstance(node, Node)
                number = simulator.compiled.number[node.slice.module.name, node.slice.index]
                site = next(s for s in simulator.compiled.hooked_code[number].sites if s.offset == place["offset"])
                cell = node.slice.module.cells[site.cell]
                found.append((place, cell.name, str(cell.pin(site.port)), name))
    return found


def test_sites_are_the_pins_of_the_cells() -> None:
    """All pins but those of clocks; outputs that show a state directly are its flip-flop's."""
    simulator = Simulator(Design(mapped("mapped")[0]))
    named = {(cell, pin) for _, cell, pin, _ in pins(simulator)}
    expected = {
        *[("i0", pin) for pin in ("A", "ZN")],
        *[("a0", pin) for pin in ("A", "B1", "B2", "ZN")],
        *[("h0", pin) for pin in ("A", "B", "CO", "S")],
        ("t0", "Z"),
        *[("g0", pin) for pin in ("A1", "A2", "ZN")],
        *[("m0", pin) for pin in ("A", "B", "S", "Z")],
        *[("r0", pin) for pin in ("D", "E", "Q")],
        *[("r1", pin) for pin in ("D", "RN", "SN", "Q", "QN")],
        *[("r2", pin) for pin in ("D", "SE", "SI")],
        *[("r3", pin) for pin in ("D", "RN", "QN")],
        *[("b0", pin) for pin in ("A", "Z")],
        *[("g1", pin) for pin in ("A1", "A2", "ZN")],
    }
    assert named == expected
    names = {name for *_, name in pins(simulator)}
    assert {"n1", "a0.B2", "r1.SN", "carry"} <= names
    states = [group.names for group in Sites(simulator).groups("flip_flops").values()]
    assert sorted(name for group in states for name in group) == ["q[0]", "q[1]", "q[2]", "sn"]


@needs_icarus
@pytest.mark.parametrize("name", ["mapped", "counter"])
def test_faulty_pins_equal_icarus(name: str, tmp_path: Path) -> None:
    """Each pin stuck at 0, stuck at 1, and pulsed in one cycle; each flip-flop upset."""
    netlist, stimulus, widths = mapped(name)
    simulator = Simulator(Design(netlist))
    rng = np.random.default_rng(3)
    sites = [(place, f"dut.{cell}.{pin}_") for place, cell, pin, _ in pins(simulator)]
    rows = np.zeros(3 * len(sites), ROW)
    events = []
    for f, (place, wire) in enumerate(site for site in sites for _ in range(3)):
        for column in place.dtype.names:
            rows[f][column] = place[column]
        rows[f]["fault"], model, on = f, f % 3, int(rng.integers(2, CYCLES - 1))
        if model == 2:
            rows[f]["on"], rows[f]["off"], rows[f]["a"], rows[f]["x"] = on, on + 1, ALL, 1
            events += [Event(f * CYCLES + on, f"force {wire} = ~{wire};")]
            events += [Event(f * CYCLES + on + 1, f"release {wire};")]
        else:
            rows[f]["off"], rows[f]["x"] = CYCLES, model
            events += [Event(f * CYCLES, f"force {wire} = {model};"), Event((f + 1) * CYCLES, f"release {wire};")]
    upsets = [place for group in Sites(simulator).groups("flip_flops").values() for place in group.places]
    names = [n for group in Sites(simulator).groups("flip_flops").values() for n in group.names]
    more = np.zeros(len(upsets), ROW)
    for f, (place, state) in enumerate(zip(upsets, names, strict=True), len(rows)):
        row, on = more[f - len(rows)], int(rng.integers(4, CYCLES - 1))
        row["fault"], row["place"], row["on"], row["off"], row["a"], row["x"] = f, place["place"], on, on + 1, ALL, 1
        cell = flip_flop(netlist, state)
        events.append(Event(f * CYCLES + on, f"dut.{cell}.IQ = ~dut.{cell}.IQ;"))
    rows = np.concatenate([rows, more])
    stores = {flip_flop(netlist, state) for state in names}
    cleared = " ".join(f"dut.{cell}.IQ = 0;" for cell in sorted(stores))
    events += [Event(f * CYCLES, cleared) for f in range(len(rows))]
    events.sort(key=lambda event: (event.cycle, event.statement.startswith("force")))
    golden = simulator.run(stimulus)[0]
    watch = watched(simulator)
    response = simulator.respond(golden, [], watch, rows, len(rows))
    trace = np.repeat(golden[None, :CYCLES], len(rows), axis=0)
    trace[:, :, watch.slots] = faulty(simulator, golden, watch, response.differences, len(rows))
    inputs = {p: (widths[p], np.tile(words[0], len(rows)).tolist()) for p, words in stimulus.inputs.items()}
    outputs = {port: sum(piece[2] for piece in pieces) for port, pieces in simulator.design.outputs.items()}
    theirs = icarus(netlist, tmp_path, inputs, outputs, events)
    settled = np.arange(len(rows) * CYCLES).reshape(len(rows), CYCLES)[:, 4:].ravel()
    for port, pieces in simulator.design.outputs.items():
        values = simulator.read(trace, pieces).ravel()
        assert agree(values[settled].tolist(), [theirs[port][k] for k in settled]), port
    assert len(np.unique(response.differences["fault"])) > len(rows) // 2


def flip_flop(netlist: Netlist, state: str) -> str:
    """The cell whose Q or QN is the net of this name."""
    module = netlist.modules[netlist.top]
    base, _, k = state.rstrip("]").partition("[")
    net = module["netnames"][base]["bits"][int(k or 0)]
    found = [
        n
        for n, c in module["cells"].items()
        if net in (*c["connections"].get("Q", ()), *c["connections"].get("QN", ()))
    ]
    return found[0]


def test_collapsing() -> None:
    """By hand: NAND2 and INV in a row have 3 lines of inputs, 1 between, 1 output; 4 of 10 faults stay."""
    design = {
        "modules": {
            "t": {
                "attributes": {"top": "1"},
                "ports": {
                    "a": {"direction": "input", "bits": [2]},
                    "b": {"direction": "input", "bits": [3]},
                    "y": {"direction": "output", "bits": [5]},
                },
                "cells": {
                    "u": cell("NAND2_X1", A1=2, A2=3, ZN=4),
                    "v": cell("INV_X1", A=4, ZN=5),
                },
                "netnames": {},
            }
        }
    }
    simulator = Simulator(Design(from_json(design, "t", "gate", [LIBERTY])))
    collapsed = collapse(Sites(simulator), simulator.design)
    # lines a, b, u.ZN, v.ZN; a/0, b/0, ZN/1 and y/0 are the same, u.ZN/0 and y/1 are
    assert (collapsed.total, len(collapsed.places), collapsed.untestable) == (8, 4, 0)
    assert sorted(collapsed.size.tolist()) == [1, 1, 2, 4]
    assert len(collapse(Sites(simulator), simulator.design, dominance=True).places) == 3


def cell(kind: str, **pins: int) -> dict[str, object]:
    connections = {pin: [bit] for pin, bit in pins.items()}
    return {"type": kind, "parameters": {}, "attributes": {}, "connections": connections}


def test_collapsing_loses_no_detection() -> None:
    """All faults of all pins are first seen in the cycles in which the collapsed ones are."""
    netlist, stimulus, _ = mapped("mapped")
    simulator = Simulator(Design(netlist))
    sites = Sites(simulator)
    collapsed = collapse(sites, simulator.design)
    assert collapsed.size.sum() + collapsed.untestable == collapsed.total
    everything = [(place, value) for place, _ in sites.lines().values() for value in (0, 1)]
    everything.sort(key=lambda fault: fault[0].tolist())
    places, values = zip(*everything, strict=True)
    whole = replace(collapsed, places=np.array(places), value=np.array(values, np.uint8))
    golden, watch = simulator.run(stimulus)[0], watched(simulator)
    seen = []
    for faults in (collapsed, whole):
        rows = faults.rows(CYCLES)
        response = simulator.respond(golden, [], watch, rows, len(rows))
        seen.append(first_detections(response.differences, len(rows)))
    assert len(collapsed.places) < len(whole.places)
    assert set(seen[0][seen[0] >= 0]) == set(seen[1][seen[1] >= 0])
    detected = (seen[0] >= 0).sum()
    assert detected > len(seen[0]) // 2


def test_from_a_campaign_file(tmp_path: Path) -> None:
    (tmp_path / "counter.v").write_text((DESIGNS / "counter.v").read_text())
    (tmp_path / "small.lib").write_text(LIBERTY.read_text())
    rows = "\n".join(f"{int(t > 1)},1,0,0" for t in range(12))
    (tmp_path / "in.csv").write_text("rst_n,enable,load,start\n" + rows)
    settings = {"sources": "counter.v", "top": "counter", "stimulus": "in.csv", "outputs": "count", "first_cycle": 2}
    spec = HardwareTarget(**settings, level="gate", liberty="small.lib").located(tmp_path)
    target = spec.open(Resources())
    assert isinstance(target, DesignTarget)
    assert target.golden().outputs.tolist() == [list(range(10))]
    with pytest.raises(TargetError, match="liberty: its cells are gates; set level to gate"):
        HardwareTarget(**settings, liberty="small.lib").located(tmp_path).open(Resources())


def test_bad_libraries(tmp_path: Path) -> None:
    counter = DESIGNS / "counter.v"
    with pytest.raises(TargetError, match=r"liberty: no file '.*none\.lib'"):
        read_verilog([counter], "counter", "gate", liberty=[tmp_path / "none.lib"])
    (tmp_path / "bad.lib").write_text("library(x) {\n  cell(A) {\n    pin(Y) { direction = ; }\n")
    with pytest.raises(TargetError, match=r"liberty: .*line 3"):
        read_verilog([counter], "counter", "gate", liberty=[tmp_path / "bad.lib"])
    (tmp_path / "t.v").write_text("module t(input a, output y);\nMACRO_X1 m(.A(a), .Y(y));\nendmodule")
    macro = "library(x) { cell(MACRO_X1) { pin(A) { direction : input; } pin(Y) { direction : output; } } }"
    (tmp_path / "macro.lib").write_text(macro)
    with pytest.raises(TargetError, match="MACRO_X1"):
        read_verilog([tmp_path / "t.v"], "t", "gate", liberty=[LIBERTY, tmp_path / "macro.lib"])


def test_library_cells_are_part_of_the_digest(tmp_path: Path) -> None:
    other = tmp_path / "other.lib"
    other.write_text(LIBERTY.read_text().replace('"!(A1 & A2)"', '"(A1 & A2)"'))
    one, two = (read_verilog([CELLS / "mapped.v"], "mapped", "gate", liberty=[file]) for file in (LIBERTY, other))
    assert one.digest != two.digest
    assert str(tmp_path) not in json.dumps(two.modules)


class TestMapped(DesignContract):
    """Every kind of fault, side by side and one by one, in a netlist of library cells."""

    ports = (Observed("q"), Observed("carry"), Observed("y"))

    def _target(self, stimulus: Stimulus) -> Target:
        strobe = np.arange(stimulus.cycles) >= 6
        return DesignTarget(mapped("mapped")[0], stimulus, Observation(self.ports, strobe=strobe), first_cycle=2)

    def _stimulus(self) -> Stimulus:
        inputs = {port: np.repeat(words, 3, axis=0) for port, words in mapped("mapped")[1].inputs.items()}
        inputs["d"] = np.concatenate([inputs["d"][:1], random_words(20, 2, 2, CYCLES)])
        inputs["set_n"][:, 38:] = 1
        return Stimulus(inputs)

    def open_changed(self) -> Target:
        inputs = {port: words.copy() for port, words in self._stimulus().inputs.items()}
        inputs["d"][0, 20] ^= 1
        return self._target(Stimulus(inputs))
