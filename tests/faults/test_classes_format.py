"""Error models of CLASSES: read by hand-computed counts, drawn, written, and files that are wrong."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.errors import FaultError
from saboteur.faults import classes_format
from saboteur.faults.error_models import Change, ErrorModel, PatternErrors, Profile, Spread
from saboteur.faults.error_patterns import PATTERNS, LayerShape, footprints
from saboteur.faults.error_sampling import Sampler
from saboteur.faults.error_values import LayerOutput, code_of

SHAPE = LayerShape((16, 8, 8))
FLOAT = LayerOutput(SHAPE, step=5 / 255, bottom=-np.inf, top=np.inf, low=-2.0, high=3.0, at_bottom=0, quantised=False)
IN_RANGE = [{"in_range": [100.0, 100.0]}]


def channels(share: Any, most: Any = 64, least_skip: Any = 1, most_skip: Any = 1) -> tuple[dict, dict]:
    """The parameters that all classes of several channels have."""
    stats = {"max_corrupted_channels": most, "min_channel_skip": least_skip, "max_channel_skip": most_skip}
    return {"affected_channels_pct": share}, stats


def entry(parameters: list[tuple[int, dict, dict]], domains: list[tuple[int, dict]]) -> dict[str, Any]:
    """One spatial class but for what depends on the others."""
    count = sum(n for n, _, _ in parameters)
    return {
        "count": count,
        "categories_count": len(domains),
        "domain_classes": [domain | {"count": n, "frequency": n / count} for n, domain in domains],
        "parameters": [
            {"keys": keys, "stats": stats, "conditional_frequency": n / count, "overall_frequency": 0.0, "count": n}
            for n, keys, stats in parameters
        ],
    }


def model_file(classes: dict[str, dict[str, Any]], path: Path) -> Path:
    """A file of these classes."""
    total = sum(one["count"] for one in classes.values())
    content: dict[str, Any] = {"_rejected_tensors_proportion": 0.0, "_tensor_count": total, "_categories_count": 1}
    content |= {name: one | {"frequency": one["count"] / total} for name, one in classes.items()}
    path.write_text(json.dumps(content, indent=3))
    return path


def alone(name: str, keys: dict, stats: dict, count: int = 60) -> dict[str, dict[str, Any]]:
    """A class of one set of parameters, of values in range."""
    return {name: entry([(count, keys, stats)], [(count, IN_RANGE[0])])}


def random(*options: Any) -> dict[str, list]:
    return {"RANDOM": list(options)}


MIXED = [
    (40, {"random": [100.0, 100.0], "values": {"in_range": 0.5, "out_of_range": 0.375, "zero": 0.125}}),
    (32, {"out_of_range": [75.0, 87.5], "in_range": [12.5, 25.0]}),
    (28, {"in_range": [100.0, 100.0]}),
]


@pytest.fixture
def conv(tmp_path: Path) -> Path:
    """A file with the structure of the published ones."""
    some_keys, some_stats = channels([25.0, 50.0], 8, 1, 2)
    rest_keys, rest_stats = channels(random([0.0, 12.5], [50.0, 50.0]), random(4, 2))
    skip_keys, skip_stats = channels([12.5, 12.5], 4, 4, 4)
    rectangle_keys, rectangle_stats = channels([6.25, 12.5])
    row = {"max_cardinality": 3, "min_value_skip": 1, "max_value_skip": 2}
    third = 1 / 3
    return model_file(
        {
            "bullet_wake": entry([(60, some_keys, some_stats), (40, rest_keys, rest_stats)], MIXED),
            "single": entry(
                [(60, {}, {})], [(30, IN_RANGE[0]), (10, {"nan": [100.0, 100.0]}), (20, {"out_of_range": [100, 100]})]
            ),
            "same_row": entry(
                [(21, {"row_corruption_pct": [25.0, 50.0]}, row)],
                [(21, {"random": [100.0, 100.0], "values": {"in_range": 2 * third, "flip": third}})],
            ),
            "rectangles": entry(
                [(20, {"rectangle_width": 2, "rectangle_height": 3} | rectangle_keys, rectangle_stats)],
                [(15, IN_RANGE[0]), (5, {"zero": [100.0, 100.0]})],
            ),
            "skip_4": entry(
                [
                    (
                        9,
                        {"skip_amount": 4, "unique_channel_indexes": 8, "indexes_corruption_pct": [90.0, 100.0]}
                        | skip_keys,
                        skip_stats,
                    )
                ],
                [(9, {"in_range": [87.5, 100.0], "out_of_range": [0.0, 12.5]})],
            ),
        },
        tmp_path / "conv_gemm.json",
    )


def by_class(model: ErrorModel) -> dict[str, Profile]:
    return {profile.component: profile for profile in model.profiles}


def value_classes(model: ErrorModel) -> dict[str, dict[str, Fraction]]:
    """Of each component, the probability of each change of its wrong elements."""
    found: dict[str, dict[str, Fraction]] = {}
    for profile in model.profiles:
        shares: dict[str, Fraction] = {}
        for part in profile.patterns:
            for change in part.changes:
                values = Counter({change.change: change.count}) + Counter(change.others)
                for value, count in values.items():
                    weight = Fraction(change.count * count, profile.changed * values.total())
                    shares[value] = shares.get(value, Fraction(0)) + weight
        found[profile.component] = shares
    return found


def shares_of_classes(model: ErrorModel) -> dict[str, Fraction]:
    total = sum(profile.population for profile in model.profiles)
    return {profile.component: Fraction(profile.population, total) for profile in model.profiles}


def spreads(profile: Profile) -> dict[tuple[str, int, int, int], Fraction]:
    """The share of each (pattern, channels, channel span, positions)."""
    return {
        (part.pattern, s.channels, s.channel_span, s.positions): Fraction(s.count, profile.changed)
        for part in profile.patterns
        for s in part.spreads
    }


def test_spatial_classes_by_hand(conv: Path) -> None:
    model = ErrorModel.read(conv, [16, 8, 8])
    assert model.title == "conv_gemm"
    assert (model.source.level, model.source.faults) == ("CLASSES", 210)
    shares = {"bullet_wake": 100, "single": 60, "same_row": 21, "rectangles": 20, "skip_4": 9}
    assert shares_of_classes(model) == {name: Fraction(count, 210) for name, count in shares.items()}
    found = by_class(model)
    assert all(profile.masked == 0 and profile.shape == "small_map" for profile in model.profiles)
    # 25 % to 50 % of 16 channels: 4 to 8, every second one; of the rest 3 of 4 have 2 channels, the others 4.
    assert spreads(found["bullet_wake"]) == {
        ("bullet_wake", n, 2 * n - 1, 1): Fraction(12, 100) for n in (4, 5, 6, 7, 8)
    } | {("bullet_wake", 2, 2, 1): Fraction(30, 100), ("bullet_wake", 4, 4, 1): Fraction(10, 100)}
    # 25 % to 50 % of 8 columns: 2, 3 or 4, cut to 3.
    assert spreads(found["same_row"]) == {("row", 1, 1, 2): Fraction(1, 3), ("row", 1, 1, 3): Fraction(2, 3)}
    assert [s.columns for s in found["same_row"].patterns[0].spreads] == [3, 5]
    assert spreads(found["rectangles"]) == {
        ("block", 1, 1, 6): Fraction(1, 2),
        ("block_across_channels", 2, 2, 6): Fraction(1, 2),
    }
    assert spreads(found["skip_4"]) == {("scattered_across_channels", 2, 5, 8): Fraction(1)}
    assert found["skip_4"].patterns[0].spreads[0].span == 29
    assert "skip_4 (9 of 210) without the equal distances of its positions" in model.description


VALUES = {
    "bullet_wake": {"in_range": Fraction(54, 100), "out_of_range": Fraction(41, 100), "zero": Fraction(5, 100)},
    "single": {"in_range": Fraction(1, 2), "nonfinite": Fraction(1, 6), "out_of_range": Fraction(1, 3)},
    "same_row": {"in_range": Fraction(2, 3), "out_of_range": Fraction(1, 3)},
    "rectangles": {"in_range": Fraction(3, 4), "zero": Fraction(1, 4)},
    "skip_4": {"in_range": Fraction(15, 16), "out_of_range": Fraction(1, 16)},
}


def test_value_classes_by_hand(conv: Path) -> None:
    """0.28 + 0.32 · 3/16 + 0.4 · 0.5 = 0.54 of the values of a bullet wake are in range, and so on."""
    assert value_classes(ErrorModel.read(conv, SHAPE)) == VALUES


def test_round_trip_keeps_classes_and_values_exactly(conv: Path, tmp_path: Path) -> None:
    model = ErrorModel.read(conv, SHAPE)
    written = tmp_path / "again.json"
    assert classes_format.write(model, written, SHAPE) == ()
    before, after = json.loads(conv.read_text()), json.loads(written.read_text())
    names = [name for name in before if name[0] != "_"]
    assert [name for name in after if name[0] != "_"] == names
    assert [after[name]["frequency"] for name in names] == [before[name]["frequency"] for name in names]
    assert [after[name]["count"] for name in names] == [before[name]["count"] for name in names]
    again = ErrorModel.read(written, SHAPE)
    assert value_classes(again) == VALUES
    assert shares_of_classes(again) == shares_of_classes(model)
    assert {name: spreads(p) for name, p in by_class(again).items()} == {
        name: spreads(p) for name, p in by_class(model).items()
    }
    domains = after["bullet_wake"]["domain_classes"]
    assert {json.dumps(d) for d in domains} >= {
        json.dumps({"in_range": [100.0, 100.0], "count": 28, "frequency": 0.28})
    }
    assert {d["count"]: d["values"] for d in domains if "random" in d} == {
        40: {"in_range": 0.5, "out_of_range": 0.375, "zero": 0.125},
        32: {"in_range": 0.1875, "out_of_range": 0.8125},
    }


def test_our_own_file_keeps_what_was_read(conv: Path, tmp_path: Path) -> None:
    model = ErrorModel.read(conv, SHAPE, "conv1")
    assert model.knows("conv1")
    model.write(tmp_path / "own.yaml")
    assert ErrorModel.read(tmp_path / "own.yaml") == model
    in_place = ErrorModel.model_validate({"kind": "error_model", "file": str(conv), "output_shape": [16, 8, 8]})
    assert in_place == ErrorModel.read(conv, SHAPE)


def drawn(profile: Profile, output: LayerOutput, faults: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of drawn errors which fault each wrong element is of, its position, and its value where it was 0.5."""
    rng = np.random.default_rng(7)
    key, anchor = rng.integers(0, 2**63, faults).astype(np.uint64), rng.integers(0, output.shape.elements, faults)
    sampler = Sampler(profile, output)
    errors = sampler.draw(key, anchor)
    values = sampler.values(errors, key[errors.fault], errors.fault, np.full(len(errors.fault), 0.5))
    return errors.fault, errors.position, values


def patterns_drawn(path: Path, shape: LayerShape) -> set[str]:
    (profile,) = ErrorModel.read(path, shape).profiles
    output = LayerOutput(shape, 1, -np.inf, np.inf, 0, 255, 0, False)
    fault, position, _ = drawn(profile, output, 60)
    return {PATTERNS[number] for number in footprints(fault, position, shape).pattern}


share = st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted)
skips = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(sorted)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(LayerShape, st.tuples(st.integers(2, 24), st.integers(2, 12), st.integers(2, 12))),
    share,
    skips,
    st.integers(2, 20),
)
def test_drawn_patterns_are_of_the_class_they_were_drawn_for(
    tmp_path_factory: pytest.TempPathFactory, shape: LayerShape, share: list, skip: list, most: int
) -> None:
    """Of classes that map one to one, whatever the parameters and the shape."""
    path = tmp_path_factory.getbasetemp() / "property.json"
    line = {"max_cardinality": most, "min_value_skip": skip[0], "max_value_skip": skip[1]}
    keys, stats = channels(share, most, *skip)
    for name, own, of_class, pattern in [
        ("single", {}, {}, "single"),
        ("same_row", {"row_corruption_pct": share}, line, "row"),
        ("same_column", {"col_corruption_pct": share}, line, "column"),
        ("bullet_wake", keys, stats, "bullet_wake"),
    ]:
        assert patterns_drawn(model_file(alone(name, own, of_class), path), shape) == {pattern}
    rectangle = {"rectangle_width": 2, "rectangle_height": shape.rows} | keys
    assert patterns_drawn(model_file(alone("rectangles", rectangle, stats), path), shape) <= {
        "block",
        "block_across_channels",
    }
    dense = [75, 100]
    several, of_several = channels([100, 100])
    full = {"avg_channel_corruption_pct": dense} | several
    assert patterns_drawn(model_file(alone("full_channels", full, of_several), path), shape) == {
        "block_across_channels"
    }
    size = min(most, shape.columns)
    block = {"block_size": size, "block_corruption_pct": dense}
    assert patterns_drawn(model_file(alone("single_block", block, {}), path), shape) == {"run"}
    blocks = {"block_size": size, "avg_block_corruption_pct": dense} | several
    found = patterns_drawn(model_file(alone("multi_channel_block", blocks, of_several), path), shape)
    assert found == {"run_across_channels"}


def test_drawn_values_are_of_the_class_they_were_drawn_for(conv: Path) -> None:
    """By the definitions of CLASSES: not finite, zero, within the fault-free values or outside of them."""
    for name, profile in by_class(ErrorModel.read(conv, SHAPE)).items():
        _, _, values = drawn(profile, FLOAT, 6000)
        inside = (values >= FLOAT.low) & (values <= FLOAT.high)
        found = {
            "nonfinite": np.isnan(values),
            "zero": values == 0,
            "in_range": inside & (values != 0),
            "out_of_range": ~inside & ~np.isnan(values),
        }
        for value, where in found.items():
            # Values of one error go together: 6000 errors, five standard errors.
            expected = float(VALUES[name].get(value, 0))
            assert where.mean() == pytest.approx(expected, abs=5 * np.sqrt(expected * (1 - expected) / 6000) + 1e-12)


@pytest.mark.parametrize(
    ("bottom", "top", "outside"),
    [(-np.inf, np.inf, {"below", "above"}), (-2.0, np.inf, {"above"}), (-np.inf, 3.0, {"below"}), (-2.0, 3.0, set())],
)
def test_out_of_range_leaves_on_a_side_that_is_open(bottom: float, top: float, outside: set[str]) -> None:
    """Behind a rectifier nothing is below; where both ends are clamps, a value ends at one of them."""
    output = LayerOutput(SHAPE, 5 / 255, bottom, top, -2.0, 3.0, 0, False)
    golden = np.repeat([-2.0, 0.0, 3.0], 200)
    uniform = np.tile(np.linspace(0.001, 0.999, 200), 3)
    values = output.changed(golden, np.full(600, code_of("out_of_range")), uniform)
    found = {side for side, where in (("below", values < -2.0), ("above", values > 3.0)) if where.any()}
    assert found == outside
    if outside:
        moved = np.abs(values - golden)
        assert moved.min() >= 2 * 5.0 and moved.max() <= 600 * 5.0 * (1 + 1 / 255)
        assert not ((values >= -2.0) & (values <= 3.0)).any()
    else:
        assert set(values) == {-2.0, 3.0}


def test_in_range_of_integers_is_any_step_of_the_range() -> None:
    output = LayerOutput(SHAPE, 1, -128, 127, -2, 5, 0, True)
    values = output.changed(np.full(800, 1.0), np.full(800, code_of("in_range")), (np.arange(800) + 0.5) / 800)
    assert Counter(values.tolist()) == {value: 100 for value in (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0)}
    assert output.changed(np.array([4.0]), np.array([code_of("zero")]), np.array([0.3])).tolist() == [0.0]


OTHERS = [
    ("full_channels", {"avg_channel_corruption_pct": [50, 100]}, {}, (12.5, 12.5), {("block_across_channels", 2, 96)}),
    ("single_block", {"block_size": 16, "block_corruption_pct": [75, 100]}, {}, None, {("run", 1, 14)}),
    ("multi_channel_block", {"block_size": 16, "avg_block_corruption_pct": [50, 75]}, {}, (25, 25),
     {("run_across_channels", 4, 40)}),
    ("multiple_channels_multi_block", {"block_size": 128, "avg_block_corruption_pct": [100, 100]}, {}, (25, 25),
     {("block_across_channels", 4, 256)}),
    # 2 to 4 positions wide, all wrong, in one of 4 channels, and one of these positions in the others.
    ("shattered_channel", {"avg_span_corruption_pct": [100, 100]}, {"min_span_width": 2, "max_span_width": 4}, (25, 25),
     {("run_across_channels", 4, 5), ("run_across_channels", 4, 6), ("run_across_channels", 4, 7)}),
    ("quasi_shattered_channel", {"avg_span_corruption_pct": [100, 100]}, {"min_span_width": 2, "max_span_width": 2},
     (25, 25), {("scattered_across_channels", 4, 8)}),
    ("single_channel_alternated_blocks", {"block_size": 8}, {"min_block_skip": 4, "max_block_skip": 4}, None,
     {("scattered", 1, 16)}),
    ("single_channel_random", {"channel_corruption_pct": [6.25, 6.25]},
     {"max_cardinality": 64, "min_value_skip": 1, "max_value_skip": 9}, None, {("scattered", 1, 4)}),
    ("multiple_channels_uncategorized", {"avg_channel_corruption_pct": [0, 50]},
     {"min_errors_per_channel": 1, "max_errors_per_channel": 5}, (12.5, 12.5), {("scattered_across_channels", 2, 10)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "stats", "share", "expected"), OTHERS, ids=[case[0] for case in OTHERS])
def test_each_spatial_class_by_hand(
    tmp_path: Path, name: str, keys: dict, stats: dict, share: tuple | None, expected: set
) -> None:
    """Pattern, channels and elements in an output of 16 channels of 8 by 8; written and read, they are the same."""
    if share is not None:
        of_channels = channels(list(share))
        keys, stats = keys | of_channels[0], stats | of_channels[1]
    path = model_file(alone(name, keys, stats), tmp_path / "one.json")
    model = ErrorModel.read(path, SHAPE)
    (profile,) = model.profiles
    found = [(part.pattern, s.channels, s.elements) for part in profile.patterns for s in part.spreads]
    assert set(found) == expected
    classes_format.write(model, path, SHAPE)
    (again,) = ErrorModel.read(path, SHAPE).profiles
    assert again.component == name
    assert sum(part.count * s.elements for part in again.patterns for s in part.spreads) > 0
    if name not in ("single_channel_alternated_blocks",):
        assert {(part.pattern, s.channels, s.elements) for part in again.patterns for s in part.spreads} == expected


def test_errors_larger_than_the_output_are_reported(conv: Path) -> None:
    model = ErrorModel.read(conv, [16, 2, 8])
    assert "20 of 210 left out, rectangles too large for the output" in model.description
    assert "9 of 210 left out, skip_4 too large for the output" in model.description
    assert shares_of_classes(model)["single"] == Fraction(60, 181)
    with pytest.raises(FaultError, match=r"no spatial class of wide fits an output of shape \[3\]"):
        rectangle = {"rectangle_width": 2, "rectangle_height": 2} | channels([100, 100])[0]
        wide = model_file(alone("rectangles", rectangle, channels([100, 100])[1]), conv.with_name("wide.json"))
        ErrorModel.read(wide, [3])


def _set(*place: Any, to: Any) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for step in place[:-1]:
            content = content[step]
        content[place[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(skip_9=c.pop("skip_4")), "spatial class 'skip_9' is unknown; did you mean 'skip_4'"),
        (_set("single", "domain_classes", 1, to={"huge": [100, 100], "count": 10}), "single: value class 'huge'"),
        (_set("single", "frequency", to=0.5), "single: frequency is 0.5, and its count 60 of 210"),
        (_set("single", "parameters", 0, "count", to=59), "single: parameters count 59, the class 60"),
        (_set("single", "domain_classes", 0, "count", to=31), "single: .* 31 of 60|domain_classes count 61"),
        (_set("single", "extra", to=1), "extra"),
        (_set("single", "parameters", 0, "keys", "hue", to=3), "single: parameter 'hue' is unknown"),
        (
            _set("single", "domain_classes", 0, to={"in_range": 100, "count": 30}),
            "single: in_range of a domain class is 100, not a range of percentages",
        ),
        (
            _set("same_row", "parameters", 0, "keys", "row_corruption_pct", to=random([50, 25])),
            r"row_corruption_pct is \(50.0, 25.0\), not a range",
        ),
        (_set("same_row", "parameters", 0, "stats", "max_value_skip", to=0), "max_value_skip is 0, not a number"),
        (_set("same_row", "domain_classes", 0, "values", to=3), "same_row: domain class random has values"),
        (lambda c: c["skip_4"]["parameters"][0]["keys"].pop("skip_amount"), "skip_4: parameter skip_amount is missing"),
        (_set("skip_4", "parameters", 0, "keys", "affected_channels_pct", to=[0, 101]), "affected_channels_pct"),
        (
            _set("skip_4", "domain_classes", 0, to={"in_range": [1, 2], "zero": [1, 2], "nan": [1, 2], "count": 9}),
            "skip_4: a domain class is of one value class, of two or random, not 3",
        ),
        (
            _set("same_row", "domain_classes", 0, "values", to={"in_range": 0.7}),
            "same_row: the values of domain class random add up to 0.7",
        ),
    ],
)
def test_wrong_files_are_refused_by_name(conv: Path, change: Callable[[dict], Any], message: str) -> None:
    content = copy.deepcopy(json.loads(conv.read_text()))
    change(content)
    conv.write_text(json.dumps(content))
    with pytest.raises(FaultError, match=message):
        ErrorModel.read(conv, SHAPE)


def test_the_shape_of_the_output_goes_with_files_of_classes_alone(conv: Path, tmp_path: Path) -> None:
    for shape in (None, "16", [16, 8.5, 8]):
        with pytest.raises(FaultError, match=r"output_shape: is .* takes the shape"):
            ErrorModel.read(conv, shape)  # type: ignore[arg-type]
    ErrorModel.read(conv, SHAPE).write(tmp_path / "own.yaml")
    with pytest.raises(FaultError, match="output_shape: goes with a file of CLASSES"):
        ErrorModel.read(tmp_path / "own.yaml", SHAPE)


def learned() -> ErrorModel:
    """Two components, one of which is masked half of the time."""
    row = PatternErrors(
        pattern="row",
        spreads=(Spread(positions=3, columns=5, span=5, elements=3, count=30),),
        changes=(
            Change(change="+2^9", count=20, others={"+2^1": 40}),
            Change(change="top", count=10, others={"bottom": 20}),
        ),
    )
    single = PatternErrors(
        pattern="single",
        spreads=(Spread(count=10),),
        changes=(),
        changes_at_bottom=(Change(change="nonfinite", count=10),),
    )
    block = PatternErrors(
        pattern="block_across_channels",
        spreads=(
            Spread(channels=2, channel_span=3, positions=4, rows=2, columns=2, span=10, elements=8, count=5),
            Spread(channels=2, channel_span=3, positions=4, rows=2, columns=2, span=10, elements=6, count=5),
        ),
        changes=(Change(change="-2^3", count=10, others={"-2^3": 60}),),
    )
    common = {"layer": "c", "shape": "small_map"}
    return ErrorModel(
        title="array",
        profiles=(
            Profile(component="acc", population=200, inferences=40, patterns=(row, single), **common),  # type: ignore[arg-type]
            Profile(component="weight", population=100, inferences=20, patterns=(block,), **common),  # type: ignore[arg-type]
        ),
    )


def test_a_learned_model_is_written_by_its_patterns(tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    notes = classes_format.write(learned(), path, SHAPE, "c")
    assert set(notes) == {
        "Component acc is not told apart.",
        "Component weight is not told apart.",
        "That 50.0% of the errors of weight are masked.",
        "Which values were at their lower clamp.",
        "The size of the change +2^9, written as out_of_range.",
        "The size of the change +2^1, written as in_range.",
        "The size of the change top, written as in_range.",
        "The size of the change bottom, written as in_range.",
        "The size of the change -2^3, written as in_range.",
    }
    content = json.loads(path.read_text())
    # Faults stand for 5 of the population each: 150 rows, 50 singles, 25 full and 25 other rectangles.
    frequencies = {name: one["frequency"] for name, one in content.items() if name[0] != "_"}
    assert frequencies == {
        "same_row": 0.6,
        "single": 0.2,
        "rectangles": 0.1,
        "multiple_channels_uncategorized": 0.1,
    }
    # Every other value of a row is in range, and so is one in three of the largest: 7 of 9 values, for all rows.
    (row,) = content["same_row"]["domain_classes"]
    assert row == {
        "random": [100, 100],
        "values": {"in_range": 7 / 9, "out_of_range": 2 / 9},
        "count": 150,
        "frequency": 1,
    }
    (single,) = content["single"]["domain_classes"]
    assert single == {"nan": [100, 100], "count": 50, "frequency": 1}
    again = by_class(ErrorModel.read(path, SHAPE))
    assert spreads(again["same_row"]) == {("row", 1, 1, 3): Fraction(1)}
    assert spreads(again["rectangles"]) == {("block_across_channels", 2, 3, 4): Fraction(1)}


def test_nothing_to_write(tmp_path: Path) -> None:
    masked = Profile(component="acc", shape="small_map", population=1, inferences=1)
    with pytest.raises(FaultError, match="knows of no error"):
        classes_format.write(ErrorModel(title="m", profiles=(masked,)), tmp_path / "none.json", SHAPE)
    with pytest.raises(FaultError, match=r"shape: \[2, 8, 8\] is smaller than an error of rectangles"):
        classes_format.write(learned(), tmp_path / "none.json", LayerShape((2, 8, 8)))
    assert not (tmp_path / "none.json").exists()
