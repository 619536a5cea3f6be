"""Comparisons of campaigns against statsmodels, published examples and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep

from saboteur.statistics import (
    StatisticsError,
    mcnemar,
    paired_difference,
    paired_mean_difference,
    unpaired_difference,
)

COUNT = st.integers(0, 300)


def test_mcnemar_agrees_with_statsmodels() -> None:
    a, b = np.array([0, 1, 5, 12, 40, 3]), np.array([0, 0, 5, 2, 60, 20])
    expected = [statsmodels_mcnemar([[9, x], [y, 9]], exact=True).pvalue for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(mcnemar(a, b), np.minimum(expected, 1), rtol=1e-10)
    assert mcnemar(0, 5) == pytest.approx(2 * 0.5**5)


def test_unpaired_published_examples() -> None:
    # Newcombe, Statistics in Medicine 1998, 17:873, table II, method 10.
    low, best, high = unpaired_difference([56, 9, 0], [70, 10, 10], [48, 3, 0], [80, 10, 20], 0.95)
    np.testing.assert_allclose(best, [0.2, 0.6, 0.0], atol=1e-12)
    np.testing.assert_allclose(low, [0.0524, 0.1705, -0.1611], atol=5e-5)
    np.testing.assert_allclose(high, [0.3339, 0.8090, 0.2775], atol=5e-5)


def test_unpaired_agrees_with_statsmodels() -> None:
    for k_a, n_a, k_b, n_b in [(3, 100, 10, 120), (0, 50, 2, 1000), (500, 1000, 480, 1000)]:
        expected = confint_proportions_2indep(k_a, n_a, k_b, n_b, method="newcomb", alpha=0.01)
        ours = unpaired_difference(k_a, n_a, k_b, n_b)
        np.testing.assert_allclose([ours.low, ours.high], expected, rtol=1e-9)


def test_paired_without_correlation_is_unpaired() -> None:
    # e h = f g, so φ = 0.
    paired = paired_difference(10, 20, 30, 60, 0.95)
    unpaired = unpaired_difference(30, 120, 40, 120, 0.95)
    np.testing.assert_allclose(paired, unpaired)


def test_pairing_sharpens_agreeing_campaigns() -> None:
    paired = paired_difference(90, 10, 2, 898, 0.95)
    unpaired = unpaired_difference(100, 1000, 92, 1000, 0.95)
    assert paired.best == pytest.approx(unpaired.best) == pytest.approx(0.008)
    assert paired.high - paired.low < 0.4 * (unpaired.high - unpaired.low)
    assert paired.low > 0 > unpaired.low


@given(COUNT, COUNT, COUNT, COUNT, st.floats(0.5, 0.999))
def test_paired_properties(both: int, only_a: int, only_b: int, neither: int, confidence: float) -> None:
    low, best, high = paired_difference(both, only_a, only_b, neither, confidence)
    n = both + only_a + only_b + neither
    if n == 0:
        assert (low, high) == (-1, 1) and np.isnan(best)
        return
    assert best == pytest.approx((only_a - only_b) / n)
    assert -1 <= low <= best <= high <= 1
    swapped = paired_difference(both, only_b, only_a, neither, confidence)
    np.testing.assert_allclose([swapped.low, swapped.high], [-high, -low], atol=1e-12)


def test_paired_coverage() -> None:
    rng = np.random.Generator(np.random.Philox(4))
    for shares in ([0.01, 0.01, 0.005, 0.975], [0.2, 0.1, 0.1, 0.6], [0.0, 0.02, 0.0, 0.98]):
        cells = rng.multinomial(400, shares, size=3000)
        low, _, high = paired_difference(*cells.T, 0.95)
        truth = shares[1] - shares[2]
        assert np.mean((low > truth) | (high < truth)) <= 0.06


def test_mean_difference_by_hand() -> None:
    d = np.array([0.5, -0.25, 0.0, 0.125, 0.25] * 40)
    low, best, high = paired_mean_difference(d.sum(), np.sum(d**2), d.size, 0.95)
    assert best == pytest.approx(0.125)
    # t(199) = 1.97196; scatter Σ(d − 0.125)² + 1.95996² = 12.5 + 3.8415.
    assert high - best == pytest.approx(1.97196 * np.sqrt(12.5 + 3.8415) / 200, rel=1e-5)
    assert best - low == pytest.approx(high - best)


def test_agreement_so_far_is_not_certainty() -> None:
    low, best, high = paired_mean_difference(0, 0, 1000, 0.95)
    assert best == 0
    # As wide as one-sided exact bounds of a disagreement never seen in 1,000 faults (3.689/1000).
    assert high == -low and high >= 3.689e-3
    assert paired_mean_difference(0, 0, 0)[::2] == (-1, 1)


def test_mean_difference_coverage() -> None:
    rng = np.random.Generator(np.random.Philox(6))
    differ = rng.random((4000, 300)) < 0.02
    d = np.where(differ, rng.choice([-1.0, 0.25, 1.0], p=[0.2, 0.4, 0.4], size=differ.shape), 0.0)
    low, _, high = paired_mean_difference(d.sum(axis=1), (d**2).sum(axis=1), 300, 0.95)
    truth = 0.02 * 0.3
    assert np.mean((low > truth) | (high < truth)) <= 0.05


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: mcnemar(-1, 3), "only_a is -1"),
        (lambda: paired_difference(1, 2, -3, 4), "only_b is -3"),
        (lambda: unpaired_difference(5, 4, 1, 2), "k is 5"),
        (lambda: unpaired_difference(1, 4, 1, 2, 95), "confidence is 95"),
        (lambda: paired_mean_difference(5, 1, 4), "do not belong"),
        (lambda: paired_mean_difference(1, 9, 4), "do not belong"),
    ],
)
def test_errors_name_field_and_value(call, named: str) -> None:
    with pytest.raises(StatisticsError, match=named):
        call()
