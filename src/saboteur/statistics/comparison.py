"""Whether one campaign's rate differs from another's, and by how much.

Two campaigns over the *same* faults (the same fault list on two models, formats or tools) are compared pair
by pair, which is far sharper than comparing two rates; campaigns over different faults are compared as
independent samples. Differences are always a − b.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from saboteur.statistics.checks import (
    Floats,
    StatisticsError,
    events_of_trials,
    non_negative,
    normal_quantile,
    open_unit,
)
from saboteur.statistics.intervals import wilson


class Difference(NamedTuple):
    """Difference a − b of two rates, in [−1, 1]: interval and point estimate (NaN without trials)."""

    low: Floats
    best: Floats
    high: Floats


def mcnemar(only_a: ArrayLike, only_b: ArrayLike) -> Floats:
    """Exact two-sided p-value of "both campaigns are equally critical", from the faults they disagree on.

    McNemar, Psychometrika 1947, with the binomial distribution in place of χ²: twice the smaller tail of
    Binomial(only_a + only_b, ½), at most 1.

    Args:
        only_a: faults critical in campaign a alone.
        only_b: faults critical in campaign b alone.

    Returns:
        p-values in (0, 1]; 1 where the campaigns agree on all faults.

    Raises:
        StatisticsError: a count is negative or not finite.
    """
    a, b = np.broadcast_arrays(non_negative("only_a", only_a), non_negative("only_b", only_b))
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(a, b), a + b, 0.5))[()]


def paired_difference(
    both: ArrayLike, only_a: ArrayLike, only_b: ArrayLike, neither: ArrayLike, confidence: ArrayLike = 0.99
) -> Difference:
    """Difference of two rates over the same faults, with an interval.

    Newcombe's hybrid score interval for paired data (Statistics in Medicine 1998, 17:2635, method 10): the
    Wilson limits of both rates, joined with their correlation φ (continuity-corrected where positive).

    Args:
        both: faults critical in both campaigns.
        only_a: faults critical in campaign a alone.
        only_b: faults critical in campaign b alone.
        neither: faults critical in none.
        confidence: two-sided confidence in (0, 1).

    Returns:
        The difference a − b; (−1, NaN, 1) where there is no fault at all.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    e, f, g, h = np.broadcast_arrays(
        non_negative("both", both),
        non_negative("only_a", only_a),
        non_negative("only_b", only_b),
        non_negative("neither", neither),
    )
    n = e + f + g + h
    cross = e * h - f * g
    corrected = np.where(cross > 0, np.maximum(cross - n / 2, 0), cross)
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    phi = np.where(margins > 0, corrected / np.sqrt(np.where(margins > 0, margins, 1.0)), 0.0)
    return _hybrid_score(e + f, n, e + g, n, phi, confidence)


def unpaired_difference(
    k_a: ArrayLike, n_a: ArrayLike, k_b: ArrayLike, n_b: ArrayLike, confidence: ArrayLike = 0.99
) -> Difference:
    """Difference of the rates of two independent campaigns, with an interval.

    Newcombe's hybrid score interval (Statistics in Medicine 1998, 17:873, method 10).

    Args:
        k_a: events of campaign a, 0 to n_a.
        n_a: trials of campaign a.
        k_b: events of campaign b, 0 to n_b.
        n_b: trials of campaign b.
        confidence: two-sided confidence in (0, 1).

    Returns:
        The difference a − b.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    k_a, n_a = events_of_trials(k_a, n_a)
    k_b, n_b = events_of_trials(k_b, n_b)
    return _hybrid_score(k_a, n_a, k_b, n_b, np.zeros(()), confidence)


def paired_mean_difference(
    sum_d: ArrayLike, sum_d2: ArrayLike, n: ArrayLike, confidence: ArrayLike = 0.99
) -> Difference:
    """Difference of two rates per inference over the same faults, each fault being a cluster.

    Student's interval of the mean of d = (x_a − x_b)/m, the difference of the critical shares of one fault's
    m inferences, after t² pseudo-faults that disagree wholly, half each way, are added to its scatter. It is
    to means what Agresti and Caffo's pseudo-trials are to rates (The American Statistician 2000): without it
    campaigns that agreed so far would be declared equal for certain.

    Args:
        sum_d: sum of d over the faults, each d in [−1, 1].
        sum_d2: sum of d².
        n: faults both campaigns injected.
        confidence: two-sided confidence in (0, 1).

    Returns:
        The difference a − b; (−1, NaN, 1) where there is no fault.

    Raises:
        StatisticsError: an argument is outside its range, or sums that no such differences have.
    """
    total, squares, trials = np.broadcast_arrays(
        np.asarray(sum_d, dtype=np.float64), non_negative("sum_d2", sum_d2), non_negative("n", n)
    )
    slack = 1e-9 * (1 + squares)
    if not np.all((total**2 <= trials * squares + slack * trials) & (squares <= np.abs(trials) + slack)):
        raise StatisticsError("sum_d and sum_d2 do not belong to n differences in [−1, 1]")
    level = (1 + open_unit("confidence", confidence)) / 2
    pseudo = special.ndtri(level) ** 2
    safe = np.maximum(trials, 1)
    best = total / safe
    scatter = squares - total * best + pseudo
    half = special.stdtrit(np.maximum(safe - 1, 1), level) * np.sqrt(scatter) / safe
    low, high = np.maximum(best - half, -1.0), np.minimum(best + half, 1.0)
    none = trials == 0
    return Difference(np.where(none, -1.0, low)[()], np.where(none, np.nan, best)[()], np.where(none, 1.0, high)[()])


def _hybrid_score(k_a: Floats, n_a: Floats, k_b: Floats, n_b: Floats, phi: Floats, confidence: ArrayLike) -> Difference:
    normal_quantile(confidence)
    low_a, high_a = wilson(k_a, n_a, confidence)
    low_b, high_b = wilson(k_b, n_b, confidence)
    with np.errstate(invalid="ignore"):
        p_a, p_b = k_a / n_a, k_b / n_b
    down_a, up_a, down_b, up_b = p_a - low_a, high_a - p_a, p_b - low_b, high_b - p_b
    best = p_a - p_b
    low = best - np.sqrt(np.maximum(down_a**2 - 2 * phi * down_a * up_b + up_b**2, 0))
    high = best + np.sqrt(np.maximum(up_a**2 - 2 * phi * up_a * down_b + down_b**2, 0))
    known = ~np.isnan(best)
    return Difference(
        np.where(known, np.maximum(low, -1), -1.0)[()], best[()], np.where(known, np.minimum(high, 1), 1.0)[()]
    )
