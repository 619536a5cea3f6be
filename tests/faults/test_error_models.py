"""Error models: patterns by hand, learning what was drawn, the file, and input that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.errors import FaultError
from saboteur.faults.error_models import (
    Change,
    ErrorModel,
    PatternErrors,
    Profile,
    Source,
    Spread,
    learn,
    pooled,
)
from saboteur.faults.error_patterns import PATTERNS, Footprint, LayerShape, footprints, lay_out
from saboteur.faults.error_sampling import Sampler
from saboteur.faults.error_values import LayerOutput
from saboteur.faults.formats import number_format

MAP = LayerShape((4, 6, 5))


def classify(elements: list[tuple[int, int, int]], shape: LayerShape = MAP) -> Footprint:
    """The footprint of one inference with these (channel, row, column) wrong."""
    channel, row, column = (np.array(axis) for axis in zip(*elements, strict=True))
    flat = shape.join(channel, row * shape.columns + column)
    return footprints(np.zeros(len(flat), np.int64), flat, shape)


@pytest.mark.parametrize(
    ("elements", "pattern"),
    [
        ([(1, 2, 3)], "single"),
        ([(1, 2, 0), (1, 2, 3)], "row"),
        ([(1, 0, 3), (1, 4, 3), (1, 5, 3)], "column"),
        ([(0, 1, 3), (0, 1, 4), (0, 2, 0), (0, 2, 1)], "run"),
        ([(0, 1, 1), (0, 1, 2), (0, 2, 1), (0, 2, 2)], "block"),
        ([(0, 1, 1), (0, 1, 2), (0, 2, 1)], "block"),
        ([(0, 0, 0), (0, 5, 4)], "scattered"),
        ([(0, 2, 3), (3, 2, 3)], "bullet_wake"),
        ([(0, 2, 3), (3, 2, 3), (3, 2, 4)], "row_across_channels"),
        ([(0, 2, 3), (1, 3, 3)], "column_across_channels"),
        ([(0, 1, 4), (0, 2, 0), (2, 1, 4), (2, 2, 0)], "run_across_channels"),
        ([(c, r, w) for c in (0, 1) for r in (2, 3) for w in (0, 1, 2)], "block_across_channels"),
        ([(0, 0, 0), (1, 5, 4)], "scattered_across_channels"),
    ],
)
def test_pattern_of_hand_made_errors(elements: list[tuple[int, int, int]], pattern: str) -> None:
    assert PATTERNS[classify(elements).pattern[0]] == pattern


def test_footprint_counts_what_is_touched() -> None:
    found = classify([(0, 1, 4), (0, 2, 0), (3, 2, 0)])
    assert [int(column[0]) for column in found[1:]] == [2, 4, 2, 2, 5, 2, 3]


def test_two_inferences_are_told_apart() -> None:
    flat = MAP.join(np.array([0, 1, 2]), np.array([7, 7, 7]))
    found = footprints(np.array([0, 1, 1]), flat, MAP)
    assert [PATTERNS[p] for p in found.pattern] == ["single", "bullet_wake"]
    assert found.elements.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (LayerShape((10,)), (10, 1, 1, "vector")),
        (LayerShape.usual((16, 24)), (24, 1, 16, "small_map")),
        (LayerShape.usual((8, 32, 31)), (8, 32, 31, "large_map")),
        (LayerShape((2, 3, 4, 5), 1), (3, 8, 5, "small_map")),
    ],
)
def test_shape_seen_as_channels_rows_columns(shape: LayerShape, expected: tuple) -> None:
    assert (shape.channels, shape.rows, shape.columns, shape.shape_class) == expected
    flat = np.arange(shape.elements)
    channel, position = shape.split(flat)
    assert (shape.join(channel, position) == flat).all()
    assert len(np.unique(channel * shape.positions + position)) == shape.elements


def test_channel_is_the_axis_that_counts_channels() -> None:
    channel, position = LayerShape.usual((3, 7)).split(np.array([0, 6, 7, 20]))
    assert channel.tolist() == [0, 6, 0, 6]
    assert position.tolist() == [0, 0, 1, 2]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_laid_out_patterns_are_classified_as_themselves(data: st.DataObject) -> None:
    """Any footprint that was observed anywhere comes out again wherever it is laid."""
    count = data.draw(st.integers(1, 12))
    flat = np.array(data.draw(st.lists(st.integers(0, MAP.elements - 1), min_size=count, max_size=count, unique=True)))
    observed = footprints(np.zeros(count, np.int64), flat, MAP)
    one = Footprint(*(int(column[0]) for column in observed))
    faults = 40
    anchor = np.linspace(0, MAP.elements - 1, faults).astype(np.int64)
    positions, centre = lay_out(one, anchor, np.arange(faults, dtype=np.uint64) + np.uint64(count), MAP)
    assert all(len(set(row)) == one.elements for row in positions.tolist())
    assert (centre >= 0).all() and (centre < one.elements).all()
    group = np.repeat(np.arange(faults), one.elements)
    again = footprints(group, positions.ravel(), MAP)
    assert (again.elements == one.elements).all()
    assert (again.channels == one.channels).all() and (again.channel_span == one.channel_span).all()
    if one.elements == max(one.channels, one.positions) or one.elements == one.channels * one.positions:
        assert (again.positions == one.positions).all()
    same = again.pattern == one.pattern
    # Sparse boxes and runs are laid in another density of raster order; the kinds with a name always come back.
    if PATTERNS[one.pattern].split("_")[0] not in ("run", "block", "scattered"):
        assert same.all()


def test_single_lies_on_the_anchor() -> None:
    anchor = np.arange(MAP.elements)
    positions, _ = lay_out(Footprint(0, 1, 1, 1, 1, 1, 1, 1), anchor, anchor.astype(np.uint64), MAP)
    assert positions[:, 0].tolist() == anchor.tolist()


def test_footprint_larger_than_the_layer_is_cut() -> None:
    small = LayerShape((2, 1, 3))
    wide = Footprint(PATTERNS.index("block_across_channels"), 8, 8, 12, 3, 4, 30, 96)
    positions, _ = lay_out(wide, np.zeros(3, np.int64), np.arange(3, dtype=np.uint64), small)
    assert np.sort(positions, axis=1).tolist() == [list(range(6))] * 3


INT8 = LayerOutput(MAP, step=1, bottom=-10, top=127, low=-10, high=120, at_bottom=0.25, quantised=True)
FLOAT = LayerOutput(MAP, step=0.02, bottom=-np.inf, top=np.inf, low=-2.0, high=3.1, at_bottom=0, quantised=False)


def test_codes_of_changes_by_hand() -> None:
    golden = np.array([0.0, 0, 0, 0, 0, 120])
    faulty = np.array([1.0, -1, 5, 127, -10, 112])
    names = ["+2^0", "-2^0", "+2^2", ">+2^6", ">-2^3", "-2^3"]
    whole = np.array([0, 1, 2, 5])
    changed = INT8.changed(golden[whole], INT8.changes(golden, faulty)[whole], np.full(4, 0.3))
    assert changed.tolist() == [1.0, -1.0, 5.0, 110.0]
    model = _learned(golden, faulty, INT8)
    assert sorted(c.change for c in model.profiles[0].patterns[0].changes) == sorted(names)


def _learned(golden: np.ndarray, faulty: np.ndarray, output: LayerOutput) -> ErrorModel:
    """From one wrong element in each of some trials."""
    trial = np.arange(len(golden))
    deviations = pa.table(
        {"trial": trial, "input": trial, "layer": ["c"] * len(trial), "position": trial, "golden": golden}
        | {"faulty": faulty}
    )
    trials = pa.table({"trial": trial, "layer": ["c"] * len(trial), "component": ["acc"] * len(trial)})
    return learn(deviations, trials, {"c": output}, "by hand")


def test_changes_that_are_not_finite_have_a_class_of_their_own() -> None:
    model = _learned(np.array([0.5, 0.5]), np.array([np.nan, np.inf]), FLOAT)
    assert [c.change for c in model.profiles[0].patterns[0].changes] == ["nonfinite"]
    assert np.isnan(FLOAT.changed(np.array([0.5]), np.array([2]), np.array([0.1]))).all()


@given(
    st.lists(st.tuples(st.integers(-10, 127), st.integers(-10, 127)), min_size=1, max_size=30),
    st.floats(0.001, 0.999),
)
def test_changed_values_stay_in_their_octave_and_within_the_limits(pairs: list[tuple[int, int]], u: float) -> None:
    golden, faulty = (np.array(side, float) for side in zip(*pairs, strict=True))
    wrong = golden != faulty
    golden, faulty = golden[wrong], faulty[wrong]
    codes = INT8.changes(golden, faulty)
    drawn = INT8.changed(golden, codes, np.full(len(golden), u))
    assert (drawn != golden).all() and (drawn >= -10).all() and (drawn <= 127).all()
    clamped = (drawn == -10) | (drawn == 127) | (faulty == -10) | (faulty == 127)
    assert (INT8.changes(golden, drawn)[~clamped] == codes[~clamped]).all()


def test_no_room_reverses_the_change() -> None:
    up, down = INT8.changes(np.array([0.0, 0.0]), np.array([3.0, -3.0]))
    assert INT8.changed(np.array([-10.0, 127.0]), np.array([down, up]), np.full(2, 0.9)).tolist() == [-7.0, 124.0]


def test_limits_are_seen_where_values_are_clamped() -> None:
    values = np.concatenate([np.full(30, -7), np.arange(70)]).astype(np.int8).reshape(1, 4, 5, 5)
    output = LayerOutput.observed(values, LayerShape((4, 5, 5)), number_format("int8"))
    assert (output.bottom, output.top, output.at_bottom, output.step) == (-7, 69, 0.3, 1)  # 1 of 100 at the top
    spread_out = np.linspace(-1, 1, 511).astype(np.float32)
    floats = LayerOutput.observed(spread_out, LayerShape((511,)), number_format("float32"))
    assert (floats.bottom, floats.top) == (-np.inf, np.inf)
    assert floats.step == pytest.approx(2 / 255)
    fixed = LayerOutput.observed(spread_out, LayerShape((511,)), number_format("Q5.10"))
    assert (fixed.bottom, fixed.top, fixed.quantised) == (-32.0, 32 - 2**-10, False)
    with pytest.raises(FaultError, match="range over"):
        LayerOutput.observed(np.array([np.nan, 1.0]), LayerShape((2,)), number_format("float32"))


def profile() -> Profile:
    """A profile with a bit of everything."""
    return Profile(
        component="acc",
        layer="c",
        shape="small_map",
        population=1000,
        inferences=1000,
        at_bottom=0.25,
        patterns=(
            PatternErrors(
                pattern="single",
                spreads=(Spread(count=300),),
                changes=(
                    Change(change="+2^1", count=100),
                    Change(change="-2^3", count=60),
                    Change(change="top", count=80),
                ),
                changes_at_bottom=(Change(change="+2^2", count=60),),
            ),
            PatternErrors(
                pattern="row",
                spreads=(
                    Spread(positions=3, columns=3, span=3, elements=3, count=40),
                    Spread(positions=2, columns=4, span=4, elements=2, count=40),
                ),
                changes=(Change(change="-2^4", count=80, others={"+2^2": 30, "-2^1": 90}),),
            ),
            PatternErrors(
                pattern="bullet_wake",
                spreads=(Spread(channels=4, channel_span=4, elements=4, count=20),),
                changes=(Change(change="+2^2", count=20, others={"+2^2": 10, "-2^0": 50}),),
            ),
        ),
    )


MODEL = ErrorModel(title="array", source=Source(campaign="c1-0", faults=1000, inferences=1000), profiles=(profile(),))


SINGLE = MODEL.model_copy(
    update={"profiles": (profile().model_copy(update={"patterns": profile().patterns[:1], "inferences": 600}),)}
)


def drawn_and_learned(model: ErrorModel, faults: int, seed: int) -> Profile:
    """Draw ``faults`` errors of the first profile in a layer of random values, and learn from them."""
    rng = np.random.default_rng(seed)
    clamped = rng.random((faults, MAP.elements)) < 0.25
    golden = np.where(clamped, INT8.bottom, rng.integers(20, 100, (faults, MAP.elements)))
    key, number = rng.integers(0, 2**63, faults).astype(np.uint64), np.arange(faults)
    anchor = rng.integers(0, MAP.elements, faults)
    sampler = Sampler(model.profiles[0], INT8)
    wrong = sampler.reached(key, number, golden[number, anchor])
    errors = sampler.draw(key, anchor)
    errors = type(errors)(*(column[wrong[errors.fault]] for column in errors))
    before = golden[errors.fault, errors.position]
    after = sampler.values(errors, key[errors.fault], number[errors.fault], before)
    deviations = pa.table(
        {
            "trial": errors.fault,
            "input": errors.fault,
            "layer": ["c"] * len(before),
            "position": errors.position,
            "golden": before,
            "faulty": after,
        }
    )
    trials = pa.table({"trial": number, "layer": ["c"] * faults, "component": ["acc"] * faults})
    return learn(deviations, trials, {"c": INT8}, "again").profiles[0]


def near(share: float, expected: float, n: int) -> None:
    """Within five standard errors."""
    assert share == pytest.approx(expected, abs=5 * np.sqrt(expected * (1 - expected) / n) + 1e-9)


def test_learning_recovers_what_was_drawn() -> None:
    n = 20000
    again, truth = drawn_and_learned(SINGLE, n, 5), SINGLE.profiles[0]
    near(again.changed / n, 300 / 600, n)
    near(again.changed_at_bottom / n, 60 / 600, n)
    assert again.at_bottom == 0.25
    (found,), (expected,) = again.patterns, truth.patterns
    counts = {c.change: c.count for c in found.changes}
    assert set(counts) == {"+2^1", "-2^3", ">+2^4", ">+2^5", ">+2^6"}  # what went to the top, by the room it had
    near(counts["+2^1"] / n, 100 / 600, n)
    near(counts["-2^3"] / n, 60 / 600, n)
    near(sum(count for name, count in counts.items() if name[0] == ">") / n, 80 / 600, n)
    assert [c.change for c in found.changes_at_bottom] == [c.change for c in expected.changes_at_bottom]


def test_learning_recovers_patterns_of_several_elements() -> None:
    n = 20000
    again = drawn_and_learned(MODEL, n, 6)
    for expected in profile().patterns:
        found = next(part for part in again.patterns if part.pattern == expected.pattern)
        near(found.count / again.changed, expected.count / 400, again.changed)
        for spread in expected.spreads:
            (same,) = [s for s in found.spreads if s.model_copy(update={"count": spread.count}) == spread]
            near(same.count / again.changed, spread.count / 400, again.changed)
    (row,) = [part for part in again.patterns if part.pattern == "row"]
    largest = {c.change: c for c in row.changes}
    # Three quarters of the other elements have room to go down; the rest, at the clamp, went up instead.
    others = largest["-2^4"].others
    down, up = others["-2^1"], others["+2^1"]
    assert down / (down + up) == pytest.approx(0.75, abs=0.03)
    assert others["+2^2"] / sum(others.values()) == pytest.approx(0.25, abs=0.02)


def test_changes_cut_short_are_spread_over_the_larger_ones() -> None:
    """Values that move by 2 to 4 or 16 to 32, half of which have room for 8 only: learned as the truth has it."""
    rng = np.random.default_rng(3)
    n = 20000
    size = np.where(rng.random(n) < 0.4, rng.integers(2, 4, n), rng.integers(16, 32, n))
    golden = np.where(rng.random(n) < 0.5, 119.0, 20.0)
    output = LayerOutput(LayerShape((n,)), 1, -128, 127, -128, 127, 0, True)
    model = _learned(golden, np.minimum(golden + size, 127), output)
    assert {c.change for c in model.profiles[0].patterns[0].changes} == {"+2^1", ">+2^3", "+2^4"}
    drawn = Sampler(model.profiles[0], output).draw(rng.integers(0, 2**63, n).astype(np.uint64), np.zeros(n, np.int64))
    codes, counts = np.unique(drawn.code, return_counts=True)
    assert codes.tolist() == output.changes(np.zeros(2), np.array([3.0, 16.0])).tolist()
    assert counts[0] / n == pytest.approx(0.4, abs=0.02)


def test_changes_cut_short_with_nothing_larger_go_to_the_limit() -> None:
    output = LayerOutput(LayerShape((4,)), 1, -128, 127, -128, 127, 0, True)
    model = _learned(np.array([100.0, 100, -100, 0]), np.array([127.0, 127, -128, 1]), output)
    sampler, keys = Sampler(model.profiles[0], output), np.arange(400, dtype=np.uint64)
    errors = sampler.draw(keys, np.zeros(400, np.int64))
    values = sampler.values(errors, keys, np.zeros(400, np.int64), np.full(400, 5.0))
    assert set(values.tolist()) == {127.0, -128.0, 6.0}


def test_draws_follow_from_the_key_alone() -> None:
    sampler = Sampler(profile(), INT8)
    key, anchor = np.arange(50, dtype=np.uint64), np.arange(50)
    together = sampler.draw(key, anchor)
    alone = sampler.draw(key[17:18], anchor[17:18])
    rows = together.fault == 17
    assert together.position[rows].tolist() == alone.position.tolist()
    assert together.code[rows].tolist() == alone.code.tolist()
    golden = np.zeros(50)
    reached = sampler.reached(key, np.full(50, 3), golden)
    assert reached[17] == sampler.reached(key[17:18], np.array([3]), golden[:1])[0]
    assert (sampler.reached(np.full(200, key[17]), np.arange(200), np.zeros(200))).any()


def test_file_reads_back_as_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "array.yaml"
    MODEL.write(path)
    assert ErrorModel.read(path) == MODEL
    assert ErrorModel.model_validate({"kind": "error_model", "file": str(path)}) == MODEL
    assert "bullet_wake" in path.read_text()
    assert ErrorModel.read(path).digest == MODEL.digest


def test_json_is_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text(MODEL.model_dump_json(indent=1))
    assert ErrorModel.read(path) == MODEL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("title: x\n", "begins with saboteur_error_model: 1 or 2"),
        ("saboteur_error_model: 1\ntitle: x\nprofiles: []\n", "profiles: there are none"),
        (
            "saboteur_error_model: 3\ntitle: x\nlike_nothing_before: []\n",
            "yaml: model: saboteur_error_model: 3 is no version of the file that this release of Saboteur reads, 1",
        ),
        ("saboteur_error_model: new\ntitle: x\nprofiles: []\n", "'new' is no version"),
        ("saboteur_error_model: 1\ntitle: x\nprofiles: []\nextra: 1\n", "extra"),
        (
            "saboteur_error_model: 1\ntitle: x\nprofiles:\n- {component: acc, shape: vector, population: 1, "
            "inferences: 1, patterns: [{pattern: blob, spreads: [{count: 1}], changes: [{change: top, count: 1}]}]}\n",
            "profiles.0.patterns.0.pattern",
        ),
        (
            "saboteur_error_model: 1\ntitle: x\nprofiles:\n- {component: acc, shape: vector, population: 1, "
            "inferences: 1, patterns: [{pattern: row, spreads: [{positions: 5, span: 2, elements: 5, count: 1}], "
            "changes: [{change: top, count: 1}]}]}\n",
            "positions: 5 within a span of 2",
        ),
        (
            "saboteur_error_model: 1\ntitle: x\nprofiles:\n- {component: acc, shape: vector, population: 1, "
            "inferences: 1, patterns: [{pattern: single, spreads: [{count: 3}], "
            "changes: [{change: top, count: 3}]}]}\n",
            "3 changed of 1 inferences",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(FaultError, match=message):
        ErrorModel.read(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=r"none\.yaml"):
        ErrorModel.read(tmp_path / "none.yaml")


def test_no_model_of_words() -> None:
    with pytest.raises(FaultError, match="where: outputs"):
        MODEL.variants(8)


def test_profiles_of_a_layer_by_name_then_by_shape_then_all() -> None:
    small, vector = profile(), profile().model_copy(update={"layer": "d", "shape": "vector", "inferences": 3000})
    model = ErrorModel(title="two", profiles=(small, vector))
    assert model.of_layer("d", MAP) == (vector,)
    assert model.of_layer("elsewhere", LayerShape((9,))) == (vector,)
    (both,) = model.of_layer("elsewhere", LayerShape((3, 20, 20)))
    assert (both.inferences, both.changed, both.population, both.layer) == (4000, 800, 2000, None)
    assert both == pooled([small, vector])


def test_a_model_for_any_network_has_one_profile_a_shape_and_component() -> None:
    layers = [profile().model_copy(update={"layer": layer}) for layer in ("conv1", "conv2")]
    vector = profile().model_copy(update={"layer": "fc", "shape": "vector"})
    found = ErrorModel(title="two", profiles=(*layers, vector)).by_shape()
    assert [(p.layer, p.shape, p.inferences) for p in found.profiles] == [
        (None, "small_map", 2000),
        (None, "vector", 1000),
    ]
    assert not found.knows("conv1")
    assert found.of_layer("conv1", MAP) == (found.profiles[0],)
    assert found.digest != ErrorModel(title="two", profiles=(*layers, vector)).digest


def test_pooled_counts_add_up() -> None:
    both = pooled([profile(), profile()])
    assert both.changed == 2 * profile().changed
    assert both.patterns[1].changes[0].others == {"+2^2": 60, "-2^1": 180}
    assert both.masked == profile().masked


def test_learning_needs_known_trials_layers_and_positions() -> None:
    trials = pa.table({"trial": [0], "layer": ["c"], "component": ["acc"]})
    rows = {"trial": [0], "input": [0], "layer": ["c"], "position": [3], "golden": [1.0], "faulty": [2.0]}

    def learning(**changes: list) -> ErrorModel:
        return learn(pa.table(rows | changes), trials, {"c": INT8}, "t")

    assert learning().profiles[0].changed == 1
    assert learning(faulty=[1.0]).profiles[0].changed == 0
    with pytest.raises(FaultError, match="trial 7 is not among"):
        learning(trial=[7])
    with pytest.raises(FaultError, match="position: 120"):
        learning(position=[120])
    with pytest.raises(FaultError, match="layer 'c'"):
        learn(pa.table(rows), trials, {"d": INT8}, "t")
    with pytest.raises(FaultError, match="no column 'golden'"):
        learn(pa.table(rows).drop_columns(["golden"]), trials, {"c": INT8}, "t")
    with pytest.raises(FaultError, match="listed twice"):
        learn(pa.table(rows), pa.concat_tables([trials, trials]), {"c": INT8}, "t")
