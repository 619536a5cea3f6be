"""The integer layers equal a plain integer implementation, bit for bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saboteur.errors import TargetError

torch = pytest.importorskip("torch")

from saboteur import workloads  # noqa: E402
from saboteur.workloads.int8 import (  # noqa: E402
    AffineScale,
    Dequantize,
    Int8Conv2d,
    Int8Linear,
    Int8MaxPool2d,
    Quantize,
    fixed_point,
    quantize_statically,
    requantize,
)

INT8 = st.integers(-128, 127)
INT32 = st.integers(-(2**31), 2**31 - 1)


def round_half_away(value: Fraction) -> int:
    magnitude = int(abs(value) + Fraction(1, 2))
    return magnitude if value >= 0 else -magnitude


def naive_requantize(accumulator: int, multiplier: int, shift: int, zero_point: int, low: int) -> int:
    wrapped = (accumulator + 2**31) % 2**32 - 2**31
    rounded = round_half_away(Fraction(wrapped * multiplier, 2 ** (31 + shift)))
    return max(low, min(127, zero_point + rounded))


def naive_conv(layer: Int8Conv2d, inputs: np.ndarray) -> np.ndarray:
    """Loop over every output position with Python's own integers, on inputs padded with the zero point."""
    weight, bias = layer.weight.numpy(), layer.bias.tolist()
    zero_in, zero_out = int(layer.input_zero_point), int(layer.output_zero_point)
    border, step, size = layer.padding, layer.stride, weight.shape[2]
    padded = np.pad(inputs, ((0, 0), (0, 0), (border, border), (border, border)), constant_values=zero_in).astype(
        object
    )
    height, width = ((extent - size) // step + 1 for extent in padded.shape[2:])
    outputs = np.zeros((len(inputs), len(weight), height, width), dtype=np.int8)
    for image, channel, row, column in np.ndindex(*outputs.shape):
        top, left = row * step, column * step
        window = padded[image, :, top : top + size, left : left + size]
        accumulator = bias[channel] + int(((window - zero_in) * weight[channel].astype(object)).sum())
        outputs[image, channel, row, column] = naive_requantize(
            accumulator,
            layer.multiplier[channel].item(),
            layer.shift[channel].item(),
            zero_out,
            zero_out if layer.relu else -128,
        )
    return outputs


def fill(layer: Int8Conv2d | Int8Linear, data: st.DataObject) -> None:
    """Draw every constant of a layer over its whole range."""
    outputs = len(layer.bias)
    drawn = {
        "weight": data.draw(hnp.arrays(np.int8, tuple(layer.weight.shape))),
        "bias": data.draw(hnp.arrays(np.int32, outputs, elements=st.one_of(st.integers(-(10**5), 10**5), INT32))),
        "multiplier": data.draw(hnp.arrays(np.int32, outputs, elements=st.integers(2**30, 2**31 - 1))),
        "shift": data.draw(hnp.arrays(np.int8, outputs, elements=st.integers(0, 31))),
        "input_zero_point": np.int8(data.draw(INT8)),
        "output_zero_point": np.int8(data.draw(INT8)),
    }
    layer.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in drawn.items()})


@given(data=st.data())
def test_convolution_equals_plain_integers(data: st.DataObject):
    kernel = data.draw(st.integers(1, 3))
    layer = Int8Conv2d(
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 3)),
        kernel,
        stride=data.draw(st.integers(1, 2)),
        padding=data.draw(st.integers(0, 2)),
        relu=data.draw(st.booleans()),
    )
    fill(layer, data)
    extent = st.integers(kernel, 5)
    shape = (data.draw(st.integers(1, 2)), layer.weight.shape[1], data.draw(extent), data.draw(extent))
    inputs = data.draw(hnp.arrays(np.int8, shape))
    outputs = layer(torch.from_numpy(inputs))
    assert outputs.dtype == torch.int8
    np.testing.assert_array_equal(outputs.numpy(), naive_conv(layer, inputs))


@given(data=st.data())
def test_fully_connected_layer_equals_plain_integers(data: st.DataObject):
    layer = Int8Linear(data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4)), relu=data.draw(st.booleans()))
    fill(layer, data)
    inputs = data.draw(hnp.arrays(np.int8, (data.draw(st.integers(1, 3)), layer.weight.shape[1])))
    # A fully connected layer is a convolution of 1×1 images by 1×1 kernels.
    as_convolution = Int8Conv2d(*reversed(layer.weight.shape), 1, relu=layer.relu)
    state = layer.state_dict()
    as_convolution.load_state_dict({**state, "weight": state["weight"][:, :, None, None]})
    expected = naive_conv(as_convolution, inputs[:, :, None, None])[:, :, 0, 0]
    np.testing.assert_array_equal(layer(torch.from_numpy(inputs)).numpy(), expected)


@given(accumulator=INT32, multiplier=INT32, shift=st.integers(0, 31), zero_point=INT8)
def test_requantisation_rounds_the_exact_product(accumulator: int, multiplier: int, shift: int, zero_point: int):
    result = requantize(
        torch.tensor([accumulator], dtype=torch.int32),
        torch.tensor([multiplier], dtype=torch.int32),
        torch.tensor([shift], dtype=torch.int8),
        torch.tensor(zero_point, dtype=torch.int8),
    )
    assert result.item() == naive_requantize(accumulator, multiplier, shift, zero_point, -128)


@pytest.mark.parametrize(
    ("accumulator", "zero_point", "expected"),
    [
        (1, 0, 1),  # 0.5 rounds away from zero
        (-1, 0, -1),
        (3, 0, 2),
        (-3, 0, -2),
        (4, 0, 2),
        (-5, 10, 7),  # −2.5 rounds to −3
        (1000, 0, 127),
        (-1000, 0, -128),
        (40, -100, -80),
    ],
)
def test_requantisation_by_one_half(accumulator: int, zero_point: int, expected: int):
    multiplier, shift = fixed_point(torch.tensor([0.5]))
    accumulators = torch.tensor([accumulator], dtype=torch.int32)
    assert requantize(accumulators, multiplier, shift, torch.tensor(zero_point)).tolist() == [expected]


def test_fused_relu_cuts_at_the_output_zero_point():
    layer = Int8Linear(1, 1, relu=True)
    layer.weight.fill_(1)
    layer.output_zero_point.fill_(-100)
    # The multiplier of a new layer stands for one half.
    assert layer(torch.tensor([[-40], [0], [40]], dtype=torch.int8)).tolist() == [[-100], [-100], [-80]]


@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(2, 5), st.integers(2, 5))))
def test_max_pooling_equals_pytorch(inputs: np.ndarray):
    tensor = torch.from_numpy(inputs)
    pooled = Int8MaxPool2d()(tensor)
    assert pooled.dtype == torch.int8
    assert torch.equal(pooled, torch.nn.functional.max_pool2d(tensor, 2))


def test_shifter_reads_five_bits():
    operands = torch.tensor([9], dtype=torch.int32), torch.tensor([2**30], dtype=torch.int32)
    zero = torch.tensor(0)
    expected = requantize(*operands, torch.tensor([1], dtype=torch.int8), zero)
    assert expected.tolist() == [2]
    for shift in (33, 65, -31, -127):
        assert torch.equal(requantize(*operands, torch.tensor([shift], dtype=torch.int8), zero), expected)


def test_accumulator_wraps_at_32_bits():
    layer = Int8Linear(1, 1)
    layer.weight.fill_(1)
    layer.bias.fill_(2**31 - 1)
    assert layer(torch.tensor([[0]], dtype=torch.int8)).item() == 127
    assert layer(torch.tensor([[1]], dtype=torch.int8)).item() == -128


def test_fixed_point_known_answers():
    factors = torch.tensor([0.5, 0.25, 0.75, 1 / 3, 2.0**-32, 0.5 - 2.0**-40], dtype=torch.float64)
    multiplier, shift = fixed_point(factors)
    assert multiplier.tolist() == [2**30, 2**30, 3 * 2**29, 1431655765, 2**30, 2**30]
    assert shift.tolist() == [0, 1, 0, 1, 31, 0]


@given(st.floats(2.0**-32, 1 - 2.0**-31))
def test_fixed_point_is_close_to_the_factor(factor: float):
    multiplier, shift = fixed_point(torch.tensor([factor], dtype=torch.float64))
    assert 2**30 <= multiplier.item() < 2**31
    approximation = Fraction(multiplier.item(), 2 ** (31 + shift.item()))
    assert abs(approximation / Fraction(factor) - 1) <= Fraction(1, 2**31)


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.0, 1 - 2.0**-40, 2.0**-33, float("nan"), float("inf")])
def test_fixed_point_refuses_what_it_cannot_hold(factor: float):
    with pytest.raises(TargetError, match=r"requantisation factors must lie in \[2\*\*-32, 1\)"):
        fixed_point(torch.tensor([factor], dtype=torch.float64))


def test_affine_scale_known_answers():
    assert AffineScale.covering(0.0, 255.0) == AffineScale(1.0, -128)
    assert AffineScale.covering(-255.0, -1.0) == AffineScale(1.0, 127)
    assert AffineScale.covering(-63.75, 63.75) == AffineScale(0.5, 0)
    for lowest, highest in [(0.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)]:
        with pytest.raises(TargetError, match="need a finite range"):
            AffineScale.covering(lowest, highest)


def test_quantising_and_dequantising_inputs():
    quantize, dequantize = Quantize(), Dequantize()
    for module in (quantize, dequantize):
        module.scale.fill_(0.25)
        module.zero_point.fill_(-3)
    reals = torch.tensor([0.0, 0.125, -0.125, 0.124, 1.0, 1e9, -1e9, float("inf"), float("-inf"), float("nan")])
    integers = quantize(reals)
    assert integers.dtype == torch.int8
    assert integers.tolist() == [-3, -2, -4, -3, 1, 127, -128, 127, -128, -3]
    assert dequantize(integers[:5]).tolist() == [0.0, 0.25, -0.25, 0.0, 1.0]


class FloatNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 3)

    def forward(self, inputs):
        return self.fc(inputs)


class Int8Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantize = Quantize()
        self.fc = Int8Linear(6, 3)
        self.dequantize = Dequantize()

    def forward(self, inputs):
        return self.dequantize(self.fc(self.quantize(inputs)))


@given(seed=st.integers(0, 2**32))
def test_static_quantisation_stays_within_its_rounding_errors(seed: int):
    generator = torch.Generator().manual_seed(seed)
    model, int8_model = FloatNet().requires_grad_(False), Int8Net()
    torch.nn.init.normal_(model.fc.weight, generator=generator)
    torch.nn.init.normal_(model.fc.bias, generator=generator)
    inputs = torch.randn(16, 6, generator=generator)
    quantize_statically(int8_model, model, inputs)

    input_step, output_step = int8_model.quantize.scale, int8_model.dequantize.scale
    weight_step = model.fc.weight.abs().amax(dim=1) / 127
    # Half a step for each rounded operand; the ends of a range may be off by half a step more (zero point).
    input_error = input_step
    per_product = input_error * model.fc.weight.abs().sum(dim=1) + weight_step / 2 * (inputs.abs() + input_error).sum(
        dim=1, keepdim=True
    )
    bound = per_product + input_step * weight_step / 2 + output_step
    assert ((int8_model(inputs) - model(inputs)).abs() <= bound * (1 + 1e-5)).all()


def test_static_quantisation_refuses_a_dead_layer_and_leaves_no_hook():
    model = FloatNet().requires_grad_(False)
    model.fc.weight.zero_()
    model.fc.bias.zero_()
    with pytest.raises(TargetError, match=r"activations range over \[0\.0, 0\.0\]"):
        quantize_statically(Int8Net(), model, torch.ones(1, 6))
    assert not model.fc._forward_hooks


@pytest.mark.parametrize(
    "layer", [torch.nn.Linear(5, 3), torch.nn.Linear(6, 3, bias=False), torch.nn.Identity()], ids=repr
)
def test_static_quantisation_refuses_a_layer_that_does_not_match(layer: torch.nn.Module):
    model = FloatNet()
    model.fc = layer
    inputs = torch.ones(1, layer.in_features if isinstance(layer, torch.nn.Linear) else 6)
    with pytest.raises(TargetError, match=r"layer 'fc' is .*; need a Conv2d or Linear .* shape \[3, 6\]"):
        quantize_statically(Int8Net(), model, inputs)


def test_faulty_parameters_can_be_vectorised_over():
    """A column of faulty weights or biases in one call gives what each gives alone."""
    workload = workloads.load("digits-cnn-int8")
    images = workload.inputs[:4]
    for key, bit in [("conv1.weight", 6), ("conv2.bias", 12), ("fc.bias", 31)]:
        golden = workload.model.get_parameter(key)
        faulty = golden.clone()
        faulty.view(-1)[0] ^= -(2**bit) if bit == 31 else 2**bit

        def run(parameter, key=key):
            return torch.func.functional_call(workload.model, {key: parameter}, (images,))

        together = torch.func.vmap(run)(torch.stack([golden, faulty]))
        assert torch.equal(together[0], workload.model(images))
        assert torch.equal(together[1], run(faulty))
        assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", ["digits-cnn", "digits-mlp6", "digits-lenet7"])
def test_shipped_int8_networks_are_within_one_per_cent_of_float(name: str):
    int8_workload = workloads.load(f"{name}-int8")
    assert abs(int8_workload.accuracy - workloads.load(name).accuracy) <= 0.01
    state = int8_workload.model.state_dict()
    assert {state[key].dtype for key in state if key.endswith(".weight")} == {torch.int8}
    assert {state[key].dtype for key in state if key.endswith(".bias")} == {torch.int32}


def test_shipped_int8_network_equals_plain_integers_layer_by_layer():
    workload = workloads.load("digits-cnn-int8")
    model, images = workload.model, workload.inputs[:2]
    quantized = model.quantize(images).numpy()
    assert model.quantize.scale.item() == np.float32(1 / 255)
    assert model.quantize.zero_point.item() == -128
    steps = images.numpy() / np.float32(1 / 255)
    np.testing.assert_array_equal(quantized, np.floor(steps.astype(np.float64) + 0.5) - 128)
    first = naive_conv(model.conv1, quantized)
    second = naive_conv(model.conv2, first)
    pooled = second.reshape(2, 16, 4, 2, 4, 2).max(axis=(3, 5)).reshape(2, 256, 1, 1)
    as_convolution = Int8Conv2d(256, 10, 1)
    state = model.fc.state_dict()
    as_convolution.load_state_dict({**state, "weight": state["weight"][:, :, None, None]})
    logits = naive_conv(as_convolution, pooled).reshape(2, 10)
    expected = (logits - model.dequantize.zero_point.numpy().astype(np.float32)) * model.dequantize.scale.numpy()
    np.testing.assert_array_equal(model(images).numpy(), expected)
