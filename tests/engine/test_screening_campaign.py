"""A campaign under the screened engine: the audit is in its results and decides over its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saboteur.campaign import Campaign, Results, run
from saboteur.statistics import upper_bound

FILE = """
name: screened
target: {{kind: pytorch, workload: digits-mlp6, inputs: 90, engine: {engine}, audit_rate: 0.05}}
faults: {{where: weights, model: bit_flip}}
sampling: {{kind: fixed, n: 200, confidence: 0.95}}
criteria: [sdc-1, accuracy_drop]
requirement: {{criterion: sdc-1, at_most: 0.2, unit: inferences}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    stores = {engine: tmp_path_factory.mktemp(engine) / "store" for engine in ("exact", "screened")}
    for engine, path in stores.items():
        run(Campaign.from_yaml(FILE.format(engine=engine)), path)
    return stores


def test_estimates_are_those_of_the_exact_engine(finished: dict[str, Path]) -> None:
    found = []
    for path in finished.values():
        with Results.open(path) as results:
            question = results.campaign.question
            found.append(
                [results.estimate(question, what, unit) for what in ("sdc", "due") for unit in ("faults", "inferences")]
            )
    assert found[0] == found[1]


def test_the_bound_on_wrong_predictions_is_that_of_the_audit(finished: dict[str, Path]) -> None:
    with Results.open(finished["screened"]) as results:
        counts = results.counts(results.campaign.question)
        assert counts.audit_misses.sum() == 0
        assert counts.audited.sum() == pytest.approx(0.05 * 200 * 90, rel=0.15)
        assert counts.screened.sum() > 0.8 * 200 * 90
        assert results.wrong_rate() == pytest.approx(1 - 0.05 ** (1 / counts.audited.sum()))
    with Results.open(finished["exact"]) as results:
        assert results.wrong_rate() is None


@pytest.mark.parametrize(("allowed", "verdict"), [(0.01, "met"), (1e-4, "open")])
def test_a_verdict_needs_an_audit_that_suffices(
    finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch, allowed: float, verdict: str
) -> None:
    with Results.open(finished["screened"]) as results:
        campaign = results.campaign.model_copy(update={"allowed_wrong_rate": allowed})
        assert campaign.identity("f") == results.campaign.identity("f")
        monkeypatch.setattr(Results, "campaign", campaign)
        assert results.verdict()[0] == verdict


def test_misses_count_against_the_verdict(finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Results.open(finished["screened"]) as results:
        counts = results.counts(results.campaign.question)
        monkeypatch.setattr(Results, "campaign", results.campaign.model_copy(update={"allowed_wrong_rate": 0.01}))
        assert results.verdict(counts)[0] == "met"
        counts.audit_misses[0] = 5
        assert results.wrong_rate(counts) == upper_bound(5, counts.audited.sum(), 0.95) > 0.01
        assert results.verdict(counts)[0] == "open"


def test_predictions_without_any_audit_are_worth_nothing(finished: dict[str, Path]) -> None:
    with Results.open(finished["screened"]) as results:
        counts = results.counts(results.campaign.question)
        counts.audited[:] = 0
        assert results.wrong_rate(counts) == 1.0
        counts.screened[:] = 0
        assert results.wrong_rate(counts) is None
        assert np.array_equal(counts.inferences, [200 * 90])
