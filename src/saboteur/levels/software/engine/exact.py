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
from saboteur.levels.software.engine.bounds import Gains, gains
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.graph import Graph, Untraceable
from saboteur.levels.software.engine.groups import BiasGroup, Group, NormGroup, SignalGroup, StoredGroup, WeightGroup
from saboteur.levels.software.engine.narrow import Narrow
from saboteur.levels.software.engine.operators import Mixing, Operator, Scaling, understood
from saboteur.levels.software.engine.overflow import LARGEST, LEAST_SCALED, SCALE
from saboteur.levels.software.engine.replay import Replay
from saboteur.levels.software.engine.screening import Prediction
from saboteur.levels.software.engine.suffix import Deviation, Pairs, Stage, Suffix, stages
from saboteur.levels.software.memory import Memory, Plain
from saboteur.levels.software.runner import Runner
from saboteur.levels.software.signals import Output
from saboteur.levels.software.site import Site
from saboteur.outcomes.recorder import Recorder

log = logging.getLogger(__name__)

_BYTES_TOGETHER = 2**22
"""Pairs travel together whose largest result fits into this; more would no longer fit the CPU's caches."""

_PROBED_TOGETHER = 64

_DEVIATIONS_TOGETHER = 2**22
"""Values of first deviations that are worked out together."""

_SORTED_TOGETHER = 2**18
"""Pairs that are sorted together by bounds."""

_OF_NORM = ("weight", "bias", "running_mean", "running_var")

_ROUNDING_FACTOR = 64.0
_MOST_GROWTH = 1e6
"""Deviations beyond this multiple of the fault-free result are not trusted where what follows is not homogeneous."""

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
        tensors = [tensor[probe.to(tensor.device)] for tensor in runner.tensors]
        values = self.graph.check(tensors)
        self._batching = Batching(self.graph, runner)
        self._places = self.graph.places(tensors, values)
        self.operators: dict[int, Operator] = understood(self.graph, values)
        self.graph.absorbing = absorbing(self.graph, self.operators, values)
        self.gains: Gains = gains(self.graph, self.operators, values)
        self.stages: list[Stage] = stages(self.graph, self.operators, values)
        self._folded = {op.layer for op in self.operators.values() if isinstance(op, Mixing) and op.layer != op.index}
        results = {
            index: value
            for index, value in values.items()
            if isinstance(value, Tensor) and self.graph.varies[index] and self.graph.leads_to_output[index]
        }
        self._float_results = {i for i, value in results.items() if value.dtype == torch.float32 and value.dim() > 1}
        size = sum(value.nbytes for value in results.values())
        per_input = 2 * size / _PROBES
        batches = int(self._memory / (per_input * runner.batch_size))
        if batches < 1:
            raise Untraceable(f"the results for one batch take {per_input * runner.batch_size / 2**20:.0f} MB")
        self._inputs_per_chunk = min(batches, 16) * runner.batch_size
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
        return {place for place, node in self._places.items() if node in nodes}

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
        groups, others = self._sorted(sites, space, faults)
        for trial in others.tolist():
            asked = np.flatnonzero(recorder.awaited[trial])
            injection.inject_one(self.runner, sites, space, faults, trial, asked, recorder)
        for inputs in self._chunk_ranges():
            try:
                self._on_chunk(inputs, groups, recorder, prediction)
            except Untraceable as error:
                self._give_up(str(error))
                for group in groups:
                    self._plainly(sites, space, faults, group, inputs, recorder)

    def _on_chunk(self, inputs: range, groups: list[Group], recorder: Recorder, prediction: Prediction | None) -> None:
        chunk = self._chunk(inputs, recorder)
        replay = Replay(chunk, recorder)
        for group in groups:
            _Block(self, chunk, self._errors[inputs], group, recorder, replay, prediction).run()
        replay.run()

    def _plainly(
        self,
        sites: Mapping[str, Site],
        space: FaultSpace,
        faults: Faults,
        group: Group,
        inputs: range,
        recorder: Recorder,
    ) -> None:
        for trial in group.trial.tolist():
            asked = inputs.start + np.flatnonzero(recorder.awaited[trial, inputs.start : inputs.stop])
            injection.inject_one(self.runner, sites, space, faults, trial, asked, recorder)

    def _sorted(
        self, sites: Mapping[str, Site], space: FaultSpace, faults: Faults
    ) -> tuple[list[Group], NDArray[np.int64]]:
        """The trials that have a fast way, in groups, and the others."""
        single = np.flatnonzero(np.diff(faults.bounds) == 1)
        row = faults.bounds[single]
        groups: list[Group] = []
        others = [np.flatnonzero(np.diff(faults.bounds) != 1)]
        for number in np.unique(faults.region[row]):
            region = space.regions[number]
            chosen = np.flatnonzero(faults.region[row] == number)
            rows = row[chosen]
            columns = single[chosen], faults.element[rows], faults.variant[rows], faults.drawn[rows]
            group = self._group(sites[region.site], region, *columns) if region.activity == 1 else None
            if group is None:
                others.append(single[chosen])
            else:
                groups.append(group)
        return groups, np.sort(np.concatenate(others))

    def _group(self, site: Site, region: Region, trial: NDArray, *columns: NDArray) -> Group | None:
        """The faults of ``columns`` (element, variant, drawn) at ``site``, if they have a fast way."""
        if isinstance(site, Memory):
            kind, op = self._layer_of(site)
            return None if kind is None else kind.of(op, site, region.model, trial, *columns)
        start = self._result_of(site)
        return None if start is None else SignalGroup(start, site, region.model, trial, *columns)

    def _start_of(self, site: Site) -> int | None:
        """The node at which faults in ``site`` begin, if they have a fast way."""
        if not isinstance(site, Memory):
            return self._result_of(site)
        kind, op = self._layer_of(site)
        return None if kind is None else op.layer if isinstance(op, Mixing) else op.index

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
        node = self._places.get(site.place)
        return node if node in self._float_results else None

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
            self._errors[inputs] = self._rounding_error(chunk)
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
        least = float(golden.abs().max()) * float(np.finfo(np.float32).eps)
        apart = (chunk.rows(self.graph.output) - golden).abs().max()
        return _ROUNDING_FACTOR * max(least, float(apart))

    def _adopt(self, chunk: Chunk) -> None:
        """Give a chunk the fault-free results in the bits of runs from the middle."""
        parts: dict[int, list[Tensor]] = {}
        for first in range(0, len(chunk.inputs), _PROBED_TOGETHER):
            row = torch.arange(first, min(first + _PROBED_TOGETHER, len(chunk.inputs)))
            values = {index: chunk.values[index][row] for index in self.graph.arguments}
            pairs = Pairs(chunk, row, row, values, torch.zeros(len(row), dtype=torch.float64))
            for index, value in self._whole.fault_free(pairs).items():
                parts.setdefault(index, []).append(value)
        chunk.adopt({index: torch.cat(parts.pop(index)) for index in list(parts)})

    @cached_property
    def place_of(self) -> dict[int, str]:
        """The places of nodes, where they have one."""
        return {node: place for place, node in self._places.items()}

    def narrow(self, start: int) -> Narrow:
        """The way of a deviation that begins in one channel of the result of node ``start``."""
        if start not in self._narrow:
            self._narrow[start] = Narrow(self.graph, self.operators, self.stages, self.gains, start)
        return self._narrow[start]


def _give_back_freed_memory() -> None:
    """Hand freed memory back to the system, where the C library keeps it (glibc); it would add up over chunks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class _Block:
    """The trials of one group on one chunk of the inputs."""

    def __init__(
        self,
        engine: ExactEngine,
        chunk: Chunk,
        error: float,
        group: Group,
        recorder: Recorder,
        replay: Replay,
        prediction: Prediction | None,
    ):
        self.engine = engine
        self.chunk = chunk
        self.error = error
        self.replay = replay
        self.group = group
        self.recorder = recorder
        self.prediction = prediction
        self.radius = torch.from_numpy(recorder.radius[chunk.inputs.start : chunk.inputs.stop])
        self.narrow = engine.narrow(group.start)
        self.most_growth = math.inf if self.narrow.homogeneous else _MOST_GROWTH
        self.proved: list[tuple[Tensor, Tensor, Tensor]] = []

    def run(self) -> None:
        """Record every awaited pair."""
        inputs, trials = self.chunk.inputs, max(1, _SORTED_TOGETHER // len(self.chunk.inputs))
        for first in range(0, len(self.group.trial), trials):
            chosen = self.group.trial[first : first + trials]
            number, row = np.nonzero(self.recorder.awaited[chosen, inputs.start : inputs.stop])
            number, row = self._acting(number + first, row)
            if self.radius.any():
                number, row = self._not_bounded_at_once(number, row)
                some = max(1, _DEVIATIONS_TOGETHER // self.group.positions(self.chunk))
                for place in range(0, len(number), some):
                    self._simulate(number[place : place + some], row[place : place + some])
            else:
                self.replay.add(self.group, number, row)
            self._hand_in_bounded()

    def _inputs(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        return row + self.chunk.inputs.start

    def _acting(self, number: NDArray, row: NDArray) -> tuple[NDArray, NDArray]:
        """Let go of pairs in which the fault changes no bit."""
        acts = self.group.acts(self.chunk, number, row)
        self.recorder.identical(self.group.trial[number[~acts]], self._inputs(row[~acts]))
        return number[acts], row[acts]

    def _not_bounded_at_once(self, number: NDArray, row: NDArray) -> tuple[NDArray, NDArray]:
        """Let go of pairs by (size of the first deviation) · (gain of its channel)."""
        gain = self.engine.gains.of_channels(self.group.start).numpy()[self.group.channel(number)]
        with np.errstate(all="ignore"):
            deviation = self.group.size(self.chunk, number, row) * gain + self.error
        proved = deviation < self.radius.numpy()[row]
        self.recorder.bounded(self.group.trial[number[proved]], self._inputs(row[proved]), deviation[proved])
        number, row = number[~proved], row[~proved]
        by_channel = np.argsort(self.group.channel(number), kind="stable")
        return number[by_channel], row[by_channel]

    def _simulate(self, number: NDArray, row: NDArray) -> None:
        chunk = self.chunk
        together = max(1, _BYTES_TOGETHER // self.narrow.largest_result(chunk))
        pairs = Pairs(
            chunk, torch.from_numpy(number), torch.from_numpy(row), {}, torch.zeros(len(row), dtype=torch.float64)
        )
        source = self.group.source(chunk, number, row)
        deviations = self.narrow.deviations(chunk, pairs.row, source)
        measured = self.narrow.measured(chunk, pairs.row, source, deviations)
        pairs.size = torch.stack(list(measured.sizes.values())).amax(0)
        kept = self._decide(pairs, measured)
        if kept is not None:
            source = source.take(kept)
            deviations = {index: value[kept] for index, value in deviations.items()}
        scaled, radius = pairs.growth > LEAST_SCALED, self.radius if self.prediction is None else None
        for chosen, scale in ((~scaled, 1.0), (scaled, SCALE)):
            numbers = torch.nonzero(chosen).flatten()
            for first in range(0, len(numbers), together):
                some = numbers[first : first + together]
                part = Pairs(
                    chunk, pairs.trial[some], pairs.row[some], {}, pairs.growth[some], radius, scale, pairs.size[some]
                )
                moved = {index: value[some] / scale for index, value in deviations.items()}
                outputs = self.narrow.run(part, source.take(some), moved, self._decide)
                if len(part):
                    self._judge(part, outputs * scale)

    def _decide(self, pairs: Pairs, deviation: Deviation) -> Tensor | None:
        """Let go of pairs whose outputs provably, or predictably, move too little, and of those beyond trust."""
        pairs.growth = torch.maximum(pairs.growth, deviation.relative)
        bound = deviation.bound + self.error * (1 + pairs.growth)
        proved = bound < self.radius[pairs.row]
        lost = ~proved & ~((deviation.largest < LARGEST) & (pairs.growth < self.most_growth))
        kept = ~(proved | lost)
        if self.prediction is not None:
            kept &= ~self._screened(pairs, deviation, kept)
        if bool(kept.all()):
            return None
        self.proved.append((pairs.trial[proved], pairs.row[proved], bound[proved]))
        self._put_off(pairs, lost)
        pairs.keep(kept)
        return kept

    def _screened(self, pairs: Pairs, deviation: Deviation, open_: Tensor) -> Tensor:
        """Hand in which of the pairs ``open_`` are predicted to move too little, but for those under audit."""
        screened = torch.zeros(len(pairs), dtype=torch.bool)
        if not deviation.sizes:
            return screened
        places = [self.engine.place_of.get(node) for node in deviation.sizes]
        chosen = torch.nonzero(open_).flatten().numpy()
        trial, inputs = self.group.trial[pairs.trial.numpy()[chosen]], self._inputs(pairs.row.numpy()[chosen])
        sizes = [size.numpy()[chosen] for size in deviation.sizes.values()]
        decided = self.prediction.hand_in(self.recorder, trial, inputs, places, sizes, deviation.extent)
        screened[chosen[decided]] = True
        return screened

    def _hand_in_bounded(self) -> None:
        if self.proved:
            number, row, bound = (torch.cat(part).numpy() for part in zip(*self.proved, strict=True))
            self.recorder.bounded(self.group.trial[number], self._inputs(row), bound)
            self.proved.clear()

    def _put_off(self, pairs: Pairs, chosen: Tensor) -> None:
        if bool(chosen.any()):
            self.replay.add(self.group, pairs.trial[chosen].numpy(), pairs.row[chosen].numpy())

    def _judge(self, pairs: Pairs, outputs: Tensor) -> None:
        """Record outputs that rounding cannot bring to another verdict."""
        outputs = outputs.cpu()
        finite = torch.isfinite(outputs.reshape(len(outputs), -1)).all(dim=1)
        inputs = self._inputs(pairs.row.numpy())
        slack = np.zeros(len(outputs))
        some = finite.numpy()
        slack[some] = self.recorder.slack(inputs[some], outputs.numpy()[some])
        trusted = torch.from_numpy(slack) > self.error * (1 + pairs.growth)
        chosen = trusted.numpy()
        self.recorder.outputs(self.group.trial[pairs.trial.numpy()[chosen]], inputs[chosen], outputs.numpy()[chosen])
        self._put_off(pairs, ~trusted)


def _stored(model: nn.Module) -> Iterator[Tensor]:
    """The stored and computed tensors of every module, shared ones as often as they are shared."""
    for module in model.modules():
        for name in {*module._parameters, *module._buffers, "weight"}:
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor):
                yield tensor
