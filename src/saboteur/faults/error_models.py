"""Error models: what the output of a layer looks like once a fault below has reached it, as a readable file.

A model is learned from observed deviations, at whatever level they were observed, and drawn from at the software
level, on any network. It is a set of :class:`Profile`, one for each component of the hardware and each layer (or
class of layers): how often anything is wrong at all, where the wrong values lie, and how far each is off.

Values are compared in *steps*: of an integer output the integers themselves, of a floating-point output 1/255 of
the range of its fault-free values, so that a model of an int8 layer speaks of a float layer as if it had been
quantised to eight bits.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from saboteur.errors import FaultError, near
from saboteur.faults import draws
from saboteur.faults.error_patterns import PATTERNS, Footprint, LayerShape, Pattern, ShapeClass, footprints, lay_out
from saboteur.faults.formats import NumberFormat
from saboteur.faults.models import FaultModel, Words

VERSION = 1

_STEPS_OF_RANGE = 255
_CLAMPED_SHARE = 0.01
_LEAST_OCTAVE, _LARGEST_OCTAVE = -64, 1100
_TOP, _BOTTOM, _NONFINITE, _OCTAVES = range(4)
_LIMITS = {"top": _TOP, "bottom": _BOTTOM, "nonfinite": _NONFINITE}
_CHANGE = r"^(top|bottom|nonfinite|>?[+-]2\^-?\d{1,4})$"
_DOWN, _CUT_SHORT, _WAYS = 1, 2, 4

_LANES = {name: 301 + lane for lane, name in enumerate(("footprint", "layout", "change", "others", "value", "reached"))}

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerOutput:
    """What is known of one layer's fault-free output.

    Attributes:
        shape: of one input's.
        step: what a change is counted in: 1 for integers, 1/255 of the range for floats.
        bottom: no value is below it: where a rectifier or a saturating format clamps; −∞ where nothing does.
        top: no value is above it.
        low: the smallest fault-free value.
        high: the largest.
        at_bottom: the share of fault-free values at the bottom.
        integer: whether values are whole numbers.
    """

    shape: LayerShape
    step: float
    bottom: float
    top: float
    low: float
    high: float
    at_bottom: float
    integer: bool

    @classmethod
    def observed(cls, values: NDArray, shape: LayerShape, lowest: float, highest: float) -> LayerOutput:
        """From fault-free values of many inputs.

        An end of the range at which at least 1 % of all values lie is taken for a clamp; otherwise the range of the
        format is the limit of integers, and floats have none.

        Args:
            values: [inputs, ...].
            shape: of one input's.
            lowest: the smallest value of an integer format; not looked at for floats.
            highest: the largest.

        Raises:
            FaultError: when there are no values or the range is not finite.
        """
        if not values.size or not np.isfinite(values).all():
            raise FaultError(f"values: {values.size} fault-free values that are not all finite say nothing of a layer")
        integer = values.dtype.kind in "iu"
        low, high = float(values.min()), float(values.max())
        floor, ceiling = float(np.mean(values == low)), float(np.mean(values == high))
        limits = (float(lowest), float(highest)) if integer else (-np.inf, np.inf)
        bottom = low if floor >= _CLAMPED_SHARE else limits[0]
        return cls(
            shape=shape,
            step=1.0 if integer else (high - low) / _STEPS_OF_RANGE or 1.0,
            bottom=bottom,
            top=high if ceiling >= _CLAMPED_SHARE else limits[1],
            low=low,
            high=high,
            at_bottom=floor if bottom == low else 0.0,
            integer=integer,
        )

    def changes(self, golden: Floats, faulty: Floats) -> Integers:
        """The change of each wrong value [n] as a code: sign, octave, whether it was cut short; or not finite."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            steps = (faulty - golden) / self.step
            octave = np.floor(np.log2(np.abs(np.where(np.isfinite(steps) & (steps != 0), steps, 1.0))))
        octave = np.clip(octave, _LEAST_OCTAVE, _LARGEST_OCTAVE).astype(np.int64)
        cut_short = (faulty >= self.top) | (faulty <= self.bottom)
        codes = _OCTAVES + _WAYS * (octave - _LEAST_OCTAVE) + _DOWN * (steps < 0) + _CUT_SHORT * cut_short
        return np.where(np.isfinite(faulty), codes, _NONFINITE)

    def changed(self, golden: Floats, codes: Integers, uniform: Floats) -> Floats:
        """Values that are off by the changes of ``codes``; the inverse of :meth:`changes` up to the draw.

        The size within an octave is drawn log-uniformly (whole for integers); a value that would leave the limits
        is set to them; a value that is at a limit already moves the other way. Where there is no limit, the top is
        the largest fault-free value, and where values are whole, what is not finite is at the top.

        Args:
            golden: [n] fault-free values.
            codes: [n] changes, none of them cut short.
            uniform: [n] numbers in (0, 1).
        """
        downward = np.where(codes >= _OCTAVES, (codes - _OCTAVES) % 2 == _DOWN, codes == _BOTTOM)
        downward = np.where(golden >= self.top, True, np.where(golden <= self.bottom, False, downward))
        octave = _octave(codes).astype(np.float64)
        with np.errstate(over="ignore"):
            size = np.exp2(octave + uniform)
            if self.integer:
                size = np.maximum(np.floor(np.exp2(octave) * (1 + uniform)), 1.0)
            moved = golden + np.where(downward, -size, size) * self.step
        ends = np.where(downward, self.low if np.isinf(self.bottom) else self.bottom, self._end_above)
        values = np.where(codes < _OCTAVES, ends, np.clip(moved, self.bottom, self.top))
        return values if self.integer else np.where(codes == _NONFINITE, np.nan, values)

    @property
    def _end_above(self) -> float:
        return self.high if np.isinf(self.top) else self.top


def _octave(codes: Integers) -> Integers:
    return (codes - _OCTAVES) // _WAYS + _LEAST_OCTAVE


def _name_of(code: int) -> str:
    for name, limit in _LIMITS.items():
        if code == limit:
            return name
    octave, way = divmod(code - _OCTAVES, _WAYS)
    return f"{'>' if way & _CUT_SHORT else ''}{'-' if way & _DOWN else '+'}2^{octave + _LEAST_OCTAVE}"


def _code_of(name: str) -> int:
    if name in _LIMITS:
        return _LIMITS[name]
    sign, _, octave = name.lstrip(">").partition("2^")
    octave = min(max(int(octave), _LEAST_OCTAVE), _LARGEST_OCTAVE)
    return _OCTAVES + _WAYS * (octave - _LEAST_OCTAVE) + _DOWN * (sign == "-") + _CUT_SHORT * name.startswith(">")


# -- the file -----------------------------------------------------------------------------------------------

_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]
_ChangeName = Annotated[str, Field(pattern=_CHANGE)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spread(_Frozen):
    """Size and spread of wrong elements, and how often they were seen; see :class:`error_patterns.Footprint`."""

    channels: _Positive = 1
    channel_span: _Positive = 1
    positions: _Positive = 1
    rows: _Positive = 1
    columns: _Positive = 1
    span: _Positive = 1
    elements: _Positive = 1
    count: _Positive

    @model_validator(mode="after")
    def _possible(self) -> Spread:
        if not self.channels <= self.channel_span:
            raise ValueError(f"channels: {self.channels} within a channel_span of {self.channel_span}")
        if not self.positions <= min(self.span, self.rows * self.columns):
            raise ValueError(f"positions: {self.positions} within a span of {self.span}, {self.rows} × {self.columns}")
        if not max(self.channels, self.positions) <= self.elements <= self.channels * self.positions:
            raise ValueError(f"elements: {self.elements} in {self.channels} channels × {self.positions} positions")
        return self


class Change(_Frozen):
    """The largest change among the wrong elements of an inference, and the changes of the others.

    Changes are ``+2^3`` (up by 8 to 16 steps), ``-2^0`` (down by 1), ``>+2^3`` (up by that much, to the limit of the
    layer's values, and so by more if there had been room), ``nonfinite``; ``top`` and ``bottom`` go to the limit from
    wherever they start.
    """

    change: _ChangeName
    count: _Positive
    others: dict[_ChangeName, _Positive] = {}


class PatternErrors(_Frozen):
    """All that was seen of one pattern.

    Attributes:
        pattern: which.
        spreads: size and spread of the wrong elements.
        changes: how the values changed.
        changes_at_bottom: the same where the value of the largest change was at its lower clamp, as half of all
            values behind a rectifier are: there nothing goes down, and little comes up.
    """

    pattern: Pattern
    spreads: Annotated[tuple[Spread, ...], Field(min_length=1)]
    changes: tuple[Change, ...] = ()
    changes_at_bottom: tuple[Change, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> PatternErrors:
        changes = (*self.changes, *self.changes_at_bottom)
        counts = self.count, sum(change.count for change in changes)
        if counts[0] != counts[1]:
            raise ValueError(f"{self.pattern}: {counts[0]} inferences in spreads, {counts[1]} in changes")
        several = max(spread.elements for spread in self.spreads) > 1
        if several and not all(change.others for change in changes):
            raise ValueError(f"{self.pattern}: each change needs the changes of the other elements")
        return self

    @property
    def count(self) -> int:
        """In how many inferences it was seen."""
        return sum(spread.count for spread in self.spreads)


class Profile(_Frozen):
    """What faults in one component do to the output of one layer, or of one class of layers.

    Attributes:
        component: of the hardware, such as a register class.
        layer: the layer's name; ``None`` where it speaks of all layers of the shape.
        shape: the class of the layer's shape.
        population: how many faults it stands for, which is how the components of a layer weigh.
        inferences: how many faulty inferences were observed.
        at_bottom: the share of the layer's fault-free values that lie at their lower clamp.
        patterns: what was seen in the inferences in which the output was wrong.
    """

    component: str
    layer: str | None = None
    shape: ShapeClass
    population: _Positive
    inferences: _Positive
    at_bottom: Annotated[float, Field(ge=0, le=1)] = 0.0
    patterns: tuple[PatternErrors, ...] = ()

    @model_validator(mode="after")
    def _counts(self) -> Profile:
        if self.changed > self.inferences:
            raise ValueError(f"{self.component}: {self.changed} changed of {self.inferences} inferences")
        if len({part.pattern for part in self.patterns}) != len(self.patterns):
            raise ValueError(f"{self.component}: a pattern is listed twice")
        return self

    @property
    def changed(self) -> int:
        """In how many inferences the output was wrong."""
        return sum(part.count for part in self.patterns)

    @property
    def changed_at_bottom(self) -> int:
        """In how many of these the largest change was of a value at its lower clamp."""
        return sum(change.count for part in self.patterns for change in part.changes_at_bottom)

    @property
    def masked(self) -> float:
        """The share of inferences in which it was right."""
        return 1 - self.changed / self.inferences


class Source(_Frozen):
    """Where a model comes from."""

    campaign: str = Field(default="", description="id of the campaign")
    level: str = Field(default="", description="at which level faults were injected, into what")
    faults: _Count = 0
    inferences: _Count = 0


class ErrorModel(FaultModel):
    """A learned error model: ``{kind: error_model, file: PATH}``, or its content in place.

    It acts on the whole output of a layer (``where: outputs`` at the software level), not on a word.
    """

    kind: str = "error_model"
    memoryless: ClassVar[bool] = False

    saboteur_error_model: Literal[1] = Field(default=VERSION, description="version of the file format")
    title: Annotated[str, Field(min_length=1)]
    description: str = ""
    source: Source = Source()
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, data: Any) -> Any:
        if isinstance(data, dict) and "file" in data:
            extra = sorted(set(data) - {"file", "kind"})
            if extra:
                raise ValueError(f"file: stands for the whole model; leave out {', '.join(extra)}")
            return _content(Path(data["file"]))
        return data

    @model_validator(mode="after")
    def _distinct(self) -> ErrorModel:
        keys = Counter((profile.layer or profile.shape, profile.component) for profile in self.profiles)
        (layer, component), count = keys.most_common(1)[0]
        if count > 1:
            raise ValueError(f"profiles: {component} of {layer} has {count} profiles")
        return self

    @classmethod
    def read(cls, path: Path | str) -> ErrorModel:
        """Read a YAML or JSON file.

        Raises:
            FaultError: for anything wrong with it, naming the place.
        """
        try:
            return cls.model_validate(_content(Path(path)))
        except ValidationError as error:
            lines = (
                f"{'.'.join(map(str, problem['loc'])) or 'model'}: {problem['msg'].removeprefix('Value error, ')}"
                for problem in error.errors(include_url=False)
            )
            raise FaultError(f"error model: {path}: {'; '.join(lines)}") from error
        except ValueError as error:
            raise FaultError(f"error model: {error}") from error

    def write(self, path: Path | str) -> None:
        """Write it as YAML that reads back as the same value."""
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = None
        yaml.width = 120
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        stream = io.StringIO()
        yaml.dump(self.model_dump(mode="json", exclude_defaults=True) | {"saboteur_error_model": VERSION}, stream)
        Path(path).write_text(stream.getvalue(), encoding="utf-8")

    @cached_property
    def digest(self) -> str:
        """A hash of all that decides what is drawn."""
        profiles = [profile.model_dump(mode="json") for profile in self.profiles]
        return hashlib.sha256(json.dumps([VERSION, profiles], sort_keys=True).encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash((self.title, self.digest))

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"error_model({self.title} {self.digest[:8]})"

    def variants(self, bits: int) -> int:
        """It has none: it is no model of a word.

        Raises:
            FaultError: always.
        """
        raise FaultError("error_model: acts on the whole output of a layer; use it with where: outputs")

    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """It corrupts no single words.

        Raises:
            FaultError: always.
        """
        raise FaultError("error_model: acts on the whole output of a layer; use it with where: outputs")

    def of_layer(self, layer: str, shape: LayerShape) -> tuple[Profile, ...]:
        """The profiles of the components, for one layer.

        Those of the layer of that name; else those of the class of its shape, layers of the class taken together;
        else those of all layers taken together.
        """
        chosen = [p for p in self.profiles if p.layer == layer]
        chosen = chosen or [p for p in self.profiles if p.shape == shape.shape_class] or list(self.profiles)
        components = dict.fromkeys(profile.component for profile in chosen)
        return tuple(pooled([p for p in chosen if p.component == component]) for component in components)

    def knows(self, layer: str) -> bool:
        """Whether it was learned from the layer of that name."""
        return any(profile.layer == layer for profile in self.profiles)


def _content(path: Path) -> dict[str, Any]:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file: cannot read {path}: {error}") from error
    except YAMLError as error:
        raise ValueError(f"file: {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or "saboteur_error_model" not in content:
        raise ValueError(f"file: {path} is no error model; one begins with saboteur_error_model: {VERSION}")
    return content


def pooled(profiles: Sequence[Profile]) -> Profile:
    """Several profiles of one component as one: counts added up, the layer kept where it is the same.

    Raises:
        FaultError: when there are none, or they are of several components.
    """
    if len({profile.component for profile in profiles}) != 1:
        raise FaultError("profiles: only those of one component can be taken together")
    if len(profiles) == 1:
        return profiles[0]
    first = profiles[0]
    inferences = sum(p.inferences for p in profiles)
    return Profile(
        component=first.component,
        layer=first.layer if len({p.layer for p in profiles}) == 1 else None,
        shape=first.shape,
        population=sum(p.population for p in profiles),
        inferences=inferences,
        at_bottom=min(1.0, sum(p.at_bottom * p.inferences for p in profiles) / inferences),
        patterns=tuple(
            _pooled_pattern([part for p in profiles for part in p.patterns if part.pattern == pattern])
            for pattern in PATTERNS
            if any(part.pattern == pattern for p in profiles for part in p.patterns)
        ),
    )


def _pooled_pattern(parts: list[PatternErrors]) -> PatternErrors:
    spreads: Counter[tuple[int, ...]] = Counter()
    changes = {name: _Changes() for name in ("changes", "changes_at_bottom")}
    for part in parts:
        for spread in part.spreads:
            spreads[tuple(getattr(spread, name) for name in _SIZES)] += spread.count
        for name, gathered in changes.items():
            for change in getattr(part, name):
                gathered.add(change.change, change.count, change.others)
    return PatternErrors(
        pattern=parts[0].pattern,
        spreads=_spreads(spreads),
        **{name: gathered.found() for name, gathered in changes.items()},
    )


_SIZES = Footprint._fields[1:]


def _spreads(counts: Counter[tuple[int, ...]]) -> tuple[Spread, ...]:
    return tuple(Spread(**dict(zip(_SIZES, sizes, strict=True)), count=n) for sizes, n in sorted(counts.items()))


class _Changes:
    """Gathers changes and those of the other elements."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._others: dict[str, Counter[str]] = {}

    def add(self, change: str, count: int, others: Mapping[str, int]) -> None:
        self._count[change] += count
        self._others.setdefault(change, Counter()).update(others)

    def found(self) -> tuple[Change, ...]:
        def by_change(item: tuple[str, int]) -> int:
            return _code_of(item[0])

        return tuple(
            Change(change=name, count=count, others=dict(sorted(self._others[name].items(), key=by_change)))
            for name, count in sorted(self._count.items(), key=by_change)
        )


# -- learning -----------------------------------------------------------------------------------------------


def learn(
    deviations: pa.Table,
    trials: pa.Table,
    outputs: Mapping[str, LayerOutput],
    title: str,
    *,
    populations: Mapping[tuple[str, str], int] | None = None,
    source: Source | None = None,
) -> ErrorModel:
    """Learn an error model from what was observed.

    Args:
        deviations: every wrong value: ``trial``, ``input``, ``layer``, ``position`` (flat index in the layer's
            output of one input), ``golden``, ``faulty``. Rows whose two values are equal are left out.
        trials: all that was injected, a row for each trial: ``trial``, ``layer`` (where the fault was),
            ``component``, and ``inferences``, on how many inputs it was observed (1 if absent).
        outputs: the fault-free output of each layer.
        title: of the model.
        populations: how many faults each (layer, component) has; the number of trials if absent, which is right
            where faults were drawn uniformly.
        source: where the observations come from.

    Raises:
        FaultError: when a column or layer is missing, a position is outside of its layer, or trials are unknown.
    """
    for name, table, wanted in (
        ("deviations", deviations, ("trial", "input", "layer", "position", "golden", "faulty")),
        ("trials", trials, ("trial", "layer", "component")),
    ):
        for column in wanted:
            if column not in table.column_names:
                raise FaultError(f"{name}: no column {column!r}{near(column, table.column_names)}")
    met = _Trials(trials)
    row = met.rows_of(deviations["trial"].to_numpy())
    layers = deviations["layer"].to_numpy(zero_copy_only=False).astype(str)
    profiles = []
    for layer, component in dict.fromkeys(zip(met.layer.tolist(), met.component.tolist(), strict=True)):
        if layer not in outputs:
            raise FaultError(f"outputs: nothing is known of the layer {layer!r}{near(layer, outputs)}")
        chosen = (met.layer == layer) & (met.component == component)
        here = np.flatnonzero(chosen[row] & (layers == layer))
        profiles.append(
            _profile(
                layer,
                component,
                outputs[layer],
                deviations.take(pa.array(here)),
                inferences=int(met.inferences[chosen].sum()),
                population=(populations or {}).get((layer, component), int(chosen.sum())),
            )
        )
    default = Source(faults=len(met.layer), inferences=int(met.inferences.sum()))
    return ErrorModel(title=title, source=source or default, profiles=tuple(profiles))


class _Trials:
    """The injected trials as columns, found by number."""

    def __init__(self, table: pa.Table):
        number = table["trial"].to_numpy()
        self._order = np.argsort(number, kind="stable")
        self._sorted = number[self._order]
        if (np.diff(self._sorted) == 0).any():
            raise FaultError("trials: a trial is listed twice")
        self.layer = table["layer"].to_numpy(zero_copy_only=False).astype(str)
        self.component = table["component"].to_numpy(zero_copy_only=False).astype(str)
        given = "inferences" in table.column_names
        self.inferences = table["inferences"].to_numpy() if given else np.ones(len(number), np.int64)

    def rows_of(self, trial: Integers) -> Integers:
        place = np.minimum(np.searchsorted(self._sorted, trial), max(len(self._sorted) - 1, 0))
        known = self._sorted[place] == trial if len(self._sorted) else np.zeros(len(trial), bool)
        if not known.all():
            raise FaultError(f"deviations: trial {trial[~known][0]} is not among the trials")
        return self._order[place]


def _profile(
    layer: str, component: str, output: LayerOutput, rows: pa.Table, *, inferences: int, population: int
) -> Profile:
    golden, faulty = (rows[name].to_numpy().astype(np.float64) for name in ("golden", "faulty"))
    position = rows["position"].to_numpy().astype(np.int64)
    if position.size and (position.min() < 0 or position.max() >= output.shape.elements):
        raise FaultError(
            f"position: {position.max()} in {layer}, whose output of shape {list(output.shape.shape)} has "
            f"{output.shape.elements} elements"
        )
    wrong = golden != faulty
    golden, faulty, position = golden[wrong], faulty[wrong], position[wrong]
    key = np.stack([rows["trial"].to_numpy()[wrong], rows["input"].to_numpy()[wrong]])
    _, group = np.unique(key, axis=1, return_inverse=True)
    group = group.reshape(-1)
    found = footprints(group, position, output.shape)
    codes = output.changes(golden, faulty)
    with np.errstate(invalid="ignore"):
        size = np.nan_to_num(np.abs(faulty - golden), nan=np.inf)
    order = np.lexsort((position, -size, group))
    largest = order[np.searchsorted(group[order], np.arange(len(found.pattern)))]
    low = golden[largest] <= output.bottom
    patterns = []
    for pattern in np.unique(found.pattern):
        seen = found.pattern == pattern
        spreads = Counter(dict(_counted(np.stack([column[seen] for column in found[1:]]))))
        of_values = [_changes(group, codes, largest, seen & place) for place in (~low, low)]
        patterns.append(
            PatternErrors(
                pattern=PATTERNS[pattern],
                spreads=_spreads(spreads),
                changes=of_values[0],
                changes_at_bottom=of_values[1],
            )
        )
    return Profile(
        component=component,
        layer=layer,
        shape=output.shape.shape_class,
        population=population,
        inferences=inferences,
        at_bottom=output.at_bottom,
        patterns=tuple(patterns),
    )


def _changes(group: Integers, codes: Integers, largest: Integers, chosen: NDArray[np.bool_]) -> tuple[Change, ...]:
    """The changes in the ``chosen`` groups, whose largest change is that of the rows ``largest`` [groups]."""
    rest = chosen[group]
    rest[largest] = False
    others: dict[int, dict[str, int]] = {}
    for (code, other), count in _counted(np.stack([codes[largest[group[rest]]], codes[rest]])):
        others.setdefault(code, {})[_name_of(other)] = count
    gathered = _Changes()
    for (code,), count in _counted(codes[largest[chosen]][None]):
        gathered.add(_name_of(code), count, others.get(code, {}))
    return gathered.found()


def _counted(columns: NDArray) -> Iterable[tuple[tuple[int, ...], int]]:
    """The distinct columns of [rows, n], each with how often it comes."""
    distinct, counts = np.unique(columns, axis=1, return_counts=True)
    return zip(map(tuple, distinct.T.tolist()), counts.tolist(), strict=True)


# -- drawing ------------------------------------------------------------------------------------------------


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
            (number, Footprint(PATTERNS.index(part.pattern), *(getattr(spread, name) for name in _SIZES)))
            for number, part in enumerate(parts)
            for spread in part.spreads
        ]
        self._spread_shares = _shares([spread.count for part in parts for spread in part.spreads])
        self._changes = [_Choice.of(part.changes or part.changes_at_bottom) for part in parts]
        self._changes_at_bottom = [_Choice.of(part.changes_at_bottom or part.changes) for part in parts]
        self._others = [_others((*part.changes, *part.changes_at_bottom)) for part in parts]
        reached = profile.changed / profile.inferences
        at_bottom, elsewhere = reached, reached
        if 0 < profile.at_bottom < 1:
            changed = profile.changed_at_bottom / profile.inferences
            at_bottom = min(1.0, changed / profile.at_bottom)
            elsewhere = min(1.0, (reached - changed) / (1 - profile.at_bottom))
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


class _Choice:
    """A draw among changes by their counts, those that were cut short spread over the larger ones."""

    def __init__(self, counts: Mapping[int, int]):
        shares = _uncut(counts)
        self._codes = np.array(list(shares))
        self._cumulative = _shares(list(shares.values()))

    @classmethod
    def of(cls, changes: Sequence[Change]) -> _Choice:
        return cls({_code_of(change.change): change.count for change in changes})

    def take(self, uniform: Floats) -> Integers:
        return self._codes[np.searchsorted(self._cumulative, uniform)]


def _others(changes: Sequence[Change]) -> dict[int, _Choice]:
    """For each change that can be drawn as the largest, the draw of the other elements' changes."""
    counts: dict[int, Counter[int]] = {}
    for change in changes:
        code = _code_of(change.change)
        if code >= _OCTAVES and (code - _OCTAVES) & _CUT_SHORT:
            code = _BOTTOM if (code - _OCTAVES) & _DOWN else _TOP
        others = {_code_of(name): count for name, count in change.others.items()}
        counts.setdefault(code, Counter()).update(others)
    return {code: _Choice(count) for code, count in counts.items() if count}


def _uncut(counts: Mapping[int, int]) -> dict[int, float]:
    """Counts of changes without those that were cut short.

    Each of these is spread over what is larger and of the same sign, in proportion (redistribution to the right,
    Efron, Proc. 5th Berkeley Symposium 1967, the Kaplan–Meier estimator); of the changes in its own octave half
    counts as larger. Where nothing is larger, it goes to the limit from anywhere.
    """
    found: dict[int, float] = {code: float(n) for code, n in counts.items() if code < _OCTAVES}
    for way, limit in ((0, _TOP), (_DOWN, _BOTTOM)):
        codes = [code for code in counts if code >= _OCTAVES and (code - _OCTAVES) & _DOWN == way]
        octaves = np.unique([_octave(code) for code in codes])
        first = _OCTAVES - _WAYS * _LEAST_OCTAVE + way
        seen, cut = (
            np.array([counts.get(first + _WAYS * octave + extra, 0) for octave in octaves.tolist()], float)
            for extra in (0, _CUT_SHORT)
        )
        for place in range(len(octaves)):
            larger = seen[place] / 2 + seen[place + 1 :].sum() + cut[place + 1 :].sum()
            if larger == 0:
                found[limit] = found.get(limit, 0.0) + cut[place]
                continue
            growth = 1 + cut[place] / larger
            seen[place] *= (1 + growth) / 2
            seen[place + 1 :] *= growth
            cut[place + 1 :] *= growth
        found |= {first + _WAYS * octave: n for octave, n in zip(octaves.tolist(), seen.tolist(), strict=True)}
    return {code: n for code, n in sorted(found.items()) if n > 0}


def _shares(counts: Sequence[float]) -> Floats:
    total = np.cumsum(np.asarray(counts, np.float64))
    return total / total[-1] if len(total) else total
