"""The first part of a trial, in which its fault changes one channel of each result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from saboteur.levels.software.engine.bounds import Gains
from saboteur.levels.software.engine.graph import Graph
from saboteur.levels.software.engine.operators import Adding, Mixing, Operator, Pointwise, Scaling
from saboteur.levels.software.engine.suffix import Decide, Pairs, Stage, Suffix


class Narrow:
    """From a fault in one output channel of a layer to the outputs.

    Args:
        graph: what is computed.
        operators: those that are understood.
        all_stages: the graph in steps.
        gains: from every node to the output.
        layer: the node of the faulted layer.
    """

    def __init__(
        self,
        graph: Graph,
        operators: Mapping[int, Operator],
        all_stages: Sequence[Stage],
        gains: Gains,
        layer: int,
    ):
        self.graph = graph
        self.layer: Mixing = operators[layer]
        self._gains = gains
        self._steps = self._narrow_steps(operators)
        inside = {layer, *(step.index for step in self._steps)}
        self._suffix = Suffix(graph, all_stages, sorted(inside), gains)
        self._frontier = [
            index
            for index in sorted(inside)
            if index == graph.output
            or any(graph.leads_to_output[c] and c not in inside for c in graph.nodes[index].consumers)
        ]
        read = {source for stage in self._suffix.stages for source in stage.inputs}
        self._first = [
            stage
            for stage in self._suffix.stages
            if stage.mixing is not None
            and stage.inputs[0] in self._frontier
            and not any(other in self._suffix.dirty for other in stage.inputs[1:])
        ]
        first = {stage.index for stage in self._first}
        others = {source for stage in self._suffix.stages if stage.index not in first for source in stage.inputs}
        self._widened = [index for index in self._frontier if index in (read & others) or index == graph.output]

    def _narrow_steps(self, operators: Mapping[int, Operator]) -> list[Operator]:
        inside, wide, steps = {self.layer.index}, set(), []
        for node in self.graph.nodes[self.layer.index + 1 :]:
            op = operators.get(node.index)
            scales = isinstance(op, Mixing) and op.layer == self.layer.index != op.index
            follows = any(source in inside for source in node.inputs)
            reads_wide = any(source in wide for source in node.inputs)
            if scales or (follows and not reads_wide and isinstance(op, Scaling | Pointwise | Adding)):
                inside.add(node.index)
                steps.append(op)
            elif follows or reads_wide:
                wide.add(node.index)
        return steps

    def reads(self, planes: Tensor, tap: Tensor) -> Tensor:
        """What a weight at ``tap`` [n] of the kernel reads of the input channel ``planes`` [n, ...]: [n, positions]."""
        op = self.layer
        if not op.spatial:
            return planes.reshape(-1, 1)
        (up, left), (down, right) = op.padding, op.stride
        padded = F.pad(planes, (left, left, up, up))
        height, width = padded.shape[1:]
        sizes = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                (height, width), op.weight.shape[2:], op.stride, op.dilation, strict=True
            )
        ]
        rows, columns = (torch.arange(size, device=planes.device) for size in sizes)
        positions = (rows[:, None] * down * width + columns * right).reshape(-1)
        offset = tap // op.weight.shape[3] * op.dilation[0] * width + tap % op.weight.shape[3] * op.dilation[1]
        return padded.reshape(len(planes), -1).gather(1, positions + offset[:, None])

    def run(self, pairs: Pairs, channel: Tensor, deviation: Tensor, decide: Decide) -> Tensor:
        """The outputs of the pairs that ``decide`` has not let go of.

        Args:
            pairs: without any values yet.
            channel: int64 [pairs], the output channel of the layer that deviates.
            deviation: [pairs, positions], by how much, before the batch norm.
            decide: called wherever what follows can be bounded.
        """
        deviations = {self.layer.index: deviation}
        for step in self._steps:
            deviations[step.index] = self._step(step, pairs, channel, deviations)
        deviations = {index: deviations[index] for index in self._frontier}
        chosen = self._decide_at_frontier(pairs, channel, deviations, decide)
        if chosen is not None:
            channel = channel[chosen]
            deviations = {index: value[chosen] for index, value in deviations.items()}
        if not len(pairs):
            return torch.empty(0)
        for stage in self._first:
            pairs.values[stage.index] = _first_mixing(stage, pairs, channel, deviations[stage.inputs[0]])
        for index in self._widened:
            pairs.values[index] = _widened(index, pairs, channel, deviations[index])
        return self._suffix.run(pairs, decide)

    def _step(self, op: Operator, pairs: Pairs, channel: Tensor, deviations: Mapping[int, Tensor]) -> Tensor:
        if isinstance(op, Mixing | Scaling):
            source = self.layer.index if isinstance(op, Mixing) else op.inputs[0]
            return op.scale[channel][:, None] * deviations[source]
        if isinstance(op, Adding):
            moved = [deviations[source] for source in op.inputs if source in deviations]
            return moved[0] if len(moved) == 1 else moved[0] + moved[1]
        source = op.inputs[0]
        before, after = (_planes(pairs, index, channel) for index in (source, op.index))
        return op.function(before + deviations[source]) - after

    def _decide_at_frontier(
        self, pairs: Pairs, channel: Tensor, deviations: Mapping[int, Tensor], decide: Decide
    ) -> Tensor | None:
        bound = torch.zeros(len(pairs), dtype=torch.float64)
        relative = torch.zeros(len(pairs), dtype=torch.float64)
        for index, value in deviations.items():
            size = torch.linalg.vector_norm(value, dim=1).double().cpu()
            count = pairs.chunk.values[index].shape[1] if index in pairs.chunk.values else len(self.layer.weight)
            gain = self._gains.of_channels(index, count)[channel]
            bound += torch.where(size == 0, 0.0, size * gain)
            relative = torch.maximum(relative, size / pairs.chunk.whole_norms(index)[pairs.row])
        return decide(pairs, bound, relative)


def _planes(pairs: Pairs, index: int, channel: Tensor) -> Tensor:
    """The fault-free channel of the result of a node: [pairs, positions]."""
    return pairs.chunk.values[index][pairs.row, channel].reshape(len(pairs), -1)


def _widened(index: int, pairs: Pairs, channel: Tensor, deviation: Tensor) -> Tensor:
    """The whole result of a node that deviates in one channel."""
    value = pairs.chunk.rows(index)[pairs.row]
    place = torch.arange(len(pairs)), channel
    value[place] += deviation.reshape(value[place].shape)
    return value


def _first_mixing(stage: Stage, pairs: Pairs, channel: Tensor, deviation: Tensor) -> Tensor:
    """The result of a layer stage of which one input channel deviates: fault-free plus that channel's share."""
    op = stage.mixing
    before = pairs.chunk.rows(stage.before)[pairs.row]
    weight = op.weight[:, channel].movedim(1, 0).reshape(len(pairs), len(op.weight), -1)
    if op.spatial:
        size = pairs.chunk.values[op.inputs[0]].shape[2:]
        patches = op.patches(deviation.reshape(len(pairs), *size))
        share = torch.bmm(patches.mT, weight.mT)
        before.permute(0, 2, 3, 1).reshape(share.shape).add_(share)
    else:
        before += weight[:, :, 0] * deviation
    return before.relu_() if stage.rectified else before
