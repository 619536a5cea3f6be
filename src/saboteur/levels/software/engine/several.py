"""Trials of a few faults in weights and biases, which share their batches with each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from saboteur.faults.space import expanded
from saboteur.levels.software.engine.blocks import WholeBlock
from saboteur.levels.software.engine.changes import Changes
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.scattered import Scattered
from saboteur.levels.software.engine.stages import LayerStage
from saboteur.levels.software.engine.suffix import distances


@dataclass(frozen=True, eq=False)
class Several(Scattered):
    """Trials whose faults are all in weights and biases of layers that are called once.

    Attributes:
        first: the stage of the first layer with a fault.
        changes: what changes, by the place in :attr:`trial`.
        differs: bool [n], whether a bit changes.
        gain: float64 [changes], how far the outputs can move for a first deviation of norm 1 by each change.
    """

    first: LayerStage
    changes: Changes
    differs: NDArray[np.bool_]
    gain: NDArray[np.float64]

    def acts(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a bit changes."""
        return self.differs[number]


class SeveralBlock(WholeBlock[Several]):
    """Trials of a few faults in weights and biases, from the first stage with a fault on."""

    def open(self, number: NDArray, row: NDArray) -> tuple[NDArray, NDArray]:
        """Those whose deviations, each (size at first) · (gain), add up to more than the radius."""
        changes = self.group.changes
        first, last = (np.searchsorted(changes.number, number, side=side) for side in ("left", "right"))
        pair, which = expanded(first, last)
        usual = np.stack([self.chunk.whole_norms(op.layer).numpy() for op in changes.layers])
        size = changes.sizes(self.chunk, row[pair], which)
        with np.errstate(all="ignore"):
            moved = size * self.group.gain[which]
            growth = np.bincount(pair, size / usual[changes.layer[which], row[pair]], len(number))
            rounding = self.allowance.of(torch.from_numpy(row), torch.from_numpy(growth)).numpy()
        return self.not_proved(number, row, np.bincount(pair, moved, len(number)).astype(np.float64) + rounding)

    def simulate(self, number: NDArray, row: NDArray) -> None:
        """Change the fault-free result of the first layer, then go on."""
        chunk, stage, rows = self.chunk, self.group.first, torch.from_numpy(row)
        op, source = stage.mixing, chunk.result(stage.inputs[0])
        values = chunk.picked(stage.before, rows)
        self.group.changes.apply(op, torch.from_numpy(number), lambda pair, at: source[rows[pair], at], values)
        if stage.rectified:
            values.relu_()
        size = distances(values, chunk.rows(stage.index), rows, torch.arange(len(rows)))
        self.go_on(number, row, values, size, self.group.changes)
