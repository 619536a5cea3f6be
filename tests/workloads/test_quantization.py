"""Networks with branches, quantised: close to the float network, and refused where they are not understood."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from saboteur.errors import TargetError

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from saboteur import workloads  # noqa: E402
from saboteur.workloads.int8 import Int8Add, Int8Conv2d  # noqa: E402
from saboteur.workloads.quantization import quantized  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"


class Residual(nn.Module):
    """Batch norm, a fused and a lone ReLU, a sum, a shortcut with new channels, both kinds of average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        shortcut = F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        features = self.bn2(self.conv2(features)) + shortcut
        features = F.avg_pool2d(F.relu(features), 2)
        return self.fc(self.dropout(self.pool(features)).flatten(1)).relu() * 0.5


class Attention(nn.Module):
    """Two heads of attention over tokens ``[batch, 5, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.reshape(-1, 5, 2, 4).transpose(1, 2)
            for part in (self.query(tokens), self.key(tokens), self.value(tokens))
        )
        scores = query @ key.transpose(-2, -1) / 2.0
        context = F.softmax(scores, dim=-1) @ value
        return self.output(context.transpose(1, 2).reshape(-1, 5, 8))


def trained_at_random(kind: type[nn.Module], seed: int) -> nn.Module:
    model = kind().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.4, generator=generator)
    return model


@pytest.mark.parametrize(("kind", "shape"), [(Residual, (2, 8, 8)), (Attention, (5, 8))])
def test_a_network_with_branches_stays_close_to_the_float_one(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    model = trained_at_random(kind, 1)
    inputs = torch.randn(64, *shape, generator=torch.Generator().manual_seed(2))
    int8_model = quantized(model, inputs)
    real, integer = model(inputs), int8_model(inputs)
    assert integer.shape == real.shape
    spread = real.max() - real.min()
    assert (integer - real).abs().max() < 0.1 * spread
    assert (integer - real).abs().mean() < 0.015 * spread
    kinds = {type(module).__module__ for module in int8_model.modules() if not list(module.children())}
    assert kinds == {"saboteur.workloads.int8"}


def test_batch_norm_and_relu_are_folded_and_names_kept() -> None:
    int8_model = quantized(
        trained_at_random(Residual, 3), torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(4))
    )
    modules = {name: module for name, module in int8_model.named_modules() if name}
    named = {"quantize", "conv1", "conv2", "pad", "add", "avg_pool2d", "pool", "fc", "dequantize"}
    assert set(modules) == named
    assert isinstance(modules["conv1"], Int8Conv2d) and modules["conv1"].relu and not modules["conv2"].relu
    assert isinstance(modules["add"], Int8Add) and modules["add"].relu
    assert modules["fc"].relu


@pytest.mark.parametrize("name", ["digits-cnn", "digits-mlp6", "digits-lenet7"])
def test_shipped_networks_come_out_layer_for_layer(name: str) -> None:
    float_model, int8_model = workloads.load(name).model, workloads.load(f"{name}-int8").model
    found = quantized(float_model, workloads.load(name).inputs)
    state = found.state_dict()
    # Weights do not depend on the calibration; ranges do, and the shipped ones come from the training images.
    for key, tensor in int8_model.state_dict().items():
        assert state[key].shape == tensor.shape
        if key.endswith(".weight"):
            assert torch.equal(state[key], tensor)


class Wrong(nn.Module):
    def __init__(self, wrong) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.wrong = wrong

    def forward(self, images):
        return self.wrong(self.conv(images))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (nn.Conv2d(2, 2, 3, groups=2), "need a square kernel"),
        (nn.Conv2d(2, 2, (1, 3)), "need a square kernel"),
        (nn.Sigmoid(), "quantisation does not know .*Sigmoid"),
        (nn.MaxPool2d(3), "max pooling is understood over 2 × 2"),
        (nn.AvgPool2d(2, 1), "average pooling is understood over square windows"),
        (nn.AdaptiveAvgPool2d(2), "to 1 × 1, not 2"),
        (nn.Softmax(1), "softmax over axis 1"),
        (nn.BatchNorm2d(2, track_running_stats=False), "without running statistics"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_understood_is_named(wrong: nn.Module, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        quantized(Wrong(wrong).eval().requires_grad_(False), torch.ones(2, 2, 6, 6))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + 1, "argument 1 is not an activation"),
        (lambda x: x * -2.0, "the constant is -2.0; need a positive number"),
        (lambda x: F.pad(x, (1, 1), value=2.0), "padding is understood with zeros only"),
        (lambda x: x if x.sum() > 0 else -x, "torch.fx cannot trace it"),
    ],
)
def test_functions_that_are_not_understood_are_named(function, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        quantized(Wrong(function).eval().requires_grad_(False), torch.ones(2, 2, 6, 6))


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(TargetError, match="Residual is in training mode"):
        quantized(Residual(), torch.ones(2, 2, 8, 8))


@pytest.mark.shared
def test_resnet20_in_int8_keeps_its_accuracy(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for module in ("resnet20", "resnet20_int8"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    import resnet20
    import resnet20_int8

    model, (images, labels) = resnet20_int8.model(), resnet20_int8.data()
    chosen = slice(5, 500, 5)
    with torch.inference_mode():
        integer = (model(images[chosen]).argmax(1) == labels[chosen]).float().mean()
        real = (resnet20.model()(images[chosen]).argmax(1) == labels[chosen]).float().mean()
    assert abs(integer - real) <= 0.02
    convolutions = [module for module in model.modules() if isinstance(module, Int8Conv2d)]
    assert len(convolutions) == 19
