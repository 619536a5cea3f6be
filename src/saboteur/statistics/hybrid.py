"""Two levels, one rate: a cheap level on many faults, the exact level on some of them, combined into one estimate.

Two-phase ("double") sampling: the first phase runs n′ of the N faults at the cheap level, the second phase n of these
at the exact one as well. Whatever the cheap level is worth, the estimate is of the exact rate, without bias; what the
cheap level changes is its variance. Three ways to combine them (Cochran, Sampling Techniques, 3rd ed. 1977, ch. 12):

- *difference*: the cheap rate plus the mean of (exact − cheap) in the second phase;
- *regression*: the same with the least-squares slope in place of 1 (a control variate, §12.6);
- *stratified*: the exact rate of each class of cheap outcome, weighted by the classes' shares in the first phase; the
  classes in which the exact outcome is less certain get more of the second phase (§12.2 and 12.3).

With the population's variance of the exact outcome S², the variance of each is
V = (S² − A)/n′ + B/n − S²/N with A = B the variance of what the cheap level does not say: S²_d of the difference,
S² (1 − ρ²) of the regression residual; for strata of shares W_h and deviations S_h, A = Σ W_h S_h² and
B = (Σ W_h S_h)² where the second phase is shared as W_h S_h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from scipy.stats import qmc

from saboteur.statistics.checks import (
    Floats,
    Integers,
    StatisticsError,
    non_negative,
    normal_quantile,
    open_unit,
    population_size,
)
from saboteur.statistics.estimates import Estimate, finite_population_interval, weighted_interval
from saboteur.statistics.intervals import Interval, wilson

Strategy = Literal["exact_alone", "difference", "regression", "stratified"]

_SOBOL_POINTS = 2**10


@dataclass(frozen=True, eq=False)
class TwoPhase:
    """What a two-phase sample saw, by class of cheap outcome.

    Attributes:
        first: faults of the first phase in each class, shape (classes,).
        n: of these, how many ran at the exact level.
        k: of these, how many were events there; a fault judged on several inputs may count in part.
        score: the cheap outcome that the class stands for, such as 0 for masked and 1 for SDC, or its mean share.
        squares: sum over the exact runs of the squared outcome; ``k`` where outcomes are 0 and 1.

    Raises:
        StatisticsError: when the columns differ in length or do not count such a sample.
    """

    first: Integers
    n: Integers
    k: Floats
    score: Floats
    squares: Floats

    def __init__(
        self, first: ArrayLike, n: ArrayLike, k: ArrayLike, score: ArrayLike = (0, 1), squares: ArrayLike | None = None
    ):
        columns = [non_negative(name, values) for name, values in (("first", first), ("n", n), ("k", k))]
        columns += [np.asarray(score, np.float64), non_negative("squares", k if squares is None else squares)]
        if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
            shapes = ", ".join(str(column.shape) for column in columns)
            raise StatisticsError(f"first, n, k, score, squares have the shapes {shapes}; each must be (classes,)")
        faults, runs, events, _, second = columns
        if (runs > faults).any() or (events > runs).any() or (second > events).any():
            raise StatisticsError(
                f"first, n, k are {faults.tolist()}, {runs.tolist()}, {events.tolist()}; the exact level runs some of "
                "the first phase, and some of those are events"
            )
        if runs.sum() < 2:
            raise StatisticsError(f"n is {runs.tolist()}; at least two faults must have run at both levels")
        for name, values in zip(("first", "n", "k", "score", "squares"), columns, strict=True):
            object.__setattr__(self, name, values.astype(np.int64) if name in ("first", "n") else values)

    @classmethod
    def of(cls, cheap_of_first: ArrayLike, cheap: ArrayLike, exact: ArrayLike) -> TwoPhase:
        """From columns; each distinct cheap outcome is a class.

        Args:
            cheap_of_first: [n′] cheap outcomes of the first phase.
            cheap: [n] cheap outcomes of the faults of the second phase.
            exact: [n] their exact outcomes, each in [0, 1].
        """
        score, first = np.unique(np.asarray(cheap_of_first, np.float64), return_counts=True)
        cheap, exact = np.asarray(cheap, np.float64), np.asarray(exact, np.float64)
        place = np.minimum(np.searchsorted(score, cheap), len(score) - 1)
        if cheap.shape != exact.shape or (score[place] != cheap).any():
            raise StatisticsError("cheap, exact must be of the same faults, all of which are in the first phase")
        sums = [np.bincount(place, weights, len(score)) for weights in (np.ones_like(exact), exact, exact**2)]
        return cls(first, sums[0], sums[1], score, sums[2])

    @property
    def _shares(self) -> Floats:
        return self.first / self.first.sum()


@dataclass(frozen=True)
class Gain:
    """What the cheap level saved.

    Attributes:
        best: variance of the exact level alone, in the same time, over that of the hybrid.
        low: what it is at least, at the confidence asked for, given how well the sample knows it.
    """

    best: float
    low: float

    @property
    def claimed(self) -> bool:
        """Whether there is a gain, at the confidence asked for."""
        return self.low > 1

    def __str__(self) -> str:
        """Read as a person would say it."""
        if self.claimed:
            return f"{self.best:.2f} times the exact level alone in the same time (at least {self.low:.2f})"
        return (
            f"no gain is claimed: the two levels agree too little for their costs, or too few faults show it "
            f"(estimated {self.best:.2f}, at least {self.low:.2f})"
        )


@dataclass(frozen=True)
class Hybrid:
    """A combined estimate, and what it gained."""

    strategy: Strategy
    estimate: Estimate
    gain: Gain


@dataclass(frozen=True)
class Costs:
    """What one fault costs at each level, in any one unit, such as seconds.

    Raises:
        StatisticsError: when one is not positive.
    """

    cheap: float
    exact: float

    def __post_init__(self) -> None:
        for name in ("cheap", "exact"):
            value = getattr(self, name)
            if not (value > 0 and np.isfinite(value)):
                raise StatisticsError(f"costs.{name} is {value}; it must be positive")


def combine(
    sample: TwoPhase,
    population: int,
    costs: Costs,
    strategy: Strategy = "stratified",
    confidence: float = 0.99,
    *,
    stopping_rule: str = "fixed n",
) -> Hybrid:
    """One estimate of the exact rate from both phases.

    Its error has two uncorrelated parts: the first phase stands for the population (as exact outcomes of all n′ would,
    with Wilson's interval), and the second for the first. Their intervals are joined as independent ones (Zou and
    Donner, Statistics in Medicine 2008, the method of variance estimates recovery). That of the second part is, for
    ``stratified``, that of a stratified sample from the first phase (:func:`saboteur.statistics.stratified`); for the
    others Student's, after t²/2 squared pseudo-differences are added, without which levels that agreed so far would be
    declared equal for certain.

    Args:
        sample: what was seen.
        population: N, faults in the population.
        costs: of one fault at each level; they decide on the gain alone.
        strategy: how to combine; ``difference`` and ``regression`` take the second phase to be a simple random
            sample of the first, ``stratified`` to be one within each class.
        confidence: two-sided confidence in (0, 1) of the interval, and of ``gain.low``.
        stopping_rule: what decided on the sizes, in words.

    Raises:
        StatisticsError: an argument is outside its range; a class of which no fault ran at the exact level makes
            ``stratified`` wider, and the others refuse fewer than three exact runs.
    """
    open_unit("confidence", confidence)
    _check_strategy(strategy)
    total = float(population_size(population))
    first, n = int(sample.first.sum()), int(sample.n.sum())
    if first > total:
        raise StatisticsError(f"population is {population}; the first phase alone has {first} faults")
    if strategy == "exact_alone":
        events, squares, runs = (values.sum(keepdims=True) for values in (sample.k, sample.squares, sample.n))
        low, best, high, _ = weighted_interval(events, squares, runs, total, confidence)
        within = Interval(low, high)
        best = float(best)
    elif strategy == "stratified":
        low, best, high, _ = weighted_interval(sample.k, sample.squares, sample.n, sample.first, confidence)
        if np.isnan(best) or (sample.n[sample.first > 0] == 0).all():
            raise StatisticsError("n: no class has a fault that ran at the exact level")
        within, best = Interval(low, high), float(best)
    else:
        within, best = _of_differences(sample, strategy, confidence)
    if strategy != "exact_alone":
        spread = _outcome_variance(sample) / max(best * (1 - best), 1e-300) if 0 < best < 1 else 1.0
        effective = first / max(min(spread, 1.0), 1.0 / first)
        outer = finite_population_interval(
            np.array(best * effective), np.array(effective), np.array(max(total, effective)), confidence, "wilson"
        )
        within = Interval(
            best - np.hypot(best - within.low, best - outer.low), best + np.hypot(within.high - best, outer.high - best)
        )
    seen = float(sample.k.sum()) / total
    low, high = max(float(within.low), seen, 0.0), min(float(within.high), 1 - (n - sample.k.sum()) / total, 1.0)
    best = min(max(best, low), high)
    time = costs.exact * n + (0.0 if strategy == "exact_alone" else costs.cheap * first)
    measured = _Moments.of(sample).variance(strategy, first, n, total)
    estimate = Estimate(
        low=low,
        best=best,
        high=high,
        k=round(float(sample.k.sum())),
        n=n,
        population=int(total),
        method=_METHODS[strategy],
        confidence=confidence,
        stopping_rule=stopping_rule,
        effective_n=float(best * (1 - best) / measured) if 0 < best < 1 and measured > 0 else None,
    )

    def gained(moments: _Moments) -> Floats:
        alone = moments.variance("exact_alone", 0, min(time / costs.exact, total), total)
        return _ratio(alone, moments.variance(strategy, first, n, total))

    return Hybrid(strategy, estimate, _gain(sample, gained, confidence))


_METHODS: dict[str, str] = {
    "exact_alone": "weighted Poisson (Fay–Feuer)",
    "difference": "two-phase difference",
    "regression": "two-phase regression",
    "stratified": "two-phase stratified",
}


def _of_differences(sample: TwoPhase, strategy: Strategy, confidence: float) -> tuple[Interval, float]:
    """Estimate and interval of the exact rate of the first phase, from a simple random sample of it."""
    first, n = float(sample.first.sum()), float(sample.n.sum())
    fitted = 2 if strategy == "regression" else 1
    if n <= fitted:
        raise StatisticsError(f"n is {sample.n.tolist()}; {strategy} needs more than {fitted} faults at both levels")
    slope = _Moments.of(sample, smoothing=0.0).slope if strategy == "regression" else 1.0
    slope = float(slope)
    mean = float(np.sum(sample.k - slope * sample.score * sample.n) / n)
    best = slope * float(np.sum(sample.first * sample.score)) / first + mean
    squares = np.sum(sample.squares - 2 * slope * sample.score * sample.k + slope**2 * sample.score**2 * sample.n)
    scatter = max(float(squares) - n * mean**2, 0.0) + normal_quantile(confidence) ** 2 / 2
    t = special.stdtrit(n - fitted, (1 + confidence) / 2)
    half = float(t * np.sqrt(scatter / (n - fitted) / n * (1 - n / first)))
    best = min(max(best, 0.0), 1.0)
    return Interval(np.array(best - half), np.array(best + half)), best


def _outcome_variance(sample: TwoPhase) -> float:
    """S² of the exact outcome in the first phase."""
    runs = np.maximum(sample.n, 1)
    mean, squares = (float(np.sum(sample._shares * values / runs)) for values in (sample.k, sample.squares))
    return max(squares - mean**2, 0.0)


@dataclass(frozen=True, eq=False)
class _Moments:
    """What variances follow from: shares of the classes, and exact rates and variances in them; [..., classes]."""

    shares: Floats
    rates: Floats
    within: Floats
    score: Floats

    @classmethod
    def of(cls, sample: TwoPhase, smoothing: float = 0.5) -> _Moments:
        rates = (sample.k + smoothing) / np.maximum(sample.n + 2 * smoothing, 1e-300)
        return cls(sample._shares, rates, cls._scaled(sample, rates), sample.score)

    @staticmethod
    def _scaled(sample: TwoPhase, rates: Floats) -> Floats:
        """Variances of outcomes that may be fractions: below p (1 − p) by the share that squares are of sums."""
        size = np.where(sample.k > 0, sample.squares / np.maximum(sample.k, 1e-300), 1.0)
        return np.maximum(rates * size - rates**2, 0.0)

    @classmethod
    def plausible(cls, sample: TwoPhase) -> _Moments:
        """[points, classes] moments that the sample leaves plausible: Jeffreys posteriors at Sobol points."""
        classes = len(sample.first)
        points = qmc.Sobol(2 * classes, scramble=False).random(_SOBOL_POINTS)[1:]
        weights = special.gammaincinv(sample.first + 0.5, points[:, :classes])
        rates = special.betaincinv(sample.k + 0.5, sample.n - sample.k + 0.5, points[:, classes:])
        shares = weights / weights.sum(axis=1, keepdims=True)
        return cls(shares, rates, cls._scaled(sample, rates), sample.score)

    @property
    def rate(self) -> Floats:
        return np.sum(self.shares * self.rates, axis=-1)

    @property
    def total(self) -> Floats:
        """S²."""
        between = np.sum(self.shares * (self.rates - self.rate[..., None]) ** 2, axis=-1)
        return between + np.sum(self.shares * self.within, axis=-1)

    @property
    def _cheap(self) -> tuple[Floats, Floats]:
        """Variance of the cheap outcome, and its covariance with the exact one."""
        mean = np.sum(self.shares * self.score, axis=-1)
        off = self.score - mean[..., None]
        covariance = np.sum(self.shares * off * (self.rates - self.rate[..., None]), axis=-1)
        return np.sum(self.shares * off**2, axis=-1), covariance

    @property
    def slope(self) -> Floats:
        variance, covariance = self._cheap
        return _ratio(covariance, variance, 0.0)

    @property
    def correlation(self) -> Floats:
        variance, covariance = self._cheap
        return _ratio(covariance, np.sqrt(variance * self.total), 0.0)

    def unexplained(self, strategy: Strategy) -> tuple[Floats, Floats]:
        """A and B of the module's text."""
        variance, covariance = self._cheap
        if strategy == "difference":
            left = self.total + variance - 2 * covariance
        elif strategy == "regression":
            left = self.total - _ratio(covariance**2, variance, 0.0)
        else:
            deviations = np.sqrt(self.within)
            return np.sum(self.shares * self.within, axis=-1), np.sum(self.shares * deviations, axis=-1) ** 2
        return left, left

    def variance(self, strategy: Strategy, first: ArrayLike, n: ArrayLike, population: float) -> Floats:
        """V of the module's text; never negative."""
        if strategy == "exact_alone":
            return np.maximum(self.total * (1 / np.asarray(n) - 1 / population), 0.0)
        known, left = self.unexplained(strategy)
        second = left / np.asarray(n) - known / np.asarray(first)
        return np.maximum(self.total * (1 / np.asarray(first) - 1 / population), 0.0) + np.maximum(second, 0.0)


def _ratio(above: Floats, below: Floats, otherwise: float = np.inf) -> Floats:
    above, below = np.broadcast_arrays(above, below)
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), otherwise)


def _gain(sample: TwoPhase, gained: Callable[[_Moments], Floats], confidence: float) -> Gain:
    best, plausible = float(gained(_Moments.of(sample))), gained(_Moments.plausible(sample))
    return Gain(best, min(best, float(np.quantile(plausible, 1 - confidence, method="lower"))))


@dataclass(frozen=True)
class Plan:
    """What a strategy would do with a budget.

    Attributes:
        level: the cheap level; empty for the exact level alone.
        strategy: how the levels are combined.
        first: faults to run at the cheap level.
        exact: faults to run at the exact level.
        shares: for ``stratified``, the share of each class of cheap outcome to run at the exact level.
        half_width: of the interval that is to be expected.
        correlation: of the cheap and the exact outcome.
        gain: over the exact level alone with the same budget.
    """

    level: str
    strategy: Strategy
    first: int
    exact: int
    shares: tuple[float, ...]
    half_width: float
    correlation: float
    gain: Gain


def plan(
    sample: TwoPhase,
    population: int,
    costs: Costs,
    budget: float,
    strategy: Strategy,
    confidence: float = 0.99,
    *,
    level: str = "cheap",
) -> Plan:
    """The best use of a budget by one strategy, from a pilot of faults that ran at both levels.

    The sizes minimise V under cost = c′ n′ + c n: n/n′ = √(B c′ / ((S² − A) c)) (Cochran 1977, §12.3 and 12.7), with
    1 <= n <= n′ <= N; a whole population in the first phase leaves the rest of the budget to the second.

    Args:
        sample: the pilot.
        population: N.
        costs: of one fault at each level.
        budget: in the unit of the costs.
        strategy: how to combine.
        confidence: two-sided confidence in (0, 1).
        level: how the cheap level is called.

    Raises:
        StatisticsError: an argument is outside its range, or the budget is too small for two faults.
    """
    _check_strategy(strategy)
    total = float(population_size(population))
    if not budget >= 2 * (costs.exact + costs.cheap):
        raise StatisticsError(f"budget is {budget}; two faults at both levels cost {2 * (costs.exact + costs.cheap)}")
    moments = _Moments.of(sample)
    first, n = _sizes(moments, strategy, total, costs, budget)
    variance = float(moments.variance(strategy, first, n, total))
    rate = float(moments.rate)
    effective = rate * (1 - rate) / max(variance, 1e-300)
    low, high = wilson(rate * effective, effective, confidence)

    def gained(of: _Moments) -> Floats:
        alone = of.variance("exact_alone", 0, min(budget / costs.exact, total), total)
        return _ratio(alone, of.variance(strategy, first, n, total))

    shares: tuple[float, ...] = ()
    if strategy == "stratified":
        each = np.sqrt(moments.within) * n / max(float(np.sum(moments.shares * np.sqrt(moments.within))), 1e-300)
        shares = tuple(np.minimum(each / first, 1.0).tolist())
    return Plan(
        level="" if strategy == "exact_alone" else level,
        strategy=strategy,
        first=0 if strategy == "exact_alone" else int(first),
        exact=int(n),
        shares=shares,
        half_width=float((high - low) / 2),
        correlation=float(moments.correlation),
        gain=_gain(sample, gained, confidence),
    )


def _sizes(moments: _Moments, strategy: Strategy, total: float, costs: Costs, budget: float) -> tuple[float, float]:
    if strategy == "exact_alone":
        return 0.0, min(np.floor(budget / costs.exact), total)
    known, left = moments.unexplained(strategy)
    explained = float(moments.total - known)
    ratio = float(np.sqrt(left * costs.cheap / (explained * costs.exact))) if explained > 0 else 1.0
    ratio = min(ratio, 1.0)
    first = min(np.floor(budget / (costs.cheap + ratio * costs.exact)), total)
    n = np.floor((budget - costs.cheap * first) / costs.exact)
    return first, min(max(n, 2.0), first)


def rank(
    pilots: Mapping[str, TwoPhase],
    population: int,
    costs: Mapping[str, Costs],
    budget: float,
    confidence: float = 0.99,
) -> tuple[Plan, ...]:
    """The strategies of a hybrid campaign, the best first: the one of the narrowest expected interval.

    Args:
        pilots: by the name of each cheap level, faults that ran at it and at the exact one.
        population: N.
        costs: by the same names.
        budget: in the unit of the costs.
        confidence: two-sided confidence in (0, 1).

    Returns:
        Plans of every strategy for every level, and of the exact level alone. A strategy whose ``gain.claimed`` is
        false is not shown to beat the exact level alone; such plans come after it, however narrow they look.

    Raises:
        StatisticsError: as :func:`plan`, or where a level has no costs.
    """
    if not pilots:
        raise StatisticsError("pilots: no level is given")
    plans: list[Plan] = []
    for level, sample in pilots.items():
        if level not in costs:
            raise StatisticsError(f"costs: none for {level!r}")
        plans += [
            plan(sample, population, costs[level], budget, strategy, confidence, level=level)
            for strategy in get_args(Strategy)[1:]
        ]
    first = next(iter(pilots))
    alone = plan(pilots[first], population, costs[first], budget, "exact_alone", confidence)
    return tuple(
        sorted([alone, *plans], key=lambda p: (p.strategy != "exact_alone" and not p.gain.claimed, p.half_width))
    )


def second_phase(first: Sequence[int] | Integers, shares: Sequence[float]) -> Integers:
    """How many faults of each class to run at the exact level: its share, rounded up, at least two where there are."""
    sizes = np.asarray(first, np.int64)
    wanted = np.ceil(sizes * np.asarray(shares, np.float64) - 1e-9).astype(np.int64)
    return np.minimum(np.maximum(wanted, 2), sizes)


def _check_strategy(strategy: str) -> None:
    if strategy not in get_args(Strategy):
        raise StatisticsError(f"strategy is {strategy!r}; it must be one of {', '.join(get_args(Strategy))}")
