"""How many faults to inject for a margin of error, and the margin that a number of faults gives."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from saboteur.statistics.checks import (
    Floats,
    Integers,
    StatisticsError,
    normal_quantile,
    open_unit,
    population_size,
    sample_of_population,
)


def sample_size(
    population: ArrayLike,
    margin: ArrayLike,
    confidence: ArrayLike = 0.99,
    p: ArrayLike = 0.5,
    *,
    quantile: ArrayLike | None = None,
    rounding: Literal["nearest", "up"] = "nearest",
) -> Integers:
    """Faults to inject so that a rate near ``p`` is known to within ``margin``.

    n = N / (1 + e² (N − 1) / (t² p (1 − p))), Leveugle et al., "Statistical fault injection: quantified
    error and confidence", DATE 2009, equation 4. All arguments broadcast, so that a layer-wise or
    layer × bit plan is one call with the strata's populations (Ruospo et al., DATE 2023).

    Args:
        population: N, faults in the stratum, at least 1.
        margin: e, half-width of the interval, as a fraction in (0, 1): 0.01 is one percentage point.
        confidence: two-sided confidence in (0, 1).
        p: rate expected, in (0, 1); 0.5 is the worst case.
        quantile: t itself, in place of the exact normal quantile of ``confidence``. Published tables use
            2.58 for 99 %.
        rounding: "nearest" reproduces the published tables; "up" keeps the margin strictly.

    Returns:
        int64 sample sizes in [1, N], of the arguments' broadcast shape.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    if rounding not in ("nearest", "up"):
        raise StatisticsError(f"rounding is {rounding!r}; it must be 'nearest' or 'up'")
    exact = _real_sample_size(population, margin, confidence, p, quantile)
    rounded = np.rint(exact) if rounding == "nearest" else np.ceil(exact - 1e-9)
    return np.clip(rounded, 1, population_size(population)).astype(np.int64)[()]


def margin_of_error(
    n: ArrayLike,
    population: ArrayLike,
    confidence: ArrayLike = 0.99,
    p: ArrayLike = 0.5,
    *,
    quantile: ArrayLike | None = None,
) -> Floats:
    """Margin that ``n`` faults of ``population`` give for a rate near ``p``: the inverse of `sample_size`.

    e = t √(p (1 − p) / n · (N − n) / (N − 1)), equation 4 of Leveugle et al., DATE 2009, solved for e.
    An exhausted population (n = N) gives 0, no trial (n = 0) gives infinity.

    Args:
        n: faults injected without repetition, 0 to N.
        population: N, at least 1.
        confidence: two-sided confidence in (0, 1).
        p: rate expected, in (0, 1).
        quantile: t itself, in place of the normal quantile of ``confidence``.

    Returns:
        float64 margins as fractions, of the arguments' broadcast shape.

    Raises:
        StatisticsError: an argument is outside its range.
    """
    trials, sizes = sample_of_population(n, population)
    rate = open_unit("p", p)
    t = _quantile(confidence, quantile)
    with np.errstate(divide="ignore"):
        variance = rate * (1 - rate) / trials * (sizes - trials) / np.maximum(sizes - 1, 1)
    return (t * np.sqrt(variance))[()]


def _quantile(confidence: ArrayLike, quantile: ArrayLike | None) -> Floats:
    if quantile is None:
        return normal_quantile(confidence)
    t = np.asarray(quantile, dtype=np.float64)
    if not np.all((t > 0) & np.isfinite(t)):
        raise StatisticsError(f"quantile is {quantile}; it must be positive, such as 2.58 for 99 %")
    return t


def _real_sample_size(
    population: ArrayLike, margin: ArrayLike, confidence: ArrayLike, p: ArrayLike, quantile: ArrayLike | None
) -> Floats:
    sizes = population_size(population)
    e = open_unit("margin", margin)
    rate = open_unit("p", p)
    t = _quantile(confidence, quantile)
    return sizes / (1 + e**2 * (sizes - 1) / (t**2 * rate * (1 - rate)))
