"""A graph in as few steps as possible."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from saboteur.levels.software.engine.graph import Graph, Values
from saboteur.levels.software.engine.operators import Adding, Mixing, Operator, Pointwise
from saboteur.levels.software.engine.overflow import UNKNOWN, Amplification, amplification


@dataclass(frozen=True, eq=False)
class Stage:
    """A step of the way to the outputs: one call, or a :class:`LayerStage`.

    Attributes:
        index: the node whose result this gives.
        inputs: the nodes it takes.
        amplification: how large the values get that it computes.
    """

    index: int
    inputs: tuple[int, ...]
    amplification: Amplification = UNKNOWN


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStage(Stage):
    """A layer that is understood, with the addition and rectifier that follow it.

    Attributes:
        mixing: the layer.
        before: the node whose fault-free result is that of this stage before its rectifier.
        rectified: whether the stage ends in a rectifier.
    """

    mixing: Mixing
    before: int
    rectified: bool

    @cached_property
    def _packed_channels(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def _packed(self) -> Tensor | None:
        """The weight as the CPU's convolution kernels take it; ``None`` where there are none."""
        op = self.mixing
        packs = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        if not op.spatial or op.weight.device.type != "cpu" or not packs:
            return None
        padding, stride, dilation = list(op.padding), list(op.stride), list(op.dilation)
        return torch.ops.mkldnn._reorder_convolution_weight(op.weight, padding, stride, dilation, 1, [])

    def run(
        self,
        x: Tensor,
        other: Tensor | None = None,
        *,
        padded: bool = False,
        overwrite: bool = False,
        rectified: bool = True,
    ) -> Tensor:
        """The result of a layer stage for its inputs.

        Args:
            x: the input.
            other: what is added.
            padded: whether ``x`` comes with its padding around it.
            overwrite: whether the result may be written over ``other``.
            rectified: whether a rectifier at the end of the stage is applied.
        """
        op, rectified = self.mixing, rectified and self.rectified
        padding = (0,) * len(op.padding) if padded else op.padding
        if self._packed is None:
            result = op.run(x, padding)
            result = result if other is None else result.add_(other)
            return result.relu_() if rectified else result
        x = x.contiguous(memory_format=torch.channels_last)
        settings = list(padding), list(op.stride), list(op.dilation), 1
        activation = "relu" if rectified else None
        convolution = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return convolution(x, self._packed, op.bias, *settings, activation or "none", [], "")
        other = other.contiguous(memory_format=torch.channels_last)
        if overwrite:
            convolution = torch.ops.mkldnn._convolution_pointwise_
            return convolution.binary(other, x, self._packed, op.bias, *settings, "add", 1.0, activation, [], "")
        return convolution.binary(x, other, self._packed, op.bias, *settings, "add", 1.0, activation, [], "")

    def add_channel(self, before: Tensor, planes: Tensor, channel: int) -> None:
        """Make the results of a convolution stage of those ``before`` its rectifier, changed by one input channel.

        Args:
            before: [n, channels, ...], written over.
            planes: [n, height, width], what is added to the input channel.
            channel: which.
        """
        op = self.mixing
        weight = op.weight[:, channel : channel + 1]
        if self._packed is None:
            before += F.conv2d(planes[:, None], weight, None, op.stride, op.padding, op.dilation)
            if self.rectified:
                before.relu_()
            return
        settings = list(op.padding), list(op.stride), list(op.dilation), 1
        if channel not in self._packed_channels:
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight.contiguous(), *settings, [])
            self._packed_channels[channel] = packed
        x = planes[:, None].contiguous(memory_format=torch.channels_last)
        rectifier = "relu" if self.rectified else None
        torch.ops.mkldnn._convolution_pointwise_.binary(
            before, x, self._packed_channels[channel], None, *settings, "add", 1.0, rectifier, [], ""
        )


def stages(graph: Graph, operators: dict[int, Operator], values: Values) -> list[Stage]:
    """The graph in as few steps as possible, in order.

    Args:
        graph: what is computed.
        operators: those that are understood.
        values: the result of every call for a few inputs.
    """
    covered: set[int] = set()
    found: dict[int, Stage] = {}
    consumers = {node.index: node.consumers for node in graph.nodes}

    def only_consumer(index: int, kind: type[Operator]) -> Any:
        following = operators.get(consumers[index][0]) if len(consumers[index]) == 1 and index != graph.output else None
        return following if isinstance(following, kind) and following.index not in covered else None

    for node in reversed(graph.nodes):
        op = operators.get(node.index)
        if not isinstance(op, Mixing) or node.index in covered or not graph.leads_to_output[node.index]:
            continue
        members, inputs = {op.layer, op.index}, op.inputs
        adding = only_consumer(op.index, Adding)
        before = op.index
        if adding is not None and op.spatial:
            members.add(adding.index)
            inputs = (*inputs, next(source for source in adding.inputs if source != op.index))
            before = adding.index
        rectifier = only_consumer(before, Pointwise)
        end = before
        if rectifier is not None and rectifier.rectifier:
            end = rectifier.index
            members.add(end)
        covered |= members
        rectified = end != before
        reached = amplification(graph, op, end, values, rectified)
        found[end] = LayerStage(end, inputs, reached, mixing=op, before=before, rectified=rectified)
    for node in graph.nodes:
        plain = node.index not in covered and graph.leads_to_output[node.index]
        if plain and graph.varies[node.index] and node.call.op != "placeholder":
            reached = amplification(graph, operators.get(node.index), node.index, values, False)
            found[node.index] = Stage(node.index, node.inputs, reached)
    return [found[index] for index in sorted(found)]
