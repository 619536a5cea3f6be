"""Sorts trials by how they begin: in one channel, with a few weights that change on the way, or anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.faults.space import Faults, FaultSpace, Region
from saboteur.levels.software.engine.bounds import Gains, gains
from saboteur.levels.software.engine.changes import BIAS, Changes
from saboteur.levels.software.engine.graph import Graph, Values, same
from saboteur.levels.software.engine.groups import (
    BiasGroup,
    Group,
    NarrowGroup,
    NormGroup,
    SignalGroup,
    StoredGroup,
    WeightGroup,
)
from saboteur.levels.software.engine.operators import Mixing, Operator, Scaling
from saboteur.levels.software.engine.scattered import Scattered, nodes_of
from saboteur.levels.software.engine.several import Several
from saboteur.levels.software.engine.stages import LayerStage, Stage
from saboteur.levels.software.memory import Memory, Plain
from saboteur.levels.software.runner import Batch, Runner
from saboteur.levels.software.signals import Output
from saboteur.levels.software.site import Site

_MOST_CHANGES = 16
"""Trials with more faults share no batches: each change costs as much as a channel of a layer."""

_OF_NORM = ("weight", "bias", "running_mean", "running_var")


class Sorter:
    """Tells how trials are run fast.

    Args:
        runner: runs the model.
        graph: what it computes.
        operators: those that are understood.
        stages: the graph in steps.
        to_output: gains from every node to the output.
        values: the result of every call for a few inputs.
        measurable: the nodes whose results are float32 tensors with the inputs along the first axis.
    """

    def __init__(
        self,
        runner: Runner,
        graph: Graph,
        operators: Mapping[int, Operator],
        stages: Sequence[Stage],
        to_output: Gains,
        values: Values,
        measurable: set[int],
    ):
        self._runner = runner
        self._graph = graph
        self._operators = operators
        self._to_output = to_output
        self._values = values
        self._measurable = measurable
        self._stage_of = {stage.mixing: stage for stage in stages if isinstance(stage, LayerStage)}
        self._layers = sorted(self._stage_of, key=lambda op: op.layer)
        ends = {*graph.arguments, *(stage.index for stage in stages), graph.output}
        self._ends = sorted(end for end in ends & graph.tensors if graph.varies[end] and graph.leads_to_output[end])
        self._end_of_span: dict[tuple[int, int], int] = {}
        self._nodes: dict[str, tuple[int, ...]] = {}
        self._found_layers: dict[str, tuple[type[StoredGroup], Operator] | None] = {}

    def sorted(
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
        several, left = self._several(sites, space, faults, np.sort(np.concatenate(scattered)))
        anywhere, others = self._scattered(sites, space, faults, left)
        return [*groups, *several, *anywhere], others

    def start_of(self, site: Site) -> int | None:
        """The node at which faults in ``site`` begin, if they change one channel at first."""
        if isinstance(site, Output):
            return self._result_of(site)
        found = self._layer_of(site) if isinstance(site, Memory) else None
        if found is None:
            return None
        _, op = found
        return op.layer if isinstance(op, Mixing) else op.index

    def _narrow_group(self, site: Site, region: Region, trial: NDArray, *columns: NDArray) -> NarrowGroup | None:
        """The faults of ``columns`` (element, variant, drawn) at ``site``, if they change one channel at first."""
        if isinstance(site, Output):
            start = self._result_of(site)
            return None if start is None else SignalGroup(start, site, region.model, trial, *columns)
        if not isinstance(site, Memory):
            return None
        found = self._layer_of(site)
        if found is None:
            return None
        kind, op = found
        return kind.of(op, site, region.model, trial, *columns)

    def _several(
        self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults, trials: NDArray[np.int64]
    ) -> tuple[list[Group], NDArray[np.int64]]:
        """The ``trials`` with a few faults, all in weights and biases, by the first and last layer, and the others."""
        if not len(trials):
            return [], trials
        layer_of_region = np.array([self._changed_layer(sites[region.site], region) for region in space.regions])
        fit = (np.diff(faults.bounds) <= _MOST_CHANGES) & ~_hit_a_value_twice(space, faults)
        fit[faults.trial[layer_of_region[faults.region] < 0]] = False
        chosen = trials[fit[trials]]
        if not len(chosen):
            return [], trials
        changes, differs = self._changes(sites, space, faults.take(chosen), layer_of_region)
        starts = np.searchsorted(changes.number, np.arange(len(chosen) + 1))
        first, last = changes.layer[starts[:-1]], changes.layer[starts[1:] - 1]
        nodes = {region.site: self._nodes_of(sites[region.site]) for region in space.regions}
        groups: list[Group] = []
        for one, other in np.unique(np.stack([first, last], axis=1), axis=0).tolist():
            members = np.flatnonzero((first == one) & (last == other))
            some = changes.of_trials(members)
            groups.append(
                Several(
                    self._runner,
                    sites,
                    nodes,
                    space,
                    faults,
                    start=self._end(self._layers[one].layer, self._layers[other].layer),
                    trial=chosen[members],
                    first=self._stage_of[self._layers[one]],
                    changes=some,
                    differs=differs[members],
                    gain=some.gains(self._to_output, self._between),
                )
            )
        return groups, trials[~fit[trials]]

    def _changed_layer(self, site: Site, region: Region) -> int:
        """The place of the layer among :attr:`_layers` of which a fault changes one weight or bias, or −1."""
        found = self._layer_of(site) if isinstance(site, Memory) and region.activity == 1 else None
        if found is None or found[0] not in (WeightGroup, BiasGroup):
            return -1
        return next((place for place, op in enumerate(self._layers) if op.layer == found[1].index), -1)

    def _changes(
        self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults, layer_of_region: NDArray[np.int64]
    ) -> tuple[Changes, NDArray[np.bool_]]:
        """What ``faults`` change, and in which of their trials a bit changes."""
        out, channel, tap = np.zeros((3, len(faults.trial)), np.int64)
        change, differs = np.zeros(len(faults.trial), np.float32), np.zeros(faults.trials, bool)
        for number in np.unique(faults.region).tolist():
            here, region = np.flatnonzero(faults.region == number), space.regions[number]
            columns = faults.trial[here], faults.element[here], faults.variant[here], faults.drawn[here]
            group = self._narrow_group(sites[region.site], region, *columns)
            assert isinstance(group, WeightGroup | BiasGroup)
            change[here] = group.change
            differs[faults.trial[here[group.differs]]] = True
            if isinstance(group, WeightGroup):
                out[here], channel[here], tap[here] = group.place
            else:
                out[here], channel[here] = group.element, BIAS
        layer = layer_of_region[faults.region]
        by_layer = np.lexsort((layer, faults.trial))
        number, layer, out, channel, tap = (part[by_layer] for part in (faults.trial, layer, out, channel, tap))
        return Changes(self._layers, number, layer, out, channel, tap, change[by_layer]), differs

    @cached_property
    def _between(self) -> NDArray[np.float64]:
        """Gains from the result of each layer to the input of each later one: [layers, layers]."""
        found = np.zeros((len(self._layers), len(self._layers)))
        for place, op in enumerate(self._layers):
            on_the_way = gains(self._graph, self._operators, self._values, op.inputs[0], tight=False).whole
            found[:, place] = [on_the_way.get(before.layer, 0.0) for before in self._layers]
        return found

    def _scattered(
        self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults, trials: NDArray[np.int64]
    ) -> tuple[list[Group], NDArray[np.int64]]:
        """The ``trials`` whose faults can all be placed in the graph, by where all have acted, and the others."""
        if not len(trials):
            return [], trials
        nodes = {region.site: self._nodes_of(sites[region.site]) for region in space.regions}
        of_region = (nodes[region.site] for region in space.regions)
        spans = np.array([(min(found), max(found)) if found else (-1, -1) for found in of_region])
        first, last = np.full(faults.trials, len(self._graph.nodes)), np.full(faults.trials, -1)
        np.minimum.at(first, faults.trial, spans[faults.region, 0])
        np.maximum.at(last, faults.trial, spans[faults.region, 1])
        placed = trials[first[trials] >= 0]
        end = np.array([self._end(*span) for span in np.stack([first, last], axis=1)[placed].tolist()], np.int64)
        groups: list[Group] = [
            Scattered(self._runner, sites, nodes, space, faults, start, placed[end == start])
            for start in np.unique(end).tolist()
        ]
        return groups, trials[first[trials] < 0]

    def _nodes_of(self, site: Site) -> tuple[int, ...]:
        """The nodes at which faults in ``site`` act; none where they cannot be told."""
        if site.name not in self._nodes:
            known = not isinstance(site, Memory) or self._follows(site)
            self._nodes[site.name] = nodes_of(self._graph, site) if known else ()
        return self._nodes[site.name]

    def _follows(self, site: Memory) -> bool:
        """Whether the graph gives the model's outputs also when every word of ``site`` is another one.

        It does not where tracing has read the tensor once and for all.
        """
        rows = np.arange(len(self._values[self._graph.arguments[0]])) % self._runner.inputs
        tensors = [tensor[torch.from_numpy(rows).to(tensor.device)] for tensor in self._runner.tensors]
        elements, words = np.arange(math.prod(site.shape)), site.words()
        with site.overwritten(elements, words ^ np.uint64(2**site.format.bits - 1)):
            try:
                expected = torch.from_numpy(self._runner.run(Batch(rows, np.arange(len(rows)))))
                found = self._graph.run(tensors)[self._graph.output]
            except Exception:  # whatever a model does with such values
                return False
        return same(found.cpu(), expected)

    def _end(self, first: int, last: int) -> int:
        """The first node that ends a stage and on which alone all depends that follows the nodes first .. last."""
        if (first, last) not in self._end_of_span:
            graph = self._graph
            deviating = graph.reached_from(node for node in range(first, last + 1) if graph.leads_to_output[node])
            reads = {
                node: max((c for c in graph.nodes[node].consumers if graph.leads_to_output[c]), default=node)
                for node in deviating
            }
            self._end_of_span[first, last] = next(
                end for end in self._ends if end >= last and all(reads[node] <= end for node in deviating if node < end)
            )
        return self._end_of_span[first, last]

    def _layer_of(self, site: Memory) -> tuple[type[StoredGroup], Operator] | None:
        """How faults in a stored tensor are run, and its layer, if that is called once and shares it with no other."""
        if site.name not in self._found_layers:
            self._found_layers[site.name] = self._find_layer(site)
        return self._found_layers[site.name]

    def _find_layer(self, site: Memory) -> tuple[type[StoredGroup], Operator] | None:
        calls = self._graph.calls_of(site.module)
        op = self._operators.get(calls[0].index) if len(calls) == 1 else None
        tensor = getattr(site.module, site.tensor, None)
        if op is None or sum(tensor is other for other in _stored(self._runner.model)) != 1:
            return None
        if isinstance(op, Scaling) or (isinstance(op, Mixing) and op.layer != op.index):
            inputs = (op.layer,) if isinstance(op, Mixing) else op.inputs
            kept = isinstance(site, Plain) and site.tensor in _OF_NORM and op.scale.shape == site.shape
            return (NormGroup, Scaling(op.index, inputs, op.scale, op.scale)) if kept else None
        if isinstance(op, Mixing) and site.tensor == "weight" and op.weight.shape == site.shape:
            return WeightGroup, op
        return (BiasGroup, op) if isinstance(op, Mixing) and isinstance(site, Plain) and site.tensor == "bias" else None

    def _result_of(self, site: Output) -> int | None:
        """The node whose result ``site`` is, if it is a float32 tensor that comes once."""
        of_values = site.granularity == "element" and len(site.value_shape) > 0
        if not of_values or site.batch_axis != 0 or site.steps != 1 or site.part != 0:
            return None
        nodes = self._graph.places.get(site.place, ())
        return nodes[0] if len(nodes) == 1 and nodes[0] in self._measurable else None


def _hit_a_value_twice(space: FaultSpace, faults: Faults) -> NDArray[np.bool_]:
    """The trials in which two faults meet in one word of a site: bool [trials]."""
    names = {name: number for number, name in enumerate(dict.fromkeys(region.site for region in space.regions))}
    site = np.array([names[region.site] for region in space.regions])[faults.region]
    order = np.lexsort((faults.element, site, faults.trial))
    sorted_ = [column[order] for column in (faults.trial, site, faults.element)]
    found = np.zeros(faults.trials, bool)
    found[sorted_[0][1:][np.all([column[1:] == column[:-1] for column in sorted_], axis=0)]] = True
    return found


def _stored(model: nn.Module) -> Iterator[Tensor]:
    """The stored and computed tensors of every module, shared ones as often as they are shared."""
    for module in model.modules():
        for name in {*module._parameters, *module._buffers, "weight"}:
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor):
                yield tensor
