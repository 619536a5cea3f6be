"""Errors of a learned model, put into the outputs of layers.

Where faults are single bits, a trial costs a run of the network over its inputs; here runs are shared: a batch takes
(trial, input) pairs of any trials, each in the place that its input has in every batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saboteur.faults.error_models import ErrorModel
from saboteur.faults.error_patterns import LayerShape
from saboteur.faults.error_sampling import ComponentErrors, Errors, PermanentErrors, PermanentSampler, Sampler
from saboteur.faults.error_values import LayerOutput
from saboteur.faults.formats import Affine, Floating
from saboteur.faults.space import Faults, FaultSpace, Region, expanded
from saboteur.levels.software import injection
from saboteur.levels.software.corruption import Hits
from saboteur.levels.software.emulation import tensor_of, with_integers, words_of
from saboteur.levels.software.flow import Event
from saboteur.levels.software.runner import Batch, HarnessError, ModelError, Runner
from saboteur.levels.software.signals import Output
from saboteur.levels.software.site import Site, position
from saboteur.levels.software.spec import SoftwareFault
from saboteur.outcomes.recorder import Recorder

_DRAWS = 2**20
"""Numbered draws around each element, of all components of a layer together."""

_OBSERVED = 1024
"""On so many inputs, the first ones, the ranges of layers are observed."""

ARRAY = "array"
"""The layer of permanent errors, as of the faults that they are learned from."""

_JOIN, _TOGETHER = "+", ":array"

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class ErrorOutput(Output):
    """The output of a layer as errors of a learned model meet it.

    Attributes:
        known: the layer's fault-free output.
        inputs: [batch] the input in each row of the batch that is being run.
        pairs: which row meets which hit, as two columns; every row every hit if absent.
        samplers: those made so far.
    """

    known: LayerOutput
    inputs: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    pairs: tuple[Integers, Integers] | None = None
    samplers: dict[ComponentErrors, Any] = field(default_factory=dict)

    def in_batch(self, inputs: Integers) -> ErrorOutput:
        """The same output, in a batch whose rows hold ``inputs``."""
        return replace(self, inputs=inputs)

    def edit(self, event: Event, hits: Hits) -> Any:
        """The event's output with the errors that act at this call."""
        if self.pairs is not None:
            row, hit = self.pairs
        else:
            row, hit = (axis.ravel() for axis in np.indices((len(self.inputs), len(hits))))
        lasting = np.array([region.duration != "transient" for region in hits.regions])[hits.region[hit]]
        acting = lasting | (hits.step[hit] == event.call) if self.steps > 1 else np.ones(len(hit), bool)
        row, hit = row[acting], hit[acting]
        if not len(hit):
            return event.output
        return self.replaced(event.output, lambda tensor: self._with_errors(tensor, hits, row, hit))

    def _with_errors(self, tensor: Tensor, hits: Hits, row: Integers, hit: Integers) -> Tensor:
        if tensor.is_quantized:
            return with_integers(tensor, self._with_errors(tensor.int_repr(), hits, row, hit))
        tensor = tensor.clone()
        for number in np.unique(hits.region[hit]).tolist():
            here = hits.region[hit] == number
            if isinstance(hits.regions[number].model, PermanentErrors):
                self._put_permanent(tensor, hits, row[here], hit[here])
            else:
                self._put(tensor, hits, row[here], hit[here])
        return tensor

    def _put_permanent(self, tensor: Tensor, hits: Hits, row: Integers, hit: Integers) -> None:
        """Put permanent errors of one region into ``tensor``, one after the other."""
        region = hits.regions[int(hits.region[hit[0]])]
        model = region.model
        assert isinstance(model, PermanentErrors)
        if model not in self.samplers:
            self.samplers[model] = PermanentSampler(model.profile, self.layer, self.known)
        sampler = self.samplers[model]
        for one in np.unique(hit).tolist():
            rows = row[hit == one]
            (key,) = model.key(ARRAY, hits.element[[one]], hits.variant[[one]])
            elements = sampler.elements(key)
            each, element = np.repeat(rows, len(elements)), np.tile(elements, len(rows))
            golden = self.read(tensor, each, element)
            values = sampler.values(key, self.inputs[rows], golden.reshape(len(rows), -1)).ravel()
            wrong = ~(values == golden)
            self._write(tensor, each[wrong], element[wrong], values[wrong])

    def _put(self, tensor: Tensor, hits: Hits, row: Integers, hit: Integers) -> None:
        """Put errors of one region into ``tensor``."""
        wrong = self.reached(hits, hit, self.inputs[row], self.read(tensor, row, hits.element[hit]))
        if not wrong.any():
            return
        faults, of_pair = np.unique(hit[wrong], return_inverse=True)
        key, sampler = self._drawing(hits, faults)
        errors = sampler.draw(key, hits.element[faults])
        first = np.searchsorted(errors.fault, np.arange(len(faults) + 1))
        pair, chosen = expanded(first[of_pair], first[of_pair + 1])
        errors = Errors(*(column[chosen] for column in errors))
        row = row[wrong][pair]
        golden = self.read(tensor, row, errors.position)
        values = sampler.values(errors, key[errors.fault], self.inputs[row], golden)
        self._write(tensor, row, errors.position, values)

    def reached(self, hits: Hits, hit: Integers, inputs: Integers, anchors: Floats) -> NDArray[np.bool_]:
        """Whether the output is wrong at all, for ``hit`` [n] of one region in ``inputs`` [n].

        Args:
            hits: the faults.
            hit: which of them.
            inputs: in which input.
            anchors: [n] the fault-free values of the elements they lie around.
        """
        key, sampler = self._drawing(hits, hit)
        return sampler.reached(key, inputs, anchors)

    def _drawing(self, hits: Hits, hit: Integers) -> tuple[NDArray[np.uint64], Sampler]:
        model = hits.regions[int(hits.region[hit[0]])].model
        assert isinstance(model, ComponentErrors)
        if model not in self.samplers:
            self.samplers[model] = Sampler(model.profile, self.known)
        return model.key(self.name, hits.element[hit], hits.variant[hit]), self.samplers[model]

    def read(self, tensor: Tensor, row: Integers, element: Integers) -> Floats:
        """The values of elements [n], each of the input in one row of the batch."""
        rows, index = self._at(tensor.int_repr() if tensor.is_quantized else tensor, row, element)
        return self.format.decode(words_of(rows[index], self.format))

    def _write(self, tensor: Tensor, row: Integers, element: Integers, values: Floats) -> None:
        """Put values into elements, in the format of the output; what it has no NaN for is at the top."""
        if not isinstance(self.format, Floating):
            values = np.nan_to_num(values, nan=self.known.top)
        rows, index = self._at(tensor, row, element)
        rows[index] = tensor_of(self.format.encode(values), self.format, rows)

    def _at(self, tensor: Tensor, row: Integers, element: Integers) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = tensor.movedim(self.batch_axis, 0)
        rows = rows if self.value_shape else rows.unsqueeze(1)
        return rows, (torch.from_numpy(row).to(tensor.device), *position(element, self.value_shape, tensor.device))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Reader(ErrorOutput):
    """Reads the elements around which errors lie.

    Attributes:
        numbers: [pairs] where each pair's value belongs in ``values``.
        values: takes the values.
    """

    numbers: Integers
    values: Floats

    def edit(self, event: Event, hits: Hits) -> Any:
        """Nothing is changed."""
        row, hit = self.pairs or (self.numbers, self.numbers)
        acting = np.ones(len(hit), bool) if self.steps == 1 else hits.step[hit] == event.call

        def read(tensor: Tensor) -> Tensor:
            self.values[self.numbers[acting]] = self.read(tensor, row[acting], hits.element[hit[acting]])
            return tensor

        return self.replaced(event.output, read)


def sites(runner: Runner, outputs: Iterable[Output]) -> Iterator[ErrorOutput]:
    """Outputs as learned errors meet them; the model is run fault-free over some inputs, to know their ranges.

    Outputs of integers and floats take errors, with one scale for all elements; those of other formats do not.
    """
    scaled = (output for output in outputs if not isinstance(output.format, Affine) or output.format.scale.ndim == 0)
    candidates = [output for output in scaled if output.value_shape]
    ranges = {output.place: _Range(output.batch_axis) for output in candidates}

    def watch(event: Event) -> None:
        if event.place in ranges and event.tensor is not None:
            ranges[event.place].add(event.tensor)

    with runner.prepared():
        for batch in runner.batches(np.arange(min(runner.inputs, _OBSERVED))):
            runner.run(batch, watch=watch)
    own = {f.name for f in fields(Output)} - {"name"}
    for output in candidates:
        shape = LayerShape(output.value_shape, output.unit_axis)
        known = ranges[output.place].known(shape, output)
        if known is not None:
            given = {name: getattr(output, name) for name in own}
            yield ErrorOutput(name=f"{output.place}:errors", known=known, **given)


class _Range:
    """The range of values, how many lie at its ends, and how often each element lies at the lower one."""

    def __init__(self, batch_axis: int) -> None:
        self._ends = {"low": (np.inf, 0), "high": (-np.inf, 0)}
        self._batch_axis = batch_axis
        self._low: Tensor | None = None
        self._values = self._inputs = 0

    def add(self, tensor: Tensor) -> None:
        values = tensor.dequantize() if tensor.is_quantized else tensor
        lowest, highest = (float(end) for end in torch.aminmax(values.double()))
        self._values += values.numel()
        self._inputs += values.shape[self._batch_axis]
        for name, end, beyond in (
            ("low", lowest, lowest < self._ends["low"][0]),
            ("high", highest, highest > self._ends["high"][0]),
        ):
            at_end = values == end
            count = int(at_end.sum())
            before, counted = self._ends[name]
            if not beyond and end != before:
                continue
            self._ends[name] = end, count if beyond else counted + count
            if name == "low":
                by_element = at_end.sum(dim=self._batch_axis).flatten().cpu()
                self._low = by_element if beyond or self._low is None else self._low + by_element

    def known(self, shape: LayerShape, output: Output) -> LayerOutput | None:
        (low, at_low), (high, at_high) = self._ends["low"], self._ends["high"]
        if not (np.isfinite(low) and np.isfinite(high)) or self._low is None:
            return None
        by_element = self._low.double().numpy() / self._inputs
        return LayerOutput.of_range(
            shape, output.format, low, high, at_low / self._values, at_high / self._values, by_element
        )


def regions(spec: SoftwareFault, sites: Sequence[Site]) -> Iterator[Region]:
    """The regions of a fault space that a model's errors make up.

    Of transient faults one for each component in each layer. Where the model was learned from every one of the layers,
    regions weigh as the faults that they stand for; otherwise layers weigh by their elements, and components within a
    layer as their faults. Of lasting faults one for each component and kind of fault, which acts in all layers.
    """
    model = spec.model
    assert isinstance(model, ErrorModel)
    outputs = [site for site in sites if isinstance(site, ErrorOutput)]
    if spec.duration != "transient":
        times = ceil(_DRAWS / sum(kind.population for kind in model.permanent))
        for kind in model.permanent:
            yield Region(
                site=_JOIN.join(output.name for output in outputs) + _TOGETHER,
                layer=ARRAY,
                component=kind.component,
                shape=(1,),
                format=outputs[0].format,
                model=PermanentErrors(
                    title=model.title, digest=model.digest, profile=kind, draws=kind.population * times
                ),
                duration=spec.duration,
                activity=spec.activity,
            )
        return
    by_population = all(model.knows(site.layer) for site in outputs)
    for site in outputs:
        profiles = model.of_layer(site.layer, site.known.shape)
        total = sum(profile.population for profile in profiles)
        for profile in profiles:
            wanted = (
                profile.population / site.known.shape.elements if by_population else _DRAWS * profile.population / total
            )
            yield Region(
                site=site.name,
                layer=site.layer,
                component=profile.component,
                shape=site.shape,
                format=site.format,
                model=ComponentErrors(
                    title=model.title, digest=model.digest, profile=profile, draws=max(1, ceil(wanted))
                ),
                duration="transient",
                steps=site.steps,
            )


def by_layer(space: FaultSpace, faults: Faults) -> tuple[FaultSpace, Faults]:
    """The same trials with a row in each layer for every permanent error, which is one fault of all of them."""
    if not any(isinstance(region.model, PermanentErrors) for region in space.regions):
        return space, faults
    regions: list[Region] = []
    first = np.zeros(len(space.regions) + 1, np.int64)
    for number, region in enumerate(space.regions):
        sites = [region.site]
        if isinstance(region.model, PermanentErrors):
            sites = region.site.removesuffix(_TOGETHER).split(_JOIN)
        regions += [replace(region, site=site) for site in sites]
        first[number + 1] = len(regions)
    row, region_of = expanded(first[faults.region], first[faults.region + 1])
    return FaultSpace(tuple(regions)), replace(faults.rows(row), region=region_of.astype(np.int32))


def are_in(space: FaultSpace) -> bool:
    """Whether a space holds errors of a learned model."""
    return any(isinstance(region.model, ComponentErrors) for region in space.regions)


def inject(runner: Runner, sites: Mapping[str, Site], space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
    """Run each trial over its inputs: those of learned transient errors alone together, the others one by one."""
    learned = np.array(
        [isinstance(r.model, ComponentErrors) and not isinstance(r.model, PermanentErrors) for r in space.regions]
    )
    foreign = np.bincount(faults.trial, ~learned[faults.region], faults.trials) > 0
    alone = ~foreign & (np.diff(faults.bounds) > 0)
    injection.inject(runner, sites, space, faults, recorder, np.flatnonzero(~alone).tolist())
    if alone.any():
        _Together(runner, sites, space, faults, recorder, np.flatnonzero(alone)).run()


class _Together:
    """Trials of learned errors alone, as pairs (trial, input)."""

    def __init__(
        self,
        runner: Runner,
        sites: Mapping[str, Site],
        space: FaultSpace,
        faults: Faults,
        recorder: Recorder,
        trials: Integers,
    ):
        self._runner, self._recorder = runner, recorder
        which, self._input = np.nonzero(recorder.awaited[trials])
        self._trial = trials[which]
        self._pair, self._hit = expanded(faults.bounds[self._trial], faults.bounds[self._trial + 1])
        self._hits = Hits(
            space.regions, faults.region, faults.element, faults.step, faults.variant, np.zeros(0, np.uint64)
        )
        names = list(sites)
        self._sites = [sites[name] for name in names]
        site_of_region = np.array([names.index(region.site) for region in space.regions])
        self._site = site_of_region[faults.region[self._hit]]

    def run(self) -> None:
        """Hand in all pairs."""
        wrong = self._wrong(self._anchors())
        reached = np.bincount(self._pair, wrong, len(self._trial)) > 0
        self._recorder.identical(self._trial[~reached], self._input[~reached])
        pairs = np.flatnonzero(reached)
        self._pair, self._hit, self._site = self._pair[wrong], self._hit[wrong], self._site[wrong]
        for batch, chosen in self._batches(pairs):
            self._run(batch, chosen)

    def _anchors(self) -> Floats:
        """The fault-free value around which each error lies."""
        values = np.full(len(self._pair), np.nan)
        row = np.full(self._runner.inputs, -1)
        for batch in self._runner.batches(np.unique(self._input)):
            row[:] = -1
            row[batch.inputs] = batch.kept
            of_pair = row[self._input[self._pair]]
            edits = []
            for site, numbers in self._by_site(np.flatnonzero(of_pair >= 0)):
                given = {f.name: getattr(site, f.name) for f in fields(ErrorOutput)}
                given |= {"pairs": (of_pair[numbers], self._hit[numbers]), "numbers": numbers, "values": values}
                edits.append((_Reader(**given), self._hits))
            self._runner.run(batch, edits)
        return values

    def _wrong(self, anchors: Floats) -> NDArray[np.bool_]:
        wrong = np.zeros(len(anchors), bool)
        region = self._hits.region[self._hit]
        for site, numbers in self._by_site(np.arange(len(anchors))):
            for one in np.unique(region[numbers]):
                rows = numbers[region[numbers] == one]
                wrong[rows] = site.reached(self._hits, self._hit[rows], self._input[self._pair[rows]], anchors[rows])
        return wrong

    def _by_site(self, numbers: Integers) -> Iterator[tuple[ErrorOutput, Integers]]:
        for index in np.unique(self._site[numbers]).tolist():
            site = self._sites[index]
            assert isinstance(site, ErrorOutput)
            yield site, numbers[self._site[numbers] == index]

    def _batches(self, pairs: Integers) -> Iterator[tuple[Batch, Integers]]:
        """Batches in which each input has its own place, each with the pairs that it holds."""
        place = self._input[pairs] % self._runner.batch_size
        order = np.argsort(place, kind="stable")
        turn = np.empty(len(pairs), np.int64)
        turn[order] = np.arange(len(pairs)) - np.searchsorted(place[order], place[order])
        for number in range(turn.max(initial=-1) + 1):
            chosen = turn == number
            rows = np.arange(self._runner.batch_size)
            rows[place[chosen]] = self._input[pairs[chosen]]
            yield Batch(rows, place[chosen]), pairs[chosen]

    def _run(self, batch: Batch, pairs: Integers) -> None:
        try:
            outputs = self._runner.run(batch, self._edits(batch, pairs))
        except (ModelError, HarnessError) as error:
            if len(pairs) > 1:
                for place, pair in zip(batch.kept, pairs, strict=True):
                    self._run(Batch(np.full(len(batch.rows), self._input[pair]), np.array([place])), np.array([pair]))
            elif isinstance(error, ModelError):
                self._recorder.abnormal(self._trial[pairs], self._input[pairs], "crash")
            else:
                self._recorder.invalid(int(self._trial[pairs[0]]), str(error))
        else:
            self._recorder.outputs(self._trial[pairs], self._input[pairs], outputs)

    def _edits(self, batch: Batch, pairs: Integers) -> list[tuple[ErrorOutput, Hits]]:
        row = np.full(len(self._trial), -1)
        row[pairs] = batch.kept
        of_pair = row[self._pair]
        met = np.flatnonzero(of_pair >= 0)
        return [
            (replace(site, pairs=(of_pair[numbers], self._hit[numbers])), self._hits)
            for site, numbers in self._by_site(met)
        ]
