"""Gains and norms are upper bounds, and tight where they can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from saboteur.levels.software.engine import operators
from saboteur.levels.software.engine.bounds import gains
from saboteur.levels.software.engine.graph import Graph, Untraceable
from saboteur.levels.software.engine.operators import Adding, Linear, Mixing, Pointwise, residual_norm, understood
from tests.engine.networks import Network, networks


def layer(weight: torch.Tensor, stride: int = 1, padding: int = 1, dilation: int = 1) -> Mixing:
    ones = torch.ones(len(weight))
    return Mixing(0, (), weight, None, 0, ones, (stride, stride), (padding, padding), (dilation, dilation))


def matrix(op: Mixing, channels: int, size: int) -> torch.Tensor:
    """The layer as a matrix, column by column."""
    units = torch.eye(channels * size * size).reshape(-1, channels, size, size)
    return F.conv2d(units, op.weight, None, op.stride, op.padding, op.dilation).flatten(1).T.double()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(1, 1), (3, 2), (2, 3)]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2]),
    st.sampled_from([(1, 0), (3, 1), (3, 2), (5, 2)]),
)
@pytest.mark.parametrize("many_channels", [False, True])
def test_convolution_norms_bound_their_matrices(many_channels, seed, channels, stride, dilation, kernel) -> None:
    size, padding = kernel
    weight = torch.randn(*channels, size, size, generator=torch.Generator().manual_seed(seed))
    op = layer(weight, stride, padding, dilation)
    with pytest.MonkeyPatch.context() as patched:
        if many_channels:
            patched.setattr(operators, "_DENSE_SPECTRUM", 0)
        norm, channel_norms = op.norm, op.channel_norms
    whole = matrix(op, channels[1], 7)
    assert torch.linalg.matrix_norm(whole, 2) <= norm
    for channel in range(channels[1]):
        columns = whole[:, channel * 49 : (channel + 1) * 49]
        assert torch.linalg.matrix_norm(columns, 2) <= channel_norms[channel]


def test_convolution_norm_is_reached_by_large_maps() -> None:
    op = layer(torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(3)))
    exact = torch.linalg.matrix_norm(matrix(op, 2, 20), 2)
    assert exact <= op.norm <= 1.06 * exact


def test_norm_of_an_averaging_kernel_by_hand() -> None:
    assert layer(torch.full((1, 1, 3, 3), 1 / 9)).norm == pytest.approx(1.0, rel=0.04)
    assert layer(torch.eye(3).reshape(3, 3, 1, 1) * 2, padding=0).norm == pytest.approx(2.0, rel=1e-3)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_residual_norm_bounds_every_pattern_of_active_neurons(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (layer(torch.randn(3, 3, 3, 3, generator=generator) * scale) for _ in range(2))
    bound = residual_norm(first, second)
    matrices = [matrix(op, 3, 6) for op in (first, second)]
    identity = torch.eye(3 * 36).double()
    for share in (0.0, 0.3, 0.7, 1.0):
        active = (torch.rand(3 * 36, generator=generator) < share).double()
        assert torch.linalg.matrix_norm(identity + matrices[1] @ (active[:, None] * matrices[0]), 2) <= bound
    assert bound <= 1 + first.norm * second.norm


def test_residual_norm_of_layers_that_change_the_size_is_unknown() -> None:
    keeps, shrinks = layer(torch.ones(2, 2, 3, 3)), layer(torch.ones(2, 2, 3, 3), stride=2)
    assert residual_norm(keeps, shrinks) is None
    assert residual_norm(layer(torch.ones(2, 3, 3, 3)), keeps) is None


@settings(max_examples=30, deadline=None, derandomize=True)
@given(network=networks, seed=st.integers(0, 2**31), size=st.sampled_from([1e-3, 0.1, 3.0]))
def test_gains_bound_what_deviations_do(network: Network, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 8, 8, generator=generator)
    graph = Graph(network)
    with torch.inference_mode():
        values = graph.check([images])
        found = gains(graph, understood(graph, values), values)
        for node in graph.nodes[: graph.output]:
            value = values[node.index]
            bound = found.whole[node.index]
            if not isinstance(value, torch.Tensor) or not graph.leads_to_output[node.index] or not np.isfinite(bound):
                continue
            moved = torch.randn(value.shape, generator=generator)
            moved *= size / moved.flatten(1).norm(dim=1).reshape(-1, *[1] * (value.dim() - 1))
            again = dict(values) | {node.index: value + moved}
            for later in graph.nodes[node.index + 1 :]:
                if later.index in graph.after([node.index]):
                    again[later.index] = graph.call(later, again)
            change = (again[graph.output] - values[graph.output]).abs().amax()
            assert change <= bound * size * (1 + 1e-4) + 1e-5


def test_operators_are_told_apart() -> None:
    graph = Graph(Network(["conv_bn_relu", "residual", "max_pool", "gelu"], flattened=False, seed=1))
    with torch.inference_mode():
        found = understood(graph, graph.check([torch.randn(3, 3, 8, 8)]))
    kinds = [type(found.get(node.index)) for node in graph.nodes]
    assert kinds.count(Adding) == 1 and kinds.count(Pointwise) == 4
    assert sum(kind is Mixing for kind in kinds) == 7
    assert kinds.count(Linear) == 3
    folded = [op for op in found.values() if isinstance(op, Mixing) and op.layer != op.index]
    assert len(folded) == 3


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Mixes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Branching(), "torch.fx cannot trace"), (Mixes(), "does not tell the inputs apart")],
)
def test_what_cannot_be_traced_is_said(model: nn.Module, reason: str) -> None:
    with pytest.raises(Untraceable, match=reason):
        Graph(model).check([torch.linspace(-1, 2, 12).reshape(4, 3)])
