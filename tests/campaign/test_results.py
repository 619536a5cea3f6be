"""Estimates, groups, criticality, verdicts: against sums over the raw table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saboteur import statistics
from saboteur.campaign import Results, Session, compare, forecast, replay, rescore, run
from saboteur.errors import CampaignError, StoreError
from saboteur.outcomes import NumericError, Sdc1, TopK


@pytest.fixture
def opened(toy_campaign, tmp_path):
    campaign = toy_campaign(sampling={"kind": "fixed", "n": 300, "stratify": "layer", "confidence": 0.95})
    run(campaign, tmp_path / "store")
    with Results.open(tmp_path / "store") as results:
        yield results


def raw(results) -> pa.Table:
    return pq.read_table(results.store.path / "units")


def test_both_denominators(opened):
    table, sdc1 = raw(opened), opened.campaign.criterion("sdc-1")
    x = table["sdc:sdc-1"].to_numpy()
    stratum = table["stratum"].to_numpy()
    k = [int((x[stratum == h] > 0).sum()) for h in (0, 1)]
    n = [int((stratum == h).sum()) for h in (0, 1)]
    faults = opened.estimate(sdc1)
    assert (faults.k, faults.n, faults.population, faults.unit) == (sum(k), 300, 1600, "faults")
    assert faults.best == pytest.approx(0.6 * k[0] / n[0] + 0.4 * k[1] / n[1])
    inferences = opened.estimate(sdc1, unit="inferences")
    assert (inferences.k, inferences.n, inferences.unit) == (x.sum(), 300 * 40, "inferences")
    assert faults == statistics.stratified(k, n, [960, 640], 0.95, stopping_rule="fixed n")


def test_all_faults_on_some_inputs_are_a_sample(toy_campaign, tmp_path):
    """Another draw of the inputs would give another rate, however few faults are left."""
    found = {}
    for inputs in (None, 3):
        everything = toy_campaign(sampling={"kind": "exhaustive", "confidence": 0.99}, inputs_per_fault=inputs)
        run(everything, tmp_path / str(inputs))
        with Results.open(tmp_path / str(inputs)) as results:
            sdc1 = everything.criterion("sdc-1")
            found[inputs] = results.estimate(sdc1, unit="inferences"), results.estimate(sdc1)
    truth, some = found[None][0], found[3][0]
    assert truth.low == truth.best == truth.high
    assert some.low < truth.best < some.high
    assert some.low < some.best < some.high
    assert truth.population == some.population == 1600 * 40
    assert found[None][1].low == found[None][1].high
    assert found[3][1].low < found[3][1].best < found[3][1].high


def test_outcomes_add_up(opened):
    for criterion in opened.campaign.criteria:
        counts = opened.counts(criterion)
        assert sum(column.sum() for column in counts.faults.values()) == counts.n.sum() == 300
        assert sum(opened.estimate(criterion, what).best for what in ("masked", "sdc", "due")) == pytest.approx(1)


@pytest.mark.parametrize("by", ["layer", "bit", "layer_bit", "site", "component"])
def test_groups_partition_population_and_trials(opened, by):
    counts = opened.counts(opened.campaign.criterion("sdc-1"), by)
    assert counts.population.sum() == 1600
    assert counts.n.sum() == 300
    assert (counts.n <= counts.population).all()


def test_groups_count_the_right_trials(opened):
    table, sdc1 = raw(opened), opened.campaign.criterion("sdc-1")
    x, bit = table["sdc:sdc-1"].to_numpy() > 0, table["bit"].to_numpy()
    for name, group_bit, estimate in opened.estimates(sdc1, "bit"):
        assert name == ""
        assert (estimate.k, estimate.n) == (x[bit == group_bit].sum(), (bit == group_bit).sum())
        assert estimate.population == 50
    layer = table["region"].to_numpy()
    for name, group_bit, estimate in opened.estimates(sdc1, "layer_bit"):
        members = (bit == group_bit) & (layer == "ab".index(name))
        assert (estimate.k, estimate.n) == (x[members].sum(), members.sum())


def test_most_critical_and_its_faults(opened):
    criterion = opened.campaign.criterion("sdc-1")
    worst = opened.most_critical(criterion, 5)
    assert len(worst) == 5
    assert worst["severity"][0].as_py() == pytest.approx(raw(opened)["sdc:sdc-1"].to_numpy().max() / 40)
    listed = opened.faults(worst)
    assert listed["trial"].to_pylist() == worst["trial"].to_pylist()
    assert listed["bit"].to_pylist() == worst["bit"].to_pylist()


def test_export_has_a_row_a_trial(opened):
    table = pa.concat_tables(opened.export())
    assert len(table) == 300
    counts = opened.counts(opened.campaign.criterion("accuracy_drop(tolerance=0.05)"))
    assert (table["outcome:accuracy_drop(tolerance=0.05)"].to_numpy() == "sdc").sum() == counts.faults["sdc"].sum()
    assert set(table["site"].to_pylist()) == {"a.weight", "b.weight"}


def test_invalid_trials_are_in_no_denominator(toy_campaign, tmp_path):
    target = {"kind": "tests.campaign.toy:ToyTarget", "misbehave": "invalid"}
    campaign = toy_campaign(target=target)
    run(campaign, tmp_path / "store")
    with Results.open(tmp_path / "store") as results:
        invalid = results.invalid()
        assert 0 < len(invalid) < 60
        assert set(invalid["invalid"].to_pylist()) == {"the harness lost its way"}
        counts = results.counts(campaign.question)
        assert counts.n.sum() == 200 - len(invalid)
        assert counts.invalid.sum() == len(invalid)
        assert results.estimate(campaign.question).n == 200 - len(invalid)


def test_convergence_ends_at_the_estimate(opened):
    criterion = opened.campaign.criterion("sdc-1")
    curve = opened.convergence(criterion)
    assert curve[0][0] == 20
    assert curve[-1][0] == 300
    assert curve[-1][1].best == opened.estimate(criterion).best
    widths = [estimate.high - estimate.low for _, estimate in curve]
    assert widths[-1] < widths[0]


def test_methods_fit_the_plan(toy_campaign, tmp_path):
    """One stratum: Wilson to show, Clopper–Pearson to claim. A stopping rule: the sequence it looked at."""
    sampling = {"kind": "fixed", "n": 400, "confidence": 0.95}
    campaign = toy_campaign(sampling=sampling, requirement={"criterion": "sdc-1", "at_most": 0.5})
    run(campaign, tmp_path / "one")
    with Results.open(tmp_path / "one") as results:
        x = raw(results)["sdc:sdc-1"].to_numpy() > 0
        shown = results.estimate(campaign.question)
        assert shown == statistics.proportion(int(x.sum()), 400, 1600, 0.95, "wilson", stopping_rule="fixed n")
        claimed = results.verdict()[1]
        assert claimed.method == "Clopper–Pearson"
        assert claimed.low < shown.low < shown.high < claimed.high
    stopping = {"criterion": "sdc-1", "half_width": 0.2}
    run(toy_campaign(sampling=sampling, stopping=stopping), tmp_path / "stopped")
    with Results.open(tmp_path / "stopped") as results:
        stopped = results.estimate(results.campaign.criterion("sdc-1"))
        assert stopped.method == "confidence sequence"
        assert (stopped.high - stopped.low) / 2 <= 0.2
        other = results.estimate(results.campaign.criterion("sdc-10%"))
        assert other.stopping_rule.startswith("as if of fixed n; stopped at")


def test_a_list_stands_for_itself_exactly(toy_campaign, tmp_path):
    (tmp_path / "faults.csv").write_text('site,index,bit\na.weight,"(1, 2)",30\nb.weight,"(0, 3)",7\n')
    campaign = toy_campaign(sampling={"kind": "list", "path": str(tmp_path / "faults.csv"), "confidence": 0.95})
    run(campaign, tmp_path / "store")
    with Results.open(tmp_path / "store") as results:
        estimate = results.estimate(campaign.question)
        assert (estimate.n, estimate.population) == (2, 2)
        assert estimate.low == estimate.best == estimate.high
        for _, _, group in results.estimates(campaign.question, "layer"):
            assert (group.n, group.population, group.low) == (1, 1, group.high)


@pytest.mark.parametrize(("at_most", "verdict"), [(0.9, "met"), (0.001, "not met"), (None, "open")])
def test_verdict(toy_campaign, tmp_path, at_most, verdict):
    if at_most is None:
        run(toy_campaign(), tmp_path / "first")
        with Results.open(tmp_path / "first") as results:
            at_most = results.estimate(results.campaign.question).best
    run(toy_campaign(requirement={"criterion": "sdc-1", "at_most": at_most}), tmp_path / "store")
    with Results.open(tmp_path / "store") as results:
        assert results.verdict()[0] == verdict


def test_nothing_yet(toy_campaign, tmp_path):
    from saboteur.campaign import Store

    campaign = toy_campaign()
    with Session.open(campaign) as session:
        Store.create(tmp_path / "store", campaign, session.id, session.golden)
    with Results.open(tmp_path / "store") as results:
        assert results.planned == 0
        with pytest.raises(StoreError, match="no valid trial yet"):
            results.estimate(campaign.question)


def test_estimates_cover_the_exhaustive_truth(toy_campaign):
    """Over many seeds, intervals at 95 % hold the true rate at least 95 % of the time, less simulation noise."""
    with Session.open(toy_campaign(sampling={"kind": "exhaustive"})) as session:
        sampler, population = session.sampler, [960, 640]
        per_stratum = []
        for h in (0, 1):
            faults = sampler.faults(h, 0, population[h])
            index = session.space.encode(sampler.strata[h], faults.region, faults.element, faults.step, faults.variant)
            x = np.empty(population[h])
            x[index] = session.run(faults)[0]["sdc:sdc-1"].to_numpy()
            per_stratum.append(x)
        truth_faults = sum((x > 0).sum() for x in per_stratum) / 1600
        truth_inferences = sum(x.sum() for x in per_stratum) / (1600 * 40)
    covered_faults = covered_inferences = 0
    for seed in range(200):
        with Session.open(toy_campaign(seed=seed)) as session:
            k, n, sums, squares = [], [], [], []
            for h, count in enumerate((90, 60)):
                faults = session.sampler.faults(h, 0, count)
                x = per_stratum[h][
                    session.space.encode(
                        session.sampler.strata[h], faults.region, faults.element, faults.step, faults.variant
                    )
                ]
                k.append((x > 0).sum())
                n.append(count)
                sums.append(x.sum())
                squares.append((x**2).sum())
        a = statistics.stratified(k, n, [960, 640], 0.95)
        b = statistics.clustered(sums, squares, n, 40, [960, 640], 0.95)
        covered_faults += a.low <= truth_faults <= a.high
        covered_inferences += b.low <= truth_inferences <= b.high
    assert covered_faults >= 183  # 99.9 % of simulations of a true 95 % interval reach 179; a Wald interval does not
    assert covered_inferences >= 179


def test_replay_is_the_stored_trial(opened):
    worst = opened.most_critical(opened.campaign.criterion("sdc-1"), 1)
    stratum, trial = worst["stratum"][0].as_py(), worst["trial"][0].as_py()
    again = replay(opened.session, stratum, trial)
    stored = raw(opened).filter((pa.compute.field("stratum") == stratum) & (pa.compute.field("trial") == trial))
    for name in ("sdc:sdc-1", "correct", "nonfinite", "identical", "max_abs_error"):
        assert again.observations[name].to_pylist() == stored[name].to_pylist()
    assert again.outcomes["sdc-1"] == "sdc"
    assert again.trace["max_abs_error"][0].as_py() >= np.abs(again.faulty - again.golden).max()
    assert again.faults["bit"].to_pylist() == stored["bit"].to_pylist()
    with pytest.raises(CampaignError, match=r"stratum: 9 is outside 0 \.\. 1"):
        replay(opened.session, 9, 0)
    with pytest.raises(CampaignError, match="trial: 960 is outside"):
        replay(opened.session, 0, 960)
    with pytest.raises(CampaignError, match="input: 40 is not among"):
        replay(opened.session, 0, 0, 40)


def test_rescoring_equals_running_anew(toy_campaign, tmp_path):
    criteria = [TopK(k=2), NumericError(tolerance=0.5), Sdc1()]
    run(toy_campaign(keep_outputs=True, requirement={"criterion": "sdc-10%", "at_most": 0.5}), tmp_path / "old")
    dumped = [criterion.model_dump() for criterion in criteria]
    run(toy_campaign(keep_outputs=True, criteria=dumped), tmp_path / "anew")
    with Results.open(tmp_path / "old") as results:
        store = rescore(results, criteria, tmp_path / "rescored")
        assert store.campaign.requirement is None
    anew, rescored = (pq.read_table(tmp_path / name / "units") for name in ("anew", "rescored"))
    assert rescored.column_names == anew.column_names
    assert rescored.equals(anew)


def test_rescoring_needs_kept_outputs(opened, tmp_path):
    with pytest.raises(CampaignError, match="counts only, under sdc-1, sdc-10%"):
        rescore(opened, [TopK(k=2)], tmp_path / "rescored")


def test_comparison_of_the_same_faults_is_paired(toy_campaign, tmp_path):
    run(toy_campaign(), tmp_path / "a")
    target = {"kind": "tests.campaign.toy:ToyTarget", "inputs": 20}
    run(toy_campaign(target=target), tmp_path / "b")
    with Results.open(tmp_path / "a") as a, Results.open(tmp_path / "b") as b:
        comparison = compare(a, b)
        assert comparison.paired == 200
        x, y = raw(a)["sdc:sdc-1"].to_numpy() > 0, raw(b)["sdc:sdc-1"].to_numpy() > 0
        assert (comparison.only_a, comparison.only_b) == ((x & ~y).sum(), (~x & y).sum())
        assert comparison.faults.low <= comparison.faults.best <= comparison.faults.high
        assert comparison.faults.best == pytest.approx(x.mean() - y.mean())
        assert comparison.p_value == statistics.mcnemar(comparison.only_a, comparison.only_b)
        with pytest.raises(CampaignError, match="'sdc-5' is not among"):
            compare(a, b, "sdc-5")


def test_comparison_of_other_faults_is_not_paired(toy_campaign, tmp_path):
    run(toy_campaign(faults=[{"model": "bit_flip", "layers": ["a"]}]), tmp_path / "a")
    run(toy_campaign(faults=[{"model": "bit_flip", "layers": ["b"]}]), tmp_path / "b")
    with Results.open(tmp_path / "a") as a, Results.open(tmp_path / "b") as b:
        comparison = compare(a, b)
    assert comparison.paired == 0
    assert comparison.p_value is None
    assert comparison.faults.best == pytest.approx(comparison.a.best - comparison.b.best)


def test_forecast_counts_what_it_ran(toy_campaign):
    with Session.open(toy_campaign()) as session:
        prediction = forecast(session, seconds=0.05)
    assert prediction.trials == 200
    assert 4 <= prediction.pilot <= 400
    assert prediction.seconds == pytest.approx(prediction.pilot_s / prediction.pilot * 200)


def test_a_changed_model_is_noticed(opened):
    manifest = opened.store.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(opened.store.id, "c1-0123456789abcdef"))
    with pytest.raises(StoreError, match="have changed since"), Results.open(opened.store.path):
        pass
