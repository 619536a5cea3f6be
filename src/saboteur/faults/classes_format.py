"""The error models that CLASSES publishes, read into ours and written from ours.

CLASSES has one JSON file for each kind of layer: how often the wrong values of an output make up each *spatial
class*, in which percentage of its channels and positions, and of which *value class* they are (Bolchini et al.,
"Fast and Accurate Error Simulation for CNNs Against Soft Errors", IEEE TC 2022, and the files and generators of its
public repository, D4De/classes). Percentages become numbers by the shape of one layer's output, so that a file is read
for a shape. A spatial class becomes a component of that name; ``docs/error-models.md`` tells what is lost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import ceil, gcd, lcm
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from saboteur.errors import FaultError, near
from saboteur.faults.error_patterns import PATTERNS, Footprint, LayerShape, footprints

if TYPE_CHECKING:
    from saboteur.faults.error_models import Change, ErrorModel, Spread

_CHANGE_OF = {
    "in_range": "in_range",
    "out_of_range": "out_of_range",
    "zero": "zero",
    "nan": "nonfinite",
    "flip": "out_of_range",
}
_VALUE_CLASS_OF = {"in_range": "in_range", "out_of_range": "out_of_range", "zero": "zero", "nonfinite": "nan"}
_OCTAVE_BEYOND_RANGE = 8
_TOLERANCE = 1e-6

Values = Mapping[str, Any]
Probabilities = dict[str, Fraction]
Written = tuple[dict[str, Any], dict[str, Any]]


# -- the file -----------------------------------------------------------------------------------------------

_Percent = Annotated[float, Field(ge=0, le=100)]
_Range = tuple[_Percent, _Percent]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, le=1 + _TOLERANCE)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Random(_Strict):
    RANDOM: Annotated[tuple[int | _Range, ...], Field(min_length=1)]


class _Parameters(_Strict):
    keys: dict[str, int | _Range | _Random]
    stats: dict[str, int | _Range | _Random]
    count: _Count
    conditional_frequency: _Share
    overall_frequency: _Share


class _SpatialClass(_Strict):
    count: _Count
    frequency: _Share
    categories_count: int = 0
    domain_classes: Annotated[tuple[dict[str, int | float | _Range | dict[str, _Share]], ...], Field(min_length=1)]
    parameters: Annotated[tuple[_Parameters, ...], Field(min_length=1)]


def is_classes(content: object) -> bool:
    """Whether the content of a file is an error model of CLASSES."""
    return isinstance(content, dict) and any(
        isinstance(entry, dict) and {"domain_classes", "parameters"} <= set(entry) for entry in content.values()
    )


# -- spatial classes ----------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """Wrong positions of a channel: ``touched`` of them, spread evenly from the first to the last.

    Attributes:
        touched: positions that are wrong in any of the channels.
        span: from the first to the last, in steps.
        wrong: how many of them are wrong in one channel.
        down: whether a step is one row, not one position in raster order.
        lines: of how many rows each holds ``span`` positions.
        crossing: whether they begin at the end of a row.
        of_channels: whether all channels have these, all but one have a single one, or each has others.
    """

    touched: int
    span: int
    wrong: int
    down: bool = False
    lines: int = 1
    crossing: bool = False
    of_channels: Literal["all", "one", "own"] = "all"


def _whole(share: _Range, of: int) -> range:
    """The numbers that a range of percentages allows, each as likely as the others."""
    return range(round(of * share[0] / 100), round(of * share[1] / 100) + 1)


def _mean(share: _Range, of: int) -> int:
    return max(1, round(of * sum(share) / 200))


def _spaced(share: _Range, of: int, given: Values, what: str, most: str, least: int) -> Iterator[tuple[int, int]]:
    """How many of ``of`` places in a line, and from the first to the last of them."""
    skip, longest = given[f"min_{what}_skip"], given[f"max_{what}_skip"]
    for count in _whole(share, of):
        count = max(min(count, (of - 1) // max(skip, 1) + 1, given[most]), least)
        yield count, min(max(1 + longest * (count - 1), count), of)


def _single(given: Values, shape: LayerShape) -> Iterator[_Places]:
    yield _Places(1, 1, 1)


def _same_row(given: Values, shape: LayerShape) -> Iterator[_Places]:
    if shape.columns > 1:
        for count, span in _spaced(given["row_corruption_pct"], shape.columns, given, "value", "max_cardinality", 2):
            yield _Places(count, span, count)


def _same_column(given: Values, shape: LayerShape) -> Iterator[_Places]:
    if shape.rows > 1:
        for count, span in _spaced(given["col_corruption_pct"], shape.rows, given, "value", "max_cardinality", 2):
            yield _Places(count, span, count, down=True)


def _rectangles(given: Values, shape: LayerShape) -> Iterator[_Places]:
    height, width = given["rectangle_height"], given["rectangle_width"]
    if height <= shape.rows and width <= shape.columns:
        yield _Places(height * width, width, height * width, lines=height)


def _full_channels(given: Values, shape: LayerShape) -> Iterator[_Places]:
    yield _Places(shape.positions, shape.positions, _mean(given["avg_channel_corruption_pct"], shape.positions))


def _blocks(share: str) -> Callable[[Values, LayerShape], Iterator[_Places]]:
    def places(given: Values, shape: LayerShape) -> Iterator[_Places]:
        if 2 * shape.positions >= given["block_size"]:
            size = min(given["block_size"], shape.positions)
            yield _Places(size, size, _mean(given[share], size), crossing=True)

    return places


def _skip_4(given: Values, shape: LayerShape) -> Iterator[_Places]:
    count = given["unique_channel_indexes"]
    span = 1 + given["skip_amount"] * (count - 1)
    if span <= shape.positions:
        yield _Places(count, span, _mean(given["indexes_corruption_pct"], count), crossing=True)


def _spans(of_channels: Literal["one", "own"]) -> Callable[[Values, LayerShape], Iterator[_Places]]:
    def places(given: Values, shape: LayerShape) -> Iterator[_Places]:
        for width in range(given["min_span_width"], given["max_span_width"] + 1):
            width = max(1, min(width, shape.positions))
            wrong = _mean(given["avg_span_corruption_pct"], width)
            yield _Places(wrong, width, wrong, crossing=True, of_channels=of_channels)

    return places


def _alternated_blocks(given: Values, shape: LayerShape) -> Iterator[_Places]:
    size = given["block_size"]
    period = size * max(1, (given["min_block_skip"] + given["max_block_skip"]) // 2)
    count = min(ceil(shape.positions / period) * size, shape.positions)
    yield _Places(count, shape.positions, count)


def _random_of_channel(given: Values, shape: LayerShape) -> Iterator[_Places]:
    if shape.positions > 1:
        share = given["channel_corruption_pct"]
        for count, span in _spaced(share, shape.positions, given, "value", "max_cardinality", 2):
            yield _Places(count, span, count, crossing=True)


def _uncategorized(given: Values, shape: LayerShape) -> Iterator[_Places]:
    wrong = _mean(given["avg_channel_corruption_pct"], shape.positions)
    wrong = min(max(min(wrong, given["max_errors_per_channel"]), given["min_errors_per_channel"]), shape.positions)
    yield _Places(wrong, shape.positions, wrong, of_channels="own")


def _exactly(count: int, of: int) -> list[float]:
    return [100 * count / of] * 2


def _skips(what: str, count: int, span: int) -> dict[str, int]:
    gaps = max(count - 1, 1)
    return {f"min_{what}_skip": max(1, (span - 1) // gaps), f"max_{what}_skip": max(1, ceil((span - 1) / gaps))}


def _line(share: str, spread: Spread, span: int, of: int) -> Written:
    keys = {share: _exactly(spread.positions, of)}
    return keys, {"max_cardinality": spread.positions} | _skips("value", spread.positions, span)


@dataclass(frozen=True)
class _Kind:
    """One spatial class.

    Attributes:
        names: the parameters that say which positions of a channel are wrong.
        places: these positions, each of those yielded as likely as the others.
        written: the keys and stats of a spread, but for those of channels.
        channels: the least number of wrong channels; ``None`` where there is one.
        lost: what our patterns do not keep.
    """

    names: tuple[str, ...]
    places: Callable[[Values, LayerShape], Iterator[_Places]]
    written: Callable[[Spread, LayerShape], Written]
    channels: int | None = None
    lost: str = ""


def _each(spread: Spread) -> int:
    return max(1, round(spread.elements / spread.channels))


_LINE = ("max_cardinality", "min_value_skip", "max_value_skip")
_SPAN = ("avg_span_corruption_pct", "min_span_width", "max_span_width")
_CHANNELS = ("affected_channels_pct", "max_corrupted_channels", "min_channel_skip", "max_channel_skip")

_KINDS: dict[str, _Kind] = {
    "single": _Kind((), _single, lambda s, shape: ({}, {})),
    "same_row": _Kind(
        ("row_corruption_pct", *_LINE),
        _same_row,
        lambda s, shape: _line("row_corruption_pct", s, s.columns, shape.columns),
    ),
    "same_column": _Kind(
        ("col_corruption_pct", *_LINE),
        _same_column,
        lambda s, shape: _line("col_corruption_pct", s, s.rows, shape.rows),
    ),
    "bullet_wake": _Kind((), _single, lambda s, shape: ({}, {}), 2),
    "rectangles": _Kind(
        ("rectangle_width", "rectangle_height"),
        _rectangles,
        lambda s, shape: ({"rectangle_width": s.columns, "rectangle_height": s.rows}, {}),
        1,
    ),
    "full_channels": _Kind(
        ("avg_channel_corruption_pct",),
        _full_channels,
        lambda s, shape: ({"avg_channel_corruption_pct": _exactly(s.elements, s.channels * shape.positions)}, {}),
        1,
    ),
    "single_block": _Kind(
        ("block_size", "block_corruption_pct"),
        _blocks("block_corruption_pct"),
        lambda s, shape: ({"block_size": s.span, "block_corruption_pct": _exactly(s.positions, s.span)}, {}),
    ),
    "multi_channel_block": _Kind(
        ("block_size", "avg_block_corruption_pct"),
        _blocks("avg_block_corruption_pct"),
        lambda s, shape: (
            {"block_size": s.span, "avg_block_corruption_pct": _exactly(s.elements, s.channels * s.span)},
            {},
        ),
        2,
    ),
    "skip_4": _Kind(
        ("skip_amount", "unique_channel_indexes", "indexes_corruption_pct"),
        _skip_4,
        lambda s, shape: (
            {
                "skip_amount": _skips("value", s.positions, s.span)["min_value_skip"],
                "unique_channel_indexes": s.positions,
                "indexes_corruption_pct": _exactly(s.elements, s.channels * s.positions),
            },
            {},
        ),
        1,
        "the equal distances of its positions",
    ),
    "shattered_channel": _Kind(
        _SPAN,
        _spans("one"),
        lambda s, shape: (
            {"avg_span_corruption_pct": _exactly(s.positions, s.span)},
            {"min_span_width": s.span, "max_span_width": s.span},
        ),
        2,
        "that all but one value of each other position are in one channel",
    ),
    "quasi_shattered_channel": _Kind(
        _SPAN,
        _spans("own"),
        lambda s, shape: (
            {"avg_span_corruption_pct": [100.0, 100.0]},
            {"min_span_width": _each(s), "max_span_width": _each(s)},
        ),
        2,
        "that the values of one channel lie close together",
    ),
    "single_channel_alternated_blocks": _Kind(
        ("block_size", "min_block_skip", "max_block_skip"),
        _alternated_blocks,
        lambda s, shape: (
            {"block_size": 1},
            {"min_block_skip": max(1, s.span // s.positions), "max_block_skip": max(1, s.span // s.positions)},
        ),
        None,
        "its blocks and the largest map in which it was seen",
    ),
    "single_channel_random": _Kind(
        ("channel_corruption_pct", *_LINE),
        _random_of_channel,
        lambda s, shape: _line("channel_corruption_pct", s, s.span, shape.positions),
    ),
    "multiple_channels_uncategorized": _Kind(
        ("avg_channel_corruption_pct", "min_errors_per_channel", "max_errors_per_channel"),
        _uncategorized,
        lambda s, shape: (
            {"avg_channel_corruption_pct": _exactly(_each(s), shape.positions)},
            {"min_errors_per_channel": _each(s), "max_errors_per_channel": _each(s)},
        ),
        2,
    ),
}
_KINDS["multiple_channels_multi_block"] = _KINDS["multi_channel_block"]

_CLASS_OF_PATTERN = {
    "single": "single",
    "row": "same_row",
    "column": "same_column",
    "run": "single_block",
    "scattered": "single_channel_random",
    "bullet_wake": "bullet_wake",
    "run_across_channels": "multi_channel_block",
}


# -- reading ------------------------------------------------------------------------------------------------


def imported(content: Mapping[str, Any], title: str, shape: LayerShape, layer: str | None = None) -> dict[str, Any]:
    """The content of our own file, from that of one of CLASSES.

    Args:
        content: of the file.
        title: of the model.
        shape: of the output of the layer.
        layer: its name, if the model is to speak of that layer alone.

    Raises:
        ValueError: for anything wrong with it or unknown, by name.
    """
    classes = {name: entry for name, entry in content.items() if not name.startswith("_")}
    for name in classes:
        if name not in _KINDS:
            raise ValueError(f"spatial class {name!r} is unknown{near(name, _KINDS)}")
    given = {name: _SpatialClass.model_validate(entry) for name, entry in classes.items()}
    total = sum(entry.count for entry in given.values())
    about = (name for name in content if name.startswith("_") and name not in ("_tensor_count", "_categories_count"))
    notes = [f"{name.strip('_')} {content[name]}" for name in about]
    profiles = []
    for name, entry in given.items():
        _agree(f"{name}: frequency", entry.frequency, entry.count, total)
        profile, unfit = _profile(name, entry, shape)
        if profile is not None:
            profiles.append(profile | {"layer": layer, "shape": shape.shape_class})
            if _KINDS[name].lost:
                notes.append(f"{name} ({entry.count} of {total}) without {_KINDS[name].lost}")
        if unfit:
            notes.append(f"{unfit} of {total} left out, {name} too large for the output")
    if not profiles:
        raise ValueError(f"output_shape: no spatial class of {title} fits an output of shape {list(shape.shape)}")
    return {
        "saboteur_error_model": 1,
        "title": title,
        "description": "; ".join([f"From CLASSES, for an output of shape {list(shape.shape)}", *notes]),
        "source": {"level": "CLASSES", "faults": total, "inferences": total},
        "profiles": profiles,
    }


def _agree(what: str, frequency: Any, count: int, total: int) -> None:
    if not isinstance(frequency, (int, float)) or abs(frequency - count / total) > _TOLERANCE:
        raise ValueError(f"{what} is {frequency}, and its count {count} of {total}")


def _profile(name: str, entry: _SpatialClass, shape: LayerShape) -> tuple[dict[str, Any] | None, int]:
    """The profile of one spatial class, and how many of its errors are too large for the output."""
    domains = [_domain(name, domain, entry.count) for domain in entry.domain_classes]
    for what, counts in (
        ("parameters", [p.count for p in entry.parameters]),
        ("domain_classes", [n for n, _ in domains]),
    ):
        if sum(counts) != entry.count:
            raise ValueError(f"{name}: {what} count {sum(counts)}, the class {entry.count}")
    seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for parameters in entry.parameters:
        _agree(f"{name}: conditional_frequency", parameters.conditional_frequency, parameters.count, entry.count)
        seen.update(_seen(name, parameters, shape))
    fitting = seen.total()
    if not fitting:
        return None, entry.count
    patterns: Counter[str] = Counter()
    for (pattern, _), count in seen.items():
        patterns[pattern] += count
    shares = [
        (pattern, n, value, Fraction(patterns[pattern] * n, entry.count) * p, probabilities)
        for pattern in patterns
        for n, probabilities in domains
        for value, p in probabilities.items()
    ]
    factor = lcm(*(share.denominator for *_, share, _ in shares))
    finest = lcm(*(p.denominator for _, probabilities in domains for p in probabilities.values()))
    changes: dict[str, list[dict[str, Any]]] = {}
    for pattern, _, value, share, probabilities in shares:
        count = int(share * factor)
        others = {other: int(count * p * finest) for other, p in probabilities.items()}
        changes.setdefault(pattern, []).append(
            {"change": value, "count": count, "others": {} if pattern == "single" else others}
        )
    for found in changes.values():
        common = gcd(*(count for change in found for count in change["others"].values())) or 1
        for change in found:
            change["others"] = {other: count // common for other, count in change["others"].items()}
    return {
        "component": name,
        "population": fitting * shape.elements,
        "inferences": fitting * factor,
        "patterns": [
            {
                "pattern": pattern,
                "spreads": [
                    dict(zip(Footprint._fields[1:], sizes, strict=True)) | {"count": count * factor}
                    for (other, sizes), count in sorted(seen.items())
                    if other == pattern
                ],
                "changes": changes[pattern],
            }
            for pattern in PATTERNS
            if pattern in patterns
        ],
    }, entry.count - fitting


def _domain(name: str, domain: Mapping[str, Any], total: int) -> tuple[int, Probabilities]:
    """How often of ``total``, and the probabilities of changes."""
    given = {key: value for key, value in domain.items() if key not in ("count", "frequency", "values", "random")}
    shares: dict[str, Fraction]
    if "random" in domain:
        values = domain.get("values")
        if given or not isinstance(values, dict):
            raise ValueError(f"{name}: domain class random has values and nothing else")
        shares = {value: _fraction(p) for value, p in values.items()}
        if abs(sum(shares.values()) - 1) > _TOLERANCE:
            raise ValueError(f"{name}: the values of domain class random add up to {float(sum(shares.values())):g}")
        shares = {value: p / sum(shares.values()) for value, p in shares.items()}
    else:
        for value, share in given.items():
            if not isinstance(share, tuple):
                raise ValueError(f"{name}: {value} of a domain class is {share}, not a range of percentages")
        if len(given) not in (1, 2):
            raise ValueError(f"{name}: a domain class is of one value class, of two or random, not {len(given)}")
        means = [_fraction(sum(share) / 200) for share in given.values()]
        shares = dict(zip(given, [means[0], 1 - means[0]] if len(given) == 2 else [Fraction(1)], strict=True))
    probabilities: Counter[str] = Counter()
    for value, p in shares.items():
        if value not in _CHANGE_OF:
            raise ValueError(f"{name}: value class {value!r} is unknown{near(value, _CHANGE_OF)}")
        probabilities[_CHANGE_OF[value]] += p  # type: ignore[assignment]
    count = domain.get("count")
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}: a domain class has count {count!r}")
    _agree(f"{name}: frequency of a domain class", domain.get("frequency", count / total), count, total)
    return count, {value: Fraction(p) for value, p in probabilities.items() if p}


def _fraction(share: float) -> Fraction:
    """The simplest fraction that is rounded to ``share``."""
    for limit in range(3, 9):
        found = Fraction(share).limit_denominator(10**limit)
        if float(found) == share:
            return found
    return Fraction(share)


def _seen(name: str, parameters: _Parameters, shape: LayerShape) -> Counter[tuple[str, tuple[int, ...]]]:
    """Patterns and their sizes, in whole counts that add up to that of the parameters; none where nothing fits."""
    kind = _KINDS[name]
    given = parameters.keys | parameters.stats
    wanted = kind.names + (() if kind.channels is None else _CHANNELS)
    for key in sorted({*wanted} - {*given}):
        raise ValueError(f"{name}: parameter {key} is missing")
    for key, value in given.items():
        for option in value.RANDOM if isinstance(value, _Random) else (value,):
            if key.endswith("_pct") and not (isinstance(option, tuple) and option[0] <= option[1]):
                raise ValueError(f"{name}: parameter {key} is {option}, not a range of percentages")
            if not key.endswith("_pct") and not (isinstance(option, int) and option >= (key[:4] != "min_")):
                raise ValueError(f"{name}: parameter {key} is {option}, not a number of at least 1")
    for key in sorted({*given} - {*wanted, "max_feature_map_width", "max_feature_map_height"}):
        raise ValueError(f"{name}: parameter {key!r} is unknown{near(key, wanted)}")
    places = _weighed(kind.places(values, shape) for values in _choices(given, kind.names))
    channels: Counter[tuple[int, int]] = Counter({(1, 1): 1})
    if kind.channels is not None:
        if kind.channels > shape.channels:
            return Counter()
        channels = _weighed(
            _spaced(
                values["affected_channels_pct"],
                shape.channels,
                values,
                "channel",
                "max_corrupted_channels",
                kind.channels,
            )
            for values in _choices(given, _CHANNELS)
        )
    pairs = list(product(sorted(channels), sorted(places)))
    seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
    if pairs:
        weights = np.array([channels[several] * places[place] for several, place in pairs])
        ends = np.round(np.cumsum(weights) * (parameters.count / weights.sum()))
        for (several, place), count in zip(pairs, np.diff(ends, prepend=0).astype(int).tolist(), strict=True):
            if count:
                seen[_sizes(place, *several, shape)] += count
    return seen


def _choices(given: Values, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The parameters of these names with one choice made for each that is random; no least is above its most."""
    names = list(names)
    options = [given[name].RANDOM if isinstance(given[name], _Random) else (given[name],) for name in names]
    for chosen in product(*options):
        values = dict(zip(names, chosen, strict=True))
        least = ((value, values.get(f"max_{key[4:]}", value)) for key, value in values.items() if key[:4] == "min_")
        if all(low <= high for low, high in least):
            yield values


def _weighed(choices: Iterable[Iterator[Any]]) -> Counter[Any]:
    """What the choices yield, each choice as likely as the others, all that one yields alike."""
    weights: Counter[Any] = Counter()
    for choice in choices:
        found = list(choice)
        for one in found:
            weights[one] += 1 / len(found)  # type: ignore[assignment]
    return weights


def _sizes(places: _Places, channels: int, channel_span: int, shape: LayerShape) -> tuple[str, tuple[int, ...]]:
    """The pattern of these places in some channels, and its sizes."""
    touched, span, elements = places.touched, places.span, places.wrong
    if channels == 1:
        touched = places.wrong
    elif places.of_channels == "all":
        elements = max(channels * places.wrong, channels, touched)
    elif places.of_channels == "one":
        elements = channels + places.wrong - 1
    else:
        touched, span = min(channels * places.wrong, shape.positions), shape.positions
        elements = channels * places.wrong
    cells = _cells(places, touched, span, shape)
    found = footprints(np.zeros(len(cells), np.int64), cells, LayerShape((1, shape.rows, shape.columns)))
    number, positions, rows, columns, span = (
        int(getattr(found, name)[0]) for name in ("pattern", "positions", "rows", "columns", "span")
    )
    pattern = PATTERNS[number + (channels > 1) * (len(PATTERNS) // 2)]
    return pattern, (channels, channel_span, positions, rows, columns, span, elements)


def _cells(places: _Places, touched: int, span: int, shape: LayerShape) -> NDArray[np.int64]:
    if places.lines > 1:
        return (np.arange(places.lines)[:, None] * shape.columns + np.arange(span)).ravel()
    line = np.unique(np.linspace(0, span - 1, touched).round().astype(np.int64))
    start = min(shape.columns - 1, shape.positions - span) if places.crossing else 0
    return start + line * (shape.columns if places.down else 1)


# -- writing ------------------------------------------------------------------------------------------------


def write(model: ErrorModel, path: Path | str, shape: LayerShape, layer: str = "") -> tuple[str, ...]:
    """Write what a model knows of one layer as a JSON file of CLASSES.

    Components named as spatial classes are written as these, as after reading such a file; of others, patterns are.

    Args:
        model: to be written.
        path: where to.
        shape: of the output of the layer.
        layer: its name, where the model tells layers apart.

    Returns:
        What the file does not say, a sentence each.

    Raises:
        FaultError: when there are no errors to write, or one is larger than the output.
    """
    parameters: dict[str, Counter[str]] = {}
    domains: dict[str, dict[tuple[tuple[str, Fraction], ...], Fraction]] = {}
    notes: dict[str, None] = {}
    for profile in model.of_layer(layer, shape):
        if profile.component not in _KINDS:
            notes[f"Component {profile.component} is not told apart."] = None
        if profile.changed < profile.inferences:
            notes[f"That {profile.masked:.1%} of the errors of {profile.component} are masked."] = None
        for part in profile.patterns:
            changes = (*part.changes, *part.changes_at_bottom)
            if part.changes_at_bottom:
                notes["Which values were at their lower clamp."] = None
            names = [name for change in changes for name in (change.change, *change.others)]
            for change in dict.fromkeys(name for name in names if name not in _VALUE_CLASS_OF):
                notes[f"The size of the change {change}, written as {_value_class(change)}."] = None
            for spread in part.spreads:
                name = profile.component if profile.component in _KINDS else _class_of(part.pattern, spread)
                weight = Fraction(profile.population * spread.count, profile.inferences * shape.elements)
                written = json.dumps(_written(name, spread, shape))
                parameters.setdefault(name, Counter())[written] += weight  # type: ignore[assignment]
                found = domains.setdefault(name, {})
                for probabilities, share in _domains(changes):
                    found[probabilities] = found.get(probabilities, Fraction(0)) + weight * share
    if not parameters:
        raise FaultError(f"error_model: {model.title} knows of no error of a layer of shape {list(shape.shape)}")
    content = _content(parameters, domains)
    Path(path).write_text(json.dumps(content, indent=3) + "\n", encoding="utf-8")
    return tuple(notes)


def _content(
    parameters: Mapping[str, Mapping[str, Any]],
    domains: Mapping[str, Mapping[tuple[tuple[str, Fraction], ...], Fraction]],
) -> dict[str, Any]:
    weights = [Fraction(w) for part in (parameters, domains) for found in part.values() for w in found.values()]
    scale = lcm(*(weight.denominator for weight in weights))
    counts = {name: int(sum(found.values()) * scale) for name, found in parameters.items()}
    total = sum(counts.values())
    content: dict[str, Any] = {
        "_rejected_tensors_proportion": 0.0,
        "_tensor_count": total,
        "_categories_count": len(counts),
    }
    for name, count in counts.items():
        content[name] = {
            "count": count,
            "frequency": count / total,
            "categories_count": len(domains[name]),
            "domain_classes": [
                _domain_class(probabilities)
                | {"count": int(weight * scale), "frequency": float(weight * scale / count)}
                for probabilities, weight in domains[name].items()
            ],
            "parameters": [
                dict(zip(("keys", "stats"), json.loads(written), strict=True))
                | {
                    "conditional_frequency": float(weight * scale / count),
                    "overall_frequency": float(weight * scale / total),
                    "count": int(weight * scale),
                }
                for written, weight in parameters[name].items()
            ],
        }
    return content


def _domain_class(probabilities: tuple[tuple[str, Fraction], ...]) -> dict[str, Any]:
    if len(probabilities) == 1:
        return {probabilities[0][0]: [100.0, 100.0]}
    return {"random": [100.0, 100.0], "values": {value: float(p) for value, p in probabilities}}


def _class_of(pattern: str, spread: Spread) -> str:
    """The spatial class of a pattern; rectangles where all their values are wrong."""
    if pattern in _CLASS_OF_PATTERN:
        return _CLASS_OF_PATTERN[pattern]
    if spread.elements == spread.channels * spread.rows * spread.columns:
        return "rectangles"
    return "multiple_channels_uncategorized" if spread.channels > 1 else "single_channel_random"


def _written(name: str, spread: Spread, shape: LayerShape) -> Written:
    kind = _KINDS[name]
    size = spread.channel_span, spread.rows, spread.columns
    if any(one > of for one, of in zip(size, (shape.channels, shape.rows, shape.columns), strict=True)):
        raise FaultError(f"shape: {list(shape.shape)} is smaller than an error of {name}, over {size} of it")
    keys, stats = kind.written(spread, shape)
    if kind.channels is not None:
        keys = keys | {"affected_channels_pct": _exactly(spread.channels, shape.channels)}
        stats = stats | {"max_corrupted_channels": spread.channels}
        stats |= _skips("channel", spread.channels, spread.channel_span)
    return keys, stats


def _domains(changes: Iterable[Change]) -> Iterator[tuple[tuple[tuple[str, Fraction], ...], Fraction]]:
    """Probabilities of value classes, and in which share of the inferences they are these.

    Changes whose other elements are of the same value classes in the same proportion make up one domain class.
    """
    groups: dict[tuple[tuple[str, Fraction], ...], tuple[Counter[str], int]] = {}
    total = 0
    for change in changes:
        own = _value_class(change.change)
        others: Counter[str] = Counter()
        for other, count in change.others.items():
            others[_value_class(other)] += count
        values = others.copy()
        values[own] += change.count
        key = _shares(others) if others else ((own, Fraction(1)),)
        counted, inferences = groups.get(key, (Counter(), 0))
        groups[key] = counted + values, inferences + change.count
        total += change.count
    for counted, inferences in groups.values():
        yield _shares(counted), Fraction(inferences, total)


def _shares(counts: Counter[str]) -> tuple[tuple[str, Fraction], ...]:
    total = counts.total()
    return tuple((value, Fraction(count, total)) for value, count in sorted(counts.items()))


def _value_class(change: str) -> str:
    """The value class of a change; one by more than the width of the range leaves it, whatever the value was."""
    if change in _VALUE_CLASS_OF:
        return _VALUE_CLASS_OF[change]
    beyond = change[0] in "+-" and int(change.partition("^")[2]) >= _OCTAVE_BEYOND_RANGE
    return "out_of_range" if beyond else "in_range"
