"""The exact engine: the plain engine's outcomes, pair by pair, from a fraction of its work.

A trial starts at its faulted layer. What its fault does to one channel is worked out first; pairs whose outputs
provably cannot move far enough to change a verdict are let go of at once, the others travel on together with
those of other trials, and are tested again with their measured deviation wherever all that follows depends on
one result. An output within rounding of a threshold is computed once more, by the plain engine's own calls.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.faults.space import Faults, FaultSpace, Region
from saboteur.levels.software import injection
from saboteur.levels.software.engine.absorption import absorbing
from saboteur.levels.software.engine.batching import Batching
from saboteur.levels.software.engine.blocks import NarrowBlock, PlainBlock, Shared, WholeBlock
from saboteur.levels.software.engine.bounds import Gains, gains
from saboteur.levels.software.engine.changes import BIAS, Changes
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.graph import Graph, Untraceable, same
from saboteur.levels.software.engine.groups import (
    BiasGroup,
    Group,
    NarrowGroup,
    NormGroup,
    SignalGroup,
    StoredGroup,
    WeightGroup,
)
from saboteur.levels.software.engine.narrow import Narrow
from saboteur.levels.software.engine.operators import Mixing, Operator, Scaling, understood
from saboteur.levels.software.engine.replay import Replay
from saboteur.levels.software.engine.rounding import Allowance, Rounding, sample_size
from saboteur.levels.software.engine.scattered import Scattered, nodes_of
from saboteur.levels.software.engine.screening import Prediction
from saboteur.levels.software.engine.several import Several, SeveralBlock
from saboteur.levels.software.engine.suffix import Pairs, Stage, Suffix, stages
from saboteur.levels.software.memory import Memory, Plain
from saboteur.levels.software.runner import Batch, Runner
from saboteur.levels.software.signals import Output
from saboteur.levels.software.site import Site
from saboteur.outcomes.recorder import Recorder

log = logging.getLogger(__name__)

_PROBED_TOGETHER = 64

_MOST_CHANGES = 16
"""Trials with more faults share no batches: each change costs as much as a channel of a layer."""

_OF_NORM = ("weight", "bias", "running_mean", "running_var")

_ROUNDING_FACTOR = 64.0
_PROBES = 4


class ExactEngine:
    """Injects faults into a model as the plain engine does, faster.

    Args:
        runner: runs the model.
        memory_bytes: how much fault-free results and what is under way may take.

    Attributes:
        reason: why everything runs the plain way; ``None`` if it does not.
    """

    def __init__(self, runner: Runner, memory_bytes: int):
        self.runner = runner
        self.reason: str | None = None
        self._memory = memory_bytes // 2  # the other half is for what is under way
        self._chunks: dict[range, Chunk] = {}
        self._allowances: dict[range, Allowance] = {}
        self._narrow: dict[int, Narrow] = {}
        self._suffixes: dict[int, Suffix] = {}
        self._nodes: dict[str, tuple[int, ...] | None] = {}
        self._ends: dict[tuple[int, int], int] = {}
        try:
            with runner.prepared():
                self._open()
        except Untraceable as error:
            self._give_up(str(error))

    def _open(self) -> None:
        runner = self.runner
        if runner.inputs_interact:
            raise Untraceable("the inputs of a batch change each other's outputs")
        shapes = [tuple(tensor.shape) for tensor in runner.tensors]
        self.graph = Graph(runner.model, runner.output, runner.rounding, shapes)
        probe = torch.arange(_PROBES) % runner.inputs
        tensors = [tensor[probe.to(tensor.device)] for tensor in runner.tensors]
        self._probed = values = self.graph.check(tensors, every=False)
        self._batching = Batching(self.graph, runner)
        self.graph.find_places(tensors, values)
        self.places = {nodes[0]: place for place, nodes in self.graph.places.items() if len(nodes) == 1}
        self.operators: dict[int, Operator] = {} if runner.rounding else understood(self.graph, values)
        self.graph.absorbing = absorbing(self.graph, self.operators, values)
        self.gains: Gains = gains(self.graph, self.operators, values)
        self.stages: list[Stage] = stages(self.graph, self.operators, values)
        self._folded = {op.layer for op in self.operators.values() if isinstance(op, Mixing) and op.layer != op.index}
        results = {
            index: value
            for index, value in values.items()
            if index in self.graph.tensors and self.graph.varies[index] and self.graph.leads_to_output[index]
        }
        self._boundaries = results.keys() & {*self.graph.arguments, *(stage.index for stage in self.stages)}
        self._float_results = {i for i, value in results.items() if value.dtype == torch.float32 and value.dim() > 1}
        size = sum(value.nbytes for value in results.values())
        per_input = 2 * size / _PROBES
        batches = int(self._memory / (per_input * runner.batch_size))
        if batches < 1:
            raise Untraceable(f"the results for one batch take {per_input * runner.batch_size / 2**20:.0f} MB")
        self._inputs_per_chunk = min(batches, 16) * runner.batch_size
        self._sampled_inputs = sample_size(runner.inputs, per_input, self._memory)
        self._kept_chunks = max(1, int(self._memory / (per_input * self._inputs_per_chunk)))

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        log.warning("exact engine: %s; every trial runs the plain way", reason)

    def measured_places(self, sites: Iterable[Site]) -> set[str]:
        """The places at which deviations are measured that begin at ``sites``."""
        if self.reason is not None:
            return set()
        starts = {start for site in sites if (start := self._start_of(site)) is not None}
        nodes = set().union(*(self.narrow(start).measured_at for start in starts))
        return {place for node, place in self.places.items() if node in nodes}

    def inject(
        self,
        sites: Mapping[str, Site],
        space: FaultSpace,
        faults: Faults,
        recorder: Recorder,
        prediction: Prediction | None = None,
    ) -> None:
        """Run every trial of ``faults``, as :func:`saboteur.levels.software.injection.inject`.

        Args:
            sites: the fault sites, by name.
            space: where the faults come from.
            faults: the trials.
            recorder: takes the pairs.
            prediction: decides pairs by how far they deviate on the way; without it, only what is proved is decided.
        """
        if self.reason is not None:
            injection.inject(self.runner, sites, space, faults, recorder)
            return
        _hand_in_resting(space, faults, recorder)
        groups, others = self._sorted(sites, space, faults)
        for trial in others.tolist():
            asked = np.flatnonzero(recorder.awaited[trial])
            injection.inject_one(self.runner, sites, space, faults, trial, asked, recorder)
        for inputs in self._chunk_ranges():
            try:
                self._on_chunk(inputs, groups, recorder, prediction)
            except Untraceable as error:
                self._give_up(str(error))
                self._plainly(sites, space, faults, groups, inputs, recorder)
            except Exception as error:  # a faulty model may fail anywhere; the plain engine tells which inference does
                log.info("exact engine: %s: %s; what is left runs the plain way", type(error).__name__, error)
                self._plainly(sites, space, faults, groups, inputs, recorder)

    def _on_chunk(self, inputs: range, groups: list[Group], recorder: Recorder, prediction: Prediction | None) -> None:
        chunk = self._chunk(inputs, recorder)
        replay = Replay(chunk, recorder)
        shared = Shared(chunk, self._allowances[inputs], self.gains, recorder, replay)
        for group in groups:
            if self._runs_plainly(group):
                PlainBlock(shared, group).run()
            elif isinstance(group, Several):
                SeveralBlock(shared, group, self._suffix(group.first.index)).run()
            elif isinstance(group, NarrowGroup):
                NarrowBlock(shared, group, self.narrow(group.start), self.places, prediction).run()
            else:
                WholeBlock(shared, group, self._suffix(group.start)).run()
        replay.run()

    def _runs_plainly(self, group: Group) -> bool:
        """Whether no deviation of ``group`` can be measured, as that of integers or of what is rounded."""
        if self.runner.rounding:
            return True
        whole = group.start == self.graph.output and not isinstance(group, NarrowGroup | Several)
        return whole or group.start not in self._float_results

    def _plainly(
        self,
        sites: Mapping[str, Site],
        space: FaultSpace,
        faults: Faults,
        groups: list[Group],
        inputs: range,
        recorder: Recorder,
    ) -> None:
        for trial in np.concatenate([group.trial for group in groups]).tolist():
            asked = inputs.start + np.flatnonzero(recorder.awaited[trial, inputs.start : inputs.stop])
            injection.inject_one(self.runner, sites, space, faults, trial, asked, recorder)

    def _sorted(
        self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults
    ) -> tuple[list[Group], NDArray[np.int64]]:
        """The trials that have a fast way, in groups, and the others."""
        rows = np.diff(faults.bounds)
        single = np.flatnonzero(rows == 1)
        row = faults.bounds[single]
        groups: list[Group] = []
        scattered = [np.flatnonzero(rows > 1)]
        for number in np.unique(faults.region[row]):
            region = space.regions[number]
            chosen = np.flatnonzero(faults.region[row] == number)
            hit = row[chosen]
            columns = single[chosen], faults.element[hit], faults.variant[hit], faults.drawn[hit]
            group = self._narrow_group(sites[region.site], region, *columns)
            if group is None:
                scattered.append(single[chosen])
            else:
                groups.append(group)
        left = np.sort(np.concatenate(scattered))
        several, left = self._several(sites, space, faults, left)
        more, others = self._scattered(sites, space, faults, left)
        return [*groups, *several, *more], others

    def _narrow_group(self, site: Site, region: Region, trial: NDArray, *columns: NDArray) -> NarrowGroup | None:
        """The faults of ``columns`` (element, variant, drawn) at ``site``, if they change one channel at first."""
        if isinstance(site, Memory):
            kind, op = self._layer_of(site)
            return None if kind is None else kind.of(op, site, region.model, trial, *columns)
        start = self._result_of(site)
        return None if start is None else SignalGroup(start, site, region.model, trial, *columns)

    def _several(
        self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults, trials: NDArray[np.int64]
    ) -> tuple[list[Several], NDArray[np.int64]]:
        """The ``trials`` with a few faults, all in weights and biases, by the first and last layer, and the others."""
        places = {op.layer: place for place, op in enumerate(self._layers)}
        kinds = [
            self._layer_of(site) if isinstance(site := sites[r.site], Memory) else (None, None) for r in space.regions
        ]
        of_region = [
            places.get(op.index, -1) if kind in (WeightGroup, BiasGroup) and region.activity == 1 else -1
            for region, (kind, op) in zip(space.regions, kinds, strict=True)
        ]
        fit = (np.diff(faults.bounds) <= _MOST_CHANGES) & ~_hit_a_value_twice(space, faults)
        fit[faults.trial[np.array(of_region)[faults.region] < 0]] = False
        chosen = trials[fit[trials]]
        if not len(chosen):
            return [], trials
        some = faults.take(chosen)
        layer = np.array(of_region)[some.region]
        out, channel, tap = np.zeros((3, len(layer)), np.int64)
        change, differs = np.zeros(len(layer), np.float32), np.zeros(len(layer), bool)
        for number in np.unique(some.region).tolist():
            here, region, (kind, op) = np.flatnonzero(some.region == number), space.regions[number], kinds[number]
            columns = some.trial[here], some.element[here], some.variant[here], some.drawn[here]
            group = kind.of(op, sites[region.site], region.model, *columns)
            change[here], differs[here] = group.change, group.differs
            if isinstance(group, WeightGroup):
                out[here], channel[here], tap[here] = group.place
            else:
                out[here], channel[here] = group.element, BIAS
        order = np.lexsort((layer, some.trial))
        trial, columns = some.trial[order], [part[order] for part in (layer, out, channel, tap, change)]
        first, last = (
            columns[0][np.searchsorted(trial, np.arange(len(chosen)), side=s) - (s == "right")]
            for s in ("left", "right")
        )
        nodes = {name: self._nodes_of(site) or () for name, site in sites.items() if isinstance(site, Memory)}
        groups = []
        for ends in np.unique(np.stack([first, last], axis=1), axis=0).tolist():
            members = np.flatnonzero((first == ends[0]) & (last == ends[1]))
            rows = np.isin(trial, members)
            changes = Changes(self._layers, np.searchsorted(members, trial[rows]), *(part[rows] for part in columns))
            acting = np.bincount(changes.number, differs[order][rows], len(members)) > 0
            gain = changes.gains(self.gains, self._between)
            start = self._end_of(*(self._layers[place].layer for place in ends))
            stage = self._stage_of[self._layers[ends[0]]]
            groups.append(
                Several(self.runner, sites, nodes, space, faults, start, chosen[members], stage, changes, acting, gain)
            )
        return groups, trials[~fit[trials]]

    @cached_property
    def _stage_of(self) -> dict[Mixing, Stage]:
        return {stage.mixing: stage for stage in self.stages if stage.mixing is not None}

    @cached_property
    def _layers(self) -> list[Mixing]:
        return sorted(self._stage_of, key=lambda op: op.layer)

    @cached_property
    def _between(self) -> NDArray[np.float64]:
        """Gains from the result of each layer to the input of each later one: [layers, layers]."""
        found = np.zeros((len(self._layers), len(self._layers)))
        for place, op in enumerate(self._layers):
            on_the_way = gains(self.graph, self.operators, self._probed, op.inputs[0], tight=False).whole
            found[:, place] = [on_the_way.get(before.layer, 0.0) for before in self._layers]
        return found

    def _start_of(self, site: Site) -> int | None:
        """The node at which faults in ``site`` begin, if they change one channel at first."""
        if not isinstance(site, Memory):
            return self._result_of(site)
        kind, op = self._layer_of(site)
        return None if kind is None else op.layer if isinstance(op, Mixing) else op.index

    def _scattered(
        self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults, trials: NDArray[np.int64]
    ) -> tuple[list[Group], NDArray[np.int64]]:
        """The ``trials`` whose faults can all be placed in the graph, by where all have acted, and the others."""
        if not len(trials):
            return [], trials
        nodes = {region.site: self._nodes_of(sites[region.site]) for region in space.regions}
        of_region = [nodes[region.site] or (-1,) for region in space.regions]
        first, last = np.full(faults.trials, len(self.graph.nodes)), np.full(faults.trials, -1)
        np.minimum.at(first, faults.trial, np.array([min(found) for found in of_region])[faults.region])
        np.maximum.at(last, faults.trial, np.array([max(found) for found in of_region])[faults.region])
        placed = trials[first[trials] >= 0]
        spans, number = np.unique(np.stack([first[placed], last[placed]]), axis=1, return_inverse=True)
        end = np.array([self._end_of(int(one), int(other)) for one, other in spans.T], np.int64)[number.reshape(-1)]
        groups: list[Group] = [
            Scattered(self.runner, sites, nodes, space, faults, start, placed[end == start])
            for start in np.unique(end).tolist()
        ]
        return groups, trials[first[trials] < 0]

    def _nodes_of(self, site: Site) -> tuple[int, ...] | None:
        """The nodes at which faults in ``site`` act; ``None`` where they cannot be told."""
        if site.name not in self._nodes:
            known = not isinstance(site, Memory) or self._follows(site)
            self._nodes[site.name] = nodes_of(self.graph, site) if known else None
        return self._nodes[site.name]

    def _follows(self, site: Memory) -> bool:
        """Whether the graph gives the model's outputs also when every word of ``site`` is another one.

        It does not where tracing has read the tensor once and for all.
        """
        rows = np.arange(_PROBES) % self.runner.inputs
        tensors = [tensor[torch.from_numpy(rows).to(tensor.device)] for tensor in self.runner.tensors]
        elements, words = np.arange(math.prod(site.shape)), site.words()
        with site.overwritten(elements, words ^ np.uint64(2**site.format.bits - 1)):
            try:
                expected = torch.from_numpy(self.runner.run(Batch(rows, np.arange(_PROBES))))
                found = self.graph.run(tensors)[self.graph.output]
            except Exception:  # whatever a model does with such values
                return False
        return same(found.cpu(), expected)

    def _end_of(self, first: int, last: int) -> int:
        """The first node that ends a stage and on which alone all depends that follows the nodes first .. last."""
        if (first, last) not in self._ends:
            graph = self.graph
            deviating = graph.reached_from(node for node in range(first, last + 1) if graph.leads_to_output[node])
            reads = {
                node: max((c for c in graph.nodes[node].consumers if graph.leads_to_output[c]), default=node)
                for node in deviating
            }
            self._ends[first, last] = next(
                end
                for end in sorted({*self._boundaries, graph.output})
                if end >= last and all(reads[node] <= end for node in deviating if node < end)
            )
        return self._ends[first, last]

    def _layer_of(self, site: Memory) -> tuple[type[StoredGroup], Operator] | tuple[None, None]:
        """How faults in a stored tensor are run, and its layer, if that is called once and shares it with no other."""
        calls = self.graph.calls_of(site.module)
        op = self.operators.get(calls[0].index) if len(calls) == 1 else None
        tensor = getattr(site.module, site.tensor, None)
        if op is None or sum(tensor is other for other in _stored(self.runner.model)) != 1:
            return None, None
        norm = isinstance(op, Scaling) or (isinstance(op, Mixing) and op.layer != op.index)
        if norm and isinstance(site, Plain) and site.tensor in _OF_NORM and op.scale.shape == site.shape:
            return NormGroup, Scaling(
                op.index, (op.layer,) if isinstance(op, Mixing) else op.inputs, op.scale, op.scale
            )
        if isinstance(op, Mixing) and not norm and site.tensor == "weight" and op.weight.shape == site.shape:
            return WeightGroup, op
        if isinstance(op, Mixing) and not norm and isinstance(site, Plain) and site.tensor == "bias":
            return BiasGroup, op
        return None, None

    def _result_of(self, site: Site) -> int | None:
        """The node whose result ``site`` is, if it is a float32 tensor that comes once."""
        plain = isinstance(site, Output) and site.granularity == "element" and site.batch_axis == 0
        if not plain or site.steps != 1 or site.part != 0 or len(site.value_shape) == 0:
            return None
        nodes = self.graph.places.get(site.place, ())
        return nodes[0] if len(nodes) == 1 and nodes[0] in self._float_results else None

    def _chunk_ranges(self) -> Iterator[range]:
        for start in range(0, self.runner.inputs, self._inputs_per_chunk):
            yield range(start, min(start + self._inputs_per_chunk, self.runner.inputs))

    def _chunk(self, inputs: range, recorder: Recorder) -> Chunk:
        if inputs not in self._chunks:
            if len(self._chunks) >= self._kept_chunks:
                self._chunks.popitem()  # the last; the first ones are met again first
            _give_back_freed_memory()
            expected = recorder.golden.outputs[inputs.start : inputs.stop]
            chunk = Chunk(self.graph, self.runner, self._batching, inputs, expected, self._folded)
            self._adopt(chunk)
            self._allowances[inputs] = self._allowance(chunk)
            self._chunks[inputs] = chunk
        return self._chunks[inputs]

    @cached_property
    def _whole(self) -> Suffix:
        return Suffix(self.graph, self.stages, self.graph.arguments, self.gains)

    @cached_property
    def _rounding(self) -> Rounding:
        rows = torch.linspace(0, self.runner.inputs - 1, self._sampled_inputs).long()
        return Rounding(self.graph, self.operators, [tensor[rows.to(tensor.device)] for tensor in self.runner.tensors])

    def _allowance(self, chunk: Chunk) -> Allowance:
        """How far rounding may move outputs: as analysed, or 64 times what is measured where that is more.

        Measured is the largest difference of two evaluations of the fault-free run in different orders of summation.
        It speaks also for calls that the analysis leaves out.
        """
        golden = chunk.values[self.graph.output]
        least = float(golden.abs().max()) * float(np.finfo(np.float32).eps)
        apart = (chunk.rows(self.graph.output) - golden).abs().max()
        return self._rounding.allowance(chunk).at_least(_ROUNDING_FACTOR * max(least, float(apart)))

    def _adopt(self, chunk: Chunk) -> None:
        """Give a chunk the fault-free results in the bits of runs from the middle."""
        parts: dict[int, list[Tensor]] = {}
        for first in range(0, len(chunk.inputs), _PROBED_TOGETHER):
            row = torch.arange(first, min(first + _PROBED_TOGETHER, len(chunk.inputs)))
            values = {index: chunk.values[index][row] for index in self.graph.arguments}
            pairs = Pairs(chunk, row, row, values, torch.zeros(len(row), dtype=torch.float64))
            for index, value in self._whole.fault_free(pairs).items():
                if index in self.graph.tensors:
                    parts.setdefault(index, []).append(value)
        chunk.adopt({index: torch.cat(parts.pop(index)) for index in list(parts)})

    def _suffix(self, start: int) -> Suffix:
        """The way of a deviation of all of the result of node ``start``."""
        if start not in self._suffixes:
            self._suffixes[start] = Suffix(self.graph, self.stages, [start], self.gains)
        return self._suffixes[start]

    def narrow(self, start: int) -> Narrow:
        """The way of a deviation that begins in one channel of the result of node ``start``."""
        if start not in self._narrow:
            self._narrow[start] = Narrow(self.graph, self.operators, self.stages, self.gains, start)
        return self._narrow[start]


def _hand_in_resting(space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
    """Record the pairs in which no fault acts: of trials without any, and of single intermittent faults at rest."""
    rows, inputs = np.diff(faults.bounds), np.arange(recorder.golden.inputs)
    activity = np.zeros(faults.trials)
    single = np.flatnonzero(rows == 1)
    activity[single] = np.array([region.activity for region in space.regions])[faults.region[faults.bounds[single]]]
    for trial in np.flatnonzero((rows <= 1) & (activity < 1)).tolist():
        resting = np.flatnonzero(recorder.awaited[trial] & ~faults.acts(activity[trial], inputs, trial))
        recorder.identical(np.full(len(resting), trial), resting)


def _hit_a_value_twice(space: FaultSpace, faults: Faults) -> NDArray[np.bool_]:
    """The trials in which two faults meet in one word of a site: bool [trials]."""
    names = {name: number for number, name in enumerate(dict.fromkeys(region.site for region in space.regions))}
    site = np.array([names[region.site] for region in space.regions])[faults.region]
    order = np.lexsort((faults.element, site, faults.trial))
    sorted_ = [column[order] for column in (faults.trial, site, faults.element)]
    found = np.zeros(faults.trials, bool)
    found[sorted_[0][1:][np.all([column[1:] == column[:-1] for column in sorted_], axis=0)]] = True
    return found


def _give_back_freed_memory() -> None:
    """Hand freed memory back to the system, where the C library keeps it (glibc); it would add up over chunks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _stored(model: nn.Module) -> Iterator[Tensor]:
    """The stored and computed tensors of every module, shared ones as often as they are shared."""
    for module in model.modules():
        for name in {*module._parameters, *module._buffers, "weight"}:
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor):
                yield tensor
