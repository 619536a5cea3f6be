"""Draws errors of a learned model, as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from saboteur.errors import FaultError
from saboteur.faults import draws
from saboteur.faults.error_models import SIZES, Change, Profile
from saboteur.faults.error_patterns import PATTERNS, Footprint, lay_out
from saboteur.faults.error_permanent import CLAMP_CLASSES, LayerErrors, PermanentProfile, clamp_class, members
from saboteur.faults.error_values import LayerOutput, at_least, code_of, uncut
from saboteur.faults.formats import NumberFormat
from saboteur.faults.models import FaultModel, Words

_LANES = {
    name: 301 + lane
    for lane, name in enumerate(
        ("footprint", "layout", "change", "others", "value", "reached", "place", "behaviour", "wrong")
    )
}

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class ComponentErrors(FaultModel):
    """The part of an error model that one region of a fault space holds: one component's errors in one layer.

    A word of the region is an element of the layer's output, around which an error lies; its variants are numbered
    draws. All about an error follows from region, element and variant, so that a fault list says all of it.
    """

    kind: str = "error_model"
    memoryless: ClassVar[bool] = False

    title: str
    digest: str
    profile: Profile
    draws: Annotated[int, Field(ge=1)]

    def __hash__(self) -> int:
        return hash((self.digest, self.profile.layer, self.profile.component, self.draws))

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"error_model({self.title}/{self.profile.component} {self.digest[:8]})"

    def variants(self, bits: int) -> int:
        """The numbered draws around each element."""
        return self.draws

    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """It corrupts no single words.

        Raises:
            FaultError: always.
        """
        raise FaultError("error_model: acts on the whole output of a layer")

    def key(self, site: str, element: Integers, variant: Integers) -> NDArray[np.uint64]:
        """The keys of faults of ``site``, from which all about them is drawn."""
        stream = draws.stream_key(site, self.digest, self.profile.component)
        return draws.words(draws.words(stream, element), variant)


class PermanentErrors(ComponentErrors):
    """The errors of one kind of permanent fault in all layers that run on the array.

    The only word of the region is the array; its variants are numbered draws.
    """

    profile: PermanentProfile  # type: ignore[assignment]

    def __hash__(self) -> int:
        return hash((self.digest, self.profile.component, self.profile.fault, self.draws))

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"error_model({self.title}/{' '.join((self.profile.component, self.profile.fault))} {self.digest[:8]})"

    def key(self, site: str, element: Integers, variant: Integers) -> NDArray[np.uint64]:
        """The keys of faults of ``site``, from which all about them is drawn."""
        stream = draws.stream_key(site, self.digest, self.profile.component, self.profile.fault)
        return draws.words(draws.words(stream, element), variant)


class Errors(NamedTuple):
    """Wrong values of many faults, as columns.

    Attributes:
        fault: which fault each is of.
        position: its flat index in the layer's output.
        code: how it changes.
        code_at_bottom: how it changes where the fault-free value is at its lower clamp.
        rank: its number within its fault, from which its size is drawn.
    """

    fault: Integers
    position: Integers
    code: Integers
    code_at_bottom: Integers
    rank: Integers


class Sampler:
    """Draws errors of one profile in one layer.

    Everything about an error follows from the fault's key: which pattern and where around the anchor; only whether
    the output is wrong at all, and by how much within an octave, is drawn for each inference on its own.
    """

    def __init__(self, profile: Profile, output: LayerOutput):
        self.output = output
        parts = profile.patterns
        self._spreads = [
            (number, Footprint(PATTERNS.index(part.pattern), *(getattr(spread, name) for name in SIZES)))
            for number, part in enumerate(parts)
            for spread in part.spreads
        ]
        self._spread_shares = _shares([spread.count for part in parts for spread in part.spreads])
        self._changes = [_Choice.of(part.changes or part.changes_at_bottom) for part in parts]
        self._changes_at_bottom = [_Choice.of(part.changes_at_bottom or part.changes) for part in parts]
        self._others = [_others((*part.changes, *part.changes_at_bottom)) for part in parts]
        reached, share = profile.changed / profile.inferences, profile.at_bottom
        at_bottom, elsewhere = reached, reached
        if 0 < share < 1:
            # Where many elements are wrong, the largest change is seldom of a clamped one, whatever the anchor is: what
            # one of the two probabilities cannot take, the other does.
            changed = profile.changed_at_bottom / profile.inferences
            elsewhere = min(1.0, (reached - changed) / (1 - share))
            at_bottom = min(1.0, (reached - elsewhere * (1 - share)) / share)
            elsewhere = (reached - at_bottom * share) / (1 - share)
        self._reached = np.array([elsewhere, at_bottom])

    def reached(self, key: NDArray[np.uint64], input: Integers, golden: Floats) -> NDArray[np.bool_]:
        """In which inferences [n] the output is wrong at all.

        By Bayes' rule from the profile's counts, P(wrong | the anchor's value is clamped) and P(wrong | it is not).

        Args:
            key: [n] of the faults.
            input: [n] which inference.
            golden: [n] the fault-free values of the faults' anchors.
        """
        probability = self._reached[self._at_bottom(golden).astype(np.int64)]
        return draws.uniform(draws.words(key, input), 0, _LANES["reached"]) < probability

    def _at_bottom(self, golden: Floats) -> NDArray[np.bool_]:
        return golden <= self.output.bottom

    def draw(self, key: NDArray[np.uint64], anchor: Integers) -> Errors:
        """The wrong elements of each fault, and how each changes.

        Args:
            key: [faults].
            anchor: [faults] flat index of the element around which they lie.

        Raises:
            FaultError: when faults are asked for and no output was ever seen to be wrong.
        """
        if len(key) and not self._spreads:
            raise FaultError("error_model: a component of which no fault was ever seen to reach the output")
        chosen = np.searchsorted(self._spread_shares, draws.uniform(key, 0, _LANES["footprint"]))
        layout = draws.words(key, 0, _LANES["layout"])
        parts = [np.zeros((5, 0), np.int64)]
        for number in np.unique(chosen).tolist():
            faults = np.flatnonzero(chosen == number)
            pattern, footprint = self._spreads[number]
            positions, centre = lay_out(footprint, anchor[faults], layout[faults], self.output.shape)
            width = positions.shape[1]
            columns = np.repeat(faults, width), positions, *self._codes(pattern, key[faults], width, centre)
            rank = np.tile(np.arange(width), len(faults))
            parts.append(np.stack([column.ravel() for column in (*columns, rank)]))
        columns = np.concatenate(parts, axis=1)
        return Errors(*columns[:, np.argsort(columns[0], kind="stable")])

    def _codes(
        self, pattern: int, key: NDArray[np.uint64], elements: int, largest: Integers
    ) -> tuple[Integers, Integers]:
        """The change of each element [faults, elements], and that at the lower clamp; alike but for the largest."""
        uniform = draws.uniform(key, 0, _LANES["change"])
        change = self._changes[pattern].take(uniform)
        at_bottom = self._changes_at_bottom[pattern].take(uniform)
        codes = np.repeat(change[:, None], elements, axis=1)
        if elements > 1:
            uniform = draws.uniform(key[:, None], np.arange(elements), _LANES["others"])
            for code, others in self._others[pattern].items():
                rows = change == code
                codes[rows] = others.take(uniform[rows])
        lower = codes.copy()
        faults = np.arange(len(codes))
        codes[faults, largest], lower[faults, largest] = change, at_bottom
        return codes, lower

    def values(self, errors: Errors, key: NDArray[np.uint64], input: Integers, golden: Floats) -> Floats:
        """The wrong values.

        Args:
            errors: [n], each for one inference.
            key: [n] the key of its fault.
            input: [n] the inference.
            golden: [n] its fault-free value.
        """
        uniform = draws.uniform(draws.words(key, input), errors.rank, _LANES["value"])
        codes = np.where(self._at_bottom(golden), errors.code_at_bottom, errors.code)
        return self.output.changed(golden, codes, uniform)


class PermanentSampler:
    """Draws what one kind of permanent fault does to one layer.

    Where values can be wrong, and how the values of each of these channels behave, follows from the fault's key and is
    the same in every inference. Whether the layer is wrong at all, which of these values are, and by how much, is
    drawn for each inference.

    Args:
        profile: of the faults.
        layer: the layer's name.
        output: the layer's fault-free output.
    """

    def __init__(self, profile: PermanentProfile, layer: str, output: LayerOutput):
        self.output = output
        shape, tile = output.shape, profile.repeats
        self._stream = np.uint64(draws.stream_key("layer", layer))
        channels, positions = np.arange(shape.channels) % tile.channels, np.arange(shape.positions) % tile.positions
        self._places = [
            (
                np.flatnonzero(np.isin(channels, members(place.channels))),
                np.flatnonzero(np.isin(positions, members(place.positions))),
            )
            for place in profile.places
        ]
        self._place_shares = np.cumsum([place.count for place in profile.places]) / profile.faults
        errors = profile.of_layer(layer, shape)
        self._errors = errors
        if errors is None:
            return
        self._bottom = output.bottom_shares()
        self._behaviours = _by_clamp_class(errors)
        bottoms = [channel.values_at_bottom for channel in errors.channels]
        counts = [(Counter(channel.changes), Counter(channel.changes_at_bottom)) for channel in errors.channels]
        self._wrong = np.array(
            [
                (some.total() / max(channel.values - bottom, 1), low.total() / max(bottom, 1))
                for channel, bottom, (some, low) in zip(errors.channels, bottoms, counts, strict=True)
            ]
        ).reshape(-1, 2)
        self._changes = [
            tuple(_Choice({code_of(name): n for name, n in found.items()}) if found else None for found in choices)
            for choices in ((some or low, low or some) for some, low in counts)
        ]

    def elements(self, key: np.uint64) -> Integers:
        """The flat indices of all values that can be wrong, the same in every inference; none where a fault is masked.

        Args:
            key: of the fault.
        """
        channels, positions = self._place(key)
        return self.output.shape.join(np.repeat(channels, len(positions)), np.tile(positions, len(channels)))

    def _place(self, key: np.uint64) -> tuple[Integers, Integers]:
        number = int(np.searchsorted(self._place_shares, draws.uniform(key, 0, _LANES["place"])))
        if self._errors is None or number == len(self._places):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return self._places[number]

    def _behaviour(self, key: np.uint64, channels: Integers, positions: Integers) -> Integers:
        """How the values of each of ``channels`` behave, among what was seen of channels as often clamped."""
        channel, position = np.repeat(channels, len(positions)), np.tile(positions, len(channels))
        bottom = self._bottom[self.output.shape.join(channel, position)].reshape(len(channels), -1)
        classes = clamp_class(bottom.sum(axis=1), np.array(len(positions)))
        uniform = draws.uniform(key, channels, _LANES["behaviour"])
        found = np.zeros(len(channels), np.int64)
        for number in np.unique(classes).tolist():
            which, shares = self._behaviours[number]
            here = classes == number
            found[here] = which[np.searchsorted(shares, uniform[here])]
        return found

    def values(self, key: np.uint64, input: Integers, golden: Floats) -> Floats:
        """The values [inferences, elements] of one layer; those that are right are as they were.

        Args:
            key: of the fault.
            input: [inferences] which.
            golden: [inferences, elements] the values without the fault, of :meth:`elements`.
        """
        channels, positions = self._place(key)
        values = golden.copy()
        if self._errors is None or not self._errors.reached or not golden.size:
            return values
        key = np.uint64(draws.words(key, self._stream))
        behaviour = self._behaviour(key, channels, positions)
        behaviour = np.repeat(behaviour, len(positions))
        of_inference = draws.words(key, input)
        reached = draws.uniform(of_inference, 0, _LANES["reached"]) < self._errors.reached / self._errors.inferences
        number, of_inference = np.arange(golden.shape[1]), of_inference[:, None]
        clamped = (golden <= self.output.bottom).astype(np.int64)
        wrong = draws.uniform(of_inference, number, _LANES["wrong"]) < self._wrong[behaviour, clamped]
        wrong &= reached[:, None]
        which, size = (draws.uniform(of_inference, number, _LANES[lane]) for lane in ("change", "value"))
        for kind in np.unique(behaviour).tolist():
            for low, choice in enumerate(self._changes[kind]):
                these = wrong & (behaviour == kind) & (clamped == low)
                if choice is not None and these.any():
                    values[these] = self.output.changed(golden[these], choice.take(which[these]), size[these])
        return values


def _by_clamp_class(errors: LayerErrors) -> list[tuple[Integers, Floats]]:
    """For each class of channels by their values at the lower clamp: which behaviours, and their running shares.

    Where none was seen in a class, those of the nearest class that has some.
    """
    values, bottom, count = (
        np.array([getattr(channel, name) for channel in errors.channels])
        for name in ("values", "values_at_bottom", "count")
    )
    known = clamp_class(bottom, values)
    found = []
    for wanted in range(CLAMP_CLASSES if len(known) else 0):
        nearest = known[np.argmin(np.abs(known - wanted))]
        which = np.flatnonzero(known == nearest)
        found.append((which, _shares(count[which].tolist())))
    return found


class _Choice:
    """A draw among changes by their counts, those that were cut short spread over the larger ones."""

    def __init__(self, counts: Mapping[int, int]):
        shares = uncut(counts)
        self._codes = np.array(list(shares))
        self._cumulative = _shares(list(shares.values()))

    @classmethod
    def of(cls, changes: Sequence[Change]) -> _Choice:
        counts: Counter[int] = Counter()
        for change in changes:
            counts[code_of(change.change)] += change.count
        return cls(counts)

    def take(self, uniform: Floats) -> Integers:
        return self._codes[np.searchsorted(self._cumulative, uniform)]


def _others(changes: Sequence[Change]) -> dict[int, _Choice]:
    """For each change that can be drawn as the largest, the draw of the other elements' changes."""
    counts: dict[int, Counter[int]] = {}
    for change in changes:
        code = at_least(code_of(change.change))
        others = {code_of(name): count for name, count in change.others.items()}
        counts.setdefault(code, Counter()).update(others)
    return {code: _Choice(count) for code, count in counts.items() if count}


def _shares(counts: Sequence[float]) -> Floats:
    total = np.cumsum(np.asarray(counts, np.float64))
    return total / total[-1] if len(total) else total
