"""What the screen decides, against running every pair; and that it depends on nothing but the pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.faults import BitFlip, Noise, StuckAt, draws
from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software.engine.screening import Screen, audit_sample
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.criteria import Sdc1
from saboteur.outcomes.recorder import Recorder
from saboteur.testing.targets import draw_faults
from tests.software import models
from tests.software.models import numbers


def opened(model: nn.Module, inputs: Tensor, *specs: SoftwareFault, **settings) -> tuple[SoftwareTarget, FaultSpace]:
    target = SoftwareTarget(model, inputs, resources=Resources(batch_size=7), **settings)
    return target, target.space(specs)


def screen_of(target: SoftwareTarget, space: FaultSpace, **settings) -> Screen:
    sites = {region.site: target._site(region.site) for region in space.regions}
    return Screen(target._runner, sites, target.golden().kind, **settings)


def decided(
    target: SoftwareTarget,
    screen: Screen,
    space: FaultSpace,
    faults: Faults,
    inputs: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """[trials, inputs]."""
    found = np.zeros((faults.trials, target.golden().inputs), int)
    with target._runner.prepared():
        for trial, place in screen.decided(space, faults, Sdc1().radius(target.golden()), inputs):
            np.add.at(found, (trial, place), 1)
    assert found.max(initial=0) <= 1
    return found == 1


def wrong(target: SoftwareTarget, space: FaultSpace, faults: Faults) -> NDArray[np.bool_]:
    """Which pairs answer another class or nothing finite, by the plain engine: [trials, inputs]."""
    golden = target.golden()
    recorder = Recorder(golden, [Sdc1()], faults.trials, keep_outputs=True)
    target.inject(space, faults, recorder)
    pairs = recorder.pairs()
    outputs = pairs["output"].combine_chunks().flatten().to_numpy().reshape(len(pairs), -1)
    trial, place = pairs["trial"].to_numpy(), pairs["input"].to_numpy()
    found = np.zeros((faults.trials, golden.inputs), bool)
    found[trial, place] = (outputs.argmax(1) != golden.top1[place]) | ~np.isfinite(outputs).all(1)
    return found


def single(space: FaultSpace, element: Sequence[int], variant: Sequence[int], region: int = 0) -> Faults:
    count = len(element)
    return Faults(
        np.arange(count, dtype=np.uint64),
        np.arange(count),
        np.full(count, region, np.int32),
        np.array(element, np.int64),
        np.zeros(count, np.int32),
        np.array(variant, np.int64),
    )


PARAMETERS = SoftwareFault(where="parameters", model=BitFlip())
CAMPAIGNS = [
    ("digits-cnn", PARAMETERS, 0.9),
    ("digits-mlp6", PARAMETERS, 0.9),
    ("digits-lenet7", SoftwareFault(where="weights", model=StuckAt()), 0.3),
    ("digits-cnn", SoftwareFault(where="activations", model=BitFlip(), duration="transient"), 0.8),
    ("digits-lenet7", SoftwareFault(where="operators", model=BitFlip()), 0.8),
    ("digits-mlp6", SoftwareFault(where="inputs", model=Noise(additive=0.1)), 0.8),
]


@pytest.mark.parametrize(("name", "spec", "least"), CAMPAIGNS)
def test_most_pairs_are_decided_and_none_wrongly(name: str, spec: SoftwareFault, least: float) -> None:
    workload = workloads.load(name)
    target, space = opened(workload.model, workload.inputs[:60], spec)
    faults = draw_faults(space, 250)
    screen = screen_of(target, space)
    assert not screen.unscreened
    pairs = decided(target, screen, space, faults)
    bad = wrong(target, space, faults)
    assert pairs.mean() > least
    assert bad.any()
    assert not (pairs & bad).any()


def test_several_faults_in_a_trial_add_up() -> None:
    workload = workloads.load("digits-cnn")
    target, space = opened(workload.model, workload.inputs[:40], PARAMETERS)
    screen = screen_of(target, space)
    together = draw_faults(space, 60, rows=3)
    alone = Faults(
        np.arange(180, dtype=np.uint64),
        np.arange(180),
        together.region,
        together.element,
        together.step,
        together.variant,
    )
    pairs = decided(target, screen, space, together)
    assert 0.5 < pairs.mean() < 1
    assert (pairs <= decided(target, screen, space, alone).reshape(60, 3, -1).all(axis=1)).all()
    assert not (pairs & wrong(target, space, together)).any()


def test_words_that_become_infinite_or_nan_are_never_decided() -> None:
    model = models.mlp()
    with torch.no_grad():
        model[0].weight[0, 0], model[0].weight[0, 1] = 1.0, 1.5
    target, space = opened(model, torch.zeros(6, 5), SoftwareFault(where="weights", model=BitFlip()))
    faults = single(space, [0, 1, 0], [30, 30, 1])
    words = target._site("0.weight").faulted(np.array([0, 1]), np.array([0x7F800000, 0x7FC00000], np.uint64))
    assert torch.isinf(words[0, 0]) and torch.isnan(words[0, 1])
    assert decided(target, screen_of(target, space), space, faults).any(axis=1).tolist() == [False, False, True]


def test_signals_that_become_infinite_or_nan_are_never_decided() -> None:
    x = torch.tensor([[1.0], [1.5], [0.25]]) * torch.ones(1, 5)
    target, space = opened(models.mlp(), x, SoftwareFault(where="inputs", model=BitFlip()))
    pairs = decided(target, screen_of(target, space), space, single(space, [2, 2], [30, 0]))
    assert pairs.tolist()[0] == [False, False, False]
    assert pairs[1].all()


def test_a_dead_layer_is_not_trusted() -> None:
    model = models.mlp()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    target, space = opened(model, numbers(5, 5), SoftwareFault(where="weights", layers="0", model=BitFlip()))
    assert not decided(target, screen_of(target, space), space, draw_faults(space, 100)).any()


def test_trials_without_effect_need_no_screen() -> None:
    model = models.mlp()
    target, space = opened(model, numbers(5, 5), SoftwareFault(where="weights", layers="0", model=StuckAt()))
    faults = draw_faults(space, 60)
    before = target._site("0.weight").words(faults.element)
    after = space.regions[0].model.corrupt(before, faults.variant, faults.drawn, space.regions[0].format)
    pairs = decided(target, screen_of(target, space), space, faults)
    assert (before == after).any() and not pairs[before == after].any() and pairs[before != after].any()


def test_a_word_hit_twice_in_a_trial_is_left_to_the_engine() -> None:
    target, space = opened(models.mlp(), numbers(5, 5), SoftwareFault(where="weights", layers="0", model=BitFlip()))
    columns = dict(key=np.arange(2, dtype=np.uint64), trial=np.array([0, 0, 1, 1]), region=np.zeros(4, np.int32))
    faults = Faults(
        **columns, element=np.array([3, 3, 3, 4]), step=np.zeros(4, np.int32), variant=np.zeros(4, np.int64)
    )
    assert decided(target, screen_of(target, space), space, faults).any(axis=1).tolist() == [False, True]


@pytest.fixture(scope="module")
def both() -> tuple[SoftwareTarget, FaultSpace, Faults, NDArray[np.bool_]]:
    """Weights and activations together, with what is decided of them."""
    workload = workloads.load("digits-cnn")
    specs = PARAMETERS, SoftwareFault(where="activations", model=BitFlip(), duration="transient")
    target, space = opened(workload.model, workload.inputs[:50], *specs)
    faults = draw_faults(space, 120)
    return target, space, faults, decided(target, screen_of(target, space), space, faults)


def test_memory_changes_nothing(both) -> None:
    target, space, faults, expected = both
    screen = screen_of(target, space, memory_bytes=0)
    for _ in range(2):
        np.testing.assert_array_equal(decided(target, screen, space, faults), expected)


def test_order_and_company_of_trials_change_nothing(both) -> None:
    target, space, faults, expected = both
    screen = screen_of(target, space)
    order = draws.permuted(5, faults.trials, np.arange(faults.trials))
    np.testing.assert_array_equal(decided(target, screen, space, faults.take(order)), expected[order])
    np.testing.assert_array_equal(decided(target, screen, space, faults.take([7])), expected[[7]])


def test_slabs_of_trials_change_nothing(both, monkeypatch: pytest.MonkeyPatch) -> None:
    target, space, faults, expected = both
    monkeypatch.setattr("saboteur.levels.software.engine.screening._PAIRS_AT_ONCE", 20)
    np.testing.assert_array_equal(decided(target, screen_of(target, space), space, faults), expected)


def test_chosen_inputs_are_decided_as_among_all(both) -> None:
    target, space, faults, expected = both
    inputs = np.stack([draws.permuted(t, 50, np.arange(9)) for t in range(faults.trials)])
    wanted = np.zeros_like(expected)
    np.put_along_axis(wanted, inputs, True, axis=1)
    np.testing.assert_array_equal(decided(target, screen_of(target, space), space, faults, inputs), expected & wanted)


@pytest.mark.parametrize(
    ("model", "shape", "settings", "reason"),
    [
        (models.mlp, (6, 5), {"outputs": "probabilities"}, "probabilities"),
        (models.mlp, (6, 5), {"activations_format": "bfloat16"}, "rounded"),
        (models.pruned, (6, 5), {}, "stored weights"),
        (lambda: models.filled(models.Recurrent(nn.LSTM)), (6, 3, 4), {}, "weight or bias"),
    ],
)
def test_what_cannot_be_screened_is_said(model, shape, settings: dict, reason: str) -> None:
    model = model()
    if settings.get("outputs") == "probabilities":
        model = nn.Sequential(model, nn.Softmax(1)).eval()
    target, space = opened(model, numbers(*shape), PARAMETERS, **settings)
    screen = screen_of(target, space)
    assert any(reason in text for text in screen.unscreened.values())
    faults = draw_faults(space, 100)
    left = np.array([space.regions[i].site in screen.unscreened for i in faults.region])
    assert left.any() and not decided(target, screen, space, faults)[left].any()


def test_a_model_that_cannot_be_differentiated_is_left_to_the_engine() -> None:
    class Detached(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    target, space = opened(models.filled(Detached(nn.Linear(5, 3))), numbers(6, 5), PARAMETERS)
    screen = screen_of(target, space)
    assert set(screen.unscreened) == {"0.weight", "0.bias"}
    assert "cannot be differentiated" in screen.unscreened["0.weight"]
    assert not decided(target, screen, space, draw_faults(space, 20)).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 200), st.floats(0, 1))
def test_audited_pairs_are_distinct_and_as_many_as_asked(seed: int, inputs: int, rate: float) -> None:
    key = draws.words(seed, np.arange(20))
    trial, place = audit_sample(key, inputs, rate)
    counts = np.bincount(trial, minlength=20)
    assert len(set(zip(trial.tolist(), place.tolist(), strict=True))) == len(trial)
    assert set(counts) <= {np.floor(rate * inputs), np.floor(rate * inputs) + 1}
    assert counts.max() <= inputs


def test_the_audit_sample_is_a_pure_function_of_the_trial() -> None:
    key = draws.words(3, np.arange(50))
    trial, place = audit_sample(key, 80, 0.1)
    for chosen in ([4], [49, 4, 17]):
        own_trial, own_place = audit_sample(key[chosen], 80, 0.1)
        for number, one in enumerate(chosen):
            assert own_place[own_trial == number].tolist() == place[trial == one].tolist()


def test_every_pair_is_audited_equally_often() -> None:
    trial, place = audit_sample(draws.words(9, np.arange(40_000)), 10, 0.05)
    counts = np.bincount(place, minlength=10)
    assert len(trial) == pytest.approx(20_000, abs=5 * np.sqrt(20_000 * 0.95))
    assert np.abs(counts - 2_000).max() < 5 * np.sqrt(2_000)


def test_audit_rates_outside_of_0_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rate: 1.5 is outside 0 .. 1"):
        audit_sample(np.zeros(1, np.uint64), 5, 1.5)
