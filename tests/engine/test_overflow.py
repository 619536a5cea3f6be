"""Huge deviations: they travel divided, and only those that might leave the range of float32 are run again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.campaign.target import Resources
from saboteur.faults import BitFlip
from saboteur.faults.space import Faults
from saboteur.levels.software.engine.overflow import LARGEST, Amplification
from saboteur.levels.software.engine.replay import Replay
from saboteur.levels.software.engine.stages import LayerStage
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.criteria import Sdc1
from tests.engine.agreement import ENGINE_DEPENDENT, recorded
from tests.software import models
from tests.software.models import numbers

HIGHEST_EXPONENT_BIT = 30


class Network(nn.Module):
    """Two layers with batch norm, the second with a shortcut, an average and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.pool(x).flatten(1))


def opened(images: int = 12, side: int = 4) -> SoftwareTarget:
    model = models.filled(Network())
    for number, norm in enumerate((model.bn1, model.bn2)):
        norm.running_var.copy_(numbers(4, phase=number).square() + 0.5)
    generator = torch.Generator().manual_seed(1)
    for layer in (model.conv1, model.conv2, model.fc):
        layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.03)
    return SoftwareTarget(model, numbers(images, 2, side, side), resources=Resources(batch_size=5))


def flips_of_the_highest_exponent_bit(target: SoftwareTarget) -> tuple:
    space = target.space([SoftwareFault(where="weights", model=BitFlip())])
    place = [(region, element) for region, part in enumerate(space.regions) for element in range(part.elements)]
    region, element = np.array(place).T
    count = len(region)
    variant = np.full(count, HIGHEST_EXPONENT_BIT)
    key = np.arange(count, dtype=np.uint64)
    faults = Faults(
        key, np.arange(count), region.astype(np.int32), element, np.zeros(count, np.int32), variant.astype(np.int64)
    )
    return space, faults


@pytest.fixture
def run_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each call puts off to be run the plain way."""
    counts: list[int] = []
    add = Replay.add

    def counting(self: Replay, group, number, row) -> None:
        counts.append(len(number))
        add(self, group, number, row)

    monkeypatch.setattr(Replay, "add", counting)
    return counts


def test_verdicts_are_those_of_the_plain_engine_and_few_pairs_are_run_again(run_again: list[int]) -> None:
    target = opened()
    space, faults = flips_of_the_highest_exponent_bit(target)
    fast, _ = recorded(target, "exact", space, faults, [Sdc1()])
    assert target.engine.reason is None
    plain, _ = recorded(target, "plain", space, faults, [Sdc1()])
    for name in plain.column_names:
        if name not in ENGINE_DEPENDENT:
            assert fast[name].to_pylist() == plain[name].to_pylist(), name
    assert (plain["max_abs_error"].to_numpy() > 1e30).sum() > 50, "faults make huge outputs"
    pairs = faults.trials * 12
    assert plain["sdc:sdc-1"].to_numpy().sum() > 0.1 * pairs
    assert sum(run_again) < 0.1 * pairs


def test_sums_that_overflow_are_run_again(run_again: list[int]) -> None:
    target = opened(side=24)  # an average of 576 values, of which the sum is beyond float32 where each is not
    space, faults = flips_of_the_highest_exponent_bit(target)
    fast, _ = recorded(target, "exact", space, faults, [Sdc1()])
    plain, _ = recorded(target, "plain", space, faults, [Sdc1()])
    assert fast["nonfinite"].to_pylist() == plain["nonfinite"].to_pylist()
    assert fast["sdc:sdc-1"].to_pylist() == plain["sdc:sdc-1"].to_pylist()
    overflowing = plain["nonfinite"].to_numpy().sum()
    assert 0 < overflowing <= sum(run_again)


def amplification_of(target: SoftwareTarget, name: str) -> Amplification:
    """That of the stage which ends with the layer called ``name`` and what is folded into it."""
    engine = target.engine
    return next(
        stage.amplification
        for stage in engine.stages
        if isinstance(stage, LayerStage) and engine.graph.nodes[stage.mixing.layer].call.name == name
    )


@pytest.mark.parametrize("name", ["conv1", "conv2", "fc"])
def test_no_partial_sum_exceeds_the_amplification(name: str) -> None:
    target = opened()
    layer = target._model.get_submodule(name)
    found = amplification_of(target, name)
    channels = layer.weight.shape[1]
    shape = (200, channels, 4, 4) if isinstance(layer, nn.Conv2d) else (200, channels)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    alone = torch.zeros_like(x)
    alone[torch.arange(200), torch.arange(200) % channels] = x[torch.arange(200), torch.arange(200) % channels]
    for values, most in ((x, found.whole), (alone, found.channel[torch.arange(200) % channels])):
        values = values / torch.linalg.vector_norm(values.flatten(1), dim=1).reshape(-1, *[1] * (x.dim() - 1))
        with torch.no_grad():
            if isinstance(layer, nn.Conv2d):
                sums = F.conv2d(values.abs(), layer.weight.abs(), padding=1)
            else:
                sums = F.linear(values.abs(), layer.weight.abs())
        largest = sums.flatten(1).amax(1)
        assert (largest <= torch.as_tensor(most) * (1 + 1e-5)).all()


def test_the_range_is_that_of_float32() -> None:
    assert LARGEST < float(np.finfo(np.float32).max) < 2 * LARGEST
