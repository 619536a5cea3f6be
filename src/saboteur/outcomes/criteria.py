"""Criteria: when a wrong answer counts as silent data corruption (SDC).

An inference whose output is not finite, or whose run crashed, hung or raised an alarm, is detected or
unrecoverable (DUE) under every criterion and never reaches one. Of the rest, an *inference criterion* says
which single inferences are SDC; a *fault criterion* judges a fault by its answers to the whole workload.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from saboteur.errors import TargetError
from saboteur.extensions import Part, described, extensible
from saboteur.outcomes.golden import Golden, confidence, confidence_log_odds

_CONFIDENCE_ROUNDING = 1e-14
"""What rounding can add to a confidence, as a share of it."""

_LOG_ODDS_ROUNDING = 1e-13
"""What rounding can add to log-odds of up to 40; beyond, ``_SHRINK`` covers it."""

_SHRINK = 1 - 1e-6


class Criterion(Part):
    """Turns observations into outcomes."""

    group: ClassVar[str] = "saboteur.criteria"

    @property
    def name(self) -> str:
        """How tables call it; distinct for distinct settings."""
        return described(self)

    @abstractmethod
    def check(self, golden: Golden) -> None:
        """Refuse a golden run that the criterion cannot be applied to.

        Raises:
            TargetError: saying what is missing.
        """


class InferenceCriterion(Criterion):
    """Judges one faulty output against the golden output of the same input."""

    @abstractmethod
    def sdc(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.bool_]:
        """Which of the faulty ``outputs`` [n, ...], all finite, of ``inputs`` [n] are SDC."""

    def radius(self, golden: Golden) -> NDArray[np.float64]:
        """How far every output of each input may certainly move without being SDC: [inputs].

        An engine that proves a smaller deviation need not compute the output. 0 means: always compute it.
        Built-in criteria stay a millionth below the exact distance, so that rounding changes nothing.
        """
        return np.zeros(golden.inputs)

    def slack(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.float64]:
        """How far every value of each of the faulty ``outputs`` may certainly move without another verdict: [n].

        An engine whose sums run in another order than the plain one's trusts its outputs where rounding stays
        below this. 0 means: compute the output the plain way.
        """
        return np.zeros(len(inputs))


class FaultCriterion(Criterion):
    """Judges a fault by its answers to the whole workload; detected and unrecoverable inferences gave none."""

    @abstractmethod
    def sdc_faults(
        self,
        golden: Golden,
        correct: NDArray[np.int64],
        golden_correct: NDArray[np.int64],
        inferences: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Which faults are SDC.

        Args:
            golden: the golden run.
            correct: [faults] right answers with the fault.
            golden_correct: [faults] right answers of the golden run on the inputs that got an answer.
            inferences: [faults] how many inputs got an answer, right or wrong.
        """


class Sdc1(InferenceCriterion):
    """SDC-1: the top-1 class differs from the golden top-1 (Li et al., SC 2017)."""

    kind: str = "sdc-1"

    def check(self, golden: Golden) -> None:
        """Needs class scores."""
        golden.require_classes(self.kind)

    def sdc(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.bool_]:
        """Top-1 differs."""
        return outputs.argmax(axis=1) != golden.top1[inputs]

    def radius(self, golden: Golden) -> NDArray[np.float64]:
        """Half the margin between the golden top-1 and the runner-up."""
        return _half_margin(golden, 1)

    def slack(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.float64]:
        """Half the margin between the faulty top-1 and its runner-up."""
        return _half_lead(outputs)


class TopK(InferenceCriterion):
    """The faulty top-k no longer holds the golden top-1."""

    kind: str = "top-k"
    k: Annotated[int, Field(ge=1)] = 5

    def check(self, golden: Golden) -> None:
        """Needs class scores, more than k of them."""
        golden.require_classes(self.name)
        if golden.outputs.shape[1] <= self.k:
            raise TargetError(f"criteria: {self.name} needs more than {self.k} classes, of {golden.outputs.shape[1]}")

    def sdc(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.bool_]:
        """The golden top-1 has at least k better (or equal and earlier) classes."""
        top1 = golden.top1[inputs]
        score = np.take_along_axis(outputs, top1[:, None], axis=1)
        earlier = np.arange(outputs.shape[1]) < top1[:, None]
        return ((outputs > score) | ((outputs == score) & earlier)).sum(axis=1) >= self.k

    def radius(self, golden: Golden) -> NDArray[np.float64]:
        """Half the margin between the golden top-1 and the golden class k + 1."""
        return _half_margin(golden, self.k)

    def slack(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.float64]:
        """Half the distance between the golden top-1's faulty score and the k-th best of the others."""
        scores, rows = outputs.astype(np.float64), np.arange(len(inputs))
        own = scores[rows, golden.top1[inputs]]
        scores[rows, golden.top1[inputs]] = -np.inf
        return _SHRINK * np.abs(own - np.partition(scores, -self.k, axis=1)[:, -self.k]) / 2


class Sdc5(InferenceCriterion):
    """SDC-5: the faulty top-1 is not among the golden top-5 (Li et al., SC 2017); never with 5 classes or fewer."""

    kind: str = "sdc-5"

    def check(self, golden: Golden) -> None:
        """Needs class scores."""
        golden.require_classes(self.kind)

    def sdc(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.bool_]:
        """Top-1 outside of the golden five."""
        return (golden.ranked[inputs, :5] != outputs.argmax(axis=1)[:, None]).all(axis=1)

    def radius(self, golden: Golden) -> NDArray[np.float64]:
        """Half the margin between the golden top-1 and the sixth class."""
        return _half_margin(golden, 5)

    def slack(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.float64]:
        """Half the margin between the faulty top-1 and its runner-up."""
        return _half_lead(outputs)


class ConfidenceChange(InferenceCriterion):
    """The top-1 confidence changes by more than ``percent`` % of its golden value (Li et al., SC 2017)."""

    kind: str = "confidence_change"
    percent: Annotated[float, Field(gt=0)]

    def check(self, golden: Golden) -> None:
        """Needs class scores."""
        golden.require_classes(self.name)

    def sdc(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.bool_]:
        """Relative change beyond the limit."""
        before = golden.confidence[inputs]
        return np.abs(confidence(outputs, golden.kind) - before) > self.percent / 100 * before

    def radius(self, golden: Golden) -> NDArray[np.float64]:
        """The slack of the golden outputs."""
        return self.slack(golden, np.arange(golden.inputs), golden.outputs)

    def slack(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.float64]:
        """The distance to the nearer limit, (1 − a) c or (1 + a) c with the golden confidence c and a = percent / 100.

        Probabilities that move by at most d move the highest by at most d. For logits, with p_i = 1 / (1 + S_i),
        S_i = Σ_{j ≠ i} exp(s_j − s_i): if every logit moves by at most d, each term of S_i, and S_i, is multiplied by
        exp(−2d) to exp(2d), so that the log-odds ln(p_i / (1 − p_i)) = −ln S_i move by at most 2d. So does the highest
        of them, that of the confidence: the moved confidence is not below the moved p_i of the class that led before,
        and no class may come higher than the leading one may. A limit l is therefore not crossed while 2d is less
        than the distance of the log-odds of the confidence from ln(l / (1 − l)). Below half of the lead of the first
        class over the second the bound is attained, by moving the first one way and all others the other way.

        A limit of 1 or more is never exceeded, and none below 1 / classes is undercut: the confidence is the largest
        of so many probabilities. What rounding can add to a confidence widens the limits into ranges.
        """
        share = self.percent / 100
        limits = golden.confidence[inputs] * np.array([[1 - share], [1 + share]])
        rounding = _CONFIDENCE_ROUNDING * limits[1]
        low, high = limits - rounding, limits + rounding
        if golden.kind != "logits":
            value = confidence(outputs, golden.kind)
            return _SHRINK * np.maximum(np.maximum(low - value, value - high), 0.0).min(axis=0)
        value = confidence_log_odds(outputs)
        distance = np.maximum(_log_odds(low) - value, value - _log_odds(high))
        crossed = (low < 1) & (high >= 1 / outputs.shape[1])
        nearer = np.where(crossed, distance, np.inf).min(axis=0)
        return _SHRINK * np.maximum(nearer / 2 - _LOG_ODDS_ROUNDING, 0.0)


class Sdc10Percent(ConfidenceChange):
    """SDC-10 %: the top-1 confidence changes by more than a tenth of its golden value (Li et al., SC 2017)."""

    kind: str = "sdc-10%"
    percent: Annotated[float, Field(gt=0)] = 10.0


class Sdc20Percent(ConfidenceChange):
    """SDC-20 %: the top-1 confidence changes by more than a fifth of its golden value (Li et al., SC 2017)."""

    kind: str = "sdc-20%"
    percent: Annotated[float, Field(gt=0)] = 20.0


class NumericError(InferenceCriterion):
    """The output moves by more than ``tolerance``.

    ``max_abs`` is the largest absolute difference, ``rmse`` the root of the mean squared difference over the
    output, ``relative`` the largest absolute difference as a share of the largest golden absolute output.
    """

    kind: str = "numeric_error"
    metric: Literal["max_abs", "rmse", "relative"] = "max_abs"
    tolerance: Annotated[float, Field(ge=0)]

    def check(self, golden: Golden) -> None:
        """Takes any output."""

    def sdc(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.bool_]:
        """Error beyond the tolerance."""
        before = golden.outputs[inputs].reshape(len(inputs), -1).astype(np.float64)
        with np.errstate(over="ignore"):
            error = np.abs(outputs.reshape(len(inputs), -1) - before)
            if self.metric == "rmse":
                return np.sqrt((error**2).mean(axis=1)) > self.tolerance
            scale = np.abs(before).max(axis=1) if self.metric == "relative" else 1.0
            return error.max(axis=1) > self.tolerance * scale

    def radius(self, golden: Golden) -> NDArray[np.float64]:
        """The tolerance, times the largest golden output where it is relative."""
        if self.metric != "relative":
            return np.full(golden.inputs, _SHRINK * self.tolerance)
        largest = np.abs(golden.outputs.astype(np.float64)).reshape(golden.inputs, -1).max(axis=1)
        return _SHRINK * self.tolerance * largest

    def slack(self, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.float64]:
        """The distance of the error from the tolerance."""
        before = golden.outputs[inputs].reshape(len(inputs), -1).astype(np.float64)
        with np.errstate(over="ignore"):
            error = np.abs(outputs.reshape(len(inputs), -1) - before)
            size = np.sqrt((error**2).mean(axis=1)) if self.metric == "rmse" else error.max(axis=1)
        scale = np.abs(before).max(axis=1) if self.metric == "relative" else 1.0
        return _SHRINK * np.abs(size - self.tolerance * scale)


class AccuracyDrop(FaultCriterion):
    """The accuracy with the fault lies more than ``tolerance`` (0 to 1) below the golden accuracy."""

    kind: str = "accuracy_drop"
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.0

    def check(self, golden: Golden) -> None:
        """Needs class scores and labels."""
        golden.require_classes(self.name)
        golden.require_labels(self.name)

    def sdc_faults(
        self,
        golden: Golden,
        correct: NDArray[np.int64],
        golden_correct: NDArray[np.int64],
        inferences: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Compare in whole answers, so that a drop of exactly the tolerance still passes."""
        return (golden_correct - correct) > self.tolerance * inferences + 1e-9


if TYPE_CHECKING:
    AnyCriterion = Criterion
else:
    AnyCriterion = extensible(Criterion)
STANDARD = (Sdc1(), Sdc5(), Sdc10Percent(), Sdc20Percent())


def _log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln(p / (1 − p)), infinite for what is no probability."""
    p = np.clip(probability, 0, 1)
    with np.errstate(divide="ignore"):
        return np.log(p) - np.log1p(-p)


def _half_margin(golden: Golden, k: int) -> NDArray[np.float64]:
    scores = np.take_along_axis(golden.outputs, golden.ranked, axis=1).astype(np.float64)
    if scores.shape[1] <= k:
        return np.full(golden.inputs, np.inf)
    return _SHRINK * (scores[:, 0] - scores[:, k]) / 2


def _half_lead(scores: NDArray) -> NDArray[np.float64]:
    best = np.partition(scores.astype(np.float64), -2, axis=1)[:, -2:]
    return _SHRINK * (best[:, 1] - best[:, 0]) / 2
