"""Collects what injected runs gave, and accounts for every single inference.

A target hands in pairs (trial, input) in any order and any grouping, each pair once, under exactly one
heading: its output, "bit for bit the golden output", "proved to lie within a deviation", "predicted to be
harmless" (of which a sample is run, to see how often the prediction is wrong), or an abnormal end.
A pair that was never handed in is an error, so that nothing is masked by being forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur.errors import TargetError
from saboteur.outcomes.criteria import Criterion, FaultCriterion, InferenceCriterion, Sdc1
from saboteur.outcomes.golden import Golden, confidence

Abnormal = Literal["crash", "hang", "detected"]
_UNANSWERED = ("nonfinite", *get_args(Abnormal))
COUNTS = ("identical", "bounded", "screened", *_UNANSWERED)
"""What can have become of an inference besides an ordinary finite output."""


_CONFIDENCE_UNIT = 2.0**-40


class Recorder:
    """The observations of a block of trials.

    Args:
        golden: the golden run.
        criteria: under which SDC are counted; each must have passed its ``check``.
        inputs: int64 [trials, inputs per trial], the distinct inputs that each trial meets, or ``None`` for all.
        trials: how many trials.
        keep_outputs: keep the raw outputs of all pairs that are not golden, to re-score them later.

    Raises:
        ValueError: when ``inputs`` does not give distinct inputs of the golden run for each trial.
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
        self._awaited = _awaited(trials, golden.inputs, inputs)
        self._accounted = np.zeros(trials, np.int64)
        self._criteria = {c.name: c for c in criteria if isinstance(c, InferenceCriterion)}
        self._counts = {name: np.zeros(trials, np.int64) for name in COUNTS}
        self._sdc = {name: np.zeros(trials, np.int64) for name in self._criteria}
        self._max_abs_error = np.zeros(trials)
        self._confidence_change = np.zeros(trials, np.int64)
        self._invalid: dict[int, str] = {}
        self._under_audit: NDArray[np.bool_] | None = None
        self._audited, self._audit_misses = np.zeros(trials, np.int64), np.zeros(trials, np.int64)
        self._kept: list[tuple[NDArray, NDArray, NDArray]] | None = [] if keep_outputs else None
        self._golden_correct: NDArray[np.int64] | None = None
        radii = [c.radius(golden) for c in self._criteria.values()]
        if golden.labels is not None and golden.scores_classes:
            right = golden.correct.astype(np.int64)
            golden_correct = np.full(trials, right.sum()) if inputs is None else right[inputs].sum(axis=1)
            self._golden_correct = golden_correct
            self._correct, self._golden_correct_answered = golden_correct.copy(), golden_correct.copy()
            radii.append(Sdc1().radius(golden))
        self.radius: NDArray[np.float64] = (
            np.min(radii, axis=0) if radii and not keep_outputs else np.zeros(golden.inputs)
        )
        """[inputs]: a pair whose output provably moves by less than this need not be computed."""

    @property
    def awaited(self) -> NDArray[np.bool_]:
        """[trials, inputs]: the pairs that are asked for and have not been handed in; not to be written to."""
        return self._awaited

    def slack(self, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray[np.float64]:
        """How far each of the finite faulty ``outputs`` [n, ...] may move without changing what is recorded: [n].

        What is recorded is every verdict and whether the answer is right; 0 where the outputs themselves are kept.
        """
        if self._kept is not None:
            return np.zeros(len(inputs))
        judges = list(self._criteria.values())
        if self._golden_correct is not None:
            judges.append(Sdc1())
        slacks = [judge.slack(self.golden, inputs, outputs) for judge in judges]
        return np.min(slacks, axis=0) if slacks else np.zeros(len(inputs))

    def outputs(self, trials: NDArray[np.int64], inputs: NDArray[np.int64], outputs: NDArray) -> None:
        """Pairs [n] with their faulty ``outputs`` [n, ...].

        Raises:
            TargetError: when the outputs do not have the golden shape and type, or as :meth:`identical`.
        """
        golden = self.golden
        if outputs.shape != (len(trials), *golden.outputs.shape[1:]) or outputs.dtype != golden.outputs.dtype:
            raise TargetError(
                f"outputs: {outputs.dtype} of shape {list(outputs.shape)} for {len(trials)} pairs; the golden run "
                f"gives {golden.outputs.dtype} of shape {list(golden.outputs.shape[1:])} each"
            )
        if not len(trials):
            return
        self._account(trials, inputs)
        before = golden.outputs[inputs]
        flat = (len(trials), -1)
        identical = _same_bits(outputs, before).reshape(flat).all(axis=1)
        finite = np.isfinite(outputs).reshape(flat).all(axis=1)
        np.add.at(self._counts["identical"], trials[identical], 1)
        self._unanswered("nonfinite", trials[~finite], inputs[~finite])
        if self._kept is not None and not identical.all():
            self._kept.append((trials[~identical], inputs[~identical], outputs[~identical]))
        changed = finite & ~identical
        if not changed.any():
            return
        trials, inputs, outputs, before = trials[changed], inputs[changed], outputs[changed], before[changed]
        with np.errstate(over="ignore"):
            error = np.abs(outputs.astype(np.float64) - before).reshape(len(trials), -1).max(axis=1)
        np.maximum.at(self._max_abs_error, trials, error)
        noticed = np.zeros(len(trials), bool)
        for name, criterion in self._criteria.items():
            sdc = _judged(criterion, golden, inputs, outputs)
            np.add.at(self._sdc[name], trials[sdc], 1)
            noticed |= sdc
        if golden.scores_classes:
            change = confidence(outputs, golden.kind) - golden.confidence[inputs]
            np.add.at(self._confidence_change, trials, np.rint(change / _CONFIDENCE_UNIT).astype(np.int64))
        if self._golden_correct is not None and golden.labels is not None:
            gain = (outputs.argmax(axis=1) == golden.labels[inputs]).astype(np.int64) - golden.correct[inputs]
            np.add.at(self._correct, trials, gain)
            noticed |= gain != 0
        self._audit_missed(trials[noticed], inputs[noticed])

    def identical(self, trials: NDArray[np.int64], inputs: NDArray[np.int64]) -> None:
        """Pairs whose output is bit for bit the golden one.

        Raises:
            TargetError: when a pair is none of this block's, or came before.
        """
        self._account(trials, inputs)
        np.add.at(self._counts["identical"], trials, 1)

    def bounded(self, trials: NDArray[np.int64], inputs: NDArray[np.int64], deviation: NDArray[np.float64]) -> None:
        """Pairs whose output was not computed but provably moved by at most ``deviation`` in every element.

        Raises:
            TargetError: when a deviation is not below the :attr:`radius` of its input, or as :meth:`identical`.
        """
        self._account(trials, inputs)
        if not (deviation < self.radius[inputs]).all():
            raise TargetError("bounded: a deviation reaches the radius within which no criterion can change")
        np.add.at(self._counts["bounded"], trials, 1)
        np.maximum.at(self._max_abs_error, trials, deviation)

    def screened(self, trials: NDArray[np.int64], inputs: NDArray[np.int64]) -> None:
        """Pairs that were not run because they are *predicted* to be finite and within the :attr:`radius`.

        A prediction is no proof: a random sample of such pairs must be run as well; see :meth:`audit`.

        Raises:
            TargetError: where no deviation at all is within the radius, or as :meth:`identical`.
        """
        self._account(trials, inputs)
        if not (self.radius[inputs] > 0).all():
            raise TargetError("screened: the radius of an input is 0, which no prediction can stay below")
        np.add.at(self._counts["screened"], trials, 1)

    def audit(self, trials: NDArray[np.int64], inputs: NDArray[np.int64]) -> None:
        """Pairs that could be handed in as :meth:`screened` but will be run, to count wrong predictions.

        They are still to be handed in, under what the run gives.

        Raises:
            TargetError: when a pair was handed in before.
        """
        if not self._awaited[trials, inputs].all():
            raise TargetError("audit: a pair that was handed in, or not asked for, cannot be run to audit the screen")
        if self._under_audit is None:
            self._under_audit = np.zeros_like(self._awaited)
        self._under_audit[trials, inputs] = True

    def _audit_missed(self, trials: NDArray[np.int64], inputs: NDArray[np.int64]) -> None:
        if self._under_audit is not None:
            np.add.at(self._audit_misses, trials[self._under_audit[trials, inputs]], 1)

    def abnormal(self, trials: NDArray[np.int64], inputs: NDArray[np.int64], ending: Abnormal) -> None:
        """Pairs whose run gave no output: it crashed, hung, or a safety mechanism stopped it.

        Raises:
            TargetError: for another ending, or as :meth:`identical`.
        """
        if ending not in get_args(Abnormal):
            raise TargetError(f"ending: {ending!r} is not one of {', '.join(get_args(Abnormal))}")
        self._account(trials, inputs)
        self._unanswered(ending, trials, inputs)

    def invalid(self, trial: int, reason: str) -> None:
        """A trial that the harness could not run; it is in no denominator and always shown."""
        if not 0 <= trial < self.trials:
            raise TargetError(f"trial {trial} is outside 0 .. {self.trials - 1}")
        self._invalid[trial] = reason

    def _account(self, trials: NDArray[np.int64], inputs: NDArray[np.int64]) -> None:
        if len(trials) != len(inputs):
            raise TargetError(f"pairs: {len(trials)} trials with {len(inputs)} inputs")
        if not len(trials):
            return
        if trials.min() < 0 or trials.max() >= self.trials or inputs.min() < 0 or inputs.max() >= self.golden.inputs:
            raise TargetError(
                f"pairs: trials {trials.min()} .. {trials.max()} and inputs {inputs.min()} .. {inputs.max()}; there "
                f"are {self.trials} trials and {self.golden.inputs} inputs"
            )
        awaited = self._awaited[trials, inputs]
        if not awaited.all():
            first = np.argmin(awaited)
            raise TargetError(f"trial {trials[first]}, input {inputs[first]}: came twice or was not asked for")
        self._awaited[trials, inputs] = False
        np.add.at(self._accounted, trials, 1)
        if self._under_audit is not None:
            np.add.at(self._audited, trials[self._under_audit[trials, inputs]], 1)

    def _unanswered(self, name: str, trials: NDArray[np.int64], inputs: NDArray[np.int64]) -> None:
        np.add.at(self._counts[name], trials, 1)
        self._audit_missed(trials, inputs)
        if self._golden_correct is not None:
            right = self.golden.correct[inputs].astype(np.int64)
            np.subtract.at(self._correct, trials, right)
            np.subtract.at(self._golden_correct_answered, trials, right)

    def table(self) -> pa.Table:
        """One row a trial.

        Columns: ``inferences`` (how many pairs), the counts of :data:`COUNTS`, ``sdc:NAME`` (how many pairs
        are SDC under each inference criterion), where labels are known ``correct`` (right answers),
        ``golden_correct`` and ``golden_correct_answered`` (right golden answers on all inputs, and on those that
        got a finite answer), ``confidence_change`` (mean over the pairs, faulty minus golden, each rounded to a
        multiple of 2⁻⁴⁰ so that no order of summation shows; pairs without computed or finite outputs count as 0),
        ``max_abs_error`` (over finite outputs that were not screened; an upper bound where pairs are bounded),
        ``audited`` (how many pairs that could have been screened were run all the same), ``audit_misses`` (of how
        many of these the prediction was wrong: not finite, SDC, or another answer) and ``invalid`` (why the
        harness failed, else null; such a row's other numbers mean nothing).

        Raises:
            TargetError: when a valid trial has pairs that were not handed in, or handed in twice.
        """
        for trial in np.flatnonzero(self._awaited.any(axis=1) | (self._accounted != self.inferences)).tolist():
            if trial in self._invalid:
                continue
            missing = np.flatnonzero(self._awaited[trial])
            if missing.size:
                raise TargetError(
                    f"trial {trial}: {missing.size} of {self.inferences} inferences are not accounted for, the "
                    f"first for input {missing[0]}"
                )
            raise TargetError(
                f"trial {trial}: {self._accounted[trial]} inferences handed in for {self.inferences} inputs; some "
                "came twice in one call"
            )
        columns: dict[str, object] = {"inferences": np.full(self.trials, self.inferences, np.int64), **self._counts}
        columns |= {f"sdc:{name}": count for name, count in self._sdc.items()}
        if self._golden_correct is not None:
            columns["correct"] = self._correct
            columns["golden_correct"] = self._golden_correct
            columns["golden_correct_answered"] = self._golden_correct_answered
        if self.golden.scores_classes:
            columns["confidence_change"] = self._confidence_change * _CONFIDENCE_UNIT / self.inferences
        columns["max_abs_error"] = self._max_abs_error
        columns |= {"audited": self._audited, "audit_misses": self._audit_misses}
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

    A fault is SDC if any of its inferences is (or its fault criterion says so of the inferences that got a finite
    answer), else DUE if any of its inferences is, else masked.
    """
    column = {name: table[name].to_numpy() for name in ("inferences", *COUNTS)}
    due = np.sum([column[name] for name in _UNANSWERED], axis=0)
    if isinstance(criterion, FaultCriterion):
        correct, golden_correct = (table[name].to_numpy() for name in ("correct", "golden_correct_answered"))
        sdc = criterion.sdc_faults(golden, correct, golden_correct, column["inferences"] - due)
    else:
        sdc = table[f"sdc:{criterion.name}"].to_numpy() > 0
    result = np.where(sdc, "sdc", np.where(due > 0, "due", "masked"))
    return np.where(table["invalid"].is_valid().to_numpy(), "invalid", result)


def rescore(
    pairs: pa.Table | None, trials: pa.Table, golden: Golden, criteria: Sequence[Criterion], batch: int = 65536
) -> pa.Table:
    """The table that a recorder would have given under other criteria.

    Args:
        pairs: the kept raw outputs; a pair that is absent was golden or ended abnormally.
        trials: the recorder's table of the same trials. Rows of ``pairs`` belong to the trial with the same
            ``stratum`` and ``trial`` as far as both tables have these columns, else to row number ``trial``.
        golden: the golden run.
        criteria: under which SDC are counted.
        batch: how many outputs are judged at once; changes no result.

    Raises:
        TargetError: when raw outputs were not kept, do not belong to the trials or the golden run, or a
            criterion does not fit.
    """
    if pairs is None or any((trials[name].to_numpy() > 0).any() for name in ("bounded", "screened")):
        raise TargetError("re-scoring: the raw outputs were not kept; run the campaign with keep_outputs")
    for criterion in criteria:
        criterion.check(golden)
    judges = {c.name: c for c in criteria if isinstance(c, InferenceCriterion)}
    counts = {name: np.zeros(len(trials), np.int64) for name in judges}
    row, inputs, shape = _rows(pairs, trials), pairs["input"].to_numpy(), golden.outputs.shape[1:]
    if len(inputs) and not (inputs.min() >= 0 and inputs.max() < golden.inputs):
        raise TargetError(f"re-scoring: inputs {inputs.min()} .. {inputs.max()} of {golden.inputs} in the golden run")
    for start in range(0, len(pairs), batch):
        kept = pairs["output"].slice(start, batch).combine_chunks()
        outputs = kept.flatten().to_numpy()
        if outputs.dtype != golden.outputs.dtype or len(outputs) != len(kept) * int(np.prod(shape)):
            raise TargetError("re-scoring: the kept outputs do not have the golden run's shape and type")
        outputs = outputs.reshape(-1, *shape)
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
        chosen = start + np.flatnonzero(finite)
        for name, judge in judges.items():
            np.add.at(counts[name], row[chosen][_judged(judge, golden, inputs[chosen], outputs[finite])], 1)
    columns = {name: trials[name] for name in trials.column_names if not name.startswith("sdc:")}
    after = list(columns).index(COUNTS[-1]) + 1
    items = list(columns.items())
    scored = [(f"sdc:{name}", pa.chunked_array([count])) for name, count in counts.items()]
    return pa.table(dict(items[:after] + scored + items[after:]))


def _rows(pairs: pa.Table, trials: pa.Table) -> NDArray[np.int64]:
    """The row of ``trials`` that each of ``pairs`` belongs to."""
    shared = [name for name in ("stratum", "trial") if name in pairs.column_names and name in trials.column_names]
    if "trial" not in shared:
        asked, known = pairs["trial"].to_numpy(), np.arange(len(trials))
    else:
        both = np.concatenate([np.stack([t[name].to_numpy() for name in shared], axis=1) for t in (trials, pairs)])
        _, numbers = np.unique(both, axis=0, return_inverse=True)
        known, asked = np.split(numbers.reshape(-1), [len(trials)])
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, asked, sorter=order)
    row = order[np.minimum(place, len(trials) - 1)] if len(trials) else np.zeros(0, np.int64)
    if len(row) != len(asked) or (known[row] != asked).any():
        raise TargetError("re-scoring: kept outputs of a trial that is not in the table")
    return row


def _judged(criterion: InferenceCriterion, golden: Golden, inputs: NDArray[np.int64], outputs: NDArray) -> NDArray:
    if not len(inputs):
        return np.zeros(0, np.bool_)
    sdc = np.asarray(criterion.sdc(golden, inputs, outputs))
    if sdc.dtype != np.bool_ or sdc.shape != inputs.shape:
        raise TargetError(
            f"criteria: {criterion.name} gives {sdc.dtype} of shape {list(sdc.shape)} for {len(inputs)} outputs; "
            "needs one bool each"
        )
    return sdc


def _awaited(trials: int, golden_inputs: int, inputs: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    if inputs is None:
        return np.ones((trials, golden_inputs), np.bool_)
    if inputs.ndim != 2 or len(inputs) != trials or not inputs.shape[1]:
        raise ValueError(f"inputs: shape {list(inputs.shape)}; needs [{trials}, inputs per trial]")
    if inputs.size and (inputs.min() < 0 or inputs.max() >= golden_inputs):
        raise ValueError(f"inputs: {inputs.min()} .. {inputs.max()}; must lie in 0 .. {golden_inputs - 1}")
    awaited = np.zeros((trials, golden_inputs), np.bool_)
    np.put_along_axis(awaited, inputs, True, axis=1)
    if (awaited.sum(axis=1) != inputs.shape[1]).any():
        raise ValueError("inputs: a trial meets the same input twice")
    return awaited


def _same_bits(a: NDArray, b: NDArray) -> NDArray[np.bool_]:
    if a.dtype.kind in "iub":
        return a == b
    word = f"u{a.dtype.itemsize}"
    return np.ascontiguousarray(a).view(word) == np.ascontiguousarray(b).view(word)
