"""Two campaigns as one estimate, on a toy target that is judged on few inputs (cheap) and on many (exact)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from saboteur.campaign import Results
from saboteur.errors import CampaignError
from saboteur.faults import lists
from saboteur.reliability.hybrid import hybrid, paired, second_phase_faults
from saboteur.statistics.hybrid import Costs

CHEAP = {"kind": "tests.campaign.toy:ToyTarget", "inputs": 10}
EVERYTHING = {"kind": "exhaustive", "stratify": "network", "confidence": 0.95}
COSTS = Costs(cheap=1, exact=4)

Finished = Callable[..., Path]


def listed(path: Path, first: int | None = None) -> dict[str, object]:
    return {"kind": "list", "path": str(path), "first": first, "confidence": 0.95}


def verdicts(results: Results) -> dict[tuple, bool]:
    found = {}
    for table, outcome in results.outcomes(results.campaign.question):
        rows = lists.to_table(results.space, results.rows(table)).to_pylist()
        keys = [(row["site"], row["index"], row["variant"]) for row in rows]
        found |= dict(zip(keys, (outcome == "sdc").tolist(), strict=True))
    return found


def test_both_phases_are_counted_by_class(finished: Finished, tmp_path: Path) -> None:
    cheap = finished("cheap", target=CHEAP)
    with Results.open(cheap) as first:
        drawn = second_phase_faults(first, [0.1, 0.5, 1.0], tmp_path / "second.parquet")
    exact = finished("exact", sampling=listed(tmp_path / "second.parquet"))
    with Results.open(cheap) as first, Results.open(exact) as second:
        sample = paired(first, second)
        cheap_verdicts, exact_verdicts = verdicts(first), verdicts(second)
    assert sample.n.tolist() == drawn
    assert sample.first.sum() == 400
    assert sample.first[2] == sum(cheap_verdicts.values())
    assert drawn[2] == sample.first[2]
    assert drawn[0] == max(2, np.ceil(sample.first[0] / 10))
    assert sample.k.sum() == sum(exact_verdicts.values())
    assert sample.k[2] == sum(exact_verdicts[key] for key, sdc in cheap_verdicts.items() if sdc)


def test_the_combined_interval_holds_the_rate_of_the_whole_population(finished: Finished, tmp_path: Path) -> None:
    """The exact level on every fault is the truth; 1 of 5 faults of the cheap campaign ran at both."""
    with Results.open(finished("truth", sampling=EVERYTHING)) as everything:
        truth = np.mean(list(verdicts(everything).values()))
    cheap = finished("cheap", target=CHEAP)
    with Results.open(cheap) as first:
        second_phase_faults(first, [0.2, 0.2, 0.2], tmp_path / "second.parquet")
    exact = finished("exact", sampling=listed(tmp_path / "second.parquet"))
    with Results.open(cheap) as first, Results.open(exact) as second:
        for strategy in ("stratified", "difference", "regression"):
            found = hybrid(first, second, COSTS, strategy=strategy)
            assert found.estimate.low <= truth <= found.estimate.high
            assert found.estimate.population == first.space.size
        alone = hybrid(first, second, COSTS, strategy="exact_alone")
        both = hybrid(first, second, COSTS)
    assert both.estimate.high - both.estimate.low < alone.estimate.high - alone.estimate.low


def test_a_second_phase_drawn_by_class_needs_strata(finished: Finished, tmp_path: Path) -> None:
    cheap = finished("cheap", target=CHEAP)
    with Results.open(cheap) as first:
        second_phase_faults(first, [0.05, 0.05, 1.0], tmp_path / "second.parquet")
    exact = finished("exact", sampling=listed(tmp_path / "second.parquet"))
    with (
        Results.open(cheap) as first,
        Results.open(exact) as second,
        pytest.raises(CampaignError, match="strategy: regression needs a second phase drawn without regard"),
    ):
        hybrid(first, second, COSTS, strategy="regression")


def test_faults_of_another_name_are_matched(finished: Finished, tmp_path: Path) -> None:
    cheap = finished("cheap", target=CHEAP)
    with Results.open(cheap) as first:
        second_phase_faults(first, [0.2, 0.2, 0.2], tmp_path / "second.parquet")
    exact = finished("exact", sampling=listed(tmp_path / "second.parquet"))

    def renamed(table: pa.Table) -> pa.Table:
        return table.set_column(0, "site", pc.replace_substring(table["site"], pattern="at exact:", replacement=""))

    def misnamed(table: pa.Table) -> pa.Table:
        return table.set_column(0, "site", pc.binary_join_element_wise("at exact:", table["site"], ""))

    with Results.open(cheap) as first, Results.open(exact) as second:
        assert paired(first, second, match=renamed).n.tolist() == paired(first, second).n.tolist()
        with pytest.raises(CampaignError, match="in at exact:"):
            paired(first, second, match=misnamed)
        assert paired(first, second, match=lambda table: renamed(misnamed(table))).n.sum() == len(verdicts(second))


def test_faults_that_did_not_run_at_the_cheap_level_are_named(finished: Finished) -> None:
    cheap, exact = finished("cheap", target=CHEAP, seed=1), finished("exact", seed=2)
    with (
        Results.open(cheap) as first,
        Results.open(exact) as second,
        pytest.raises(CampaignError, match="did not run in the cheap campaign, the first bit_flip in"),
    ):
        paired(first, second)


def test_a_first_phase_of_unequal_rates_is_refused(finished: Finished) -> None:
    sampling = {"kind": "fixed", "n": 100, "n_for": "stratum", "stratify": "layer", "confidence": 0.95}
    cheap = finished("cheap", target=CHEAP, sampling=sampling)
    with (
        Results.open(cheap) as first,
        Results.open(cheap) as second,
        pytest.raises(CampaignError, match="sampled at different rates"),
    ):
        paired(first, second)


def test_wrong_shares_are_refused(finished: Finished, tmp_path: Path) -> None:
    with Results.open(finished("cheap", target=CHEAP)) as first:
        with pytest.raises(CampaignError, match="shares"):
            second_phase_faults(first, [0.5], tmp_path / "second.parquet")
        with pytest.raises(CampaignError, match="shares"):
            second_phase_faults(first, [0.5, 2, 1], tmp_path / "second.parquet")
