"""The exact engine: the plain engine's outcomes, pair by pair, from a fraction of its work.

A trial starts at its faulted layer. What its fault does to one channel is worked out first; pairs whose outputs
provably cannot move far enough to change a verdict are let go of at once, the others travel on together with
those of other trials, and are tested again with their measured deviation wherever all that follows depends on
one result. An output within rounding of a threshold is computed once more, by the plain engine's own calls.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software import injection
from saboteur.levels.software.engine.absorption import absorbing
from saboteur.levels.software.engine.batching import Batching
from saboteur.levels.software.engine.blocks import NarrowBlock, PlainBlock, Shared, WholeBlock
from saboteur.levels.software.engine.bounds import Gains, gains
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.graph import Graph, Untraceable
from saboteur.levels.software.engine.groups import Group, NarrowGroup
from saboteur.levels.software.engine.narrow import Narrow
from saboteur.levels.software.engine.operators import Mixing, Operator, understood
from saboteur.levels.software.engine.replay import Replay
from saboteur.levels.software.engine.rounding import Allowance, Rounding, sample_size
from saboteur.levels.software.engine.screening import Prediction
from saboteur.levels.software.engine.several import Several, SeveralBlock
from saboteur.levels.software.engine.sorting import Sorter
from saboteur.levels.software.engine.stages import Stage, stages
from saboteur.levels.software.engine.suffix import Pairs, Suffix
from saboteur.levels.software.runner import Runner
from saboteur.levels.software.site import Site
from saboteur.outcomes.recorder import Recorder

log = logging.getLogger(__name__)

_PROBED_TOGETHER = 64

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
        values = self.graph.check(tensors, every=False)
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
        self._measurable = {i for i, value in results.items() if value.dtype == torch.float32 and value.dim() > 1}
        self._sorter = Sorter(runner, self.graph, self.operators, self.stages, self.gains, values, self._measurable)
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
        starts = {start for site in sites if (start := self._sorter.start_of(site)) is not None}
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
        groups, others = self._sorter.sorted(sites, space, faults)
        for trial in others.tolist():
            asked = np.flatnonzero(recorder.awaited[trial])
            injection.inject_one(self.runner, sites, space, faults, trial, asked, recorder)
        for inputs in self._chunk_ranges() if groups else ():
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
        return whole or group.start not in self._measurable

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


def _give_back_freed_memory() -> None:
    """Hand freed memory back to the system, where the C library keeps it (glibc); it would add up over chunks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
