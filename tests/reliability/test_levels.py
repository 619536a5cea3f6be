"""Campaigns at several levels, layer by layer, on the toy target; the tests against published ones by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from saboteur.campaign import Results
from saboteur.errors import CampaignError
from saboteur.reliability.levels import ALL, compare_levels, same_distribution

Finished = Callable[..., Path]
BY_LAYER = {"kind": "fixed", "n": 400, "stratify": "layer", "confidence": 0.95}
FEW = {"kind": "tests.campaign.toy:ToyTarget", "inputs": 5}


def test_same_distribution_is_fishers_test_of_two_outcomes() -> None:
    """Fisher's tea: 3 of 4 and 1 of 4, p = 0.4857 (The Design of Experiments, 1935)."""
    assert same_distribution(np.array([3, 1, 0]), np.array([1, 3, 0])) == pytest.approx(0.485714, abs=1e-6)


def test_same_distribution_is_pearsons_test_of_three() -> None:
    a, b = np.array([60, 30, 10]), np.array([70, 15, 15])
    expected = (130 / 2, 45 / 2, 25 / 2)
    chi2 = sum((x - e) ** 2 / e for row in (a, b) for x, e in zip(row, expected, strict=True))
    assert same_distribution(a, b) == pytest.approx(stats.chi2.sf(chi2, 2))


def test_rare_outcomes_are_added_to_the_next_rarest() -> None:
    joined = same_distribution(np.array([500, 41]), np.array([500, 62]))
    assert same_distribution(np.array([500, 40, 1]), np.array([500, 60, 2])) == pytest.approx(joined)


def test_no_outcome_but_one_is_no_difference() -> None:
    assert same_distribution(np.array([50, 0, 0]), np.array([20, 0, 0])) == 1.0


def test_p_values_of_samples_of_one_distribution_are_uniform_or_larger() -> None:
    rng = np.random.default_rng(4)
    p = np.array([same_distribution(*rng.multinomial(400, [0.8, 0.15, 0.05], 2)) for _ in range(300)])
    assert (p < 0.05).mean() < 0.09
    assert (p < 0.5).mean() == pytest.approx(0.5, abs=0.12)


def test_two_runs_of_one_level_do_not_differ(finished: Finished) -> None:
    a, b = finished("a", sampling=BY_LAYER, seed=1), finished("b", sampling=BY_LAYER, seed=2)
    with Results.open(a) as first, Results.open(b) as second:
        found = compare_levels({"rtl": first, "model": second})
        truth = first.estimate(first.campaign.question)
    assert found.layers == ("a", "b", ALL)
    assert found.levels == ("rtl", "model")
    for layer in found.layers:
        reference, level = found.row(layer, "rtl"), found.row(layer, "model")
        assert reference is not None and level is not None
        assert reference.difference is None and reference.p_value is None
        assert level.difference is not None and level.difference.low < 0 < level.difference.high
        assert level.difference.best == pytest.approx(level.estimate.best - reference.estimate.best)
        assert level.p_value is not None and level.p_value > 0.01
        assert level.agreement is None
    everything = found.row(ALL, "rtl")
    assert everything is not None and everything.estimate.best == pytest.approx(truth.best)


def test_the_same_faults_at_two_levels_show_how_they_agree(finished: Finished) -> None:
    a, b = finished("a"), finished("b", target=FEW)
    with Results.open(a) as exact, Results.open(b) as cheap:
        found = compare_levels({"40 inputs": exact, "5 inputs": cheap})
    row = found.row(ALL, "5 inputs")
    assert row is not None and row.agreement is not None
    assert row.agreement.faults == 400
    both = row.agreement
    reference = found.row(ALL, "40 inputs")
    assert reference is not None
    assert both.level_alone - both.reference_alone == row.estimate.k - reference.estimate.k
    assert both.share == 1 - (both.reference_alone + both.level_alone) / 400
    assert row.difference is not None and row.difference.best < 0


def test_layers_weigh_as_in_the_reference(finished: Finished) -> None:
    """Other bits make another population; the rate of all layers still weighs layers as the reference does."""
    a = finished("a", sampling=BY_LAYER)
    b = finished(
        "b",
        sampling=BY_LAYER,
        faults=[{"model": "bit_flip", "layers": ["a"]}, {"model": {"kind": "bit_flip", "bits": [30]}, "layers": ["b"]}],
    )
    with Results.open(a) as first, Results.open(b) as second:
        found = compare_levels({"reference": first, "level": second})
    rates = {row.layer: row.estimate.best for row in found.rows if row.level == "level"}
    assert rates[ALL] == pytest.approx((30 * rates["a"] + 20 * rates["b"]) / 50)


def test_a_layer_that_a_level_lacks_is_left_out(finished: Finished) -> None:
    a, b = finished("a"), finished("b", faults=[{"model": "bit_flip", "layers": ["b"]}])
    with Results.open(a) as first, Results.open(b) as second:
        found = compare_levels({"reference": first, "level": second})
        assert found.row("a", "level") is None and found.row(ALL, "level") is None
        assert found.row("b", "level") is not None
        other = compare_levels({"reference": second, "level": first})
        assert other.layers == ("b", ALL)


def test_fewer_than_two_levels_are_refused(finished: Finished) -> None:
    with Results.open(finished("a")) as only, pytest.raises(CampaignError, match="at least two"):
        compare_levels({"a": only})
