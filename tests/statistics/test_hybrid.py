"""Two-phase estimates: exact cases, coverage on known populations, and Cochran's formulas for the best use of time."""

from __future__ import annotations

import numpy as np
import pytest

from saboteur.statistics import StatisticsError, stratified
from saboteur.statistics.hybrid import Costs, Strategy, TwoPhase, combine, plan, rank, second_phase

COSTS = Costs(cheap=1, exact=20)
STRATEGIES: tuple[Strategy, ...] = ("difference", "regression", "stratified")


def test_estimates_of_a_sample_by_hand() -> None:
    """200 cheap runs, 20 of them SDC; of 10 + 10 exact runs, 1 of the masked ones and 8 of the SDC ones are SDC."""
    sample = TwoPhase(first=[180, 20], n=[10, 10], k=[1, 8])
    assert combine(sample, 10**6, COSTS, "stratified").estimate.best == pytest.approx(0.9 * 0.1 + 0.1 * 0.8)
    # x̄′ + mean(y − x) = 0.1 + (9 − 10)/20
    assert combine(sample, 10**6, COSTS, "difference").estimate.best == pytest.approx(0.05)
    # slope (0.8 − 0.1), mean y 0.45, mean x 0.5
    assert combine(sample, 10**6, COSTS, "regression").estimate.best == pytest.approx(0.45 + 0.7 * (0.1 - 0.5))
    assert combine(sample, 10**6, COSTS, "exact_alone").estimate.best == pytest.approx(0.45)


def test_a_census_of_both_levels_is_exact() -> None:
    sample = TwoPhase(first=[90, 10], n=[90, 10], k=[3, 9])
    for strategy in STRATEGIES:
        estimate = combine(sample, 100, COSTS, strategy).estimate
        assert (estimate.low, estimate.best, estimate.high) == pytest.approx((0.12, 0.12, 0.12))


def test_with_the_whole_population_in_the_first_phase_it_is_a_stratified_sample() -> None:
    sample = TwoPhase(first=[900, 100], n=[50, 50], k=[2, 30])
    found = combine(sample, 1000, COSTS, "stratified", 0.95).estimate
    expected = stratified([2, 30], [50, 50], [900, 100], 0.95)
    assert (found.low, found.best, found.high) == pytest.approx((expected.low, expected.best, expected.high))


def test_classes_of_columns() -> None:
    sample = TwoPhase.of([0, 0, 0.5, 1, 1, 0], [0, 1, 0.5], [0.25, 1, 0])
    assert sample.score.tolist() == [0, 0.5, 1]
    assert sample.first.tolist() == [3, 1, 2]
    assert sample.k.tolist() == [0.25, 0, 1]
    assert sample.squares.tolist() == [0.0625, 0, 1]


@pytest.mark.parametrize(
    ("rate", "found", "false"), [(0.02, 0.8, 0.02), (0.1, 0.9, 0.05), (0.4, 0.8, 0.2), (0.05, 0.3, 0.2)]
)
def test_intervals_cover_the_rate_of_a_known_population(rate: float, found: float, false: float) -> None:
    """95 % intervals of 120 samples each; 107 is three standard errors below the stated confidence."""
    rng = np.random.default_rng(7)
    size, first, n = 10000, 1500, 250
    exact = (rng.random(size) < rate).astype(float)
    cheap = np.where(exact == 1, rng.random(size) < found, rng.random(size) < false).astype(float)
    truth, covered = exact.mean(), dict.fromkeys(STRATEGIES, 0)
    for _ in range(120):
        phase = rng.permutation(size)[:first]
        sample = TwoPhase.of(cheap[phase], cheap[phase[:n]], exact[phase[:n]])
        for strategy in ("difference", "regression"):
            estimate = combine(sample, size, COSTS, strategy, 0.95).estimate
            covered[strategy] += estimate.low <= truth <= estimate.high
        classes = [phase[cheap[phase] == value] for value in (0, 1)]
        runs = second_phase([len(c) for c in classes], [0.1, 0.5])
        kept = TwoPhase(
            [len(c) for c in classes], runs, [exact[c[:m]].sum() for c, m in zip(classes, runs, strict=True)]
        )
        estimate = combine(kept, size, COSTS, "stratified", 0.95).estimate
        covered["stratified"] += estimate.low <= truth <= estimate.high
    assert min(covered.values()) >= 107, covered


def test_outcomes_that_are_shares_of_inferences_are_covered_as_well() -> None:
    rng = np.random.default_rng(8)
    size = 8000
    exact = rng.binomial(10, rng.beta(0.3, 3, size)) / 10
    cheap = np.clip(np.round(exact + rng.normal(0, 0.1, size), 1), 0, 1)
    truth, covered = exact.mean(), dict.fromkeys(STRATEGIES, 0)
    for _ in range(40):
        phase = rng.permutation(size)[:1000]
        sample = TwoPhase.of(cheap[phase], cheap[phase[:300]], exact[phase[:300]])
        for strategy in STRATEGIES:
            estimate = combine(sample, size, COSTS, strategy, 0.95).estimate
            covered[strategy] += estimate.low <= truth <= estimate.high
    assert min(covered.values()) >= 34, covered


def big_pilot(rate: float, found: float, false: float, n: int = 10**6) -> TwoPhase:
    """A pilot so large that it knows everything."""
    sdc = np.array([rate * (1 - found), rate * found]) * n
    cheap = np.array([rate * (1 - found) + (1 - rate) * (1 - false), rate * found + (1 - rate) * false]) * n
    return TwoPhase(np.rint(cheap), np.rint(cheap), np.rint(sdc))


@pytest.mark.parametrize("cost", [2.0, 10.0, 200.0])
@pytest.mark.parametrize(("found", "false"), [(0.95, 0.01), (0.7, 0.1), (0.3, 0.2)])
def test_gain_of_the_best_regression_is_cochrans(cost: float, found: float, false: float) -> None:
    """V alone / V = 1/(√(1 − ρ²) + ρ √(c′/c))², above 1 exactly where ρ² > 4 c c′/(c + c′)² (Cochran 1977, §12.7)."""
    sample, costs = big_pilot(0.1, found, false), Costs(1.0, cost)
    planned = plan(sample, 10**12, costs, 10**6, "regression")
    rho = planned.correlation
    expected = 1 / (np.sqrt(1 - rho**2) + rho / np.sqrt(cost)) ** 2
    useful = rho**2 > 4 * cost / (1 + cost) ** 2
    assert planned.gain.claimed == (planned.gain.best > 1.001) == useful
    optimum = rho**2 > 1 / (1 + cost)  # else the best is to run all at both levels
    if optimum:
        assert planned.gain.best == pytest.approx(expected, rel=2e-3)


def test_planned_width_is_what_samples_of_that_size_have() -> None:
    sample, rng = big_pilot(0.1, 0.9, 0.05), np.random.default_rng(3)
    planned = plan(sample, 10**7, COSTS, 30000, "stratified", 0.95)
    widths = []
    for _ in range(40):
        events = rng.random(planned.first) < 0.1
        cheap = np.where(events, rng.random(planned.first) < 0.9, rng.random(planned.first) < 0.05)
        first = [int((~cheap).sum()), int(cheap.sum())]
        runs = second_phase(first, planned.shares)
        k = [events[cheap == value][:m].sum() for value, m in zip((False, True), runs, strict=True)]
        estimate = combine(TwoPhase(first, runs, k), 10**7, COSTS, "stratified", 0.95).estimate
        widths.append((estimate.high - estimate.low) / 2)
    assert np.mean(widths) == pytest.approx(planned.half_width, rel=0.06)
    spent = planned.first * COSTS.cheap + planned.exact * COSTS.exact
    assert 0.99 * 30000 <= spent <= 30000


def test_a_free_first_phase_takes_the_whole_population() -> None:
    planned = plan(big_pilot(0.1, 0.9, 0.05), 5000, Costs(1e-6, 1.0), 500, "difference")
    assert (planned.first, planned.exact) == (5000, 499)


def test_no_gain_is_claimed_where_levels_agree_too_little() -> None:
    useless = TwoPhase(first=[1600, 400], n=[160, 40], k=[16, 4])
    for strategy in STRATEGIES:
        planned = plan(useless, 10**6, COSTS, 10000, strategy)
        assert not planned.gain.claimed
        assert "no gain is claimed" in str(planned.gain)
    found = combine(useless, 10**6, COSTS, "stratified")
    assert not found.gain.claimed


def test_no_gain_is_claimed_from_a_pilot_too_small_to_show_it() -> None:
    """The same shares, ten times and a hundred times the faults."""

    def gain(times: int) -> tuple[float, bool]:
        sample = TwoPhase(*(np.array(part) * times for part in ([18, 2], [18, 2], [0, 2])))
        found = plan(sample, 10**6, Costs(1, 30), 10000, "stratified").gain
        return found.low, found.claimed

    lows = [gain(times) for times in (1, 10, 100)]
    assert [claimed for _, claimed in lows] == [False, True, True]
    assert lows[0][0] < lows[1][0] < lows[2][0]


def test_strategies_are_ranked_by_width_and_unproved_ones_come_last() -> None:
    pilots = {
        "software": TwoPhase(first=[450, 50], n=[450, 50], k=[50, 5]),
        "architecture": TwoPhase(first=[450, 50], n=[450, 50], k=[5, 48]),
    }
    costs = {"software": Costs(1, 30), "architecture": Costs(2, 30)}
    plans = rank(pilots, 10**7, costs, 30000)
    assert len(plans) == 7
    assert (plans[0].level, plans[0].gain.claimed) == ("architecture", True)
    alone = next(place for place, p in enumerate(plans) if p.strategy == "exact_alone")
    proved = [p for p in plans[:alone]]
    assert proved and all(p.level == "architecture" and p.gain.claimed for p in proved)
    assert all(not p.gain.claimed for p in plans[alone + 1 :])
    assert [p.half_width for p in proved] == sorted(p.half_width for p in proved)
    assert plans[alone].exact == 1000 and plans[alone].first == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([10, 5], [5], [1, 1]), "shapes"),
        (([10, 5], [11, 1], [1, 1]), "the exact level runs some of the first phase"),
        (([10, 5], [2, 1], [3, 1]), "some of those are events"),
        (([10, 5], [1, 0], [1, 0]), "at least two faults"),
        (([10, -5], [1, 0], [1, 0]), "at least 0"),
    ],
)
def test_impossible_samples_are_refused(columns: tuple, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        TwoPhase(*columns)


def test_impossible_arguments_are_refused() -> None:
    sample = TwoPhase(first=[10, 10], n=[5, 5], k=[1, 4])
    with pytest.raises(StatisticsError, match="population is 15"):
        combine(sample, 15, COSTS)
    with pytest.raises(StatisticsError, match="strategy is 'best'"):
        combine(sample, 100, COSTS, "best")  # type: ignore[arg-type]
    with pytest.raises(StatisticsError, match=r"costs\.exact is 0"):
        Costs(1, 0)
    with pytest.raises(StatisticsError, match="budget is 10"):
        plan(sample, 100, COSTS, 10, "stratified")
    with pytest.raises(StatisticsError, match="costs: none for 'software'"):
        rank({"software": sample}, 100, {}, 1000)
    with pytest.raises(StatisticsError, match="same faults"):
        TwoPhase.of([0, 1], [2], [1])
