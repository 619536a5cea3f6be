"""Compares two campaigns: fault by fault where they injected the same ones, else as independent samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from saboteur import statistics
from saboteur.campaign.results import Results
from saboteur.errors import CampaignError
from saboteur.faults import lists
from saboteur.outcomes.criteria import FaultCriterion
from saboteur.statistics import Difference, Estimate


@dataclass(frozen=True)
class Comparison:
    """The SDC rates of campaigns a and b under one criterion, and their difference a − b.

    Attributes:
        a, b: estimates over each campaign's population, in faults.
        faults: difference of the share of SDC faults.
        inferences: difference of the share of SDC inferences; ``None`` where it cannot be had.
        paired: number of faults that both injected; 0 when the samples are independent.
        only_a, only_b: of those, SDC in one campaign alone.
        p_value: exact McNemar test that neither is more critical; ``None`` when not paired.
        method: how the differences were computed.
    """

    criterion: str
    confidence: float
    a: Estimate
    b: Estimate
    faults: Difference
    inferences: Difference | None
    paired: int
    only_a: int
    only_b: int
    p_value: float | None
    method: str


def compare(a: Results, b: Results, criterion: str | None = None) -> Comparison:
    """Compare two campaigns.

    Where both injected the same single faults (same site, index, step, model and variant: for instance one
    fault list on two models or formats), they are compared pair by pair, which is far sharper.

    Args:
        a: one campaign's results.
        b: the other's.
        criterion: the name of a criterion of both; by default the question of ``a``.

    Raises:
        CampaignError: when one of them has no such criterion.
    """
    name = criterion or a.campaign.question.name
    judge_a, judge_b = a.campaign.criterion(name), b.campaign.criterion(name)
    confidence = a.campaign.sampling.confidence
    estimate_a, estimate_b = a.estimate(judge_a), b.estimate(judge_b)
    by_inference = not isinstance(judge_a, FaultCriterion)
    joined = _single_faults(a, name).join(
        _single_faults(b, name), _KEYS, join_type="inner", left_suffix=" a", right_suffix=" b"
    )
    paired = len(joined)
    if paired == 0 or paired < 0.5 * min(estimate_a.n, estimate_b.n):
        return Comparison(
            criterion=name,
            confidence=confidence,
            a=estimate_a,
            b=estimate_b,
            faults=difference_of(estimate_a, estimate_b),
            inferences=difference_of(a.estimate(judge_a, unit="inferences"), b.estimate(judge_b, unit="inferences"))
            if by_inference
            else None,
            paired=0,
            only_a=0,
            only_b=0,
            p_value=None,
            method="independent samples: difference of the estimates, intervals joined as by Newcombe (1998)",
        )
    sdc_a, sdc_b = (joined[f"sdc {side}"].to_numpy() for side in "ab")
    both, only_a = int((sdc_a & sdc_b).sum()), int((sdc_a & ~sdc_b).sum())
    only_b = int((~sdc_a & sdc_b).sum())
    inferences = None
    if by_inference:
        share_a, share_b = (joined[f"share {side}"].to_numpy() for side in "ab")
        difference = share_a - share_b
        inferences = statistics.paired_mean_difference(difference.sum(), (difference**2).sum(), paired, confidence)
    return Comparison(
        criterion=name,
        confidence=confidence,
        a=estimate_a,
        b=estimate_b,
        faults=statistics.paired_difference(both, only_a, only_b, paired - both - only_a - only_b, confidence),
        inferences=inferences,
        paired=paired,
        only_a=only_a,
        only_b=only_b,
        p_value=float(statistics.mcnemar(only_a, only_b)),
        method=f"paired over the {paired} faults that both injected, each counting once",
    )


_KEYS = ["site", "index", "step", "model", "variant"]


def _single_faults(results: Results, criterion: str) -> pa.Table:
    """Site and outcome of every valid trial of one fault."""
    judge = results.campaign.criterion(criterion)
    parts = []
    for table, found in results.outcomes(judge):
        keep = (found != "invalid") & table["region"].is_valid().to_numpy()
        table = table.filter(pa.array(keep))
        site = lists.to_table(results.space, results.rows(table)).select(_KEYS)
        x = np.zeros(len(table)) if isinstance(judge, FaultCriterion) else table[f"sdc:{criterion}"].to_numpy()
        site = site.append_column("sdc", pa.array(found[keep] == "sdc"))
        parts.append(site.append_column("share", pa.array(x / table["inferences"].to_numpy())))
    if not parts:
        raise CampaignError(f"store: {results.store.path} holds no finished work unit yet")
    return pa.concat_tables(parts)


def difference_of(a: Estimate, b: Estimate) -> Difference:
    """Difference a − b of independent samples, from their intervals.

    Newcombe, Statistics in Medicine 1998, 17:873, method 10.
    """
    best = np.asarray(a.best - b.best)
    low = best - np.hypot(a.best - a.low, b.high - b.best)
    high = best + np.hypot(a.high - a.best, b.best - b.low)
    return Difference(low, best, high)
