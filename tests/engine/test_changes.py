"""Weights and biases that change from trial to trial: what they add, and how far they can move the outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saboteur.levels.software.engine.bounds import Gains
from saboteur.levels.software.engine.changes import BIAS, Changes
from saboteur.levels.software.engine.operators import Mixing


def layer(weight: torch.Tensor, node: int = 0, stride: int = 1, padding: int = 0, dilation: int = 1) -> Mixing:
    scale = torch.linspace(0.5, 2.0, len(weight))
    axes = ((stride,) * 2, (padding,) * 2, (dilation,) * 2) if weight.dim() == 4 else ((), (), ())
    return Mixing(node, (node - 1,), weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), None, node, scale, *axes)


def changes(layers: list[Mixing], *rows: tuple[int, int, int, int, int, float]) -> Changes:
    """Rows of trial, layer, output channel, input channel, tap and change."""
    *whole, change = zip(*rows, strict=True)
    return Changes(layers, *(np.array(column, np.int64) for column in whole), np.array(change, np.float32))


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 2, 2)])
def test_what_is_added_is_what_the_changed_layer_makes(stride: int, padding: int, dilation: int) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 3, 3, 2, generator=generator)
    op = layer(weight, 1, stride, padding, dilation)
    x = torch.randn(5, 3, 9, 8, generator=generator)
    some = changes([op], (0, 0, 2, 1, 5, 0.75), (0, 0, 2, 0, 0, -2.0), (0, 0, 1, BIAS, 0, 0.5), (2, 0, 3, 2, 3, 1.5))
    number = torch.tensor([2, 0, 1, 0, 2])
    result = op.run(x, op.padding)
    before = result.clone()
    size = some.apply(op, number, lambda pair, channel: x[pair, channel], result)
    for pair, trial in enumerate(number.tolist()):
        changed, bias = weight.clone(), torch.zeros(4)
        if trial == 0:
            changed[2, 1, 2, 1] += 0.75
            changed[2, 0, 0, 0] -= 2.0
            bias[1] += 0.5
        elif trial == 2:
            changed[3, 2, 1, 1] += 1.5
        whole = layer(changed, 1, stride, padding, dilation).run(x[pair : pair + 1], op.padding)[0]
        whole += (bias * op.scale)[:, None, None]
        assert torch.allclose(result[pair], whole, atol=1e-4)
        assert float(size[pair]) >= float((result[pair] - before[pair]).norm()) * (1 - 1e-4)
        if trial == 1:
            assert float(size[pair]) == 0


def test_linear_layers() -> None:
    weight, x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 7.0]])
    op = layer(weight, 1)
    result = torch.zeros(1, 2)
    some = changes([op], (0, 0, 1, 0, 0, 0.5), (0, 0, 0, BIAS, 0, 3.0))
    size = some.apply(op, torch.tensor([0]), lambda pair, channel: x[pair, channel], result)
    assert result.tolist() == [[3.0 * 0.5, 0.5 * 5.0 * 2.0]]
    assert float(size[0]) == pytest.approx(1.5 + 5.0)


def test_gains_count_how_changes_meet_the_deviations_of_earlier_ones() -> None:
    layers = [layer(torch.ones(2, 2), node) for node in (1, 2, 3)]
    channel = {1: torch.tensor([3.0, 4.0]), 2: torch.tensor([2.0, 5.0]), 3: torch.tensor([7.0, 1.0])}
    to_output = Gains({}, {node: values.double() for node, values in channel.items()})
    between = np.array([[0.0, 5.0, 11.0], [0.0, 0.0, 13.0], [0.0, 0.0, 0.0]])
    some = changes(
        layers,
        (0, 0, 1, 0, 0, 0.1),
        (0, 1, 0, 0, 0, -0.5),
        (0, 2, 0, 1, 0, 2.0),
        (1, 0, 0, 0, 0, 9.0),
        (1, 0, 1, 1, 0, 9.0),  # in one layer they do not meet
        (2, 0, 0, 0, 0, 1.0),
        (2, 2, 0, BIAS, 0, 9.0),  # a bias meets no deviation
    )
    second = 2 + 13 * 2.0 * 7
    first = 4 + 5 * 0.5 * second + 11 * 2.0 * 7
    assert some.gains(to_output, between).tolist() == pytest.approx([first, second, 7, 3, 4, 3, 7])


def test_some_trials_alone() -> None:
    op = layer(torch.ones(2, 2), 1)
    some = changes([op], (0, 0, 0, 0, 0, 1.0), (1, 0, 1, 0, 0, 2.0), (3, 0, 0, 1, 0, 3.0), (3, 0, 1, 1, 0, 4.0))
    kept = some.of_trials(np.array([1, 3]))
    assert kept.number.tolist() == [0, 1, 1]
    assert kept.change.tolist() == [2.0, 3.0, 4.0]
    assert kept.out.tolist() == [1, 0, 1]
    assert kept.reached == {op}
    assert some.of_trials(np.array([2])).reached == set()
