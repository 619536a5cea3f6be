"""Slopes against Jacobians by automatic differentiation and against finite changes of real layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.levels.software.engine.screening_slopes import (
    HEADROOM,
    SPREAD,
    Slopemeter,
    Slopes,
    is_affine,
    tap_norms,
    tap_of,
)
from saboteur.levels.software.runner import Runner
from tests.software import models
from tests.software.models import numbers


class Residual(nn.Module):
    """Two convolutions around a shortcut, batch norm, ReLU in place, a pooled linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv1(x)))
        return self.fc((self.relu(self.conv2(y)) + y).mean((2, 3)))


def normalised(model: nn.Module) -> nn.Module:
    """The model with batch statistics that are not those of a new layer."""
    for i, module in enumerate(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        module.running_mean.copy_(numbers(len(module.running_mean), phase=i))
        module.running_var.copy_(numbers(len(module.running_var), phase=i).square() + 0.5)
    return model


def meter(model: nn.Module, inputs: Tensor, layers: dict[str, set[str]], places: set[str] = frozenset()) -> Slopemeter:
    return Slopemeter(Runner(model, (inputs,)), layers, set(places))


LAYERS = {
    "stride, padding": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 7, 6)),
    "dilation": (nn.Conv2d(2, 3, (3, 2), dilation=(2, 1), padding=(1, 0)), (2, 2, 7, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(3, 3, 3, groups=3, padding="same"), (2, 3, 5, 5)),
    "reflected": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 4)),
    "one dimension": (nn.Conv1d(2, 3, 4, stride=3), (2, 2, 11)),
    "three dimensions": (nn.Conv3d(2, 2, 2, stride=(1, 2, 1)), (2, 2, 3, 4, 3)),
    "linear": (nn.Linear(5, 3), (2, 5)),
    "linear over time": (nn.Linear(5, 3), (2, 4, 5)),
    "batch norm": (nn.BatchNorm2d(3), (2, 3, 4, 2)),
    "batch norm of vectors": (nn.BatchNorm1d(3), (2, 3)),
}


@pytest.mark.parametrize("tensor", ["weight", "bias"])
@pytest.mark.parametrize("case", LAYERS)
def test_taps_give_what_one_unit_of_each_element_adds(case: str, tensor: str) -> None:
    module, shape = LAYERS[case]
    module = normalised(models.filled(module))
    x = numbers(*shape)
    with torch.no_grad():
        before = module(x)
        parameter = getattr(module, tensor)
        added = []
        for element in range(parameter.numel()):
            parameter.view(-1)[element] += 1
            change = (module(x) - before).reshape(len(x), -1)
            added.append(torch.linalg.vector_norm(change, dim=1))
            parameter.view(-1)[element] -= 1
        norms = tap_norms(module, x, before, tensor)
    tap = tap_of(module, tensor, np.arange(parameter.numel()))
    torch.testing.assert_close(norms[:, tap], torch.stack(added, dim=1), rtol=1e-4, atol=1e-5)


def jacobian_of_place(model: nn.Module, place: str, one: Tensor) -> Tensor:
    """d outputs / d (output of the module at ``place``) for a single input: [outputs, values ...]."""
    module = model.get_submodule(place)
    kept: dict[str, Tensor] = {}
    handle = module.register_forward_hook(lambda *args: kept.setdefault("z", args[2].clone()))
    model(one)
    handle.remove()

    def outputs(z: Tensor) -> Tensor:
        handle = module.register_forward_hook(lambda *_: z.clone())
        try:
            return model(one)[0]
        finally:
            handle.remove()

    return torch.autograd.functional.jacobian(outputs, kept["z"].detach())[:, 0]


@pytest.mark.parametrize("place", ["conv1", "bn", "conv2", "fc"])
def test_slopes_are_the_steepest_of_the_jacobian(place: str) -> None:
    model = normalised(models.filled(Residual()))
    x = numbers(5, 2, 4, 4)
    (slopes,) = meter(model, x, {place: {"weight"}}).measure(range(1, 4))[place]
    for i in range(3):
        jacobian = jacobian_of_place(model, place, x[i + 1 : i + 2]).reshape(
            3, model.get_submodule(place).bias.numel(), -1
        )
        channel = torch.linalg.vector_norm(jacobian, dim=2).max()
        assert slopes.channel[i] == pytest.approx(float(channel), rel=1e-5)
        assert slopes.value[i] == pytest.approx(float(jacobian.abs().max()), rel=1e-5)
        whole = torch.linalg.vector_norm(jacobian.flatten(1), dim=1).max()
        assert slopes.whole[i] == pytest.approx(float(whole), rel=1e-5)


def test_strain_reaches_1_where_the_prediction_or_the_deviation_gets_too_large() -> None:
    half, small, none = np.float32([0.5, 0.01, 0]), np.float32([4, 4, 4]), np.float32([1, 1, 1])
    slopes = Slopes(channel=half, value=half, whole=half, size=small, count=4096)
    radius = np.array([2.0, 2.0, 2.0])
    np.testing.assert_allclose(slopes.strain_at_source("channel", radius), [HEADROOM * 0.5 / 2, 1 / 4, np.inf])
    np.testing.assert_allclose(slopes.strain_on_the_way("value", radius), [0.5 / 2, 1 / 4, np.inf])
    spread = SPREAD / 64
    assert spread < 1
    wide = Slopes(channel=half, value=half, whole=half, size=1e6 * none, count=4096)
    np.testing.assert_allclose(wide.strain_on_the_way("whole", radius), [spread * 0.5 / 2, spread * 0.01 / 2, np.inf])
    few = Slopes(channel=half, value=half, whole=half, size=1e6 * none, count=10)
    np.testing.assert_allclose(few.strain_on_the_way("whole", radius)[0], 0.5 / 2)


def test_images_that_were_not_measured_are_never_predicted() -> None:
    known = Slopes(*np.ones((4, 2), np.float32), count=8)
    slopes = Slopes.blank(5, 8)
    slopes.fill_in(range(1, 3), known)
    strains = slopes.strain_on_the_way("channel", np.full(5, 2.0))
    assert np.isinf(strains[[0, 3, 4]]).all() and np.isfinite(strains[1:3]).all()


def test_input_has_slopes() -> None:
    model = models.mlp()
    x = numbers(4, 5)
    (slopes,) = meter(model, x, {}, {"input"}).measure(range(4))["input"]
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda t: model(t[None])[0], row) for row in x])
    np.testing.assert_allclose(slopes.value, jacobian.abs().amax((1, 2)).numpy(), rtol=1e-5)


def test_size_is_the_root_mean_square_norm_of_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 2))
    model = models.filled(model)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1))
    x = torch.ones(2, 1, 2, 2)
    (slopes,) = meter(model, x, {"0": {"weight"}}).measure(range(2))["0"]
    np.testing.assert_allclose(slopes.size, [np.sqrt((4 * 1 + 4 * 4) / 2)] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(models.Twice, (4, 5)), (models.Tied, (4, 5)), (Residual, (4, 2, 4, 4)), (models.ConvNet, (4, 2, 4, 4))],
)
def test_no_weight_has_a_larger_derivative_than_predicted(model: type[nn.Module], shape: tuple[int, ...]) -> None:
    model = normalised(models.filled(model()))
    x = numbers(*shape)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    modules = dict(model.named_modules())
    tensors = {
        name: [(path, t) for path, m in modules.items() for t, other in m._parameters.items() if other is p]
        for name, p in model.named_parameters()
    }
    layers: dict[str, set[str]] = {}
    for holders in tensors.values():
        for path, tensor in holders:
            layers.setdefault(path, set()).add(tensor)
    slopes = meter(model, x, layers).measure(range(len(x)))
    for i in range(len(x)):
        jacobian = torch.func.jacrev(lambda p, i=i: torch.func.functional_call(model, p, (x[i : i + 1],))[0])(
            parameters
        )
        for name, derivative in jacobian.items():
            steepest = derivative.abs().amax(0).flatten().numpy()
            predicted = np.zeros_like(steepest)
            for path, tensor in tensors[name]:
                tap = tap_of(modules[path], tensor, np.arange(len(steepest)))
                for call in slopes[path]:
                    predicted += call.taps[tensor][tap, i] * call.channel[i]
            assert (steepest <= predicted * (1 + 1e-4) + 1e-6).all(), name
            assert (predicted > 0).any()


def test_one_output_and_one_position_are_predicted_exactly() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    model = models.filled(model)
    x = numbers(3, 5)
    slopes = meter(model, x, {"2": {"weight", "bias"}}).measure(range(3))["2"][0]
    hidden = model[:2](x).detach().abs().numpy()
    np.testing.assert_allclose(slopes.taps["weight"].T * slopes.channel[:, None], hidden, rtol=1e-5)
    np.testing.assert_allclose(slopes.taps["bias"].T * slopes.channel[:, None], np.ones((3, 1)), rtol=1e-6)


class Borrowing(nn.Module):
    """Uses a layer's weight behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(self.a(x).tanh(), self.a.weight))


class TimeFirst(nn.Module):
    """Turns the axes, so that a layer sees [time, images, values]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.transpose(0, 1)).mean(0))


@pytest.mark.parametrize(("model", "shape"), [(Borrowing, (4, 5)), (TimeFirst, (4, 3, 5))])
def test_layers_whose_slopes_mislead_are_found(model: type[nn.Module], shape: tuple[int, ...]) -> None:
    found = meter(models.filled(model()), numbers(*shape), {"a": {"weight"}, "b": {"weight"}}).misfits()
    assert set(found) == {"a"}


def test_a_sound_model_has_no_misfits_and_is_left_as_it_was() -> None:
    model = normalised(models.filled(Residual())).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = {name: {"weight", "bias"} for name in ("conv1", "bn", "conv2", "fc")}
    measured = meter(model, numbers(4, 2, 4, 4), layers, {"relu"})
    assert set(measured.misfits()) == set()
    measured.measure(range(4))
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_which_modules_are_affine() -> None:
    assert is_affine(nn.Linear(2, 2)) and is_affine(nn.Conv1d(2, 2, 1)) and is_affine(nn.BatchNorm2d(2))
    assert not is_affine(nn.BatchNorm2d(2, track_running_stats=False))
    assert not is_affine(nn.LayerNorm(2)) and not is_affine(nn.Embedding(2, 2))
