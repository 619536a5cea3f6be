"""Is a software campaign that a learned model drives like the RTL campaign that it was learned from?"""

from __future__ import annotations

from pathlib import Path

import pytest

from saboteur.campaign import Campaign, Results, run
from saboteur.errors import CampaignError
from saboteur.reliability.learning import learn_from
from saboteur.reliability.levels import ALL, LevelComparison, compare_levels

pytest.importorskip("torch")

ARRAY = {"kind": "accelerator", "workload": "digits-cnn-int8", "inputs": 60, "rows": 8, "cols": 8}
SOFTWARE = {"kind": "pytorch", "workload": "digits-cnn-int8", "inputs": 60}
REGISTERS = {"where": "flip_flops", "model": "bit_flip", "duration": "transient"}


def ran(folder: Path, name: str, target: dict, faults: dict, n: int, **changes: object) -> Path:
    sampling = {"kind": "fixed", "n": n, "n_for": "stratum", "stratify": "layer", "confidence": 0.99}
    campaign = {
        "name": name,
        "target": target,
        "faults": faults,
        "sampling": sampling,
        "inputs_per_fault": 1,
        "criteria": ["sdc-1"],
        "resources": {"unit_trials": 4096},
    }
    run(Campaign.read(campaign | changes), folder / name)
    return folder / name


def fidelity(folder: Path, array: dict, n: int) -> LevelComparison:
    """RTL, the model that another RTL campaign teaches, and plain flips of outputs."""
    with Results.open(ran(folder, "teacher", array, REGISTERS, n, seed=1)) as teacher:
        model = learn_from(teacher)
    learned = {"where": "outputs", "model": model, "duration": "transient", "layers": ["conv*", "fc"]}
    flips = {"where": "activations", "model": "bit_flip", "duration": "transient", "layers": ["conv*", "fc"]}
    stores = {
        "rtl": ran(folder, "rtl", array, REGISTERS, n),
        "model": ran(folder, "model", SOFTWARE, learned, n),
        "flips": ran(folder, "flips", SOFTWARE, flips, 80, inputs_per_fault=None),
    }
    with (
        Results.open(stores["rtl"]) as rtl,
        Results.open(stores["model"]) as by_model,
        Results.open(stores["flips"]) as by_flips,
    ):
        return compare_levels({"rtl": rtl, "model": by_model, "flips": by_flips}, unit="inferences")


@pytest.mark.parametrize("dataflow", ["output_stationary", pytest.param("weight_stationary", marks=pytest.mark.slow)])
def test_a_learned_model_is_like_rtl_and_plain_flips_are_not(tmp_path: Path, dataflow: str) -> None:
    found = fidelity(tmp_path, ARRAY | {"array": dataflow}, 3000)
    for layer in ("conv1", "conv2", "fc", ALL):
        row = found.row(layer, "model")
        assert row is not None and row.difference is not None and row.p_value is not None
        # The model is learned from a sample too, so that it may miss by about 1.7 times what the interval allows.
        assert row.difference.low - 0.003 < 0 < row.difference.high + 0.003
        assert row.p_value > 1e-4
    flips = found.row("fc", "flips")
    assert flips is not None and flips.difference is not None
    assert flips.difference.low > 0.03


STUCK = {"where": "flip_flops", "model": "stuck_at", "duration": "permanent"}
ON_MANY = {"sampling": {"kind": "fixed", "n": 1200, "confidence": 0.99}, "inputs_per_fault": 10}


def test_places_of_stuck_registers_are_those_of_the_array(tmp_path: Path) -> None:
    """2 · (8 + 8 + 1 + 1 + 1 + 32) kinds of faults in 64 processing elements, as far as the faults met them."""
    with Results.open(ran(tmp_path, "teacher", ARRAY, STUCK, 1, **ON_MANY)) as teacher:
        model = learn_from(teacher)
        size = teacher.space.size
    assert not model.profiles
    assert sum(profile.faults for profile in model.permanent) == 1200
    assert (model.source.faults, model.source.inferences) == (1200, 12000)
    assert {profile.population for profile in model.permanent} == {64}
    assert 0.97 * size < sum(profile.population for profile in model.permanent) <= size == 64 * 102
    assert {(profile.repeats.positions, profile.repeats.channels) for profile in model.permanent} == {(8, 8)}
    # A stuck bit of a weight in row r and column c is met by the rows from r on, in that column; one of an activation
    # by the columns from c on, in that row.
    rest = {f"{first}-7" for first in range(7)} | {"7"}
    strong = [profile for profile in model.permanent if profile.fault in ("stuck_at bit 7 (0)", "stuck_at bit 7 (1)")]
    for component, one, several in (("b", "channels", "positions"), ("a", "positions", "channels")):
        places = [place for profile in strong if profile.component == component for place in profile.places]
        assert len(places) > 10
        assert {getattr(place, one) for place in places} <= set("01234567")
        assert {getattr(place, several) for place in places} <= rest


@pytest.mark.slow
def test_a_model_of_permanent_faults_is_like_rtl(tmp_path: Path) -> None:
    """The rate of inferences over all faults; each fault on 10 inputs, in all layers at once."""
    with Results.open(ran(tmp_path, "teacher", ARRAY, STUCK, 1, **(ON_MANY | {"seed": 1}))) as teacher:
        model = learn_from(teacher)
    learned = {"where": "outputs", "model": model, "duration": "permanent", "layers": ["conv*", "fc"]}
    stores = {
        "rtl": ran(tmp_path, "rtl", ARRAY, STUCK, 1, **ON_MANY),
        "model": ran(tmp_path, "model", SOFTWARE, learned, 1, **ON_MANY),
    }
    with Results.open(stores["rtl"]) as rtl, Results.open(stores["model"]) as by_model:
        found = compare_levels({"rtl": rtl, "model": by_model}, unit="inferences").row("array", "model")
    assert found is not None and found.difference is not None and found.p_value is not None
    assert 0.13 < found.estimate.best < 0.25
    assert found.difference.low - 0.01 < 0 < found.difference.high + 0.01
    assert found.p_value > 1e-3


@pytest.mark.parametrize(
    ("faults", "changes", "message"),
    [
        ({"model": "stuck_at", "duration": "intermittent", "activity": 0.5}, {}, "duration: intermittent"),
        ({"model": "bit_flip", "duration": "transient"}, {"simultaneous": 2}, "simultaneous: several faults"),
    ],
)
def test_faults_that_no_model_is_learned_from_are_named(
    tmp_path: Path, faults: dict, changes: dict, message: str
) -> None:
    store = ran(tmp_path, "other", ARRAY | {"inputs": 4}, {"where": "flip_flops"} | faults, 4, **changes)
    with Results.open(store) as results, pytest.raises(CampaignError, match=message):
        learn_from(results)


def test_two_bits_of_one_word_are_learned_as_one_fault(tmp_path: Path) -> None:
    faults = {"where": "flip_flops", "names": ["b"], "model": {"kind": "bit_flip", "count": 2}, "duration": "transient"}
    with Results.open(ran(tmp_path, "two", ARRAY | {"inputs": 8}, faults, 60)) as results:
        model = learn_from(results)
    assert {(profile.component, profile.inferences) for profile in model.profiles} == {("b", 60)}
    assert sum(profile.changed for profile in model.profiles) > 30
