"""The first part of a trial, in which its fault changes one channel of each result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saboteur.levels.software.engine.bounds import Gains
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.graph import Graph
from saboteur.levels.software.engine.operators import Adding, Mixing, Operator, Pointwise, Scaling
from saboteur.levels.software.engine.patches import Patch, cut_out
from saboteur.levels.software.engine.stages import LayerStage, Stage
from saboteur.levels.software.engine.suffix import Decide, Deviation, Pairs, Suffix, norms, overflowing


@dataclass(frozen=True)
class Source:
    """By how much one channel of a result deviates in some pairs.

    Attributes:
        channel: int64 [pairs].
        position: int64 [pairs], where in the channel, or ``None`` where all of it deviates.
        deviation: float32 [pairs, 1], or [pairs, positions] where all of the channel deviates.
    """

    channel: Tensor
    position: Tensor | None
    deviation: Tensor

    def take(self, chosen: Tensor) -> Source:
        """Some of the pairs."""
        position = None if self.position is None else self.position[chosen]
        return Source(self.channel[chosen], position, self.deviation[chosen])


class Narrow:
    """From a deviation in one channel of one result to the outputs.

    Args:
        graph: what is computed.
        operators: those that are understood.
        all_stages: the graph in steps.
        gains: from every node to the output.
        start: the node whose result deviates first.
    """

    def __init__(
        self,
        graph: Graph,
        operators: Mapping[int, Operator],
        all_stages: Sequence[Stage],
        gains: Gains,
        start: int,
    ):
        self.graph = graph
        self._start = start
        self._gains = gains
        self._steps = self._narrow_steps(operators)
        inside = {start, *(step.index for step in self._steps)}
        self._suffix = Suffix(graph, all_stages, sorted(inside), gains)
        self._frontier = [
            index
            for index in sorted(inside)
            if index == graph.output
            or any(graph.leads_to_output[c] and c not in inside for c in graph.nodes[index].consumers)
        ]
        self._first = [
            stage
            for stage in self._suffix.stages
            if isinstance(stage, LayerStage)
            and stage.inputs[0] in inside
            and not any(other in self._suffix.dirty for other in stage.inputs[1:])
        ]
        first = {stage.index for stage in self._first}
        read = {source for stage in self._suffix.stages if stage.index not in first for source in stage.inputs}
        self._widened = [index for index in self._frontier if index in read or index == graph.output]

    @property
    def measured_at(self) -> set[int]:
        """The nodes at which deviations are measured."""
        return {*self._frontier, *self._suffix.cuts}

    @property
    def homogeneous(self) -> bool:
        """Whether all that follows is, but for its shifts."""
        return self._suffix.homogeneous

    def _narrow_steps(self, operators: Mapping[int, Operator]) -> list[Operator]:
        inside, wide, steps = {self._start}, set(), []
        for node in self.graph.nodes[self._start + 1 :]:
            op = operators.get(node.index)
            scales = isinstance(op, Mixing) and op.layer == self._start != op.index
            follows = any(source in inside for source in node.inputs)
            reads_wide = any(source in wide for source in node.inputs)
            if scales or (follows and not reads_wide and isinstance(op, Scaling | Pointwise | Adding)):
                inside.add(node.index)
                steps.append(op)
            elif follows or reads_wide:
                wide.add(node.index)
        return steps

    def largest_result(self, chunk: Chunk) -> int:
        """The bytes of the largest result of one pair on the way to the outputs."""
        return self._suffix.largest_result(chunk)

    def deviations(self, chunk: Chunk, row: Tensor, source: Source) -> dict[int, Tensor]:
        """By how much the channel deviates in each result that all channels, or none, read next.

        Args:
            chunk: the fault-free results.
            row: int64 [pairs], the input of each pair.
            source: the first deviation.

        Returns:
            By node, [pairs, positions of the source].
        """
        found = {self._start: source.deviation}
        for step in self._steps:
            found[step.index] = self._step(step, chunk, row, source, found)
        return {index: found[index] for index in self._frontier}

    def measured(self, chunk: Chunk, row: Tensor, source: Source, deviations: Mapping[int, Tensor]) -> Deviation:
        """How far the pairs deviate in the results that :meth:`deviations` gives."""
        bound = torch.zeros(len(row), dtype=torch.float64)
        relative = torch.zeros(len(row), dtype=torch.float64)
        sizes, extent = {}, "channel" if source.position is None else "value"
        for index, value in deviations.items():
            sizes[index] = size = norms(value)
            bound += torch.where(size == 0, 0.0, size * self._gains.of_channels(index)[source.channel])
            relative = torch.maximum(relative, size / chunk.whole_norms(index)[row])
        return Deviation(bound, relative, sizes, extent, torch.zeros_like(bound))

    def run(self, pairs: Pairs, source: Source, deviations: Mapping[int, Tensor], decide: Decide) -> Tensor:
        """The outputs of the pairs that ``decide`` has not let go of.

        Args:
            pairs: without any values yet.
            source: where the channel deviates.
            deviations: as :meth:`deviations` gives them, divided by the scale of ``pairs``.
            decide: called wherever what follows can be bounded.
        """
        if source.position is not None and pairs.chunk.result(self._start).dim() == 4:
            for index, value in deviations.items():
                pairs.values[index] = _single_position(index, pairs, source.channel, source.position, value)
            return self._suffix.run(pairs, decide)
        planes = {index: self._plane(pairs.chunk, index, source, value) for index, value in deviations.items()}
        for stage in self._first:
            if pairs.scale > 1:
                factor = stage.amplification.channel
                assert factor is not None  # only what is homogeneous is scaled
                reached = factor[source.channel] * pairs.scale * norms(planes[stage.inputs[0]])
                kept = decide(pairs, overflowing(pairs.growth, reached))
                if kept is not None:
                    source, planes = source.take(kept), {index: plane[kept] for index, plane in planes.items()}
                if not len(pairs):
                    return torch.empty(0)
            pairs.values[stage.index] = _first_mixing(stage, pairs, source.channel, planes[stage.inputs[0]])
        for index in self._widened:
            pairs.values[index] = _widened(index, pairs, source.channel, planes[index])
        return self._suffix.run(pairs, decide)

    def _plane(self, chunk: Chunk, index: int, source: Source, value: Tensor) -> Tensor:
        if source.position is None:
            return value
        positions = chunk.result(index)[0, 0].numel()
        return value.new_zeros(len(value), positions).scatter_(1, source.position[:, None].to(value.device), value)

    def _step(
        self, op: Operator, chunk: Chunk, row: Tensor, source: Source, deviations: Mapping[int, Tensor]
    ) -> Tensor:
        if isinstance(op, Mixing | Scaling):
            before = self._start if isinstance(op, Mixing) else op.inputs[0]
            return op.scale[source.channel][:, None] * deviations[before]
        if isinstance(op, Adding):
            moved = [deviations[index] for index in op.inputs if index in deviations]
            return moved[0] if len(moved) == 1 else moved[0] + moved[1]
        assert isinstance(op, Pointwise)
        before, after = (_fault_free(chunk, index, row, source) for index in (op.inputs[0], op.index))
        return op.function(before + deviations[op.inputs[0]]) - after


def _fault_free(chunk: Chunk, index: int, row: Tensor, source: Source) -> Tensor:
    """The fault-free values where the source deviates: [pairs, positions of the source]."""
    value = chunk.result(index)
    if source.position is None:
        return value[row, source.channel].reshape(len(row), -1)
    return value.reshape(*value.shape[:2], -1)[row, source.channel, source.position][:, None]


def _single_position(index: int, pairs: Pairs, channel: Tensor, position: Tensor, deviation: Tensor) -> Patch:
    """The result of a node that deviates in one channel at one position, there."""
    maps = pairs.chunk.padded(index, (0, 0))
    top, left = position // maps.shape[2], position % maps.shape[2]
    values = cut_out(maps, pairs.row, top, left, (1, 1))
    values[torch.arange(len(values)), 0, 0, channel] += deviation[:, 0]
    return Patch(values, top, left)


def _widened(index: int, pairs: Pairs, channel: Tensor, deviation: Tensor) -> Tensor:
    """The whole result of a node that deviates in one channel."""
    value = pairs.chunk.picked(index, pairs.row)
    place = torch.arange(len(pairs)), channel
    value[place] += deviation.reshape(value[place].shape)
    return value


def _first_mixing(stage: LayerStage, pairs: Pairs, channel: Tensor, deviation: Tensor) -> Tensor:
    """The result of a layer stage of which one input channel deviates: fault-free plus that channel's share."""
    op = stage.mixing
    assert op is not None
    before = pairs.chunk.picked(stage.before, pairs.row)
    if not op.spatial:
        before += op.weight[:, channel].T * deviation
        return before.relu_() if stage.rectified else before
    planes = deviation.reshape(len(pairs), *pairs.chunk.result(op.inputs[0]).shape[2:])
    different = torch.nonzero(channel[1:] != channel[:-1]).flatten() + 1
    ends = [*different.tolist(), len(channel)]
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        stage.add_channel(before[first:end], planes[first:end], int(channel[first]))
    return before
