from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from saboteur.errors import TargetError
from saboteur.outcomes import (
    STANDARD,
    AccuracyDrop,
    ConfidenceChange,
    Golden,
    NumericError,
    Sdc1,
    Sdc5,
    Sdc10Percent,
    Sdc20Percent,
    TopK,
)

pytestmark = pytest.mark.filterwarnings("error")


def judged(criterion, before, after, kind="logits", dtype=np.float32) -> bool:
    golden = Golden(np.array([before], dtype), kind=kind)
    criterion.check(golden)
    return bool(criterion.sdc(golden, np.array([0]), np.array([after], dtype))[0])


@pytest.mark.parametrize(
    ("outputs", "labels", "kind", "message"),
    [
        ([[1.0, np.nan], [1.0, 2.0]], None, "logits", "outputs for 1 of 2 inputs hold NaN or infinity"),
        ([[np.inf, 1.0]], None, "values", "1 of 1"),
        (np.zeros((0, 3)), None, "logits", r"shape \[0, 3\]"),
        ([[1.0, 2.0]], [0, 1], "logits", r"labels: int64 of shape \[2\] for 1 inputs"),
        ([[1.0, 2.0]], [0.0], "logits", "labels: float64"),
        ([[1.0, 2.0]], [2], "logits", r"labels: 2 \.\. 2 for 2 classes"),
        ([[1.0, 2.0]], [-1], "logits", r"labels: -1 \.\. -1 for 2 classes"),
        ([[1.0, 2.0]], None, "probabilities", "probabilities from 1.0 to 2.0"),
        ([[1.0, 2.0]], None, "scores", "kind 'scores' is not one of logits, probabilities, values"),
    ],
)
def test_golden_runs_that_cannot_be_compared_with_are_refused(outputs, labels, kind, message):
    with pytest.raises(TargetError, match=message):
        Golden(np.array(outputs), None if labels is None else np.array(labels), kind)


def test_ranks_give_ties_to_the_lower_class():
    golden = Golden(np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]]))
    assert golden.ranked.tolist() == [[1, 2, 0, 3], [0, 1, 2, 3]]
    assert golden.top1.tolist() == [1, 0]


def test_integer_outputs_are_ranked_without_overflow():
    assert Golden(np.array([[-128, 127, 0]], np.int8)).ranked.tolist() == [[1, 2, 0]]
    assert Golden(np.array([[0, 255, 3]], np.uint8)).ranked.tolist() == [[1, 2, 0]]


def test_accuracy_and_confidence():
    golden = Golden(np.array([[0.0, np.log(3.0)], [1000.0, -1000.0]]), np.array([1, 1]))
    assert golden.accuracy == 0.5
    np.testing.assert_allclose(golden.confidence, [0.75, 1.0], rtol=1e-15)
    assert Golden(np.array([[0.2, 0.8]]), kind="probabilities").confidence.tolist() == [0.8]


@given(arrays(np.float32, (5, 7), elements=st.floats(-50, 50, width=32)))
def test_confidence_is_that_of_the_softmax(outputs):
    np.testing.assert_allclose(
        Golden(outputs).confidence, softmax(outputs.astype(float), axis=1).max(axis=1), rtol=1e-13
    )


def test_digests_tell_golden_runs_apart():
    outputs, labels = np.array([[1.0, 2.0]]), np.array([1])
    runs = [
        Golden(outputs),
        Golden(outputs.astype(np.float32)),
        Golden(outputs, labels),
        Golden(outputs, kind="values"),
        Golden(np.nextafter(outputs, 9)),
        Golden(outputs, environment={"torch": "2"}),
        Golden(outputs.reshape(2, 1)),
    ]
    assert len({run.digest for run in runs}) == len(runs)
    assert Golden(outputs.copy(order="F"), labels).digest == Golden(outputs, labels).digest


@pytest.mark.parametrize("golden", [
    Golden(np.ones((2, 3)), kind="values"), Golden(np.ones((2, 3, 4))), Golden(np.ones((2, 1))), Golden(np.ones(3)),
])  # fmt: skip
@pytest.mark.parametrize("criterion", [*STANDARD, TopK(k=1), AccuracyDrop(), ConfidenceChange(percent=1)])
def test_criteria_on_classes_refuse_other_outputs(criterion, golden):
    with pytest.raises(TargetError, match="needs class logits or probabilities"):
        criterion.check(golden)
    NumericError(tolerance=1).check(golden)


def test_criteria_that_do_not_fit():
    with pytest.raises(TargetError, match="accuracy_drop needs labels"):
        AccuracyDrop().check(Golden(np.ones((2, 3))))
    with pytest.raises(TargetError, match="needs more than 5 classes, of 5"):
        TopK().check(Golden(np.ones((2, 5))))


TEN = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def raised(index, value):
    return [value if i == index else score for i, score in enumerate(TEN)]


@pytest.mark.parametrize(
    ("criterion", "before", "after", "sdc"),
    [
        (Sdc1(), [1, 2, 3], [1, 2, 2.5], False),
        (Sdc1(), [1, 2, 3], [1, 4, 3], True),
        (Sdc1(), [1, 3, 2], [3, 3, 2], True),  # the tie goes to the lower class
        (Sdc1(), [3, 1, 2], [3, 3, 2], False),
        (Sdc5(), TEN, raised(4, 10.0), False),  # the fifth class wins
        (Sdc5(), TEN, raised(5, 10.0), True),  # the sixth does
        (Sdc5(), TEN, raised(5, 9.0), False),  # and ties: the lower class stays
        (Sdc5(), [5, 4, 3, 2, 1], [0, 0, 0, 0, 9], False),  # five classes: never
        (Sdc5(), [1, 0], [0, 1], False),
        (TopK(k=2), [3, 2, 1, 0], [3, 4, 1, 0], False),
        (TopK(k=2), [3, 2, 1, 0], [3, 4, 5, 0], True),
        (TopK(k=2), [3, 2, 1, 0], [3, 4, 3, 0], False),
        (TopK(k=1), [1, 3, 2], [3, 3, 2], True),
        (TopK(k=1), [3, 1, 2], [3, 3, 3], False),
    ],
)
def test_class_criteria_by_hand(criterion, before, after, sdc):
    assert judged(criterion, before, after) is sdc


@pytest.mark.parametrize(
    ("criterion", "after", "sdc"),
    [
        (Sdc10Percent(), 0.549, False), (Sdc10Percent(), 0.56, True), (Sdc10Percent(), 0.44, True),
        (Sdc20Percent(), 0.59, False), (Sdc20Percent(), 0.61, True), (ConfidenceChange(percent=50), 0.74, False),
        (ConfidenceChange(percent=50), 0.76, True),
    ],
)  # fmt: skip
def test_confidence_changes_are_relative_to_the_golden_one(criterion, after, sdc):
    rest = (0.5 / 3,) * 3
    scores = [after, *((1 - after) / 3,) * 3]
    assert judged(criterion, [0.5, *rest], scores, "probabilities", np.float64) is sdc
    assert judged(criterion, np.log([0.5, *rest]), np.log(scores), "logits", np.float64) is sdc


@pytest.mark.parametrize(
    ("criterion", "after", "sdc"),
    [
        (NumericError(tolerance=1), [[4.0, 1.0], [0.0, 0.0]], False),
        (NumericError(tolerance=1), [[4.0, 1.0], [0.0, 1.5]], True),
        (NumericError(metric="rmse", tolerance=1), [[5.0, 0.0], [0.0, 0.0]], False),
        (NumericError(metric="rmse", tolerance=0.99), [[5.0, 0.0], [0.0, 0.0]], True),
        (NumericError(metric="relative", tolerance=0.5), [[3.0, 0.0], [0.0, 1.5]], False),
        (NumericError(metric="relative", tolerance=0.5), [[3.0, 0.0], [0.0, 1.6]], True),
        (NumericError(metric="rmse", tolerance=1), [[1e300, 0.0], [0.0, 0.0]], True),
        (NumericError(tolerance=0), [[3.0, 0.0], [0.0, -0.0]], False),
    ],
)
def test_numeric_errors_by_hand(criterion, after, sdc):
    assert judged(criterion, [[3.0, 0.0], [0.0, 0.0]], after, "values", np.float64) is sdc


def test_accuracy_drop_allows_just_the_tolerance():
    golden = Golden(np.eye(2), np.array([0, 1]))
    drop = AccuracyDrop(tolerance=0.02)
    columns = np.array([88, 87, 90, 95]), np.full(4, 90), np.full(4, 100)
    assert drop.sdc_faults(golden, *columns).tolist() == [False, True, False, False]
    assert AccuracyDrop().sdc_faults(golden, *columns).tolist() == [True, True, False, False]


def test_names_tell_settings_apart():
    criteria = [*STANDARD, TopK(), TopK(k=3), ConfidenceChange(percent=10), NumericError(tolerance=0.1)]
    assert [c.name for c in criteria] == [
        "sdc-1", "sdc-5", "sdc-10%", "sdc-20%", "top-k", "top-k(k=3)", "confidence_change(percent=10.0)",
        "numeric_error(tolerance=0.1)",
    ]  # fmt: skip


ANY = [*STANDARD, TopK(k=2), TopK(k=3), ConfidenceChange(percent=1e-9), ConfidenceChange(percent=150)]
NUMERIC = [NumericError(metric=metric, tolerance=t) for metric in ("max_abs", "rmse", "relative") for t in (0, 0.1, 3)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from(["logits", "probabilities"]),
    st.integers(2, 8),
    st.data(),
)
def test_no_move_below_the_radius_is_sdc(dtype, kind, classes, data):
    elements = st.floats(-30, 30, width=16) if kind == "logits" else st.floats(0, 1, width=16)
    golden = Golden(data.draw(arrays(dtype, (4, classes), elements=elements)), kind=kind)
    direction = data.draw(arrays(np.float64, (4, classes), elements=st.sampled_from([-1.0, 1.0, 0.0, 0.5])))
    share = data.draw(st.sampled_from([1e-3, 0.5, 0.999, 1 - 2e-6, 1 - 1e-9]))
    for criterion in ANY + NUMERIC:
        radius = criterion.radius(golden)
        assert radius.shape == (4,)
        assert (radius >= 0).all()
        step = np.where(np.isfinite(radius), radius, 100.0)[:, None] * share * direction
        outputs = (golden.outputs + step).astype(dtype)
        moved = np.abs(outputs.astype(np.float64) - golden.outputs).max(axis=1)
        inside = moved < radius
        sdc = criterion.sdc(golden, np.arange(4), outputs)
        assert not (sdc & inside).any(), criterion


@pytest.mark.parametrize("criterion", [Sdc1(), Sdc5(), TopK(k=2), Sdc10Percent(), NumericError(tolerance=0.3)])
def test_radii_are_of_use(criterion):
    """Twice the radius, in the worst direction, can be SDC: the bound is not needlessly small."""
    golden = Golden(np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]]), kind="probabilities")
    radius = criterion.radius(golden)[0]
    assert radius > 0
    found = [
        bool(criterion.sdc(golden, np.array([0]), golden.outputs + 1.01 * radius * np.array([[-1] + [s] * 6]))[0])
        or bool(criterion.sdc(golden, np.array([0]), golden.outputs + 1.01 * radius * np.array([worst]))[0])
        for s in (1, -1)
        for worst in ([-1, 1, 1, 1, 1, 1, 1], [-1, -1, -1, -1, -1, 1, 1])
    ]
    assert any(found)


CHANGES = [ConfidenceChange(percent=percent) for percent in (1e-9, 1, 10, 50, 95, 99.9, 150)]


def corners(classes: int) -> np.ndarray:
    """Each class one way and all others the other way, both ways; those of an index above a limit one way."""
    one = 2 * np.eye(classes) - 1
    staircase = 2 * np.tri(classes) - 1
    return np.concatenate([one, -one, staircase, -staircase])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from(["logits", "probabilities"]),
    st.integers(2, 8),
    st.sampled_from([1.0, 30.0, 1e4, 1e30]),
    st.data(),
)
def test_no_move_below_the_slack_changes_a_verdict(dtype, kind, classes, size, data):
    bound = np.float32(size if kind == "logits" else 1)
    low = -bound if kind == "logits" else np.float32(0)
    drawn = arrays(dtype, (4, classes), elements=st.floats(float(low), float(bound), width=32))
    golden = Golden(data.draw(drawn), kind=kind)
    near = golden.outputs + data.draw(arrays(dtype, (4, classes), elements=st.sampled_from([0.0, 0.05, -0.05, 0.5])))
    outputs = data.draw(st.sampled_from([near.astype(dtype), data.draw(drawn)]))
    random = data.draw(arrays(np.float64, (8, classes), elements=st.floats(-1, 1)))
    by_rank = np.argsort(np.argsort(outputs, axis=1, kind="stable"), axis=1)
    inputs = np.arange(4)
    for criterion in ANY + CHANGES:
        if isinstance(criterion, TopK) and classes <= criterion.k:
            continue
        verdict, slack = criterion.sdc(golden, inputs, outputs), criterion.slack(golden, inputs, outputs)
        assert (slack >= 0).all()
        step = np.where(np.isfinite(slack), slack, 10 * size)[:, None]
        for direction in np.concatenate([corners(classes), random]):
            for share in (1 - 1e-9, 0.5):
                moved = (outputs + share * step * direction[by_rank]).astype(dtype)
                inside = np.abs(moved.astype(np.float64) - outputs).max(axis=1) < slack
                changed = criterion.sdc(golden, inputs, moved) != verdict
                assert not (changed & inside).any(), (criterion, outputs, moved)


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 8), st.data())
def test_the_slack_of_a_confidence_is_the_distance_at_which_it_changes(classes, data):
    scores = arrays(np.float64, (4, classes), elements=st.floats(-6, 6, width=16))
    golden, outputs, rows = Golden(data.draw(scores)), data.draw(scores), np.arange(4)
    faulty, lead = Golden(outputs).confidence, np.diff(np.sort(outputs, axis=1)[:, -2:], axis=1)[:, 0]
    sign = np.where(np.arange(classes) == outputs.argmax(axis=1)[:, None], 1.0, -1.0)
    for criterion in CHANGES:
        if criterion.percent < 1:  # so near to each other that a step goes past both limits
            continue
        slack, verdict = criterion.slack(golden, rows, outputs), criterion.sdc(golden, rows, outputs)
        # At least what follows from exp(-2d) <= changed confidence / confidence <= exp(2d) alone.
        limits = golden.confidence * (1 + criterion.percent / 100 * np.array([[-1], [1]]))
        ratio = np.abs(np.log(faulty) - np.log(np.maximum(limits, 1e-300))).min(axis=0) / 2
        assert (slack >= ratio * (1 - 1e-5) - 1e-11).all()
        beyond = (1 + 1e-5) * slack + 1e-9
        step = np.where(beyond < 100, beyond, 0.0)[:, None] * sign
        changes = [criterion.sdc(golden, rows, outputs + way * step) != verdict for way in (1, -1)]
        assert (changes[0] | changes[1])[beyond < lead / 2].all()


def test_the_slack_of_a_saturated_confidence():
    golden = Golden(np.array([[50.0, 0.0, 0.0]]))
    assert golden.confidence[0] == 1
    inputs, huge = np.array([0, 0, 0]), np.array([[1e6, 0.0, 0.0], [0.0, 1e30, 0.0], [2.0, 0.0, 0.0]])
    expected = [(1e6 - np.log(18)) / 2, 1e30 / 2, (np.log(18) - 2) / 2]  # 0.9 is crossed at odds of 9 = e^x / 2
    np.testing.assert_allclose(Sdc10Percent().slack(golden, inputs, huge), expected, rtol=2e-6)
    np.testing.assert_allclose(Sdc10Percent().radius(golden), (50 - np.log(18)) / 2, rtol=2e-6)
    never = ConfidenceChange(percent=70)  # 0.3 is below a third, 1.7 above 1
    assert never.radius(golden)[0] == np.inf
