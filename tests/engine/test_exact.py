"""The exact engine records what the plain engine does."""

from __future__ import annotations

import numpy as np
import pytest

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.faults.models import BitFlip, Dead, Noise, RandomValue, StuckAt, StuckValue
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from tests.engine.agreement import assert_agree, drawn, recorded

MODELS = [
    BitFlip(),
    BitFlip(count=2),
    StuckAt(),
    StuckValue(values=(0.75, -2.0)),
    Dead(),
    RandomValue(),
    Noise(additive=0.5),
]


def opened(name: str, inputs: int = 130, batch_size: int = 50) -> SoftwareTarget:
    workload = workloads.load(name)
    return SoftwareTarget(
        workload.model, workload.inputs[:inputs], workload.labels[:inputs], resources=Resources(batch_size=batch_size)
    )


@pytest.mark.parametrize("name", ["digits-cnn", "digits-mlp6", "digits-lenet7"])
def test_kept_outputs_are_those_of_the_plain_engine_bit_for_bit(name: str) -> None:
    target = opened(name)
    space = target.space([SoftwareFault(where="parameters", model=BitFlip())])
    faults = drawn(space, 60)
    for inputs in (None, np.stack([np.sort((np.arange(7) * 17 + trial) % 130) for trial in range(60)])):
        fast, fast_pairs = recorded(target, "exact", space, faults, inputs=inputs, keep_outputs=True)
        plain, plain_pairs = recorded(target, "plain", space, faults, inputs=inputs, keep_outputs=True)
        assert fast.equals(plain)
        assert fast_pairs.equals(plain_pairs)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
@pytest.mark.parametrize("name", ["digits-cnn", "digits-mlp6", "digits-lenet7"])
def test_every_fault_model_in_weights(name: str, model) -> None:
    target = opened(name)
    table = assert_agree(target, [SoftwareFault(where="weights", model=model)], 60)
    assert target.engine.reason is None
    assert table["bounded"].to_numpy().sum() > 0
