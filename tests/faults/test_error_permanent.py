"""Errors of permanent faults: learned from deviations by hand, drawn and learned again, and the version of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.errors import FaultError
from saboteur.faults.error_models import ErrorModel, learn_permanent
from saboteur.faults.error_patterns import LayerShape
from saboteur.faults.error_permanent import (
    ChannelErrors,
    LayerErrors,
    PermanentProfile,
    Place,
    Repeats,
    members,
    ranges,
)
from saboteur.faults.error_sampling import PermanentSampler
from saboteur.faults.error_values import LayerOutput

MAP = LayerShape((6, 4, 4))
CLAMPED = np.where(np.arange(MAP.elements) < MAP.elements // 2, 0.0, 0.5)
OUTPUT = LayerOutput(
    MAP,
    step=1,
    bottom=-10,
    top=127,
    low=-10,
    high=100,
    at_bottom=0.25,
    quantised=True,
    at_bottom_by_element=CLAMPED,
)
VECTOR = LayerOutput(LayerShape((10,)), 1, -128, 127, -100, 100, 0, True)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_are_what_their_members_make(numbers: set[int]) -> None:
    ordered = np.array(sorted(numbers))
    assert members(ranges(ordered)).tolist() == ordered.tolist()


def test_ranges_by_hand() -> None:
    assert ranges(np.array([0, 1, 2, 3, 7, 9, 10])) == "0-3,7,9-10"
    assert members("5").tolist() == [5]


def table(rows: list[tuple[int, int, str, int, int, int]]) -> pa.Table:
    names = ("trial", "input", "layer", "position", "golden", "faulty")
    return pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})


def at(channel: int, position: int) -> int:
    return int(MAP.join(np.array([channel]), np.array([position]))[0])


TRIALS = pa.table(
    {"trial": [4, 7, 9], "component": ["acc"] * 3, "fault": ["bit 3", "bit 3", "bit 5"], "inferences": [2, 2, 2]}
)


def test_deviations_by_hand() -> None:
    """Tiles of 2 positions and 3 channels: trial 4 reaches channels 1 and 4 of odd positions, trial 7 nothing."""
    rows = [
        (4, 0, "conv", at(1, 1), 20, 28),
        (4, 0, "conv", at(1, 5), 20, 29),
        (4, 0, "conv", at(4, 15), -10, 1),
        (4, 0, "conv", at(4, 3), 5, 5),  # not wrong
        (4, 0, "fc", 7, 0, -3),
        (4, 1, "fc", 7, 0, -2),
        (9, 1, "fc", 2, 0, 1),
    ]
    outputs = {"conv": OUTPUT, "fc": VECTOR}
    model = learn_permanent(table(rows), TRIALS, outputs, "by hand", repeats=(2, 3), populations={("acc", "bit 3"): 90})
    assert model.saboteur_error_model == 2
    assert (model.source.faults, model.source.inferences) == (3, 6)
    three, five = model.permanent
    assert (three.component, three.fault, three.population, three.faults) == ("acc", "bit 3", 90, 2)
    assert three.repeats == Repeats(positions=2, channels=3)
    # fc has one position, 0, and its channel 7 is channel 1 of a tile.
    assert three.places == (Place(channels="1", positions="0-1", count=1),)
    assert three.masked == 0.5
    conv, fc = three.layers
    assert (conv.layer, conv.shape, conv.inferences, conv.reached) == ("conv", "small_map", 2, 1)
    free, clamped = sorted(conv.channels, key=lambda channel: channel.values_at_bottom)
    # One inference, 16 positions; the last three channels are clamped in half of the inferences.
    assert free == ChannelErrors(count=1, values=16, changes={"+2^3": 2})
    assert clamped == ChannelErrors(count=1, values=16, values_at_bottom=8, changes_at_bottom={"+2^3": 1})
    assert (fc.inferences, fc.reached) == (2, 2)
    assert sum(c.count for c in fc.channels) == 3  # channels 1, 4 and 7
    assert [c.changes for c in fc.channels if c.changes] == [{"-2^1": 2}]
    assert (five.fault, five.population, five.places) == (
        "bit 5",
        1,
        (Place(channels="2", positions="0", count=1),),
    )


def test_without_a_tile_a_fault_does_not_repeat_within_a_layer() -> None:
    rows = [(4, 0, "conv", at(1, 1), 20, 28)]
    (three, _) = learn_permanent(table(rows), TRIALS, {"conv": OUTPUT, "fc": VECTOR}, "t").permanent
    assert three.repeats == Repeats(positions=16, channels=10)
    assert three.places == (Place(channels="1", positions="1", count=1),)
    assert [layer.layer for layer in three.layers] == ["conv"]  # fc has no position 1


def test_learning_needs_known_trials_layers_and_positions() -> None:
    def learning(row: tuple, **changes: Any) -> ErrorModel:
        return learn_permanent(table([row]), TRIALS, {"conv": OUTPUT}, "t", **changes)

    with pytest.raises(FaultError, match="trial 5 is not among"):
        learning((5, 0, "conv", 0, 1, 2))
    with pytest.raises(FaultError, match="nothing is known of the layer 'conf'"):
        learning((4, 0, "conf", 0, 1, 2))
    with pytest.raises(FaultError, match="position: 96 in conv"):
        learning((4, 0, "conv", 96, 1, 2))
    with pytest.raises(FaultError, match=r"repeats: \(0, 8\)"):
        learning((4, 0, "conv", 0, 1, 2), repeats=(0, 8))
    with pytest.raises(FaultError, match="no column 'component'"):
        learn_permanent(table([]), TRIALS.drop_columns(["component"]), {}, "t")


def profile(**changes: Any) -> PermanentProfile:
    """Channel 1 of 3, or channels 0 and 2; in the map every second position or all."""
    common: dict[str, Any] = {
        "component": "acc",
        "fault": "bit 3",
        "population": 64,
        "faults": 100,
        "repeats": Repeats(positions=2, channels=3),
        "places": (Place(channels="1", positions="1", count=40), Place(channels="0,2", positions="0-1", count=40)),
        "layers": (
            LayerErrors(
                layer="conv",
                shape="small_map",
                inferences=1000,
                reached=600,
                channels=(
                    ChannelErrors(count=30, values=1000, changes={"+2^2": 300, "-2^1": 100}),
                    ChannelErrors(
                        count=30,
                        values=1000,
                        values_at_bottom=500,
                        changes={"+2^2": 200},
                        changes_at_bottom={"+2^4": 50},
                    ),
                ),
            ),
        ),
    }
    return PermanentProfile(**(common | changes))


MODEL = ErrorModel(title="permanent", permanent=(profile(),))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 30), st.integers(0, 2**31))
def test_the_same_fault_has_the_same_pattern_in_each_inference(key: int, inferences: int, seed: int) -> None:
    """No value is wrong outside of the place in the tile; an inference's draws depend on no other inference."""
    sampler, fault = PermanentSampler(profile(), "conv", OUTPUT), np.uint64(key)
    elements = sampler.elements(fault)
    channel, position = MAP.split(elements)
    places = {(): (), ((1,), (1,)): 1, ((0, 2), (0, 1)): 2}
    tile = tuple(np.unique(channel % 3).tolist()), tuple(np.unique(position % 2).tolist())
    assert (tile if len(elements) else ()) in places
    assert len(elements) == {(): 0, ((1,), (1,)): 2 * 8, ((0, 2), (0, 1)): 4 * 16}[tile if len(elements) else ()]
    golden = np.random.default_rng(seed).integers(-10, 100, (inferences, len(elements))).astype(float)
    number = np.arange(100, 100 + inferences)
    together = sampler.values(fault, number, golden)
    alone = [sampler.values(fault, number[[i]], golden[[i]])[0] for i in range(inferences)]
    assert together.tobytes() == np.array(alone).reshape(together.shape).tobytes()
    assert sampler.elements(fault).tolist() == elements.tolist()


def test_learning_recovers_what_was_drawn() -> None:
    """A synthetic source of 1,500 permanent faults on 8 inputs each: rates within five standard errors."""
    faults, inputs = 1500, 8
    rng = np.random.default_rng(8)
    clamped = rng.random((inputs, MAP.elements)) < CLAMPED
    golden = np.where(clamped, OUTPUT.bottom, rng.integers(20, 60, (inputs, MAP.elements)))
    sampler = PermanentSampler(profile(), "conv", OUTPUT)
    parts = []
    for trial, key in enumerate(rng.integers(0, 2**63, faults).astype(np.uint64)):
        elements = sampler.elements(key)
        values = sampler.values(key, np.arange(inputs), golden[:, elements])
        number, column = np.nonzero(values != golden[:, elements])
        before = golden[number, elements[column]]
        parts.append((np.full(len(number), trial), number, elements[column], before, values[number, column]))
    trial, number, position, before, after = (np.concatenate(column) for column in zip(*parts, strict=True))
    columns = {"trial": trial, "input": number, "position": position, "golden": before, "faulty": after}
    deviations = pa.table(columns | {"layer": ["conv"] * len(trial)})
    trials = pa.table({"trial": np.arange(faults), "component": ["acc"] * faults, "inferences": [inputs] * faults})
    (again,) = learn_permanent(deviations, trials, {"conv": OUTPUT}, "again", repeats=(2, 3)).permanent

    def near(share: float, expected: float, n: float) -> None:
        assert share == pytest.approx(expected, abs=5 * np.sqrt(expected * (1 - expected) / n))

    near(again.masked, 0.2, faults)
    assert {(place.channels, place.positions) for place in again.places} == {("1", "1"), ("0,2", "0-1")}
    for place in again.places:
        near(place.count / faults, 0.4, faults)
    (layer,) = again.layers
    near(layer.reached / layer.inferences, 0.6, layer.inferences)
    # The first three channels are never clamped and behave as the first kind; the others are in half of the inferences,
    # and behave as the second.
    free = [channel for channel in layer.channels if channel.values_at_bottom == 0]
    values = sum(channel.values for channel in free)
    near(sum(sum(channel.changes.values()) for channel in free) / values, 0.4, values)
    near(sum(channel.changes.get("+2^2", 0) for channel in free) / values, 0.3, values)
    others = [channel for channel in layer.channels if channel.values_at_bottom]
    bottom = sum(channel.values_at_bottom for channel in others)
    above = sum(channel.values for channel in others) - bottom
    assert {name for channel in others for name in channel.changes} == {"+2^2"}
    assert {name for channel in others for name in channel.changes_at_bottom} == {"+2^4"}
    # How many are clamped is expected, not counted: on eight inputs, one in sixteen more or less.
    assert sum(channel.changes.get("+2^2", 0) for channel in others) / above == pytest.approx(0.4, rel=0.15)
    assert sum(channel.changes_at_bottom.get("+2^4", 0) for channel in others) / bottom == pytest.approx(0.1, rel=0.15)


def test_layers_by_name_then_by_shape_then_any() -> None:
    conv = profile().layers[0]
    fc = LayerErrors(layer="fc", shape="vector", inferences=10, reached=0)
    both = profile(layers=(conv, fc))
    assert both.of_layer("fc", MAP) == fc
    assert both.of_layer("other", MAP) == conv
    joined = both.of_layer("other", LayerShape((3, 20, 20)))
    assert joined is not None and (joined.inferences, joined.reached, len(joined.channels)) == (1010, 600, 2)
    assert [layer.layer for layer in both.by_shape().layers] == [None, None]
    assert profile(layers=()).of_layer("fc", MAP) is None


def test_a_layer_that_is_not_reached_stays_as_it_is() -> None:
    quiet = profile(layers=(LayerErrors(layer="conv", shape="small_map", inferences=10, reached=0),))
    golden = np.zeros((3, len(PermanentSampler(quiet, "conv", OUTPUT).elements(np.uint64(1)))))
    assert not PermanentSampler(quiet, "conv", OUTPUT).values(np.uint64(1), np.arange(3), golden).any()
    unknown = PermanentSampler(profile(layers=()), "conv", OUTPUT)
    assert all(len(unknown.elements(np.uint64(key))) == 0 for key in range(20))


def test_file_of_version_2_reads_back_and_version_1_still_reads(tmp_path: Path) -> None:
    MODEL.write(tmp_path / "two.yaml")
    text = (tmp_path / "two.yaml").read_text()
    assert text.startswith("saboteur_error_model: 2\n")
    assert ErrorModel.read(tmp_path / "two.yaml") == MODEL
    assert ErrorModel.read(tmp_path / "two.yaml").digest == MODEL.digest
    old = (
        "saboteur_error_model: 1\ntitle: old\nprofiles:\n- {component: acc, shape: vector, population: 5, "
        "inferences: 4, patterns: [{pattern: single, spreads: [{count: 1}], changes: [{change: top, count: 1}]}]}\n"
    )
    (tmp_path / "one.yaml").write_text(old)
    one = ErrorModel.read(tmp_path / "one.yaml")
    assert (one.saboteur_error_model, one.profiles[0].changed, one.permanent) == (1, 1, ())
    assert one.digest == "fbe65bdd1dca7f4d"  # as version 1 had it: what is drawn must not change
    one.write(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text().startswith("saboteur_error_model: 1\n")
    (tmp_path / "wrong.yaml").write_text(text.replace("saboteur_error_model: 2", "saboteur_error_model: 1"))
    with pytest.raises(FaultError, match="permanent: is of version 2 of the file, not 1"):
        ErrorModel.read(tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"places": (Place(channels="3", positions="0", count=1),)}, "channels: 3 in a tile of 3"),
        ({"places": (Place(channels="0", positions="0", count=101),)}, "places: 101 of 100 faults"),
    ],
)
def test_profiles_that_contradict_themselves_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profile(**changes)


def test_parts_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="3-1 is no range"):
        Place(channels="3-1", positions="0", count=1)
    with pytest.raises(ValueError, match="should match pattern"):
        Place(channels="all", positions="0", count=1)
    with pytest.raises(ValueError, match="changes: 5 of 4 values"):
        ChannelErrors(count=1, values=6, values_at_bottom=2, changes={"+2^1": 5})
    with pytest.raises(ValueError, match="reached: 3 of 2 inferences"):
        LayerErrors(shape="vector", inferences=2, reached=3)
    with pytest.raises(ValueError, match="channels: 0 kinds where 1 inferences"):
        LayerErrors(shape="vector", inferences=2, reached=1)
    with pytest.raises(ValueError, match="acc bit 3 has 2 profiles"):
        ErrorModel(title="twice", permanent=(profile(), profile()))
