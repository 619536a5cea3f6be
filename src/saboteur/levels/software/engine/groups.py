"""Trials that begin in the same way: their faults sit in one weight tensor, or in one result of the graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.faults.models import FaultModel
from saboteur.levels.software.emulation import tensor_of, words_of
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.narrow import Source
from saboteur.levels.software.engine.operators import Mixing, Operator
from saboteur.levels.software.memory import Memory
from saboteur.levels.software.signals import Output


class Group(ABC):
    """Trials that deviate first in one result.

    Attributes:
        start: the node whose result that is.
        trial: int64 [n].
    """

    start: int
    trial: NDArray[np.int64]

    @abstractmethod
    def faulted(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Tensor:
        """The result [pairs, ...] of :attr:`start` with its faults, in the plain engine's bits.

        Args:
            chunk: the fault-free results.
            number: int64 [pairs], the trial of each pair by its place in :attr:`trial`, sorted.
            row: int64 [pairs], the input of each pair, counted from the chunk's first.
        """

    def acts(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a fault may change a bit of the result, for pairs as in :meth:`faulted`: bool [pairs]."""
        return np.ones(len(number), bool)


class NarrowGroup(Group):
    """Trials of a single fault each, whose first deviation is in one channel of one result."""

    @abstractmethod
    def size(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.float64]:
        """An upper bound on the Euclidean norm of the first deviation; not finite where the fault's value is not."""

    @abstractmethod
    def channel(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which channel deviates."""

    @abstractmethod
    def positions(self, chunk: Chunk) -> int:
        """How many values of the first deviation each pair has."""

    @abstractmethod
    def source(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Source:
        """The first deviation."""


@dataclass(frozen=True, eq=False)
class StoredGroup(NarrowGroup):
    """Faults in one stored tensor of a layer that is called once.

    Attributes:
        op: the layer, or the batch norm.
        site: the tensor.
        trial: int64 [n].
        element: int64 [n], the value.
        words: uint64 [n], the faulted value.
        change: float32 [n], by how much the value changes.
        differs: bool [n], whether a bit of it changes.
    """

    op: Operator
    site: Memory
    trial: NDArray[np.int64]
    element: NDArray[np.int64]
    words: NDArray[np.uint64]
    change: NDArray[np.float32]
    differs: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        op: Operator,
        site: Memory,
        model: FaultModel,
        trial: NDArray[np.int64],
        element: NDArray[np.int64],
        variant: NDArray[np.int64],
        drawn: NDArray[np.uint64],
    ) -> Self:
        """The faults of ``model`` in the columns ``element``, ``variant`` and ``drawn`` of ``trial``."""
        fmt, before = site.format_at(element), site.words(element)
        after = model.corrupt(before, variant, drawn, fmt)
        like = site.values().cpu()
        with np.errstate(all="ignore"):
            change = tensor_of(after, fmt, like).numpy() - tensor_of(before, fmt, like).numpy()
        return cls(op, site, trial, element, after, change, before != after)

    @property
    def start(self) -> int:  # type: ignore[override]
        """The node of the call."""
        return self.op.layer if isinstance(self.op, Mixing) else self.op.index

    def acts(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the faulted word differs from the stored one."""
        return self.differs[number]

    def faulted(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Tensor:
        """Make the call with each trial's value."""
        return torch.cat([self._faulted_by(chunk, one, row[number == one]) for one in np.unique(number)])

    def _faulted_by(self, chunk: Chunk, one: int, row: NDArray[np.int64]) -> Tensor:
        node = chunk.graph.nodes[self.start]
        inputs = chunk.result(node.inputs[0])

        def compute(filled: NDArray[np.int64]) -> Tensor:
            return chunk.graph.call(node, {node.inputs[0]: inputs[torch.from_numpy(row[filled])]})

        with self.site.overwritten(self.element[one : one + 1], self.words[one : one + 1]):
            return chunk.batching.run(row, compute)


@dataclass(frozen=True, eq=False)
class WeightGroup(StoredGroup):
    """Faults in the weights of one convolution or linear layer."""

    op: Mixing

    @cached_property
    def place(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Output channel, input channel and tap of the kernel of each trial's weight: int64 [n] each."""
        shape = self.op.weight.shape
        rest, tap = np.divmod(self.element, int(np.prod(shape[2:])))
        return (*np.divmod(rest, shape[1]), tap)

    def channel(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """The output channel."""
        return self.place[0][number]

    def size(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.float64]:
        """|Δw| · ‖the input channel‖."""
        norms = chunk.plane_norms(self.op.inputs[0]).numpy()[row, self.place[1][number]]
        with np.errstate(all="ignore"):
            return np.abs(self.change[number].astype(np.float64)) * norms

    def positions(self, chunk: Chunk) -> int:
        """The positions of what the layer reads, padding included, of which a channel has no more."""
        sides = chunk.values[self.op.inputs[0]].shape[2:]
        return int(np.prod([side + 2 * pad for side, pad in zip(sides, self.op.padding, strict=True)]))

    def source(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Source:
        """Δw times what the weight reads."""
        out, channel, tap = (torch.from_numpy(part[number]) for part in self.place)
        planes = chunk.values[self.op.inputs[0]][torch.from_numpy(row), channel]
        change = torch.from_numpy(self.change[number]).to(planes.device)
        return Source(out, None, change[:, None] * self.op.reads(planes, tap))


@dataclass(frozen=True, eq=False)
class BiasGroup(StoredGroup):
    """Faults in the biases of one convolution or linear layer: all of a channel moves by Δb."""

    op: Mixing

    def channel(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """The channel of the bias."""
        return self.element[number]

    def positions(self, chunk: Chunk) -> int:
        """The positions of a channel."""
        return int(np.prod(self.op.sides_after(tuple(chunk.result(self.op.inputs[0]).shape[2:])), dtype=np.int64))

    def size(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.float64]:
        """|Δb| · √positions."""
        return np.abs(self.change[number].astype(np.float64)) * np.sqrt(self.positions(chunk))

    def source(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Source:
        """Δb everywhere."""
        change = torch.from_numpy(self.change[number]).to(self.op.weight.device)
        return Source(torch.from_numpy(self.channel(number)), None, change[:, None].repeat(1, self.positions(chunk)))


@dataclass(frozen=True, eq=False)
class NormGroup(StoredGroup):
    """Faults in what a batch norm keeps of each channel: weight, bias, running mean and running variance."""

    def channel(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """The channel."""
        return self.element[number]

    def positions(self, chunk: Chunk) -> int:
        """The positions of a channel, in double precision."""
        return 2 * int(np.prod(chunk.values[self.start].shape[2:], dtype=np.int64))

    def size(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.float64]:
        """Unknown before it is worked out."""
        return np.full(len(number), np.inf)

    def source(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Source:
        """The norm of the channel with its faulted value less that with the stored one, in double precision."""
        channel = torch.from_numpy(self.channel(number))
        before = chunk.result(chunk.graph.nodes[self.start].inputs[0])
        planes = before[torch.from_numpy(row), channel].reshape(len(row), -1).double()
        module = self.site.module
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        kept = {name: getattr(module, name) for name in ("weight", "bias", "running_mean", "running_var")}
        stored = {name: value.detach().double()[channel] for name, value in kept.items() if value is not None}
        like = self.site.values()
        value = tensor_of(self.words[number], self.site.format_at(self.element[number]), like).double()
        moved = _normalised(planes, module.eps, stored | {self.site.tensor: value})
        return Source(channel, None, (moved - _normalised(planes, module.eps, stored)).float())


def _normalised(planes: Tensor, eps: float, of_channel: Mapping[str, Tensor]) -> Tensor:
    """The batch norm of ``planes`` [n, positions], each with its own values [n]."""
    scale = of_channel.get("weight", 1.0) / torch.sqrt(of_channel["running_var"] + eps)
    result = (planes - of_channel["running_mean"][:, None]) * scale[:, None]
    return result + of_channel["bias"][:, None] if "bias" in of_channel else result


@dataclass(frozen=True, eq=False)
class SignalGroup(NarrowGroup):
    """Faults in single values of one result.

    Attributes:
        start: the node.
        site: the signal.
        model: the fault model.
        trial: int64 [n].
        element: int64 [n], the value within one input's result.
        variant: int64 [n].
        drawn: uint64 [n].
    """

    start: int
    site: Output
    model: FaultModel
    trial: NDArray[np.int64]
    element: NDArray[np.int64]
    variant: NDArray[np.int64]
    drawn: NDArray[np.uint64]

    @cached_property
    def _in_channel(self) -> int:
        return int(np.prod(self.site.value_shape[1:]))

    def _words(
        self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The fault-free and the faulted words."""
        value = chunk.result(self.start)
        element = self.element[number]
        before = words_of(
            value.reshape(len(value), -1)[torch.from_numpy(row), torch.from_numpy(element)], self.site.format
        )
        after = self.model.corrupt(before, self.variant[number], self.drawn[number], self.site.format_at(element))
        return before, after

    def acts(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the faulted word differs from the fault-free one."""
        before, after = self._words(chunk, number, row)
        return before != after

    def channel(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """The channel that the value lies in."""
        return self.element[number] // self._in_channel

    def _change(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Tensor:
        like = chunk.result(self.start)
        before, after = (tensor_of(words, self.site.format, like) for words in self._words(chunk, number, row))
        return after - before

    def size(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.float64]:
        """|Δ|."""
        return self._change(chunk, number, row).abs().double().cpu().numpy()

    def positions(self, chunk: Chunk) -> int:
        """One, with some room for the words on the way."""
        return 16

    def source(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Source:
        """Δ at one position."""
        channel, position = np.divmod(self.element[number], self._in_channel)
        deviation = self._change(chunk, number, row)[:, None]
        return Source(torch.from_numpy(channel), torch.from_numpy(position), deviation)

    def faulted(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Tensor:
        """The fault-free result with the faulted word put in."""
        result = chunk.result(self.start)
        _, after = self._words(chunk, number, row)
        values = result[torch.from_numpy(row)]
        flat = values.reshape(len(values), -1)
        flat[torch.arange(len(values)), torch.from_numpy(self.element[number])] = tensor_of(
            after, self.site.format, result
        )
        return flat.reshape(values.shape)
