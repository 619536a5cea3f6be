"""Stopping rules: when they are met, and that stopping by them keeps the confidence."""

from __future__ import annotations

import numpy as np
import pytest

from saboteur.statistics import AbsoluteMargin, FixedSize, RelativeMargin, StatisticsError, confidence_sequence


def test_fixed_size() -> None:
    rule = FixedSize(100)
    np.testing.assert_array_equal(rule.met([0, 3, 3], [99, 100, 40], [1000, 1000, 40]), [False, True, True])
    assert not rule.met(0, 99) and rule.met(0, 100)
    assert str(rule) == "fixed n = 100" and rule.method == "wilson"


def test_absolute_margin_is_the_sequence_s_half_width() -> None:
    low, high = confidence_sequence(20, 1000, 0.95)
    half = float(high - low) / 2
    assert AbsoluteMargin(half * 1.001, 0.95).met(20, 1000)
    assert not AbsoluteMargin(half * 0.999, 0.95).met(20, 1000)
    assert not AbsoluteMargin(0.1).met(0, 0)


def test_relative_margin() -> None:
    low, high = confidence_sequence(200, 1000, 0.95)
    ratio = float(high - low) / 2 / 0.2
    assert RelativeMargin(ratio * 1.001, 0.95).met(200, 1000)
    assert not RelativeMargin(ratio * 0.999, 0.95).met(200, 1000)
    assert not RelativeMargin(0.5).met(0, 10**6)


def test_exhausted_population_stops_every_rule() -> None:
    for rule in (FixedSize(10**6), AbsoluteMargin(1e-6), RelativeMargin(1e-6)):
        np.testing.assert_array_equal(rule.met([0, 7], [50, 50], [50, 50]), [True, True])


def test_rules_say_what_they_guarantee() -> None:
    assert "every look" in AbsoluteMargin(0.01).guarantee
    assert "fixed n" in FixedSize(5).guarantee
    assert str(RelativeMargin(0.1)) == "stopped at ± 10 % of the rate by a confidence sequence"


@pytest.mark.parametrize("rule", [AbsoluteMargin(0.01, 0.95), RelativeMargin(0.4, 0.95)])
def test_interval_at_the_stop_keeps_its_confidence(rule) -> None:
    rate, campaigns, trials = 0.02, 400, 8000
    rng = np.random.Generator(np.random.Philox(99))
    events = np.cumsum(rng.random((campaigns, trials)) < rate, axis=1)[:, 49::50]
    n = np.broadcast_to(np.arange(50, trials + 1, 50), events.shape)
    met = rule.met(events, n)
    assert met.any(axis=1).all()
    stop = met.argmax(axis=1)
    row = np.arange(campaigns)
    low, high = rule.interval(events[row, stop], n[row, stop])
    assert np.mean((rate < low) | (rate > high)) <= 0.05


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: FixedSize(0), "n is 0"),
        (lambda: AbsoluteMargin(0), "half_width is 0"),
        (lambda: AbsoluteMargin(0.1, 95), "confidence is 95"),
        (lambda: RelativeMargin(2), "ratio is 2"),
        (lambda: AbsoluteMargin(0.1).met(3, 2), "k is 3"),
        (lambda: AbsoluteMargin(0.1).met(1, 20, 10), "n is 20"),
    ],
)
def test_errors_name_field_and_value(call, named: str) -> None:
    with pytest.raises(StatisticsError, match=named):
        call()
