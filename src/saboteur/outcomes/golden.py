"""The golden run: what the fault-free system answers, against which every injection is compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import TargetError

OutputKind = Literal["logits", "probabilities", "values"]


@dataclass(frozen=True, eq=False)
class Golden:
    """The fault-free outputs for every input of the workload.

    Attributes:
        outputs: [inputs, ...] what the system gives for each input.
        labels: int64 [inputs], the true classes, where they are known.
        kind: how the outputs are read: class logits, class probabilities or plain values.
        environment: device, library and kernel versions that could change the outputs.

    Raises:
        TargetError: when the outputs are empty, not finite or not what ``kind`` says, or the labels do not fit.
    """

    outputs: NDArray
    labels: NDArray[np.int64] | None = None
    kind: OutputKind = "logits"
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(OutputKind):
            raise TargetError(f"golden run: kind {self.kind!r} is not one of {', '.join(get_args(OutputKind))}")
        if self.outputs.ndim == 0 or self.outputs.size == 0:
            raise TargetError(f"golden run: outputs of shape {list(self.outputs.shape)}; needs at least one input")
        finite = np.isfinite(self.outputs).reshape(self.inputs, -1).all(axis=1)
        if not finite.all():
            raise TargetError(
                f"golden run: the outputs for {(~finite).sum()} of {self.inputs} inputs hold NaN or infinity; a "
                "fault-free run must be finite"
            )
        if self.kind == "probabilities" and not (self.outputs.min() >= 0 and self.outputs.max() <= 1 + 1e-6):
            raise TargetError(
                f"golden run: probabilities from {self.outputs.min()} to {self.outputs.max()}; they lie in 0 .. 1 "
                "(class scores of any size are logits)"
            )
        if self.labels is not None:
            self._check(self.labels)

    def _check(self, labels: NDArray) -> None:
        if labels.shape != (self.inputs,) or labels.dtype.kind not in "iu":
            raise TargetError(
                f"labels: {labels.dtype} of shape {list(labels.shape)} for {self.inputs} inputs; there must be one "
                "whole number each"
            )
        classes = self.outputs.shape[1] if self.scores_classes else None
        if classes is not None and not (labels.min() >= 0 and labels.max() < classes):
            raise TargetError(f"labels: {labels.min()} .. {labels.max()} for {classes} classes, 0 .. {classes - 1}")

    @property
    def scores_classes(self) -> bool:
        """Whether the outputs are class scores [inputs, classes]."""
        return self.kind != "values" and self.outputs.ndim == 2 and self.outputs.shape[1] >= 2

    @property
    def inputs(self) -> int:
        """How many inputs the workload has."""
        return len(self.outputs)

    @cached_property
    def digest(self) -> str:
        """A hash of outputs, labels and environment; results of different golden runs do not merge."""
        digest = hashlib.sha256()
        for part in (self.outputs, self.labels):
            if part is not None:
                digest.update(f"{part.dtype}{part.shape}".encode())
                digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(repr((self.kind, sorted(self.environment.items()))).encode())
        return digest.hexdigest()[:16]

    def require_classes(self, asked_by: str) -> None:
        """Refuse outputs that are not class scores [inputs, classes].

        Raises:
            TargetError: naming who asked and what the outputs are.
        """
        if not self.scores_classes:
            raise TargetError(
                f"criteria: {asked_by} needs class logits or probabilities of shape [inputs, classes]; the target "
                f"gives {self.kind} of shape {list(self.outputs.shape)}"
            )

    def require_labels(self, asked_by: str) -> None:
        """Refuse a workload without true classes.

        Raises:
            TargetError: naming who asked.
        """
        if self.labels is None:
            raise TargetError(f"criteria: {asked_by} needs labels, and the workload has none")

    @cached_property
    def top1(self) -> NDArray[np.int64]:
        """The answered class of each input; the lowest index wins a tie."""
        return self.outputs.argmax(axis=1)

    @cached_property
    def ranked(self) -> NDArray[np.int64]:
        """Classes from the highest score to the lowest; the lowest index wins a tie: [inputs, classes]."""
        last = self.outputs.shape[1] - 1
        return last - np.argsort(self.outputs[:, ::-1], axis=1, kind="stable")[:, ::-1]

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the answered class of each input."""
        return confidence(self.outputs, self.kind)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each answer is the true class."""
        self.require_labels("accuracy")
        return self.top1 == self.labels

    @property
    def accuracy(self) -> float:
        """The golden accuracy, 0 to 1."""
        return float(self.correct.mean())


def confidence(outputs: NDArray, kind: OutputKind) -> NDArray[np.float64]:
    """The probability of the highest class of each row of finite scores [n, classes]; no row depends on another."""
    scores = np.ascontiguousarray(outputs, np.float64)
    highest = scores.max(axis=1)
    if kind != "logits":
        return highest
    with np.errstate(over="ignore"):
        scores = scores - highest[:, None]
    return 1 / np.exp(scores, out=scores).sum(axis=1)


def confidence_log_odds(logits: NDArray) -> NDArray[np.float64]:
    """ln(c / (1 − c)) of the confidence c of each row of finite logits [n, classes], also where c rounds to 1.

    With the highest logit s₁ and the second s₂ it is s₁ − s₂ − ln Σ exp(s_j − s₂) over all but the highest.
    """
    scores, rows = logits.astype(np.float64), np.arange(len(logits))
    first = scores.argmax(axis=1)
    highest = scores[rows, first]
    scores[rows, first] = -np.inf
    second = scores.max(axis=1)
    with np.errstate(over="ignore"):
        others = np.exp(scores - second[:, None]).sum(axis=1)
        return np.minimum(highest - second, np.finfo(np.float64).max) - np.log(others)
