"""Checks of arguments shared by this package; each error names the field, the value and what would be right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from saboteur.errors import SaboteurError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class StatisticsError(SaboteurError, ValueError):
    """A statistical argument outside the range in which the formula means anything."""


def _refuse(name: str, values: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    if np.any(wrong):
        worst = values[wrong].flat[0]
        raise StatisticsError(f"{name} is {worst:.15g}; it must be {expected}")


def open_unit(name: str, values: ArrayLike) -> Floats:
    """Values strictly between 0 and 1, as float64."""
    array = np.asarray(values, dtype=np.float64)
    _refuse(name, array, ~((array > 0) & (array < 1)), "strictly between 0 and 1")
    return array


def population_size(values: ArrayLike, name: str = "population") -> Floats:
    """Population sizes of at least 1, as float64 (exact up to 2**53)."""
    array = np.asarray(values, dtype=np.float64)
    _refuse(name, array, ~((array >= 1) & np.isfinite(array)), "a finite size of at least 1")
    return array


def non_negative(name: str, values: ArrayLike) -> Floats:
    """Finite values of at least 0, as float64."""
    array = np.asarray(values, dtype=np.float64)
    _refuse(name, array, ~((array >= 0) & np.isfinite(array)), "finite and at least 0")
    return array


def events_of_trials(k: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    """Events ``k`` among trials ``n``, broadcast against each other, 0 <= k <= n."""
    events, trials = np.broadcast_arrays(non_negative("k", k), non_negative("n", n))
    _refuse("k", events, events > trials, "at most n, the number of trials")
    return events, trials


def sample_of_population(n: ArrayLike, population: ArrayLike) -> tuple[Floats, Floats]:
    """Sample sizes ``n`` of ``population``, broadcast against each other, 0 <= n <= population."""
    trials, sizes = np.broadcast_arrays(non_negative("n", n), population_size(population))
    _refuse("n", trials, trials > sizes, "at most the population, since no fault is injected twice")
    return trials, sizes


def normal_quantile(confidence: ArrayLike) -> Floats:
    """Two-sided quantile t of the normal distribution: P(|Z| <= t) = confidence; 0.99 gives 2.5758."""
    return special.ndtri((1 + open_unit("confidence", confidence)) / 2)
