"""The screened tier: tells clear cases from those that must be run, and is audited.

The screen predicts how far a fault moves the outputs of an image, from slopes that are measured once for all
faults (:mod:`~saboteur.levels.software.engine.screening_slopes`). It *decides* that a pair (trial, input) is not
SDC under any criterion, and finite, where

- every faulted word is a finite number,
- the predicted deviation fits twice (``HEADROOM``) into the radius of the input, within which no criterion changes,
  and
- the change at its source is smaller than what a channel of that place normally holds.

Everything else is left to the exact engine, which measures on the way by how much the results of a pair deviate, and
asks again: with the measured deviation in place of the change at its source, the same rule decides many more
(:class:`Prediction`). What is decided is predicted, not proved: a random sample of it, drawn by :func:`audit_sample`
from the trials' own keys, is run exactly as well, and the recorder counts how often the screen was wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saboteur.faults import draws
from saboteur.faults.space import Faults, FaultSpace, Region, expanded
from saboteur.levels.software.emulation import words_of
from saboteur.levels.software.engine.screening_slopes import Slopemeter, Slopes, is_affine, tap_of
from saboteur.levels.software.engine.suffix import Extent
from saboteur.levels.software.flow import Event, named_modules, tapped
from saboteur.levels.software.memory import Memory, Plain
from saboteur.levels.software.runner import Runner, input_place
from saboteur.levels.software.signals import Output
from saboteur.levels.software.site import Site
from saboteur.outcomes.golden import OutputKind
from saboteur.outcomes.recorder import Recorder

_IMAGES_AT_ONCE = 16
_PAIRS_AT_ONCE = 2**21
_AUDIT_LANE = 103


@dataclass(frozen=True)
class _Rows:
    """The single faults of one region of which the word may change, in the order of the faults.

    Attributes:
        region: the region.
        site: its site.
        trial: int64 [n], non-decreasing.
        element: int64 [n].
        variant: int64 [n].
        drawn: uint64 [n].
        change: float32 [n], by how much a stored word moves; infinite or NaN where the faulted word is not finite.
            ``None`` for signals, which differ from input to input.
    """

    region: Region
    site: Memory | Output
    trial: NDArray[np.int64]
    element: NDArray[np.int64]
    variant: NDArray[np.int64]
    drawn: NDArray[np.uint64]
    change: NDArray[np.float32] | None

    def of_trials(self, first: int, last: int) -> _Rows:
        """The rows of the trials ``first`` .. ``last`` − 1."""
        rows = slice(*np.searchsorted(self.trial, [first, last]))
        change = None if self.change is None else self.change[rows]
        return replace(
            self,
            trial=self.trial[rows],
            element=self.element[rows],
            variant=self.variant[rows],
            drawn=self.drawn[rows],
            change=change,
        )


@dataclass(frozen=True)
class Prediction:
    """Decides pairs of a block of trials by deviations that are measured on the way to the outputs.

    Attributes:
        slopes: what is known of the places at which deviations are measured.
        radius: float64 [inputs], see :attr:`saboteur.outcomes.recorder.Recorder.radius`.
        eligible: bool [trials], the trials that can be screened.
        drawn: bool [trials, inputs], the pairs that are run even if they are decided.
    """

    slopes: Mapping[str, Slopes]
    radius: NDArray[np.float64]
    eligible: NDArray[np.bool_]
    drawn: NDArray[np.bool_]

    def hand_in(
        self,
        recorder: Recorder,
        trials: NDArray[np.int64],
        inputs: NDArray[np.int64],
        places: Sequence[str | None],
        sizes: Sequence[NDArray[np.float64]],
        extent: Extent,
    ) -> NDArray[np.bool_]:
        """Hand in what is decided of the pairs (trials [n], inputs [n]), but for a sample that is put under audit.

        Args:
            recorder: takes the decided pairs.
            trials: int64 [n].
            inputs: int64 [n].
            places: where all that follows reads the deviation; ``None`` where nothing is known of a place.
            sizes: for each place the norm of the deviation, float64 [n].
            extent: what of the places' results deviates.

        Returns:
            Which of the pairs were handed in: bool [n].
        """
        strain = np.zeros(len(trials), np.float32)
        with np.errstate(all="ignore"):
            for place, size in zip(places, sizes, strict=True):
                if place is not None and place in self.slopes:
                    strain += size * self._strains[place, extent][inputs]
                else:
                    strain[:] = np.inf
        decided = (strain < 1) & self.eligible[trials]
        return self.hand_in_decided(recorder, trials, inputs, decided)

    def hand_in_decided(
        self,
        recorder: Recorder,
        trials: NDArray[np.int64],
        inputs: NDArray[np.int64],
        decided: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Hand in the ``decided`` of the pairs as screened, but for those drawn, which are put under audit."""
        drawn = self.drawn[trials, inputs]
        audited, screened = decided & drawn, decided & ~drawn
        recorder.audit(trials[audited], inputs[audited])
        recorder.screened(trials[screened], inputs[screened])
        return screened

    @cached_property
    def _strains(self) -> dict[tuple[str, Extent], NDArray[np.float32]]:
        return {
            (place, extent): slopes.strain_on_the_way(extent, self.radius)
            for place, slopes in self.slopes.items()
            for extent in get_args(Extent)
        }


class Screen:
    """Decides pairs of a model in which a fault is too weak to matter.

    What it decides at first for a pair depends on the trial, the input, the model and the workload alone: not on the
    other trials, their order, or how much memory there is. What is decided on the way depends on measured deviations,
    of which the last bits may differ with the company in which a pair is run.

    Args:
        runner: runs the model.
        sites: the fault sites, by name.
        kind: what the outputs are. Probabilities are not screened: they flatten out where they are sure.
        memory_bytes: how much the kept slopes may take; what is not kept is measured again for each call.
        on_the_way: places at which deviations will be measured, each reached once.

    Attributes:
        unscreened: the sites that the screen leaves to the exact engine, each with the reason.
    """

    def __init__(
        self,
        runner: Runner,
        sites: Mapping[str, Site],
        kind: OutputKind,
        memory_bytes: int = 2**30,
        on_the_way: Collection[str] = (),
    ):
        self._runner = runner
        self._memory = memory_bytes
        self._kept: dict[range, dict[str, list[Slopes]]] = {}
        self._modules = named_modules(runner.model)
        self._holders = {name: self._holders_of(site) for name, site in sites.items() if isinstance(site, Memory)}
        self.unscreened: dict[str, str] = {}
        for name, site in sites.items():
            reason = self._refused(site, kind)
            if reason is not None:
                self.unscreened[name] = reason
        self._sites = {
            name: site
            for name, site in sites.items()
            if name not in self.unscreened and isinstance(site, Memory | Output)
        }
        self._on_the_way = set(on_the_way)
        self._meter = self._checked_meter()
        self._slopes_on_the_way: dict[str, Slopes] = {}

    def _holders_of(self, site: Memory) -> list[tuple[str, str]]:
        """The modules (by path) that hold the tensor of ``site``, with its name there."""
        tensor = site.module._parameters.get(site.tensor)
        return [
            (path, name)
            for path, module in self._modules.items()
            for name, other in module._parameters.items()
            if other is not None and other is tensor
        ]

    def _refused(self, site: Site, kind: OutputKind) -> str | None:
        if kind == "probabilities":
            return "probabilities flatten out, so that slopes say little; let the model return logits"
        if self._runner.rounding:
            return "outputs are rounded to a number format, which has no slope"
        if self._runner.inputs_interact:
            return "the inputs of a batch change each other's outputs"
        if isinstance(site, Memory):
            if type(site) is not Plain or site.component not in ("weight", "bias"):
                return "only stored weights and biases are screened"
            holders = self._holders[site.name]
            if not holders or not all(name in ("weight", "bias") for _, name in holders):
                return "only tensors called weight or bias are screened"
            if not all(is_affine(self._modules[path]) for path, _ in holders):
                return "only linear, convolution and batch-norm layers are screened"
            return None
        if not isinstance(site, Output) or site.granularity != "element" or site.part:
            return "only single values of outputs and inputs are screened"
        if site.steps > 1 or site.batch_axis:
            return "only places that are reached once, with the inputs along the first axis, are screened"
        return None

    def _checked_meter(self) -> Slopemeter | None:
        """A meter for the sites whose slopes can be relied on; the other sites become unscreened."""
        while self._sites:
            used = {place for site in self._sites.values() for place in self._used(site)} | self._on_the_way
            meter = Slopemeter(self._runner, self._layers(), used)
            try:
                with self._runner.prepared():
                    misfits = meter.misfits()
            except Exception as error:  # whatever a model does when it is differentiated
                misfits = dict.fromkeys(used, f"its slopes cannot be measured: {error}")
            if not misfits:
                return meter
            self._on_the_way -= set(misfits)
            for name, site in list(self._sites.items()):
                reason = next((misfits[place] for place in self._used(site) if place in misfits), None)
                if reason is not None:
                    self.unscreened[name] = reason
                    del self._sites[name]
        return None

    def _used(self, site: Memory | Output) -> list[str]:
        return [path for path, _ in self._holders[site.name]] if isinstance(site, Memory) else [site.place]

    def _layers(self) -> dict[str, set[str]]:
        layers: dict[str, set[str]] = {}
        for site in self._sites.values():
            for path, tensor in self._holders.get(site.name, ()):
                layers.setdefault(path, set()).add(tensor)
        return layers

    def decided(
        self,
        space: FaultSpace,
        faults: Faults,
        radius: NDArray[np.float64],
        inputs: NDArray[np.int64] | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The pairs that are decided not to be SDC: arrays (trials [n], inputs [n]), each pair once.

        Trials in which no stored word changes are not among them: that they act on nothing needs no prediction.

        Args:
            space: where the faults come from.
            faults: the trials.
            radius: [inputs], see :attr:`saboteur.outcomes.recorder.Recorder.radius`.
            inputs: [trials, inputs per trial], or ``None`` for all.
        """
        yield from self._decided(*self._rows(space, faults), radius, inputs)

    def _decided(
        self,
        groups: list[_Rows],
        eligible: NDArray[np.bool_],
        radius: NDArray[np.float64],
        inputs: NDArray[np.int64] | None,
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        if self._meter is None or not eligible.any():
            return
        asked = np.ones(self._runner.inputs, bool)
        if inputs is not None:
            asked = np.isin(np.arange(self._runner.inputs), inputs[eligible])
        size = self._runner.batch_size
        step = max(1, _PAIRS_AT_ONCE // size)
        for start in range(0, self._runner.inputs, size):
            batch = range(start, min(start + size, self._runner.inputs))
            if not asked[start : batch.stop].any():
                continue
            slopes = self._slopes(batch)
            values = self._values(batch, groups)
            for first in range(0, len(eligible), step):
                last = min(first + step, len(eligible))
                strain = np.zeros((last - first, len(batch)), np.float32)
                with np.errstate(all="ignore"):
                    for group in groups:
                        self._add_strain(strain, first, group.of_trials(first, last), slopes, values, radius[start:])
                chosen = (strain < 1) & eligible[first:last, None]
                if inputs is not None:
                    chosen &= _membership(inputs[first:last], batch)
                trial, place = np.nonzero(chosen)
                yield trial + first, place + start

    def screen(self, space: FaultSpace, faults: Faults, recorder: Recorder, audit_rate: float) -> Prediction:
        """Hand in what is decided as screened, but for a sample under audit; the rest is still awaited.

        Args:
            space: where the faults come from.
            faults: the trials.
            recorder: takes the decided pairs.
            audit_rate: the share of all pairs that is drawn for the audit (see :func:`audit_sample`).

        Returns:
            What decides more of the pairs while they are run.
        """
        trial, place = audit_sample(faults.key, recorder.inferences, audit_rate)
        drawn = np.zeros(recorder.awaited.shape, bool)
        drawn[trial, place if recorder.inputs is None else recorder.inputs[trial, place]] = True
        groups, eligible = self._rows(space, faults)
        prediction = Prediction(self._slopes_on_the_way, recorder.radius, eligible, drawn)
        for trial, place in self._decided(groups, eligible, recorder.radius, recorder.inputs):
            prediction.hand_in_decided(recorder, trial, place, np.ones(len(trial), bool))
        return prediction

    def _rows(self, space: FaultSpace, faults: Faults) -> tuple[list[_Rows], NDArray[np.bool_]]:
        """The single faults by region, and the trials that can be screened: [trials]."""
        groups = []
        changed, eligible = np.zeros(faults.trials, bool), ~self._hits_a_word_twice(space, faults)
        for number in np.unique(faults.region).tolist():
            region = space.regions[number]
            row = np.flatnonzero(faults.region == number)
            if region.site not in self._sites:
                eligible[faults.trial[row]] = False
                continue
            site, change = self._sites[region.site], None
            if isinstance(site, Memory):
                element = faults.element[row]
                before, fmt = site.words(element), site.format_at(element)
                after = region.model.corrupt(before, faults.variant[row], faults.drawn[row], fmt)
                other = after != before
                row, fmt = row[other], site.format_at(element[other])
                with np.errstate(all="ignore"):
                    change = np.abs(fmt.decode(after[other]) - fmt.decode(before[other])).astype(np.float32)
            changed[faults.trial[row]] = True
            hits = faults.trial[row], faults.element[row], faults.variant[row], faults.drawn[row]
            groups.append(_Rows(region, site, *hits, change))
        return groups, eligible & changed

    @staticmethod
    def _hits_a_word_twice(space: FaultSpace, faults: Faults) -> NDArray[np.bool_]:
        """The trials of which two faults hit the same word, one after the other."""
        names = {name: i for i, name in enumerate(space.sites)}
        site = np.array([names[region.site] for region in space.regions])[faults.region]
        order = np.lexsort((faults.element, site, faults.trial))
        columns = [column[order] for column in (faults.trial, site, faults.element)]
        again = np.all([column[1:] == column[:-1] for column in columns], axis=0)
        twice = np.zeros(faults.trials, bool)
        twice[columns[0][1:][again]] = True
        return twice

    def _slopes(self, batch: range) -> dict[str, list[Slopes]]:
        if batch in self._kept:
            return self._kept[batch]
        assert self._meter is not None  # with sites comes a meter
        parts = [
            self._meter.measure(range(start, min(start + _IMAGES_AT_ONCE, batch.stop)))
            for start in range(batch.start, batch.stop, _IMAGES_AT_ONCE)
        ]
        slopes = {
            place: [Slopes.joined(list(calls)) for calls in zip(*(part[place] for part in parts), strict=True)]
            for place in parts[0]
        }
        for place in self._on_the_way:
            (call,) = slopes[place]
            self._slopes_on_the_way.setdefault(place, Slopes.blank(self._runner.inputs, call.count))
            self._slopes_on_the_way[place].fill_in(batch, call)
        nbytes = sum(call.nbytes for calls in slopes.values() for call in calls)
        if nbytes * (len(self._kept) + 1) <= self._memory:
            self._kept[batch] = slopes
        return slopes

    def _values(self, batch: range, groups: list[_Rows]) -> dict[str, Tensor]:
        """The fault-free values [images, values] of each place at which a signal is hit."""
        wanted = {group.site.place for group in groups if isinstance(group.site, Output)}
        found: dict[str, Tensor] = {}
        for position, tensor in enumerate(self._runner.tensors):
            place = input_place(position, len(self._runner.tensors))
            if place in wanted:
                found[place] = tensor[batch.start : batch.stop].flatten(1)
        if wanted - set(found):
            inside = wanted - set(found)

            def keep(event: Event) -> object:
                tensor = event.tensor
                if event.place in inside and tensor is not None:
                    found[event.place] = tensor.flatten(1).clone()
                return event.output

            modules = {place: self._modules[place] for place in inside if place in self._modules}
            (whole,) = self._runner.batches(np.arange(batch.start, batch.stop))
            with tapped(self._runner.model, keep, modules, functions=len(modules) < len(inside)):
                self._runner.run(whole)
            for place in inside:
                found[place] = found[place][torch.from_numpy(whole.kept).to(found[place].device)]
        return found

    def _add_strain(
        self,
        strain: NDArray[np.float32],
        first: int,
        rows: _Rows,
        slopes: Mapping[str, list[Slopes]],
        values: Mapping[str, Tensor],
        radius: NDArray[np.float64],
    ) -> None:
        """Add to ``strain`` [trials, images] what the faults of ``rows`` do; at 1, a pair is no longer decided."""
        if not len(rows.trial):
            return
        radius = radius[: strain.shape[1]]
        if rows.change is None:
            assert isinstance(rows.site, Output)
            (call,) = slopes[rows.site.place]
            total = self._signal_changes(rows, values[rows.site.place]) * call.strain_at_source("value", radius)
        else:
            total = np.zeros((len(rows.trial), strain.shape[1]), np.float32)
            for path, tensor in self._holders[rows.site.name]:
                tap = tap_of(self._modules[path], tensor, rows.element)
                for call in slopes[path]:
                    total += call.taps[tensor][tap] * (rows.change[:, None] * call.strain_at_source("channel", radius))
        np.add.at(strain, rows.trial - first, total)

    @staticmethod
    def _signal_changes(rows: _Rows, values: Tensor) -> NDArray[np.float32]:
        """By how much each fault moves the value of each image: [rows, images]."""
        fmt = rows.site.format_at(rows.element)
        before = words_of(values[:, torch.from_numpy(rows.element).to(values.device)].T, fmt)
        images = before.shape[1]
        variant, drawn = np.repeat(rows.variant, images), np.repeat(rows.drawn, images)
        after = rows.region.model.corrupt(before.ravel(), variant, drawn, fmt).reshape(before.shape)
        change = np.abs(fmt.decode(after) - fmt.decode(before))
        return np.where(after == before, 0.0, change).astype(np.float32)


def audit_sample(key: NDArray[np.uint64], inputs: int, rate: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which pairs are run exactly even if the screen decides them: a pure function of each trial's key.

    Each pair is drawn with probability ``rate``; a trial gives ⌊rate · inputs⌋ pairs or one more.

    Args:
        key: uint64 [trials], the trials' keys.
        inputs: how many inputs each trial meets.
        rate: 0 to 1.

    Returns:
        (trials [n], places [n]): a place p stands for the p-th of the inputs that the trial meets.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: {rate} is outside 0 .. 1")
    own = draws.words(key, 0, lane=_AUDIT_LANE)
    count = np.minimum(np.floor(rate * inputs + draws.uniform(own, 0, lane=_AUDIT_LANE)).astype(np.int64), inputs)
    trial, rank = expanded(np.zeros_like(count), count)
    if not len(trial):
        return trial, rank
    return trial, draws.permuted(own[trial], inputs, rank)


def _membership(inputs: NDArray[np.int64], batch: range) -> NDArray[np.bool_]:
    """Which inputs of ``batch`` each trial meets: [trials, images]."""
    inside = (inputs >= batch.start) & (inputs < batch.stop)
    member = np.zeros((len(inputs), len(batch)), bool)
    trial, column = np.nonzero(inside)
    member[trial, inputs[trial, column] - batch.start] = True
    return member
