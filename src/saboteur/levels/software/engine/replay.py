"""Runs pairs by the plain engine's own calls, in batches in which they give the plain engine's bits.

Pairs of different trials share batches wherever all that follows depends on one result, because the plain
engine's outputs do not depend on what else is in a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saboteur.levels.software.emulation import raw_view
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.graph import Values
from saboteur.levels.software.engine.groups import Group
from saboteur.outcomes.recorder import Recorder

_BYTES_TOGETHER = 2**27
"""So much of the largest result of each pair is kept while pairs wait for each other."""

_GLANCED_AT = 16
"""So many values of a result tell most results that differ from the fault-free one."""


class Replay:
    """Pairs of one chunk that wait to be run the plain engine's way.

    Args:
        chunk: the fault-free results.
        recorder: takes the outputs.
    """

    def __init__(self, chunk: Chunk, recorder: Recorder):
        self._chunk = chunk
        self._recorder = recorder
        largest = max(value[0].nbytes for value in chunk.values.values())
        self._most = max(1, _BYTES_TOGETHER // largest)
        self._waiting: list[tuple[Group, NDArray[np.int64], NDArray[np.int64]]] = []
        self._may_settle = False

    def add(self, group: Group, number: NDArray[np.int64], row: NDArray[np.int64], *, may_settle: bool = False) -> None:
        """Take in pairs.

        Args:
            group: their trials.
            number: int64 [n], each trial by its place in the group.
            row: int64 [n], the input counted from the chunk's first.
            may_settle: whether results may well become the fault-free ones again, so that it pays to look.
        """
        order = np.argsort(number, kind="stable")
        for first in range(0, len(order), self._most):
            part = order[first : first + self._most]
            self._waiting.append((group, number[part], row[part]))
            self._may_settle |= may_settle
            if sum(len(some) for _, some, _ in self._waiting) >= self._most:
                self.run()

    def run(self) -> None:
        """Run all that wait, and record their outputs."""
        graph, starting = self._chunk.graph, sorted(self._waiting, key=lambda waiting: waiting[0].start)
        self._waiting = []
        trial, row = np.zeros(0, np.int64), np.zeros(0, np.int64)
        reached: Tensor | None = None
        before = -1
        for cut in graph.cuts:
            results = [] if not len(trial) else [self._on(row, {before: reached}, cut)]
            while starting and starting[0][0].start <= cut:
                group, number, rows = starting.pop(0)
                results.append(self._on(rows, {group.start: group.faulted(self._chunk, number, rows)}, cut))
                trial, row = np.concatenate([trial, group.trial[number]]), np.concatenate([row, rows])
            if results:
                reached = torch.cat(results)
                if self._may_settle:
                    trial, row, reached = self._without_golden(cut, trial, row, reached)
                trial, row, reached = self._without_absorbed(cut, trial, row, reached)
            before = cut
        if reached is not None and len(trial):
            self._recorder.outputs(trial, row + self._chunk.inputs.start, reached.cpu().numpy())
        self._may_settle = False

    def _without_golden(
        self, cut: int, trial: NDArray[np.int64], row: NDArray[np.int64], reached: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
        """Record pairs whose result is the fault-free one again, on which alone all that follows depends."""
        golden, rows = self._chunk.result(cut), torch.from_numpy(row)
        step = max(1, reached[0].numel() // _GLANCED_AT)
        glances = [value.flatten(1)[:, ::step].contiguous() for value in (reached, golden)]
        likely = torch.nonzero(same_bits(glances[0], glances[1][rows])).flatten()
        if not len(likely):
            return trial, row, reached
        same = torch.zeros(len(row), dtype=torch.bool)
        same[likely] = same_bits(reached[likely], golden[rows[likely]])
        gone = same.numpy()
        self._recorder.identical(trial[gone], row[gone] + self._chunk.inputs.start)
        return trial[~gone], row[~gone], reached[~same]

    def _without_absorbed(
        self, cut: int, trial: NDArray[np.int64], row: NDArray[np.int64], reached: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
        """Record pairs whose outputs cannot be finite, unless the outputs themselves are kept."""
        if cut not in self._chunk.graph.absorbing or not self._recorder.radius.any():
            return trial, row, reached
        lost = torch.isnan(reached.flatten(1)).any(dim=1)
        gone = lost.cpu().numpy()
        if not gone.any():
            return trial, row, reached
        golden = self._recorder.golden.outputs
        outputs = np.full((int(gone.sum()), *golden.shape[1:]), np.nan, golden.dtype)
        self._recorder.outputs(trial[gone], row[gone] + self._chunk.inputs.start, outputs)
        return trial[~gone], row[~gone], reached[~lost]

    def _on(self, row: NDArray[np.int64], changed: Values, until: int) -> Tensor:
        """The results of node ``until`` when some before it are ``changed``: [pairs, ...]."""
        if until in changed:
            return changed[until]

        def compute(filled: NDArray[np.int64]) -> Tensor:
            values = {index: value[torch.from_numpy(filled)] for index, value in changed.items()}
            return self._chunk.again(until, torch.from_numpy(row[filled]), values)

        return self._chunk.batching.run(row, compute)


def same_bits(one: Tensor, other: Tensor) -> Tensor:
    """Which rows of two results [n, ...] are the same, bit for bit: bool [n], on the CPU."""
    if one.is_quantized:
        one, other = one.int_repr(), other.int_repr()
    if one.is_floating_point():
        one, other = raw_view(one.contiguous()), raw_view(other.contiguous())
    return (one == other).flatten(1).all(dim=1).cpu()
