"""The recorder's account of screened pairs, and that an audit tells a broken screen from a good one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.errors import TargetError
from saboteur.faults import BitFlip
from saboteur.faults.space import Faults
from saboteur.levels.software.engine import screening_slopes
from saboteur.levels.software.spec import EngineName, SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.criteria import NumericError, Sdc1
from saboteur.outcomes.golden import Golden
from saboteur.outcomes.recorder import Recorder, outcome, rescore
from saboteur.statistics import upper_bound
from saboteur.testing.targets import draw_faults

LOGITS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 5]], np.float32)
GOLDEN = Golden(LOGITS, np.array([0, 1, 0]))


def at(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_screened_pairs_are_masked_and_counted() -> None:
    recorder = Recorder(GOLDEN, [Sdc1()], 1)
    recorder.screened(at(0, 0), at(0, 2))
    assert recorder.awaited.tolist() == [[False, True, False]]
    recorder.identical(at(0), at(1))
    table = recorder.table()
    assert table.select(["screened", "identical", "audited", "audit_misses", "correct", "sdc:sdc-1"]).to_pylist() == [
        {"screened": 2, "identical": 1, "audited": 0, "audit_misses": 0, "correct": 2, "sdc:sdc-1": 0}
    ]
    assert outcome(table, Sdc1(), GOLDEN).tolist() == ["masked"]


def test_each_way_to_be_wrong_is_a_miss() -> None:
    recorder = Recorder(GOLDEN, [Sdc1(), NumericError(tolerance=1.5)], 4)
    every = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    recorder.audit(*every)
    recorder.outputs(at(0, 0, 0), at(0, 1, 2), np.array([[1, 3, 0], [0, 2.5, 1], [np.nan, 0, 5]], np.float32))
    recorder.identical(at(1), at(0))
    recorder.bounded(at(1), at(1), np.array([0.1]))
    recorder.outputs(at(1), at(2), np.array([[1, 2, 5]], np.float32))
    recorder.abnormal(at(2, 2, 2), at(0, 1, 2), "hang")
    recorder.outputs(at(3, 3, 3), at(0, 1, 2), LOGITS)
    table = recorder.table()
    assert table["audited"].to_pylist() == [3, 3, 3, 3]
    assert table["audit_misses"].to_pylist() == [2, 1, 3, 0]
    assert table["screened"].to_pylist() == [0] * 4


def test_another_answer_is_a_miss_even_if_no_criterion_asks() -> None:
    recorder = Recorder(GOLDEN, [], 1)
    recorder.audit(at(0, 0), at(0, 1))
    recorder.outputs(at(0, 0, 0), at(0, 1, 2), np.array([[1, 3, 0], [0, 2.5, 1], [5, 0, 1]], np.float32))
    assert recorder.table()["audited"].to_pylist() == [2]
    assert recorder.table()["audit_misses"].to_pylist() == [1], "the pair that was not under audit does not count"


def test_misuse_is_refused() -> None:
    recorder = Recorder(GOLDEN, [Sdc1()], 1)
    recorder.screened(at(0), at(0))
    with pytest.raises(TargetError, match="came twice or was not asked for"):
        recorder.screened(at(0), at(0))
    with pytest.raises(TargetError, match="audit: a pair that was handed in"):
        recorder.audit(at(0), at(0))
    with pytest.raises(TargetError, match="screened: the radius of an input is 0"):
        Recorder(GOLDEN, [Sdc1()], 1, keep_outputs=True).screened(at(0), at(0))


def test_screened_pairs_cannot_be_rescored() -> None:
    recorder = Recorder(GOLDEN, [Sdc1()], 1)
    recorder.screened(at(0), at(0))
    recorder.identical(at(0, 0), at(1, 2))
    kept = Recorder(GOLDEN, [Sdc1()], 1, keep_outputs=True).pairs()
    with pytest.raises(TargetError, match="the raw outputs were not kept"):
        rescore(kept, recorder.table(), GOLDEN, [Sdc1()])


TRIALS = 300
SAME = ("nonfinite", "crash", "sdc:sdc-1", "correct", "golden_correct_answered")


def target_with(engine: EngineName, audit_rate: float = 0.02) -> SoftwareTarget:
    workload = workloads.load("digits-mlp6")
    settings = dict(engine=engine, audit_rate=audit_rate, resources=Resources(batch_size=64))
    return SoftwareTarget(workload.model, workload.inputs[:120], workload.labels[:120], **settings)


def observed(target: SoftwareTarget, trials: np.ndarray | None = None, inputs: np.ndarray | None = None) -> pa.Table:
    space = target.space([SoftwareFault(where="weights", model=BitFlip())])
    faults: Faults = draw_faults(space, TRIALS)
    faults = faults if trials is None else faults.take(trials)
    recorder = Recorder(target.golden(), [Sdc1()], faults.trials, inputs)
    target.inject(space, faults, recorder)
    return recorder.table()


def total(table: pa.Table, column: str) -> int:
    return int(table[column].to_numpy().sum())


@pytest.fixture(scope="module")
def screened() -> pa.Table:
    return observed(target_with("screened"))


def test_verdicts_are_those_of_the_plain_engine(screened: pa.Table) -> None:
    plain = observed(target_with("plain"))
    for column in SAME:
        assert screened[column].equals(plain[column]), column
    assert total(screened, "screened") > 0.9 * TRIALS * 120
    assert total(plain, "screened") == total(plain, "audited") == 0


def test_a_good_screen_passes_its_audit(screened: pa.Table) -> None:
    audited, misses = total(screened, "audited"), total(screened, "audit_misses")
    assert audited == pytest.approx(0.02 * (total(screened, "screened") + audited), rel=0.15)
    assert misses == 0
    assert upper_bound(misses, audited) == pytest.approx(-np.log(0.01) / audited, rel=0.01)


def test_a_broken_screen_fails_its_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening_slopes, "_strain", lambda slope, size, radius: np.zeros(len(slope), np.float32))
    table = observed(target_with("screened"))
    missed = total(observed(target_with("plain")), "sdc:sdc-1") - total(table, "sdc:sdc-1")
    assert missed > 0, "the broken screen hides SDCs"
    assert total(table, "audit_misses") > 0
    assert upper_bound(total(table, "audit_misses"), total(table, "audited")) > missed / total(table, "screened") > 1e-3


def convolutional(engine: EngineName, audit_rate: float) -> tuple[pa.Table, int]:
    """Flips in a convolutional network; and how many pairs the screen decides at their source."""
    workload = workloads.load("digits-cnn")
    settings = dict(engine=engine, audit_rate=audit_rate, resources=Resources(batch_size=64))
    target = SoftwareTarget(workload.model, workload.inputs[:120], workload.labels[:120], **settings)
    space = target.space([SoftwareFault(where="weights", model=BitFlip())])
    faults = draw_faults(space, TRIALS)
    recorder = Recorder(target.golden(), [Sdc1()], TRIALS)
    target.inject(space, faults, recorder)
    with target._runner.prepared():
        at_source = sum(len(trial) for trial, _ in target.screen(space).decided(space, faults, recorder.radius))
    return recorder.table(), at_source


def test_pairs_are_decided_on_the_way_too_and_audited() -> None:
    plain, _ = convolutional("plain", 0.0)
    table, at_source = convolutional("screened", 0.0)
    for column in SAME:
        assert table[column].equals(plain[column]), column
    assert total(table, "screened") > at_source + 0.005 * TRIALS * 120
    everything, _ = convolutional("screened", 1.0)
    assert total(everything, "screened") == 0
    assert at_source < total(everything, "audited") <= total(table, "screened") + 0.005 * TRIALS * 120
    assert total(everything, "audit_misses") == 0


def test_a_broken_prediction_on_the_way_fails_its_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening_slopes.Slopes, "strain_on_the_way", lambda self, *_: np.zeros(len(self.size)))
    table, _ = convolutional("screened", 0.3)
    plain, _ = convolutional("plain", 0.0)
    assert total(table, "sdc:sdc-1") < total(plain, "sdc:sdc-1")
    assert total(table, "audit_misses") > 0


def test_everything_can_be_audited() -> None:
    table = observed(target_with("screened", audit_rate=1.0), np.arange(40))
    assert total(table, "screened") == 0
    assert total(table, "audited") > 0.9 * 40 * 120


def test_a_trial_alone_is_screened_and_audited_as_among_others(screened: pa.Table) -> None:
    chosen = np.array([3, 250, 17])
    alone, among = observed(target_with("screened"), chosen), screened.take(chosen)
    for column in among.column_names:
        if column == "confidence_change":  # of outputs that were summed in another order
            np.testing.assert_allclose(alone[column].to_numpy(), among[column].to_numpy(), atol=1e-6)
        else:
            assert alone[column].equals(among[column]), column


def test_chosen_inputs_are_screened_and_audited(screened: pa.Table) -> None:
    inputs = np.stack([np.random.default_rng(trial).permutation(120)[:50] for trial in range(TRIALS)])
    table, plain = (observed(target_with(engine), inputs=inputs) for engine in ("screened", "plain"))
    for column in SAME:
        assert table[column].equals(plain[column]), column
    assert total(table, "audited") > 0 and total(table, "screened") > 0.9 * TRIALS * 50


def test_the_engine_is_part_of_what_identifies_a_screened_target() -> None:
    prints = [target_with(*how).fingerprint for how in (("plain",), ("exact",), ("screened",), ("screened", 0.5))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
