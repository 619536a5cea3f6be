"""How far the outputs can move when a result in the middle of the graph deviates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from saboteur.levels.software.engine import forms
from saboteur.levels.software.engine.forms import Form, Grid
from saboteur.levels.software.engine.graph import Graph, Values
from saboteur.levels.software.engine.operators import (
    ROUNDING,
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


def gains(
    graph: Graph, operators: Mapping[int, Operator], values: Values, to: int | None = None, *, tight: bool = True
) -> Gains:
    """Bound the way to the output, or to another node, from every node before it, last to first.

    Args:
        graph: what is computed.
        operators: those that are understood.
        values: the result of every call for a few inputs; results that are no tensors tell shapes only.
        to: the node whose deviation is bounded, in the Euclidean norm, and into which no batch norm is folded; by
            default the output, in the largest element.
        tight: whether forms are found, which take a second for a network of twenty layers; else norms are multiplied.
    """
    end = graph.output if to is None else to
    whole: dict[int, float] = {}
    single: dict[int, Tensor] = {}
    finder = _Forms(graph, operators, values, whole)
    folded = {op.layer for op in operators.values() if isinstance(op, Mixing) and op.layer != op.index}
    for node in reversed(graph.nodes[: end + 1]):
        index = node.index
        value = values[index]
        count = value.shape[1] if isinstance(value, Tensor) and value.dim() > 1 else 1
        total, each = 0.0, torch.zeros(count, dtype=torch.float64)
        if index == end:
            total, each = 1.0, torch.ones(count, dtype=torch.float64)
        block = _residual_block(graph, operators, folded, index)
        block = None if block is None or block.end > end else block
        form = finder.find(index, block) if tight else None
        norm = block.norm if block is not None and form is None and block.shortcut == index else None
        for consumer in node.consumers:
            if isinstance(values[consumer], int | tuple) and not _holds_tensors(values[consumer]):
                continue
            result = _carrier(graph, operators, folded, consumer)
            if result > end:
                continue
            op = None if consumer in folded and result == consumer else operators.get(result)
            more, more_each = _through(op, index, Gains(whole, single), count, largest=to is None and result == end)
            if norm is None or block is None or consumer not in (block.end, block.first.layer):
                total += more
            each = each + more_each
        if norm is not None and block is not None:
            total += norm * whole[block.end]
        if form is not None:
            each = torch.minimum(each, form.channel * ROUNDING)
            if form.whole <= total:
                total = min(total, form.whole * ROUNDING)
                finder.keep(index, form)
        whole[index] = total
        single[index] = torch.minimum(each, torch.tensor(total, dtype=torch.float64))
    return Gains(whole, single)


def _holds_tensors(value: int | tuple) -> bool:
    return isinstance(value, tuple) and any(isinstance(part, Tensor) for part in value)


def _carrier(graph: Graph, operators: Mapping[int, Operator], folded: set[int], consumer: int) -> int:
    """The node whose operator takes in the call ``consumer``: itself, or the batch norm it is folded into."""
    return graph.nodes[consumer].consumers[0] if consumer in folded else consumer


def _through(op: Operator | None, source: int, passed: Gains, count: int, *, largest: bool) -> tuple[float, Tensor]:
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
        if largest and not op.spatial:
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
    """A residual block, shortcut(x) + second(activation(first(x))).

    Attributes:
        end: the addition.
        first: the first layer.
        second: the second layer.
        shortcut: the node that is added, x itself or the result of one layer or of moves.
    """

    end: int
    first: Mixing
    second: Mixing
    shortcut: int

    @property
    def norm(self) -> float | None:
        """The gain of the block where its shortcut is x itself."""
        return residual_norm(self.first, self.second)


def _residual_block(graph: Graph, operators: Mapping[int, Operator], folded: set[int], start: int) -> _Block | None:
    """The block that begins at ``start``, if one does."""

    def only(index: int) -> int:
        following = graph.nodes[index].consumers
        return _carrier(graph, operators, folded, following[0]) if len(following) == 1 else -1

    for consumer in graph.nodes[start].consumers:
        first = operators.get(_carrier(graph, operators, folded, consumer))
        if not isinstance(first, Mixing) or first.inputs != (start,):
            continue
        activation = operators.get(only(first.index))
        if not isinstance(activation, Pointwise) or not activation.monotone:
            continue
        second = operators.get(only(activation.index))
        if not isinstance(second, Mixing) or second.inputs != (activation.index,):
            continue
        adding = operators.get(only(second.index))
        if isinstance(adding, Adding):
            shortcut = next(source for source in adding.inputs if source != second.index)
            return _Block(adding.index, first, second, shortcut)
    return None


class _Forms:
    """Finds forms for the nodes of a graph, last to first, where all that depends on a node is described by them."""

    def __init__(self, graph: Graph, operators: Mapping[int, Operator], values: Values, whole: Mapping[int, float]):
        self._graph = graph
        self._operators = operators
        self._values = values
        self._whole = whole
        self._found: dict[int, Form] = {}
        layers = [op for op in operators.values() if isinstance(op, Mixing) and op.spatial]
        self._margin = max((forms.reach(op) for op in layers), default=0)
        self._carrier = {op.layer: op for op in layers if op.layer != op.index}

    def find(self, index: int, block: _Block | None) -> Form | None:
        """The form for deviations of node ``index`` alone, if there is one; those of later nodes come first."""
        if not isinstance(self._values[index], Tensor) or self._values[index].dim() != 4:
            return None
        return self._of_block(index, block) if block is not None else self._of_one(index)

    def keep(self, index: int, form: Form) -> None:
        """Let the forms of earlier nodes follow from that of node ``index``."""
        if form.phases == 1:
            self._found[index] = form

    def _followers(self, index: int) -> list[int]:
        """The calls that take a result, those that only ask for its shape left out."""
        following = self._graph.nodes[index].consumers
        return [one for one in following if self._graph.leads_to_output[one] and not _is_shape(self._values[one])]

    def _of_one(self, index: int) -> Form | None:
        following = self._followers(index)
        if len(following) != 1 or index == self._graph.output:
            return None
        op = self._carrier.get(following[0], self._operators.get(following[0]))
        after = None if op is None else self._found.get(op.index)
        if isinstance(op, Mixing) and index == op.inputs[0]:
            return self._before_layer(op)
        if after is None:
            return None
        if isinstance(op, Mixing | Scaling):
            return after.scaled(op.scale)
        if isinstance(op, Adding):
            return after
        return after.before_rectifier() if isinstance(op, Pointwise) and op.monotone else None

    def _before_layer(self, op: Mixing) -> Form | None:
        phases = math.prod(op.stride)
        after = self._after(op.index, [op], op.weight.shape[1] * phases) if op.spatial else None
        return None if after is None else forms.through(forms.symbol(op, after.grid), after, phases)

    def _of_block(self, start: int, block: _Block) -> Form | None:
        first, second, phases = block.first, block.second, math.prod(block.first.stride)
        shortcut = self._operators.get(block.shortcut)
        layers = [first, second, *([shortcut] if isinstance(shortcut, Mixing) else [])]
        if not all(op.spatial for op in layers) or second.stride != (1, 1):
            return None
        way = self._way_of_shortcut(start, block)
        if way is None or not set(self._followers(start)) <= {first.layer, block.end, *way}:
            return None
        after = self._after(block.end, layers, first.weight.shape[1] * phases)
        if after is None:
            return None
        side = self._shortcut(start, block, way, after.grid)
        if side is None:
            return None
        opening, closing = (forms.symbol(op, after.grid) for op in (first, second))
        return forms.residual(opening, closing, side, after, phases)

    def _after(self, index: int, layers: list[Mixing], width: int) -> Form | None:
        """The form of node ``index`` on a grid large enough for ``layers`` before it."""
        gain, sides = self._whole[index], self._sides(index)
        least = [forms.least_grid(op, self._sides(op.inputs[0]), self._sides(op.index)) for op in layers]
        grid: Grid = max(axis[0] for axis in least), max(axis[1] for axis in least)
        after = self._found.get(index)
        if after is None or not forms.fits(after, grid):
            grid = max(grid[0], sides[0] + self._margin), max(grid[1], sides[1] + self._margin)
            after = None
        if not math.isfinite(gain) or not forms.affordable(grid if after is None else after.grid, width):
            return None
        return after or forms.flat(gain, self._values[index].shape[1], grid)

    def _sides(self, index: int) -> tuple[int, int]:
        height, width = self._values[index].shape[2:]
        return height, width

    def _way_of_shortcut(self, start: int, block: _Block) -> list[int] | None:
        """The nodes of a shortcut in order, if they follow one on the other from ``start``."""
        way, index = [], block.shortcut
        while index != start:
            before = self._tensors(index)
            if len(before) != 1 or self._graph.nodes[index].consumers != ((way or [block.end])[-1],):
                return None
            way.append(index)
            (index,) = before
        return way[::-1]

    def _tensors(self, index: int) -> list[int]:
        return [one for one in self._graph.nodes[index].inputs if isinstance(self._values[one], Tensor)]

    def _shortcut(self, start: int, block: _Block, way: list[int], grid: Grid) -> Tensor | None:
        """The symbol of a shortcut, if it is a layer, or moves values."""
        op = self._operators.get(block.shortcut)
        if isinstance(op, Mixing) and op.inputs == (start,):
            return forms.symbol(op, grid) if op.stride == block.first.stride else None
        if not all(isinstance(self._operators.get(index), Linear) for index in way):
            return None
        channels = self._moved(start, way, block.first.stride)
        size = self._values[start].shape[1]
        return None if channels is None else forms.selection(channels, size, math.prod(block.first.stride), grid)

    def _moved(self, start: int, way: list[int], stride: tuple[int, ...]) -> Tensor | None:
        """Where calls that only move values take each channel of a result from, if from every stride-th position.

        Every value is given its own number, and what comes out is read.
        """
        value = self._values[start]
        numbers = torch.arange(1, value[0].numel() + 1, device=value.device).reshape(value.shape[1:])
        if numbers.numel() >= 2**24:
            return None
        moved = dict(self._values) | {start: numbers.to(value.dtype).expand_as(value).clone()}
        for index in way:
            moved[index] = self._graph.call(self._graph.nodes[index], moved)
        last = moved[way[-1] if way else start]
        if last.shape[1:] != self._values[way[-1] if way else start].shape[1:] or last.dim() != 4:
            return None
        found = last[0].long()
        channels = (found[:, 0, 0] - 1).div(value[0, 0].numel(), rounding_mode="floor")
        expected = numbers[channels.clamp(min=0), :: stride[0], :: stride[1]]
        expected = torch.where(channels[:, None, None] >= 0, expected, 0)
        same = found.shape == expected.shape and torch.equal(found, expected)
        return channels.cpu() if same else None


def _is_shape(value: object) -> bool:
    return isinstance(value, int | tuple) and not _holds_tensors(value)
