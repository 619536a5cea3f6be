"""What came of a fault: golden runs, observations, and the criteria that turn them into outcomes."""

from saboteur.outcomes.criteria import (
    STANDARD,
    AccuracyDrop,
    ConfidenceChange,
    Criterion,
    FaultCriterion,
    InferenceCriterion,
    NumericError,
    Sdc1,
    Sdc5,
    Sdc10Percent,
    Sdc20Percent,
    TopK,
)
from saboteur.outcomes.golden import Golden
from saboteur.outcomes.recorder import COUNTS, Recorder, outcome, rescore

__all__ = [
    "COUNTS",
    "STANDARD",
    "AccuracyDrop",
    "ConfidenceChange",
    "Criterion",
    "FaultCriterion",
    "Golden",
    "InferenceCriterion",
    "NumericError",
    "Recorder",
    "Sdc1",
    "Sdc5",
    "Sdc10Percent",
    "Sdc20Percent",
    "TopK",
    "outcome",
    "rescore",
]
