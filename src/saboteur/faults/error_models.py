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
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import (
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from saboteur.errors import FaultError, near
from saboteur.faults import classes_format, error_permanent
from saboteur.faults.error_file import ChangeName, Count, Frozen, Positive, Share
from saboteur.faults.error_patterns import PATTERNS, Footprint, LayerShape, Pattern, ShapeClass, footprints
from saboteur.faults.error_permanent import Observed, PermanentProfile
from saboteur.faults.error_values import LayerOutput, code_of, name_of
from saboteur.faults.formats import NumberFormat
from saboteur.faults.models import FaultModel, Words

VERSION = 2
"""The newest version of the file: 1 without permanent faults, 2 with them."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


# -- the file -----------------------------------------------------------------------------------------------


class Spread(Frozen):
    """Size and spread of wrong elements, and how often they were seen; see :class:`error_patterns.Footprint`."""

    channels: Positive = 1
    channel_span: Positive = 1
    positions: Positive = 1
    rows: Positive = 1
    columns: Positive = 1
    span: Positive = 1
    elements: Positive = 1
    count: Positive

    @model_validator(mode="after")
    def _possible(self) -> Spread:
        if not self.channels <= self.channel_span:
            raise ValueError(f"channels: {self.channels} within a channel_span of {self.channel_span}")
        if not self.positions <= min(self.span, self.rows * self.columns):
            raise ValueError(f"positions: {self.positions} within a span of {self.span}, {self.rows} × {self.columns}")
        if not max(self.channels, self.positions) <= self.elements <= self.channels * self.positions:
            raise ValueError(f"elements: {self.elements} in {self.channels} channels × {self.positions} positions")
        return self


class Change(Frozen):
    """The largest change among the wrong elements of an inference, and the changes of the others.

    Changes are ``+2^3`` (up by 8 to 16 steps), ``-2^0`` (down by 1), ``>+2^3`` (up by that much, to the limit of the
    layer's values, and so by more if there had been room), ``nonfinite``; ``top`` and ``bottom`` go to the limit from
    wherever they start. ``in_range``, ``out_of_range`` and ``zero`` are read from models of CLASSES, never learned.
    """

    change: ChangeName
    count: Positive
    others: dict[ChangeName, Positive] = Field(default_factory=dict)


class PatternErrors(Frozen):
    """All that was seen of one pattern.

    Attributes:
        pattern: which.
        spreads: size and spread of the wrong elements.
        changes: how the values changed; one change may come several times, with others of its own.
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


class Profile(Frozen):
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
    population: Positive
    inferences: Positive
    at_bottom: Share = 0.0
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


class Source(Frozen):
    """Where a model comes from."""

    campaign: str = Field(default="", description="id of the campaign")
    level: str = Field(default="", description="at which level faults were injected, into what")
    faults: Count = 0
    inferences: Count = 0


class ErrorModel(FaultModel):
    """A learned error model: ``{kind: error_model, file: PATH}``, or its content in place.

    A file of CLASSES is read as well; as it speaks in percentages, it needs the shape of one input's output of the
    layer, ``{kind: error_model, file: PATH, output_shape: [16, 32, 32]}``.

    It acts on the whole output of a layer (``where: outputs`` at the software level), not on a word.
    """

    kind: str = "error_model"
    memoryless: ClassVar[bool] = False

    saboteur_error_model: int = Field(default=1, description="version of the file format")
    title: Annotated[str, Field(min_length=1)]
    description: str = ""
    source: Source = Source()
    profiles: tuple[Profile, ...] = Field(default=(), description="what transient faults do to the layer that they hit")
    permanent: tuple[PermanentProfile, ...] = Field(
        default=(), description="what permanent faults do to all layers that run on the array"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(data, dict) and "file" in data:
            extra = sorted(set(data) - {"file", "kind", "output_shape"})
            if extra:
                raise ValueError(f"file: stands for the whole model; leave out {', '.join(extra)}")
            if not isinstance(data["file"], str | Path):
                raise ValueError(f"file: is {data['file']!r}; it takes a path")
            folder = (info.context or {}).get("folder", Path())
            data = _content(folder / data["file"], data.get("output_shape"))
        if isinstance(data, dict):
            version = data.get("saboteur_error_model", VERSION if data.get("permanent") else 1)
            if version not in range(1, VERSION + 1):
                raise ValueError(
                    f"saboteur_error_model: {version!r} is no version of the file that this release of Saboteur reads, "
                    f"1 .. {VERSION}"
                )
            return data | {"saboteur_error_model": version}
        return data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Its content, or the file that stands for it."""
        size = {"type": "integer", "minimum": 1}
        stands_for_it = {
            "type": "object",
            "properties": {
                "kind": {"const": "error_model"},
                "file": {
                    "type": "string",
                    "format": "path",
                    "description": "an error model, of saboteur learn or of CLASSES; from the campaign file's folder",
                },
                "output_shape": {
                    "type": "array",
                    "items": size,
                    "minItems": 1,
                    "description": "of a file of CLASSES: the shape of one input's output of the layer",
                },
            },
            "required": ["file"],
            "additionalProperties": False,
        }
        return {"anyOf": [handler(core_schema), stands_for_it]}

    @model_validator(mode="after")
    def _consistent(self) -> ErrorModel:
        if not self.profiles and not self.permanent:
            raise ValueError("profiles: there are none, nor permanent ones")
        if self.permanent and self.saboteur_error_model < VERSION:
            raise ValueError(f"permanent: is of version {VERSION} of the file, not {self.saboteur_error_model}")
        keys = Counter((profile.layer or profile.shape, profile.component) for profile in self.profiles)
        for (layer, component), count in keys.most_common(1):
            if count > 1:
                raise ValueError(f"profiles: {component} of {layer} has {count} profiles")
        kinds = Counter((profile.component, profile.fault) for profile in self.permanent)
        for (component, fault), count in kinds.most_common(1):
            if count > 1:
                raise ValueError(f"permanent: {component} {fault} has {count} profiles")
        return self

    @model_serializer(mode="wrap")
    def _as_in_version_1(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without permanent faults as version 1 had it, so that campaigns keep their ids."""
        content = handler(self)
        if not self.permanent:
            content.pop("permanent", None)
        return content

    @classmethod
    def read(
        cls, path: Path | str, output_shape: Sequence[int] | LayerShape | None = None, layer: str | None = None
    ) -> ErrorModel:
        """Read a YAML or JSON file, ours or one of CLASSES.

        Args:
            path: of the file.
            output_shape: of a file of CLASSES: the shape of one input's output of the layer it is to speak of.
            layer: the name of that layer; all layers if absent.

        Raises:
            FaultError: for anything wrong with it, naming the place.
        """
        try:
            return cls.model_validate(_content(Path(path), output_shape, layer))
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
        content = self.model_dump(mode="json", exclude_defaults=True)
        yaml.dump({"saboteur_error_model": self.saboteur_error_model} | content, stream)
        Path(path).write_text(stream.getvalue(), encoding="utf-8")

    @cached_property
    def digest(self) -> str:
        """A hash of all that decides what is drawn."""
        parts = [[profile.model_dump(mode="json") for profile in found] for found in (self.profiles, self.permanent)]
        decides = [1, parts[0]] if not self.permanent else [VERSION, *parts]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

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

    def by_shape(self) -> ErrorModel:
        """The same model for any network: profiles of the layers of one class of shapes taken together, unnamed."""
        groups: dict[tuple[str, str], list[Profile]] = {}
        for profile in self.profiles:
            groups.setdefault((profile.shape, profile.component), []).append(profile)
        whole = (pooled(group).model_copy(update={"layer": None}) for group in groups.values())
        permanent = tuple(profile.by_shape() for profile in self.permanent)
        return self.model_copy(update={"profiles": tuple(whole), "permanent": permanent})

    def knows(self, layer: str) -> bool:
        """Whether it was learned from the layer of that name."""
        return any(profile.layer == layer for profile in self.profiles)


def _content(
    path: Path, output_shape: Sequence[int] | LayerShape | None = None, layer: str | None = None
) -> dict[str, Any]:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file: cannot read {path}: {error}") from error
    except YAMLError as error:
        raise ValueError(f"file: {path} is not valid YAML: {error}") from error
    if classes_format.is_classes(content):
        if not isinstance(output_shape, LayerShape):
            if not isinstance(output_shape, (list, tuple)) or not all(isinstance(size, int) for size in output_shape):
                raise ValueError(
                    f"output_shape: is {output_shape}; {path} is of CLASSES, in percentages of the output of a layer, "
                    "and takes the shape of that for one input, such as [16, 32, 32]"
                )
            output_shape = LayerShape.usual(tuple(output_shape))
        return classes_format.imported(content, path.stem, output_shape, layer)
    if output_shape is not None or layer is not None:
        raise ValueError(f"output_shape: goes with a file of CLASSES, and {path} is none")
    if not isinstance(content, dict) or "saboteur_error_model" not in content:
        raise ValueError(f"file: {path} is no error model; one begins with saboteur_error_model: 1 or {VERSION}")
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
            spreads[tuple(getattr(spread, name) for name in SIZES)] += spread.count
        for name, gathered in changes.items():
            for change in getattr(part, name):
                gathered.add(change.change, change.count, change.others)
    return PatternErrors(
        pattern=parts[0].pattern,
        spreads=_spreads(spreads),
        **{name: gathered.found() for name, gathered in changes.items()},
    )


SIZES = Footprint._fields[1:]


def _spreads(counts: Counter[tuple[int, ...]]) -> tuple[Spread, ...]:
    return tuple(Spread(**dict(zip(SIZES, sizes, strict=True)), count=n) for sizes, n in sorted(counts.items()))


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
            return code_of(item[0])

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
    _need_columns("deviations", deviations, _DEVIATIONS)
    _need_columns("trials", trials, ("trial", "layer", "component"))
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
    return ErrorModel(title=title, source=source or met.source, profiles=tuple(profiles))


def learn_permanent(
    deviations: pa.Table,
    trials: pa.Table,
    outputs: Mapping[str, LayerOutput],
    title: str,
    *,
    repeats: tuple[int, int] | None = None,
    populations: Mapping[tuple[str, str], int] | None = None,
    source: Source | None = None,
) -> ErrorModel:
    """Learn an error model from what permanent faults of an array were observed to do.

    Args:
        deviations: every wrong value, as of :func:`learn`; a fault may change several layers, each observed on its
            fault-free arguments.
        trials: all that was injected, a row for each trial: ``trial``, ``component``, ``fault`` (which kind of fault,
            such as a stuck bit; all are one kind if absent) and ``inferences``, on how many inputs it was observed
            (1 if absent).
        outputs: the fault-free output of each layer that runs on the array.
        title: of the model.
        repeats: after how many positions and how many channels of a layer the array is at the same place again: rows
            and columns of an output-stationary array. If absent, a fault is not taken to repeat within a layer.
        populations: how many faults each (component, fault) has; the number of trials if absent.
        source: where the observations come from.

    Raises:
        FaultError: when a column or layer is missing, a position is outside of its layer, or trials are unknown.
    """
    _need_columns("deviations", deviations, _DEVIATIONS)
    _need_columns("trials", trials, ("trial", "component"))
    if repeats is not None and min(repeats) < 1:
        raise FaultError(f"repeats: {repeats}; takes at least one position and one channel")
    met = _Trials(trials)
    row = met.rows_of(deviations["trial"].to_numpy())
    layers = deviations["layer"].to_numpy(zero_copy_only=False).astype(str)
    observed = {}
    for layer in np.unique(layers).tolist():
        here = np.flatnonzero(layers == layer)
        found = deviations.take(pa.array(here))
        golden, faulty = (found[name].to_numpy().astype(np.float64) for name in ("golden", "faulty"))
        number, position = (found[name].to_numpy().astype(np.int64) for name in ("input", "position"))
        wrong = golden != faulty
        observed[layer] = Observed(row[here][wrong], number[wrong], position[wrong], golden[wrong], faulty[wrong])
        if layer in outputs:
            _need_inside(observed[layer].position, layer, outputs[layer].shape)
    kinds = pa.table({"component": met.component, "fault": met.fault, "inferences": met.inferences})
    profiles = error_permanent.profiles(observed, kinds, outputs, repeats, populations or {})
    return ErrorModel(title=title, source=source or met.source, permanent=profiles)


_DEVIATIONS = "trial", "input", "layer", "position", "golden", "faulty"


def _need_columns(name: str, table: pa.Table, wanted: Iterable[str]) -> None:
    for column in wanted:
        if column not in table.column_names:
            raise FaultError(f"{name}: no column {column!r}{near(column, table.column_names)}")


def _need_inside(position: Integers, layer: str, shape: LayerShape) -> None:
    if position.size and (position.min() < 0 or position.max() >= shape.elements):
        raise FaultError(
            f"position: {position.max()} in {layer}, whose output of shape {list(shape.shape)} has "
            f"{shape.elements} elements"
        )


class _Trials:
    """The injected trials as columns, found by number."""

    def __init__(self, table: pa.Table):
        number = table["trial"].to_numpy()
        self._order = np.argsort(number, kind="stable")
        self._sorted = number[self._order]
        if (np.diff(self._sorted) == 0).any():
            raise FaultError("trials: a trial is listed twice")
        self.layer, self.component, self.fault = (
            table[name].to_numpy(zero_copy_only=False).astype(str)
            if name in table.column_names
            else np.full(len(number), "", object)
            for name in ("layer", "component", "fault")
        )
        given = "inferences" in table.column_names
        self.inferences = table["inferences"].to_numpy() if given else np.ones(len(number), np.int64)

    @property
    def source(self) -> Source:
        """What there is to say of where they come from."""
        return Source(faults=len(self.component), inferences=int(self.inferences.sum()))

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
    _need_inside(position, layer, output.shape)
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
        others.setdefault(code, {})[name_of(other)] = count
    gathered = _Changes()
    for (code,), count in _counted(codes[largest[chosen]][None]):
        gathered.add(name_of(code), count, others.get(code, {}))
    return gathered.found()


def _counted(columns: NDArray) -> Iterable[tuple[tuple[int, ...], int]]:
    """The distinct columns of [rows, n], each with how often it comes."""
    distinct, counts = np.unique(columns, axis=1, return_counts=True)
    return zip(map(tuple, distinct.T.tolist()), counts.tolist(), strict=True)
