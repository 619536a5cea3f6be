"""Faulty machines, side by side, equal the same machines one by one, Icarus' and a naive simulator's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from saboteur.faults import BitFlip, Faults, RandomValue, StuckAt
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import ROW, Simulator, Stimulus, Watch
from saboteur.levels.hardware.sites import Sites
from saboteur.levels.hardware.spec import HardwareFault
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from saboteur.levels.hardware.waves import write_waves
from saboteur.testing.targets import draw_faults
from tests.hardware.gates import as_verilog
from tests.hardware.icarus import Event, agree, needs_icarus, simulate
from tests.hardware.test_golden import DESIGNS, INPUTS, random_stimulus

CYCLES = 40
ALL = (1 << 64) - 1


def opened(name: str, level: str) -> tuple[Simulator, Stimulus]:
    simulator = Simulator(Design(read_verilog([DESIGNS / f"{name}.v"], name, level)))
    return simulator, random_stimulus(name, INPUTS[name], runs=1, cycles=CYCLES)


def everything(simulator: Simulator, kinds: tuple[str, ...]) -> tuple[NDArray, NDArray, list[str]]:
    """The place, width and name of every site."""
    groups = [group for kind in kinds for group in Sites(simulator).groups(kind).values()]
    width = np.concatenate([np.full(len(group.places), group.width) for group in groups])
    return np.concatenate([group.places for group in groups]), width, [n for group in groups for n in group.names]


def single_faults(simulator: Simulator, kinds: tuple[str, ...], count: int, seed: int = 5) -> NDArray:
    """Random flips of one cycle and stuck bits, in order of place."""
    rng = np.random.default_rng(seed)
    places, width, _ = everything(simulator, kinds)
    chosen = np.sort(rng.integers(0, len(places), count))
    rows = np.zeros(count, ROW)
    rows["fault"] = np.arange(count)
    for name in places.dtype.names:
        rows[name] = places[name][chosen]
    bit = np.uint64(1) << rng.integers(0, width[chosen]).astype(np.uint64)
    model = rng.integers(0, 3, count)
    rows["on"] = np.where(model == 0, rng.integers(0, CYCLES, count), 0)
    rows["off"] = np.where(model == 0, rows["on"] + 1, CYCLES)
    rows["a"] = np.where(model == 0, np.uint64(ALL), ~bit)
    rows["x"] = np.where(model == 1, np.uint64(0), bit)
    return rows


def watched(simulator: Simulator) -> Watch:
    slots = {piece[0] for pieces in simulator.design.outputs.values() for piece in pieces if piece[0] >= 0}
    return Watch(np.array(sorted(slots), np.int32), np.ones((CYCLES, len(slots)), np.bool_))


def faulty(simulator: Simulator, golden: NDArray, watch: Watch, differences: NDArray, faults: int) -> NDArray:
    values = np.repeat(golden[None, :CYCLES, watch.slots], faults, axis=0)
    values[differences["fault"], differences["cycle"], differences["output"]] = differences["value"]
    return values


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for name in ("counter", "fifo", "array", "ripple") for level in ("word", "gate")]
    + [("alu", "word")],
)
def test_only_what_differs_equals_everything(name: str, level: str) -> None:
    simulator, stimulus = opened(name, level)
    kinds = ("flip_flops", "inputs", "memories", "nets", "pins")
    kinds = tuple(kind for kind in kinds if Sites(simulator).groups(kind))
    count = 700
    rows = single_faults(simulator, kinds, count)
    golden = simulator.run(stimulus)[0]
    memories = [np.array(memory.initial, np.uint64) for memory in simulator.design.memories]
    watch = watched(simulator)
    plain = simulator.run(stimulus, np.zeros(count, np.int64), rows)
    expected = plain[:, :CYCLES, watch.slots]
    for group in (None, 7):
        response = simulator.respond(golden, memories, watch, rows, count, group=group)
        assert (faulty(simulator, golden, watch, response.differences, count) == expected).all()
        states = simulator.design.states
        same = (plain[:, CYCLES, states] == golden[CYCLES, states]).all(axis=1)
        assert (same | (response.converged == -1)).all()
        if not simulator.design.memories:
            assert (same == (response.converged >= 0)).all()
    assert (expected != golden[:CYCLES, watch.slots]).any(axis=(1, 2)).sum() > count // 10
    dropped = simulator.respond(golden, memories, watch, rows, count, drop=True)
    changed = (expected != golden[:CYCLES, watch.slots]).any(axis=2)
    first = np.where(changed.any(axis=1), changed.argmax(axis=1), CYCLES)
    when = np.full(count, CYCLES)
    np.minimum.at(when, dropped.differences["fault"], dropped.differences["cycle"])
    assert (when == first).all()
    assert ((dropped.converged <= -2) == changed.any(axis=1)).all()


@needs_icarus
@pytest.mark.parametrize("name", ["counter", "array", "fifo"])
def test_upset_registers_equal_icarus(name: str) -> None:
    simulator, stimulus = opened(name, "word")
    places, width, names = everything(simulator, ("flip_flops",))
    rng = np.random.default_rng(2)
    count = 16
    chosen = rng.integers(0, len(places), count)
    bit, on = rng.integers(0, width[chosen]), rng.integers(2, CYCLES, count)
    rows = np.zeros(count, ROW)
    rows["fault"], rows["place"] = np.arange(count), places["place"][chosen]
    rows["on"], rows["off"], rows["a"], rows["x"] = on, on + 1, ALL, np.uint64(1) << bit.astype(np.uint64)
    golden = simulator.run(stimulus)[0]
    memories = [np.array(memory.initial, np.uint64) for memory in simulator.design.memories]
    watch = watched(simulator)
    response = simulator.respond(golden, memories, watch, rows, count)
    ours = faulty(simulator, golden, watch, response.differences, count)
    trace = np.repeat(golden[None, :CYCLES], count, axis=0)
    trace[:, :, watch.slots] = ours
    inputs = {port: (INPUTS[name][port], words[0].tolist()) for port, words in stimulus.inputs.items()}
    widths = {port: sum(piece[2] for piece in pieces) for port, pieces in simulator.design.outputs.items()}
    for f, c in enumerate(chosen):
        upset = Event(int(on[f]), f"dut.{names[c]} = dut.{names[c]} ^ {1 << int(bit[f])};")
        theirs = simulate([DESIGNS / f"{name}.v"], name, inputs, widths, events=[upset])
        for port, pieces in simulator.design.outputs.items():
            assert agree(simulator.read(trace[f], pieces).tolist(), theirs[port]), (port, names[c])
    assert len(np.unique(response.differences["fault"])) > count // 4


@needs_icarus
@pytest.mark.parametrize("name", ["counter", "ripple", "multiplier"])
def test_faulty_gates_equal_icarus(name: str, tmp_path: Path) -> None:
    simulator, stimulus = opened(name, "gate")
    design = simulator.design
    text, where = as_verilog(design.netlist)
    source = tmp_path / "gates.v"
    source.write_text(text)
    groups = Sites(simulator)
    sites = [
        (place, name_, node)
        for kind in ("nets", "pins")
        for group in groups.groups(kind).values()
        for place, name_ in zip(group.places, group.names, strict=True)
        for node in [design.nodes[place["place"]]]
    ]
    rng = np.random.default_rng(9)
    chosen = rng.permutation(len(sites))[:60]
    rows, events = np.zeros(len(chosen), ROW), []
    for f, s in enumerate(chosen):
        place, _, node = sites[s]
        number = simulator.compiled.number[node.slice.module.name, node.slice.index]
        site = next(x for x in simulator.compiled.hooked_code[number].sites if x.offset == place["offset"])
        cell = node.slice.module.cells[site.cell].name.rsplit("\\", 1)[-1]
        wire = where[".".join(filter(None, [node.instance, f"{cell}.{site.port}"]))]
        for column in ("kind", "place", "offset", "size"):
            rows[f][column] = place[column]
        model, on = rng.integers(0, 3), int(rng.integers(0, CYCLES))
        rows[f]["fault"] = f
        if model == 2:
            rows[f]["on"], rows[f]["off"], rows[f]["a"], rows[f]["x"] = on, on + 1, ALL, 1
            events.append(Event(f * CYCLES + on, f"force {wire} = ~{wire};"))
            events.append(Event(f * CYCLES + on + 1, f"release {wire};"))
        else:
            rows[f]["on"], rows[f]["off"], rows[f]["x"] = 0, CYCLES, model
            events.append(Event(f * CYCLES, f"force {wire} = {model};"))
            events.append(Event((f + 1) * CYCLES, f"release {wire};"))
    events.sort(key=lambda event: (event.cycle, event.statement.startswith("force")))
    count = len(rows)
    golden = simulator.run(stimulus)[0]
    watch = watched(simulator)
    order = np.argsort(rows["place"], kind="stable")
    ordered = rows[order]
    ordered["fault"] = np.arange(count)
    response = simulator.respond(golden, [], watch, ordered, count)
    ours = np.empty((count, CYCLES, len(watch.slots)), golden.dtype)
    ours[order] = faulty(simulator, golden, watch, response.differences, count)
    trace = np.repeat(golden[None, :CYCLES], count, axis=0)
    trace[:, :, watch.slots] = ours
    inputs = {p: (INPUTS[name][p], np.tile(words[0], count).tolist()) for p, words in stimulus.inputs.items()}
    widths = {port: sum(piece[2] for piece in pieces) for port, pieces in design.outputs.items()}
    top = f"m{list(design.netlist.modules).index(design.netlist.top)}"
    theirs = simulate([source], top, inputs, widths, events=events)
    for port, pieces in design.outputs.items():
        settled = np.arange(count * CYCLES).reshape(count, CYCLES)[:, 2:].ravel()
        values = simulator.read(trace, pieces).ravel()
        assert agree(values[settled].tolist(), [theirs[port][k] for k in settled]), port
    assert len(np.unique(response.differences["fault"])) > count // 3


@needs_icarus
@pytest.mark.parametrize("level", ["word", "gate"])
def test_faulty_data_read_from_a_memory_equals_icarus(level: str) -> None:
    """Pulses on bits of what the port reads, and data that are stuck."""
    simulator, stimulus = opened("fifo", level)
    nets = {
        name: (place, group.width)
        for group in Sites(simulator).groups("nets").values()
        for name, place in zip(group.names, group.places, strict=True)
        if name.startswith("dout")
    }
    assert len(nets) == (1 if level == "word" else 8)
    inputs = {port: (INPUTS["fifo"][port], words[0].tolist()) for port, words in stimulus.inputs.items()}
    widths = {port: sum(piece[2] for piece in pieces) for port, pieces in simulator.design.outputs.items()}
    rng = np.random.default_rng(8)
    rows, events = [], []
    for fault in range(12):
        word = int(rng.integers(1, 256))
        on, stuck = int(rng.integers(5, CYCLES - 4)), fault % 2
        for bit in range(8) if level == "gate" else [0]:
            place, width = nets["dout" if level == "word" else f"dout[{bit}]"]
            row = np.zeros(1, ROW)
            for column in place.dtype.names:
                row[column] = place[column]
            row["fault"], row["on"], row["off"] = fault, on, on + (3 if stuck else 1)
            row["a"], row["x"] = 0 if stuck else ALL, word >> bit & ((1 << width) - 1)
            rows.append(row)
        value = word if stuck else f"dut.store[dut.head] ^ {word}"
        events.append([Event(on, f"force dut.dout = {value};"), Event(on + (3 if stuck else 1), "release dut.dout;")])
    table = np.concatenate(rows)
    golden = simulator.run(stimulus)[0]
    memories = [np.array(memory.initial, np.uint64) for memory in simulator.design.memories]
    watch = watched(simulator)
    response = simulator.respond(golden, memories, watch, table, len(events))
    ours = np.repeat(golden[None, :CYCLES], len(events), axis=0)
    ours[:, :, watch.slots] = faulty(simulator, golden, watch, response.differences, len(events))
    plain = simulator.run(stimulus, np.zeros(len(events), np.int64), table)
    assert (plain[:, :CYCLES, watch.slots] == ours[:, :, watch.slots]).all()
    for fault, statements in enumerate(events):
        theirs = simulate([DESIGNS / "fifo.v"], "fifo", inputs, widths, events=statements)
        for port, pieces in simulator.design.outputs.items():
            assert agree(simulator.read(ours[fault], pieces).tolist(), theirs[port]), (port, fault)
    assert len(np.unique(response.differences["fault"])) == len(events)


@pytest.mark.parametrize("name", ["counter", "array"])
def test_neighbouring_flip_flops_fail_alike_at_both_levels(name: str) -> None:
    """Two adjacent bits of a register, and random values in one, at register-transfer and at gate level."""
    found = []
    for level in ("word", "gate"):
        netlist = read_verilog([DESIGNS / f"{name}.v"], name, level, {"N": 2} if name == "array" else None)
        widths = INPUTS[name] if name == "counter" else {"rst": 1, "clear": 2, "en": 2, "a": 16, "b": 16}
        stimulus = random_stimulus(name, widths, runs=1, cycles=CYCLES)
        port = "count" if name == "counter" else "c"
        observation = Observation((Observed(port, lanes=1 if name == "counter" else 4),))
        target = DesignTarget(netlist, stimulus, observation, first_cycle=2)
        register = "count" if name == "counter" else "acc"
        upsets = HardwareFault(
            where="flip_flops", names=register, model=BitFlip(count=2, adjacent=True), duration="transient"
        )
        values = HardwareFault(where="flip_flops", names=register, model=RandomValue(), duration="transient")
        space = target.space([upsets, values])
        faults = draw_faults(space, 300)
        golden = target.golden_trace(0)
        trace = target.simulator.run(stimulus, np.zeros(300, np.int64), target.rows(space, faults))
        assert trace is not None
        outputs = target.observer.golden(trace)
        assert (outputs != target.observer.golden(golden[None])).any(axis=1).mean() > 0.5
        found.append((space.size, [region.site for region in space.regions], outputs.tolist()))
    assert found[0] == found[1]
    bits = 3 if name == "counter" else 4 * 31
    assert found[0][0] == (bits + (1 if name == "counter" else 4)) * (CYCLES - 2)


@pytest.mark.parametrize("level", ["word", "gate"])
def test_nets_inside_of_slices_can_be_seen(level: str, tmp_path: Path) -> None:
    """What a gate drives for its neighbour only, fault-free and stuck."""
    netlist = read_verilog([DESIGNS / "inner.v"], "inner", level)
    words = np.random.default_rng(0).integers(0, 256, (2, 1, CYCLES), np.uint64)
    stimulus = Stimulus({"a": words[0], "b": words[1]})
    target = DesignTarget(netlist, stimulus, Observation((Observed("y"),)))
    space = target.space([HardwareFault(where="nets", model=StuckAt(value=1))])
    places = {target.names(r)[e]: (k, e) for k, r in enumerate(space.regions) for e in range(r.shape[0])}
    region, element = places["both" if level == "word" else "both[0]"]
    none = np.zeros(1, np.int64)
    faults = Faults(none.astype(np.uint64), none, np.array([region], np.int32), np.array([element]), none, none)
    golden, faulty = target.traces(target.rows(space, faults), 0, nets=True)
    slots = len(target.simulator.design.slots)
    column = {net.name: slots + k for k, net in enumerate(target.inner_nets)}
    assert golden.shape == faulty.shape == (CYCLES, slots + len(column))
    both = words[0, 0] & words[1, 0]
    if level == "word":
        assert golden[:, column["both"]].tolist() == both.tolist()
        assert faulty[:, column["both"]].tolist() == (both | np.uint64(1)).tolist()
    else:
        bits = np.stack([golden[:, column[f"both[{k}]"]] for k in range(8)], axis=1)
        assert (bits @ (1 << np.arange(8)) == both).all()
        assert (faulty[:, column["both[0]"]] == 1).all()
    assert len(target.simulator.run(stimulus)[0, 0]) == slots
    write_waves(tmp_path / "trial.vcd", [*target.simulator.design.slots, *target.inner_nets], golden, faulty)
    assert (tmp_path / "trial.vcd").read_text().count(f" both{'[0]' * (level == 'gate')} $end") == 2
