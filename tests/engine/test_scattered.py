"""Trials of several faults, of faults in whole channels, in layers that are called again, and the like.

Each runs the fast way, and records what the plain engine does.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.faults.models import BitFlip, Dead, FaultModel, Noise, RandomValue, StuckAt
from saboteur.levels.software import injection
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from tests.engine.agreement import assert_agree, drawn, recorded
from tests.engine.networks import Network, networks


def opened(name: str, inputs: int = 70, batch_size: int = 32, **settings: object) -> SoftwareTarget:
    workload = workloads.load(name)
    resources = Resources(batch_size=batch_size)
    return SoftwareTarget(
        workload.model, workload.inputs[:inputs], workload.labels[:inputs], resources=resources, **settings
    )


def assert_fast(target: SoftwareTarget, specs: Sequence[SoftwareFault], trials: int, rows: int = 1) -> None:
    """Nothing is left to the plain engine, verdicts and, where they are kept, bits are its own."""
    assert_agree(target, specs, trials, rows=rows)
    space = target.space(specs)
    faults = drawn(space, trials, rows=rows)
    fast, fast_pairs = recorded(target, "exact", space, faults, keep_outputs=True)
    plain, plain_pairs = recorded(target, "plain", space, faults, keep_outputs=True)
    assert fast.equals(plain)
    assert fast_pairs.drop(["output"]).equals(plain_pairs.drop(["output"]))
    bits = [pairs["output"].combine_chunks().flatten().to_numpy().tobytes() for pairs in (fast_pairs, plain_pairs)]
    assert bits[0] == bits[1]
    left: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        own = injection.inject_one

        def counted(*args: object) -> None:
            left.append(args[4])
            own(*args)

        patched.setattr(injection, "inject_one", counted)
        recorded(target, "exact", space, faults)
    assert left == []
    assert target.engine.reason is None


@pytest.mark.parametrize("where", ["weights", "parameters", "activations", "inputs"])
@pytest.mark.parametrize("name", ["digits-cnn", "digits-mlp6", "digits-lenet7"])
def test_several_faults_in_a_trial(name: str, where: str) -> None:
    assert_fast(opened(name), [SoftwareFault(where=where, model=BitFlip())], 40, rows=3)


def test_faults_in_weights_and_signals_at_once() -> None:
    specs = [SoftwareFault(where=where, model=StuckAt()) for where in ("parameters", "activations", "inputs")]
    assert_fast(opened("digits-cnn"), specs, 60, rows=4)


@pytest.mark.parametrize("model", [BitFlip(), Dead(), RandomValue(low=-1, high=1), Noise(additive=0.3)])
@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_whole_channels_and_layers(granularity: str, model: FaultModel) -> None:
    specs = [SoftwareFault(where=where, granularity=granularity, model=model) for where in ("activations", "inputs")]
    assert_fast(opened("digits-cnn"), specs, 25)


def test_connections() -> None:
    assert_fast(opened("digits-cnn"), [SoftwareFault(where="connections", model=BitFlip())], 60)


@pytest.mark.parametrize("activity", [0.3, 0.8])
@pytest.mark.parametrize("rows", [1, 3])
def test_intermittent_faults(rows: int, activity: float) -> None:
    specs = [
        SoftwareFault(where="activations", model=BitFlip(), duration="intermittent", activity=activity),
        SoftwareFault(where="weights", model=BitFlip(), duration="intermittent", activity=0.5),
        SoftwareFault(where="weights", model=StuckAt(), duration="permanent"),
    ]
    assert_fast(opened("digits-cnn"), specs, 60, rows=rows)


@pytest.mark.parametrize("fmt", ["float16", "int8", "float8_e4m3", "16b_rb10"])
def test_emulated_formats(fmt: str) -> None:
    target = opened("digits-cnn", activations_format=fmt)
    specs = [SoftwareFault(where=where, model=BitFlip()) for where in ("weights", "activations", "inputs")]
    assert_fast(target, specs, 60)
    assert_fast(target, specs, 20, rows=2)


@pytest.mark.parametrize("where", ["hidden_state", "parameters", "activations"])
@pytest.mark.parametrize("name", ["digits-gru", "digits-lstm"])
def test_recurrent_layers(name: str, where: str) -> None:
    assert_fast(opened(name), [SoftwareFault(where=where, model=BitFlip())], 40)


def test_cell_states_and_states_hit_twice() -> None:
    specs = [SoftwareFault(where=where, model=BitFlip()) for where in ("cell_state", "hidden_state")]
    assert_fast(opened("digits-lstm"), specs, 30, rows=2)


@pytest.mark.parametrize("where", ["parameters", "activations"])
def test_integer_networks(where: str) -> None:
    assert_fast(opened("digits-cnn-int8"), [SoftwareFault(where=where, model=BitFlip())], 40)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(network=networks, where=st.sampled_from(["parameters", "activations", "operators"]), rows=st.integers(1, 3))
def test_random_networks(network: Network, where: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    target = SoftwareTarget(network, torch.randn(9, 3, 8, 8, generator=generator), resources=Resources(batch_size=4))
    if where == "operators" and not list(target._sites("operators", "element")):
        return
    assert_agree(target, [SoftwareFault(where=where, model=BitFlip())], 25, rows=rows)
