"""Recurrent networks and transformers as people write them run from the fault on, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.campaign.target import Resources
from saboteur.faults.models import BitFlip
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from tests.engine.agreement import assert_agree
from tests.engine.test_scattered import assert_fast


class LastState(nn.Module):
    """Reads the final state, of which the second axis counts the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.rnn(x)
        return self.out(hidden[-1])


class TimeFirst(nn.Module):
    """Counts the inputs along the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.transpose(0, 1))[0][-1])


class Cells(nn.Module):
    """Calls a cell for each step of an axis of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = torch.zeros(x.shape[0], 8)
        for step in range(x.size(1)):
            hidden, cell = self.cell(x[:, step], (hidden, cell))
        return self.out(hidden)


class BothWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        size, steps, width = x.shape
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        heads = [part.view(size, steps, 2, width // 2).transpose(1, 2) for part in (query, key, value)]
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(size, steps, width)
        return self.out((x + mixed).mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 16, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(1))


def opened(model: type[nn.Module]) -> SoftwareTarget:
    generator, network = torch.Generator().manual_seed(3), model().eval()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return SoftwareTarget(network, torch.randn(25, 5, 6, generator=generator), resources=Resources(batch_size=8))


@pytest.mark.parametrize("where", ["parameters", "activations"])
@pytest.mark.parametrize("model", [LastState, TimeFirst, Cells, BothWays, Attention, Encoder])
def test_nothing_is_left_to_the_plain_engine(model: type[nn.Module], where: str) -> None:
    target = opened(model)
    assert_fast(target, [SoftwareFault(where=where, model=BitFlip())], 40)
    assert_fast(target, [SoftwareFault(where=where, model=BitFlip())], 15, rows=2)


@pytest.mark.parametrize("model", [Attention, Encoder, Cells])
def test_functions_also_those_inside_of_layers(model: type[nn.Module]) -> None:
    assert_fast(opened(model), [SoftwareFault(where="operators", model=BitFlip())], 40)


@pytest.mark.parametrize("model", [LastState, TimeFirst, Cells])
def test_states(model: type[nn.Module]) -> None:
    assert_fast(opened(model), [SoftwareFault(where="hidden_state", model=BitFlip(), duration="transient")], 30)


class Folded(nn.Module):
    """Folds time into the axis that counts the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.out = nn.Linear(6, 4), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        size, steps, width = x.shape
        return self.out(torch.relu(self.each(x.reshape(size * steps, width))).view(size, -1))


@pytest.mark.parametrize("where", ["parameters", "activations", "operators"])
def test_folded_axes(where: str) -> None:
    assert_fast(opened(Folded), [SoftwareFault(where=where, model=BitFlip())], 40)


class Counts(nn.Module):
    """Numbers the inputs of a batch, which no input alone tells."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x[:, 0]) + torch.arange(x.shape[0])[:, None] / 1000


def test_results_that_tell_the_places_in_a_batch_run_the_plain_way() -> None:
    target = opened(Counts)
    assert_agree(target, [SoftwareFault(where="weights", model=BitFlip())], 40)
    assert "arange" in str(target.engine.reason)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embedding(tokens).mean(1))


def test_inferences_that_crash_are_told_from_the_others() -> None:
    tokens = torch.randint(0, 20, (25, 5), generator=torch.Generator().manual_seed(3))
    target = SoftwareTarget(Tokens().eval(), tokens, resources=Resources(batch_size=8))
    specs = [SoftwareFault(where=where, model=BitFlip()) for where in ("inputs", "weights")]
    table = assert_agree(target, specs, 60)
    crashes = table["crash"].to_numpy()
    assert target.engine.reason is None
    assert (crashes == 25).any()
    assert (crashes == 0).any()
    assert ((crashes > 0) & (crashes < 25)).any()
