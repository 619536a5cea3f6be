"""What the layers of a network run on: where it can fail, and what its faults leave in the sums of a layer.

An array in HDL is simulated; an architecture without HDL is reasoned about from its description.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import FaultError, near
from saboteur.faults.space import Faults, FaultSpace, Region
from saboteur.levels.crosslayer.architecture import Architecture, Residence
from saboteur.levels.crosslayer.arrays import ArrayAdapter
from saboteur.levels.crosslayer.lowering import LoweredLayer
from saboteur.levels.crosslayer.mapping import mapped
from saboteur.levels.crosslayer.spec import AcceleratorFault, Where
from saboteur.levels.crosslayer.tiles import ArraySimulator, Errors
from saboteur.levels.hardware.designs import SystolicArray
from saboteur.levels.hardware.effects import FaultTable
from saboteur.levels.hardware.importing import Level
from saboteur.levels.hardware.models import Bits
from saboteur.levels.hardware.sites import Group, Sites, literal

ARRAY = "array"
"""The layer of permanent faults, which every layer of the network meets."""

_SITES: tuple[Where, ...] = ("flip_flops", "memories", "nets", "pins")
Part = TypeVar("Part")

_INDEX = re.compile(r"\d+")


@dataclass(frozen=True)
class Hits:
    """Single faults that act while a layer is computed, as columns, in order of pair.

    Attributes:
        row: [hits], index into the rows of a :class:`~saboteur.faults.space.Faults`.
        pair: [hits], the inference in which it acts, index into ``image``.
        image: [pairs], index into the operands.
    """

    row: NDArray[np.int64]
    pair: NDArray[np.int64]
    image: NDArray[np.int64]


class Machine(ABC):
    """The hardware that computes matrix products of int8 words.

    Args:
        layers: what it computes.
    """

    def __init__(self, layers: Sequence[LoweredLayer]):
        self.layers = layers

    @property
    @abstractmethod
    def identity(self) -> str:
        """All of it that decides answers, for the target's fingerprint."""

    @property
    @abstractmethod
    def level(self) -> str:
        """How closely it is modelled."""

    @abstractmethod
    def regions(self, spec: AcceleratorFault) -> Iterator[Region]:
        """The faults that ``spec`` describes.

        Raises:
            FaultError: for faults that the hardware does not have.
        """

    def acting(self, space: FaultSpace, faults: Faults) -> NDArray[np.bool_]:
        """[rows]: which single faults act at all."""
        del space
        return np.ones(len(faults.trial), bool)

    def fails(self, space: FaultSpace, faults: Faults) -> NDArray[np.bool_]:
        """[rows]: which single faults end the run, so that there are no sums."""
        del space
        return np.zeros(len(faults.trial), bool)

    @abstractmethod
    def errors(
        self,
        space: FaultSpace,
        faults: Faults,
        number: int,
        hits: Hits,
        a: NDArray[np.int8],
        b: NDArray[np.int8],
        plain: bool = False,
    ) -> Errors:
        """What faults leave in the sums of a layer; the column ``fault`` of the errors is the pair.

        Args:
            space: where the faults come from.
            faults: the faults.
            number: of the layer.
            hits: which of them act in which inference.
            a: [images, m, k] operands.
            b: [1 or images, k, n] operands.
            plain: take the slow way, by which the fast one is proved.
        """


# -- arrays in HDL ------------------------------------------------------------------------------------------------


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
    for group in sites.groups(where).values():  # type: ignore[arg-type]
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


class HdlMachine(Machine):
    """An array in HDL, simulated at word or gate level.

    Args:
        array: a shipped array, or an adapter of the user's own.
        level: of the simulation.
        layers: what it computes.

    Raises:
        TargetError: when the array cannot be simulated, or has an unknown dataflow.
    """

    def __init__(self, array: SystolicArray | ArrayAdapter, level: Level, layers: Sequence[LoweredLayer]):
        super().__init__(layers)
        self.simulator = ArraySimulator(array, level)
        array = self.simulator.array
        self.mappings = [mapped(layer, array.dataflow, array.rows, array.cols) for layer in layers]  # type: ignore[arg-type]
        """How each layer is cut into tiles."""
        self._captured: dict[Region, float] = {}
        self._last_table: tuple[FaultSpace, FaultTable] | None = None
        self._last_rows: tuple[FaultSpace, Faults, NDArray, NDArray[np.bool_]] | None = None
        self._found: dict[Where, dict[str, Component]] = {}

    @property
    def identity(self) -> str:
        """Of the netlist and its driver."""
        array = self.simulator.array
        return f"{self.simulator.netlist.digest} {array.dataflow} {array.rows} {array.cols}"

    @property
    def level(self) -> str:
        """Word or gate."""
        return self.simulator.netlist.level

    def regions(self, spec: AcceleratorFault) -> Iterator[Region]:
        """Like words of all processing elements are a region: for each layer, or for all if the fault stays."""
        if spec.where == "components":
            raise FaultError("where: components are those of an architecture; an array in HDL has flip_flops, nets ...")
        if getattr(spec.model, "way", "apply") != "apply" and spec.where != "nets":
            raise FaultError(f"model: {spec.model.kind} is a fault of nets, not of {spec.where}")
        for component in _chosen(spec, self._components(spec.where)):
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
                if self._captured.setdefault(region, spec.captured) != spec.captured:
                    raise FaultError(f"captured: {region.site} has it twice, with {spec.captured} and another value")
                yield region

    def _moments(self, spec: AcceleratorFault) -> Iterator[tuple[str, int]]:
        if spec.duration != "transient":
            yield ARRAY, 1
            return
        for layer, mapping in zip(self.layers, self.mappings, strict=True):
            yield layer.name, self.simulator.cycles(mapping)

    def _components(self, where: Where) -> dict[str, Component]:
        if where not in self._found:
            array = self.simulator.array
            self._found[where] = components(self.simulator.sites, where, array.rows, array.cols)
        return self._found[where]

    def _component(self, region: Region) -> Component:
        for where in _SITES:
            found = self._components(where).get(region.component)
            if found is not None and found.shape == region.shape:
                return found
        raise FaultError(f"site: {region.site!r} is not in this array")

    def _table(self, space: FaultSpace) -> FaultTable:
        if self._last_table is None or self._last_table[0] is not space:
            places = [self._component(region).places for region in space.regions]
            captured = [self._captured.get(region, 1.0) for region in space.regions]
            table = FaultTable.of(space.regions, places, captured)
            self._last_table = space, table
        return self._last_table[1]

    def acting(self, space: FaultSpace, faults: Faults) -> NDArray[np.bool_]:
        """All but the pulses that miss the capture window."""
        return self._rows(space, faults)[1]

    def _rows(self, space: FaultSpace, faults: Faults) -> tuple[NDArray, NDArray[np.bool_]]:
        """Each single fault as a row of dtype ROW, ``off`` −1 where it stays for the whole stream; which are caught."""
        if self._last_rows is not None and self._last_rows[0] is space and self._last_rows[1] is faults:
            return self._last_rows[2:]
        table = self._table(space)
        rows, caught = table.rows(faults, 0, -1), table.caught(faults)
        self._last_rows = space, faults, rows, caught
        return rows, caught

    def errors(  # noqa: D102
        self,
        space: FaultSpace,
        faults: Faults,
        number: int,
        hits: Hits,
        a: NDArray[np.int8],
        b: NDArray[np.int8],
        plain: bool = False,
    ) -> Errors:
        mapping = self.mappings[number]
        rows = self._rows(space, faults)[0][hits.row]
        rows["off"] = np.where(rows["off"] < 0, self.simulator.cycles(mapping) + 1, rows["off"])
        rows["fault"] = hits.pair
        if plain or not len(rows):
            return self.simulator.stream(mapping, a, b, hits.image, rows)
        # Faults that are side by side in the array are simulated side by side: what they have in common is fast.
        place = np.zeros(len(hits.image), np.int64)
        place[rows["fault"][::-1]] = rows["place"][::-1]
        order = np.argsort(place, kind="stable")
        rank = np.argsort(order)
        rows["fault"] = rank[hits.pair]
        found = self.simulator.errors(mapping, a, b, hits.image[order], rows)
        return Errors(order[found.fault], found.row, found.column, found.delta)


# -- architectures ------------------------------------------------------------------------------------------------


class DescribedMachine(Machine):
    """An accelerator without HDL: the components of a description, hit while they hold something that is still read.

    Where faults of one trial act together in a layer, their errors are added up.

    Args:
        architecture: the description.
        layers: what it computes.
    """

    def __init__(self, architecture: Architecture, layers: Sequence[LoweredLayer]):
        super().__init__(layers)
        self.architecture = architecture
        self._numbers = {layer.name: number for number, layer in enumerate(layers)}
        self._residences: dict[tuple[int, str], Residence] = {}

    @property
    def identity(self) -> str:
        """The description."""
        return self.architecture.model_dump_json()

    @property
    def level(self) -> str:
        """Architecture."""
        return "architecture"

    def residence(self, number: int, component: str) -> Residence:
        """When the words of a component hold something that is still read, in one layer."""
        key = number, component
        if key not in self._residences:
            found = self.architecture.component(component)
            self._residences[key] = self.architecture.residence(found, self.layers[number])
        return self._residences[key]

    def regions(self, spec: AcceleratorFault) -> Iterator[Region]:
        """A region for each layer and component: its resident (word, cycle) pairs, once for each bit of control."""
        if spec.where != "components":
            raise FaultError(f"where: {spec.where} are those of an array in HDL; an architecture has components")
        if spec.duration != "transient" or not spec.model.memoryless:
            raise FaultError(
                f"components: take transient faults of words; {spec.duration} {spec.model.kind} needs an array in HDL"
            )
        for component in _chosen(spec, {part.name: part for part in self.architecture.components}):
            for number, layer in enumerate(self.layers):
                residence = self.residence(number, component.name)
                if residence.size:
                    yield Region(
                        site=f"{layer.name}/{component.name}",
                        layer=layer.name,
                        component=component.name,
                        shape=(residence.size, component.flip_flops or 1),
                        format=Bits(component.word_bits),
                        model=spec.model if component.category == "datapath" else component.model,
                        duration="transient",
                    )

    def fails(self, space: FaultSpace, faults: Faults) -> NDArray[np.bool_]:
        """Faults of global control."""
        of_region = [
            self.architecture.component(region.component).category == "global_control" for region in space.regions
        ]
        return np.array(of_region)[faults.region]

    def errors(  # noqa: D102
        self,
        space: FaultSpace,
        faults: Faults,
        number: int,
        hits: Hits,
        a: NDArray[np.int8],
        b: NDArray[np.int8],
        plain: bool = False,
    ) -> Errors:
        del plain
        layer, parts = self.layers[number], []
        regions = faults.region[hits.row]
        for index in np.unique(regions).tolist():
            region, of = space.regions[index], np.flatnonzero(regions == index)
            component = self.architecture.component(region.component)
            row = hits.row[of]
            flip_flops = component.flip_flops or 1
            word, cycle = self.residence(number, component.name).at(faults.element[row] // flip_flops)

            def corrupt(
                words: NDArray[np.uint64], fault: NDArray[np.int64], region: Region = region, row: NDArray = row
            ) -> NDArray[np.uint64]:
                which = row[fault]
                return region.model.corrupt(words, faults.variant[which], faults.drawn[which], region.format)

            image = hits.image[hits.pair[of]]
            found = self.architecture.errors(component, layer, a, b, image, word, cycle, corrupt)
            parts.append((hits.pair[of][found.fault], found.row, found.column, found.delta))
        return _summed(parts, layer)


def _summed(parts: list[tuple[NDArray, ...]], layer: LoweredLayer) -> Errors:
    none = (np.zeros(0, np.int64),) * 4
    pair, row, column, delta = (np.concatenate(columns) for columns in zip(none, *parts, strict=True))
    key, which = np.unique((pair * layer.m + row) * layer.n + column, return_inverse=True)
    total = np.zeros(len(key), np.int64)
    np.add.at(total, which, delta)
    total = total.astype(np.int32).astype(np.int64)
    changed = total != 0
    pair, element = np.divmod(key[changed], layer.m * layer.n)
    return Errors(pair, *np.divmod(element, layer.n), total[changed])


def _chosen(spec: AcceleratorFault, known: dict[str, Part]) -> list[Part]:
    if not known:
        raise FaultError(f"where: the array has no {spec.where}")
    chosen: set[str] = set()
    for pattern in spec.names:
        matching = {name for name in known if fnmatchcase(name, literal(pattern))}
        if not matching:
            raise FaultError(f"names: no {spec.where} match {pattern!r}{near(pattern, known)}")
        chosen |= matching
    return [part for name, part in known.items() if name in chosen]
