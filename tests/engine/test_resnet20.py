"""The exact engine on the published ResNet-20, outcome by outcome."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples import resnet20

from saboteur.campaign.target import Resources
from saboteur.faults.models import BitFlip, StuckAt
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from tests.engine.agreement import assert_agree


def resnet(shared_data: Path, images: int) -> SoftwareTarget:
    x, y = (part[:images] for part in resnet20.data())
    return SoftwareTarget(resnet20.model(), x, y, resources=Resources(batch_size=32))


def test_a_few_faults_everywhere(shared_data: Path) -> None:
    target = resnet(shared_data, 40)
    specs = [
        SoftwareFault(where="weights", model=BitFlip()),
        SoftwareFault(where="activations", model=StuckAt()),
        SoftwareFault(where="operators", model=BitFlip()),
    ]
    table = assert_agree(target, specs, 40)
    assert target.engine.reason is None
    decided = table["bounded"].to_numpy() + table["identical"].to_numpy()
    assert decided.sum() > 0.8 * 40 * 40


@pytest.mark.slow
@pytest.mark.parametrize("where", ["weights", "activations", "operators", "inputs"])
def test_ten_thousands_of_pairs(shared_data: Path, where: str) -> None:
    target = resnet(shared_data, 64)
    assert_agree(target, [SoftwareFault(where=where, model=BitFlip())], 400)
