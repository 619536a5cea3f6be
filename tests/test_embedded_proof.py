"""On the embedded CNN: an exhaustive campaign equals a loop that flips bits by hand, and samples cover its truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saboteur import statistics, workloads
from saboteur.campaign import Campaign, Results, Session, run

SAMPLING = {"kind": "exhaustive", "stratify": "layer", "confidence": 0.95}


def campaign(**changes: object) -> Campaign:
    """All single bit flips in the weights of the first convolution: 72 weights of 32 bits."""
    fields = {
        "name": "conv1",
        "target": {"kind": "pytorch", "workload": "digits-cnn"},
        "faults": [{"where": "weights", "layers": ["conv1"], "model": "bit_flip"}],
        "sampling": SAMPLING,
        "criteria": ["sdc-1", {"kind": "accuracy_drop", "tolerance": 0.02}],
        "resources": {"unit_trials": 256},
    }
    return Campaign.read(fields | changes)


@pytest.fixture(scope="module")
def exhaustive(tmp_path_factory) -> dict[tuple[int, int], dict]:
    """The observations of every fault, by (element, bit)."""
    path = tmp_path_factory.mktemp("exhaustive") / "store"
    run(campaign(), path)
    with Results.open(path) as results:
        return {(row["element"], row["bit"]): row for table in results.tables() for row in table.to_pylist()}


@torch.inference_mode()
def by_hand(weight: torch.Tensor, element: int, bit: int, workload: workloads.Workload) -> tuple[int, int, int]:
    """Non-finite, changed and right answers with one bit of one weight flipped."""
    golden = workload.model(workload.inputs).argmax(1)
    words = weight.view(-1).view(torch.int32)
    mask = -(2**31) if bit == 31 else 1 << bit
    words[element] ^= mask
    outputs = workload.model(workload.inputs)
    words[element] ^= mask
    finite = outputs.isfinite().all(1)
    top1 = outputs.argmax(1)
    return (
        int((~finite).sum()),
        int((top1 != golden)[finite].sum()),
        int((top1 == workload.labels)[finite].sum()),
    )


def test_an_exhaustive_campaign_equals_a_loop_by_hand(exhaustive):
    assert len(exhaustive) == 72 * 32
    workload = workloads.load("digits-cnn")
    weight = workload.model.conv1.weight.detach()
    for element in range(72):
        for bit in (0, 13, 22, *range(23, 32)):
            row = exhaustive[element, bit]
            observed = (row["nonfinite"], row["sdc:sdc-1"], row["correct"])
            assert observed == by_hand(weight, element, bit, workload), (element, bit)


def test_samples_cover_the_exhaustive_truth(exhaustive):
    """500 campaigns of 150 faults with other seeds: their 95 % intervals miss the truth about as often as stated."""
    critical = {fault: row["sdc:sdc-1"] > 0 for fault, row in exhaustive.items()}
    critical_inferences = {fault: row["sdc:sdc-1"] for fault, row in exhaustive.items()}
    truth = np.mean(list(critical.values()))
    truth_inferences = np.mean(list(critical_inferences.values())) / 360
    missed = missed_inferences = 0
    with Session.open(campaign()) as session:
        space, stratum = session.space, session.sampler.strata[0]
        sampler = session.sampler
        for seed in range(500):
            faults = type(sampler)(campaign(seed=seed), space).faults(0, 0, 150)
            drawn = list(zip(faults.element.tolist(), space.bits(faults.region, faults.variant).tolist(), strict=True))
            assert len(set(drawn)) == 150
            estimate = statistics.proportion(sum(critical[fault] for fault in drawn), 150, stratum.size, 0.95)
            missed += not estimate.low <= truth <= estimate.high
            x = np.array([critical_inferences[fault] for fault in drawn])
            clustered = statistics.clustered([x.sum()], [(x**2).sum()], [150], 360, [stratum.size], 0.95)
            missed_inferences += not clustered.low <= truth_inferences <= clustered.high
    # A true miss rate of 5 % gives more than 41 misses of 500 once in a thousand times.
    assert missed <= 41
    assert missed_inferences <= 41
