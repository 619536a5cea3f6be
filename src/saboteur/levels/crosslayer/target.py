"""An int8 network whose layers run on an array in HDL, as a target.

A fault sits in the array; the network is software. The cycles of a fault are those of the *stream* of a layer: all
tiles of its matrix product, one after the other, for one input. What the fault leaves in the sums of the layer is
simulated; bias, zero points, requantisation and ReLU follow in software, and then the rest of the network.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from saboteur.campaign.target import FaultSpec, Resources, Target
from saboteur.errors import FaultError, TargetError, near
from saboteur.faults.error_values import LayerOutput
from saboteur.faults.space import Faults, FaultSpace, Region
from saboteur.levels.crosslayer.architecture import Architecture
from saboteur.levels.crosslayer.arrays import ArrayAdapter
from saboteur.levels.crosslayer.lowering import LoweredLayer, lower
from saboteur.levels.crosslayer.machine import ARRAY, DescribedMachine, HdlMachine, Hits, Machine
from saboteur.levels.crosslayer.spec import AcceleratorFault
from saboteur.levels.crosslayer.suffix import Call, Changes, GoldenValues, Hardware, Network, Rows, products
from saboteur.levels.hardware.designs import SystolicArray
from saboteur.levels.hardware.importing import Level
from saboteur.levels.hardware.sites import literal
from saboteur.levels.software.flow import Event
from saboteur.levels.software.runner import Batch, Runner
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.golden import Golden, OutputKind
from saboteur.outcomes.recorder import Recorder

_PAIRS_AT_ONCE = 1024
_BYTES_AN_OPERAND = 10
"""Peak memory for each element of a pair's operands: in eight bits, and for their product in float64."""

STAGES = ("array", "requantisation", "network", "output", "failure")
"""How far an error comes: sums of a layer are right; its outputs are; the network's are; they are not; the run ends."""


@dataclass(frozen=True)
class _Acting:
    """Which faults act in which of some inferences (pairs of a trial and an input), as columns in order of pair.

    Attributes:
        faults: the faults.
        space: where they come from.
        row: [hits], the single fault.
        pair: [hits], the inference.
        layer: [hits], number of the layer that is hit, −1 for all.
        failed: [pairs], whether the inference ends without sums.
    """

    faults: Faults
    space: FaultSpace
    row: NDArray[np.int64]
    pair: NDArray[np.int64]
    layer: NDArray[np.int64]
    failed: NDArray[np.bool_]

    def in_layer(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and pair of the faults that act in a layer."""
        mine = (self.layer == number) | (self.layer < 0)
        return self.row[mine], self.pair[mine]


@dataclass(frozen=True)
class _Elements:
    """Elements of a layer's output that faulty hardware gives another sum for, as columns."""

    pair: NDArray[np.int64]
    position: NDArray[np.int64]
    value: NDArray[np.int8]
    delta: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[_Elements]) -> _Elements:
        """All of them, in order of pair."""
        order = np.argsort(np.concatenate([[], *(part.pair for part in parts)]), kind="stable")

        def column(name: str, kind: type) -> NDArray:
            return np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])[order]

        return cls(
            column("pair", np.int64), column("position", np.int64), column("value", np.int8), column("delta", np.int64)
        )


class AcceleratorTarget(Target):
    """A network of :mod:`saboteur.workloads.int8` on an array, with the inputs that it is judged on.

    A transient fault acts in one cycle of the stream of one layer; a permanent one in every cycle of every layer that
    runs on the array; an intermittent one likewise, but only in some inferences.

    Args:
        model: in eval mode, on the CPU. It is left as it is.
        inputs: one tensor [inputs, ...], or a tuple of them for a model with several arguments.
        labels: the true class of each input, where known.
        array: a shipped array, an adapter of the user's own, or the description of an accelerator without HDL.
        level: of the simulation of an array in HDL.
        layers: patterns of the layers that run on the array; the others never fail.
        outputs: what the model returns.
        output: which element of a returned tuple or mapping is the output.
        engine: ``plain`` or ``exact``, which gives the same outputs faster.
        resources: threads, batch size and memory.

    Raises:
        TargetError: when model, inputs, labels and array do not fit each other.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor | Sequence[Tensor],
        labels: ArrayLike | Tensor | None = None,
        *,
        array: SystolicArray | ArrayAdapter | Architecture,
        level: Level = "word",
        layers: Sequence[str] = ("*",),
        outputs: OutputKind = "logits",
        output: int | str | None = None,
        engine: Literal["plain", "exact"] = "exact",
        resources: Resources = Resources(),  # noqa: B008
    ):
        if resources.device != "cpu":
            raise TargetError(f"device: {resources.device!r}; the target accelerator runs on the cpu")
        tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        self._software = SoftwareTarget(model, tensors, labels, outputs, output, engine="plain", resources=resources)
        self._runner = Runner(model, tensors, output=output, batch_size=resources.batch_size, threads=resources.threads)
        self._model, self._output, self._resources = model, output, resources
        self.engine_name = engine
        with torch.inference_mode():
            lowered = lower(model, [tensor[:1] for tensor in tensors])
        self.layers = _selected(lowered, layers)
        """The layers that run on the array, in order of computation."""
        described = isinstance(array, Architecture)
        self.machine: Machine = (
            DescribedMachine(array, self.layers) if described else HdlMachine(array, level, self.layers)
        )
        """What they run on."""
        self._by_call: dict[Call, list[int]] = {}
        for number, layer in enumerate(self.layers):
            self._by_call.setdefault(Call(layer.path, layer.call), []).append(number)
        if engine == "exact" and (self._runner.inputs_interact or self._runner.depends_on_batch_size()):
            raise TargetError("model: not all of it computes in integers, input by input; it needs engine plain")

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """A hash of the model, the inputs and the labels, the array, and which layers run on it."""
        names = [layer.name for layer in self.layers]
        digest = hashlib.sha256(f"{self._software.fingerprint} {self.machine.identity} {names}".encode())
        return digest.hexdigest()[:32]

    def golden(self) -> Golden:
        """Run fault-free, in software."""
        golden = self._software.golden()
        return replace(golden, environment=golden.environment | {"array": self.machine.level})

    # -- faults -----------------------------------------------------------------------------------------------

    def space(self, specs: Sequence[FaultSpec]) -> FaultSpace:
        """Every fault that ``specs`` describe; like words of all processing elements are a region."""
        regions: dict[tuple, Region] = {}
        for spec in specs:
            if not isinstance(spec, AcceleratorFault):
                raise FaultError(f"faults: a {type(spec).__name__} is not a fault of the target accelerator")
            for region in self.machine.regions(spec):
                regions.setdefault((region.site, region.model, region.duration, region.activity), region)
        return FaultSpace(tuple(regions.values()))

    def _acting(
        self, space: FaultSpace, faults: Faults, trial: NDArray[np.int64], inputs: NDArray[np.int64]
    ) -> _Acting:
        """The faults that act in pairs (trial, input)."""
        counts = np.diff(faults.bounds)[trial]
        row = np.repeat(faults.bounds[trial] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        pair = np.repeat(np.arange(len(trial)), counts)
        acts = self.machine.acting(space, faults)[row]
        activity = np.array([region.activity for region in space.regions])[faults.region[row]]
        for hit in np.flatnonzero(acts & (activity < 1)).tolist():
            one = pair[hit]
            acts[hit] = faults.acts(float(activity[hit]), inputs[one : one + 1], int(trial[one]))[0]
        row, pair = row[acts], pair[acts]
        failed = np.zeros(len(trial), bool)
        failed[pair[self.machine.fails(space, faults)[row]]] = True
        row, pair = row[~failed[pair]], pair[~failed[pair]]
        numbers = {layer.name: number for number, layer in enumerate(self.layers)} | {ARRAY: -1}
        layer = np.array([numbers[region.layer] for region in space.regions])[faults.region[row]]
        return _Acting(faults, space, row, pair, layer, failed)

    # -- exact ------------------------------------------------------------------------------------------------

    @cached_property
    def _network(self) -> Network:
        return Network(self._model, self._runner.tensors, list(self._by_call), self._output)

    @cached_property
    def _golden_values(self) -> GoldenValues:
        slots = self._resources.memory_bytes // 2 // self._network.bytes_each
        return GoldenValues(self._network, self._runner.tensors, max(1, slots))

    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        """Run each trial over the inputs that the recorder gives it."""
        with self._runner.prepared():
            if self.engine_name == "plain":
                self._inject_plain(space, faults, recorder)
                return
            inputs_of, trial_of = np.nonzero(recorder.awaited.T)
            for some in self._batches(inputs_of):
                trial, inputs = trial_of[some], inputs_of[some]
                acting = self._acting(space, faults, trial, inputs)
                changed, outputs = self._run(acting, inputs)
                same = ~acting.failed
                same[changed] = False
                recorder.identical(trial[same], inputs[same])
                recorder.outputs(trial[changed], inputs[changed], outputs)
                recorder.abnormal(trial[acting.failed], inputs[acting.failed], "crash")

    def _batches(self, inputs: NDArray[np.int64]) -> Iterator[slice]:
        each = _BYTES_AN_OPERAND * max(layer.m * layer.k + layer.k * layer.n for layer in self.layers)
        step = min(_PAIRS_AT_ONCE, max(1, self._resources.memory_bytes // 4 // each))
        if self._golden_values.slots < self._runner.inputs:
            step = min(step, self._golden_values.slots)
        for begin in range(0, len(inputs), step):
            yield slice(begin, begin + step)

    def _run(
        self, acting: _Acting, inputs: NDArray[np.int64], stages: NDArray[np.int8] | None = None
    ) -> tuple[NDArray[np.int64], NDArray]:
        """The pairs whose outputs differ from golden, and these; notes in ``stages`` how far each error came."""
        golden = self._golden_values
        slot = golden.slots_of(inputs)
        hit = set(np.unique(acting.layer).tolist())
        hardware = {
            call: self._hardware(call, acting, slot, stages)
            for call, numbers in self._by_call.items()
            if hit & {-1, *numbers}
        }
        changed, outputs = self._network.outputs(golden, slot, hardware)
        if stages is not None:
            stages[changed] = STAGES.index("output")
            stages[acting.failed] = STAGES.index("failure")
        return changed, outputs

    def _hardware(
        self, call: Call, acting: _Acting, slot: NDArray[np.int64], stages: NDArray[np.int8] | None
    ) -> Hardware:
        def act(moved: NDArray[np.bool_], arguments: Rows) -> Changes:
            parts = [self._elements(number, acting, slot, moved, arguments) for number in self._by_call[call]]
            found = _Elements.joined(parts)
            if stages is not None:
                golden = self._network.results(self._golden_values, call)[slot[found.pair], found.position]
                stages[found.pair] = np.maximum(stages[found.pair], STAGES.index("requantisation"))
                reached = found.pair[(found.value != golden) | moved[found.pair]]
                stages[reached] = np.maximum(stages[reached], STAGES.index("network"))
            return Changes.of(len(slot), found.pair, found.position, found.value)

        return act

    def _elements(
        self,
        number: int,
        acting: _Acting,
        slot: NDArray[np.int64],
        moved: NDArray[np.bool_],
        arguments: Rows | None,
    ) -> _Elements:
        """What faulty hardware makes of a layer.

        Args:
            number: of the layer.
            acting: the faults.
            slot: [pairs], where the fault-free values of each pair's input lie.
            moved: [pairs], whether the layer's arguments are others than these.
            arguments: gives them.
        """
        layer, faulty = self.layers[number], np.unique(acting.in_layer(number)[1])
        clean, dirty = faulty[~moved[faulty]], faulty[moved[faulty]]
        parts = []
        if len(clean) and self._keeps_operands and layer.shares_b:
            operands = self._kept_operands(number, slot[clean])
            parts.append(self._simulated(number, acting, clean, slot[clean], (), *operands))
        elif len(clean):
            slots, image = np.unique(slot[clean], return_inverse=True)
            tensors = self._network.arguments(self._golden_values, Call(layer.path, layer.call), slots)
            parts.append(self._simulated(number, acting, clean, image, tensors, *layer.operands(tensors)))
        if len(dirty) and arguments is not None:
            tensors = arguments(dirty)
            parts.append(
                self._simulated(number, acting, dirty, np.arange(len(dirty)), tensors, *layer.operands(tensors))
            )
        return _Elements.joined(parts)

    def _simulated(
        self,
        number: int,
        acting: _Acting,
        pairs: NDArray[np.int64],
        image: NDArray[np.int64],
        tensors: Sequence[Tensor],
        a: NDArray[np.int8],
        b: NDArray[np.int8],
        plain: bool = False,
    ) -> _Elements:
        """What the faults of some ``pairs``, each with an ``image`` of the operands a and b, make of a layer."""
        layer = self.layers[number]
        row, pair = acting.in_layer(number)
        mine = np.isin(pair, pairs)
        hits = Hits(row[mine], np.searchsorted(pairs, pair[mine]), image)
        found = self.machine.errors(acting.space, acting.faults, number, hits, a, b, plain)
        of = image[found.fault]
        sums = products(a, b, of, found.row, found.column) + found.delta
        value = layer.finish(tensors, of, found.row, found.column, sums)
        return _Elements(pairs[found.fault], layer.position(found.row, found.column), value, found.delta)

    @cached_property
    def _keeps_operands(self) -> bool:
        """Whether there is memory for the operands of all inputs beside the golden values."""
        each = self._network.bytes_each + sum(layer.m * layer.k for layer in self.layers)
        return each * self._runner.inputs <= self._resources.memory_bytes // 2

    def _kept_operands(self, number: int, slots: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """The fault-free operands of a layer by slot, there at least for ``slots``."""
        layer = self.layers[number]
        if number not in self._operands:
            golden = self._golden_values
            kept = np.empty((golden.slots, layer.m, layer.k), np.int8)
            self._operands[number] = kept, np.zeros(golden.slots, bool)
        kept, there = self._operands[number]
        missing = np.unique(slots[~there[slots]])
        tensors = self._network.arguments(self._golden_values, Call(layer.path, layer.call), missing)
        a, b = layer.operands(tensors)
        kept[missing], there[missing] = a, True
        return kept, b

    @cached_property
    def _operands(self) -> dict[int, tuple[NDArray[np.int8], NDArray[np.bool_]]]:
        return {}

    # -- plain ------------------------------------------------------------------------------------------------

    def _inject_plain(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        for trial in range(faults.trials):
            for batch in self._runner.batches(np.flatnonzero(recorder.awaited[trial])):
                acting = self._acting(space, faults, np.full(len(batch.kept), trial), batch.inputs)
                with self._faulty(acting, batch):
                    outputs = self._runner.run(batch)
                failed, trials = acting.failed, np.full(len(outputs), trial)
                recorder.outputs(trials[~failed], batch.inputs[~failed], outputs[~failed])
                recorder.abnormal(trials[failed], batch.inputs[failed], "crash")

    @contextmanager
    def _faulty(
        self, acting: _Acting, batch: Batch, sums: list[tuple[str, int, NDArray[np.int64]]] | None = None
    ) -> Iterator[None]:
        """The model on faulty hardware, for one forward pass of a batch, whose kept inputs are the pairs of ``acting``.

        ``sums`` is given, layer by layer, its name, how many sums it has, and what the faults add to some of them.
        """
        kept = torch.from_numpy(batch.kept)
        calls: Counter[str] = Counter()

        def after(path: str, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            call = Call(path, calls[path])
            calls[path] += 1
            mine = tuple(argument[kept] for argument in args)
            faulty = output.clone().reshape(len(output), -1)
            for number in self._by_call.get(call, ()):
                layer, pairs = self.layers[number], np.arange(len(kept))
                found = self._simulated(number, acting, pairs, pairs, mine, *layer.operands(mine), plain=True)
                faulty[kept[torch.from_numpy(found.pair)], torch.from_numpy(found.position)] = torch.from_numpy(
                    found.value
                )
                if sums is not None and len(acting.in_layer(number)[0]):
                    sums.append((layer.name, layer.m * layer.n, found.delta))
            return faulty.reshape(output.shape)

        with ExitStack() as stack:
            for path in {call.path for call in self._by_call}:

                def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor, path: str = path) -> Tensor:
                    return after(path, args, output)

                stack.callback(self._model.get_submodule(path).register_forward_hook(hook).remove)
            yield

    # -- what happened ----------------------------------------------------------------------------------------

    def masking(self, space: FaultSpace, faults: Faults, inputs: NDArray[np.int64] | None = None) -> pa.Table:
        """Where the error of each trial is masked.

        Args:
            space: where the faults come from.
            faults: the trials.
            inputs: [trials, n], the inputs that each trial meets; all if absent.

        Returns:
            A row for each pair: ``trial``, ``input`` and ``stage``: ``array`` (no sum of any layer was wrong),
            ``requantisation`` (sums were, outputs of the layer were not), ``network`` (outputs of a layer were, the
            network's were not), ``output`` (not masked) or ``failure`` (the run ended).
        """
        inputs_of, trial = self._pairs(faults, inputs)
        stages = np.zeros(len(trial), np.int8)
        with self._runner.prepared():
            for some in self._batches(inputs_of):
                self._run(self._acting(space, faults, trial[some], inputs_of[some]), inputs_of[some], stages[some])
        order = np.lexsort((inputs_of, trial))
        stage = pa.array(STAGES).take(pa.array(stages[order]))
        return pa.table({"trial": trial[order], "input": inputs_of[order], "stage": stage})

    def deviations(self, space: FaultSpace, faults: Faults, inputs: NDArray[np.int64] | None = None) -> pa.Table:
        """Which output elements of the layer that they hit the faults of each trial change, and how.

        Each layer is looked at by itself, on its fault-free arguments.

        Args:
            space: where the faults come from.
            faults: the trials.
            inputs: [trials, n], the inputs that each trial meets; all if absent.

        Returns:
            A row for each changed element: ``trial``, ``input``, ``layer``, ``component`` (of the trial's first fault
            in the layer), ``position`` (flat, in the layer's output for one input), ``golden`` and ``faulty`` (int8).
        """
        inputs_of, trial_of = self._pairs(faults, inputs)
        names = np.array([region.component for region in space.regions])
        tables = []
        with self._runner.prepared():
            for some in self._batches(inputs_of):
                trial, of = trial_of[some], inputs_of[some]
                slot = self._golden_values.slots_of(of)
                acting = self._acting(space, faults, trial, of)
                for number, layer in enumerate(self.layers):
                    row, hit = acting.in_layer(number)
                    if not len(row):
                        continue
                    found = self._elements(number, acting, slot, np.zeros(len(slot), bool), None)
                    results = self._network.results(self._golden_values, Call(layer.path, layer.call))
                    golden = results[slot[found.pair], found.position]
                    wrong = golden != found.value
                    pair = found.pair[wrong]
                    region = faults.region[row[np.searchsorted(hit, pair)]]
                    columns = {
                        "trial": trial[pair],
                        "input": of[pair],
                        "layer": np.full(len(pair), layer.name, dtype=object),
                        "component": names[region].astype(object),
                        "position": found.position[wrong],
                        "golden": golden[wrong],
                        "faulty": found.value[wrong],
                    }
                    tables.append(pa.table(columns, schema=_DEVIATIONS))
        return pa.concat_tables([_DEVIATIONS.empty_table(), *tables]).sort_by(
            [(name, "ascending") for name in ("trial", "input")]
        )

    def layer_outputs(self) -> dict[str, LayerOutput]:
        """What is known of the fault-free output of each layer, which learning an error model takes."""
        known = self._software.layer_outputs()
        return {layer.name: known[layer.path] for layer in self.layers if layer.path in known}

    def _pairs(self, faults: Faults, inputs: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Input and trial of each pair, in order of input."""
        if inputs is None:
            inputs = np.broadcast_to(np.arange(self._runner.inputs), (faults.trials, self._runner.inputs))
        trial = np.repeat(np.arange(faults.trials), inputs.shape[1])
        order = np.argsort(inputs.ravel(), kind="stable")
        return inputs.ravel()[order], trial[order]

    def trace(self, space: FaultSpace, faults: Faults, input: int) -> pa.Table:
        """Follow the error of the first trial: the sums of the array, ``LAYER/sums``, then every output after them."""
        if not 0 <= input < self._runner.inputs:
            raise TargetError(f"input: {input} is outside 0 .. {self._runner.inputs - 1}")
        batch = self._runner.batch_of(input)
        before: dict[str, NDArray] = {}
        after: dict[str, NDArray | tuple[int, NDArray[np.int64]]] = {}
        sums: list[tuple[str, int, NDArray[np.int64]]] = []

        def watch(event: Event) -> None:
            for name, size, delta in sums:
                after[f"{name}/sums"] = size, delta
            sums.clear()
            if event.tensor is not None and event.tensor.dim() and len(event.tensor) == len(batch.rows):
                name = event.place + (f"[{event.call}]" if event.call else "")
                after[name] = event.tensor[int(batch.kept[0])].double().numpy().copy()

        with self._runner.prepared():
            after["output"] = self._runner.run(batch, watch=watch)[0].astype(np.float64)
            before, after = {name: value for name, value in after.items() if isinstance(value, np.ndarray)}, {}
            one = faults.take([0])
            acting = self._acting(space, one, np.zeros(1, np.int64), np.array([input]))
            with self._faulty(acting, batch, sums):
                outputs = self._runner.run(batch, watch=watch)
            after["output"] = outputs[0].astype(np.float64)
        rows = []
        for name, value in after.items():
            if isinstance(value, np.ndarray):
                rows.append(_spread(name, value.size, (value - before[name]).ravel(), value))
            else:
                rows.append(_spread(name, value[0], value[1].astype(np.float64)))
        return pa.Table.from_pylist(rows)


_DEVIATIONS = pa.schema(
    [
        *(("trial", pa.int64()), ("input", pa.int64()), ("layer", pa.string()), ("component", pa.string())),
        *(("position", pa.int64()), ("golden", pa.int8()), ("faulty", pa.int8())),
    ]
)


def _selected(lowered: Sequence[LoweredLayer], patterns: Sequence[str]) -> list[LoweredLayer]:
    names = [layer.name for layer in lowered]
    for pattern in patterns:
        if not any(fnmatchcase(name, literal(pattern)) for name in names):
            raise TargetError(f"layers: no int8 layer matches {pattern!r}{near(pattern, names)}")
    return [layer for layer in lowered if any(fnmatchcase(layer.name, literal(pattern)) for pattern in patterns)]


def _spread(place: str, elements: int, error: NDArray, value: NDArray | None = None) -> dict[str, object]:
    return {
        "place": place,
        "elements": elements,
        "changed": int((error != 0).sum()),
        "nonfinite": 0 if value is None else int((~np.isfinite(value)).sum()),
        "max_abs_error": float(np.abs(error).max(initial=0.0)),
        "rms_error": float(np.sqrt((error**2).sum() / max(elements, 1))),
    }
