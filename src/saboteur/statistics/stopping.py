"""When a campaign may stop, and what then still holds.

A confidence interval holds at a number of trials fixed before the first one. Looked at again and again until
it pleases, a 95 % Wilson interval is wrong at some look in about four campaigns of ten at a rate of 2 %. The
rules that look at results therefore judge by a confidence sequence, which holds at all looks at once; they
pay with intervals two to three times as wide.

All rules are for simple random trials of one population (a stratum, or a proportionally sampled network)
whose trials are *faults*; inferences of the same fault are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from saboteur.statistics.checks import events_of_trials, open_unit, population_size
from saboteur.statistics.estimates import Method, finite_population_interval
from saboteur.statistics.intervals import Interval


class StoppingRule(Protocol):
    """Evaluated between rounds, vectorised over strata."""

    @property
    def method(self) -> Method:
        """How the interval of the estimate after stopping is to be computed."""
        ...

    @property
    def guarantee(self) -> str:
        """What holds after stopping, in words."""
        ...

    def met(self, k: ArrayLike, n: ArrayLike, population: ArrayLike | None = None) -> np.ndarray:
        """Whether each stratum, with ``k`` events among ``n`` trials of ``population``, may stop."""
        ...


@dataclass(frozen=True)
class FixedSize:
    """Stop at ``n`` trials, or when the population is exhausted, whatever they show.

    Any interval computed at the end holds with its stated confidence; ``method`` names it.
    """

    n: int
    method: Method = "wilson"
    guarantee = "fixed n: the interval at the end holds with its stated confidence"

    def __post_init__(self) -> None:
        population_size(self.n, name="n")

    def __str__(self) -> str:
        return f"fixed n = {self.n:,}"

    def met(self, k: ArrayLike, n: ArrayLike, population: ArrayLike | None = None) -> np.ndarray:
        """Whether the trials are made; arguments and result as for `StoppingRule.met`."""
        _, trials = events_of_trials(k, n)
        return trials >= np.minimum(self.n, _sizes(population))


class _SequentialRule:
    """Judges by a confidence sequence, so that looking between rounds costs no confidence."""

    confidence: float
    method: Method = "confidence_sequence"
    guarantee = (
        "confidence sequence: with the stated confidence the rate is inside at every look, "
        "the one that stopped included"
    )

    def interval(self, k: ArrayLike, n: ArrayLike, population: ArrayLike | None = None) -> Interval:
        """The confidence sequence at this look, which is also the interval to report after stopping."""
        events, trials = events_of_trials(k, n)
        events, trials, sizes = np.broadcast_arrays(events, trials, _sizes(population))
        return finite_population_interval(events, trials, sizes, self.confidence, self.method)


@dataclass(frozen=True)
class AbsoluteMargin(_SequentialRule):
    """Stop when the confidence sequence is no wider than ± ``half_width`` (a fraction of all faults)."""

    half_width: float
    confidence: float = 0.99

    def __post_init__(self) -> None:
        open_unit("half_width", self.half_width)
        open_unit("confidence", self.confidence)

    def __str__(self) -> str:
        return f"stopped at ± {100 * self.half_width:g} % by a confidence sequence"

    def met(self, k: ArrayLike, n: ArrayLike, population: ArrayLike | None = None) -> np.ndarray:
        """Whether the margin is met; arguments and result as for `StoppingRule.met`."""
        low, high = self.interval(k, n, population)
        return (high - low) / 2 <= self.half_width


@dataclass(frozen=True)
class RelativeMargin(_SequentialRule):
    """Stop when the half-width of the confidence sequence is at most ``ratio`` of the rate observed.

    Never met before the first event, unless the population is exhausted.
    """

    ratio: float
    confidence: float = 0.99

    def __post_init__(self) -> None:
        open_unit("ratio", self.ratio)
        open_unit("confidence", self.confidence)

    def __str__(self) -> str:
        return f"stopped at ± {100 * self.ratio:g} % of the rate by a confidence sequence"

    def met(self, k: ArrayLike, n: ArrayLike, population: ArrayLike | None = None) -> np.ndarray:
        """Whether the margin is met; arguments and result as for `StoppingRule.met`."""
        events, trials = events_of_trials(k, n)
        low, high = self.interval(events, trials, population)
        return (high - low) / 2 * np.maximum(trials, 1) <= self.ratio * events


def _sizes(population: ArrayLike | None) -> np.ndarray:
    return np.asarray(np.inf) if population is None else population_size(population)
