"""Quadratic forms bound what layers, rectifiers and residual blocks do to deviations on maps of their size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from saboteur.levels.software.engine import forms
from saboteur.levels.software.engine.bounds import gains
from saboteur.levels.software.engine.graph import Graph
from saboteur.levels.software.engine.operators import Mixing, understood

CHANNELS, SIDES = 2, (5, 6)


def layer(generator: torch.Generator, stride: int = 1, kernel: int = 3, dilation: int = 1) -> Mixing:
    weight = torch.randn(CHANNELS, CHANNELS, kernel, kernel, generator=generator) / kernel
    padding = dilation * (kernel - 1) // 2
    ones = torch.ones(CHANNELS)
    return Mixing(0, (), weight, None, 0, ones, (stride, stride), (padding, padding), (dilation, dilation))


def run(op: Mixing, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, op.weight.double(), None, op.stride, op.padding, op.dilation)


def matrix(function, sides: tuple[int, int]) -> torch.Tensor:
    """A linear map of maps as a matrix, column by column."""
    units = torch.eye(CHANNELS * math.prod(sides), dtype=torch.float64).reshape(-1, CHANNELS, *sides)
    return function(units).flatten(1).T


def sides_after(op: Mixing, sides: tuple[int, int]) -> tuple[int, int]:
    height, width = run(op, torch.zeros(1, CHANNELS, *sides, dtype=torch.float64)).shape[2:]
    return height, width


seeds, strides = st.integers(0, 2**31), st.sampled_from([1, 2, 3])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seeds, strides, st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 1)]))
def test_a_layer(seed: int, stride: int, kernel: tuple[int, int]) -> None:
    op = layer(torch.Generator().manual_seed(seed), stride, *kernel)
    after = sides_after(op, SIDES)
    grid = forms.least_grid(op, SIDES, after)
    form = forms.through(forms.symbol(op, grid), forms.flat(2.0, CHANNELS, grid), stride**2)
    whole = matrix(lambda x: run(op, x), SIDES)
    exact = 2 * torch.linalg.matrix_norm(whole, 2)
    assert exact <= form.whole * (1 + 1e-9)
    assert form.whole <= 2 * 1.35 * torch.linalg.matrix_norm(matrix(lambda x: run(op, x), (17, 16)), 2)
    for channel, bound in enumerate(form.channel):
        columns = whole[:, channel * math.prod(SIDES) : (channel + 1) * math.prod(SIDES)]
        assert 2 * torch.linalg.matrix_norm(columns, 2) <= bound * (1 + 1e-9)


def gated(seed: int, shape: torch.Size, share: float) -> torch.Tensor:
    return (torch.rand(shape[1:], generator=torch.Generator().manual_seed(seed)) < share).double()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seeds, strides)
def test_two_residual_blocks_with_a_rectifier_between(seed: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [layer(generator, step) for step in (stride, 1, 1, 1)]
    after = sides_after(layers[0], SIDES)
    least = forms.least_grid(layers[0], SIDES, after), forms.least_grid(layers[1], after, after)
    grid = max(least[0][0], least[1][0]), max(least[0][1], least[1][1])
    symbols = [forms.symbol(op, grid) for op in layers]
    swapped = torch.tensor([1, -1] if stride > 1 else [0, 1])
    identity = forms.selection(torch.arange(CHANNELS), CHANNELS, 1, grid)
    late = forms.residual(symbols[2], symbols[3], identity, forms.flat(1.0, CHANNELS, grid), 1)
    shortcut = forms.selection(swapped, CHANNELS, stride**2, grid)
    early = forms.residual(symbols[0], symbols[1], shortcut, late.before_rectifier(), stride**2)

    def through(x: torch.Tensor, share: float) -> torch.Tensor:
        hidden = run(layers[0], x)
        x = x[:, swapped.clamp(min=0), ::stride, ::stride] * (swapped >= 0)[:, None, None]
        x = x + run(layers[1], hidden * gated(seed, hidden.shape, share))
        x = x * gated(seed + 1, x.shape, share)
        hidden = run(layers[2], x)
        return x + run(layers[3], hidden * gated(seed + 2, hidden.shape, share))

    for share in (0.3, 0.7, 1.0):
        whole = matrix(lambda x, share=share: through(x, share), SIDES)
        assert torch.linalg.matrix_norm(whole, 2) <= early.whole * (1 + 1e-9)
        for channel, bound in enumerate(early.channel):
            columns = whole[:, channel * math.prod(SIDES) : (channel + 1) * math.prod(SIDES)]
            assert torch.linalg.matrix_norm(columns, 2) <= bound * (1 + 1e-9)


def test_the_form_before_a_rectifier_by_hand() -> None:
    form = forms.Form((1, 1), torch.diag_embed(torch.tensor([[4.0, 1.0]])).to(torch.complex128))
    before = form.before_rectifier().values.real.diagonal(dim1=1, dim2=2)
    assert before[0].tolist() == pytest.approx([4.0, 16 / 7])  # κ² / (2κ − 1) with κ = 4


class Shortcut(nn.Module):
    """A block whose shortcut takes every second position and pads channels, as ResNet's option A, or does not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.kind = kind
        self.first, self.second = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.side = nn.Conv2d(2, 4, 1, 2)
        self.linear = nn.Linear(4, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(F.relu(self.first(x)))
        if self.kind == "padded":
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        elif self.kind == "shifted":
            x = F.pad(x[:, :, 1::2, ::2], (0, 0, 0, 0, 1, 1))
        else:
            x = self.side(x)
        return self.linear(F.adaptive_avg_pool2d(F.relu(x + y), 1).flatten(1))


def test_shortcuts_are_told_apart() -> None:
    found = {}
    for kind in ("padded", "shifted", "layer"):
        model = Shortcut(kind).eval()
        graph = Graph(model)
        images = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            values = graph.check([images])
            found[kind] = gains(graph, understood(graph, values), values).whole[0]
        jacobian = torch.autograd.functional.jacobian(lambda x, model=model: model(x)[0], images[:1]).reshape(3, -1)
        assert jacobian.norm(dim=1).max() <= found[kind]
    assert found["padded"] < found["shifted"]  # whose shortcut is not understood, only its gain of 1
