"""Decides the pairs of a group of trials on a chunk of the inputs: proved, predicted, run to the end, or put off."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saboteur.levels.software.engine.bounds import Gains
from saboteur.levels.software.engine.changes import Changes
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.groups import Group, NarrowGroup
from saboteur.levels.software.engine.narrow import Narrow
from saboteur.levels.software.engine.overflow import LARGEST, LEAST_SCALED, SCALE
from saboteur.levels.software.engine.replay import Replay, same_bits
from saboteur.levels.software.engine.rounding import Allowance
from saboteur.levels.software.engine.screening import Prediction
from saboteur.levels.software.engine.suffix import Deviation, Pairs, Suffix, norms
from saboteur.outcomes.recorder import Recorder

_BYTES_TOGETHER = 2**22
"""Pairs travel together whose largest result fits into this; more would no longer fit the CPU's caches."""

_DEVIATIONS_TOGETHER = 2**22
"""Values of first deviations that are worked out together."""

_SORTED_TOGETHER = 2**18
"""Pairs that are sorted together by bounds."""

_MOST_GROWTH = 1e6
"""Deviations beyond this multiple of the fault-free result are not trusted where what follows is not homogeneous."""

AGroup = TypeVar("AGroup", bound=Group)


@dataclass(frozen=True)
class Shared:
    """What all blocks of a chunk of the inputs share.

    Attributes:
        chunk: the fault-free results.
        allowance: how far rounding may move outputs.
        gains: from every node to the output.
        recorder: takes the pairs.
        replay: takes the pairs that are put off, to be run the plain engine's way.
    """

    chunk: Chunk
    allowance: Allowance
    gains: Gains
    recorder: Recorder
    replay: Replay


class Block(ABC, Generic[AGroup]):
    """The trials of one group on one chunk of the inputs.

    Args:
        shared: what all blocks of the chunk share.
        group: the trials.
        most_growth: deviations beyond this multiple of the fault-free result are put off.
    """

    def __init__(self, shared: Shared, group: AGroup, most_growth: float):
        self.chunk = shared.chunk
        self.allowance = shared.allowance
        self.gains = shared.gains
        self.recorder = shared.recorder
        self.replay = shared.replay
        self.group = group
        self.most_growth = most_growth
        inputs = self.chunk.inputs
        self.radius = torch.from_numpy(self.recorder.radius[inputs.start : inputs.stop])
        self.proved: list[tuple[NDArray, NDArray, NDArray]] = []

    def run(self) -> None:
        """Record every awaited pair, or put it off."""
        inputs, trials = self.chunk.inputs, max(1, _SORTED_TOGETHER // len(self.chunk.inputs))
        for first in range(0, len(self.group.trial), trials):
            chosen = self.group.trial[first : first + trials]
            number, row = np.nonzero(self.recorder.awaited[chosen, inputs.start : inputs.stop])
            number, row = self._acting(number + first, row)
            if self.radius.any():
                number, row = self.open(number, row)
                some = max(1, _DEVIATIONS_TOGETHER // self.positions())
                for place in range(0, len(number), some):
                    self.simulate(number[place : place + some], row[place : place + some])
            else:
                self.replay.add(self.group, number, row, may_settle=True)
            self._hand_in_bounded()

    def open(self, number: NDArray, row: NDArray) -> tuple[NDArray, NDArray]:
        """The pairs that may move far enough, as far as that is known before they are run; the others are handed in."""
        return number, row

    def not_proved(self, number: NDArray, row: NDArray, deviation: NDArray) -> tuple[NDArray, NDArray]:
        """The pairs whose proved ``deviation`` [pairs] of outputs is not below the radius; the others are handed in."""
        proved = deviation < self.radius.numpy()[row]
        self.recorder.bounded(self.group.trial[number[proved]], self.inputs_of(row[proved]), deviation[proved])
        return number[~proved], row[~proved]

    @abstractmethod
    def positions(self) -> int:
        """How many values of the first deviation each pair has."""

    @abstractmethod
    def simulate(self, number: NDArray, row: NDArray) -> None:
        """Run pairs from their first deviation on; those of a trial come one after the other."""

    def inputs_of(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        """The inputs that are ``row`` counted from the chunk's first."""
        return row + self.chunk.inputs.start

    def _acting(self, number: NDArray, row: NDArray) -> tuple[NDArray, NDArray]:
        """Let go of pairs in which no fault changes a bit."""
        acts = self.group.acts(self.chunk, number, row)
        self.recorder.identical(self.group.trial[number[~acts]], self.inputs_of(row[~acts]))
        return number[acts], row[acts]

    def decide(self, pairs: Pairs, deviation: Deviation) -> Tensor | None:
        """Let go of pairs whose outputs provably, or predictably, move too little, and of those beyond trust."""
        pairs.growth = torch.maximum(pairs.growth, deviation.relative)
        row, growth = pairs.row.numpy(), pairs.growth.numpy()
        bound = deviation.bound.numpy() + self.allowance.of(pairs.row, pairs.growth).numpy()
        proved = bound < self.radius.numpy()[row]
        lost = ~proved & ~((deviation.largest.numpy() < LARGEST) & (growth < self.most_growth))
        open_ = ~(proved | lost)
        kept = open_ & ~self.predicted(pairs, deviation, open_)
        if kept.all():
            return None
        self.proved.append((pairs.trial.numpy()[proved], row[proved], bound[proved]))
        self._put_off(pairs, lost)
        chosen = torch.from_numpy(kept)
        pairs.keep(chosen)
        return chosen

    def predicted(self, pairs: Pairs, deviation: Deviation, open_: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Hand in which of the pairs ``open_`` are predicted to move too little: bool [pairs], by default none."""
        return np.zeros(len(pairs), bool)

    def _hand_in_bounded(self) -> None:
        if self.proved:
            number, row, bound = (np.concatenate(part) for part in zip(*self.proved, strict=True))
            self.recorder.bounded(self.group.trial[number], self.inputs_of(row), bound)
            self.proved.clear()

    def _put_off(self, pairs: Pairs, chosen: NDArray[np.bool_]) -> None:
        if chosen.any():
            self.replay.add(self.group, pairs.trial.numpy()[chosen], pairs.row.numpy()[chosen])

    def judge(self, pairs: Pairs, outputs: Tensor) -> None:
        """Record outputs that rounding cannot bring to another verdict."""
        outputs = outputs.cpu()
        finite = torch.isfinite(outputs.reshape(len(outputs), -1)).all(dim=1)
        inputs = self.inputs_of(pairs.row.numpy())
        slack = np.zeros(len(outputs))
        some = finite.numpy()
        slack[some] = self.recorder.slack(inputs[some], outputs.numpy()[some])
        chosen = slack > self.allowance.of(pairs.row, pairs.growth).numpy()
        self.recorder.outputs(self.group.trial[pairs.trial.numpy()[chosen]], inputs[chosen], outputs.numpy()[chosen])
        self._put_off(pairs, ~chosen)


class NarrowBlock(Block[NarrowGroup]):
    """Trials whose first deviation is in one channel.

    Args:
        shared: what all blocks of the chunk share.
        group: the trials.
        narrow: the way from where they start to the outputs.
        places: the places of nodes that are reached once.
        prediction: decides pairs by how far they deviate on the way; without it, only what is proved is decided.
    """

    def __init__(
        self,
        shared: Shared,
        group: NarrowGroup,
        narrow: Narrow,
        places: Mapping[int, str],
        prediction: Prediction | None,
    ):
        super().__init__(shared, group, math.inf if narrow.homogeneous else _MOST_GROWTH)
        self._narrow = narrow
        self._places = places
        self._prediction = prediction

    def open(self, number: NDArray, row: NDArray) -> tuple[NDArray, NDArray]:
        """Those with (size of the first deviation) · (gain of its channel) beyond the radius."""
        gain = self.gains.of_channels(self.group.start).numpy()[self.group.channel(number)]
        size, inputs = self.group.size(self.chunk, number, row), torch.from_numpy(row)
        growth = torch.from_numpy(size) / self.chunk.whole_norms(self.group.start)[inputs]
        with np.errstate(all="ignore"):
            deviation = size * gain + self.allowance.of(inputs, growth).numpy()
        number, row = self.not_proved(number, row, deviation)
        by_channel = np.argsort(self.group.channel(number), kind="stable")
        return number[by_channel], row[by_channel]

    def positions(self) -> int:
        """As the group says."""
        return self.group.positions(self.chunk)

    def simulate(self, number: NDArray, row: NDArray) -> None:
        """Work out what happens to the channel, then go on with all channels."""
        chunk = self.chunk
        together = max(1, _BYTES_TOGETHER // self._narrow.largest_result(chunk))
        pairs = Pairs(
            chunk, torch.from_numpy(number), torch.from_numpy(row), {}, torch.zeros(len(row), dtype=torch.float64)
        )
        source = self.group.source(chunk, number, row)
        deviations = self._narrow.deviations(chunk, pairs.row, source)
        measured = self._narrow.measured(chunk, pairs.row, source, deviations)
        pairs.size = torch.stack(list(measured.sizes.values())).amax(0)
        kept = self.decide(pairs, measured)
        if kept is not None:
            source = source.take(kept)
            deviations = {index: value[kept] for index, value in deviations.items()}
        scaled, radius = pairs.growth > LEAST_SCALED, self.radius if self._prediction is None else None
        for chosen, scale in ((~scaled, 1.0), (scaled, SCALE)):
            numbers = torch.nonzero(chosen).flatten()
            for first in range(0, len(numbers), together):
                some = numbers[first : first + together]
                part = Pairs(
                    chunk, pairs.trial[some], pairs.row[some], {}, pairs.growth[some], radius, scale, pairs.size[some]
                )
                moved = {index: value[some] / scale for index, value in deviations.items()}
                outputs = self._narrow.run(part, source.take(some), moved, self.decide)
                if len(part):
                    self.judge(part, outputs * scale)

    def predicted(self, pairs: Pairs, deviation: Deviation, open_: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Hand in which of the pairs ``open_`` are predicted to move too little, but for those under audit."""
        screened = np.zeros(len(pairs), bool)
        if self._prediction is None or not deviation.sizes:
            return screened
        places = [self._places.get(node) for node in deviation.sizes]
        chosen = np.flatnonzero(open_)
        trial, inputs = self.group.trial[pairs.trial.numpy()[chosen]], self.inputs_of(pairs.row.numpy()[chosen])
        sizes = [size.numpy()[chosen] for size in deviation.sizes.values()]
        decided = self._prediction.hand_in(self.recorder, trial, inputs, places, sizes, deviation.extent)
        screened[chosen[decided]] = True
        return screened


class PlainBlock(Block[Group]):
    """Trials of which the deviation cannot be measured, as of integers or rounded values: run as the plain engine does.

    Args:
        shared: what all blocks of the chunk share.
        group: the trials.
    """

    def __init__(self, shared: Shared, group: Group):
        super().__init__(shared, group, 0.0)

    def positions(self) -> int:
        """No deviation is worked out."""
        return 1

    def simulate(self, number: NDArray, row: NDArray) -> None:
        """Put all off."""
        self.replay.add(self.group, number, row, may_settle=True)


class WholeBlock(Block[AGroup]):
    """Trials whose first deviation may be all of a result.

    Args:
        shared: what all blocks of the chunk share.
        group: the trials.
        suffix: the way from that result to the outputs.
    """

    def __init__(self, shared: Shared, group: AGroup, suffix: Suffix):
        super().__init__(shared, group, LEAST_SCALED if suffix.homogeneous else _MOST_GROWTH)
        self._suffix = suffix
        (self._start,) = suffix.starts

    def positions(self) -> int:
        """All values of the result."""
        return self.chunk.result(self._start)[0].numel()

    def simulate(self, number: NDArray, row: NDArray) -> None:
        """Run the faulted calls as the plain engine does, then go on."""
        values = self.group.faulted(self.chunk, number, row)
        fault_free = self.chunk.result(self._start)[torch.from_numpy(row)]
        same = same_bits(values, fault_free).numpy()
        self.recorder.identical(self.group.trial[number[same]], self.inputs_of(row[same]))
        size = norms((values - fault_free).flatten(1))
        left = ~same
        self.go_on(number[left], row[left], values[torch.from_numpy(left)], size[left])

    def go_on(
        self, number: NDArray, row: NDArray, values: Tensor, size: Tensor, changes: Changes | None = None
    ) -> None:
        """Run pairs from the deviating result on.

        Args:
            number: int64 [pairs], as in :meth:`simulate`.
            row: int64 [pairs].
            values: [pairs, ...], the result.
            size: float64 [pairs], the Euclidean norm of its deviation.
            changes: weights and biases of layers that follow.
        """
        suffix, start = self._suffix, self._start
        together = max(1, _BYTES_TOGETHER // suffix.largest_result(self.chunk))
        rows, growth = torch.from_numpy(row), torch.zeros_like(size)
        pairs = Pairs(self.chunk, torch.from_numpy(number), rows, {start: values}, growth, self.radius, 1.0, size)
        final = not suffix.changed_stages(changes)
        bound = size * self.gains.whole[start] if final else torch.full_like(size, math.inf)
        relative = size / self.chunk.whole_norms(start)[rows]
        self.decide(pairs, Deviation(bound, relative, {start: size}, "whole", torch.zeros_like(size)))
        for first in range(0, len(pairs), together):
            part = pairs.slice(first, first + together)
            outputs = suffix.run(part, self.decide, changes)
            if len(part):
                self.judge(part, outputs)
