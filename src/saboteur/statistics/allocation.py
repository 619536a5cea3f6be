"""How many trials each stratum gets: by size, by prior, by variance, or step by step as results come in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from saboteur.statistics.checks import (
    Floats,
    Integers,
    StatisticsError,
    events_of_trials,
    non_negative,
    normal_quantile,
    open_unit,
    population_size,
    sample_of_population,
)
from saboteur.statistics.estimates import finite_population_interval
from saboteur.statistics.sample_size import sample_size


def network_wise(
    population: ArrayLike,
    margin: float,
    confidence: float = 0.99,
    p: float = 0.5,
    *,
    quantile: float | None = None,
) -> Integers:
    """One sample size for the whole network, shared among its strata in proportion to their sizes.

    The plan of Leveugle et al. (DATE 2009) as Ruospo et al. (DATE 2023) tabulate it: each share is rounded
    by itself, so that the sum may differ from n by a few trials (16,628 for 16,625 on ResNet-20), and a
    stratum whose share is below a half gets none. The margin holds for the network, not for a stratum.

    Args:
        population: faults per stratum, shape (strata,).
        margin: half-width for the whole network, in (0, 1).
        confidence: two-sided confidence in (0, 1).
        p: rate expected, in (0, 1).
        quantile: t itself, in place of the normal quantile of ``confidence``.

    Returns:
        int64 trials per stratum, shape (strata,), each at most its population.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    sizes = population_size(population)
    total = sample_size(sizes.sum(), margin, confidence, p, quantile=quantile)
    return np.minimum(np.rint(sizes * (total / sizes.sum())), sizes).astype(np.int64)


def stratum_wise(
    population: ArrayLike,
    margin: ArrayLike,
    confidence: ArrayLike = 0.99,
    p: ArrayLike = 0.5,
    *,
    quantile: ArrayLike | None = None,
) -> Integers:
    """Sample size per stratum, so that the margin holds in each of them.

    `sample_size` of every stratum: strata are layers, or layers × bits, and ``p`` is 0.5 or a prior per
    stratum such as `data_aware_prior` gives (Ruospo et al., DATE 2023). Arguments, result and errors as for
    `sample_size`.
    """
    return sample_size(population, margin, confidence, p, quantile=quantile)


def proportional(total: int, population: ArrayLike) -> Integers:
    """Share exactly ``total`` trials among strata in proportion to their sizes.

    Largest remainders; ties go to the first stratum.

    Args:
        total: trials to share, 0 to the sum of the population.
        population: faults per stratum, shape (strata,).

    Returns:
        int64 trials per stratum, whose sum is ``total``.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    sizes = population_size(population)
    return _share(total, sizes, sizes, np.zeros_like(sizes))


def neyman(total: int, population: ArrayLike, p: ArrayLike, *, least: int = 2) -> Integers:
    """Share exactly ``total`` trials so that the estimate of the overall rate varies least.

    n_h ∝ N_h √(p_h (1 − p_h)) (Neyman, J. R. Stat. Soc. 1934; Cochran, Sampling Techniques 1977, §5.5);
    what a stratum cannot take, because its population is smaller, goes to the others.

    Args:
        total: trials to share, from ``least`` in each stratum to the sum of the population.
        population: faults per stratum, shape (strata,).
        p: rate expected per stratum, in (0, 1).
        least: trials every stratum gets (or its whole population if smaller), so that a wrong prior cannot
            leave a stratum unseen; 2 let its variance be estimated.

    Returns:
        int64 trials per stratum, whose sum is ``total``.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    sizes = population_size(population)
    rates = np.broadcast_to(open_unit("p", p), sizes.shape)
    return _share(total, sizes, sizes * np.sqrt(rates * (1 - rates)), np.minimum(least, sizes))


def data_aware_prior(flip_distance: ArrayLike, *, least: float = 1e-4, greatest: float = 0.5) -> Floats:
    """Prior rate per bit from how far a flip of that bit moves the golden weights.

    Ruospo et al., DATE 2023: the average distance D(i) = f0(i)·D01(i) + f1(i)·D10(i) of bit i, with f0 and
    f1 the shares of zeros and ones, is scaled from [min D, max D] to [0, 0.5], outliers left out. A bit is an
    outlier, and gets ``greatest``, where its flips give no finite number or where log2 D lies above Tukey's
    upper fence (third quartile plus 1.5 interquartile ranges, over the bits of positive distance); the
    logarithm since distances are powers of two. For float32 weights that is bit 30 alone.

    The sample sizes published with the paper rest on one set of rates for both of its networks, which no
    network's own weights give; the tests hold that set.

    Args:
        flip_distance: average of |flipped − golden| over the weights, per bit, at least 0; infinite or NaN
            where flips are not finite. The last axis is the bits, any others are strata (layers) scaled each
            by themselves.
        least: lowest prior, in (0, 0.5): keeps harmless bits from getting no trial at all. The published
            ResNet-20 table never goes below 7 trials, which is 1e-4.
        greatest: prior of the worst bit and of outliers, in (0, 0.5].

    Returns:
        float64 priors in [least, greatest], of the shape of ``flip_distance``.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    distance = np.asarray(flip_distance, dtype=np.float64)
    if distance.ndim == 0 or distance.shape[-1] == 0:
        raise StatisticsError("flip_distance is a scalar or empty; it must hold one distance per bit")
    if np.any(distance < 0):
        raise StatisticsError(f"flip_distance is {distance.min()}; it must be at least 0")
    if not 0 < least < greatest <= 0.5:
        raise StatisticsError(f"least, greatest are {least}, {greatest}; they must be 0 < least < greatest <= 0.5")
    magnitude = np.where(np.isfinite(distance) & (distance > 0), distance, np.nan)
    if np.all(np.isnan(magnitude), axis=-1).any():
        raise StatisticsError("flip_distance has no positive finite distance to scale by")
    exponents = np.log2(magnitude)
    lower, upper = np.nanquantile(exponents, [0.25, 0.75], axis=-1, keepdims=True)
    outlier = ~np.isfinite(distance) | (exponents > upper + 1.5 * (upper - lower))
    inliers = np.where(outlier, np.nan, distance)
    smallest, largest = np.nanmin(inliers, axis=-1, keepdims=True), np.nanmax(inliers, axis=-1, keepdims=True)
    span = np.where(largest > smallest, largest - smallest, 1.0)
    # Equal distances say nothing of which bit is worse: all get the greatest prior.
    scaled = np.where(largest > smallest, greatest * (distance - smallest) / span, greatest)
    return np.where(outlier, greatest, np.clip(np.where(outlier, 0.0, scaled), least, greatest))


MOST_GROWTH = 4
"""Times the trials so far that a round of `refine` may bring a stratum to."""


@dataclass(frozen=True)
class Refinement:
    """What the next round of an iterative campaign is, per stratum.

    Attributes:
        extra: trials to add now; 0 where the goal is met.
        half_width: half-width of the Wilson interval so far, finite population included.
        p: rate the round was planned with.
    """

    extra: Integers
    half_width: Floats
    p: Floats

    @property
    def met(self) -> bool:
        """Whether no stratum needs another trial."""
        return not np.any(self.extra)


def refine(
    k: ArrayLike,
    n: ArrayLike,
    population: ArrayLike,
    margin: ArrayLike,
    confidence: float = 0.99,
    *,
    pilot_margin: ArrayLike = 0.05,
) -> Refinement:
    """Plan the next round of an iterative campaign: pilot, re-estimate, add what the margin still needs.

    Iterative statistical fault injection (Ruospo et al., IEEE TC 2025). A stratum without trials gets the
    pilot: the sample size of ``pilot_margin`` at p = 0.5. After that the next target is the goal e where the
    present half-width E is at most 3 e, otherwise the parabola e + 4 (E/3 − e) p (1 − p), so that a doubtful
    rate near one half is approached in steps; the trials still lacking to `sample_size` of that target are
    asked for. No round more than quadruples the trials, since a rate from few trials is no plan for many.

    Two guards against a pilot that saw nothing, where a normal interval has no width and the original
    stops: E is the half-width of Wilson's interval, and p is its centre (k + t²/2) / (n + t²).

    The margin is met at the end. The confidence of an interval at a size that its own data chose is not
    guaranteed; simulated at rates from 0.15 to 30 % it stayed within half a point of the stated one. Where a
    guarantee is needed, `confidence_sequence` gives it.

    Args:
        k: events so far per stratum, 0 to n.
        n: trials so far per stratum.
        population: faults per stratum. One stratum (scalars) is a network-wise campaign.
        margin: half-width wanted, in (0, 1).
        confidence: two-sided confidence in (0, 1).
        pilot_margin: half-width that sizes the pilot, in (0, 1).

    Returns:
        The trials to add per stratum, with n + extra at most the population.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    events, trials = events_of_trials(k, n)
    trials, sizes = sample_of_population(trials, population)
    goal = open_unit("margin", margin)
    low, high = finite_population_interval(events, trials, sizes, confidence, "wilson")
    half_width = (high - low) / 2
    t2 = normal_quantile(confidence) ** 2
    p = (events + t2 / 2) / (trials + t2)
    target = np.maximum(goal, goal + 4 * (half_width / 3 - goal) * p * (1 - p))
    wanted = np.minimum(sample_size(sizes, target, confidence, p, rounding="up"), MOST_GROWTH * trials)
    unmet = (half_width > goal) & (trials < sizes)
    extra = np.where(unmet, np.clip(wanted - trials, 1, sizes - trials), 0)
    pilot = sample_size(sizes, np.maximum(pilot_margin, goal), confidence, rounding="up")
    extra = np.where(trials == 0, pilot, extra).astype(np.int64)
    return Refinement(extra[()], half_width, p)


def _share(total: int, sizes: Floats, weights: Floats, least: Floats) -> Integers:
    """Largest-remainder shares of ``total`` by ``weights``, each from ``least`` to ``sizes``."""
    non_negative("total", total)
    if total != int(total) or not least.sum() <= total <= sizes.sum():
        raise StatisticsError(
            f"total is {total}; it must be whole, from {int(least.sum())} (the least that all strata get "
            f"together) to {int(sizes.sum())}, the population"
        )
    lower, upper = 0.0, float(np.max(sizes / weights))
    for _ in range(200):
        scale = (lower + upper) / 2
        enough = np.clip(scale * weights, least, sizes).sum() >= total
        lower, upper = (lower, scale) if enough else (scale, upper)
    shares = np.clip(lower * weights, least, sizes)
    whole = np.floor(shares + 1e-9)
    lacking = int(total - whole.sum())
    by_remainder = np.argsort(-np.where(whole < sizes, shares - whole, -np.inf), kind="stable")
    whole[by_remainder[:lacking]] += 1
    return whole.astype(np.int64)
