"""Where the exact engine has no faster way it says so, and gives the plain engine's results."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.faults.models import BitFlip
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from tests.engine.agreement import assert_agree


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y if y.sum() > -1e9 else y * 2


def test_a_model_that_cannot_be_traced_runs_the_plain_way(caplog: pytest.LogCaptureFixture) -> None:
    target = SoftwareTarget(Branching().eval(), torch.randn(9, 6), resources=Resources(batch_size=4))
    with caplog.at_level(logging.WARNING):
        table = assert_agree(target, [SoftwareFault(where="weights", model=BitFlip())], 30)
    assert "control flow" in str(target.engine.reason)
    assert sum("the plain way" in record.message for record in caplog.records) == 1
    assert table["bounded"].to_numpy().sum() == 0


class Overwrites(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        nn.functional.relu(y, inplace=True)
        return y + 1


def test_a_result_that_is_overwritten_unseen_runs_the_plain_way() -> None:
    target = SoftwareTarget(Overwrites().eval(), torch.randn(9, 6), resources=Resources(batch_size=4))
    assert_agree(target, [SoftwareFault(where="weights", model=BitFlip())], 30)
    assert "golden outputs" in str(target.engine.reason)


@pytest.mark.parametrize("name", ["digits-gru", "digits-lstm", "digits-cnn-int8"])
def test_models_with_opaque_layers(name: str) -> None:
    workload = workloads.load(name)
    resources = Resources(batch_size=32)
    target = SoftwareTarget(workload.model, workload.inputs[:70], workload.labels[:70], resources=resources)
    specs = [SoftwareFault(where="parameters", model=BitFlip()), SoftwareFault(where="activations", model=BitFlip())]
    if name.endswith("int8"):
        specs = specs[1:]
    assert_agree(target, specs, 40)
    assert target.engine.reason is None


def test_emulated_weight_formats_keep_the_fast_way() -> None:
    workload = workloads.load("digits-cnn")
    resources = Resources(batch_size=16)
    target = SoftwareTarget(
        workload.model, workload.inputs[:40], workload.labels[:40], weights_format="int8", resources=resources
    )
    table = assert_agree(target, [SoftwareFault(where="weights", model=BitFlip())], 60)
    assert table["bounded"].to_numpy().sum() > 0


def test_small_memory_gives_the_same_results() -> None:
    workload = workloads.load("digits-cnn")
    tables = []
    for memory_mb in (64, None):
        resources = Resources(batch_size=20, memory_mb=memory_mb)
        target = SoftwareTarget(workload.model, workload.inputs, workload.labels, resources=resources)
        if memory_mb is not None:
            target.engine._inputs_per_chunk = 20
            target.engine._kept_chunks = 1
        table = assert_agree(target, [SoftwareFault(where="weights", model=BitFlip())], 30)
        tables.append(table.drop(["max_abs_error", "confidence_change"]))
        kept = [part for chunk in target.engine._chunks.values() for part in (chunk.values, chunk._rows, chunk._padded)]
        assert sum(value.nbytes for part in kept for value in part.values()) <= resources.memory_bytes / 2
    assert tables[0]["sdc:sdc-1"].to_pylist() == tables[1]["sdc:sdc-1"].to_pylist()
    assert np.array_equal(tables[0]["bounded"].to_numpy(), tables[1]["bounded"].to_numpy())
