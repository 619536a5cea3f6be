"""Values on their way through a model: outputs of modules and functions, single connections, inputs, states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.levels.software.corruption import Hits, corrupted
from saboteur.levels.software.emulation import tensor_of, words_of
from saboteur.levels.software.flow import Event
from saboteur.levels.software.site import Site

Granularity = Literal["element", "channel", "layer"]


def active(hits: Hits, step: int) -> Hits:
    """The faults that act at ``step`` of a site that has several: those meant for it, and the lasting ones."""
    lasting = np.array([region.duration != "transient" for region in hits.regions], bool)
    return hits.where(lasting[hits.region] | (hits.step == step))


@dataclass(frozen=True, eq=False, kw_only=True)
class Signal(Site):
    """A value that passes a place of :mod:`~saboteur.levels.software.flow` (or the model's input)."""

    place: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Output(Signal):
    """What comes out of a place.

    Attributes:
        part: which tensor, where a tuple comes out.
        batch_axis: the axis of the tensor that tells inputs apart.
        value_shape: the tensor's shape without that axis.
        granularity: how much of it a fault hits.
        unit_axis: the axis of ``value_shape`` that counts channels.
    """

    part: int = 0
    batch_axis: int = 0
    value_shape: tuple[int, ...]
    granularity: Granularity = "element"
    unit_axis: int = 0

    def members(self, element: int) -> NDArray[np.int64]:
        """The flat indices into ``value_shape`` that a fault in ``element`` hits."""
        if self.granularity == "element":
            return np.array([element])
        everything = np.arange(prod(self.value_shape)).reshape(self.value_shape)
        return (everything if self.granularity == "layer" else everything.take(element, self.unit_axis)).ravel()

    def with_faults(self, tensor: Tensor, hits: Hits) -> Tensor:
        """A copy of ``tensor`` (inputs along ``batch_axis``) with the faults in every input's own value."""
        if not len(hits):
            return tensor
        if self.granularity != "element":
            hits = hits.spread(self.members)
        if tensor.is_quantized:
            words = self.with_faults_in(tensor.int_repr(), hits)
            return torch._make_per_tensor_quantized_tensor(words, tensor.q_scale(), tensor.q_zero_point())
        return self.with_faults_in(tensor.clone(), hits)

    def with_faults_in(self, tensor: Tensor, hits: Hits) -> Tensor:
        """``tensor`` with the faults put into it."""
        rows = tensor.movedim(self.batch_axis, 0)
        if not self.value_shape:
            rows = rows.unsqueeze(1)
        elements = np.unique(hits.element)
        where = np.unravel_index(elements, self.value_shape or (1,))
        index = (slice(None), *(torch.from_numpy(axis).to(tensor.device) for axis in where))
        words = corrupted(words_of(rows[index], self.format), elements, hits, self.format_at)
        rows[index] = tensor_of(words, self.format, tensor)
        return tensor

    def edit(self, event: Event, hits: Hits) -> Any:
        """The event's output with the faults that act at this call."""
        hits = active(hits, event.call) if self.steps > 1 else hits
        if isinstance(event.output, Tensor):
            return self.with_faults(event.output, hits)
        parts = list(event.output)
        parts[self.part] = self.with_faults(parts[self.part], hits)
        return type(event.output)(*parts) if hasattr(event.output, "_fields") else type(event.output)(parts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Connection(Signal):
    """One input x of one neuron of a linear or convolution layer, as that neuron alone reads it.

    The neuron's output moves by w · (x′ − x), computed in float64. Elements are indexed by the neuron
    (output shape) and then by the position in its weight vector. At a position of the zero padding, x is 0.
    """

    def edit(self, event: Event, hits: Hits) -> Any:
        """The event's output with the faults that act at this call."""
        hits = active(hits, event.call) if self.steps > 1 else hits
        if not len(hits):
            return event.output
        elements = np.unique(hits.element)
        *neuron, position = np.unravel_index(elements, self.shape)
        x, weights = self._operands(event, neuron, position)
        before = words_of(x, self.format)
        after = corrupted(before, elements, hits, self.format_at)
        change = tensor_of(after, self.format, x).double() - tensor_of(before, self.format, x).double()
        moved = torch.where(torch.from_numpy(before != after).to(x.device), change * weights.double(), 0.0)
        neurons, column = np.unique(np.ravel_multi_index(neuron, self.shape[:-1]), return_inverse=True)
        sums = torch.zeros(len(x), len(neurons), dtype=torch.float64, device=x.device)
        sums.index_add_(1, torch.from_numpy(column).to(x.device), moved)
        output = event.output.clone()
        index = (slice(None), *map(torch.from_numpy, np.unravel_index(neurons, self.shape[:-1])))
        output[index] = (output[index].double() + sums).to(output.dtype)
        return output

    def _operands(self, event: Event, neuron: Sequence[NDArray], position: NDArray) -> tuple[Tensor, Tensor]:
        """The inputs [batch, n] and the weights [n] of n connections."""
        x, weight = event.args[0], self.module.weight
        if isinstance(self.module, nn.Linear):
            index = (*(torch.from_numpy(axis) for axis in neuron[:-1]), torch.from_numpy(position))
            return x[(slice(None), *index)], weight[torch.from_numpy(neuron[-1]), torch.from_numpy(position)]
        channel_in, *offset = np.unravel_index(position, weight.shape[1:])
        group = neuron[0] // (weight.shape[0] // self.module.groups)
        index, inside = [group * weight.shape[1] + channel_in], np.ones(len(position), bool)
        padding = self.module._reversed_padding_repeated_twice[0::2][::-1]
        for axis, (at, tap) in enumerate(zip(neuron[1:], offset, strict=True)):
            place = at * self.module.stride[axis] - padding[axis] + tap * self.module.dilation[axis]
            inside &= (place >= 0) & (place < x.shape[axis + 2])
            index.append(np.clip(place, 0, x.shape[axis + 2] - 1))
        values = x[(slice(None), *(torch.from_numpy(axis) for axis in index))]
        values = torch.where(
            torch.from_numpy(inside).to(x.device), values, torch.zeros((), dtype=x.dtype, device=x.device)
        )
        return values, weight[tuple(torch.from_numpy(axis) for axis in (neuron[0], channel_in, *offset))]
