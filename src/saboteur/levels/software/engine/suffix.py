"""Runs many (trial, input) pairs together through the rest of a graph, and lets go of those that are decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from saboteur.levels.software.engine.bounds import Gains
from saboteur.levels.software.engine.changes import Changes
from saboteur.levels.software.engine.golden import Chunk, picked
from saboteur.levels.software.engine.graph import Graph, Values
from saboteur.levels.software.engine.patches import Patch, cut_out, window_after
from saboteur.levels.software.engine.stages import LayerStage, Stage

_LEAST_SHARE = 0.5
"""Deviations are expected to shrink to no less of what they were before."""

_MOST_GROWN = 16.0
"""Deviations are taken to have grown by so much where they are not measured, as long as they are small."""

_LARGEST_PATCH = 0.5
"""A patch beyond this share of its map is treated as a whole map."""

_CACHED_BYTES = 2**19
"""Temporary values up to this size stay in a core's own cache."""


@dataclass
class Pairs:
    """Pairs that are under way.

    Attributes:
        chunk: the fault-free results.
        trial: int64 [pairs].
        row: int64 [pairs], the input, counted from the chunk's first.
        values: the deviating results so far, each [pairs, ...].
        growth: float64 [pairs], the largest deviation so far as a multiple of the fault-free result.
        radius: float64 [inputs of the chunk], how far outputs may move; ``None`` where every deviation is asked for.
        scale: the deviations, and the values that they dominate, are divided by this.
        size: float64 [pairs], the Euclidean norm of the deviation where it was last measured.
    """

    chunk: Chunk
    trial: Tensor
    row: Tensor
    values: Values
    growth: Tensor
    radius: Tensor | None = None
    scale: float = 1.0
    size: Tensor = field(default_factory=lambda: torch.empty(0))

    def __len__(self) -> int:
        return len(self.trial)

    def keep(self, chosen: Tensor) -> None:
        """Let go of the others than ``chosen``, bool [pairs]."""
        chosen = torch.nonzero(chosen).flatten()
        self.trial, self.row, self.growth = self.trial[chosen], self.row[chosen], self.growth[chosen]
        self.size = self.size[chosen]
        kept = {index: value for index, value in self.values.items() if isinstance(value, Tensor | Patch)}
        self.values = {
            index: picked(value, chosen) if isinstance(value, Tensor) else value[chosen]
            for index, value in kept.items()
        }

    def slice(self, first: int, last: int) -> Pairs:
        """The pairs number ``first`` .. ``last`` − 1, whose values share the memory of these."""
        part = slice(first, last)
        values = {index: value[part] for index, value in self.values.items()}
        columns = self.trial[part], self.row[part], values, self.growth[part], self.radius, self.scale, self.size[part]
        return Pairs(self.chunk, *columns)

    def norm(self, index: int, summed: bool = False) -> Tensor | float:
        """The norm of the result of a node where it deviates, or the largest absolute sum of a channel; else 0."""
        value = self.values.get(index, 0)
        if isinstance(value, int | float | torch.Size):
            return 0.0
        value = value.values if isinstance(value, Patch) else _channels_last(value)
        if summed:
            sums = value.abs().sum((1, 2)).amax(1) if value.dim() == 4 else value.abs().flatten(1).sum(1)
            return sums.double().cpu() * self.scale
        return norms(value.flatten(1)) * self.scale

    def value(self, graph: Graph, index: int) -> Any:
        """The result of a node: deviating, or fault-free."""
        if index in self.values:
            if isinstance(self.values[index], Patch):
                self.values[index] = self._whole(index)
            return self.values[index]
        if not graph.varies[index]:
            return self.chunk.constants[index]
        if index in self.chunk.values:
            self.values[index] = self.chunk.picked(index, self.row)
            return self.values[index]
        node = graph.nodes[index]
        return graph.call(node, {source: self.value(graph, source) for source in node.inputs})

    def _whole(self, index: int) -> Tensor:
        value, origin = self.chunk.picked(index, self.row), torch.zeros_like(self.row)
        self.values[index].paste(value.permute(0, 2, 3, 1), origin, origin)
        return value

    def window(
        self, index: int, top: Tensor, left: Tensor, size: tuple[int, int], padding: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """A part of the result of a node, channels last; it may begin up to ``padding`` before the map."""
        maps = self.chunk.padded(index, padding)
        windows = cut_out(maps, self.row, top + padding[0], left + padding[1], size)
        if index in self.values:
            self.values[index].paste(windows, top, left)
        return windows


Extent = Literal["value", "channel", "whole"]
"""What of a result deviates: a single value, one channel, or anything."""


@dataclass(frozen=True)
class Deviation:
    """How far pairs deviate in results on which alone all that follows depends.

    Attributes:
        bound: float64 [pairs], how far the outputs can move; infinite where unknown.
        relative: float64 [pairs], the size as a multiple of the fault-free result, the largest over the results.
        sizes: by node, float64 [pairs], the Euclidean norm.
        extent: what of the results deviates.
        largest: float64 [pairs], what no value or partial sum of the next step exceeds; 0 where it need not be known.
    """

    bound: Tensor
    relative: Tensor
    sizes: Mapping[int, Tensor]
    extent: Extent
    largest: Tensor


Decide = Callable[[Pairs, Deviation], Tensor | None]
"""Told how far pairs deviate, may let go of some; returns a mask of those kept, or ``None`` for all."""


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
        self.starts = tuple(starts)
        self._gains = gains
        dirty = set(starts)
        self.stages: list[Stage] = []
        for stage in all_stages:
            if stage.index not in dirty and any(source in dirty for source in stage.inputs):
                dirty.add(stage.index)
                self.stages.append(stage)
        self.dirty = dirty
        self.cuts = self._cuts()
        reads = [set(stage.inputs) for stage in self.stages]
        self._needed_after = [set().union({graph.output}, *reads[place + 1 :]) for place in range(len(reads))]

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

    def largest_result(self, chunk: Chunk) -> int:
        """The bytes of the largest result of one pair on the way to the outputs."""
        made = [chunk.values[stage.index] for stage in self.stages if stage.index in chunk.values]
        return max(value[0].nbytes for value in (*made, chunk.values[self.graph.output]))

    def changed_stages(self, changes: Changes | None) -> set[Stage]:
        """The stages with weights or biases that differ from trial to trial."""
        layers = set() if changes is None else changes.reached
        return {stage for stage in self.stages if isinstance(stage, LayerStage) and stage.mixing in layers}

    def run(self, pairs: Pairs, decide: Decide, changes: Changes | None = None) -> Tensor:
        """The outputs of the pairs that ``decide``, called at every cut, has not let go of.

        Args:
            pairs: with the results of the starts.
            decide: may let go of pairs; of none as proved where a layer that follows changes.
            changes: weights and biases of the layers that follow, by the trial of a pair.
        """
        changed = self.changed_stages(changes)
        for place, stage in enumerate(self.stages):
            if stage.index not in pairs.values:
                if pairs.scale > 1:
                    self._let_go_of_overflow(stage, pairs, decide)
                    if not len(pairs):
                        break
                if changes is not None and isinstance(stage, LayerStage) and stage in changed:
                    pairs.values[stage.index] = self._changed_result(stage, pairs, changes)
                else:
                    pairs.values[stage.index] = self._result(stage, pairs, self._needed_after[place])
            needed = self._needed_after[place]
            pairs.values = {index: value for index, value in pairs.values.items() if index in needed}
            measurable = stage.index in pairs.chunk.values  # a tuple has no one deviation
            if stage.index in self.cuts and measurable and pairs.scale == 1:
                self._decide(stage.index, pairs, decide, provable=changed.isdisjoint(self.stages[place + 1 :]))
                if not len(pairs):
                    break
        return pairs.value(self.graph, self.graph.output) if len(pairs) else torch.empty(0)

    def fault_free(self, pairs: Pairs) -> Values:
        """The results of all stages without any fault, those before a rectifier included."""
        found: Values = {}
        for stage in self.stages:
            if isinstance(stage, LayerStage) and stage.rectified:
                inputs = [pairs.value(self.graph, source) for source in stage.inputs]
                found[stage.before] = stage.run(*inputs, rectified=False)
                found[stage.index] = found[stage.before].relu()
            else:
                found[stage.index] = self._result(stage, pairs, self.dirty)
            pairs.values[stage.index] = found[stage.index]
        return {index: value for index, value in found.items() if isinstance(value, Tensor)}

    @cached_property
    def homogeneous(self) -> bool:
        """Whether all stages are, but for their shifts."""
        return all(math.isfinite(stage.amplification.whole) for stage in self.stages)

    def _let_go_of_overflow(self, stage: Stage, pairs: Pairs, decide: Decide) -> None:
        """Have large deviations decided of which the plain engine's sums might leave the range of float32."""
        relative, reached = torch.zeros_like(pairs.growth), torch.zeros_like(pairs.growth)
        for place, source in enumerate(stage.inputs):
            norm = pairs.norm(source, stage.amplification.averages)
            relative = torch.maximum(relative, norm / pairs.chunk.whole_norms(source)[pairs.row])
            reached += norm * (stage.amplification.whole if place == 0 else 1.0)
        decide(pairs, overflowing(relative, reached))

    def _changed_result(self, stage: LayerStage, pairs: Pairs, changes: Changes) -> Tensor:
        """The result of a layer stage with weights or biases that differ from trial to trial."""
        inputs = [pairs.value(self.graph, source) for source in stage.inputs]
        result = stage.run(*inputs, rectified=False)
        pairs.size = pairs.size + changes.apply(stage.mixing, pairs.trial, lambda *at: inputs[0][at], result)
        return result.relu_() if stage.rectified else result

    def _decide(self, cut: int, pairs: Pairs, decide: Decide, *, provable: bool) -> None:
        value = pairs.values[cut]
        if isinstance(value, Tensor) and not value.is_floating_point():
            return
        gain, usual = self._gains.whole[cut] if provable else math.inf, pairs.chunk.whole_norms(cut)[pairs.row]
        size, measured = self._taken_to_be(gain, usual, pairs)
        places = torch.nonzero(measured).flatten()
        if isinstance(value, Patch):
            before = cut_out(pairs.chunk.padded(cut, (0, 0)), pairs.row, value.top, value.left, value.size)
            size, measured = norms((value.values - before).flatten(1)), torch.ones_like(measured)
        elif not len(places):
            pairs.growth = torch.maximum(pairs.growth, size / usual)
            return
        else:
            size[places] = distances(value, pairs.chunk.rows(cut), pairs.row, places)
        pairs.size = torch.where(measured, size, pairs.size)
        bound = torch.where(measured, size * gain, math.inf)
        if provable:
            bound[size == 0] = 0.0
        decide(pairs, Deviation(bound, size / usual, {cut: size}, "whole", torch.zeros_like(bound)))

    @staticmethod
    def _taken_to_be(gain: float, usual: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """What deviations are taken to be where they are not measured, and which are, as it may decide or count.

        One is not worth it that decides nothing even if it has shrunk to half; nor does it add to what rounding
        may do as long as it is small.
        """
        if pairs.radius is None:
            return pairs.size, torch.ones(len(pairs), dtype=torch.bool)
        most = pairs.size * _MOST_GROWN
        return most, (_LEAST_SHARE * pairs.size * gain < pairs.radius[pairs.row]) | ~(most < usual)

    def _result(self, stage: Stage, pairs: Pairs, needed: set[int]) -> Any:
        patch = self._patch(stage, pairs) if isinstance(stage, LayerStage) else None
        if patch is not None:
            return patch
        inputs = [pairs.value(self.graph, source) for source in stage.inputs]
        if isinstance(stage, LayerStage):
            kept = [*inputs[:-1], *(pairs.values.get(index) for index in needed)]
            return stage.run(*inputs, overwrite=not any(_share_memory(inputs[-1], value) for value in kept))
        return self.graph.call(self.graph.nodes[stage.index], dict(zip(stage.inputs, inputs, strict=True)))

    def _patch(self, stage: LayerStage, pairs: Pairs) -> Patch | None:
        """The result of a convolution stage where only a patch of its input deviates, if it stays small."""
        op = stage.mixing
        given = [pairs.values.get(source) for source in stage.inputs]
        whole = any(
            source in self.dirty and not isinstance(x, Patch) for source, x in zip(stage.inputs, given, strict=True)
        )
        if not op.spatial or whole or not isinstance(given[0], Patch):
            return None
        x = given[0]
        sides = pairs.chunk.result(stage.before).shape[2:]
        axes = zip(op.weight.shape[2:], op.stride, op.padding, op.dilation, sides, strict=True)
        (top, height), (left, width) = (
            window_after(first, length, *axis)
            for first, length, axis in zip((x.top, x.left), x.size, axes, strict=True)
        )
        size = (height, width)
        if height * width > _LARGEST_PATCH * sides[0] * sides[1]:
            return None
        if any(isinstance(other, Patch) and not other.inside(top, left, size) for other in given[1:]):
            return None
        read = [
            (count - 1) * stride + dilation * (kernel - 1) + 1
            for count, stride, dilation, kernel in zip(size, op.stride, op.dilation, op.weight.shape[2:], strict=True)
        ]
        above, before = (
            first * stride - pad for first, stride, pad in zip((top, left), op.stride, op.padding, strict=True)
        )
        around = op.padding[0], op.padding[1]
        windows = pairs.window(stage.inputs[0], above, before, (read[0], read[1]), around).permute(0, 3, 1, 2)
        others = [pairs.window(source, top, left, size).permute(0, 3, 1, 2) for source in stage.inputs[1:]]
        result = stage.run(windows, *others, padded=True).permute(0, 2, 3, 1)
        return Patch(result.contiguous(), top, left)


def overflowing(relative: Tensor, largest: Tensor) -> Deviation:
    """Deviations of which nothing is known but how large they are, and what no sum that follows exceeds."""
    return Deviation(torch.full_like(relative, math.inf), relative, {}, "whole", largest)


def distances(values: Tensor, fault_free: Tensor, row: Tensor, places: Tensor) -> Tensor:
    """The Euclidean distance of ``values[places]`` [n, ...] from ``fault_free[row[places]]``: float64 [n]."""
    some = max(1, _CACHED_BYTES // max(1, values[0].nbytes))
    sizes = []
    for first in range(0, len(places), some):
        part = places[first : first + some]
        deviation = picked(fault_free, row[part])
        deviation.sub_(values if len(part) == len(values) else picked(values, part))
        sizes.append(norms(_channels_last(deviation).flatten(1)))
    return torch.cat(sizes)


def norms(values: Tensor) -> Tensor:
    """The Euclidean norms of the rows of ``values`` [n, ...]: float64 [n], on the CPU."""
    found = torch.linalg.vector_norm(values, dim=1).double().cpu()
    beyond = ~torch.isfinite(found)
    if bool(beyond.any()):  # the squares of large float32 values overflow
        found[beyond] = torch.linalg.vector_norm(values[beyond.to(values.device)], dim=1, dtype=torch.float64).cpu()
    return found


def _share_memory(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _channels_last(values: Tensor) -> Tensor:
    """The same values in the order in which stages lay them in memory."""
    return values.permute(0, 2, 3, 1) if values.dim() == 4 else values
