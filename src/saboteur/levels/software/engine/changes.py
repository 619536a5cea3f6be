"""Weights and biases that differ from trial to trial while pairs of many trials share their batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saboteur.faults.space import expanded
from saboteur.levels.software.engine.bounds import Gains
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.operators import Mixing

BIAS = -1
"""Stands for the input channel where a change is that of a bias."""


@dataclass(frozen=True, eq=False)
class Changes:
    """By how much single weights and biases of layers change in each trial.

    Attributes:
        layers: the layers.
        number: int64 [n], the trial, increasing.
        layer: int64 [n], the place in ``layers``, increasing within a trial.
        out: int64 [n], the output channel.
        channel: int64 [n], the input channel, or :data:`BIAS`.
        tap: int64 [n], the place in the kernel.
        change: float32 [n], what is added.
    """

    layers: list[Mixing]
    number: NDArray[np.int64]
    layer: NDArray[np.int64]
    out: NDArray[np.int64]
    channel: NDArray[np.int64]
    tap: NDArray[np.int64]
    change: NDArray[np.float32]

    @cached_property
    def _of_layer(self) -> dict[Mixing, NDArray[np.int64]]:
        return {op: np.flatnonzero(self.layer == place) for place, op in enumerate(self.layers)}

    @cached_property
    def reached(self) -> set[Mixing]:
        """The layers with changes."""
        return {op for op, rows in self._of_layer.items() if len(rows)}

    def of_trials(self, members: NDArray[np.int64]) -> Changes:
        """Those of some trials (increasing), which are renumbered from 0."""
        rows = np.flatnonzero(np.isin(self.number, members))
        number = np.searchsorted(members, self.number[rows])
        layer, out, channel, tap = (part[rows] for part in (self.layer, self.out, self.channel, self.tap))
        return Changes(self.layers, number, layer, out, channel, tap, self.change[rows])

    def apply(self, op: Mixing, number: Tensor, planes: Callable[[Tensor, Tensor], Tensor], result: Tensor) -> Tensor:
        """Add to the result of a layer what the changes make of its input.

        Args:
            op: the layer, with the batch norm that is folded in.
            number: int64 [pairs], the trial of each pair.
            planes: the input channel, int64 [n], that the layer reads in a pair, int64 [n]: [n, ...].
            result: [pairs, channels out, ...], written over.

        Returns:
            The Euclidean norm of what was added: float64 [pairs].
        """
        rows = self._of_layer[op]
        of_row = self.number[rows]
        asked = number.numpy()
        pair, place = expanded(np.searchsorted(of_row, asked), np.searchsorted(of_row, asked, side="right"))
        rows, device = rows[place], result.device
        size = torch.zeros(len(result), dtype=torch.float64)
        for is_bias in (False, True):
            chosen = (self.channel[rows] == BIAS) == is_bias
            if not chosen.any():
                continue
            which, where = rows[chosen], torch.from_numpy(pair[chosen])
            out = torch.from_numpy(self.out[which]).to(device)
            change = (torch.from_numpy(self.change[which]).to(device) * op.scale[out])[:, None]
            if is_bias:
                moved = change.expand(-1, result[0, 0].numel())
            else:
                channel, tap = (torch.from_numpy(part[which]).to(device) for part in (self.channel, self.tap))
                moved = change * op.reads(planes(where, channel), tap)
            shape = (len(where), *result.shape[2:])
            result.index_put_((where.to(device), out), moved.reshape(shape).to(result.dtype), accumulate=True)
            size.index_add_(0, where, torch.linalg.vector_norm(moved, dim=1, dtype=torch.float64).cpu())
        return size

    def sizes(self, chunk: Chunk, row: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bounds on the Euclidean norm of the first deviation by each of the changes ``which`` alone.

        Args:
            chunk: the fault-free results.
            row: int64 [n], the input of each, counted from the chunk's first.
            which: int64 [n].
        """
        found = np.empty(len(which))
        for place in np.unique(self.layer[which]).tolist():
            op, here = self.layers[place], np.flatnonzero(self.layer[which] == place)
            channel = self.channel[which[here]]
            positions = np.prod(op.sides_after(tuple(chunk.result(op.inputs[0]).shape[2:])), dtype=np.float64)
            norms = chunk.plane_norms(op.inputs[0]).numpy()[row[here], np.maximum(channel, 0)]
            found[here] = np.where(channel == BIAS, np.sqrt(positions), norms)
        with np.errstate(all="ignore"):
            return found * np.abs(self.change[which].astype(np.float64))

    def gains(self, to_output: Gains, between: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far the outputs can move for a first deviation of norm 1 by each change, the later ones being there.

        Changes are taken one after the other, those of the latest layer first, so that every layer is met by fault-free
        values when its turn comes, and by changed layers after it. A deviation d of layer j reaches the input of a
        changed later layer m with no more than G·‖d‖, and there moves its result by no more than |Δ_m|·G·‖d‖ further.
        So the gain of j is S_j + Σ_m G·|Δ_m|·S'_m, with S_j that of the unchanged network and S'_m found before. (Gains
        hold for any two values of a result, so that what is added to both alike does not matter.)

        Args:
            to_output: from every node of the unchanged network to the output.
            between: [layers, layers], from the result of each layer to the input of each later one.

        Returns:
            float64 [n].
        """
        found = np.array(
            [
                float(to_output.of_channels(self.layers[k].layer)[out])
                for k, out in zip(self.layer, self.out, strict=True)
            ]
        )
        factor = np.where(self.channel == BIAS, 0.0, np.abs(self.change.astype(np.float64)))
        ends = np.searchsorted(self.number, self.number, side="right")
        with np.errstate(all="ignore"):
            for one in range(len(found) - 1, -1, -1):
                later = np.arange(one + 1, ends[one])
                later = later[(self.layer[later] > self.layer[one]) & (factor[later] > 0)]
                found[one] += (between[self.layer[one], self.layer[later]] * factor[later] * found[later]).sum()
        return found
