"""Rates with everything that makes them honest: interval, counts, population, method, confidence, rule.

Two denominators, never mixed: *faults* (a fault judged over the whole test set) and *inferences* (one fault,
one input). Inferences of the same fault are not independent, so a rate per inference is estimated with each
fault as a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from saboteur.statistics import intervals
from saboteur.statistics.checks import (
    Floats,
    StatisticsError,
    events_of_trials,
    non_negative,
    open_unit,
    sample_of_population,
)

Method = Literal["wilson", "clopper_pearson", "confidence_sequence"]
Unit = Literal["faults", "inferences"]


@dataclass(frozen=True)
class Estimate:
    """A rate, never without what it rests on.

    Attributes:
        low: lower bound of the interval, in [0, 1].
        best: the estimate itself, low <= best <= high; NaN where nothing was injected.
        high: upper bound of the interval, in [0, 1].
        k: events observed.
        n: trials made, in units.
        population: units there are, or None where it is unbounded.
        method: how the interval was computed.
        confidence: its two-sided confidence.
        unit: what a trial is: "faults" or "inferences".
        stopping_rule: what decided that n trials are enough.
        clusters: faults behind the inferences, where the unit is inferences.
        effective_n: trials that a simple random sample would need for the same precision, where the design
            is not simple.
    """

    low: float
    best: float
    high: float
    k: int
    n: int
    population: int | None
    method: str
    confidence: float
    unit: Unit = "faults"
    stopping_rule: str = "fixed n"
    clusters: int | None = None
    effective_n: float | None = None

    def __str__(self) -> str:
        """Read as a person would say it, every assumption included."""
        rate = f"{_percent(self.best)} of {self.unit} [{_percent(self.low)}, {_percent(self.high)}]"
        basis = [f"k = {self.k:,} of n = {self.n:,}"]
        if self.population is not None:
            basis[0] += f", N = {self.population:,}"
        if self.clusters is not None:
            basis.append(f"{self.clusters:,} faults")
        if self.effective_n is not None:
            basis.append(f"effective n = {self.effective_n:,.0f}")
        basis += [f"{self.method}, {100 * self.confidence:g} % confidence", self.stopping_rule]
        return f"{rate} ({'; '.join(basis)})"


def proportion(
    k: int,
    n: int,
    population: int | None = None,
    confidence: float = 0.99,
    method: Method = "wilson",
    *,
    unit: Unit = "faults",
    stopping_rule: str = "fixed n",
) -> Estimate:
    """Rate among simple random trials.

    Args:
        k: events, 0 to n.
        n: trials without repetition, 0 to population.
        population: N, units in the population; None for a population without bound.
        confidence: two-sided confidence in (0, 1).
        method: "wilson" to show; "clopper_pearson" to claim (with a population, its exact hypergeometric
            form); "confidence_sequence" where the data decided when to stop.
        unit: what a trial is.
        stopping_rule: what decided on n, in words.

    Returns:
        The estimate; of zero width when n = population; NaN in [0, 1] when n = 0.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    return proportions([k], [n], [population], confidence, method, unit=unit, stopping_rule=stopping_rule)[0]


def proportions(
    k: ArrayLike,
    n: ArrayLike,
    population: ArrayLike | Sequence[int | None] | None = None,
    confidence: float = 0.99,
    method: Method = "wilson",
    *,
    unit: Unit = "faults",
    stopping_rule: str = "fixed n",
) -> list[Estimate]:
    """`proportion` of every stratum of a table at once: arrays of shape (strata,) in, one estimate each out."""
    events, trials = events_of_trials(k, n)
    sizes = np.asarray(np.inf if population is None else population, dtype=np.float64)
    events, trials, sizes = np.broadcast_arrays(events, trials, np.where(np.isnan(sizes), np.inf, sizes))
    low, high = finite_population_interval(events, trials, sizes, confidence, method)
    with np.errstate(invalid="ignore"):
        best = events / trials
    names = {
        "wilson": "Wilson",
        "clopper_pearson": "Clopper–Pearson",
        "confidence_sequence": "confidence sequence",
    }
    return [
        Estimate(
            low=float(lo),
            best=float(mid),
            high=float(hi),
            k=int(events_h),
            n=int(trials_h),
            population=int(size) if np.isfinite(size) else None,
            method=names[method],
            confidence=confidence,
            unit=unit,
            stopping_rule=stopping_rule,
        )
        for lo, mid, hi, events_h, trials_h, size in zip(
            np.atleast_1d(low), best, np.atleast_1d(high), events, trials, sizes, strict=True
        )
    ]


def stratified(
    k: ArrayLike,
    n: ArrayLike,
    population: ArrayLike,
    confidence: float = 0.99,
    *,
    stopping_rule: str = "fixed n",
) -> Estimate:
    """Rate of the whole population of faults from trials stratified in any way.

    Each stratum counts by its share N_h/N of the population, however many trials it got; a rate pooled over
    unequal shares would be biased. The interval is `clustered`'s with one inference per fault.

    Args:
        k: events per stratum, shape (strata,).
        n: trials per stratum, 0 to population.
        population: N_h, faults per stratum.
        confidence: two-sided confidence in (0, 1).
        stopping_rule: what decided on n, in words.

    Returns:
        The estimate for the whole population, in faults.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    events, trials = events_of_trials(k, n)
    return _weighted_estimate(events, events, trials, population, 1, confidence, "faults", stopping_rule)


def clustered(
    sum_x: ArrayLike,
    sum_x2: ArrayLike,
    n: ArrayLike,
    inferences_per_fault: int,
    population: ArrayLike,
    confidence: float = 0.99,
    *,
    stopping_rule: str = "fixed n",
) -> Estimate:
    """Rate per inference, each fault being a cluster of inferences, stratified in any way.

    Per stratum only the number of faults and the sums of their counts x and of x² are needed, so that a
    database can aggregate. The estimate is Σ_h N_h/N · Σx/(n_h m).

    The interval is that of a weighted sum of Poisson counts (Fay and Feuer, Statistics in Medicine 1997),
    each fault seen being an event of its own weight w_i = N_h/(N n_h) · x_i/m. Its lower limit is a quantile
    of Σ w_i Γ(1), its upper limit the quantile of the same sum with one event more, never seen, of the
    largest weight any stratum could hide; so strata without events widen the interval as much as their weight
    and their trials demand, and no more. Two refinements: finite-population factors, so that an exhausted
    stratum adds nothing, and scatter about the stratum's mean in place of about zero, which is what a binomial
    count has over a Poisson one. The sums' distributions are given their first three cumulants (Pearson
    type III), which is right for one event and for many. The size of the unseen event is that of a fault
    that spoils all inferences where a stratum has no event, else the size-weighted mean of those seen. Above
    one half the interval is that of the complement.

    A stratum without a single trial is known to lie in [0, 1] only: its share of the population widens the
    interval by just that.

    Args:
        sum_x: per stratum, sum over faults of the critical inferences x of each, shape (strata,).
        sum_x2: per stratum, sum of x².
        n: faults injected per stratum.
        inferences_per_fault: m, inputs each fault met; the same for all faults.
        population: N_h, faults per stratum.
        confidence: two-sided confidence in (0, 1).
        stopping_rule: what decided on n, in words.

    Returns:
        The estimate for the whole population, in inferences.

    Raises:
        StatisticsError: an argument is outside its range, or sums no set of counts in [0, m] can have.
    """
    m = inferences_per_fault
    if not m >= 1 or m != int(m):
        raise StatisticsError(f"inferences_per_fault is {m}; it must be whole and at least 1")
    total, squares = np.broadcast_arrays(non_negative("sum_x", sum_x), non_negative("sum_x2", sum_x2))
    return _weighted_estimate(total / m, squares / m**2, n, population, int(m), confidence, "inferences", stopping_rule)


def finite_population_interval(
    k: Floats, n: Floats, population: Floats, confidence: float, method: Method
) -> intervals.Interval:
    """Interval of a rate per stratum; ``population`` may hold infinities, where there is no correction.

    Wilson's takes n (N − 1)/(N − n) for n, the size of an infinite-population sample of the same variance
    (Cochran, Sampling Techniques 1977, §2.6), and keeps to the rates the sample leaves possible.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    finite = np.isfinite(population)
    sizes = np.where(finite, population, np.maximum(n, 1))
    sample_of_population(n, sizes)
    if method == "wilson":
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.where(finite & (n < sizes), (sizes - 1) / (sizes - n), 1.0)
        low, high = intervals.wilson(k * factor, n * factor, confidence)
        low = np.where(finite, np.maximum(low, k / sizes), low)
        high = np.where(finite, np.minimum(high, (sizes - (n - k)) / sizes), high)
        return intervals.Interval(low, high)
    if method not in ("clopper_pearson", "confidence_sequence"):
        raise StatisticsError(f"method is {method!r}; it must be 'wilson', 'clopper_pearson' or 'confidence_sequence'")
    unbounded = intervals.clopper_pearson if method == "clopper_pearson" else intervals.confidence_sequence
    low, high = (np.array(bound, ndmin=k.ndim) for bound in unbounded(k, n, confidence))
    if np.any(finite):
        k, n, sizes = k[finite], n[finite], sizes[finite]
        if method == "clopper_pearson":
            low[finite], high[finite] = intervals.hypergeometric(k, n, sizes, confidence)
        else:
            low[finite], high[finite] = intervals.confidence_sequence(k, n, confidence, population=sizes)
    return intervals.Interval(low, high)


def weighted_interval(
    sum_y: ArrayLike, sum_y2: ArrayLike, n: ArrayLike, population: ArrayLike, confidence: float
) -> tuple[Floats, Floats, Floats, Floats]:
    """Low, best, high and effective n of Σ_h N_h/N · mean of y in stratum h, for y in [0, 1].

    The method is described at `clustered`. The last axis is the strata, any others are independent problems.
    Effective n is p (1 − p)/variance (Korn and Graubard, Survey Methodology 1998), of the upper limit's
    distribution, so that it stays finite and honest where no event was seen.
    """
    sums, squares = np.broadcast_arrays(non_negative("sum", sum_y), non_negative("sum of squares", sum_y2))
    trials, sizes = sample_of_population(n, population)
    sums, squares, trials, sizes = np.broadcast_arrays(sums, squares, trials, sizes)
    slack = 1e-9 * (1 + sums)
    possible = (sums <= trials + slack) & (squares <= sums + slack) & (sums**2 <= trials * squares + slack)
    if not np.all(possible):
        raise StatisticsError(
            "sums of counts and of squares do not belong to that many trials: each trial counts from 0 to the "
            "inferences per fault, so sum_x <= n m, sum_x² <= n sum_x2 and sum_x2 <= m sum_x"
        )
    sampled = trials > 0
    known_share = np.sum(sizes * sampled, axis=-1) / np.sum(sizes, axis=-1)
    sizes = np.where(sampled, sizes, 0.0)
    weights = sizes / np.maximum(np.sum(sizes, axis=-1, keepdims=True), 1)
    best = np.sum(weights * sums / np.maximum(trials, 1), axis=-1)

    flipped = best > 0.5
    turn = flipped[..., None]
    y = np.where(turn, trials - sums, sums)
    y2 = np.clip(np.where(turn, trials - 2 * sums + squares, squares), 0, y)
    low, high, effective = _minority_interval(y, y2, trials, sizes, weights, open_unit("confidence", confidence))
    low, high = np.where(flipped, 1 - high, low), np.where(flipped, 1 - low, high)

    seen = np.sum(sums, axis=-1)
    everything = np.maximum(np.sum(sizes, axis=-1), 1)
    low = np.minimum(np.maximum(low, seen / everything), best)
    high = np.maximum(np.minimum(high, 1 - (np.sum(trials, axis=-1) - seen) / everything), best)
    low, high = low * known_share, high * known_share + (1 - known_share)
    return low, np.where(known_share > 0, best, np.nan), high, effective


def _minority_interval(
    y: Floats, y2: Floats, n: Floats, sizes: Floats, weights: Floats, confidence: Floats
) -> tuple[Floats, Floats, Floats]:
    """Limits of a weighted mean of at most one half, and its effective n; the last axis is the strata."""
    trials = np.maximum(n, 1)
    unseen = np.where(sizes > 0, (sizes - n) / np.maximum(sizes, 1), 0.0)
    per_trial = weights / trials
    event_size = np.where(y > 0, y2 / np.where(y > 0, y, 1.0), 1.0)
    rate = (y + event_size / 2) / (trials + 1)
    # One trial cannot show its stratum's scatter; the second moment, a Poisson count's, is never below it.
    scatter = np.where(trials > 1, (y2 - y * rate) * trials / np.maximum(trials - 1, 1), y2)
    mean = np.sum(per_trial * y, axis=-1)
    variance = np.sum(per_trial**2 * unseen * scatter, axis=-1)
    # Of the sum of y³ only the bounds that the two sums leave are known: (Σy²)²/Σy and Σy².
    centring = -3 * rate * y2 + 2 * rate**2 * y
    third_weight = per_trial**3 * unseen * (1 + unseen)
    least_third = np.sum(third_weight * (y2 * event_size + centring), axis=-1)
    greatest_third = np.sum(third_weight * (y2 + centring), axis=-1)

    # K critical faults among N all stay unseen with probability (1 − f)^K: on average 1/−ln(1 − f) of them.
    detection = -np.log1p(-np.where(n < sizes, n / np.maximum(sizes, 1), 0.0))
    hiding = (n > 0) & (n < sizes) & (y < n)
    hidden_size = (y2 + 1) / (y + 1)
    hidden = np.where(hiding, weights * hidden_size / np.where(hiding, sizes * detection, 1.0), 0.0)
    worst = np.argmax(hidden, axis=-1)[..., None]
    hidden, hidden_rate = (np.take_along_axis(a, worst, axis=-1)[..., 0] for a in (hidden, rate))

    tail = (1 - confidence) / 2
    low = _pearson3_quantile(tail, mean, variance, least_third)
    upper_mean = mean + hidden * np.clip(1 - hidden_rate, 0, 1)
    upper_variance = variance + hidden**2
    high = _pearson3_quantile(1 - tail, upper_mean, upper_variance, greatest_third + 2 * hidden**3)
    with np.errstate(invalid="ignore", divide="ignore"):
        effective = np.where(upper_variance > 0, upper_mean * (1 - upper_mean) / upper_variance, np.inf)
    return low, high, effective


def _pearson3_quantile(q: Floats, mean: Floats, variance: Floats, third: Floats) -> Floats:
    """Quantile of the Pearson type III distribution with these cumulants; the mean where variance is 0."""
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    skew = np.clip(np.where(variance > 0, third, 0.0) / deviation**3, -20, 20)
    return np.where(variance > 0, mean + deviation * stats.pearson3.ppf(q, skew), mean)


def _weighted_estimate(
    sum_y: Floats,
    sum_y2: Floats,
    n: ArrayLike,
    population: ArrayLike,
    inferences_per_fault: int,
    confidence: float,
    unit: Unit,
    stopping_rule: str,
) -> Estimate:
    trials, sizes = sample_of_population(n, population)
    sum_y, sum_y2, trials, sizes = np.broadcast_arrays(*np.atleast_1d(sum_y, sum_y2, trials, sizes))
    if sum_y.ndim != 1:
        raise StatisticsError(f"strata are arrays of shape {sum_y.shape}; they must be of one dimension")
    low, best, high, effective = weighted_interval(sum_y, sum_y2, trials, sizes, confidence)
    faults = int(trials.sum())
    return Estimate(
        low=float(low),
        best=float(best),
        high=float(high),
        k=round(float(np.sum(sum_y)) * inferences_per_fault),
        n=faults * inferences_per_fault,
        population=int(sizes.sum()) * inferences_per_fault,
        method="weighted Poisson (Fay–Feuer)",
        confidence=confidence,
        unit=unit,
        stopping_rule=stopping_rule,
        clusters=faults if unit == "inferences" else None,
        effective_n=float(effective) if np.isfinite(effective) else None,
    )


def _percent(rate: float) -> str:
    if np.isnan(rate):
        return "unknown"
    percent = 100 * rate
    digits = 2 if percent == 0 else min(max(2 - int(np.floor(np.log10(percent))), 2), 8)
    return f"{percent:.{digits}f} %"
