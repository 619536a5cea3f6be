"""Allowances for rounding: cases by hand, against double precision and other orders of sums, and how much is used."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saboteur.campaign.target import Resources
from saboteur.faults.models import BitFlip
from saboteur.levels.software.engine import rounding
from saboteur.levels.software.engine.blocks import Block
from saboteur.levels.software.engine.exact import ExactEngine
from saboteur.levels.software.engine.rounding import DEVIATIONS, UNIT, Allowance, Rounding, norm_bound, sample_size
from saboteur.levels.software.spec import SoftwareFault, Where
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.criteria import Sdc1
from saboteur.outcomes.recorder import Recorder
from tests.engine.agreement import assert_agree, drawn, recorded
from tests.engine.networks import Network, networks
from tests.software.models import filled

LEAST_UNDERSTOOD = ("conv", "conv_bn", "conv_bn_relu", "relu_in_place", "max_pool", "avg_pool", "residual")
LARGEST_SHARE_USED = 0.1


def opened(model: nn.Module, inputs: Tensor) -> tuple[SoftwareTarget, ExactEngine]:
    target = SoftwareTarget(model, inputs, resources=Resources(batch_size=len(inputs)))
    assert target.engine.reason is None
    return target, target.engine


def analysed(model: nn.Module, inputs: Tensor) -> Allowance:
    """The allowance of the analysis alone, with all inputs in the sample."""
    target, engine = opened(model, inputs)
    with engine.runner.prepared():
        chunk = engine._chunk(range(len(inputs)), Recorder(target.golden(), [Sdc1()], 1))
        return Rounding(engine.graph, engine.operators, [inputs]).allowance(chunk)


def linear(*weights: list[list[float]]) -> nn.Sequential:
    layers = [nn.Linear(len(rows[0]), len(rows), bias=False) for rows in weights]
    for layer, rows in zip(layers, weights, strict=True):
        layer.weight.data = torch.tensor(rows)
    return nn.Sequential(*layers).eval()


def test_one_inner_product_by_hand() -> None:
    """|w|·|x| = 1·3 + 2·4 + 2·0 = 11; three terms; ‖w‖ = 3 and ‖x‖ = 5."""
    allowance = analysed(linear([[1.0, -2.0, 2.0]]), torch.tensor([[3.0, 4.0, 0.0]]))
    assert float(allowance.error[0]) == pytest.approx(9 * 2**-24 * math.sqrt(8 * 3) * 11, rel=1e-6)
    assert float(allowance.growing[0]) == pytest.approx(9 * 2**-24 * math.sqrt(2 * 3) * 3 * 5, rel=1e-6)


def test_two_layers_by_hand() -> None:
    """h = (3, −4), v = (3, 4) with 2 terms and derivatives (2, 1); y = 2h₁ + h₂, v = 10 with 2 terms."""
    allowance = analysed(linear([[1.0, 0.0], [0.0, -1.0]], [[2.0, 1.0]]), torch.tensor([[3.0, 4.0]]))
    near = 8 * 2 * ((2 * 3) ** 2 + (1 * 4) ** 2) + 8 * 2 * 10**2
    far = 2 * 2 * (2 * 1 * 5) ** 2 + 2 * 2 * (1 * math.sqrt(5) * 5) ** 2
    assert float(allowance.error[0]) == pytest.approx(9 * 2**-24 * math.sqrt(near), rel=1e-6)
    assert float(allowance.growing[0]) == pytest.approx(9 * 2**-24 * math.sqrt(far), rel=1e-6)


def test_other_inputs_scale_with_their_norm_and_get_no_less_than_what_is_measured() -> None:
    allowance = analysed(linear([[1.0, -2.0, 2.0]]), torch.tensor([[3.0, 4.0, 0.0], [30.0, 40.0, 0.0]]))
    assert torch.allclose(allowance.error[1], 10 * allowance.error[0])
    raised = allowance.at_least(float(allowance.error[1]) / 2)
    assert raised.error.tolist() == [float(allowance.error[1]) / 2, float(allowance.error[1])]
    of = Allowance(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])).of(torch.tensor([1, 0, 1]), torch.ones(3) / 2)
    assert of.tolist() == [12.0, 6.0, 12.0]


def test_the_probability_of_failing_is_what_the_documentation_says() -> None:
    of_one_output = 2 * math.exp(-(DEVIATIONS**2) / 2)
    assert of_one_output == pytest.approx(5e-18, rel=0.05)
    assert of_one_output * 1.7e8 * 10 < 1e-8


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 600), st.integers(0, 2**31), st.floats(-30, 30), st.booleans())
def test_inner_products_in_any_order_of_summation(terms: int, seed: int, mean: float, pairwise: bool) -> None:
    rng = np.random.default_rng(seed)
    products = (rng.standard_normal(terms).astype(np.float32), (rng.standard_normal(terms) + mean).astype(np.float32))
    exact = math.fsum(w * x for w, x in zip(*(part.astype(np.float64) for part in products), strict=True))
    v = float(np.abs(products[0].astype(np.float64) * products[1]).sum())
    rounded = (products[0] * products[1])[rng.permutation(terms)]
    while pairwise and len(rounded) > 1:
        rounded = np.append(rounded, np.zeros(len(rounded) % 2, np.float32)).reshape(-1, 2).sum(1, dtype=np.float32)
    result = float(np.cumsum(rounded, dtype=np.float32)[-1])
    assert abs(result - exact) <= DEVIATIONS * UNIT * math.sqrt(terms) * v


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.booleans())
def test_norms_of_matrices_without_negative_values(rows: int, columns: int, seed: int, sparse: bool) -> None:
    matrix = torch.rand(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix = matrix * (matrix > 0.7) if sparse else matrix
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    found = norm_bound(matrix)
    assert exact * (1 - 1e-12) <= found
    assert sparse or found <= exact * (1 + 1e-6)


def test_norms_by_hand() -> None:
    assert norm_bound(torch.ones(2, 2)) == pytest.approx(2)
    assert norm_bound(torch.tensor([[3.0, 0.0], [0.0, 4.0]])) == pytest.approx(4)
    assert norm_bound(torch.zeros(2, 2)) == 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    network=st.builds(
        Network,
        st.lists(st.sampled_from(LEAST_UNDERSTOOD), min_size=1, max_size=6),
        st.booleans(),
        st.integers(0, 2**31),
    ),
    relative=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    one_value=st.booleans(),
)
def test_both_orders_of_sums_stay_near_double_precision(network: Network, relative: float, one_value: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(12, 3, 8, 8, generator=generator)
    allowance = analysed(network, images)
    assert bool((allowance.error > 0).all())
    direction = torch.zeros_like(images)
    if one_value:
        direction[:, 1, 3, 4] = 1.0
    else:
        direction = torch.randn(images.shape, generator=generator)
    size = relative * images.flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1)
    faulty = images + size[:, None, None, None] * direction
    _, engine = opened(network, images)
    with torch.inference_mode():
        before, after = engine.graph.run([images]), engine.graph.run([faulty])
        growth = _growth(before, after)
        exact = copy.deepcopy(network).double()(faulty.double())
        reordered = _with_channels_last(network)(faulty.contiguous(memory_format=torch.channels_last))
        for outputs in (after[engine.graph.output], reordered):
            apart = (outputs - exact).abs().amax(1)
            assert bool((apart <= LARGEST_SHARE_USED * allowance.of(torch.arange(12), growth)).all())


def _growth(before: dict, after: dict) -> Tensor:
    """The largest relative deviation of any result."""
    growth = torch.zeros(12, dtype=torch.float64)
    for index, value in before.items():
        if isinstance(value, Tensor) and value.dim() > 1:
            usual = value.flatten(1).double().norm(dim=1).clamp(min=1e-30)
            growth = torch.maximum(growth, (after[index] - value).flatten(1).double().norm(dim=1) / usual)
    return growth


def _with_channels_last(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def used_shares(target: SoftwareTarget, where: Where, trials: int) -> list[float]:
    """Of each pair that the exact engine runs to the end: |its output − the plain engine's| over the allowance."""
    space = target.space([SoftwareFault(where=where, model=BitFlip())])
    faults = drawn(space, trials)
    golden = target.golden()
    shares: list[float] = []
    _, kept = recorded(target, "plain", space, faults, keep_outputs=True)
    assert kept is not None
    place = zip(kept["trial"].to_pylist(), kept["input"].to_pylist(), strict=True)
    plain = dict(zip(place, np.array(kept["output"].to_pylist()).reshape(len(kept), -1), strict=True))
    judge = Block.judge

    def watching(block: Block, pairs, outputs: Tensor) -> None:
        allowed = block.allowance.of(pairs.row, pairs.growth).numpy()
        trials_, rows = block.group.trial[pairs.trial.numpy()], pairs.row.numpy() + block.chunk.inputs.start
        for trial, row, output, most in zip(trials_.tolist(), rows.tolist(), outputs.numpy(), allowed, strict=True):
            other = plain.get((trial, row), golden.outputs[row])
            if np.isfinite(other).all() and np.isfinite(output).all():
                shares.append(float(np.abs(output.astype(np.float64) - other).max() / most))
        judge(block, pairs, outputs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Block, "judge", watching)
        recorded(target, "exact", space, faults, [Sdc1()])
    return shares


@settings(max_examples=25, deadline=None, derandomize=True)
@given(network=networks, where=st.sampled_from(["parameters", "activations", "inputs"]))
def test_little_of_the_allowance_is_ever_used(network: Network, where: Where) -> None:
    images = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    target = SoftwareTarget(network, images, resources=Resources(batch_size=4))
    assert max(used_shares(target, where, 40), default=0.0) < LARGEST_SHARE_USED


class _Detached(nn.Module):
    """A model that cannot be differentiated all the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).detach())


def test_without_derivatives_the_measured_allowance_is_left() -> None:
    model, inputs = filled(_Detached()), torch.randn(20, 6, generator=torch.Generator().manual_seed(3))
    allowance = analysed(model, inputs)
    assert allowance.error.tolist() == allowance.growing.tolist() == [0.0] * 20
    target, engine = opened(model, inputs)
    assert_agree(target, [SoftwareFault(where="weights", model=BitFlip())], 40)
    (taken,) = engine._allowances.values()
    largest = float(np.abs(target.golden().outputs).max())
    assert float(taken.error.min()) >= 64 * 2**-23 * largest


def test_calls_that_are_not_understood_add_nothing() -> None:
    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    inputs = torch.tensor([[3.0, 4.0, 0.0]])
    layer = linear([[1.0, -2.0, 2.0]])
    alone, before = analysed(layer, inputs), analysed(nn.Sequential(*layer, Squared()).eval(), inputs)
    slope = 2 * 5
    assert float(before.error[0]) == pytest.approx(slope * float(alone.error[0]), rel=1e-6)


def test_samples_are_as_large_as_can_be_afforded() -> None:
    assert sample_size(10_000, 4e6, 2**32) == 32
    assert sample_size(20, 4e6, 2**32) == 20
    assert sample_size(10_000, 2e7, 2**32) == 2**28 // 2e7 == 13
    assert sample_size(10_000, 2e8, 2**33) == 8
    assert sample_size(10_000, 2e8, 10**9) == 2
    assert sample_size(10_000, 2e9, 10**9) == 1


def test_a_sample_of_a_few_outputs_and_inputs_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(["conv_bn_relu", "residual", "projection"], flattened=False, seed=8)
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    every = analysed(network, images)
    target, engine = opened(network, images)
    with engine.runner.prepared():
        chunk = engine._chunk(range(64), Recorder(target.golden(), [Sdc1()], 1))
        monkeypatch.setattr(rounding, "_OUTPUTS", 2)
        few = Rounding(engine.graph, engine.operators, [images[::4]]).allowance(chunk)
    assert bool((every.error >= few.error).all())
    assert bool((every.error <= 2 * few.error).all())
