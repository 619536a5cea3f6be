"""The exact engine: the plain engine's outcomes, pair by pair, from a fraction of its work.

A trial starts at its faulted layer. What its fault does to one channel is worked out first; pairs whose outputs
provably cannot move far enough to change a verdict are let go of at once, the others travel on together with
those of other trials, and are tested again with their measured deviation wherever all that follows depends on
one result. An output within rounding of a threshold is computed once more, by the plain engine's own calls.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software import injection
from saboteur.levels.software.emulation import tensor_of
from saboteur.levels.software.engine.bounds import Gains, gains
from saboteur.levels.software.engine.golden import Chunk, replay
from saboteur.levels.software.engine.graph import Graph, Untraceable
from saboteur.levels.software.engine.narrow import Narrow
from saboteur.levels.software.engine.operators import Mixing, Operator, understood
from saboteur.levels.software.engine.suffix import Pairs, Stage, Suffix, stages
from saboteur.levels.software.memory import Memory
from saboteur.levels.software.runner import Runner
from saboteur.levels.software.site import Site
from saboteur.outcomes.recorder import Recorder

log = logging.getLogger(__name__)

_TOGETHER = 128
"""Pairs in one pass; more no longer fit the CPU's caches."""

_REPLAYED_BATCHES = 8

_ROUNDING_FACTOR = 64.0
_MOST_GROWTH = 1e6
_PROBES = 4


@dataclass
class _Weights:
    """The trials whose only fault is in a weight of one layer.

    Attributes:
        op: the layer.
        site: the weight tensor.
        trial: int64 [n].
        element: int64 [n], the weight.
        words: uint64 [n], the faulted weight.
        change: float32 [n], how much the weight changes.
        acts: bool [n], whether it changes at all.
    """

    op: Mixing
    site: Memory
    trial: NDArray[np.int64]
    element: NDArray[np.int64]
    words: NDArray[np.uint64]
    change: NDArray[np.float32]
    acts: NDArray[np.bool_]


class ExactEngine:
    """Injects faults into a model as the plain engine does, faster.

    Args:
        runner: runs the model.
        memory_bytes: how much the kept fault-free results may take.

    Attributes:
        reason: why everything runs the plain way; ``None`` if it does not.
    """

    def __init__(self, runner: Runner, memory_bytes: int):
        self.runner = runner
        self.reason: str | None = None
        self._memory = memory_bytes
        self._chunks: dict[range, Chunk] = {}
        self._errors: dict[range, float] = {}
        self._narrow: dict[int, Narrow] = {}
        try:
            with runner.prepared():
                self._open()
        except Untraceable as error:
            self._give_up(str(error))

    def _open(self) -> None:
        runner = self.runner
        if runner.rounding:
            raise Untraceable("outputs of its modules are rounded to a number format")
        if runner.inputs_interact:
            raise Untraceable("the inputs of a batch change each other's outputs")
        self.graph = Graph(runner.model, runner.output)
        probe = torch.arange(_PROBES) % runner.inputs
        values = self.graph.check([tensor[probe.to(tensor.device)] for tensor in runner.tensors])
        self.operators: dict[int, Operator] = understood(self.graph, values)
        self.gains: Gains = gains(self.graph, self.operators, values)
        self.stages: list[Stage] = stages(self.graph, self.operators)
        self._folded = {op.layer for op in self.operators.values() if isinstance(op, Mixing) and op.layer != op.index}
        size = sum(
            value.nbytes
            for index, value in values.items()
            if isinstance(value, Tensor) and self.graph.varies[index] and index not in self._folded
        )
        per_input = 2 * size / _PROBES
        batches = int(self._memory / (per_input * runner.batch_size))
        if batches < 1:
            raise Untraceable(f"the results for one batch take {per_input * runner.batch_size / 2**20:.0f} MB")
        self._inputs_per_chunk = min(batches, 16) * runner.batch_size
        self._kept_chunks = max(1, int(self._memory / (per_input * self._inputs_per_chunk)))

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        log.warning("exact engine: %s; every trial runs the plain way", reason)

    def inject(self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        """Run every trial of ``faults``, as :func:`saboteur.levels.software.injection.inject`."""
        if self.reason is not None:
            injection.inject(self.runner, sites, space, faults, recorder)
            return
        groups, others = self._sorted(sites, space, faults)
        for trial in others.tolist():
            asked = np.flatnonzero(recorder.awaited[trial])
            injection.inject_one(self.runner, sites, space, faults, trial, asked, recorder)
        for inputs in self._chunk_ranges():
            try:
                chunk = self._chunk(inputs, recorder)
            except Untraceable as error:
                self._give_up(str(error))
                chunk = None
            for group in groups:
                if chunk is None:
                    self._plainly(sites, space, faults, group, inputs, recorder)
                else:
                    _Block(self, chunk, self._errors[inputs], group, recorder).run()

    def _plainly(
        self,
        sites: Mapping[str, Site],
        space: FaultSpace,
        faults: Faults,
        group: _Weights,
        inputs: range,
        recorder: Recorder,
    ) -> None:
        for trial in group.trial.tolist():
            asked = inputs.start + np.flatnonzero(recorder.awaited[trial, inputs.start : inputs.stop])
            injection.inject_one(self.runner, sites, space, faults, trial, asked, recorder)

    def _sorted(
        self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults
    ) -> tuple[list[_Weights], NDArray[np.int64]]:
        """The trials that have a fast way, by layer, and the others."""
        counts = np.diff(faults.bounds)
        row = faults.bounds[:-1][counts == 1]
        trial = np.flatnonzero(counts == 1)
        groups: list[_Weights] = []
        fast = np.zeros(faults.trials, bool)
        for number in np.unique(faults.region[row]):
            region = space.regions[number]
            site = sites[region.site]
            op = self._layer_of(site)
            if op is None or region.activity < 1:
                continue
            chosen = faults.region[row] == number
            rows = row[chosen]
            element = faults.element[rows]
            before = site.words(element)
            fmt = site.format_at(element)
            after = region.model.corrupt(before, faults.variant[rows], faults.drawn[rows], fmt)
            like = site.values().cpu()
            with np.errstate(all="ignore"):
                change = (tensor_of(after, fmt, like).numpy() - tensor_of(before, fmt, like).numpy()).astype(np.float32)
            groups.append(_Weights(op, site, trial[chosen], element, after, change, before != after))
            fast[trial[chosen]] = True
        return groups, np.flatnonzero(~fast)

    def _layer_of(self, site: Site) -> Mixing | None:
        """The layer whose weight ``site`` is, if its faults have a fast way."""
        if not isinstance(site, Memory) or site.tensor != "weight":
            return None
        calls = self.graph.calls_of(site.module)
        if len(calls) != 1:
            return None
        for op in self.operators.values():
            if isinstance(op, Mixing) and op.layer == op.index == calls[0].index and op.weight.shape == site.shape:
                shared = sum(site.module.weight is other for other in _weights(self.runner.model))
                return op if shared == 1 else None
        return None

    def _chunk_ranges(self) -> Iterator[range]:
        for start in range(0, self.runner.inputs, self._inputs_per_chunk):
            yield range(start, min(start + self._inputs_per_chunk, self.runner.inputs))

    def _chunk(self, inputs: range, recorder: Recorder) -> Chunk:
        if inputs not in self._chunks:
            expected = recorder.golden.outputs[inputs.start : inputs.stop]
            chunk = Chunk(self.graph, self.runner, inputs, expected, self._folded)
            self._errors[inputs] = self._rounding_error(chunk)
            if len(self._chunks) >= self._kept_chunks:
                return chunk
            self._chunks[inputs] = chunk
        return self._chunks[inputs]

    @cached_property
    def _whole(self) -> Suffix:
        return Suffix(self.graph, self.stages, self.graph.arguments, self.gains)

    def _rounding_error(self, chunk: Chunk) -> float:
        """How far rounding may move an output of a run with deviations of the fault-free size.

        Two evaluations of the fault-free run in different orders of summation are compared; their largest
        difference is taken times 64.
        """
        golden = chunk.values[self.graph.output]
        worst = float(golden.abs().max()) * float(np.finfo(np.float32).eps)
        for first in range(0, len(chunk.inputs), _TOGETHER):
            row = torch.arange(first, min(first + _TOGETHER, len(chunk.inputs)))
            values = {index: chunk.values[index][row] for index in self.graph.arguments}
            pairs = Pairs(chunk, row, row, values, torch.zeros(len(row), dtype=torch.float64))
            outputs = self._whole.run(pairs, lambda *_: None)
            worst = max(worst, float((outputs - golden[row]).abs().max()))
        return _ROUNDING_FACTOR * worst

    def narrow(self, layer: int) -> Narrow:
        """What happens to one channel of the layer at node ``layer`` before it reaches all channels."""
        if layer not in self._narrow:
            self._narrow[layer] = Narrow(self.graph, self.operators, self.stages, self.gains, layer)
        return self._narrow[layer]


class _Block:
    """The trials of one layer on one chunk of the inputs."""

    def __init__(self, engine: ExactEngine, chunk: Chunk, error: float, group: _Weights, recorder: Recorder):
        self.engine = engine
        self.chunk = chunk
        self.error = error
        self.group = group
        self.recorder = recorder
        self.radius = torch.from_numpy(recorder.radius[chunk.inputs.start : chunk.inputs.stop])
        self.narrow = engine.narrow(group.op.layer)
        self.undecided: list[tuple[NDArray, NDArray]] = []

    def run(self) -> None:
        """Record every pair."""
        number, row = self._pairs()
        number, row = self._without_effect(number, row)
        if self.radius.any():
            number, row = self._bounded_at_once(number, row)
            for first in range(0, len(number), _TOGETHER):
                part = slice(first, first + _TOGETHER)
                self._simulate(number[part], row[part])
        else:
            self.undecided.append((number, row))
        self._replay()

    def _pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All awaited pairs: the number of the trial in the group, and the input counted from the chunk's first."""
        inputs = self.chunk.inputs
        return np.nonzero(self.recorder.awaited[self.group.trial, inputs.start : inputs.stop])

    def _inputs(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        return row + self.chunk.inputs.start

    def _without_effect(self, number: NDArray, row: NDArray) -> tuple[NDArray, NDArray]:
        acts = self.group.acts[number]
        self.recorder.identical(self.group.trial[number[~acts]], self._inputs(row[~acts]))
        return number[acts], row[acts]

    def _bounded_at_once(self, number: NDArray, row: NDArray) -> tuple[NDArray, NDArray]:
        """Let go of pairs by |Δw| · ‖what the weight reads‖ · (gain of the channel)."""
        op = self.group.op
        out, channel, _ = self._place(number)
        norms = self.chunk.plane_norms(op.inputs[0]).numpy()[row, channel]
        gain = self.engine.gains.of_channels(op.layer, len(op.weight)).numpy()[out]
        with np.errstate(all="ignore"):
            deviation = np.abs(self.group.change[number].astype(np.float64)) * norms * gain + self.error
        return self._let_go(number, row, deviation)

    def _let_go(self, number: NDArray, row: NDArray, deviation: NDArray) -> tuple[NDArray, NDArray]:
        proved = deviation < self.radius.numpy()[row]
        self.recorder.bounded(self.group.trial[number[proved]], self._inputs(row[proved]), deviation[proved])
        return number[~proved], row[~proved]

    def _place(self, number: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Output channel, input channel and tap of the weight of each trial."""
        shape = self.group.op.weight.shape
        taps = int(np.prod(shape[2:]))
        rest, tap = np.divmod(self.group.element[number], taps)
        out, channel = np.divmod(rest, shape[1])
        return out, channel, tap

    def _simulate(self, number: NDArray, row: NDArray) -> None:
        chunk = self.chunk
        out, channel, tap = (torch.from_numpy(part) for part in self._place(number))
        source = chunk.values[self.group.op.inputs[0]]
        rows = torch.from_numpy(row)
        change = torch.from_numpy(self.group.change[number])
        reads = self.narrow.reads(source[rows, channel], tap)
        pairs = Pairs(chunk, torch.from_numpy(number), rows, {}, torch.zeros(len(rows), dtype=torch.float64))
        outputs = self.narrow.run(pairs, out, change[:, None] * reads, self._decide)
        if len(pairs):
            self._judge(pairs, outputs)

    def _decide(self, pairs: Pairs, deviation: Tensor, relative: Tensor) -> Tensor | None:
        """Let go of pairs whose outputs provably move by less than ``deviation``, and of those beyond trust."""
        pairs.growth = torch.maximum(pairs.growth, relative)
        bound = deviation + self.error * (1 + pairs.growth)
        proved = bound < self.radius[pairs.row]
        lost = ~proved & ~(pairs.growth < _MOST_GROWTH)
        number, row = pairs.trial[proved].numpy(), pairs.row[proved].numpy()
        self.recorder.bounded(self.group.trial[number], self._inputs(row), bound[proved].numpy())
        self._put_off(pairs, lost)
        if not bool((proved | lost).any()):
            return None
        pairs.keep(~(proved | lost))
        return ~(proved | lost)

    def _put_off(self, pairs: Pairs, chosen: Tensor) -> None:
        if bool(chosen.any()):
            self.undecided.append((pairs.trial[chosen].numpy(), pairs.row[chosen].numpy()))

    def _judge(self, pairs: Pairs, outputs: Tensor) -> None:
        """Record outputs that rounding cannot bring to another verdict."""
        finite = torch.isfinite(outputs.reshape(len(outputs), -1)).all(dim=1)
        inputs = self._inputs(pairs.row.numpy())
        slack = np.zeros(len(outputs))
        some = finite.numpy()
        slack[some] = self.recorder.slack(inputs[some], outputs.numpy()[some])
        trusted = torch.from_numpy(slack) > self.error * (1 + pairs.growth)
        chosen = trusted.numpy()
        self.recorder.outputs(self.group.trial[pairs.trial.numpy()[chosen]], inputs[chosen], outputs.numpy()[chosen])
        self._put_off(pairs, ~trusted)

    def _replay(self) -> None:
        """Run the undecided pairs by the plain engine's calls, each input at its place in a batch."""
        if not self.undecided:
            return
        number, row = (np.concatenate(part) for part in zip(*self.undecided, strict=True))
        order = np.argsort(number, kind="stable")
        together = _REPLAYED_BATCHES * self.engine.runner.batch_size
        for first in range(0, len(order), together):
            part = order[first : first + together]
            self._replay_some(number[part], row[part])

    def _replay_some(self, number: NDArray, row: NDArray) -> None:
        graph, size, layer = self.engine.graph, self.engine.runner.batch_size, self.group.op.layer
        results = torch.cat([self._layer_result(one, row[number == one]) for one in np.unique(number)])
        for batch in _by_place(row, size):
            place = row[batch] % size
            filled = np.full(size, batch[0])
            filled[place] = batch
            changed = {layer: results[torch.from_numpy(filled)]}
            outputs = replay(graph, self.chunk, torch.from_numpy(row[filled]), changed)[torch.from_numpy(place)]
            self.recorder.outputs(self.group.trial[number[batch]], self._inputs(row[batch]), outputs.cpu().numpy())

    def _layer_result(self, number: int, row: NDArray) -> Tensor:
        """What the faulted layer gives for the inputs ``row``, in the plain engine's bits."""
        group, size = self.group, self.engine.runner.batch_size
        node = self.engine.graph.nodes[group.op.layer]
        source = self.chunk.values[node.inputs[0]]
        results: Tensor | None = None
        with group.site.overwritten(group.element[number : number + 1], group.words[number : number + 1]):
            for batch in _by_place(row, size):
                rows = np.zeros(size, np.int64) + row[batch[0]]
                rows[row[batch] % size] = row[batch]
                result = self.engine.graph.call(node, {node.inputs[0]: source[torch.from_numpy(rows)]})
                if results is None:
                    results = result.new_empty(len(row), *result.shape[1:])
                results[torch.from_numpy(batch)] = result[torch.from_numpy(row[batch] % size)]
        return results


def _by_place(row: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Part pairs so that each place of a batch is taken once: indices into ``row``."""
    place = row % batch_size
    order = np.argsort(place, kind="stable")
    turn = np.empty(len(row), np.int64)
    turn[order] = np.arange(len(row)) - np.searchsorted(place[order], place[order])
    for number in range(turn.max(initial=-1) + 1):
        yield np.flatnonzero(turn == number)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    """The weight of every module that has one."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            yield weight
