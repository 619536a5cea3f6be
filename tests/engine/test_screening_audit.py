"""The recorder's account of screened pairs, and that an audit tells a broken screen from a good one."""

from __future__ import annotations

import numpy as np
import pytest

from saboteur.errors import TargetError
from saboteur.outcomes.criteria import NumericError, Sdc1
from saboteur.outcomes.golden import Golden
from saboteur.outcomes.recorder import Recorder, outcome, rescore

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
