"""How many trials: sizes, priors, refinement, stopping."""

from __future__ import annotations

import pytest

from saboteur import statistics
from saboteur.campaign import Results, Session, run
from saboteur.errors import CampaignError


def planned(campaign):
    with Session.open(campaign) as session:
        return session.plan


def test_statistical_plan_for_the_total_is_leveugles_number(toy_campaign):
    plan = planned(toy_campaign(sampling={"kind": "statistical", "margin": 0.05, "confidence": 0.99}))
    assert plan.n.tolist() == [int(statistics.sample_size(1600, 0.05, 0.99))]


def test_statistical_plan_for_each_stratum(toy_campaign):
    sampling = {"kind": "statistical", "margin": 0.05, "confidence": 0.99, "stratify": "layer", "margin_for": "stratum"}
    plan = planned(toy_campaign(sampling=sampling))
    assert plan.n.tolist() == statistics.sample_size([960, 640], 0.05, 0.99).tolist()


def test_shares_of_the_total(toy_campaign):
    sampling = {"kind": "statistical", "margin": 0.05, "confidence": 0.99, "stratify": "layer"}
    plan = planned(toy_campaign(sampling=sampling))
    whole = int(statistics.sample_size(1600, 0.05, 0.99))
    assert plan.n.tolist() == pytest.approx([whole * 0.6, whole * 0.4], abs=1)


def test_data_aware_prior_is_high_where_flips_go_far(toy_campaign):
    sampling = {
        "kind": "statistical",
        "margin": 0.1,
        "stratify": "layer_bit",
        "margin_for": "stratum",
        "prior": "data_aware",
    }
    plan = planned(toy_campaign(sampling=sampling))
    names = [stratum.name for stratum in plan.sampler.strata]
    prior = dict(zip(names, plan.prior.tolist(), strict=True))
    assert prior["a bit 30"] == 0.5
    assert prior["a bit 0"] == prior["b bit 3"] == 1e-4
    assert plan.n[names.index("a bit 30")] > 10 * plan.n[names.index("a bit 0")]
    with pytest.raises(CampaignError, match="data_aware needs faults of single bits; dead acts on values"):
        planned(toy_campaign(sampling=sampling, faults=[{"model": "dead"}]))


def test_fixed_plans(toy_campaign):
    def n(**sampling):
        return planned(toy_campaign(sampling={"kind": "fixed", "stratify": "layer"} | sampling)).n.tolist()

    assert n(n=100) == [60, 40]
    assert n(n=700, n_for="stratum") == [700, 640]
    with pytest.raises(CampaignError, match="1601 faults are more than the population of 1600"):
        n(n=1601)


def test_combinations_have_no_population(toy_campaign):
    plan = planned(
        toy_campaign(sampling={"kind": "statistical", "margin": 0.02, "confidence": 0.95}, bit_error_rate=0.01)
    )
    assert plan.n.tolist() == [2401]
    assert plan.sampler.populations == [None]


def test_exhaustive_covers_everything_and_is_exact(toy_campaign, tmp_path):
    campaign = toy_campaign(sampling={"kind": "exhaustive"})
    run(campaign, tmp_path / "store")
    with Results.open(tmp_path / "store") as results:
        estimate = results.estimate(campaign.question)
        assert (estimate.n, estimate.low, estimate.high) == (1600, estimate.best, estimate.best)
        inferences = results.estimate(campaign.question, unit="inferences")
        assert inferences.low == pytest.approx(inferences.best) == inferences.high


def test_refinement_reaches_its_margin_with_fewer_faults(toy_campaign, tmp_path):
    sampling = {
        "kind": "statistical",
        "stratify": "layer_bit",
        "margin_for": "stratum",
        "margin": 0.12,
        "confidence": 0.95,
        "refine": True,
        "pilot": 10,
    }
    campaign = toy_campaign(sampling=sampling)
    store = run(campaign, tmp_path / "store")
    rounds = store.rounds()
    assert len(rounds) > 1
    assert set(rounds[0].after.tolist()) == {10}
    with Results.open(tmp_path / "store") as results:
        counts = results.counts(campaign.question)
        refined = statistics.refine(counts.faults["sdc"], counts.n, counts.population, 0.12, 0.95)
        assert not refined.extra.any()
        assert refined.half_width.max() <= 0.12
        planned_at_half = statistics.stratum_wise(counts.population, 0.12, 0.95, 0.5)
        assert counts.n.sum() < 0.8 * planned_at_half.sum()


def test_refinement_of_the_total_moves_trials_to_uncertain_strata(toy_campaign, tmp_path):
    sampling = {
        "kind": "statistical",
        "stratify": "bit",
        "margin": 0.01,
        "confidence": 0.95,
        "refine": True,
        "pilot": 10,
    }
    campaign = toy_campaign(sampling=sampling)
    store = run(campaign, tmp_path / "store")
    assert len(store.rounds()) > 1
    with Results.open(tmp_path / "store") as results:
        estimate = results.estimate(campaign.question)
        assert (estimate.high - estimate.low) / 2 <= 0.01
        counts = results.counts(campaign.question)
        rate = counts.faults["sdc"] / counts.n
        uncertain, sure = (rate > 0.2) & (rate < 0.8), rate == 0
        assert uncertain.any()
        assert sure.any()
        assert counts.n[uncertain].min() > 1.5 * counts.n[sure].mean()


def test_stopping_at_a_look(toy_campaign, tmp_path):
    stopping = {"criterion": "sdc-1", "half_width": 0.15}
    campaign = toy_campaign(sampling={"kind": "fixed", "n": 1500, "confidence": 0.95}, stopping=stopping)
    store = run(campaign, tmp_path / "store")
    rounds = store.rounds()
    assert [step.after.sum() for step in rounds] == [150 * (i + 1) for i in range(len(rounds))]
    assert 1 <= len(rounds) < 10
    with Results.open(tmp_path / "store") as results:
        counts = results.counts(campaign.question)
        rule = results.plan.rule
        assert rule.met(counts.faults["sdc"].sum(), counts.n.sum())
        last = counts.n.sum() - 150
        assert "confidence sequence" in results.estimate(campaign.question).stopping_rule
        assert last >= 0
    assert run(campaign, tmp_path / "store").rounds()[-1].number == rounds[-1].number


def test_plans_in_words(toy_campaign):
    sampling = {"kind": "statistical", "margin": 0.01, "confidence": 0.99, "stratify": "layer"}
    assert planned(toy_campaign(sampling=sampling)).in_words() == (
        "Statistical sample without replacement from 2 strata by layer: margin 1 % for the whole population at 99 % "
        "confidence, p = 0.5."
    )
    assert "5 faults act together" in planned(toy_campaign(simultaneous=5)).in_words()
