"""Collects what injected runs gave, and accounts for every single inference.

A target hands in pairs (trial, input) in any order and any grouping, each pair once, under exactly one
heading: its output, "bit for bit the golden output", "proved to lie within a deviation", or an abnormal end.
A pair that was never handed in is an error, so that nothing is masked by being forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur.errors import TargetError
from saboteur.outcomes.criteria import Criterion, FaultCriterion, InferenceCriterion
from saboteur.outcomes.golden import Golden, confidence

Abnormal = Literal["crash", "hang", "detected"]
COUNTS = ("identical", "bounded", "nonfinite", *get_args(Abnormal))
"""What can have become of an inference besides an ordinary finite output."""


class Recorder:
    """The observations of a block of trials.

    Args:
        golden: the golden run.
        criteria: under which SDC are counted; each must have passed its ``check``.
        inputs: int64 [trials, inputs per trial], the inputs that each trial meets, or ``None`` for all.
        trials: how many trials.
        keep_outputs: keep the raw outputs of all pairs that are not golden, to re-score them later.
    """

    def __init__(
        self,
        golden: Golden,
        criteria: Sequence[Criterion],
        trials: int,
        inputs: NDArray[np.int64] | None = None,
        keep_outputs: bool = False,
    ):
        self.golden = golden
        self.trials = trials
        self.inputs = inputs
        self.inferences = golden.inputs if inputs is None else inputs.shape[1]
        self._criteria = [c for c in criteria if isinstance(c, InferenceCriterion)]
        self._classes = golden.kind != "values" and golden.outputs.ndim == 2
        self._counts = {name: np.zeros(trials, np.int64) for name in COUNTS}
        self._sdc = {c.name: np.zeros(trials, np.int64) for c in self._criteria}
        self._accounted = np.zeros(trials, np.int64)
        self._max_abs_error = np.zeros(trials)
        self._confidence_change = np.zeros(trials)
        self._invalid: dict[int, str] = {}
        self._kept: list[tuple[NDArray, NDArray, NDArray]] | None = [] if keep_outputs else None
        self._golden_correct = self._correct = None
        if golden.labels is not None and self._classes:
            right = golden.correct.astype(np.int64)
            self._golden_correct = np.full(trials, right.sum()) if inputs is None else right[inputs].sum(axis=1)
            self._correct = self._golden_correct.copy()
        radii = [c.radius(golden) for c in self._criteria]
        if self._correct is not None:
            radii.append(_top1_radius(golden))
        self.radius: NDArray[np.float64] = (
            np.min(radii, axis=0) if radii and not keep_outputs else np.zeros(golden.inputs)
        )
        """[inputs]: a pair whose output provably moves by less than this need not be computed."""

    def outputs(self, trials: NDArray[np.int64], inputs: NDArray[np.int64], outputs: NDArray) -> None:
        """Pairs [n] with their faulty ``outputs`` [n, ...]."""
        golden = self.golden
        expected = golden.outputs.shape[1:]
        if outputs.shape != (len(trials), *expected):
            raise TargetError(f"outputs: shape {outputs.shape} for {len(trials)} pairs of outputs {expected}")
        self._accounted += np.bincount(trials, minlength=self.trials)
        before = golden.outputs[inputs]
        flat = (len(trials), -1)
        identical = _same_bits(outputs, before).reshape(flat).all(axis=1)
        finite = np.isfinite(outputs).reshape(flat).all(axis=1)
        self._add("identical", trials[identical])
        self._add("nonfinite", trials[~finite])
        if self._correct is not None:
            lost = golden.correct[inputs[~finite]]
            self._correct -= np.bincount(trials[~finite], lost, self.trials).astype(np.int64)
        if self._kept is not None and not identical.all():
            self._kept.append((trials[~identical], inputs[~identical], outputs[~identical]))
        changed = finite & ~identical
        if not changed.any():
            return
        trials, inputs, outputs, before = trials[changed], inputs[changed], outputs[changed], before[changed]
        error = np.abs(outputs.astype(np.float64) - before).reshape(len(trials), -1).max(axis=1)
        np.maximum.at(self._max_abs_error, trials, error)
        for criterion in self._criteria:
            sdc = criterion.sdc(golden, inputs, outputs)
            self._sdc[criterion.name] += np.bincount(trials[sdc], minlength=self.trials)
        if self._classes:
            change = confidence(outputs, golden.kind) - golden.confidence[inputs]
            self._confidence_change += np.bincount(trials, change, self.trials)
        if self._correct is not None and golden.labels is not None:
            gain = (outputs.argmax(axis=1) == golden.labels[inputs]).astype(np.int64) - golden.correct[inputs]
            self._correct += np.bincount(trials, gain, self.trials).astype(np.int64)

    def identical(self, trials: NDArray[np.int64], inputs: NDArray[np.int64]) -> None:
        """Pairs whose output is bit for bit the golden one."""
        self._accounted += np.bincount(trials, minlength=self.trials)
        self._add("identical", trials)

    def bounded(self, trials: NDArray[np.int64], inputs: NDArray[np.int64], deviation: NDArray[np.float64]) -> None:
        """Pairs whose output was not computed but provably moved by at most ``deviation`` in every element.

        Raises:
            TargetError: when a deviation is not below the :attr:`radius` of its input.
        """
        if not (deviation < self.radius[inputs]).all():
            raise TargetError("bounded: a deviation reaches the radius within which no criterion can change")
        self._accounted += np.bincount(trials, minlength=self.trials)
        self._add("bounded", trials)
        np.maximum.at(self._max_abs_error, trials, deviation)

    def abnormal(self, trials: NDArray[np.int64], inputs: NDArray[np.int64], ending: Abnormal) -> None:
        """Pairs whose run gave no output: it crashed, hung, or a safety mechanism stopped it."""
        self._accounted += np.bincount(trials, minlength=self.trials)
        self._add(ending, trials)
        if self._correct is not None:
            self._correct -= np.bincount(trials, self.golden.correct[inputs], self.trials).astype(np.int64)

    def invalid(self, trial: int, reason: str) -> None:
        """A trial that the harness could not run; it is in no denominator and always shown."""
        self._invalid[trial] = reason

    def _add(self, name: str, trials: NDArray[np.int64]) -> None:
        self._counts[name] += np.bincount(trials, minlength=self.trials)

    def table(self) -> pa.Table:
        """One row a trial.

        Columns: ``inferences`` (how many pairs), the counts of :data:`COUNTS`, ``sdc:NAME`` (how many pairs
        are SDC under each inference criterion), ``correct`` and ``golden_correct`` (where labels are known),
        ``confidence_change`` (mean over the pairs, faulty minus golden; bounded pairs count as 0),
        ``max_abs_error`` (over finite outputs; an upper bound where pairs are bounded) and ``invalid`` (why
        the harness failed, else null; such a row's other numbers mean nothing).

        Raises:
            TargetError: when a valid trial has pairs that were not handed in, or handed in twice.
        """
        wrong = [t for t in np.flatnonzero(self._accounted != self.inferences).tolist() if t not in self._invalid]
        if wrong:
            raise TargetError(
                f"trial {wrong[0]}: {self._accounted[wrong[0]]} of {self.inferences} inferences accounted for"
            )
        columns: dict[str, object] = {
            "inferences": np.full(self.trials, self.inferences, np.int64),
            **self._counts,
        }
        columns |= {f"sdc:{name}": count for name, count in self._sdc.items()}
        if self._correct is not None:
            columns |= {"correct": self._correct, "golden_correct": self._golden_correct}
        if self._classes:
            columns["confidence_change"] = self._confidence_change / self.inferences
        columns["max_abs_error"] = self._max_abs_error
        columns["invalid"] = pa.array([self._invalid.get(t) for t in range(self.trials)], pa.string())
        return pa.table(columns)

    def pairs(self) -> pa.Table | None:
        """The kept raw outputs: ``trial``, ``input``, ``output`` (flattened); pairs that are golden are absent."""
        if self._kept is None:
            return None
        width = int(np.prod(self.golden.outputs.shape[1:]))
        empty = (
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros((0, width), self.golden.outputs.dtype),
        )
        trials, inputs, outputs = (
            (np.concatenate(part) for part in zip(*self._kept, strict=True)) if self._kept else empty
        )
        order = np.lexsort((inputs, trials))
        flat = pa.array(outputs.reshape(len(trials), width)[order].ravel())
        return pa.table(
            {
                "trial": trials[order],
                "input": inputs[order],
                "output": pa.FixedSizeListArray.from_arrays(flat, width),
            }
        )


def outcome(table: pa.Table, criterion: Criterion, golden: Golden) -> NDArray[np.str_]:
    """The outcome of each fault of a recorder's table: ``masked``, ``sdc``, ``due`` or ``invalid``.

    A fault is SDC if any of its inferences is (or its fault criterion says so), else DUE if any of its
    inferences is, else masked.
    """
    column = {name: table[name].to_numpy() for name in ("inferences", *COUNTS)}
    if isinstance(criterion, FaultCriterion):
        sdc = criterion.sdc_faults(
            golden, table["correct"].to_numpy(), table["golden_correct"].to_numpy(), column["inferences"]
        )
    else:
        sdc = table[f"sdc:{criterion.name}"].to_numpy() > 0
    due = sum(column[name] for name in ("nonfinite", *get_args(Abnormal))) > 0
    result = np.where(sdc, "sdc", np.where(due, "due", "masked"))
    return np.where(table["invalid"].is_valid().to_numpy(), "invalid", result)


def _top1_radius(golden: Golden) -> NDArray[np.float64]:
    from saboteur.outcomes.criteria import Sdc1

    return Sdc1().radius(golden)


def _same_bits(a: NDArray, b: NDArray) -> NDArray[np.bool_]:
    if a.dtype.kind != "f":
        return a == b
    word = f"u{a.dtype.itemsize}"
    return np.ascontiguousarray(a).view(word) == np.ascontiguousarray(b).astype(a.dtype).view(word)
