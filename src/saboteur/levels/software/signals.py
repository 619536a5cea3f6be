"""Values on their way through a model: outputs of modules and functions, single connections, inputs, states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.levels.software.corruption import Hits, corrupted
from saboteur.levels.software.emulation import tensor_of, with_integers, words_of
from saboteur.levels.software.flow import Event
from saboteur.levels.software.site import Site, position, tensors

Granularity = Literal["element", "channel", "layer"]
ConnectedLayer = nn.Linear | nn.Conv1d | nn.Conv2d


def active(hits: Hits, step: int) -> Hits:
    """The faults that act at ``step`` of a site that has several: those meant for it, and the lasting ones."""
    lasting = np.array([hits.regions[i].duration != "transient" for i in hits.region], bool)
    return hits.where(lasting | (hits.step == step))


@dataclass(frozen=True, eq=False, kw_only=True)
class Signal(Site):
    """A value that passes a place of :mod:`~saboteur.levels.software.flow` (or the model's input)."""

    place: str

    def in_batch(self, inputs: NDArray[np.int64]) -> Signal:
        """The same signal, for a batch whose rows hold ``inputs``."""
        return self


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
            return with_integers(tensor, self.with_faults_in(tensor.int_repr(), hits))
        return self.with_faults_in(tensor.clone(), hits)

    def with_faults_in(self, tensor: Tensor, hits: Hits) -> Tensor:
        """``tensor`` with the faults put into it."""
        rows = tensor.movedim(self.batch_axis, 0)
        if not self.value_shape:
            rows = rows.unsqueeze(1)
        elements = np.unique(hits.element)
        index = (slice(None), *position(elements, self.value_shape, tensor.device))
        words = corrupted(words_of(rows[index], self.format), elements, hits, self.format_at)
        rows[index] = tensor_of(words, self.format, tensor)
        return tensor

    def edit(self, event: Event, hits: Hits) -> Any:
        """The event's output with the faults that act at this call."""
        hits = active(hits, event.call) if self.steps > 1 else hits
        return self.replaced(event.output, lambda tensor: self.with_faults(tensor, hits))

    def replaced(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """What came out of the place, with this tensor of it changed."""
        if isinstance(output, Tensor):
            return change(output)
        parts = list(output)
        parts[self.part] = change(parts[self.part])
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Connection(Signal):
    """One input x of one neuron of a linear or convolution layer, as that neuron alone reads it.

    The neuron's output moves by w · (x′ − x), computed in float64. Elements are indexed by the neuron
    (output shape) and then by the position in its weight vector. At a position of the zero padding, x is 0.
    """

    module: ConnectedLayer

    def edit(self, event: Event, hits: Hits) -> Any:
        """The event's output with the faults that act at this call."""
        hits = active(hits, event.call) if self.steps > 1 else hits
        if not len(hits):
            return event.output
        elements = np.unique(hits.element)
        *neuron, tap = np.unravel_index(elements, self.shape)
        x, weights = self._operands(event.argument, tuple(neuron), tap)
        before = words_of(x, self.format)
        after = corrupted(before, elements, hits, self.format_at)
        change = tensor_of(after, self.format, x).double() - tensor_of(before, self.format, x).double()
        moved = torch.where(torch.from_numpy(before != after).to(x.device), change * weights.double(), 0.0)
        neurons, column = np.unique(np.ravel_multi_index(neuron, self.shape[:-1]), return_inverse=True)
        sums = torch.zeros(len(x), len(neurons), dtype=torch.float64, device=x.device)
        sums.index_add_(1, torch.from_numpy(column).to(x.device), moved)
        output = event.output.clone()
        index = (slice(None), *position(neurons, self.shape[:-1], x.device))
        output[index] = (output[index].double() + sums).to(output.dtype)
        return output

    def _operands(self, x: Tensor, neuron: tuple[NDArray, ...], tap: NDArray) -> tuple[Tensor, Tensor]:
        """The inputs [batch, n] and the weights [n] of n connections."""
        weight, device = self.module.weight, x.device
        if isinstance(self.module, nn.Linear):
            return x[(slice(None), *tensors((*neuron[:-1], tap), device))], weight[tensors((neuron[-1], tap), device)]
        channel_in, *offset = np.unravel_index(tap, weight.shape[1:])
        group = neuron[0] // (weight.shape[0] // self.module.groups)
        index, inside = [group * weight.shape[1] + channel_in], np.ones(len(tap), bool)
        first_paddings = self.module._reversed_padding_repeated_twice[0::2][::-1]
        for axis, padding in enumerate(first_paddings):
            place = neuron[axis + 1] * self.module.stride[axis] + offset[axis] * self.module.dilation[axis] - padding
            size = x.shape[axis + 2]
            inside &= (place >= 0) & (place < size)
            index.append(np.clip(place, 0, size - 1))
        values = x[(slice(None), *tensors(tuple(index), device))]
        values = torch.where(torch.from_numpy(inside).to(device), values, torch.zeros_like(values))
        return values, weight[tensors((neuron[0], channel_in, *offset), device)]


def has_connections(module: nn.Module) -> TypeGuard[ConnectedLayer]:
    """Whether a module is a layer of which single connections can be hit."""
    convolution = isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode == "zeros"
    return (convolution or isinstance(module, nn.Linear)) and isinstance(module.weight, Tensor)
