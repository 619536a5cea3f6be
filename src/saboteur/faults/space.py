"""The fault space: every fault that could be, counted and numbered, never materialised.

A :class:`Region` is a block of the population (all elements of one site, at all its steps, under all
variants of one model), numbered like an array of shape [elements, steps, variants]. A :class:`Stratum` is a
union of such blocks, each possibly cut to a range of variants, numbered one after the other. Both
directions, number to fault and fault to number, are arithmetic over columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saboteur.errors import FaultError, near
from saboteur.faults import draws
from saboteur.faults.formats import NumberFormat
from saboteur.faults.models import FaultModel

Duration = Literal["transient", "intermittent", "permanent"]
StratifyBy = Literal["network", "layer", "bit", "layer_bit", "site", "component"]

_DRAWN_LANE = 101
_ACTS_LANE = 102


@dataclass(frozen=True)
class Region:
    """One block of the fault space.

    Attributes:
        site: what is hit, unique for a target: ``conv1.weight``, ``layer1.0.relu:output``.
        layer: the layer (or instance) that it belongs to.
        component: its kind: ``weight``, ``bias``, ``activation``, ``register`` and the like.
        shape: how its elements are indexed, such as the shape of a tensor.
        steps: at how many moments of an inference it can be hit; 1 where time does not matter.
        format: the number format of its words.
        model: the fault model.
        duration: how long the fault lasts.
        activity: the share of inferences in which an intermittent fault acts; 1 otherwise.
    """

    site: str
    layer: str
    component: str
    shape: tuple[int, ...]
    format: NumberFormat
    model: FaultModel
    duration: Duration = "permanent"
    steps: int = 1
    activity: float = 1.0

    @property
    def elements(self) -> int:
        """How many words can be hit."""
        return prod(self.shape)

    @cached_property
    def variants(self) -> int:
        """How many different faults each word can have at each step."""
        return self.model.variants(self.format.bits)

    @property
    def size(self) -> int:
        """How many faults the region holds."""
        return self.elements * self.steps * self.variants

    @cached_property
    def variant_bits(self) -> NDArray[np.int16]:
        """The lowest bit of each variant, −1 where the model acts on the value: [variants].

        Raises:
            FaultError: when there are too many variants to list, or the model does not number them by bit.
        """
        if self.variants > 10**7:
            raise FaultError(
                f"model: {self.model.kind} has {self.variants} variants for each word of {self.site}, too many "
                "to tell apart by bit; stratify by network, layer, site or component"
            )
        bits = self.model.bit(np.arange(self.variants), self.format.bits)
        if (np.diff(bits) < 0).any():
            raise FaultError(f"model: {self.model.kind}: the lowest bit must never decrease with the variant")
        return bits


@dataclass(frozen=True, eq=False)
class Faults:
    """Columns of single faults, grouped into trials; one trial can hold none, one or many.

    Attributes:
        key: uint64 [trials], the random key of each trial.
        trial: int64 [rows], the trial of each row, non-decreasing, 0 .. trials − 1.
        region: int32 [rows], index into the space's regions.
        element: int64 [rows], flat index into the region's shape.
        step: int32 [rows], the moment of the inference.
        variant: int64 [rows], which fault of the region's model.
        rank: int64 [rows], the place of each row in its whole trial; counted from the rows if absent.

    Raises:
        FaultError: when the columns differ in length or the trials are not in order.
    """

    key: NDArray[np.uint64]
    trial: NDArray[np.int64]
    region: NDArray[np.int32]
    element: NDArray[np.int64]
    step: NDArray[np.int32]
    variant: NDArray[np.int64]
    rank: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if len({len(c) for c in (self.trial, self.region, self.element, self.step, self.variant)}) != 1:
            raise FaultError("faults: the columns differ in length")
        if len(self.trial) and (
            self.trial[0] < 0 or self.trial[-1] >= self.trials or (self.trial[1:] < self.trial[:-1]).any()
        ):
            raise FaultError(f"faults: trials must be non-decreasing within 0 .. {self.trials - 1}")

    @property
    def trials(self) -> int:
        """How many trials."""
        return len(self.key)

    @cached_property
    def drawn(self) -> NDArray[np.uint64]:
        """A random word for each row, a pure function of the trial's key and the row's rank in its trial."""
        return draws.words(self.key[self.trial], self._ranks, lane=_DRAWN_LANE)

    @cached_property
    def _ranks(self) -> NDArray[np.int64]:
        if self.rank is not None:
            return self.rank
        return np.arange(len(self.trial)) - self.bounds[self.trial]

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """Trial t holds the rows bounds[t] .. bounds[t + 1] − 1: [trials + 1]."""
        return np.searchsorted(self.trial, np.arange(self.trials + 1))

    def rows(self, rows: NDArray) -> Faults:
        """The given rows (numbers in non-decreasing order, or a mask), in the same trials, with the same draws."""
        return Faults(
            self.key,
            self.trial[rows],
            self.region[rows],
            self.element[rows],
            self.step[rows],
            self.variant[rows],
            self._ranks[rows],
        )

    def take(self, trials: ArrayLike) -> Faults:
        """The given trials, renumbered from 0, with the same draws."""
        trials = np.asarray(trials, np.int64)
        renumbered, rows = expanded(self.bounds[trials], self.bounds[trials + 1])
        return Faults(
            self.key[trials],
            renumbered,
            self.region[rows],
            self.element[rows],
            self.step[rows],
            self.variant[rows],
            self._ranks[rows],
        )

    def acts(self, activity: float, inputs: ArrayLike, trial: int) -> NDArray[np.bool_]:
        """In which of ``inputs`` an intermittent fault of ``trial`` acts."""
        return draws.uniform(self.key[trial], inputs, lane=_ACTS_LANE) < activity


def expanded(first: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers ``first`` .. ``last`` − 1 of each of several ranges, one after the other.

    Returns:
        Which range each number is of, and the numbers.
    """
    counts = last - first
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)


@dataclass(frozen=True, eq=False)
class Stratum:
    """A part of the space: blocks of regions, each with a range of variants; faults numbered from 0."""

    name: str
    layer: str | None
    bit: int | None
    regions: NDArray[np.int32]
    first_variant: NDArray[np.int64]
    last_variant: NDArray[np.int64]
    sizes: NDArray[np.int64] = field(repr=False)

    @property
    def size(self) -> int:
        """How many faults."""
        return int(self.sizes.sum())


@dataclass(frozen=True)
class FaultSpace:
    """All faults of a campaign: its regions one after the other."""

    regions: tuple[Region, ...]

    def __post_init__(self) -> None:
        if self.size == 0:
            raise FaultError("faults: the fault space is empty; no site is selected")
        if self.size > 2**62:
            raise FaultError(f"faults: {self.size} faults are more than 2**62; select fewer sites or variants")
        seen: set[Region] = set()
        for region in self.regions:
            if region in seen:
                raise FaultError(f"faults: {region.site} has the {region.duration} fault {region.model.name} twice")
            seen.add(region)

    @cached_property
    def size(self) -> int:
        """How many single faults."""
        return sum(region.size for region in self.regions)

    @property
    def sites(self) -> list[str]:
        """The distinct sites, in order."""
        return list(dict.fromkeys(region.site for region in self.regions))

    @cached_property
    def _steps(self) -> NDArray[np.int64]:
        return np.array([region.steps for region in self.regions], np.int64)

    def strata(self, by: StratifyBy) -> tuple[Stratum, ...]:
        """The space cut into strata, in order of first appearance; together they hold each fault once.

        Raises:
            FaultError: when ``by`` is not a known way to cut.
        """
        if by not in get_args(StratifyBy):
            raise FaultError(f"stratify: {by!r} is not one of {', '.join(get_args(StratifyBy))}")
        blocks: dict[tuple[str | None, int | None], list[tuple[int, int, int]]] = {}
        for i, region in enumerate(self.regions):
            group = {
                "network": "network",
                "bit": None,
                "layer": region.layer,
                "layer_bit": region.layer,
                "site": region.site,
                "component": region.component,
            }[by]
            if by in ("bit", "layer_bit"):
                bits, first = np.unique(region.variant_bits, return_index=True)
                last = np.append(first[1:], region.variants)
                for bit, lo, hi in zip(bits.tolist(), first.tolist(), last.tolist(), strict=True):
                    blocks.setdefault((group, bit), []).append((i, lo, hi))
            else:
                blocks.setdefault((group, None), []).append((i, 0, region.variants))
        return tuple(self._stratum(by, group, bit, parts) for (group, bit), parts in blocks.items())

    def _stratum(self, by: str, group: str | None, bit: int | None, parts: list[tuple[int, int, int]]) -> Stratum:
        regions, first, last = (np.array(column) for column in zip(*parts, strict=True))
        sizes = [self.regions[i].elements * self.regions[i].steps * (hi - lo) for i, lo, hi in parts]
        label = [] if bit is None else ["value" if bit < 0 else f"bit {bit}"]
        return Stratum(
            name=" ".join(([group] if group is not None else []) + label),
            layer=group if by in ("layer", "layer_bit") else None,
            bit=bit,
            regions=regions.astype(np.int32),
            first_variant=first,
            last_variant=last,
            sizes=np.array(sizes, np.int64),
        )

    def decode(self, stratum: Stratum, index: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Region, element, step and variant of the faults that ``index`` [n] numbers in ``stratum``.

        Raises:
            FaultError: when a number is not in the stratum.
        """
        index = np.asarray(index, np.int64)
        if index.size and (index.min() < 0 or index.max() >= stratum.size):
            raise FaultError(f"index: {stratum.name} numbers its faults 0 .. {stratum.size - 1}")
        ends = np.cumsum(stratum.sizes)
        part = np.searchsorted(ends, index, side="right")
        local = index - (ends - stratum.sizes)[part]
        width = (stratum.last_variant - stratum.first_variant)[part]
        region = stratum.regions[part]
        rest, variant = np.divmod(local, width)
        element, step = np.divmod(rest, self._steps[region])
        return region, element, step.astype(np.int32), variant + stratum.first_variant[part]

    def encode(
        self, stratum: Stratum, region: NDArray, element: NDArray, step: NDArray, variant: NDArray
    ) -> NDArray[np.int64]:
        """The numbers in ``stratum`` of the given faults; the inverse of :meth:`decode`; −1 outside of it."""
        starts = np.cumsum(stratum.sizes) - stratum.sizes
        part_of = np.full(len(self.regions), -1)
        part_of[stratum.regions] = np.arange(len(stratum.regions))
        part = part_of[region]
        first, last = stratum.first_variant[part], stratum.last_variant[part]
        local = (element * self._steps[region] + step) * (last - first) + variant - first
        return np.where((part >= 0) & (variant >= first) & (variant < last), starts[part] + local, -1)

    def bits(self, region: NDArray[np.int32], variant: NDArray[np.int64]) -> NDArray[np.int16]:
        """The lowest bit that each fault touches; −1 where its model acts on the value."""
        bit = np.full(np.shape(region), -1, np.int16)
        for i in np.unique(region):
            rows = region == i
            bit[rows] = self.regions[i].model.bit(variant[rows], self.regions[i].format.bits)
        return bit

    def region_of(self, site: str) -> int:
        """The index of the first region of ``site``.

        Raises:
            FaultError: when no region has that site, with the near names.
        """
        for i, region in enumerate(self.regions):
            if region.site == site:
                return i
        raise FaultError(f"site: {site!r} is not in the fault space{near(site, self.sites)}")
