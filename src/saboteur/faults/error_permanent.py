"""Errors that a permanent fault of an array leaves in every layer that runs on it: profiles, and how they are learned.

An array computes a layer tile by tile, so that what is broken in it is met again by every so many-th channel and
every so many-th position of every layer: the fault's *place*, which is the same in all inferences. How likely a value
in the place is to be wrong, and how far it is then off, is counted by channel, as all values of a channel meet the
same weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from saboteur.errors import FaultError, near
from saboteur.faults.error_file import ChangeName, Count, Frozen, Positive
from saboteur.faults.error_patterns import LayerShape, ShapeClass
from saboteur.faults.error_values import LayerOutput, code_of, name_of, octaves

_RANGES = r"^\d+(-\d+)?(,\d+(-\d+)?)*$"
_RARE, _MOSTLY_UP, _MOSTLY_DOWN, _OCTAVES_ALIKE = 4, 0.85, 0.15, 2

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Ranges = Annotated[str, Field(pattern=_RANGES)]


def members(ranges: str) -> Integers:
    """The whole numbers of ``0-3,7``, in increasing order."""
    ends = [tuple(map(int, part.split("-"))) for part in ranges.split(",")]
    return np.unique(np.concatenate([np.arange(end[0], end[-1] + 1) for end in ends]))


def ranges(numbers: Integers) -> str:
    """Distinct increasing whole numbers as ``0-3,7``; the inverse of :func:`members`."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


class Repeats(Frozen):
    """After how many positions and channels of a layer the array is at the same place again: the size of a tile."""

    positions: Positive
    channels: Positive


class Place(Frozen):
    """Where values can be wrong, counted from the beginning of a tile, and of how many faults that was seen."""

    channels: Ranges
    positions: Ranges
    count: Positive

    @field_validator("channels", "positions")
    @classmethod
    def _in_order(cls, given: str) -> str:
        for part in re.findall(r"(\d+)-(\d+)", given):
            if int(part[0]) >= int(part[1]):
                raise ValueError(f"{'-'.join(part)} is no range")
        return given


class ChannelErrors(Frozen):
    """Channels of a layer, each under one fault, that behave alike.

    Attributes:
        count: how many of them were seen.
        values: how many values they have in the places of their faults, over the inferences in which the layer's
            output was wrong.
        values_at_bottom: how many of these are at the layer's lower clamp, by how often each element is.
        changes: of the wrong ones that were above it.
        changes_at_bottom: of the wrong ones that were at it.
    """

    count: Positive
    values: Positive
    values_at_bottom: Count = 0
    changes: dict[ChangeName, Positive] = Field(default_factory=dict)
    changes_at_bottom: dict[ChangeName, Positive] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_more_wrong_than_there_are(self) -> ChannelErrors:
        for name, values, changes in (
            ("changes", self.values - self.values_at_bottom, self.changes),
            ("changes_at_bottom", self.values_at_bottom, self.changes_at_bottom),
        ):
            if sum(changes.values()) > values:
                raise ValueError(f"{name}: {sum(changes.values())} of {values} values")
        return self


class LayerErrors(Frozen):
    """What faults of one kind do to one layer, or one class of layers, that their places reach.

    Attributes:
        layer: its name; ``None`` where it speaks of all layers of the shape.
        shape: the class of its shape.
        inferences: how many faulty ones were observed.
        reached: in how many of these its output was wrong.
        channels: what was seen in these, like channels together.
    """

    layer: str | None = None
    shape: ShapeClass
    inferences: Positive
    reached: Count
    channels: tuple[ChannelErrors, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> LayerErrors:
        if self.reached > self.inferences:
            raise ValueError(f"reached: {self.reached} of {self.inferences} inferences")
        if bool(self.reached) != bool(self.channels):
            raise ValueError(f"channels: {len(self.channels)} kinds where {self.reached} inferences were reached")
        return self


class PermanentProfile(Frozen):
    """What permanent faults of one kind in one component do to all layers that run on the array.

    Attributes:
        component: of the hardware, such as a register class.
        fault: which of its faults, such as ``stuck_at bit 3 (1)``; empty where all are taken together.
        population: how many faults it stands for, which is how profiles weigh.
        faults: how many were observed.
        repeats: the size of a tile.
        places: of the faults that were ever seen to reach a layer; the others do nothing.
        layers: what they do to each.
    """

    component: str
    fault: str = ""
    population: Positive
    faults: Positive
    repeats: Repeats
    places: tuple[Place, ...] = ()
    layers: tuple[LayerErrors, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> PermanentProfile:
        seen = sum(place.count for place in self.places)
        if seen > self.faults:
            raise ValueError(f"places: {seen} of {self.faults} faults")
        for place in self.places:
            for name in ("channels", "positions"):
                last, size = members(getattr(place, name))[-1], getattr(self.repeats, name)
                if last >= size:
                    raise ValueError(f"{name}: {last} in a tile of {size}")
        return self

    @property
    def masked(self) -> float:
        """The share of faults that were never seen to reach a layer."""
        return 1 - sum(place.count for place in self.places) / self.faults

    def of_layer(self, layer: str, shape: LayerShape) -> LayerErrors | None:
        """What they do to one layer: the one of that name, else of its class, else of any."""
        chosen = [found for found in self.layers if found.layer == layer]
        chosen = chosen or [found for found in self.layers if found.shape == shape.shape_class] or list(self.layers)
        return together(chosen) if chosen else None

    def by_shape(self) -> PermanentProfile:
        """The same for any network: layers of one class taken together, unnamed."""
        shapes = dict.fromkeys(found.shape for found in self.layers)
        layers = [together([found for found in self.layers if found.shape == shape]) for shape in shapes]
        return self.model_copy(update={"layers": tuple(found.model_copy(update={"layer": None}) for found in layers)})


def together(layers: Sequence[LayerErrors]) -> LayerErrors:
    """Several layers as one: counts added up."""
    if len(layers) == 1:
        return layers[0]
    inferences = sum(found.inferences for found in layers)
    return LayerErrors(
        layer=layers[0].layer if len({found.layer for found in layers}) == 1 else None,
        shape=layers[0].shape,
        inferences=inferences,
        reached=sum(found.reached for found in layers),
        channels=tuple(channel for found in layers for channel in found.channels),
    )


# -- learning -----------------------------------------------------------------------------------------------


class Observed(NamedTuple):
    """Wrong values, as columns: the row of the trial, the input, flat position, fault-free and faulty value."""

    trial: Integers
    input: Integers
    position: Integers
    golden: Floats
    faulty: Floats


def profiles(
    observed: Mapping[str, Observed],
    trials: pa.Table,
    outputs: Mapping[str, LayerOutput],
    repeats: tuple[int, int] | None,
    populations: Mapping[tuple[str, str], int],
) -> tuple[PermanentProfile, ...]:
    """Learn what permanent faults do.

    Args:
        observed: the wrong values of each layer.
        trials: a row for each: ``component``, ``fault`` and ``inferences``.
        outputs: the fault-free output of each layer.
        repeats: after how many positions and channels the array is at the same place; never if absent.
        populations: how many faults each (component, fault) stands for; the number of trials if absent.
    """
    for layer in observed:
        if layer not in outputs:
            raise FaultError(f"outputs: nothing is known of the layer {layer!r}{near(layer, outputs)}")
    shapes = [output.shape for output in outputs.values()]
    tile = repeats or (max(shape.positions for shape in shapes), max(shape.channels for shape in shapes))
    places = _Places(len(trials), tile)
    for layer, rows in observed.items():
        places.add(rows, outputs[layer].shape)
    names = [trials[name].to_numpy(zero_copy_only=False).astype(str) for name in ("component", "fault")]
    inferences = trials["inferences"].to_numpy()
    kinds = list(dict.fromkeys(zip(*(column.tolist() for column in names), strict=True)))
    number = {kind: i for i, kind in enumerate(kinds)}
    kind = np.array([number[pair] for pair in zip(*(column.tolist() for column in names), strict=True)])
    found: list[list[LayerErrors]] = [[] for _ in kinds]
    nothing, no_values = np.zeros(0, np.int64), np.zeros(0, np.float64)
    for layer, output in outputs.items():
        rows = observed.get(layer, Observed(nothing, nothing, nothing, no_values, no_values))
        for i, errors in _in_layer(layer, output, rows, places, kind, inferences):
            found[i].append(errors)
    return tuple(
        PermanentProfile(
            component=component,
            fault=fault,
            population=populations.get((component, fault), int((kind == i).sum())),
            faults=int((kind == i).sum()),
            repeats=Repeats(positions=tile[0], channels=tile[1]),
            places=places.seen(np.flatnonzero(kind == i)),
            layers=tuple(found[i]),
        )
        for i, (component, fault) in enumerate(kinds)
    )


class _Places:
    """Which channels and positions of a tile each trial was seen to reach."""

    def __init__(self, trials: int, tile: tuple[int, int]):
        self._tile = tile
        self._positions, self._channels = (np.zeros((trials, size), bool) for size in tile)

    def add(self, rows: Observed, shape: LayerShape) -> None:
        channel, position = shape.split(rows.position)
        self._positions[rows.trial, position % self._tile[0]] = True
        self._channels[rows.trial, channel % self._tile[1]] = True

    def within(self, shape: LayerShape) -> tuple[Integers, NDArray[np.bool_]]:
        """How many positions of a layer are in each trial's place [trials], and which channels [trials, channels]."""
        positions = self._positions[:, np.arange(shape.positions) % self._tile[0]].sum(axis=1)
        return positions, self._channels[:, np.arange(shape.channels) % self._tile[1]]

    def at_bottom(self, output: LayerOutput) -> Floats:
        """How many values of each channel are at the lower clamp in an inference, of those in the trial's place.

        Returns:
            [trials, channels], on average over inferences.
        """
        shape = output.shape
        positions = self._positions[:, np.arange(shape.positions) % self._tile[0]]
        channel, position = (part.ravel() for part in np.indices((shape.channels, shape.positions)))
        shares = output.bottom_shares()[shape.join(channel, position)].reshape(shape.channels, shape.positions)
        return positions.astype(np.float64) @ shares.T

    def seen(self, trials: Integers) -> tuple[Place, ...]:
        both = np.concatenate([self._channels, self._positions], axis=1)[trials]
        distinct, counts = np.unique(both[both.any(axis=1)], axis=0, return_counts=True)
        channels, positions = np.split(distinct, [self._tile[1]], axis=1)
        return tuple(
            Place(channels=ranges(np.flatnonzero(c)), positions=ranges(np.flatnonzero(p)), count=n)
            for c, p, n in zip(channels, positions, counts.tolist(), strict=True)
        )


def _in_layer(
    layer: str, output: LayerOutput, rows: Observed, places: _Places, kind: Integers, inferences: Integers
) -> list[tuple[int, LayerErrors]]:
    """What the faults of each kind that reach a layer do to it."""
    positions, touched = places.within(output.shape)
    meets = (positions > 0) & touched.any(axis=1)
    key = np.unique(np.stack([rows.trial, rows.input]), axis=1)
    reached = np.bincount(key[0], minlength=len(kind))
    channel, _ = output.shape.split(rows.position)
    codes, at_low = output.changes(rows.golden, rows.faulty), rows.golden <= output.bottom
    bottom = places.at_bottom(output)
    clamped = clamp_class(bottom, positions[:, None])
    bottom *= reached[:, None]
    alike = _alike(rows, codes, channel, touched, positions * reached, clamped)
    columns = np.stack([kind[rows.trial], alike[rows.trial, channel], at_low, codes])
    changes: dict[tuple[int, int, int], dict[str, int]] = {}
    distinct, counts = np.unique(columns, axis=1, return_counts=True)
    for (of, behaviour, at_bottom, code), count in zip(distinct.T.tolist(), counts.tolist(), strict=True):
        changes.setdefault((of, behaviour, at_bottom), {})[name_of(code)] = count
    found = []
    for of in np.unique(kind[meets]).tolist():
        mine = np.flatnonzero(meets & (kind == of))
        channels = []
        for behaviour in np.unique(alike[mine]).tolist():
            if behaviour < 0:
                continue
            trial, channel = np.nonzero(alike[mine] == behaviour)
            values = int((positions * reached)[mine][trial].sum())
            above, low = (changes.get((of, behaviour, place), {}) for place in (0, 1))
            expected = round(bottom[mine[trial], channel].sum())
            channels.append(
                ChannelErrors(
                    count=len(trial),
                    values=values,
                    values_at_bottom=min(max(expected, sum(low.values())), values - sum(above.values())),
                    changes=_sorted(above),
                    changes_at_bottom=_sorted(low),
                )
            )
        errors = LayerErrors(
            layer=layer,
            shape=output.shape.shape_class,
            inferences=int(inferences[mine].sum()),
            reached=int(reached[mine].sum()),
            channels=tuple(channels),
        )
        found.append((of, errors))
    return found


CLAMP_CLASSES = 5


def clamp_class(at_bottom: NDArray, values: NDArray) -> Integers:
    """In which fifth the share of values at the lower clamp lies."""
    share = at_bottom / np.maximum(values, 1)
    return np.clip((share * CLAMP_CLASSES).astype(np.int64), 0, CLAMP_CLASSES - 1)


def _alike(
    rows: Observed,
    codes: Integers,
    channel: Integers,
    touched: NDArray[np.bool_],
    values: Integers,
    clamped: Integers,
) -> Integers:
    """A number for how each channel [trials, channels] behaves; −1 where it is not in the trial's place.

    By how often values are wrong (in octaves), whether they move up, down or both, by how much (in pairs of octaves),
    and how many are at the lower clamp.
    """
    shape = touched.shape
    at = rows.trial * shape[1] + channel

    def total(weights: NDArray[Any] | None = None) -> Floats:
        return np.bincount(at, weights, shape[0] * shape[1]).astype(np.float64).reshape(shape)

    wrong = total()
    some = np.maximum(wrong, 1)
    with np.errstate(invalid="ignore"):
        up = total(rows.faulty > rows.golden) / some
    size = total(octaves(codes)) / some
    rarity = np.clip(np.floor(-np.log2(np.maximum(wrong, 1e-9) / np.maximum(values, 1)[:, None])), 0, _RARE)
    way = np.where(up > _MOSTLY_UP, 2, np.where(up < _MOSTLY_DOWN, 0, 1))
    behaviour = 1 + (np.round(size / _OCTAVES_ALIKE).astype(np.int64) + 1000) * 100 + rarity.astype(np.int64) * 10 + way
    behaviour = np.where(wrong > 0, behaviour, 0) * CLAMP_CLASSES + clamped
    return np.where(touched & (values > 0)[:, None], behaviour, -1)


def _sorted(changes: dict[str, int]) -> dict[str, int]:
    return dict(sorted(changes.items(), key=lambda item: code_of(item[0])))
