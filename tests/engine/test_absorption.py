"""A NaN in an absorbing node makes an output NaN, wherever it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saboteur.levels.software.engine.absorption import absorbing
from saboteur.levels.software.engine.graph import Graph
from saboteur.levels.software.engine.operators import understood
from tests.engine.networks import Network, networks


@settings(max_examples=40, deadline=None, derandomize=True)
@given(network=networks, seed=st.integers(0, 2**31))
def test_a_nan_reaches_an_output(network: Network, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    graph = Graph(network)
    with torch.inference_mode():
        values = graph.check([torch.randn(4, 3, 8, 8, generator=generator)])
        found = absorbing(graph, understood(graph, values), values)
        assert graph.output in found
        for node in found - {graph.output}:
            value = values[node].clone()
            place = torch.randint(value[0].numel(), (len(value),), generator=generator)
            value.view(len(value), -1)[torch.arange(len(value)), place] = torch.nan
            again = dict(values) | {node: value}
            for later in graph.nodes[node + 1 :]:
                if later.index in graph.after([node]):
                    again[later.index] = graph.call(later, again)
            assert torch.isnan(again[graph.output]).any(dim=1).all()


def first_is_absorbing(first: nn.Module, size: int = 8) -> bool:
    model = nn.Sequential(nn.Identity(), first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    graph = Graph(model)
    with torch.inference_mode():
        values = graph.check([torch.randn(2, 3, size, size)])
        return 1 in absorbing(graph, understood(graph, values), values)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.ReLU(), True),
        (nn.BatchNorm2d(3), True),
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d(1, stride=2), False),
        (nn.MaxPool2d(3), False),  # of 8 rows, the last two are in no window
        (nn.AvgPool2d(4), True),
        (nn.Conv2d(3, 3, 3, padding=1), True),
        (nn.Conv2d(3, 3, 3, stride=2, padding=1), True),
        (nn.Conv2d(3, 3, 1, stride=2), False),
        (nn.Conv2d(3, 3, 3, stride=4), False),
        (nn.Conv2d(3, 3, 2, padding=1, dilation=2), True),
        (nn.Conv2d(3, 3, 3, groups=3), False),  # not among the operators that are understood
    ],
)
def test_what_lets_a_nan_get_lost(module: nn.Module, expected: bool) -> None:
    assert first_is_absorbing(module) is expected
