"""Networks on arrays: the exact engine against the plain one, and what a target says of its faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.errors import FaultError, TargetError
from saboteur.faults import BitFlip, Faults, FaultSpace, StuckAt
from saboteur.levels.crosslayer.machine import DescribedMachine, HdlMachine
from saboteur.levels.crosslayer.spec import AcceleratorFault, AcceleratorSpec
from saboteur.levels.crosslayer.target import AcceleratorTarget
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.models import Open
from saboteur.outcomes.criteria import STANDARD
from saboteur.outcomes.recorder import Recorder
from saboteur.testing.targets import draw_faults
from tests.crosslayer.test_suffix import attention, residual

INT8_WORKLOADS = [name for name in workloads.names() if name.endswith("-int8")]
ARRAYS = {"output_stationary": designs.OutputStationary, "weight_stationary": designs.WeightStationary}

UPSETS = AcceleratorFault(where="flip_flops", model=BitFlip(), duration="transient")
STUCK = AcceleratorFault(where="flip_flops", model=StuckAt())
PULSES = AcceleratorFault(where="nets", model=BitFlip(), duration="transient")
OPEN = AcceleratorFault(where="nets", model=Open())
PINS = AcceleratorFault(where="pins", model=StuckAt(), duration="intermittent", activity=0.5)


def pair_of_engines(
    name: str, array: str, level: str = "word", inputs: int = 3
) -> tuple[AcceleratorTarget, AcceleratorTarget]:
    """The same target with the exact and the plain engine."""
    if name in INT8_WORKLOADS:
        workload = workloads.load(name)
        model, tensors, labels = workload.model, workload.inputs[:inputs], workload.labels[:inputs]
    else:
        model, tensors = {"residual": residual, "attention": attention}[name]()
        tensors, labels = tensors[:inputs], None
    outputs = "logits" if labels is not None else "values"
    both = [
        AcceleratorTarget(
            model, tensors, labels, array=ARRAYS[array](4, 3), level=level, outputs=outputs, engine=engine
        )
        for engine in ("exact", "plain")
    ]
    return both[0], both[1]


def observed(target: AcceleratorTarget, space: FaultSpace, faults: Faults) -> tuple[pa.Table, pa.Table]:
    """What a target's recorder has, and the kept outputs in order."""
    golden = target.golden()
    criteria = [criterion for criterion in STANDARD if golden.scores_classes]
    recorder = Recorder(golden, criteria, faults.trials, keep_outputs=True)
    target.inject(space, faults, recorder)
    pairs = recorder.pairs()
    assert pairs is not None
    return recorder.table(), pairs.sort_by([("trial", "ascending"), ("input", "ascending")])


def assert_engines_agree(
    name: str, array: str, spec: AcceleratorFault, level: str = "word", trials: int = 24, together: int = 1
) -> pa.Table:
    """Output by output, for random faults; gives the outputs that are not golden."""
    exact, plain = pair_of_engines(name, array, level)
    space = exact.space([spec])
    assert plain.space([spec]) == space
    faults = draw_faults(space, trials, rows=together, seed=trials)
    one, other = observed(exact, space, faults), observed(plain, space, faults)
    assert one[0].equals(other[0])
    assert one[1].equals(other[1])
    assert len(one[1])
    return one[1]


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("name", [*INT8_WORKLOADS, "residual", "attention"])
def test_upsets_equal_the_full_simulation_of_their_layer(name: str, array: str) -> None:
    assert_engines_agree(name, array, UPSETS)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("spec", [STUCK, PULSES, OPEN, PINS], ids=lambda spec: f"{spec.where}-{spec.model.kind}")
def test_every_kind_of_fault_equals_the_full_simulation(spec: AcceleratorFault, array: str) -> None:
    assert_engines_agree("digits-cnn-int8", array, spec, trials=16)


@pytest.mark.parametrize("array", ARRAYS)
def test_gates_equal_the_full_simulation(array: str) -> None:
    assert_engines_agree("digits-lenet7-int8", array, UPSETS, "gate", trials=8)
    assert_engines_agree("digits-lenet7-int8", array, PINS, "gate", trials=3)


@pytest.mark.parametrize("name", ["digits-mlp6-int8", "residual"])
def test_faults_that_act_together_in_several_layers(name: str) -> None:
    """A later layer's array multiplies what the earlier faults left."""
    assert_engines_agree(name, "output_stationary", UPSETS, trials=12, together=12)


def test_permanent_faults_act_in_every_layer() -> None:
    """In a trial with the output stuck, errors of one layer meet those of the next."""
    exact, plain = pair_of_engines("digits-mlp6-int8", "weight_stationary")
    space = exact.space([STUCK])
    faults = draw_faults(space, 12)
    assert observed(exact, space, faults)[1].equals(observed(plain, space, faults)[1])
    found = exact.deviations(space, faults)
    assert set(found["layer"].to_pylist()) == {layer.name for layer in exact.layers}


def test_space_by_hand() -> None:
    """Registers by layer; a layer's stream of tiles is as long as the array says."""
    target, _ = pair_of_engines("digits-cnn-int8", "output_stationary")
    space = target.space([UPSETS, STUCK])
    by_site = {(region.site, region.duration): region for region in space.regions}
    assert {region.component for region in space.regions} == {"a", "b", "acc", "valid", "clear", "drain"}
    # conv1: 64 positions x 8 channels of 9 taps on 4 x 3: 16 * 3 tiles of (9 + 4) cycles, then 4 + 3 to drain.
    acc = by_site["conv1/acc", "transient"]
    assert (acc.layer, acc.component, acc.shape, acc.format.bits) == ("conv1", "acc", (4, 3), 32)
    assert acc.steps == 16 * 3 * (9 + 4) + 4 + 3
    fc = by_site["fc/a", "transient"]
    assert fc.steps == 1 * 4 * (256 + 4) + 4 + 3
    stuck = by_site["acc", "permanent"]
    assert (stuck.layer, stuck.steps, stuck.size) == ("array", 1, 4 * 3 * 32 * 2)
    assert len(space.regions) == 3 * 6 + 6


def test_an_upset_in_an_accumulator_flips_a_bit_of_its_sum() -> None:
    """In the cycle after the last product, at the place that the mapping tells."""
    target, _ = pair_of_engines("digits-cnn-int8", "output_stationary", inputs=1)
    space = target.space([AcceleratorFault(where="flip_flops", names="acc", model=BitFlip(), duration="transient")])
    number = [layer.name for layer in target.layers].index("conv2")
    assert isinstance(target.machine, HdlMachine)
    layer, mapping = target.layers[number], target.machine.mappings[number]
    region = space.region_of("conv2/acc")
    place = mapping.where(37, layer.k - 1, 5)
    one = np.ones(1, np.int64)
    element = int(place.row) * 3 + int(place.col)
    for bit in (12, 20, 27):
        faults = Faults(one.astype(np.uint64), 0 * one, (region * one).astype(np.int32), element * one,
                        ((int(place.cycle) + 1) * one).astype(np.int32), bit * one)  # fmt: skip
        found = target.deviations(space, faults).to_pylist()
        workload = workloads.load("digits-cnn-int8")
        inputs = workload.model.conv1(workload.model.quantize(workload.inputs[:1]))
        a, b = layer.operands((inputs,))
        product = int(a[0, 37].astype(np.int64) @ b[0, :, 5].astype(np.int64))
        flipped = (product ^ (1 << bit)) & 0xFFFFFFFF
        where = (np.zeros(1, np.int64), np.array([37]), np.array([5]))
        golden, faulty = (int(layer.finish((inputs,), *where, np.array([value]))[0]) for value in (product, flipped))
        expected = {"trial": 0, "input": 0, "layer": "conv2", "component": "acc", "position": 5 * 64 + 37}
        assert found == ([expected | {"golden": golden, "faulty": faulty}] if golden != faulty else [])
        assert bit < 20 or found


def test_masking_accounts_for_every_pair() -> None:
    target, _ = pair_of_engines("digits-cnn-int8", "output_stationary")
    space = target.space([UPSETS])
    faults = draw_faults(space, 200)
    stages = target.masking(space, faults)
    assert stages.num_rows == 200 * 3
    _, outputs = observed(target, space, faults)
    ended = stages.filter(pa.compute.equal(stages["stage"], "output"))
    assert ended.select(["trial", "input"]).to_pylist() == outputs.select(["trial", "input"]).to_pylist()
    changed = target.deviations(space, faults)
    with_changes = set(zip(changed["trial"].to_pylist(), changed["input"].to_pylist(), strict=True))
    reached = stages.filter(pa.compute.is_in(stages["stage"], pa.array(["network", "output"])))
    assert with_changes == set(zip(reached["trial"].to_pylist(), reached["input"].to_pylist(), strict=True))
    assert {"array", "requantisation", "network", "output"} == set(stages["stage"].to_pylist())
    some = target.masking(space, faults, np.full((200, 1), 2))
    assert some["stage"].to_pylist() == stages["stage"].to_pylist()[2::3]


def test_trace_goes_from_the_sums_to_the_output() -> None:
    target, _ = pair_of_engines("digits-cnn-int8", "output_stationary")
    space = target.space([UPSETS])
    faults = draw_faults(space, 200)
    stages = target.masking(space, faults, np.zeros((200, 1), np.int64))["stage"].to_pylist()
    trial = next(t for t in range(200) if stages[t] == "output" and space.regions[faults.region[t]].layer == "conv1")
    traced = target.trace(space, faults.take([trial]), 0)
    changed = dict(zip(traced["place"].to_pylist(), traced["changed"].to_pylist(), strict=True))
    assert list(changed)[:5] == ["input", "quantize", "conv1/sums", "conv1", "conv2"]
    assert changed["quantize"] == 0 < changed["conv1/sums"]
    assert 0 < changed["conv1"] <= changed["conv1/sums"]
    assert changed["output"] > 0
    sums = traced.to_pylist()[2]
    assert sums["elements"] == 64 * 8
    assert sums["max_abs_error"] >= sums["rms_error"] > 0
    with pytest.raises(TargetError, match=r"input: 3 is outside 0 \.\. 2"):
        target.trace(space, faults, 3)


def test_few_inputs_fit_into_memory() -> None:
    """Golden values of some inputs make room for those of others; the answers stay the same."""
    workload = workloads.load("digits-cnn-int8")
    settings = {"array": designs.OutputStationary(4, 3)}
    plenty = AcceleratorTarget(workload.model, workload.inputs[:40], workload.labels[:40], **settings)
    few = AcceleratorTarget(workload.model, workload.inputs[:40], workload.labels[:40], **settings)
    few.__dict__["_keeps_operands"] = False
    few._golden_values.__init__(few._network, few._golden_values.tensors, 7)
    space = plenty.space([UPSETS])
    faults = draw_faults(space, 12)
    for one, other in zip(observed(plenty, space, faults), observed(few, space, faults), strict=True):
        assert one.equals(other)


ADAPTER = """
from saboteur.levels.hardware import designs
from saboteur.levels.crosslayer.arrays import ShippedArray
def array():
    return ShippedArray(designs.WeightStationary(2, 5))
def nothing():
    return object()
"""


def test_an_array_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ADAPTER)
    spec = AcceleratorSpec(workload="digits-mlp6-int8", array="own.py:array", inputs=2).located(tmp_path)
    target = spec.open(Resources())
    assert isinstance(target, AcceleratorTarget)
    assert isinstance(target.machine, HdlMachine)
    assert target.machine.simulator.array.cols == 5
    assert {region.component for region in target.space([UPSETS]).regions} >= {"weight", "sum", "activation"}
    with pytest.raises(TargetError, match=r"array: .*own.py:nothing returned a object without sources, top"):
        AcceleratorSpec(workload="digits-mlp6-int8", array="own.py:nothing").located(tmp_path).open(Resources())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "name either a workload, or a model and its data"),
        ({"workload": "x", "model": "y", "data": "z"}, "name either a workload"),
        ({"workload": "x", "array": "row_stationary"}, "neither output_stationary nor weight_stationary"),
        ({"workload": "x", "array": "a.py:f", "rows": 4}, "only a shipped array takes them"),
        ({"workload": "x", "architecture": "eyeriss", "cols": 4}, "it tells its own size"),
        ({"workload": "x", "rows": 0}, "greater than or equal to 1"),
        ({"workload": "x", "engine": "screened"}, "'plain' or 'exact'"),
        ({"workload": "x", "sizes": 3}, "Extra inputs are not permitted"),
    ],
)
def test_specs_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AcceleratorSpec.model_validate(settings)


def test_faults_that_make_no_sense() -> None:
    with pytest.raises(ValidationError, match="only transient faults on nets and pins have a capture window"):
        AcceleratorFault(where="flip_flops", model=BitFlip(), duration="transient", captured=0.5)
    with pytest.raises(ValidationError, match="bridges are faults of pairs of nets"):
        AcceleratorFault.model_validate({"where": "nets", "model": "bridge"})
    target, _ = pair_of_engines("digits-mlp6-int8", "output_stationary", inputs=1)
    with pytest.raises(FaultError, match=r"names: no flip_flops match 'ac'; did you mean 'acc'"):
        target.space([AcceleratorFault(where="flip_flops", names="ac", model=BitFlip())])
    with pytest.raises(FaultError, match="where: the array has no memories"):
        target.space([AcceleratorFault(where="memories", model=BitFlip())])
    with pytest.raises(FaultError, match="model: open is a fault of nets, not of pins"):
        target.space([AcceleratorFault(where="pins", model=Open())])
    with pytest.raises(FaultError, match="where: components are those of an architecture"):
        target.space([COMPONENTS])
    described = AcceleratorSpec(workload="digits-mlp6-int8", architecture="eyeriss", inputs=1).open(Resources())
    with pytest.raises(FaultError, match="where: flip_flops are those of an array in HDL"):
        described.space([UPSETS])
    with pytest.raises(FaultError, match="permanent stuck_at needs an array in HDL"):
        described.space([AcceleratorFault(where="components", model=StuckAt())])


def test_targets_that_make_no_sense() -> None:
    with pytest.raises(TargetError, match=r"layers: no int8 layer matches 'conv9'"):
        AcceleratorSpec(workload="digits-cnn-int8", layers="conv9").open(Resources())
    with pytest.raises(TargetError, match="calls no int8 layer"):
        AcceleratorSpec(workload="digits-cnn").open(Resources())
    with pytest.raises(TargetError, match=r"'eyeris' is not one of .*did you mean 'eyeriss'"):
        AcceleratorSpec(workload="digits-cnn-int8", architecture="eyeris").open(Resources())
    with pytest.raises(TargetError, match="runs on the cpu"):
        AcceleratorSpec(workload="digits-cnn-int8").open(Resources(device="cuda"))


COMPONENTS = AcceleratorFault(where="components", model=BitFlip(), duration="transient")


@pytest.mark.parametrize(
    ("array", "registers"),
    [
        ("output_stationary", {"activation": "a", "weight": "b", "accumulator": "acc"}),
        ("weight_stationary", {"activation": "activation", "weight": "weight", "sum": "sum"}),
    ],
)
def test_described_registers_err_as_those_in_hdl(array: str, registers: dict[str, str]) -> None:
    """The same word, cycle and bit, from the description and from RTL."""
    settings = {"workload": "digits-cnn-int8", "inputs": 2}
    described = AcceleratorSpec(architecture=array, **settings).open(Resources())
    in_hdl = AcceleratorSpec(array=array, rows=8, cols=8, **settings).open(Resources())
    assert isinstance(described, AcceleratorTarget) and isinstance(in_hdl, AcceleratorTarget)
    machine = described.machine
    assert isinstance(machine, DescribedMachine)
    spec = AcceleratorFault(where="components", names=tuple(registers), model=BitFlip(), duration="transient")
    space, other_space = described.space([spec]), in_hdl.space([UPSETS])
    faults = draw_faults(space, 60)
    region, element, step = (column.copy() for column in (faults.region, faults.element, faults.step))
    numbers = {layer.name: number for number, layer in enumerate(described.layers)}
    for trial in range(60):
        hit = space.regions[faults.region[trial]]
        word, cycle = machine.residence(numbers[hit.layer], hit.component).at(faults.element[trial : trial + 1])
        region[trial] = other_space.region_of(f"{hit.layer}/{registers[hit.component]}")
        element[trial], step[trial] = word[0], cycle[0]
    same = Faults(faults.key, faults.trial, region, element, step, faults.variant)
    one = described.deviations(space, faults).drop_columns("component")
    other = in_hdl.deviations(other_space, same).drop_columns("component")
    assert one.num_rows > 60
    assert sorted(map(str, one.to_pylist())) == sorted(map(str, other.to_pylist()))


def test_a_fault_in_global_control_ends_the_run() -> None:
    target = AcceleratorSpec(workload="digits-cnn-int8", architecture="output_stationary", inputs=2).open(Resources())
    assert isinstance(target, AcceleratorTarget)
    space = target.space([COMPONENTS])
    sequencer = [i for i, region in enumerate(space.regions) if region.component == "sequencer"]
    assert [space.regions[i].layer for i in sequencer] == ["conv1", "conv2", "fc"]
    assert {space.regions[i].shape[1] for i in sequencer} == {64}
    one = np.zeros(3, np.int64)
    faults = Faults(
        np.arange(3, dtype=np.uint64), np.arange(3), np.array(sequencer, np.int32), one, one.astype(np.int32), one
    )
    recorder = Recorder(target.golden(), STANDARD, 3)
    target.inject(space, faults, recorder)
    assert recorder.table()["crash"].to_pylist() == [2, 2, 2]
    assert set(target.masking(space, faults)["stage"].to_pylist()) == {"failure"}
    assert target.deviations(space, faults).num_rows == 0


def test_layers_may_stay_in_software() -> None:
    target = AcceleratorSpec(workload="digits-cnn-int8", layers=["conv2", "fc"], rows=4, cols=4, inputs=2).open(
        Resources()
    )
    assert isinstance(target, AcceleratorTarget)
    assert [layer.name for layer in target.layers] == ["conv2", "fc"]
    space = target.space([STUCK])
    faults = draw_faults(space, 8)
    assert set(target.deviations(space, faults)["layer"].to_pylist()) == {"conv2", "fc"}


def test_a_model_that_is_partly_in_floating_point_needs_the_plain_engine() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = workloads.load("digits-mlp6-int8").model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) - x.mean()

    inputs = workloads.load("digits-mlp6-int8").inputs[:4]
    with pytest.raises(TargetError, match="needs engine plain"):
        AcceleratorTarget(Mixed().eval(), inputs, array=designs.OutputStationary(4, 3))
