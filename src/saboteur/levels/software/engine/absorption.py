"""Where a NaN cannot get lost: some way on to the outputs keeps it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.levels.software.engine.graph import Graph, Node, Values
from saboteur.levels.software.engine.operators import Adding, Linear, Mixing, Operator, Pointwise, Scaling

_KEEPS_EVERY_VALUE = (
    nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity, F.dropout, torch.flatten, "flatten", "view", "reshape",
    "contiguous", "permute", "transpose", torch.permute, torch.transpose, torch.reshape, torch.cat, torch.concat,
)  # fmt: skip


def absorbing(graph: Graph, operators: Mapping[int, Operator], values: Values) -> set[int]:
    """The nodes in whose results a NaN, wherever it is, makes an output NaN.

    A NaN stays one in every sum and product (IEEE 754-2019, 6.2), also times zero. So it reaches the result of a
    convolution whose windows leave no position out, of a linear layer, of a batch norm and of an addition; functions
    of single values and pools are tried out. With the plain engine's bits this settles a pair: its output is not
    finite. (An infinity settles nothing: a rectifier makes zero of a negative one.)

    Args:
        graph: what is computed.
        operators: those that are understood.
        values: the result of every call for a few inputs.
    """
    found = {graph.output}
    for node in reversed(graph.nodes[: graph.output]):
        if isinstance(values[node.index], Tensor) and any(
            consumer in found and _keeps(graph, operators.get(consumer), node.index, graph.nodes[consumer], values)
            for consumer in node.consumers
        ):
            found.add(node.index)
    return found


def _keeps(graph: Graph, op: Operator | None, source: int, call: Node, values: Values) -> bool:
    """Whether a NaN anywhere in ``source`` makes a value of the result of ``call`` NaN."""
    if isinstance(op, Mixing):
        is_norm = op.layer != op.index
        return is_norm or not op.spatial or _leaves_no_gaps(op, values[source].shape[2:])
    if isinstance(op, Linear):
        key = type(call.module) if call.module is not None else call.call.target
        return key in _KEEPS_EVERY_VALUE or (values[source].dim() == 4 and _pool_keeps(graph, source, call, values))
    if isinstance(op, Pointwise):
        return bool(torch.isnan(op.function(torch.full_like(values[source], torch.nan))).all())
    return isinstance(op, Adding | Scaling)


def _leaves_no_gaps(op: Mixing, sides: tuple[int, ...]) -> bool:
    """Whether every position of a map is read by some window of a convolution."""
    axes = zip(sides, op.sides_after(sides), op.weight.shape[2:], op.stride, op.padding, op.dilation, strict=True)
    for side, windows, kernel, stride, padding, dilation in axes:
        read = torch.arange(windows)[:, None] * stride - padding + torch.arange(kernel) * dilation
        if not torch.isin(torch.arange(side), read).all():
            return False
    return True


def _pool_keeps(graph: Graph, source: int, call: Node, values: Values) -> bool:
    """Whether a pool keeps one NaN in each row and in each column, and so, its windows being a grid, anywhere."""
    if values[call.index].shape[:2] != values[source].shape[:2]:
        return False
    height, width = values[source].shape[2:]
    row = torch.cat([torch.arange(height), torch.arange(width) % height])
    column = torch.cat([torch.arange(height) % width, torch.arange(width)])
    maps = values[source].new_zeros(len(row), 1, height, width)
    maps[torch.arange(len(row)), 0, row, column] = torch.nan
    result = graph.call(call, {**{index: values[index] for index in call.inputs}, source: maps})
    return bool(torch.isnan(result).reshape(len(row), -1).any(dim=1).all())
