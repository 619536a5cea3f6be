"""Estimates: exact cases, what a person reads, and coverage by simulation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saboteur.statistics import (
    StatisticsError,
    clopper_pearson,
    clustered,
    confidence_sequence,
    hypergeometric,
    margin_of_error,
    proportion,
    proportions,
    stratified,
    wilson,
)
from saboteur.statistics.estimates import weighted_interval


def test_proportion_reads_as_a_person_says_it() -> None:
    assert str(proportion(154, 10_000, 17_174_144)) == (
        "1.54 % of faults [1.25 %, 1.89 %] (k = 154 of n = 10,000, N = 17,174,144; Wilson, 99 % confidence; fixed n)"
    )
    assert str(proportion(0, 0, 10)).startswith("unknown of faults [0.00 %, 100.00 %]")
    assert str(proportion(1, 10**6, confidence=0.95)).startswith("0.000100 % of faults [0.0000177 %")


def test_clustered_and_stratified_read_with_their_basis() -> None:
    text = str(clustered([30, 0], [500, 0], [100, 50], 64, [1000, 500], 0.95, stopping_rule="± 1 % met"))
    assert "of inferences" in text and "k = 30 of n = 9,600, N = 96,000" in text
    assert "150 faults" in text and "effective n = " in text and "± 1 % met" in text


def test_estimate_is_a_frozen_value() -> None:
    estimate = proportion(1, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.k = 2
    assert estimate == proportion(1, 10)


def test_infinite_population_is_the_plain_interval() -> None:
    for method, plain in (
        ("wilson", wilson),
        ("clopper_pearson", clopper_pearson),
        ("confidence_sequence", confidence_sequence),
    ):
        estimate = proportion(7, 300, confidence=0.95, method=method)
        assert (estimate.low, estimate.high) == tuple(float(x) for x in plain(7, 300, 0.95))


def test_finite_population_correction() -> None:
    estimate = proportion(7, 300, 1000, 0.95)
    factor = 999 / 700
    low, high = wilson(7 * factor, 300 * factor, 0.95)
    assert (estimate.low, estimate.best, estimate.high) == (pytest.approx(low), 7 / 300, pytest.approx(high))
    exact = proportion(7, 300, 1000, 0.95, "clopper_pearson")
    assert (exact.low, exact.high) == hypergeometric(7, 300, 1000, 0.95)


@pytest.mark.parametrize("method", ["wilson", "clopper_pearson", "confidence_sequence"])
def test_exhaustive_campaign_has_no_width(method: str) -> None:
    for k in (0, 3, 10):
        estimate = proportion(k, 10, 10, method=method)
        assert estimate.low == pytest.approx(k / 10, abs=1e-12)
        assert estimate.best == k / 10
        assert estimate.high == pytest.approx(k / 10, abs=1e-12)


def test_proportions_are_proportion_by_stratum() -> None:
    table = proportions([1, 2, 0], [10, 20, 0], [100, None, 5], 0.9, unit="inferences")
    assert table[0] == proportion(1, 10, 100, 0.9, unit="inferences")
    assert table[1] == proportion(2, 20, None, 0.9, unit="inferences")
    assert table[2].n == 0 and (table[2].low, table[2].high) == (0, 1)


@given(st.data())
def test_proportion_properties(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 10**6))
    n = data.draw(st.integers(1, size))
    k = data.draw(st.integers(0, n))
    estimate = proportion(k, n, size, 0.95)
    assert 0 <= estimate.low <= estimate.best <= estimate.high <= 1
    assert estimate.low >= k / size - 1e-12 and estimate.high <= 1 - (n - k) / size + 1e-12
    mirrored = proportion(n - k, n, size, 0.95)
    assert mirrored.low == pytest.approx(1 - estimate.high, abs=1e-9)
    # Wilson's interval is never wider than the planned worst-case margin.
    assert (estimate.high - estimate.low) / 2 <= margin_of_error(n, size, 0.95) + 1e-9


def test_stratified_weighs_strata_by_population() -> None:
    estimate = stratified([50, 1], [100, 100], [1000, 99_000], 0.95)
    assert estimate.best == pytest.approx(0.01 * 0.5 + 0.99 * 0.01)
    assert (estimate.k, estimate.n, estimate.population, estimate.unit) == (51, 200, 100_000, "faults")


def test_stratified_broadcasts_strata() -> None:
    assert stratified([1, 2], 100, 1000) == stratified([1, 2], [100, 100], [1000, 1000])
    assert stratified(3, 100, 1000) == stratified([3], [100], [1000])
    with pytest.raises(StatisticsError, match="one dimension"):
        stratified([[1, 2]], 100, 1000)


def test_stratified_is_exact_when_exhausted() -> None:
    estimate = stratified([3, 0, 20], [10, 30, 20], [10, 30, 20])
    assert (estimate.low, estimate.best, estimate.high) == tuple([pytest.approx(23 / 60)] * 3)


def test_exhausted_stratum_adds_no_width() -> None:
    open_only = stratified([2], [100], [10_000], 0.95)
    both = stratified([2, 5], [100, 10_000], [10_000, 10_000], 0.95)
    assert both.high - both.low == pytest.approx((open_only.high - open_only.low) / 2, rel=1e-6)


def test_zero_events_bound_is_that_of_the_weakest_stratum() -> None:
    # One event unseen in 1,000: e^(−3.689) = 0.025, as for Poisson counts.
    estimate = stratified([0, 0], [500, 500], [10**7, 10**7], 0.95)
    assert estimate.low == estimate.best == 0
    assert estimate.high == pytest.approx(3.689 / 1000, rel=0.01)
    # Half of the population seen ten times only hides more than all other trials can tell.
    uneven = stratified([0, 0], [10, 990], [10**7, 10**7], 0.95)
    assert uneven.high == pytest.approx(0.5 * 3.689 / 10, rel=0.15)


def test_unsampled_stratum_is_unknown_by_its_share() -> None:
    known = stratified([5], [100], [1000], 0.95)
    partly = stratified([5, 0], [100, 0], [1000, 3000], 0.95)
    assert partly.best == known.best
    assert partly.low == pytest.approx(known.low / 4)
    assert partly.high == pytest.approx(known.high / 4 + 0.75)
    assert np.isnan(stratified([0], [0], [10]).best)


@given(st.data())
def test_stratified_properties(data: st.DataObject) -> None:
    strata = data.draw(st.integers(1, 6))
    sizes = np.array(data.draw(st.lists(st.integers(1, 10**5), min_size=strata, max_size=strata)))
    n = np.array([data.draw(st.integers(1, int(size))) for size in sizes])
    k = np.array([data.draw(st.integers(0, int(trials))) for trials in n])
    estimate = stratified(k, n, sizes, 0.95)
    assert 0 <= estimate.low <= estimate.best <= estimate.high <= 1
    assert estimate.best == pytest.approx(float(np.sum(sizes * k / n) / sizes.sum()))
    mirrored = stratified(n - k, n, sizes, 0.95)
    if abs(estimate.best - 0.5) > 1e-9:
        assert mirrored.low == pytest.approx(1 - estimate.high, abs=1e-9)
        assert mirrored.high == pytest.approx(1 - estimate.low, abs=1e-9)
    wider = stratified(k, n, sizes, 0.99)
    assert wider.low <= estimate.low + 1e-12 and wider.high >= estimate.high - 1e-12


def test_clustered_with_one_inference_is_stratified() -> None:
    k, n, sizes = [3, 0, 40], [50, 20, 100], [1000, 300, 5000]
    one = clustered(k, k, n, 1, sizes, 0.95)
    plain = stratified(k, n, sizes, 0.95)
    assert (one.low, one.best, one.high) == (plain.low, plain.best, plain.high)


def test_clustered_counts_inferences_and_faults() -> None:
    estimate = clustered([30, 0], [500, 0], [100, 50], 64, [1000, 500], 0.95)
    assert (estimate.k, estimate.n, estimate.population) == (30, 9600, 96_000)
    assert (estimate.clusters, estimate.unit) == (150, "inferences")
    assert estimate.best == pytest.approx(1000 / 1500 * 30 / 6400)


def test_critical_images_of_one_fault_count_as_one_cluster() -> None:
    # The same 640 critical inferences: ten faults that spoil all 64 images, or all faults a little.
    bunched = clustered([640], [10 * 64**2], [1000], 64, [10**6], 0.95)
    spread = clustered([640], [640], [1000], 64, [10**6], 0.95)
    as_if_independent = proportion(640, 64_000, confidence=0.95)
    assert bunched.best == spread.best == as_if_independent.best
    assert bunched.high - bunched.low > 6 * (as_if_independent.high - as_if_independent.low)
    assert bunched.effective_n == pytest.approx(1000, rel=0.1)


def test_clustered_without_events_is_bounded_by_faults_not_inferences() -> None:
    estimate = clustered([0], [0], [1000], 64, [10**6], 0.95)
    assert estimate.low == 0 and estimate.high == pytest.approx(3.689 / 1000, rel=0.01)


def coverage(rates, sizes, n, campaigns: int = 3000, confidence: float = 0.95) -> tuple[float, float]:
    """Shares of simulated stratified campaigns whose interval lies below and above the true rate."""
    rng = np.random.Generator(np.random.Philox(42))
    sizes, n = np.asarray(sizes), np.asarray(n)
    critical = np.rint(np.asarray(rates) * sizes).astype(int)
    k = rng.hypergeometric(critical, sizes - critical, n, size=(campaigns, sizes.size))
    low, _, high, _ = weighted_interval(k, k, np.broadcast_to(n, k.shape), np.broadcast_to(sizes, k.shape), confidence)
    truth = critical.sum() / sizes.sum()
    return float(np.mean(high < truth - 1e-12)), float(np.mean(low > truth + 1e-12))


DATA_AWARE = [142, 13_574, 30, 30, 31, 226, 1751, 345, 24, *[7] * 23]
"""The published layer-14 plan, bit 31 first."""
EXPONENT_RATES = [0.002, 0.45, 0.0005, 0.0005, 0.0005, 0.003, 0.02, 0.005, 0.0004]


@pytest.mark.parametrize(
    ("rates", "sizes", "n"),
    [
        ([0.001] * 20, [10_000] * 20, [50] * 20),
        ([0.02] * 20, [10_000] * 20, [50] * 20),
        ([0.3] * 20, [10_000] * 20, [50] * 20),
        ([0.98] * 20, [10_000] * 20, [50] * 20),
        ([0.02], [1000], [500]),
        ([0.0] * 10 + [0.1] * 5 + [0.5] * 5, [10_000] * 20, [100] * 20),
        ([0.0] * 10 + [0.02] * 5 + [0.5] * 5, np.geomspace(100, 100_000, 20).astype(int), [100] * 20),
        ([0.02] * 10, [100] * 5 + [1000] * 5, [100] * 5 + [50] * 5),
        ([*EXPONENT_RATES, *[0.0001] * 23], [73_728] * 32, DATA_AWARE),
        ([*EXPONENT_RATES, *[0.0139] * 23], [73_728] * 32, DATA_AWARE),
        ([*EXPONENT_RATES, *[0.0223] * 23], [73_728] * 32, DATA_AWARE),
        ([0.3] * 100, [1000] * 100, [1] * 100),
    ],
)
def test_stratified_coverage(rates, sizes, n) -> None:
    below, above = coverage(rates, sizes, n)
    # 3,000 campaigns: two standard errors of a 5 % error rate are 0.8 points.
    assert below + above <= 0.05 + 0.008


def test_stratified_coverage_over_random_designs() -> None:
    rng = np.random.Generator(np.random.Philox(2023))
    missed = []
    for _ in range(60):
        strata = rng.integers(1, 33)
        sizes = np.rint(10 ** rng.uniform(1.5, 5.5, strata)).astype(int)
        n = np.minimum(sizes, np.rint(10 ** rng.uniform(0, 3.3, strata)).astype(int))
        rates = np.clip(10 ** (rng.uniform(-4, -0.2) + rng.normal(0, 0.5, strata)), 0, 1)
        rates[rng.random(strata) < rng.choice([0.0, 0.5])] = 0
        missed.append(sum(coverage(rates, sizes, n, campaigns=1000)))
    # 1,000 campaigns: 5 % and three standard errors.
    assert max(missed) <= 0.05 + 0.021
    assert np.mean(missed) <= 0.05


def test_stratified_is_not_needlessly_wide() -> None:
    k, n, sizes = np.full(20, 1), np.full(20, 50), np.full(20, 10_000)
    estimate = stratified(k, n, sizes, 0.95)
    simple = clopper_pearson(20, 1000, 0.95)
    assert estimate.high - estimate.low <= 1.05 * (simple.high - simple.low)


def all_or_nothing(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.where(rng.random(size) < 0.02, 64, 0)


def mostly_small(rng: np.random.Generator, size: int) -> np.ndarray:
    draw = rng.random(size)
    return np.where(draw < 0.02, 64, np.where(draw < 0.12, rng.integers(0, 4, size), 0))


def spread_out(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.binomial(64, rng.beta(2, 5, size))


def tiny(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.binomial(64, rng.beta(0.3, 30, size))


@pytest.mark.parametrize("population", [all_or_nothing, mostly_small, spread_out, tiny])
@pytest.mark.parametrize("n", [[100, 100, 100, 100], [400, 50, 100, 50]])
def test_clustered_coverage(population, n: list[int]) -> None:
    rng = np.random.Generator(np.random.Philox(8))
    campaigns, size = 1500, 2000
    sums, squares, truth = np.empty((campaigns, 4)), np.empty((campaigns, 4)), 0.0
    for stratum in range(4):
        critical = population(rng, size).astype(np.float64)
        truth += critical.mean() / 64 / 4
        chosen = np.argpartition(rng.random((campaigns, size), dtype=np.float32), n[stratum], axis=1)
        sample = critical[chosen[:, : n[stratum]]]
        sums[:, stratum], squares[:, stratum] = sample.sum(axis=1), (sample**2).sum(axis=1)
    shape = sums.shape
    low, _, high, _ = weighted_interval(
        sums / 64, squares / 64**2, np.broadcast_to(n, shape), np.full(shape, size), 0.95
    )
    assert np.mean((low > truth) | (high < truth)) <= 0.05 + 0.011


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: proportion(11, 10), "k is 11"),
        (lambda: proportion(1, 10, 5), "n is 10"),
        (lambda: proportion(1, 10, method="wald"), "method is 'wald'"),
        (lambda: stratified([1], [10], [0]), "population is 0"),
        (lambda: stratified([1, 11], [10, 10], [100, 100]), "k is 11"),
        (lambda: clustered([10], [5], [10], 4, [100]), "do not belong"),
        (lambda: clustered([50], [700], [10], 4, [100]), "do not belong"),
        (lambda: clustered([10], [20], [10], 0, [100]), "inferences_per_fault is 0"),
        (lambda: clustered([10], [20], [10], 2.5, [100]), "inferences_per_fault is 2.5"),
    ],
)
def test_errors_name_field_and_value(call, named: str) -> None:
    with pytest.raises(StatisticsError, match=named):
        call()
