"""Small untrained models of every kind that the software level takes; weights are fixed functions of an index."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from saboteur.levels.software.target import SoftwareTarget


def numbers(*shape: int, scale: float = 1.0, phase: float = 0.0) -> Tensor:
    """Fixed numbers that look random: sines of integers."""
    count = int(torch.tensor(shape).prod()) if shape else 1
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + phase) * scale
    return values.float().reshape(shape)


def plain_target(model: nn.Module, inputs: Tensor | tuple, labels: Tensor | None = None, **settings) -> SoftwareTarget:
    """A target whose faulty inferences are all run in full, by the engine that others are proved against."""
    return SoftwareTarget(model, inputs, labels, engine="plain", **settings)


def filled(model: nn.Module) -> nn.Module:
    """The model in eval mode with fixed weights."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(numbers(*parameter.shape, scale=0.5, phase=i).to(parameter.dtype))
    return model.eval()


class ConvNet(nn.Module):
    """Convolution, batch norm, functional ReLU and pooling, residual addition, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.conv2(y) + y)
        return self.fc(torch.flatten(F.max_pool2d(y, 2), 1))


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tanh(self.fc(x)))


class Recurrent(nn.Module):
    """A recurrent layer over [batch, time, 4] and a linear layer on its last output."""

    def __init__(self, kind: type[nn.RNNBase], *, layers: int = 1, batch_first: bool = True, **settings) -> None:
        super().__init__()
        self.rnn = kind(4, 5, num_layers=layers, batch_first=batch_first, **settings)
        self.fc = nn.Linear(settings.get("proj_size") or 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.rnn.batch_first:
            return self.fc(self.rnn(x)[0][:, -1])
        return self.fc(self.rnn(x.transpose(0, 1))[0][-1])


class Cells(nn.Module):
    """A recurrent cell called once for each time step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(4, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


class Tokens(nn.Module):
    """Token numbers to an embedding, attention, layer norm, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
        self.fc = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(self.encoder(self.embedding(tokens)).mean(1)), "tokens": tokens}


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class _Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).T


def mlp() -> nn.Module:
    """Linear, ReLU, linear: 5 to 4 to 3."""
    return filled(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))


def pruned() -> nn.Module:
    """An MLP with half of the first weights pruned, and a weight-normalised second layer."""
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[2])
    return model.eval()


def parametrized() -> nn.Module:
    """A layer whose weight is kept symmetric."""
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    filled(model)
    parametrize.register_parametrization(model[0], "weight", _Symmetric())
    return model.eval()


class _Quantizable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantize = torch.ao.quantization.QuantStub()
        self.conv = nn.Conv2d(2, 4, 3)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(16, 3)
        self.dequantize = torch.ao.quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(self.quantize(x)))
        return self.dequantize(self.fc(torch.flatten(y, 1)))


def quantized() -> nn.Module:
    """Statically quantised by ``torch.ao.quantization``: int8 weights, uint8 activations; input [n, 2, 4, 4]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = filled(_Quantizable())
        model.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
        prepared = torch.ao.quantization.prepare(model)
        prepared(numbers(16, 2, 4, 4))
        return torch.ao.quantization.convert(prepared).eval()


def dynamically_quantized() -> nn.Module:
    """An MLP with int8 weights and floating-point activations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, dtype=torch.qint8).eval()
