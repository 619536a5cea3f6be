"""Shares of trials, priors from golden weights and campaigns in rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saboteur.statistics import (
    StatisticsError,
    data_aware_prior,
    network_wise,
    neyman,
    proportion,
    proportional,
    refine,
    sample_size,
    stratum_wise,
    wilson,
)

STRATA = st.lists(st.integers(1, 10**6), min_size=1, max_size=30)


def float32_flip_distance(weights: np.ndarray) -> np.ndarray:
    """Average distance per bit, infinite where a flip is not finite."""
    words = weights.astype(np.float32).view(np.uint32)
    flipped = (words[:, None] ^ (np.uint32(1) << np.arange(32, dtype=np.uint32))).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(flipped.astype(np.float64) - weights[:, None])
    return np.where(np.isfinite(distance), distance, np.inf).mean(axis=0)


def test_network_wise_shares() -> None:
    np.testing.assert_array_equal(network_wise([100, 300, 600], 0.05, 0.95), [28, 83, 167])
    assert sample_size(1000, 0.05, 0.95) == 278


def test_stratum_wise_takes_a_prior_per_stratum() -> None:
    n = stratum_wise([10_000] * 3, 0.01, 0.95, p=[0.5, 0.1, 0.001])
    np.testing.assert_array_equal(n, [4899, 2569, 38])


def test_proportional_known_shares() -> None:
    np.testing.assert_array_equal(proportional(10, [100, 300, 600]), [1, 3, 6])
    np.testing.assert_array_equal(proportional(10, [500, 500, 500]), [4, 3, 3])
    np.testing.assert_array_equal(proportional(0, [5, 5]), [0, 0])


@given(STRATA, st.floats(0, 1))
def test_proportional_sums_up_and_stays_within(sizes: list[int], share: float) -> None:
    total = round(share * sum(sizes))
    n = proportional(total, sizes)
    assert n.sum() == total
    assert np.all((n >= 0) & (n <= sizes))
    assert np.all(np.abs(n - total * np.array(sizes) / sum(sizes)) < 1 + 1e-6)


def test_neyman_known_shares() -> None:
    # Equal sizes: in the ratio of √(p q) = 0.5 : 0.3 : 0.0995.
    np.testing.assert_array_equal(neyman(900, [10_000] * 3, [0.5, 0.1, 0.01]), [500, 300, 100])
    # The first stratum's share of 48 exceeds its population; the second takes what is left.
    np.testing.assert_array_equal(neyman(1000, [10, 1000], [0.5, 0.01]), [10, 990])


@given(STRATA, st.floats(0, 1), st.data())
def test_neyman_sums_up_and_stays_within(sizes: list[int], share: float, data: st.DataObject) -> None:
    rates = data.draw(st.lists(st.floats(1e-6, 0.999), min_size=len(sizes), max_size=len(sizes)))
    least = np.minimum(2, sizes)
    total = int(least.sum()) + round(share * (sum(sizes) - int(least.sum())))
    n = neyman(total, sizes, rates)
    assert n.sum() == total
    assert np.all((n >= least) & (n <= sizes))


def test_neyman_varies_less_than_proportional() -> None:
    sizes, rates = np.array([1000, 50_000, 200_000]), np.array([0.5, 0.05, 0.001])

    def variance(n: np.ndarray) -> float:
        return float(np.sum((sizes / sizes.sum()) ** 2 * rates * (1 - rates) / n * (1 - n / sizes)))

    assert variance(neyman(3000, sizes, rates)) < 0.6 * variance(proportional(3000, sizes))


def test_data_aware_prior_by_hand() -> None:
    # Four bits of an int4: distances 1, 2, 4, 8, no outlier; (d − 1)/7/2.
    np.testing.assert_allclose(data_aware_prior([1, 2, 4, 8]), [1e-4, 1 / 14, 3 / 14, 0.5])


def test_data_aware_prior_leaves_outliers_out() -> None:
    distance = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1e37, np.inf, np.nan])
    prior = data_aware_prior(distance)
    np.testing.assert_allclose(prior, [1e-4, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5])


def test_data_aware_prior_scales_each_layer_by_itself() -> None:
    layers = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    np.testing.assert_allclose(data_aware_prior(layers), [[1e-4, 0.25, 0.5]] * 2)


def test_data_aware_prior_of_float32_weights_singles_out_bit_30() -> None:
    weights = np.random.Generator(np.random.Philox(3)).normal(0, 0.1, 20_000).astype(np.float32)
    prior = data_aware_prior(float32_flip_distance(weights))
    assert prior[30] == 0.5
    assert np.argmax(np.delete(prior, 30)) == 25
    assert np.all(np.diff(prior[:23]) >= 0)


def test_data_aware_prior_of_resnet20(shared_data: Path) -> None:
    torch = pytest.importorskip("torch")
    state = torch.load(
        shared_data / "resnet20-cifar10" / "resnet20-12fca82f.th", weights_only=True, map_location="cpu"
    )["state_dict"]
    weights = np.concatenate([w.numpy().ravel() for name, w in state.items() if w.ndim > 1 and name.endswith("weight")])
    assert weights.size == 268_336
    prior = data_aware_prior(float32_flip_distance(weights))
    # Average distances of bits 25, 26, 31, 24, measured: 0.62045, 0.15694, 0.13751, 0.12296.
    np.testing.assert_allclose(prior[[30, 25, 26, 31, 24]], [0.5, 0.5, 0.12648, 0.11081, 0.09909], atol=2e-5)


def run_in_rounds(rate: float, size: int, margin: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Events, trials and rounds of an iterative campaign on a random fault list."""
    order = rng.permutation(size) < round(rate * size)
    k = n = rounds = 0
    while not (step := refine(k, n, size, margin, 0.95)).met:
        n += int(step.extra)
        k = int(order[:n].sum())
        rounds += 1
        assert n <= size and rounds < 50
    return k, n, rounds


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.02, 0.3, 0.5, 0.98, 1.0])
def test_refine_meets_the_margin_with_fewer_trials(rate: float) -> None:
    size, margin = 200_000, 0.01
    k, n, rounds = run_in_rounds(rate, size, margin, np.random.Generator(np.random.Philox(11)))
    estimate = proportion(k, n, size, 0.95)
    assert (estimate.high - estimate.low) / 2 <= margin
    assert (rounds > 1) == (0.01 < rate < 0.99)
    worst_case = int(sample_size(size, margin, 0.95))
    assert n <= worst_case * 1.02
    if abs(rate - 0.5) > 0.45:
        assert n < worst_case / 4


def test_refine_exhausts_a_small_population() -> None:
    _, n, _ = run_in_rounds(0.5, 50, 0.01, np.random.Generator(np.random.Philox(1)))
    assert n == 50


def test_refine_goes_on_after_a_pilot_without_events() -> None:
    step = refine(0, 100, 10_000, 0.01)
    # Wilson, k = 0, n = 100 · 9999/9900: t²/(n + t²)/2 = 6.6349/107.635/2; a normal interval has no width.
    assert step.half_width == pytest.approx(0.030821, abs=1e-5)
    assert step.extra == 300 and not step.met


def test_refine_does_not_trust_few_trials_for_many() -> None:
    rng = np.random.Generator(np.random.Philox(12))
    rate, margin = 0.0015, 0.001
    _, n, _ = run_in_rounds(rate, 2_000_000, margin, rng)
    assert n < 2.5 * sample_size(2_000_000, margin, 0.95, rate)


def test_refine_by_strata() -> None:
    step = refine([0, 50, 0, 3], [0, 100, 20, 5000], [10_000, 10_000, 20, 10_000], 0.01, 0.95)
    assert step.extra[0] == sample_size(10_000, 0.05, 0.95, rounding="up")
    assert step.extra[1] > 0
    assert step.extra[2] == 0 and step.half_width[2] == 0
    assert step.extra[3] == 0


@pytest.mark.parametrize(("rate", "margin"), [(0.0065, 0.002), (0.02, 0.01), (0.1, 0.01), (0.3, 0.01)])
def test_refine_keeps_the_confidence(rate: float, margin: float) -> None:
    campaigns, size = 2000, 10**7
    rng = np.random.Generator(np.random.Philox(5))
    k, n = np.zeros(campaigns, dtype=int), np.zeros(campaigns, dtype=int)
    while not (step := refine(k, n, size, margin, 0.95)).met:
        k += rng.binomial(step.extra, rate)
        n += step.extra
    low, high = wilson(k, n, 0.95)
    assert np.mean((low <= rate) & (rate <= high)) >= 0.94
    assert np.mean(n) <= 1.5 * sample_size(size, margin, 0.95, rate)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: proportional(11, [5, 5]), "total is 11"),
        (lambda: proportional(-1, [5, 5]), "total is -1"),
        (lambda: neyman(3, [5, 5], 0.5), "total is 3"),
        (lambda: neyman(5, [5, 5], 1.5), "p is 1.5"),
        (lambda: data_aware_prior([1, -2]), "flip_distance is -2"),
        (lambda: data_aware_prior([0.0, np.inf]), "no positive finite distance"),
        (lambda: data_aware_prior(3.0), "scalar or empty"),
        (lambda: data_aware_prior([1, 2], least=0.6), "least, greatest"),
        (lambda: refine(1, 20, 10, 0.01), "n is 20"),
        (lambda: refine(1, 10, 10, 0), "margin is 0"),
    ],
)
def test_errors_name_field_and_value(call, named: str) -> None:
    with pytest.raises(StatisticsError, match=named):
        call()
