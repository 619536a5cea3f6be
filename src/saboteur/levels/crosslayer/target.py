"""An int8 network whose layers run on an array in HDL, as a target.

A fault sits in the array; the network is software. The cycles of a fault are those of the *stream* of a layer: all
tiles of its matrix product, one after the other, for one input. What the fault leaves in the sums of the layer is
simulated; bias, zero points, requantisation and ReLU follow in software, and then the rest of the network.
"""

from __future__ import annotations

import hashlib
import re
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
from saboteur.faults import draws
from saboteur.faults.models import FaultModel
from saboteur.faults.space import Faults, FaultSpace, Region
from saboteur.levels.crosslayer import mapping as mappings
from saboteur.levels.crosslayer.arrays import ArrayAdapter
from saboteur.levels.crosslayer.lowering import LoweredLayer, lower
from saboteur.levels.crosslayer.spec import AcceleratorFault, Where
from saboteur.levels.crosslayer.suffix import Call, Changes, GoldenValues, Hardware, Network, Rows
from saboteur.levels.crosslayer.tiles import ArraySimulator
from saboteur.levels.hardware.designs import SystolicArray
from saboteur.levels.hardware.importing import Level
from saboteur.levels.hardware.models import Bits, mask_table, masks
from saboteur.levels.hardware.simulate import ROW
from saboteur.levels.hardware.sites import PLACE, Group, Sites
from saboteur.levels.software.flow import Event
from saboteur.levels.software.runner import Batch, Runner
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.golden import Golden, OutputKind
from saboteur.outcomes.recorder import Recorder

ARRAY = "array"
"""The layer of permanent faults, which every layer of the network meets."""

_MAPPINGS = {"output_stationary": mappings.OutputStationary, "weight_stationary": mappings.WeightStationary}
_WHERE: tuple[Where, ...] = ("flip_flops", "memories", "nets", "pins")
_CAPTURED_LANE = 211
_PAIRS_AT_ONCE = 1024
_BYTES_AN_OPERAND = 10
"""Peak memory for each element of a pair's operands: in eight bits, and for their product in float64."""
_INDEX = re.compile(r"\d+")

Stage = Literal["array", "requantisation", "network", "output"]
"""Where an error is masked: no sum of the layer is wrong; its outputs are right; the network's are; or nowhere."""


@dataclass(frozen=True)
class Component:
    """Like words of all processing elements.

    Attributes:
        name: such as ``acc``.
        width: bits of a word.
        shape: how the words are indexed: rows and columns of processing elements where there is a like group in each,
            then the words of a group.
        places: [words], of the hardware level's dtype PLACE.
    """

    name: str
    width: int
    shape: tuple[int, ...]
    places: NDArray


def components(sites: Sites, where: Where, rows: int, cols: int) -> dict[str, Component]:
    """The sites of an array of ``rows`` × ``cols`` processing elements, like ones together, by name."""
    like: dict[tuple[str, str, int, int], list[Group]] = {}
    for group in sites.groups(where).values():
        path = f"{group.instance}." if group.instance else ""
        name = group.name.removeprefix(path).rsplit(":", 1)[-1]
        like.setdefault((_INDEX.sub("*", group.instance), name, group.width, len(group.places)), []).append(group)
    instances = Counter(name for _, name, *_ in like)
    found = {}
    for (instance, name, width, words), groups in like.items():
        groups.sort(key=lambda group: [int(index) for index in _INDEX.findall(group.instance)])
        several = (rows, cols) if len(groups) == rows * cols else (len(groups),)
        full = name if instances[name] == 1 else f"{instance.rsplit('.', 1)[-1] or 'top'}.{name}"
        while full in found:
            full += "'"
        places = np.concatenate([group.places for group in groups])
        found[full] = Component(full, width, (*several, words) if words > 1 else several, places)
    return found


@dataclass(frozen=True)
class _SpaceTable:
    """A fault space as columns by region."""

    places: NDArray
    first: NDArray[np.int64]
    layer: NDArray[np.int64]
    transient: NDArray[np.bool_]
    activity: NDArray[np.float64]
    captured: NDArray[np.float64]
    kind_of: NDArray[np.int64]
    kinds: list[tuple[FaultModel, int]]
    masks: list[tuple[NDArray[np.uint64], NDArray[np.uint64], int] | None]


@dataclass(frozen=True)
class _Effects:
    """Faults of pairs (trial, input) as the hardware level takes them.

    Attributes:
        rows: of dtype ROW; ``fault`` is the pair, ``off`` −1 where the fault stays for the whole stream.
        layer: [rows], number of the layer that is hit, −1 for all.
        region: [rows].
    """

    rows: NDArray
    layer: NDArray[np.int64]
    region: NDArray[np.int64]

    def of_layer(self, number: int, cycles: int) -> tuple[NDArray, NDArray[np.int64]]:
        """The rows of one layer, in its cycles, and their regions."""
        mine = (self.layer == number) | (self.layer < 0)
        rows = self.rows[mine]
        rows["off"] = np.where(rows["off"] < 0, cycles + 1, rows["off"])
        return rows, self.region[mine]


@dataclass(frozen=True)
class _Elements:
    """Elements of a layer's output that faulty hardware gives another sum for, as columns."""

    pair: NDArray[np.int64]
    position: NDArray[np.int64]
    value: NDArray[np.int8]

    @classmethod
    def joined(cls, parts: Sequence[_Elements]) -> _Elements:
        """All of them, in order of pair."""
        none = cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int8))
        whole = cls(
            *(
                np.concatenate([getattr(part, column) for part in (none, *parts)])
                for column in ("pair", "position", "value")
            )
        )
        order = np.argsort(whole.pair, kind="stable")
        return cls(whole.pair[order], whole.position[order], whole.value[order])


class AcceleratorTarget(Target):
    """A network of :mod:`saboteur.workloads.int8` on an array, with the inputs that it is judged on.

    A transient fault acts in one cycle of the stream of one layer; a permanent one in every cycle of every layer that
    runs on the array; an intermittent one likewise, but only in some inferences.

    Args:
        model: in eval mode, on the CPU. It is left as it is.
        inputs: one tensor [inputs, ...], or a tuple of them for a model with several arguments.
        labels: the true class of each input, where known.
        array: a shipped array, or an adapter of the user's own.
        level: of the array's simulation.
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
        array: SystolicArray | ArrayAdapter,
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
        self.simulator = ArraySimulator(array, level)
        array = self.simulator.array
        if array.dataflow not in _MAPPINGS:
            raise TargetError(f"array: its dataflow is {array.dataflow!r}{near(array.dataflow, _MAPPINGS)}")
        shape = _MAPPINGS[array.dataflow]
        self.mappings = [shape(array.rows, array.cols, layer.m, layer.k, layer.n) for layer in self.layers]
        """How each of :attr:`layers` is cut into tiles."""
        self._by_call: dict[Call, list[int]] = {}
        for number, layer in enumerate(self.layers):
            self._by_call.setdefault(Call(layer.path, layer.call), []).append(number)
        self._captured: dict[Region, float] = {}
        self._last_table: tuple[FaultSpace, _SpaceTable] | None = None
        if engine == "exact" and (self._runner.inputs_interact or self._runner.depends_on_batch_size()):
            raise TargetError("model: not all of it computes in integers, input by input; it needs engine plain")

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """A hash of the model, the inputs and the labels, the array, and which layers run on it."""
        array = self.simulator.array
        settings = (array.dataflow, array.rows, array.cols, [layer.name for layer in self.layers])
        digest = hashlib.sha256(f"{self._software.fingerprint} {self.simulator.netlist.digest} {settings}".encode())
        return digest.hexdigest()[:32]

    def golden(self) -> Golden:
        """Run fault-free, in software."""
        golden = self._software.golden()
        return replace(golden, environment=golden.environment | {"array": self.simulator.netlist.level})

    # -- faults -----------------------------------------------------------------------------------------------

    def space(self, specs: Sequence[FaultSpec]) -> FaultSpace:
        """Every fault that ``specs`` describe; like words of all processing elements are a region."""
        regions: dict[tuple, Region] = {}
        for spec in specs:
            if not isinstance(spec, AcceleratorFault):
                raise FaultError(f"faults: a {type(spec).__name__} is not a fault of the target accelerator")
            if getattr(spec.model, "way", "apply") != "apply" and spec.where != "nets":
                raise FaultError(f"model: {spec.model.kind} is a fault of nets, not of {spec.where}")
            for component in self._chosen(spec):
                for layer, steps in self._moments(spec):
                    region = Region(
                        site=component.name if layer == ARRAY else f"{layer}/{component.name}",
                        layer=layer,
                        component=component.name,
                        shape=component.shape,
                        format=Bits(component.width),
                        model=spec.model,
                        duration=spec.duration,
                        steps=steps,
                        activity=spec.activity,
                    )
                    regions.setdefault((region.site, spec.model, spec.duration, spec.activity), region)
                    if self._captured.setdefault(region, spec.captured) != spec.captured:
                        raise FaultError(
                            f"captured: {region.site} has it twice, with {spec.captured} and another value"
                        )
        return FaultSpace(tuple(regions.values()))

    def _moments(self, spec: AcceleratorFault) -> Iterator[tuple[str, int]]:
        if spec.duration != "transient":
            yield ARRAY, 1
            return
        for layer, mapping in zip(self.layers, self.mappings, strict=True):
            yield layer.name, self.simulator.cycles(mapping)

    def _chosen(self, spec: AcceleratorFault) -> list[Component]:
        known = self._components(spec.where)
        if not known:
            raise FaultError(f"where: the array has no {spec.where}")
        chosen: dict[str, Component] = {}
        for pattern in spec.names:
            matching = {name: part for name, part in known.items() if fnmatchcase(name, _literal(pattern))}
            if not matching:
                raise FaultError(f"names: no {spec.where} match {pattern!r}{near(pattern, known)}")
            chosen |= matching
        return [part for name, part in known.items() if name in chosen]

    def _components(self, where: Where) -> dict[str, Component]:
        if where not in self._found:
            array = self.simulator.array
            self._found[where] = components(self.simulator.sites, where, array.rows, array.cols)
        return self._found[where]

    @cached_property
    def _found(self) -> dict[str, dict[str, Component]]:
        return {}

    def _component(self, region: Region) -> Component:
        for where in _WHERE:
            found = self._components(where).get(region.component)
            if found is not None and found.shape == region.shape:
                return found
        raise FaultError(f"site: {region.site!r} is not in this array")

    def _table(self, space: FaultSpace) -> _SpaceTable:
        if self._last_table is None or self._last_table[0] is not space:
            regions = space.regions
            parts = [self._component(region) for region in regions]
            pairs = [(region.model, part.width) for region, part in zip(regions, parts, strict=True)]
            kinds = list(dict.fromkeys(pairs))
            numbers = {layer.name: number for number, layer in enumerate(self.layers)} | {ARRAY: -1}
            table = _SpaceTable(
                places=np.concatenate([part.places for part in parts]),
                first=np.cumsum([0, *(len(part.places) for part in parts[:-1])]),
                layer=np.array([numbers[region.layer] for region in regions]),
                transient=np.array([region.duration == "transient" for region in regions]),
                activity=np.array([region.activity for region in regions]),
                captured=np.array([self._captured.get(region, 1.0) for region in regions]),
                kind_of=np.array([kinds.index(pair) for pair in pairs]),
                kinds=kinds,
                masks=[mask_table(*kind) for kind in kinds],
            )
            self._last_table = space, table
        return self._last_table[1]

    def _rows(self, space: FaultSpace, faults: Faults) -> tuple[NDArray, NDArray[np.bool_]]:
        """A row of dtype ROW for each single fault, with ``fault`` its trial, and which of them are caught."""
        table = self._table(space)
        rows = np.zeros(len(faults.trial), ROW)
        rows["fault"] = faults.trial
        places = table.places[table.first[faults.region] + faults.element]
        for column in PLACE.names or ():
            rows[column] = places[column]
        transient = table.transient[faults.region]
        rows["on"], rows["off"] = np.where(transient, faults.step, 0), np.where(transient, faults.step + 1, -1)
        for number, (model, bits) in enumerate(table.kinds):
            of = np.flatnonzero(table.kind_of[faults.region] == number)
            known = table.masks[number]
            if known is None:
                rows["a"][of], rows["x"][of], way = masks(model, faults.variant[of], faults.drawn[of], bits)
            else:
                rows["a"][of], rows["x"][of], way = known[0][faults.variant[of]], known[1][faults.variant[of]], known[2]
            if way:  # the old value is that of the cycle before
                rows["way"][of], rows["on"][of] = way, np.maximum(rows["on"][of] - 1, 0)
        share = table.captured[faults.region]
        caught = (share == 1) | (draws.unit_interval(draws.words(faults.drawn, 0, _CAPTURED_LANE)) < share)
        return rows, caught

    def _effects(
        self, space: FaultSpace, faults: Faults, trial: NDArray[np.int64], inputs: NDArray[np.int64]
    ) -> _Effects:
        """What the faults of pairs (trial, input) do."""
        table = self._table(space)
        rows, caught = self._rows(space, faults)
        counts = np.diff(faults.bounds)[trial]
        fault = np.repeat(faults.bounds[trial] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        pair = np.repeat(np.arange(len(trial)), counts)
        acts, activity = caught[fault], table.activity[faults.region[fault]]
        resting = np.flatnonzero(acts & (activity < 1))
        for number in resting.tolist():
            of = inputs[pair[number]]
            acts[number] = faults.acts(float(activity[number]), np.array([of]), int(trial[pair[number]]))[0]
        fault, pair = fault[acts], pair[acts]
        found = rows[fault]
        found["fault"] = pair
        region = faults.region[fault].astype(np.int64)
        return _Effects(found, table.layer[region], region)

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
            inputs, trial = np.nonzero(recorder.awaited.T)
            for some in self._batches(inputs):
                changed, outputs = self._run(space, faults, trial[some], inputs[some])
                same = np.ones(len(inputs[some]), bool)
                same[changed] = False
                recorder.identical(trial[some][same], inputs[some][same])
                recorder.outputs(trial[some][changed], inputs[some][changed], outputs)

    def _batches(self, inputs: NDArray[np.int64]) -> Iterator[slice]:
        each = _BYTES_AN_OPERAND * max(layer.m * layer.k + layer.k * layer.n for layer in self.layers)
        step = min(_PAIRS_AT_ONCE, max(1, self._resources.memory_bytes // 4 // each))
        if self._golden_values.slots < self._runner.inputs:
            step = min(step, self._golden_values.slots)
        for begin in range(0, len(inputs), step):
            yield slice(begin, begin + step)

    def _run(
        self,
        space: FaultSpace,
        faults: Faults,
        trial: NDArray[np.int64],
        inputs: NDArray[np.int64],
        stages: NDArray[np.int8] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray]:
        """The pairs (trial, input) whose outputs differ from golden, and these; notes how far each error came."""
        golden = self._golden_values
        slot = golden.slots_of(inputs)
        effects = self._effects(space, faults, trial, inputs)
        hit = set(np.unique(effects.layer).tolist())
        hardware = {
            call: self._hardware(call, effects, slot, stages)
            for call, numbers in self._by_call.items()
            if hit & {-1, *numbers}
        }
        changed, outputs = self._network.outputs(golden, slot, hardware)
        if stages is not None:
            stages[changed] = 3
        return changed, outputs

    def _hardware(
        self, call: Call, effects: _Effects, slot: NDArray[np.int64], stages: NDArray[np.int8] | None
    ) -> Hardware:
        def act(moved: NDArray[np.bool_], arguments: Rows) -> Changes:
            parts = []
            for number in self._by_call[call]:
                rows, _ = effects.of_layer(number, self.simulator.cycles(self.mappings[number]))
                parts.append(self._elements(number, rows, slot, moved, arguments))
            found = _Elements.joined(parts)
            if stages is not None:
                golden = self._network.results(self._golden_values, call)[slot[found.pair], found.position]
                stages[found.pair] = np.maximum(stages[found.pair], 1)
                reached = found.pair[(found.value != golden) | moved[found.pair]]
                stages[reached] = np.maximum(stages[reached], 2)
            return Changes.of(len(slot), found.pair, found.position, found.value)

        return act

    def _elements(
        self,
        number: int,
        rows: NDArray,
        slot: NDArray[np.int64],
        moved: NDArray[np.bool_],
        arguments: Rows | None,
    ) -> _Elements:
        """What faulty hardware makes of a layer.

        Args:
            number: of the layer.
            rows: the faults; ``fault`` is the pair.
            slot: [pairs], where the fault-free values of each pair's input lie.
            moved: [pairs], whether the layer's arguments are others than these.
            arguments: gives them.
        """
        layer, faulty = self.layers[number], np.unique(rows["fault"])
        clean, dirty = faulty[~moved[faulty]], faulty[moved[faulty]]
        parts = []
        if len(clean) and self._keeps_operands and layer.shares_b:
            operands = self._kept_operands(number, slot[clean])
            parts.append(self._simulated(number, rows, clean, slot[clean], (), *operands))
        elif len(clean):
            slots, image = np.unique(slot[clean], return_inverse=True)
            tensors = self._network.arguments(self._golden_values, Call(layer.path, layer.call), slots)
            parts.append(self._simulated(number, rows, clean, image, tensors, *layer.operands(tensors)))
        if len(dirty) and arguments is not None:
            tensors = arguments(dirty)
            parts.append(self._simulated(number, rows, dirty, np.arange(len(dirty)), tensors, *layer.operands(tensors)))
        return _Elements.joined(parts)

    def _simulated(
        self,
        number: int,
        rows: NDArray,
        pairs: NDArray[np.int64],
        image: NDArray[np.int64],
        tensors: Sequence[Tensor],
        a: NDArray[np.int8],
        b: NDArray[np.int8],
    ) -> _Elements:
        """What the faults of some ``pairs``, each with an ``image`` of the operands a and b, make of a layer."""
        layer = self.layers[number]
        rows = rows[np.isin(rows["fault"], pairs)]
        rows["fault"] = np.searchsorted(pairs, rows["fault"])
        found = self.simulator.errors(self.mappings[number], a, b, image, rows)
        of = image[found.fault]
        products = _products(a, b, of, found.row, found.column) + found.delta
        value = layer.finish(tensors, of, found.row, found.column, products)
        return _Elements(pairs[found.fault], layer.position(found.row, found.column), value)

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
                with self._faulty(space, faults, trial, batch):
                    outputs = self._runner.run(batch)
                recorder.outputs(np.full(len(outputs), trial), batch.inputs, outputs)

    @contextmanager
    def _faulty(
        self,
        space: FaultSpace,
        faults: Faults,
        trial: int,
        batch: Batch,
        sums: list[tuple[str, int, NDArray[np.int64]]] | None = None,
    ) -> Iterator[None]:
        """The model with a trial's faults, for one forward pass of a batch.

        Args:
            space: where the faults come from.
            faults: of which one trial acts.
            trial: its number.
            batch: what is run.
            sums: is given, layer by layer, its name, how many sums it has, and what the faults add to some of them.
        """
        kept = torch.from_numpy(batch.kept)
        effects = self._effects(space, faults, np.full(len(kept), trial), batch.inputs)
        calls: Counter[str] = Counter()

        def after(path: str, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            call = Call(path, calls[path])
            calls[path] += 1
            mine = tuple(argument[kept] for argument in args)
            faulty = output.clone()
            flat = faulty.reshape(len(faulty), -1)
            for number in self._by_call.get(call, ()):
                layer, mapping = self.layers[number], self.mappings[number]
                rows, _ = effects.of_layer(number, self.simulator.cycles(mapping))
                a, b = layer.operands(mine)
                found = self.simulator.stream(mapping, a, b, np.arange(len(kept)), rows)
                products = _products(a, b, found.fault, found.row, found.column) + found.delta
                value = layer.finish(mine, found.fault, found.row, found.column, products)
                position = torch.from_numpy(layer.position(found.row, found.column))
                flat[kept[torch.from_numpy(found.fault)], position] = torch.from_numpy(value)
                if sums is not None and len(rows):
                    sums.append((layer.name, layer.m * layer.n, found.delta))
            return flat.reshape(output.shape)

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
            network's were not) or ``output`` (not masked).
        """
        inputs_of, trial = self._pairs(faults, inputs)
        stages = np.zeros(len(trial), np.int8)
        with self._runner.prepared():
            for some in self._batches(inputs_of):
                self._run(space, faults, trial[some], inputs_of[some], stages[some])
        names = pa.array(["array", "requantisation", "network", "output"])
        order = np.lexsort((inputs_of, trial))
        return pa.table(
            {"trial": trial[order], "input": inputs_of[order], "stage": names.take(pa.array(stages[order]))}
        )

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
                effects = self._effects(space, faults, trial, of)
                for number, layer in enumerate(self.layers):
                    rows, region = effects.of_layer(number, self.simulator.cycles(self.mappings[number]))
                    if not len(rows):
                        continue
                    found = self._elements(number, rows, slot, np.zeros(len(slot), bool), None)
                    results = self._network.results(self._golden_values, Call(layer.path, layer.call))
                    golden = results[slot[found.pair], found.position]
                    wrong = golden != found.value
                    pair = found.pair[wrong]
                    first = np.searchsorted(rows["fault"], pair)
                    columns = {
                        "trial": trial[pair],
                        "input": of[pair],
                        "layer": np.full(len(pair), layer.name, dtype=object),
                        "component": names[region[first]].astype(object),
                        "position": found.position[wrong],
                        "golden": golden[wrong],
                        "faulty": found.value[wrong],
                    }
                    tables.append(pa.table(columns, schema=_DEVIATIONS))
        return pa.concat_tables([_DEVIATIONS.empty_table(), *tables]).sort_by(
            [(name, "ascending") for name in ("trial", "input")]
        )

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
            with self._faulty(space, faults.take([0]), 0, batch, sums):
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
        if not any(fnmatchcase(name, _literal(pattern)) for name in names):
            raise TargetError(f"layers: no int8 layer matches {pattern!r}{near(pattern, names)}")
    return [layer for layer in lowered if any(fnmatchcase(layer.name, _literal(pattern)) for pattern in patterns)]


def _literal(pattern: str) -> str:
    """Brackets are part of names, not sets of characters."""
    return pattern.replace("[", "[[]")


def _products(
    a: NDArray[np.int8],
    b: NDArray[np.int8],
    image: NDArray[np.int64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The elements (image, row, column) of A @ B."""
    of_b = b.transpose(0, 2, 1)[image if len(b) > 1 else 0, column]
    return np.einsum("ek,ek->e", a[image, row].astype(np.int64), of_b.astype(np.int64))


def _spread(place: str, elements: int, error: NDArray, value: NDArray | None = None) -> dict[str, object]:
    return {
        "place": place,
        "elements": elements,
        "changed": int((error != 0).sum()),
        "nonfinite": 0 if value is None else int((~np.isfinite(value)).sum()),
        "max_abs_error": float(np.abs(error).max(initial=0.0)),
        "rms_error": float(np.sqrt((error**2).sum() / max(elements, 1))),
    }
