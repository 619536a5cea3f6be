"""Intervals against statsmodels, published figures, exact enumeration and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from saboteur.statistics import (
    StatisticsError,
    clopper_pearson,
    confidence_sequence,
    hypergeometric,
    poisson,
    upper_bound,
    wilson,
)

COUNTS = (np.array([0, 1, 5, 30, 99, 100, 3, 0]), np.array([10, 10, 10, 100, 100, 100, 16625, 16625]))


@pytest.mark.parametrize(("ours", "name"), [(wilson, "wilson"), (clopper_pearson, "beta")])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_agrees_with_statsmodels(ours, name: str, confidence: float) -> None:
    low, high = ours(*COUNTS, confidence)
    for index, (k, n) in enumerate(zip(*COUNTS, strict=True)):
        expected = proportion_confint(k, n, 1 - confidence, name)
        np.testing.assert_allclose([low[index], high[index]], expected, rtol=1e-9, atol=1e-12)


def test_known_wilson_values() -> None:
    # Newcombe, Statistics in Medicine 1998, 17:857, table I: 81/263, 15/148, 0/20, 1/29.
    low, high = wilson([81, 15, 0, 1], [263, 148, 20, 29], 0.95)
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)


def test_garwood_values() -> None:
    low, high = poisson([0, 1, 10, 100, 400])
    np.testing.assert_allclose(low, [0, 0.0253, 4.795, 81.364, 361.76], rtol=2e-3)
    np.testing.assert_allclose(high, [3.6889, 5.5716, 18.390, 121.63, 441.19], rtol=1e-4)


def test_poisson_is_the_chi_squared_formula() -> None:
    k = np.arange(1, 200)
    low, high = poisson(k, 0.9)
    np.testing.assert_allclose(low, stats.chi2.ppf(0.05, 2 * k) / 2)
    np.testing.assert_allclose(high, stats.chi2.ppf(0.95, 2 * k + 2) / 2)


def test_ends() -> None:
    for interval in (wilson, clopper_pearson, confidence_sequence):
        low, high = interval([0, 10, 0], [10, 10, 0])
        assert low[0] == 0 and high[1] == 1
        assert (low[2], high[2]) == (0, 1)
        assert 0 < high[0] < 1 and 0 < low[1] < 1


def test_scalars_give_scalars() -> None:
    low, high = wilson(3, 10)
    assert np.ndim(low) == 0 and low < 0.3 < high


def test_upper_bound_without_events_is_the_closed_form() -> None:
    np.testing.assert_allclose(upper_bound(0, [1, 100, 10_000], 0.95), 1 - 0.05 ** (1 / np.array([1, 100, 10_000])))
    assert upper_bound(5, 5) == 1 and upper_bound(0, 0) == 1


def test_one_sided_bound_is_a_two_sided_limit() -> None:
    np.testing.assert_allclose(upper_bound(7, 50, 0.975), clopper_pearson(7, 50, 0.95).high)
    assert upper_bound(7, 50, 0.975, population=200) == hypergeometric(7, 50, 200, 0.95).high


def brute_force_hypergeometric(k: int, n: int, size: int, confidence: float) -> tuple[float, float]:
    """Rates whose two tails both exceed half the error, by trying them all."""
    tail = (1 - confidence) / 2
    critical = np.arange(k, size - n + k + 1)
    kept = critical[
        (stats.hypergeom.sf(k - 1, size, critical, n) > tail) & (stats.hypergeom.cdf(k, size, critical, n) > tail)
    ]
    return kept.min() / size, kept.max() / size


@given(st.data())
def test_hypergeometric_is_the_exhaustive_inversion(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 60))
    n = data.draw(st.integers(0, size))
    k = data.draw(st.integers(0, n))
    confidence = data.draw(st.sampled_from([0.8, 0.95, 0.99]))
    assert hypergeometric(k, n, size, confidence) == brute_force_hypergeometric(k, n, size, confidence)


def test_hypergeometric_coverage_is_never_below() -> None:
    size, n = 40, 12
    critical = np.arange(size + 1)
    low, high = hypergeometric(np.arange(n + 1), n, size, 0.95)
    mass = stats.hypergeom.pmf(np.arange(n + 1)[:, None], size, critical, n)
    covered = (low[:, None] <= critical / size) & (critical / size <= high[:, None])
    assert (mass * covered).sum(axis=0).min() >= 0.95


def test_hypergeometric_ends() -> None:
    assert hypergeometric(3, 10, 10) == (0.3, 0.3)
    assert hypergeometric(0, 0, 10) == (0, 1)
    wide = hypergeometric(154, 16_625, 17_174_144)
    np.testing.assert_allclose(wide, clopper_pearson(154, 16_625), rtol=1e-3)
    np.testing.assert_allclose(hypergeometric(154, 16_625, 10**11), clopper_pearson(154, 16_625), rtol=1e-5)
    assert hypergeometric(154, 16_625, 10**30) == clopper_pearson(154, 16_625)


@given(st.integers(1, 5000), st.floats(0, 1), st.floats(0.6, 0.999))
def test_interval_properties(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    for interval in (wilson, clopper_pearson, confidence_sequence):
        low, high = interval(k, n, confidence)
        assert 0 <= low <= k / n <= high <= 1
        mirrored = interval(n - k, n, confidence)
        np.testing.assert_allclose([low, high], [1 - mirrored.high, 1 - mirrored.low], atol=1e-9)
        wider = interval(k, n, (1 + confidence) / 2)
        assert wider.low <= low and high <= wider.high
        assert interval(min(k + 1, n), n, confidence).high >= high


def test_clopper_pearson_coverage_is_never_below() -> None:
    n, p = 30, np.linspace(0.001, 0.999, 400)
    low, high = clopper_pearson(np.arange(n + 1), n, 0.95)
    mass = stats.binom.pmf(np.arange(n + 1)[:, None], n, p)
    covered = (low[:, None] <= p) & (p <= high[:, None])
    assert (mass * covered).sum(axis=0).min() >= 0.95


def test_wilson_covers_on_average_also_rare_events() -> None:
    n = 500
    low, high = wilson(np.arange(n + 1), n, 0.95)
    for rates in (np.linspace(0.005, 0.05, 300), np.linspace(0.05, 0.95, 300)):
        mass = stats.binom.pmf(np.arange(n + 1)[:, None], n, rates)
        covered = (low[:, None] <= rates) & (rates <= high[:, None])
        assert (mass * covered).sum(axis=0).mean() == pytest.approx(0.95, abs=0.006)


def missed_at_some_look(interval, rate: float, campaigns: int = 600, trials: int = 4000) -> float:
    """Share of campaigns in which an interval looked at every tenth trial ever misses the rate."""
    rng = np.random.Generator(np.random.Philox(20230417))
    events = np.cumsum(rng.random((campaigns, trials)) < rate, axis=1)[:, 9::10]
    low, high = interval(events, np.arange(10, trials + 1, 10), 0.95)
    return float(np.mean(np.any((rate < low) | (rate > high), axis=1)))


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_confidence_sequence_holds_at_all_looks(rate: float) -> None:
    assert missed_at_some_look(confidence_sequence, rate) <= 0.05


def test_looking_at_a_plain_interval_fails_as_often_as_measured() -> None:
    assert missed_at_some_look(wilson, 0.02) == pytest.approx(0.42, abs=0.06)
    assert missed_at_some_look(clopper_pearson, 0.02) == pytest.approx(0.34, abs=0.06)


def test_price_of_a_confidence_sequence() -> None:
    n = np.array([500, 5000, 50_000])
    plain, anytime = wilson(0.02 * n, n, 0.95), confidence_sequence(0.02 * n, n, 0.95)
    ratio = (anytime.high - anytime.low) / (plain.high - plain.low)
    assert np.all((ratio > 1.5) & (ratio < 2.8))


def test_confidence_sequence_in_a_finite_population() -> None:
    size, critical, campaigns = 400, 20, 400
    rng = np.random.Generator(np.random.Philox(7))
    faults = np.zeros((campaigns, size), dtype=bool)
    faults[:, :critical] = True
    events = np.cumsum(rng.permuted(faults, axis=1), axis=1)
    n = np.arange(1, size + 1)
    low, high = confidence_sequence(events, n, 0.95, population=size)
    missed = np.any((low > critical / size + 1e-12) | (high < critical / size - 1e-12), axis=1)
    assert missed.mean() <= 0.05
    np.testing.assert_allclose(low[:, -1], 0.05, atol=1e-12)
    np.testing.assert_allclose(high[:, -1], 0.05, atol=1e-12)


def test_confidence_sequence_boundary_is_the_likelihood_ratio() -> None:
    # Uniform mixture, k = 0: M = B(1, n + 1)/(1 − p)^n reaches 1/α at p = 1 − (α/(n + 1))^(1/n)... in closed form.
    n, alpha = 100, 0.05
    high = confidence_sequence(0, n, 1 - alpha, prior=(1, 1)).high
    assert high == pytest.approx(1 - (alpha / (n + 1)) ** (1 / n), rel=1e-12)


def test_large_population_tends_to_infinite_one() -> None:
    finite = confidence_sequence(20, 1000, population=10**12)
    np.testing.assert_allclose(finite, confidence_sequence(20, 1000), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: wilson(11, 10), "k is 11"),
        (lambda: wilson(-1, 10), "k is -1"),
        (lambda: clopper_pearson(1, np.inf), "n is inf"),
        (lambda: wilson(1, 10, 95), "confidence is 95"),
        (lambda: poisson(-3), "k is -3"),
        (lambda: hypergeometric(1, 20, 10), "n is 20"),
        (lambda: hypergeometric(1.5, 5, 10), "k must be whole"),
        (lambda: confidence_sequence(1, 2, prior=(0, 1)), "prior is"),
        (lambda: upper_bound(3, 2), "k is 3"),
    ],
)
def test_errors_name_field_and_value(call, named: str) -> None:
    with pytest.raises(StatisticsError, match=named):
        call()
