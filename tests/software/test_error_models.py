"""Learned error models at the software level: what they put where, against runs by hand, on int8 and float networks."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from saboteur import workloads
from saboteur.campaign.model import Campaign
from saboteur.campaign.target import FaultSpec
from saboteur.errors import CampaignError, FaultError
from saboteur.faults import BitFlip
from saboteur.faults.error_models import Change, ErrorModel, PatternErrors, Profile, Spread
from saboteur.faults.error_permanent import ChannelErrors, LayerErrors, PermanentProfile, Place, Repeats
from saboteur.faults.error_sampling import PermanentErrors, PermanentSampler, Sampler
from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software import injection
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.criteria import Sdc1
from saboteur.outcomes.golden import Golden
from saboteur.outcomes.recorder import Recorder
from saboteur.testing.targets import draw_faults
from tests.software.test_contract import SoftwareContract


def profile(component: str, population: int, masked: int = 0, **changes: object) -> Profile:
    """Of single errors and bullet wakes."""
    common = {"shape": "small_map", "component": component, "population": population, "inferences": 100 + masked}
    return Profile(
        patterns=(
            PatternErrors(
                pattern="single",
                spreads=(Spread(count=60),),
                changes=(Change(change="+2^5", count=30), Change(change=">-2^6", count=30)),
            ),
            PatternErrors(
                pattern="bullet_wake",
                spreads=(Spread(channels=3, channel_span=4, elements=3, count=40),),
                changes=(Change(change="-2^6", count=40, others={"+2^4": 20, "-2^6": 60}),),
            ),
        ),
        **(common | changes),
    )


MODEL = ErrorModel(title="by hand", profiles=(profile("acc", 300, masked=60), profile("weight", 100)))
SPEC = SoftwareFault(where="outputs", model=MODEL, duration="transient", layers=("conv*", "fc*"))


def open_target(workload: str = "digits-cnn-int8", inputs: int = 30, engine: str = "exact") -> SoftwareTarget:
    loaded = workloads.load(workload)
    return SoftwareTarget(loaded.model, loaded.inputs[:inputs], loaded.labels[:inputs], engine=engine)


class Kept:
    """A recorder that keeps what it is given."""

    def __init__(self, golden: Golden, trials: int):
        self.recorder = Recorder(golden, [Sdc1()], trials, keep_outputs=True)

    def outputs(self) -> dict[tuple[int, int], bytes]:
        self.recorder.table()
        pairs = self.recorder.pairs()
        columns = (pairs["trial"].to_pylist(), pairs["input"].to_pylist(), pairs["output"].to_pylist())
        return {(t, i): np.array(o).tobytes() for t, i, o in zip(*columns, strict=True)}


def injected(target: SoftwareTarget, space: FaultSpace, faults: Faults) -> dict[tuple[int, int], bytes]:
    kept = Kept(target.golden(), faults.trials)
    target.inject(space, faults, kept.recorder)
    return kept.outputs()


class TestErrorsOfAModel(SoftwareContract):
    inputs = workloads.load("digits-cnn-int8").inputs[:20]
    settings: ClassVar[dict] = {"labels": workloads.load("digits-cnn-int8").labels[:20]}

    @staticmethod
    def model() -> nn.Module:
        return workloads.load("digits-cnn-int8").model

    def specs(self) -> list[FaultSpec]:
        return [SPEC]


@pytest.mark.parametrize("workload", ["digits-cnn-int8", "digits-cnn"])
@pytest.mark.parametrize("rows", [1, 2])
def test_runs_that_share_a_batch_equal_runs_one_by_one(workload: str, rows: int) -> None:
    target = open_target(workload, engine="plain")
    space = target.space([SPEC])
    faults = draw_faults(space, 40, rows)
    together = injected(target, space, faults)
    alone = Kept(target.golden(), faults.trials)
    sites = {name: target._site(name) for name in space.sites}
    with target._runner.prepared():
        injection.inject(target._runner, sites, space, faults, alone.recorder)
    assert together == alone.outputs()
    assert len(together) > 300


def test_outputs_change_by_what_was_drawn() -> None:
    """The layer's output in a run by hand, with what the sampler draws put in, gives the same network output."""
    loaded = workloads.load("digits-cnn-int8")
    target = open_target()
    space = target.space([SPEC])
    faults = draw_faults(space, 30)
    found = injected(target, space, faults)
    golden = target.golden().outputs
    model, checked = loaded.model, 0
    for trial in range(faults.trials):
        region = space.regions[faults.region[trial]]
        site = target._site(region.site)
        sampler = Sampler(region.model.profile, site.known)
        key = region.model.key(region.site, faults.element[[trial]], faults.variant[[trial]])
        drawn = sampler.draw(key, faults.element[[trial]])

        def put(
            module: nn.Module,
            args: tuple,
            output: torch.Tensor,
            drawn=drawn,
            key=key,
            sampler=sampler,
            element=faults.element[trial],
        ) -> torch.Tensor:
            output = output.clone()
            for row in range(len(output)):
                flat = output[row].view(-1)
                anchor = flat[[element]].numpy().astype(float)
                if not sampler.reached(key, np.array([row]), anchor)[0]:
                    continue
                before = flat[drawn.position].numpy().astype(float)
                after = sampler.values(drawn, np.repeat(key, len(before)), np.full(len(before), row), before)
                flat[drawn.position] = torch.from_numpy(after).to(torch.int8)
            return output

        hook = model.get_submodule(region.layer).register_forward_hook(put)
        with torch.no_grad():
            outputs = model(loaded.inputs[:30]).numpy()
        hook.remove()
        for input in range(30):
            expected = found.get((trial, input), np.array(golden[input], float).tobytes())
            assert np.array(outputs[input], float).tobytes() == expected
            checked += (trial, input) in found
    assert checked > 200


def test_share_of_masked_inferences_is_that_of_the_profile() -> None:
    target = open_target(inputs=100)
    model = ErrorModel(title="m", profiles=(profile("acc", 1, masked=300),))
    space = target.space([SPEC.model_copy(update={"model": model, "layers": ("conv1",)})])
    recorder = Recorder(target.golden(), [Sdc1()], 60)
    target.inject(space, draw_faults(space, 60), recorder)
    identical = recorder.table()["identical"].to_numpy().sum() / 6000
    assert identical > 0.73  # masked in the layer: 0.75 ± 0.02; some later
    assert identical < 0.90


def test_every_fault_is_a_pure_function_of_its_number() -> None:
    """The same faults under other keys, in another order, in smaller batches: the same outputs."""
    target, small = open_target(), open_target()
    small._runner.batch_size = 7
    space = target.space([SPEC])
    faults = draw_faults(space, 20)
    backwards = faults.take(np.arange(20)[::-1])
    other = Faults(
        backwards.key + np.uint64(1),
        backwards.trial,
        backwards.region,
        backwards.element,
        backwards.step,
        backwards.variant,
    )
    first, second = injected(target, space, faults), injected(small, space, other)
    assert first == {(19 - trial, input): output for (trial, input), output in second.items()}


def test_regions_weigh_as_their_faults() -> None:
    target = open_target()
    named = tuple(
        profile(component, population, layer=layer)
        for layer, component, population in [("conv1", "acc", 90000), ("conv1", "b", 30000), ("conv2", "acc", 60000)]
    )
    known = target.space(
        [SPEC.model_copy(update={"model": ErrorModel(title="n", profiles=named), "layers": ("conv*",)})]
    )
    sizes = {(region.layer, region.component): region.size for region in known.regions}
    for (layer, component), population in {("conv1", "acc"): 9e4, ("conv1", "b"): 3e4, ("conv2", "acc"): 6e4}.items():
        assert sizes[layer, component] == pytest.approx(population, rel=0.03)
    by_shape = target.space([SPEC.model_copy(update={"layers": ("conv1",)})])
    assert [r.size for r in by_shape.regions] == [by_shape.regions[0].elements * 2**18 * n for n in (3, 1)]


def test_a_float_network_is_off_by_steps_of_its_range() -> None:
    """An error of 64 to 128 of 255 steps moves a float layer by a quarter to a half of its range."""
    target = open_target("digits-cnn")
    only = Profile(
        component="acc",
        shape="large_map",
        population=1,
        inferences=10,
        patterns=(
            PatternErrors(pattern="single", spreads=(Spread(count=10),), changes=(Change(change="+2^6", count=10),)),
        ),
    )
    model = ErrorModel(title="m", profiles=(only,))
    space = target.space([SPEC.model_copy(update={"model": model, "layers": ("conv1",)})])
    site = target._site(space.regions[0].site)
    trace = target.trace(space, draw_faults(space, 1), 3).to_pylist()
    at_layer = next(row for row in trace if row["place"] == "conv1")
    assert at_layer["changed"] == 1
    share = at_layer["max_abs_error"] / (site.known.high - site.known.low)
    assert 64 / 255 <= share <= 128 / 255


def stuck(component: str, population: int, layers: tuple[str, ...] = ("conv1", "conv2", "fc")) -> PermanentProfile:
    """Column 3 of an array of 8 × 8 and what is right of it, in row 0 or 5, or nowhere."""
    return PermanentProfile(
        component=component,
        fault="stuck_at bit 6 (1)",
        population=population,
        faults=10,
        repeats=Repeats(positions=8, channels=8),
        places=(Place(channels="3-7", positions="0", count=4), Place(channels="3-7", positions="5", count=4)),
        layers=tuple(
            LayerErrors(
                layer=layer,
                shape="vector" if layer == "fc" else "small_map",
                inferences=100,
                reached=90,
                channels=(ChannelErrors(count=2, values=100, changes={"+2^6": 50, "-2^5": 20}),),
            )
            for layer in layers
        ),
    )


PERMANENT = ErrorModel(title="stuck", permanent=(stuck("acc", 300), stuck("b", 100)))
STUCK = SoftwareFault(where="outputs", model=PERMANENT, duration="permanent", layers=("conv*", "fc"))


class TestPermanentErrorsOfAModel(TestErrorsOfAModel):
    def specs(self) -> list[FaultSpec]:
        return [STUCK, STUCK.model_copy(update={"duration": "intermittent", "activity": 0.5}), SPEC]


def test_one_permanent_fault_acts_in_every_layer() -> None:
    """A run by hand, with what the sampler of each layer draws put in, gives the same network output.

    The place is the same in each layer and inference: in row 0 the last layer, which has one position, is reached too.
    """
    loaded, target = workloads.load("digits-cnn-int8"), open_target()
    space = target.space([STUCK])
    assert [(r.layer, r.component, r.duration, r.steps) for r in space.regions] == [
        ("array", "acc", "permanent", 1),
        ("array", "b", "permanent", 1),
    ]
    assert space.regions[0].size == 3 * space.regions[1].size
    faults = draw_faults(space, 30)
    found, golden, rows = injected(target, space, faults), target.golden().outputs, []
    for trial in range(faults.trials):
        model = space.regions[faults.region[trial]].model
        assert isinstance(model, PermanentErrors)
        (key,) = model.key("array", faults.element[[trial]], faults.variant[[trial]])
        hooks, places = [], {}
        for layer in ("conv1", "conv2", "fc"):
            sampler = PermanentSampler(model.profile, layer, target._site(f"{layer}:errors").known)
            places[layer] = sampler.elements(key)

            def put(
                module: nn.Module, args: tuple, output: torch.Tensor, sampler=sampler, elements=places[layer], key=key
            ) -> torch.Tensor:
                flat = output.clone().reshape(len(output), -1)
                before = flat[:, elements].numpy().astype(float)
                after = sampler.values(key, np.arange(len(output)), before)
                flat[:, elements] = torch.from_numpy(after).to(torch.int8)
                return flat.reshape(output.shape)

            hooks.append(loaded.model.get_submodule(layer).register_forward_hook(put))
        with torch.no_grad():
            outputs = loaded.model(loaded.inputs[:30]).numpy()
        for hook in hooks:
            hook.remove()
        for input in range(30):
            expected = found.get((trial, input), np.array(golden[input], float).tobytes())
            assert np.array(outputs[input], float).tobytes() == expected
        if len(places["conv2"]):
            assert set(places["conv2"] // 64) == {3, 4, 5, 6, 7, 11, 12, 13, 14, 15}
            (row,) = set(places["conv1"] % 8)
            assert set(places["conv2"] % 8) == {row}
            assert places["fc"].tolist() == ([3, 4, 5, 6, 7] if row == 0 else [])
            rows.append(row)
    assert set(rows) == {0, 5} and len(rows) < 30


def test_an_intermittent_error_acts_in_its_share_of_inferences() -> None:
    target = open_target(inputs=100)
    one = PERMANENT.model_copy(update={"permanent": (stuck("acc", 1).model_copy(update={"faults": 8}),)})
    spec = STUCK.model_copy(update={"model": one, "duration": "intermittent", "activity": 0.3, "layers": ("conv1",)})
    space = target.space([spec])
    recorder = Recorder(target.golden(), [Sdc1()], 40)
    target.inject(space, draw_faults(space, 40), recorder)
    changed = 1 - recorder.table()["identical"].to_numpy().sum() / 4000
    assert changed == pytest.approx(0.3 * 0.9, abs=0.04)


def test_permanent_errors_of_another_network_keep_to_the_tiles() -> None:
    """On a network with other layers the array of the same size is met again after as many channels."""
    loaded = workloads.load("digits-lenet7-int8")
    target = SoftwareTarget(loaded.model, loaded.inputs[:8], loaded.labels[:8])
    space = target.space([STUCK.model_copy(update={"model": PERMANENT.by_shape(), "layers": ("conv2", "fc1")})])
    sampler = PermanentSampler(space.regions[0].model.profile, "conv2", target._site("conv2:errors").known)
    shape = target._site("conv2:errors").known.shape
    reached = [sampler.elements(np.uint64(key)) for key in range(20)]
    places = [shape.split(elements) for elements in reached if len(elements)]
    assert {tuple(np.unique(channel % 8)) for channel, _ in places} == {(3, 4, 5, 6, 7)}
    assert {tuple(np.unique(position % 8)) for _, position in places} == {(0,), (5,)}
    recorder = Recorder(target.golden(), [Sdc1()], 10)
    target.inject(space, draw_faults(space, 10), recorder)
    assert recorder.table()["invalid"].null_count == 10


CAMPAIGN = """
name: errors
target: {{kind: pytorch, workload: digits-cnn-int8, inputs: 20}}
faults:
  where: outputs
  model: {{kind: error_model, file: {file}}}
  duration: transient
sampling: {{kind: fixed, n: 50, stratify: layer}}
"""


def test_a_campaign_file_names_the_model_and_keeps_its_content(tmp_path: Path) -> None:
    MODEL.write(tmp_path / "array.yaml")
    campaign = Campaign.from_yaml(CAMPAIGN.format(file=tmp_path / "array.yaml"))
    assert campaign.faults[0].model == MODEL
    assert Campaign.from_yaml(campaign.to_yaml()).faults == campaign.faults
    before = campaign.identity("f")
    other = ErrorModel(title="by hand", profiles=MODEL.profiles[:1])
    other.write(tmp_path / "array.yaml")
    assert Campaign.from_yaml(CAMPAIGN.format(file=tmp_path / "array.yaml")).identity("f") != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": "activations"}, "where: outputs takes an error_model and nothing else does, not error_model"),
        ({"model": BitFlip()}, "where: outputs takes an error_model and nothing else does, not bit_flip"),
        (
            {"duration": "permanent"},
            "duration: 'permanent'; the error model 'by hand' was not learned from such faults",
        ),
        ({"model": PERMANENT}, "duration: 'transient'; .* use permanent or intermittent"),
        ({"granularity": "channel"}, "granularity"),
    ],
)
def test_wrong_specs_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftwareFault(**({"where": "outputs", "model": MODEL, "duration": "transient"} | changes))


def test_campaigns_of_version_1_keep_their_ids(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "saboteur_error_model: 1\ntitle: old\nprofiles:\n- {component: acc, shape: vector, population: 5, "
        "inferences: 4, patterns: [{pattern: single, spreads: [{count: 1}], changes: [{change: top, count: 1}]}]}\n"
    )
    faults = {
        "where": "outputs",
        "model": {"kind": "error_model", "file": str(tmp_path / "one.yaml")},
        "duration": "transient",
        "layers": ["conv1"],
    }
    target = {"kind": "pytorch", "workload": "digits-cnn-int8", "inputs": 20}
    campaign = {"name": "m", "target": target, "faults": faults, "sampling": {"kind": "fixed", "n": 30}}
    assert Campaign.read(campaign).identity("f") == "c1-e8a8ab573dd01e98"


def test_the_file_lies_beside_the_campaign(tmp_path: Path) -> None:
    MODEL.write(tmp_path / "array.yaml")
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN.format(file="array.yaml"), encoding="utf-8")
    assert Campaign.from_yaml(tmp_path / "campaign.yaml").faults[0].model == MODEL


def test_a_missing_file_and_an_unknown_layer_are_named(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match=r"cannot read .*none\.yaml"):
        Campaign.from_yaml(CAMPAIGN.format(file=tmp_path / "none.yaml"))
    with pytest.raises(FaultError, match="no layer matches 'conf1'"):
        open_target().space([SPEC.model_copy(update={"layers": ("conf1",)})])
