"""Runs many (trial, input) pairs together through the rest of a graph, and lets go of those that are decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from saboteur.levels.software.engine.bounds import Gains
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.graph import Graph, Values
from saboteur.levels.software.engine.operators import Adding, Mixing, Operator, Pointwise

_LEAST_DEVIATION = 2.0**-21
"""Deviations below this share of a result are rounding; where they could not be bounded, none is measured."""

_CACHED_BYTES = 2**19
"""Temporary values up to this size stay in a core's own cache."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A step of the suffix: one call, or a layer with the addition and rectifier that follow it.

    Attributes:
        index: the node whose result this gives.
        inputs: the nodes it takes.
        mixing: the layer, where it is one that is understood.
        before: the node whose fault-free result is that of this stage before its rectifier.
        rectified: whether the stage ends in a rectifier.
    """

    index: int
    inputs: tuple[int, ...]
    mixing: Mixing | None = None
    before: int = -1
    rectified: bool = False

    @cached_property
    def _packed(self) -> Tensor | None:
        """The weight as the CPU's convolution kernels take it; ``None`` where there are none."""
        op = self.mixing
        if not op.spatial or op.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return None
        padding, stride, dilation = list(op.padding), list(op.stride), list(op.dilation)
        return torch.ops.mkldnn._reorder_convolution_weight(op.weight, padding, stride, dilation, 1, [])

    def run(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The result of a layer stage for its inputs."""
        op = self.mixing
        if self._packed is None:
            result = op.run(x)
            result = result if other is None else result.add_(other)
            return result.relu_() if self.rectified else result
        x = x.contiguous(memory_format=torch.channels_last)
        settings = list(op.padding), list(op.stride), list(op.dilation), 1
        activation = "relu" if self.rectified else None
        convolution = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return convolution(x, self._packed, op.bias, *settings, activation or "none", [], "")
        other = other.contiguous(memory_format=torch.channels_last)
        return convolution.binary(x, other, self._packed, op.bias, *settings, "add", 1.0, activation, [], "")


def stages(graph: Graph, operators: dict[int, Operator]) -> list[Stage]:
    """The graph in as few steps as possible, in order."""
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
        found[end] = Stage(end, inputs, op, before, end != before)
    for node in graph.nodes:
        plain = node.index not in covered and graph.leads_to_output[node.index]
        if plain and graph.varies[node.index] and node.call.op != "placeholder":
            found[node.index] = Stage(node.index, node.inputs)
    return [found[index] for index in sorted(found)]


@dataclass
class Pairs:
    """Pairs that are under way.

    Attributes:
        chunk: the fault-free results.
        trial: int64 [pairs].
        row: int64 [pairs], the input, counted from the chunk's first.
        values: the deviating results so far, each [pairs, ...].
        growth: float64 [pairs], the largest deviation so far as a multiple of the fault-free result.
        largest_radius: the largest radius of any input of the chunk.
    """

    chunk: Chunk
    trial: Tensor
    row: Tensor
    values: Values
    growth: Tensor
    largest_radius: float = 0.0

    def __len__(self) -> int:
        return len(self.trial)

    def keep(self, chosen: Tensor) -> None:
        """Let go of the others."""
        self.trial, self.row, self.growth = self.trial[chosen], self.row[chosen], self.growth[chosen]
        self.values = {index: value[chosen] for index, value in self.values.items() if isinstance(value, Tensor)}

    def value(self, graph: Graph, index: int) -> Any:
        """The result of a node: deviating, or fault-free."""
        if index in self.values:
            return self.values[index]
        if not graph.varies[index]:
            return self.chunk.constants[index]
        if index in self.chunk.values:
            self.values[index] = self.chunk.rows(index)[self.row]
            return self.values[index]
        node = graph.nodes[index]
        return graph.call(node, {source: self.value(graph, source) for source in node.inputs})


Decide = Callable[[Pairs, Tensor, Tensor], Tensor | None]
"""Told how far each pair's outputs can move (float64 [pairs]; infinite where unknown), and how large its deviation
is as a multiple of the fault-free result, may let go of pairs; returns a mask of those kept, or ``None`` for all."""


class Suffix:
    """The part of a graph that can deviate when the results of ``starts`` do.

    Args:
        graph: what is computed.
        all_stages: the graph in steps.
        starts: the nodes whose results are given.
        gains: from every node to the output.
    """

    def __init__(self, graph: Graph, all_stages: Sequence[Stage], starts: Sequence[int], gains: Gains):
        self.graph = graph
        self._gains = gains
        dirty = set(starts)
        self.stages: list[Stage] = []
        for stage in all_stages:
            if stage.index not in dirty and any(source in dirty for source in stage.inputs):
                dirty.add(stage.index)
                self.stages.append(stage)
        self.dirty = dirty
        self.cuts = self._cuts()

    def _cuts(self) -> set[int]:
        """The nodes after which all that follows depends on them alone."""
        cuts = set()
        for place, stage in enumerate(self.stages):
            later = self.stages[place + 1 :]
            made = {after.index for after in later}
            read = {source for after in later for source in after.inputs if source in self.dirty} - made
            if later and read == {stage.index}:
                cuts.add(stage.index)
        return cuts

    def needed_after(self, place: int) -> set[int]:
        """The deviating results that stages after the ``place``-th read."""
        return {source for after in self.stages[place + 1 :] for source in after.inputs} | {self.graph.output}

    def run(self, pairs: Pairs, decide: Decide) -> Tensor:
        """The outputs of the pairs that ``decide``, called at every cut, has not let go of."""
        for place, stage in enumerate(self.stages):
            if stage.index not in pairs.values:
                pairs.values[stage.index] = self._result(stage, pairs)
            needed = self.needed_after(place)
            pairs.values = {index: value for index, value in pairs.values.items() if index in needed}
            if stage.index in self.cuts:
                self._decide(stage.index, pairs, decide)
                if not len(pairs):
                    break
        return pairs.values[self.graph.output] if len(pairs) else torch.empty(0)

    def _decide(self, cut: int, pairs: Pairs, decide: Decide) -> None:
        if not pairs.values[cut].is_floating_point():
            return
        usual = pairs.chunk.whole_norms(cut)[pairs.row]
        if self._gains.whole[cut] * float(usual.max()) * _LEAST_DEVIATION > pairs.largest_radius:
            size = torch.linalg.vector_norm(_channels_last(pairs.values[cut]).flatten(1), dim=1).double().cpu()
            bound = torch.full_like(size, math.inf)
        else:
            size = _distances(pairs.values[cut], pairs.chunk.rows(cut), pairs.row)
            bound = torch.where(size == 0, 0.0, size * self._gains.whole[cut])
        decide(pairs, bound, size / usual)

    def _result(self, stage: Stage, pairs: Pairs) -> Any:
        inputs = [pairs.value(self.graph, source) for source in stage.inputs]
        if stage.mixing is not None:
            return stage.run(*inputs)
        return self.graph.call(self.graph.nodes[stage.index], dict(zip(stage.inputs, inputs, strict=True)))


def _distances(values: Tensor, fault_free: Tensor, row: Tensor) -> Tensor:
    """The Euclidean distance of each of ``values`` [n, ...] from ``fault_free[row]``: float64 [n]."""
    values, fault_free = _channels_last(values), _channels_last(fault_free)
    some = max(1, _CACHED_BYTES // max(1, values[0].nbytes))
    sizes = []
    for first in range(0, len(values), some):
        deviation = fault_free[row[first : first + some]].sub_(values[first : first + some])
        sizes.append(torch.linalg.vector_norm(deviation.flatten(1), dim=1))
    return torch.cat(sizes).double().cpu()


def _channels_last(values: Tensor) -> Tensor:
    """The same values in the order in which stages lay them in memory."""
    return values.permute(0, 2, 3, 1) if values.dim() == 4 else values
