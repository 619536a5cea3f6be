"""Trials whose faults may sit anywhere: in several tensors and results, in whole channels, in recurrent states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software.corruption import Hits
from saboteur.levels.software.engine.batching import in_order
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.graph import Graph, Node, Values
from saboteur.levels.software.engine.groups import Group
from saboteur.levels.software.flow import Event, named_modules
from saboteur.levels.software.injection import acting_together, present
from saboteur.levels.software.memory import Memory
from saboteur.levels.software.runner import Edit, Runner
from saboteur.levels.software.signals import Output, Signal
from saboteur.levels.software.site import Site
from saboteur.levels.software.states import State


@dataclass(frozen=True, eq=False)
class Scattered(Group):
    """Trials whose faults have all acted once one result is there, on which alone all that follows depends.

    Every call from the first faulted one to that result is the plain engine's.

    Attributes:
        runner: puts faults into results.
        sites: the fault sites, by name.
        nodes: the nodes at which faults in each site act.
        space: where the faults come from.
        faults: all trials.
        start: the node of the result.
        trial: int64 [n].
    """

    runner: Runner
    sites: Mapping[str, Site]
    nodes: Mapping[str, tuple[int, ...]]
    space: FaultSpace
    faults: Faults
    start: int
    trial: NDArray[np.int64]

    def faulted(self, chunk: Chunk, number: NDArray[np.int64], row: NDArray[np.int64]) -> Tensor:
        """Run each trial up to the result."""
        trials = ((int(self.trial[one]), row[number == one]) for one in np.unique(number))
        return torch.cat([self._of_trial(chunk, trial, rows) for trial, rows in trials])

    def _of_trial(self, chunk: Chunk, trial: int, row: NDArray[np.int64]) -> Tensor:
        hits, inputs = Hits.of_trial(self.space, self.faults, trial), row + chunk.inputs.start
        results, order = [], []
        for acting, chosen in acting_together(self.space, self.faults, trial, hits, inputs):
            results.append(self._with(chunk, acting, row[chosen]))
            order.append(np.flatnonzero(chosen))
        return in_order(results, order)

    def _with(self, chunk: Chunk, hits: Hits, row: NDArray[np.int64]) -> Tensor:
        """The result for the inputs ``row`` [n] with the faults ``hits``."""
        if not len(hits):
            return chunk.result(self.start)[torch.from_numpy(row)]
        with present(self.sites, hits) as edits:
            way = _Way(self, chunk, hits, edits)
            return chunk.batching.run(
                row,
                lambda filled: way.run(torch.from_numpy(row[filled])),
                at_their_places=any(isinstance(signal, State) for signal, _ in edits),
            )


class _Way:
    """From the fault-free results to the one that follows all faults of a trial.

    Where a faulted result follows no other one, it is the fault-free one with its faults put in; other faulted calls,
    and all that follows, are made.
    """

    def __init__(self, group: Scattered, chunk: Chunk, hits: Hits, edits: Sequence[Edit]):
        self._group, self._chunk = group, chunk
        self._edits: dict[int, list[Edit]] = defaultdict(list)
        for signal, there in edits:
            for node in group.nodes[signal.name]:
                self._edits[node].append((signal, there))
        stored = {hits.regions[number].site for number in hits.region} - {signal.name for signal, _ in edits}
        calls = {node for name in stored for node in group.nodes[name]}
        disturbed = chunk.graph.reached_from({*calls, *self._edits})
        for node, there in self._edits.items():
            follows = any(source in disturbed for source in chunk.graph.nodes[node].inputs)
            place, _ = chunk.graph.place_of.get(node, ("", 0))
            own = all(isinstance(signal, Output) and signal.place == place for signal, _ in there)
            if follows or node not in chunk.values or not own:
                calls.add(node)
        self._calls = calls
        self._given = [node for node in self._edits if node not in calls]

    def run(self, rows: Tensor) -> Tensor:
        """The result for a batch of inputs ``rows``, counted from the chunk's first."""
        changed = {}
        for node in self._given:
            place, reached = self._chunk.graph.place_of[node]
            module = self._chunk.graph.nodes[node].module or self._chunk.graph.model
            event = Event(place, reached, module, (), {}, self._chunk.result(node)[rows])
            changed[node] = self._group.runner.edited(event, self._edits[node])
        return self._chunk.again(self._group.start, rows, changed, self._calls, self._call)

    def _call(self, node: Node, values: Values) -> Any:
        graph = self._chunk.graph
        if node.index not in self._edits:
            return graph.call(node, values)
        place, _ = graph.place_of.get(node.index, ("", 0))
        edits, runner = self._edits[node.index], self._group.runner
        with runner.tapped([(signal, there) for signal, there in edits if signal.place != place]):
            event = graph.event(node, values)
        return runner.edited(event, [(signal, there) for signal, there in edits if signal.place == place])


def nodes_of(graph: Graph, site: Site) -> tuple[int, ...]:
    """The nodes at which faults in ``site`` act on the output; none where they cannot be told.

    A stored tensor acts where it is read as such, and in the call of each module that holds it, or holds one that does;
    a fault in what is computed inside a call acts there.
    """
    if isinstance(site, Signal):
        nodes = graph.places.get(site.place)
        if nodes is None:
            return _call_around(graph, site)
        calls = len(site.lengths) if isinstance(site, State) else site.steps
        return nodes if len(nodes) == calls and all(graph.leads_to_output[node] for node in nodes) else ()
    assert isinstance(site, Memory)
    holders = {module for module in graph.model.modules() if _holds(module, site)}
    nodes = (node for node in graph.nodes if graph.leads_to_output[node.index])
    return tuple(node.index for node in nodes if _reads(graph, node, site, holders))


def _call_around(graph: Graph, site: Signal) -> tuple[int, ...]:
    """The node inside of whose call the place of ``site`` is reached, if there is one such call."""
    inner = named_modules(graph.model).get(site.place.rpartition("/")[0] if "#" in site.place else site.place)
    around = [
        node.index for node in graph.nodes if node.module not in (None, inner) and inner in {*node.module.modules()}
    ]
    return tuple(around) if len(around) == 1 and graph.leads_to_output[around[0]] else ()


def _holds(module: nn.Module, site: Memory) -> bool:
    if module is site.module:
        return True
    kept = (*module._parameters.values(), *module._buffers.values())
    stored = getattr(site.module, site.tensor, None)
    return isinstance(stored, Tensor) and any(tensor is stored for tensor in kept)


def _reads(graph: Graph, node: Node, site: Memory, holders: Collection[nn.Module]) -> bool:
    if node.module is not None:
        return any(module in holders for module in node.module.modules())
    return node.call.op == "get_attr" and graph.call(node, {}) is getattr(site.module, site.tensor, None)
