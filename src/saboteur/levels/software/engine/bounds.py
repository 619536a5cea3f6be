"""How far the outputs can move when a result in the middle of the graph deviates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saboteur.levels.software.engine.graph import Graph, Values
from saboteur.levels.software.engine.operators import (
    Adding,
    Linear,
    Mixing,
    Operator,
    Pointwise,
    Scaling,
    residual_norm,
)


@dataclass(frozen=True)
class Gains:
    """Bounds on max |output deviation| for a deviation of one node's result with Euclidean norm 1.

    Attributes:
        whole: by node, for any deviation; infinite where nothing can be said.
        channel: by node, float64 [channels], for deviations confined to one channel, where channels are known.
    """

    whole: Mapping[int, float]
    channel: Mapping[int, Tensor]

    def of_channels(self, node: int) -> Tensor:
        """The bounds for each of the channels of ``node``."""
        return self.channel[node]


def gains(graph: Graph, operators: Mapping[int, Operator], values: Values) -> Gains:
    """Bound the way to the output from every node, last to first.

    Args:
        graph: what is computed.
        operators: those that are understood.
        values: the result of every call for a few inputs; results that are no tensors tell shapes only.
    """
    whole: dict[int, float] = {}
    single: dict[int, Tensor] = {}
    folded = {op.layer for op in operators.values() if isinstance(op, Mixing) and op.layer != op.index}
    for node in reversed(graph.nodes):
        index = node.index
        value = values[index]
        count = value.shape[1] if isinstance(value, Tensor) and value.dim() > 1 else 1
        total, each = 0.0, torch.zeros(count, dtype=torch.float64)
        if index == graph.output:
            total, each = 1.0, torch.ones(count, dtype=torch.float64)
        block = _residual_block(graph, operators, index)
        for consumer in node.consumers:
            if isinstance(values[consumer], int | tuple) and not _holds_tensors(values[consumer]):
                continue
            result = _carrier(graph, operators, folded, consumer)
            op = operators.get(result)
            if consumer in folded and result == consumer:
                op = None
            passed = Gains(whole, single)
            more, more_each = _through(graph, op, index, passed, count)
            if block is None or consumer not in block.consumers:
                total += more
            each = each + more_each
        if block is not None:
            total += block.norm * whole[block.end]
        whole[index] = total
        single[index] = torch.minimum(each, torch.tensor(total, dtype=torch.float64))
    return Gains(whole, single)


def _holds_tensors(value: int | tuple) -> bool:
    return isinstance(value, tuple) and any(isinstance(part, Tensor) for part in value)


def _carrier(graph: Graph, operators: Mapping[int, Operator], folded: set[int], consumer: int) -> int:
    """The node whose operator takes in the call ``consumer``: itself, or the batch norm it is folded into."""
    return graph.nodes[consumer].consumers[0] if consumer in folded else consumer


def _through(graph: Graph, op: Operator | None, source: int, passed: Gains, count: int) -> tuple[float, Tensor]:
    unknown = torch.full((count,), math.inf, dtype=torch.float64)
    if op is None or not math.isfinite(passed.whole[op.index]):
        dead = op is not None and passed.whole[op.index] == 0
        return (0.0, torch.zeros(count, dtype=torch.float64)) if dead else (math.inf, unknown)
    after = passed.whole[op.index]
    after_each = passed.channel[op.index]
    if isinstance(op, Scaling) or (isinstance(op, Mixing) and source == op.layer):
        scale = op.scale.double().abs().cpu()
        return float(scale.max()) * after, scale * after_each
    if isinstance(op, Mixing):
        if op.index == graph.output and not op.spatial:
            rows = op.weight.double()
            return float(rows.norm(dim=1).max()), rows.abs().amax(dim=0).cpu()
        return op.norm * after, op.channel_norms * after
    if isinstance(op, Pointwise):
        return op.slope * after, op.slope * after_each
    if isinstance(op, Adding):
        return after, after_each
    if isinstance(op, Linear):
        each = after_each if op.channelwise else torch.full((count,), after, dtype=torch.float64)
        return op.gain * after, op.gain * each
    return math.inf, unknown


@dataclass(frozen=True)
class _Block:
    end: int
    consumers: tuple[int, int]
    norm: float


def _residual_block(graph: Graph, operators: Mapping[int, Operator], start: int) -> _Block | None:
    """The block x + second(activation(first(x))) that begins at ``start``, if one does."""
    for end in graph.nodes[start].consumers:
        adding = operators.get(end)
        if not isinstance(adding, Adding):
            continue
        second = operators.get(next((source for source in adding.inputs if source != start), -1))
        if not isinstance(second, Mixing) or graph.nodes[second.index].consumers != (end,):
            continue
        activation = operators.get(second.inputs[0])
        if not isinstance(activation, Pointwise) or not activation.monotone:
            continue
        first = operators.get(activation.inputs[0])
        if not isinstance(first, Mixing) or first.inputs != (start,):
            continue
        chain = (first.layer, first.index, activation.index, second.layer, second.index)
        if any(len(graph.nodes[index].consumers) != 1 for index in chain):
            continue
        norm = residual_norm(first, second)
        if norm is not None:
            return _Block(end, (end, first.layer), norm)
    return None
