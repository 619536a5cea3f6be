"""Confidence intervals for rates and counts, vectorised: each returns arrays (low, high).

=====================  ===========================================  ==========================================
function               for                                          guarantee
=====================  ===========================================  ==========================================
`wilson`               a rate, shown in a table                     stated confidence on average over rates
`clopper_pearson`      a rate, claimed                              at least the stated confidence
`hypergeometric`       a rate among few faults, claimed             the same, exact without replacement
`poisson`              a count (beam errors)                        at least the stated confidence
`confidence_sequence`  a rate, looked at while the campaign runs    holds at all looks at once
`upper_bound`          "at most so many", one-sided                 at least the stated confidence
=====================  ===========================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from saboteur.statistics.checks import (
    Floats,
    Integers,
    StatisticsError,
    events_of_trials,
    non_negative,
    normal_quantile,
    open_unit,
    sample_of_population,
)


class Interval(NamedTuple):
    """Bounds of a confidence interval, each float64 of the arguments' broadcast shape."""

    low: Floats
    high: Floats


def wilson(k: ArrayLike, n: ArrayLike, confidence: ArrayLike = 0.99) -> Interval:
    """Two-sided score interval of a rate (Wilson, JASA 1927).

    Args:
        k: events, 0 to n; may be fractional, as effective counts are.
        n: trials; none (n = 0) gives (0, 1).
        confidence: two-sided confidence in (0, 1).

    Returns:
        Bounds in [0, 1].

    Raises:
        StatisticsError: an argument is outside its range.
    """
    events, trials = events_of_trials(k, n)
    t2 = normal_quantile(confidence) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (events + t2 / 2) / (trials + t2)
        half = np.sqrt(t2 * (events * (trials - events) / trials + t2 / 4)) / (trials + t2)
    return _bounds(centre - half, centre + half, events, trials)


def clopper_pearson(k: ArrayLike, n: ArrayLike, confidence: ArrayLike = 0.99) -> Interval:
    """Two-sided "exact" interval of a rate (Clopper and Pearson, Biometrika 1934).

    Arguments, result and errors as for `wilson`. Never covers less often than stated.
    """
    events, trials = events_of_trials(k, n)
    alpha = 1 - open_unit("confidence", confidence)
    failures = trials - events
    low, high = _binomial_tails(events, failures, alpha / 2)
    return _bounds(low, high, events, trials)


def hypergeometric(k: ArrayLike, n: ArrayLike, population: ArrayLike, confidence: ArrayLike = 0.99) -> Interval:
    """Two-sided exact interval of a rate in a finite population sampled without replacement.

    Both tails of the hypergeometric distribution are inverted for the number K of critical faults in the
    population, as Clopper and Pearson do for the binomial one (Buonaccorsi, The American Statistician 1987).
    Populations above 10¹¹ are taken as infinite: the result is then `clopper_pearson`'s.

    Args:
        k: events, whole, 0 to n.
        n: trials, whole, 0 to population.
        population: N, faults in the population, whole.
        confidence: two-sided confidence in (0, 1).

    Returns:
        Bounds K/N in [k/N, 1 − (n − k)/N]; equal to k/n when n = N.

    Raises:
        StatisticsError: an argument is outside its range or not whole.
    """
    alpha = 1 - open_unit("confidence", confidence)
    return _hypergeometric_tails(k, n, population, alpha / 2)


def upper_bound(
    k: ArrayLike, n: ArrayLike, confidence: ArrayLike = 0.99, *, population: ArrayLike | None = None
) -> Floats:
    """One-sided upper bound of a rate: "with this confidence, the rate is at most …".

    Clopper and Pearson's upper limit with the whole error on one side; 1 − (1 − confidence)^(1/n) where no
    event was seen. With ``population``, the exact finite-population limit (see `hypergeometric`).

    Args:
        k: events, 0 to n.
        n: trials; none gives 1.
        confidence: one-sided confidence in (0, 1).
        population: N; None for a population so large that repetition does not matter.

    Returns:
        float64 bounds in [0, 1].

    Raises:
        StatisticsError: an argument is outside its range.
    """
    alpha = 1 - open_unit("confidence", confidence)
    if population is not None:
        return _hypergeometric_tails(k, n, population, alpha).high
    events, trials = events_of_trials(k, n)
    return _bounds(*_binomial_tails(events, trials - events, alpha), events, trials).high


def poisson(k: ArrayLike, confidence: ArrayLike = 0.95) -> Interval:
    """Two-sided exact interval of the mean of a Poisson count (Garwood, Biometrika 1936).

    low = χ²(α/2; 2k)/2, high = χ²(1 − α/2; 2k + 2)/2. The default of 95 % is that of beam-test standards
    (ESCC 25100).

    Args:
        k: events counted, at least 0.
        confidence: two-sided confidence in (0, 1).

    Returns:
        Bounds of the expected count; divide by the fluence for a cross-section.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    events = non_negative("k", k)
    alpha = 1 - open_unit("confidence", confidence)
    low = np.where(events == 0, 0.0, special.gammaincinv(np.maximum(events, 1e-300), alpha / 2))
    return Interval(low[()], special.gammainccinv(events + 1, alpha / 2)[()])


def confidence_sequence(
    k: ArrayLike,
    n: ArrayLike,
    confidence: ArrayLike = 0.99,
    *,
    population: ArrayLike | None = None,
    prior: tuple[float, float] = (0.5, 0.5),
) -> Interval:
    """Bounds of a rate that hold at all looks at once: look, stop or go on at will.

    With probability of at least ``confidence`` the true rate is inside at *every* n. A rate p is left out
    once the mixture likelihood ratio M = ∫ L(q) dBeta(q; a, b) / L(p) reaches 1/α; under p, M is a
    martingale of mean 1, so by Ville's inequality it ever does so with a probability of at most α
    (Robbins, Ann. Math. Statist. 1970; Howard et al., Ann. Statist. 2021). With ``population``, L is the
    hypergeometric likelihood and the mixture beta-binomial: the prior–posterior-ratio sequence of
    Waudby-Smith and Ramdas, NeurIPS 2020, which shrinks to a point when the population is exhausted.

    Args:
        k: events so far, 0 to n.
        n: trials so far, in an order drawn at random; none gives (0, 1).
        confidence: probability in (0, 1) that the rate is never outside.
        population: N, for sampling without replacement; None for an infinite population.
        prior: a, b > 0 of the mixing beta distribution. It moves width between rates, never the guarantee;
            Jeffreys' (½, ½) serves rates from 0 to 1.

    Returns:
        Bounds in [0, 1], rounded outwards by at most 1e-15.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    a, b = prior
    if not (a > 0 and b > 0):
        raise StatisticsError(f"prior is {prior}; both numbers must be positive")
    alpha = 1 - open_unit("confidence", confidence)
    events, trials = events_of_trials(k, n)
    failures = trials - events
    mixture = special.betaln(a + events, b + failures) - special.betaln(a, b) + np.log(alpha)

    if population is None:

        def log_likelihood(p: Floats) -> Floats:
            return special.xlogy(events, p) + special.xlog1py(failures, -p)

        first, last = np.zeros_like(mixture), np.ones_like(mixture)
    else:
        _, sizes = sample_of_population(trials, population)

        def log_likelihood(p: Floats) -> Floats:
            critical = p * sizes
            harmless = sizes - critical
            return (
                _log_choose(critical, events)
                + _log_choose(harmless, failures)
                - _log_choose(sizes, trials)
                - _log_choose(trials, events)
            )

        first, last = events / sizes, (sizes - failures) / sizes

    with np.errstate(invalid="ignore", divide="ignore"):
        best = np.where(trials > 0, events / np.maximum(trials, 1), 0.5)
    best = np.clip(best, first, last)
    first, last, best = np.broadcast_arrays(first + 0 * mixture, last + 0 * mixture, best + 0 * mixture)
    low = _boundary(log_likelihood, mixture, outside=first, inside=best)
    high = _boundary(log_likelihood, mixture, outside=last, inside=best)
    return _bounds(low, high, events, trials)


def _bounds(low: Floats, high: Floats, events: Floats, trials: Floats) -> Interval:
    """Clip to [0, 1], put the ends that k = 0, k = n and n = 0 fix exactly, and give back scalars as such."""
    low, high, events, trials = np.broadcast_arrays(low, high, events, trials)
    low = np.where((events == 0) | (trials == 0), 0.0, np.clip(low, 0, 1))
    high = np.where((events == trials) | (trials == 0), 1.0, np.clip(high, 0, 1))
    return Interval(low[()], high[()])


def _log_choose(total: Floats, chosen: Floats) -> Floats:
    """Logarithm of C(total, chosen) for real arguments; stable where both are large."""
    return -np.log1p(total) - special.betaln(total - chosen + 1, chosen + 1)


def _boundary(log_likelihood: Callable[[Floats], Floats], level: Floats, *, outside: Floats, inside: Floats) -> Floats:
    """Where a unimodal log-likelihood crosses ``level`` between a point outside and its maximum, by bisection.

    Where even ``outside`` is not below the level, that end itself.
    """
    reached = log_likelihood(outside) > level
    out, within = outside.copy(), inside.copy()
    for _ in range(60):
        middle = (out + within) / 2
        above = log_likelihood(middle) > level
        within = np.where(above, middle, within)
        out = np.where(above, out, middle)
    return np.where(reached, outside, out)


def _binomial_tails(events: Floats, failures: Floats, tail: Floats) -> Interval:
    """Rates at which each tail of the binomial distribution has probability ``tail``; NaN at the ends."""
    with np.errstate(invalid="ignore"):
        low = special.betaincinv(events, failures + 1, tail)
        high = special.betainccinv(events + 1, failures, tail)
    return Interval(low, high)


def _hypergeometric_tails(k: ArrayLike, n: ArrayLike, population: ArrayLike, tail: Floats) -> Interval:
    """Rates K/N between the smallest K with P(X >= k | K) > tail and the largest with P(X <= k | K) > tail."""
    events, trials = events_of_trials(k, n)
    trials, sizes = sample_of_population(trials, population)
    for name, values in (("k", events), ("n", trials), ("population", sizes)):
        if np.any(values != np.floor(values)):
            raise StatisticsError(f"{name} must be whole for the hypergeometric interval")
    events, trials, sizes, tail = np.broadcast_arrays(events, trials, sizes, tail)
    # Beyond this size the hypergeometric tails lose digits, and they are the binomial ones.
    infinite = sizes > 1e11
    seen, drawn, total = (np.where(infinite, 0, values).astype(np.int64) for values in (events, trials, sizes))
    least, most = seen, total - (drawn - seen)

    def enough_above(critical: Integers) -> np.ndarray:
        return stats.hypergeom.sf(seen - 1, total, critical, drawn) > tail

    def enough_below(critical: Integers) -> np.ndarray:
        return stats.hypergeom.cdf(seen, total, critical, drawn) > tail

    # P(X >= k | K) grows with K and holds at the greatest K; P(X <= k | K) falls and holds at the least.
    below, at_least = least - 1, most
    above, at_most = most + 1, least
    while np.any(at_least - below > 1) or np.any(above - at_most > 1):
        middle = np.maximum((below + at_least) // 2, least)
        holds = enough_above(middle)
        at_least, below = np.where(holds, middle, at_least), np.where(holds, below, middle)
        middle = np.minimum((above + at_most + 1) // 2, most)
        holds = enough_below(middle)
        at_most, above = np.where(holds, middle, at_most), np.where(holds, above, middle)
    limits = _bounds(*_binomial_tails(events, trials - events, tail), events, trials)
    low = np.where(infinite, limits.low, at_least / sizes)
    high = np.where(infinite, limits.high, at_most / sizes)
    return Interval(low[()], high[()])
