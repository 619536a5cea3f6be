"""Several faults of one trial at one net, against their meaning cycle by cycle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.levels.hardware.effects import one_effect_at_a_time
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import ROW, WAYS, Simulator, Stimulus, Watch
from saboteur.levels.hardware.sites import Sites

CYCLES = 12
EFFECTS = ("flip", "zero", "one", "delay_rise", "delay_fall", "delay", "hold")
Fault = tuple[str, int, int]


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    source = tmp_path_factory.mktemp("net") / "net.v"
    source.write_text("module net(input a, input b, output y); assign y = a & b; endmodule\n")
    return Simulator(Design(read_verilog([source], "net", "gate")))


def meaning(driven: list[int], faults: list[Fault]) -> list[int]:
    """What the net reads."""
    seen, open_, held = [], None, 0
    for t, value in enumerate(driven):
        late = [f for f in faults if f[0] not in ("flip", "zero", "one") and f[1] < t < f[2]]
        masks = [f for f in faults if f[0] in ("flip", "zero", "one") and f[1] <= t < f[2]]
        opens = sorted((f for f in late if f[0] == "hold"), key=lambda f: f[1])
        if opens:
            if opens[0] is not open_:
                held = driven[t - 1]
            value, open_ = held, opens[0]
        else:
            open_ = None
            if masks:
                for kind, *_ in masks:
                    value = {"flip": 1 - value, "zero": 0, "one": 1}[kind]
            elif late:
                kinds = {f[0] for f in late}
                if value > driven[t - 1] and kinds & {"delay", "delay_rise"}:
                    value = 0
                elif value < driven[t - 1] and kinds & {"delay", "delay_fall"}:
                    value = 1
        seen.append(value)
    return seen


faults_at_one_net = st.lists(
    st.tuples(st.sampled_from(EFFECTS), st.integers(0, CYCLES - 1), st.integers(1, CYCLES)).filter(
        lambda f: f[1] < f[2]
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(trials=st.lists(faults_at_one_net, min_size=1, max_size=6), word=st.integers(0, 4**CYCLES - 1))
def test_faults_at_one_net(simulator: Simulator, trials: list[list[Fault]], word: int) -> None:
    bits = [[word >> (2 * t + k) & 1 for t in range(CYCLES)] for k in range(2)]
    driven = [a & b for a, b in zip(*bits, strict=True)]
    stimulus = Stimulus({"a": np.array([bits[0]], np.uint64), "b": np.array([bits[1]], np.uint64)})
    (group,) = Sites(simulator).groups("nets").values()
    rows = np.zeros(sum(map(len, trials)), ROW)
    for column in group.places.dtype.names or ():
        rows[column] = group.places[column][0]
    k = 0
    for fault, effects in enumerate(trials):
        for kind, on, off in effects:
            mask = {"flip": (1, 1), "zero": (0, 0), "one": (0, 1)}.get(kind)
            rows[k]["way"] = 0 if mask else WAYS.index(kind)
            rows[k]["a"], rows[k]["x"] = mask or (0, 1)
            rows[k]["fault"], rows[k]["on"], rows[k]["off"] = fault, on, off
            k += 1
    rows = one_effect_at_a_time(rows)
    expected = [meaning(driven, effects) for effects in trials]
    (slot,) = {piece[0] for piece in simulator.design.outputs["y"]}
    plain = simulator.run(stimulus, np.zeros(len(trials), np.int64), rows)
    assert plain is not None and plain[:, :CYCLES, slot].tolist() == expected
    golden = simulator.run(stimulus)
    assert golden is not None
    watch = Watch(np.array([slot], np.int32), np.ones((CYCLES, 1), np.bool_))
    found = simulator.respond(golden[0], [], watch, rows, len(trials)).differences
    ours = np.repeat(np.array([driven]), len(trials), axis=0)
    ours[found["fault"], found["cycle"]] = found["value"]
    assert ours.tolist() == expected
