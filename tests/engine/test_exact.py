"""The exact engine records what the plain engine does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.faults.models import BitFlip, Dead, FaultModel, Noise, RandomValue, StuckAt, StuckValue
from saboteur.levels.software import injection
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from tests.engine.agreement import assert_agree, drawn, recorded
from tests.engine.networks import Network, networks

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
    specs = [SoftwareFault(where=where, model=BitFlip()) for where in ("parameters", "activations", "inputs")]
    space = target.space(specs)
    faults = drawn(space, 60)
    for inputs in (None, np.stack([np.sort((np.arange(7) * 17 + trial) % 130) for trial in range(60)])):
        fast, fast_pairs = recorded(target, "exact", space, faults, inputs=inputs, keep_outputs=True)
        plain, plain_pairs = recorded(target, "plain", space, faults, inputs=inputs, keep_outputs=True)
        assert fast.equals(plain)
        assert fast_pairs.drop(["output"]).equals(plain_pairs.drop(["output"]))
        bits = [pairs["output"].combine_chunks().flatten().to_numpy().tobytes() for pairs in (fast_pairs, plain_pairs)]
        assert bits[0] == bits[1]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
@pytest.mark.parametrize("where", ["weights", "activations", "operators", "inputs"])
@pytest.mark.parametrize("name", ["digits-cnn", "digits-mlp6", "digits-lenet7"])
def test_every_fault_model(name: str, where: str, model: FaultModel) -> None:
    if where == "operators" and name != "digits-lenet7":
        pytest.skip("it calls no functions")
    target = opened(name)
    table = assert_agree(target, [SoftwareFault(where=where, model=model)], 60)
    assert target.engine.reason is None
    assert table["bounded"].to_numpy().sum() > 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(network=networks, where=st.sampled_from(["weights", "parameters", "activations", "operators", "inputs"]))
def test_random_networks(network: Network, where: str) -> None:
    images = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    target = SoftwareTarget(network, images, resources=Resources(batch_size=4))
    assert_agree(target, [SoftwareFault(where=where, model=BitFlip())], 40)
    assert target.engine.reason is None


@settings(max_examples=25, deadline=None, derandomize=True)
@given(network=networks, where=st.sampled_from(["biases", "buffers", "parameters"]), model=st.sampled_from(MODELS))
def test_biases_and_batch_norms(network: Network, where: str, model: FaultModel) -> None:
    if where == "buffers" and next(network.buffers(), None) is None:
        where = "biases"
    images = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    target = SoftwareTarget(network, images, resources=Resources(batch_size=4))
    assert_agree(target, [SoftwareFault(where=where, model=model)], 40)


@pytest.mark.parametrize("where", ["biases", "buffers", "parameters"])
def test_biases_and_batch_norms_have_a_fast_way(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(["conv_bn_relu", "projection", "residual"], flattened=False, seed=4)
    images = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    target = SoftwareTarget(network, images, resources=Resources(batch_size=10))
    space = target.space([SoftwareFault(where=where, model=BitFlip())])
    faults = drawn(space, 200)
    plain, _ = recorded(target, "plain", space, faults)
    monkeypatch.setattr(injection, "inject_one", None)
    fast, _ = recorded(target, "exact", space, faults)
    assert fast["sdc:sdc-1"].to_pylist() == plain["sdc:sdc-1"].to_pylist()
    assert fast["nonfinite"].to_pylist() == plain["nonfinite"].to_pylist()
    assert sum(plain["sdc:sdc-1"].to_pylist()) > 20
    assert sum(fast["bounded"].to_pylist()) > 200
