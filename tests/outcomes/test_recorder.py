from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.errors import TargetError
from saboteur.outcomes import (
    STANDARD,
    AccuracyDrop,
    Golden,
    InferenceCriterion,
    NumericError,
    Recorder,
    Sdc1,
    TopK,
    outcome,
    rescore,
)

pytestmark = pytest.mark.filterwarnings("error")
LOGITS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 5]], np.float32)
GOLDEN = Golden(LOGITS, np.array([0, 1, 0]))
EVERYTHING = (*STANDARD, TopK(k=2), NumericError(tolerance=0.5), AccuracyDrop())


def at(*numbers):
    return np.array(numbers, np.int64)


def test_every_heading_by_hand():
    recorder = Recorder(GOLDEN, [Sdc1(), NumericError(tolerance=1.5), AccuracyDrop()], 4)
    changed = np.array([[3, 1, 1], [3, 2, 1], [np.nan, 0, 5]], np.float32)
    recorder.outputs(at(0, 0, 0), at(0, 1, 2), changed)
    recorder.identical(at(1, 1), at(2, 0))
    recorder.bounded(at(1), at(1), np.array([0.25]))
    recorder.abnormal(at(2, 2), at(0, 2), "crash")
    recorder.abnormal(at(2), at(1), "detected")
    recorder.invalid(3, "the harness ran out of memory")
    table = recorder.table()
    assert table.drop(["confidence_change"]).to_pydict() == {
        "inferences": [3, 3, 3, 3],
        "identical": [0, 2, 0, 0],
        "bounded": [0, 1, 0, 0],
        "screened": [0, 0, 0, 0],
        "nonfinite": [1, 0, 0, 0],
        "crash": [0, 0, 2, 0],
        "hang": [0, 0, 0, 0],
        "detected": [0, 0, 1, 0],
        "sdc:sdc-1": [1, 0, 0, 0],
        "sdc:numeric_error(tolerance=1.5)": [1, 0, 0, 0],
        "correct": [1, 2, 0, 2],
        "golden_correct": [2, 2, 2, 2],
        "golden_correct_answered": [2, 2, 0, 2],
        "max_abs_error": [3.0, 0.25, 0.0, 0.0],
        "audited": [0, 0, 0, 0],
        "audit_misses": [0, 0, 0, 0],
        "invalid": [None, None, None, "the harness ran out of memory"],
    }
    softmax = np.exp(changed[:2].astype(float)) / np.exp(changed[:2].astype(float)).sum(axis=1, keepdims=True)
    change = (softmax.max(axis=1) - GOLDEN.confidence[:2]).sum() / 3
    np.testing.assert_allclose(table["confidence_change"], [change, 0, 0, 0], atol=1e-12)
    assert outcome(table, Sdc1(), GOLDEN).tolist() == ["sdc", "masked", "due", "invalid"]
    assert outcome(table, AccuracyDrop(), GOLDEN).tolist() == ["sdc", "masked", "due", "invalid"]
    assert outcome(table, AccuracyDrop(tolerance=0.5), GOLDEN).tolist() == ["due", "masked", "due", "invalid"]


def test_accuracy_is_judged_over_the_answers_that_came():
    recorder = Recorder(GOLDEN, [AccuracyDrop()], 1)
    recorder.outputs(at(0, 0), at(0, 1), np.array([[0, 1, 0], [0, 2, 1]], np.float32))
    recorder.abnormal(at(0), at(2), "hang")
    table = recorder.table()
    assert outcome(table, AccuracyDrop(tolerance=0.4), GOLDEN).tolist() == ["sdc"], "one of two, not one of three"
    assert outcome(table, AccuracyDrop(tolerance=0.5), GOLDEN).tolist() == ["due"]


def test_what_is_not_finite_is_never_sdc():
    recorder = Recorder(GOLDEN, EVERYTHING, 2, keep_outputs=True)
    wild = np.tile(np.array([[np.inf, 1, 0], [0, np.nan, 9], [-np.inf, 0, 5]], np.float32), (2, 1))
    recorder.outputs(np.repeat(at(0, 1), 3), np.tile(at(0, 1, 2), 2), wild)
    table = recorder.table()
    assert table["nonfinite"].to_pylist() == [3, 3]
    for criterion in EVERYTHING:
        assert outcome(table, criterion, GOLDEN).tolist() == ["due", "due"]
    assert recorder.pairs()["output"].type == pa.list_(pa.float32(), 3)


def test_negative_zero_differs_in_bits_only():
    recorder = Recorder(GOLDEN, EVERYTHING, 1)
    outputs = LOGITS.copy()
    outputs[0, 2] = -0.0
    recorder.outputs(at(0, 0, 0), at(0, 1, 2), outputs)
    table = recorder.table()
    assert table["identical"].to_pylist() == [2]
    assert outcome(table, NumericError(tolerance=0.5), GOLDEN).tolist() == ["masked"]


def test_trials_that_meet_some_inputs():
    recorder = Recorder(GOLDEN, [Sdc1(), AccuracyDrop()], 2, inputs=np.array([[0, 2], [2, 1]]))
    assert recorder.inferences == 2
    recorder.outputs(at(1, 0), at(1, 2), np.array([[5, 0, 0], [9, 0, 5]], np.float32))
    recorder.identical(at(0, 1), at(0, 2))
    table = recorder.table()
    assert table["golden_correct"].to_pylist() == [1, 1]
    assert table["correct"].to_pylist() == [2, 0]
    assert table["sdc:sdc-1"].to_pylist() == [1, 1]
    assert outcome(table, AccuracyDrop(), GOLDEN).tolist() == ["masked", "sdc"]


def complete(recorder):
    for trial in range(recorder.trials):
        inputs = np.arange(3) if recorder.inputs is None else recorder.inputs[trial]
        recorder.identical(np.full(len(inputs), trial), inputs)


def record(what, inputs=None, criterion=None):
    recorder = Recorder(GOLDEN, [criterion or Sdc1()], 2, inputs)
    what(recorder)
    return recorder.table()


SUBSET = np.array([[0], [1]])


@pytest.mark.parametrize(
    ("what", "inputs", "message"),
    [
        (
            lambda r: r.identical(at(0, 0, 0, 1), at(0, 1, 2, 0)),
            None,
            "trial 1: 2 of 3 inferences are not .* for input 1",
        ),
        (lambda r: (complete(r), r.identical(at(1), at(2))), None, "trial 1, input 2: came twice"),
        (lambda r: (complete(r), r.abnormal(at(1), at(0), "hang")), None, "trial 1, input 0: came twice"),
        (
            lambda r: r.identical(at(0, 0, 0, 1, 1, 1, 1), at(0, 1, 2, 0, 1, 2, 2)),
            None,
            "trial 1: 4 inferences .* twice",
        ),
        (lambda r: r.identical(at(0, 0, 0, 1, 1, 1), at(0, 1, 2, 0, 1, 1)), None, "1 of 3 .* input 2"),
        (lambda r: r.identical(at(0), at(1)), SUBSET, "trial 0, input 1: came twice or was not asked for"),
        (lambda r: r.identical(at(2), at(0)), None, r"trials 2 \.\. 2 .* there are 2 trials"),
        (lambda r: r.identical(at(-1), at(0)), None, r"trials -1 \.\. -1"),
        (lambda r: r.identical(at(0), at(3)), None, r"inputs 3 \.\. 3; .* 3 inputs"),
        (lambda r: r.identical(at(0, 1), at(0)), None, "2 trials with 1 inputs"),
        (lambda r: r.outputs(at(0), at(0), np.zeros((1, 4), np.float32)), None, r"shape \[1, 4\] for 1 pairs"),
        (lambda r: r.outputs(at(0), at(0), np.zeros((1, 3))), None, "float64 .* gives float32"),
        (lambda r: r.bounded(at(0), at(0), np.array([1.0])), None, "reaches the radius"),
        (lambda r: r.bounded(at(0), at(0), np.array([np.nan])), None, "reaches the radius"),
        (lambda r: r.abnormal(at(0), at(0), "died"), None, "'died' is not one of crash, hang, detected"),
        (lambda r: r.invalid(2, "?"), None, r"trial 2 is outside 0 \.\. 1"),
    ],
)
def test_pairs_that_are_not_accounted_for(what, inputs, message):
    with pytest.raises(TargetError, match=message):
        record(what, inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [([[0, 0], [1, 2]], "twice"), ([[0, 1]], r"needs \[2, inputs"), ([[3], [0]], r"0 \.\. 2"), ([[], []], "needs")],
)
def test_inputs_that_make_no_sense(inputs, message):
    with pytest.raises(ValueError, match=message):
        Recorder(GOLDEN, [], 2, np.array(inputs, np.int64))


def test_invalid_trials_need_no_pairs_and_other_trials_do():
    recorder = Recorder(GOLDEN, [Sdc1()], 2)
    recorder.invalid(0, "no tool")
    recorder.identical(at(1, 1, 1), at(0, 1, 2))
    assert outcome(recorder.table(), Sdc1(), GOLDEN).tolist() == ["invalid", "masked"]


class Numbered(InferenceCriterion):
    kind: str = "numbered"

    def check(self, golden):
        pass

    def sdc(self, golden, inputs, outputs):
        return np.flatnonzero(outputs[:, 0] > 0)


def test_a_criterion_that_does_not_answer_with_bools_is_named():
    with pytest.raises(TargetError, match="numbered gives int64 of shape"):
        record(lambda r: r.outputs(at(0), at(0), np.ones((1, 3), np.float32)), criterion=Numbered())


def test_the_same_criterion_twice_counts_once():
    recorder = Recorder(GOLDEN, [Sdc1(), Sdc1()], 1)
    recorder.outputs(at(0, 0, 0), at(0, 1, 2), LOGITS[::-1])
    assert recorder.table()["sdc:sdc-1"].to_pylist() == [2]


def test_no_pairs_are_no_trouble():
    recorder = Recorder(GOLDEN, EVERYTHING, 1, keep_outputs=True)
    recorder.outputs(at(), at(), LOGITS[:0])
    recorder.identical(at(), at())
    recorder.abnormal(at(), at(), "hang")
    recorder.identical(at(0, 0, 0), at(0, 1, 2))
    assert recorder.pairs().num_rows == 0
    assert recorder.table()["identical"].to_pylist() == [3]
    assert rescore(recorder.pairs(), recorder.table(), GOLDEN, EVERYTHING).equals(recorder.table())


def test_radius_is_that_of_the_strictest_criterion_and_of_accuracy():
    assert (Recorder(GOLDEN, [NumericError(tolerance=0.1), Sdc1()], 1).radius <= 0.1).all()
    np.testing.assert_allclose(Recorder(GOLDEN, [AccuracyDrop()], 1).radius, [1, 0.5, 2], rtol=1e-5)
    assert (Recorder(GOLDEN, [Sdc1()], 1, keep_outputs=True).radius == 0).all()
    assert (Recorder(Golden(LOGITS), [], 1).radius == 0).all()


def test_values_that_are_no_classes():
    golden = Golden(np.zeros((2, 2, 2)), np.array([0, 1]), kind="values")
    recorder = Recorder(golden, [NumericError(tolerance=1)], 1, keep_outputs=True)
    recorder.outputs(at(0, 0), at(1, 0), np.array([[[0, 0], [0, 2.0]], [[0, 0], [0, 0]]]))
    table = recorder.table()
    assert table["sdc:numeric_error(tolerance=1.0)"].to_pylist() == [1]
    assert not {"correct", "confidence_change"} & set(table.column_names)
    assert recorder.pairs().to_pylist() == [{"trial": 0, "input": 1, "output": [0, 0, 0, 2.0]}]


@st.composite
def observations(draw):
    """What became of 3 trials on 6 inputs of 9 classes: outputs, or an ending."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    golden = Golden(rng.normal(size=(6, 9)).astype(np.float32), rng.integers(0, 9, 6))
    outputs = golden.outputs[None].repeat(3, axis=0)
    changed = rng.random((3, 6)) < 0.7
    outputs[changed] += rng.normal(size=(int(changed.sum()), 9)).astype(np.float32)
    outputs[rng.random((3, 6)) < 0.1] = np.nan
    endings = rng.choice(["output", "crash", "hang", "detected"], p=[0.7, 0.1, 0.1, 0.1], size=(3, 6))
    return golden, outputs, endings


def hand_in(recorder, outputs, endings, trials, inputs):
    kinds = endings[trials, inputs]
    for ending in np.unique(kinds):
        t, i = trials[kinds == ending], inputs[kinds == ending]
        if ending == "output":
            recorder.outputs(t, i, outputs[t, i])
        else:
            recorder.abnormal(t, i, str(ending))


@settings(max_examples=60, deadline=None)
@given(observations(), st.permutations(range(18)), st.lists(st.integers(0, 18), max_size=6))
def test_neither_order_nor_grouping_changes_a_bit(observed, order, cuts):
    golden, outputs, endings = observed
    trials, inputs = np.divmod(np.array(order), 6)
    whole, parts = (Recorder(golden, EVERYTHING, 3, keep_outputs=True) for _ in range(2))
    hand_in(whole, outputs, endings, np.repeat(np.arange(3), 6), np.tile(np.arange(6), 3))
    for rows in np.split(np.arange(18), sorted(cuts)):
        hand_in(parts, np.asfortranarray(outputs), endings, trials[rows], inputs[rows])
    assert parts.table().equals(whole.table())
    np.testing.assert_array_equal(kept(parts), kept(whole))


def kept(recorder):
    pairs = recorder.pairs()
    columns = [pairs["trial"].to_numpy(), pairs["input"].to_numpy()]
    flat = pairs["output"].combine_chunks().flatten().to_numpy().reshape(len(pairs), -1)
    return np.column_stack([*columns, flat.view(np.uint32)])


@settings(max_examples=60, deadline=None)
@given(observations(), st.integers(1, 7))
def test_rescoring_gives_what_recording_would_have_given(observed, batch):
    golden, outputs, endings = observed
    first, second = (
        Recorder(golden, criteria, 3, keep_outputs=True) for criteria in ([Sdc1(), AccuracyDrop()], EVERYTHING)
    )
    for recorder in (first, second):
        hand_in(recorder, outputs, endings, np.repeat(np.arange(3), 6), np.tile(np.arange(6), 3))
    assert rescore(first.pairs(), first.table(), golden, EVERYTHING, batch).equals(second.table())


def test_rescoring_finds_trials_by_stratum_and_number():
    recorder = Recorder(GOLDEN, [], 2, keep_outputs=True)
    recorder.identical(at(0, 0, 0, 1, 1), at(0, 1, 2, 0, 1))
    recorder.outputs(at(1), at(2), np.array([[9, 0, 5]], np.float32))
    table, pairs = recorder.table(), recorder.pairs()
    number, stratum = pa.array([10, 11]), pa.array([0, 4], pa.int32())
    table = pa.table({"stratum": stratum, "trial": number} | {n: table[n] for n in table.column_names})
    pairs = pa.table({"stratum": pa.array([4], pa.int32()), "trial": [11], "input": [2], "output": pairs["output"]})
    scored = rescore(pairs, table, GOLDEN, [Sdc1()])
    assert scored["sdc:sdc-1"].to_pylist() == [0, 1]
    assert scored.column_names[:3] == ["stratum", "trial", "inferences"]
    with pytest.raises(TargetError, match="not in the table"):
        rescore(pairs.set_column(1, "trial", pa.array([10])), table, GOLDEN, [Sdc1()])


def test_rescoring_what_was_not_kept():
    recorder = Recorder(GOLDEN, [Sdc1()], 1)
    recorder.identical(at(0, 0), at(0, 1))
    recorder.bounded(at(0), at(2), np.array([0.1]))
    table = recorder.table()
    assert recorder.pairs() is None
    with pytest.raises(TargetError, match="keep_outputs"):
        rescore(None, table, GOLDEN, [Sdc1()])
    nothing = Recorder(GOLDEN, [], 0, keep_outputs=True).pairs()
    with pytest.raises(TargetError, match="keep_outputs"):
        rescore(nothing, table, GOLDEN, [Sdc1()])


def test_rescoring_outputs_of_another_golden_run():
    recorder = Recorder(GOLDEN, [], 1, keep_outputs=True)
    recorder.outputs(at(0, 0, 0), at(0, 1, 2), LOGITS + 1)
    for other in (Golden(LOGITS.astype(np.float64)), Golden(LOGITS[:, :2]), Golden(LOGITS[:2])):
        with pytest.raises(TargetError, match="re-scoring"):
            rescore(recorder.pairs(), recorder.table(), other, [Sdc1()])
    with pytest.raises(TargetError, match="needs more than 5 classes"):
        rescore(recorder.pairs(), recorder.table(), GOLDEN, [TopK()])


def test_recording_costs_little_beside_a_forward_pass():
    """Below 5 µs a pair on any machine (measured: 0.5 to 0.7); a small network takes 10 and more."""
    rng = np.random.default_rng(0)
    golden = Golden(rng.normal(size=(1000, 10)).astype(np.float32), rng.integers(0, 10, 1000))
    trials, inputs = np.repeat(np.arange(64), 1000), np.tile(np.arange(1000), 64)
    outputs = golden.outputs[inputs] + rng.normal(size=(64_000, 10)).astype(np.float32)
    recorder = Recorder(golden, [*STANDARD, AccuracyDrop()], 64)
    start = time.process_time()
    recorder.outputs(trials, inputs, outputs)
    assert time.process_time() - start < 64_000 * 5e-6
    assert recorder.table()["inferences"].to_pylist() == [1000] * 64
