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
from saboteur.workloads import int8  # noqa: E402
from saboteur.workloads.int8 import (  # noqa: E402
    AffineScale,
    Dequantize,
    Int8Add,
    Int8AvgPool2d,
    Int8Conv2d,
    Int8Linear,
    Int8MatMul,
    Int8MaxPool2d,
    Int8Pad,
    Int8ReLU,
    Int8Softmax,
    Quantize,
    fixed_point,
    requantize,
)
from saboteur.workloads.quantization import quantize_statically  # noqa: E402

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


CONSTANTS = st.tuples(st.one_of(st.integers(1, 2**31 - 1), INT32), st.integers(0, 31))


@given(constants=CONSTANTS, step=st.integers(-256, 256), beside=st.integers(-2, 2), zero_point=INT8)
def test_requantisation_rounds_exactly_beside_every_half(
    constants: tuple[int, int], step: int, beside: int, zero_point: int
):
    multiplier, shift = constants
    half = (2 * step + 1) << (30 + shift)
    accumulator = max(-(2**31), min(2**31 - 1, half // (multiplier or 1) + beside))
    result = requantize(
        torch.tensor([accumulator], dtype=torch.int32),
        torch.tensor([multiplier], dtype=torch.int32),
        torch.tensor([shift], dtype=torch.int8),
        torch.tensor(zero_point, dtype=torch.int8),
    )
    assert result.item() == naive_requantize(accumulator, multiplier, shift, zero_point, -128)


def test_requantisation_is_exact_where_float64_rounds_wrong():
    """The product is 225.5 − 2⁻⁴³, so near the half that float64 arithmetic takes it for the half or more."""
    accumulator, multiplier, shift = 924453, 2145613651, 12
    assert accumulator * multiplier == 451 * 2**42 - 1
    constants = torch.tensor([multiplier], dtype=torch.int32), torch.tensor([shift], dtype=torch.int8)
    zero_point = torch.tensor(-128, dtype=torch.int8)
    assert int8._rounded_in_float64(torch.tensor([accumulator], dtype=torch.int32), *constants).tolist() == [226.0]
    for sign, expected in ((1, 97), (-1, -128)):
        accumulators = torch.tensor([sign * accumulator], dtype=torch.int32)
        assert requantize(accumulators, *constants, zero_point).tolist() == [expected]
    assert requantize(-torch.tensor([accumulator], dtype=torch.int32), *constants, torch.tensor(127)).tolist() == [-98]


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
    model, int8_model = FloatNet().eval().requires_grad_(False), Int8Net()
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
    model = FloatNet().eval().requires_grad_(False)
    model.fc.weight.zero_()
    model.fc.bias.zero_()
    with pytest.raises(TargetError, match=r"activations range over \[0\.0, 0\.0\]"):
        quantize_statically(Int8Net(), model, torch.ones(1, 6))
    assert not model.fc._forward_hooks


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (torch.nn.Linear(5, 3), r"(?s)Int8Net is not FloatNet in int8: .*fc\.weight"),
        (torch.nn.Identity(), r"(?s)Int8Net is not FloatNet in int8: .*fc\.weight"),
    ],
    ids=["size", "missing"],
)
def test_static_quantisation_refuses_a_layer_that_does_not_match(layer: torch.nn.Module, message: str):
    model = FloatNet().eval().requires_grad_(False)
    model.fc = layer
    inputs = torch.ones(1, layer.in_features if isinstance(layer, torch.nn.Linear) else 6)
    with pytest.raises(TargetError, match=message):
        quantize_statically(Int8Net(), model.eval(), inputs)


def test_static_quantisation_refuses_another_relu():
    int8_model = Int8Net()
    int8_model.fc.relu = True
    with pytest.raises(TargetError, match="layer 'fc' of Int8Net has relu=True; the network needs False"):
        quantize_statically(int8_model, FloatNet().eval().requires_grad_(False), torch.ones(1, 6))


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


@pytest.mark.parametrize("channels", [57, 58, 129])
def test_sums_of_many_extreme_products_are_exact(channels: int):
    """Beyond 514 products of 255 · 128, float32 alone could not hold a sum."""
    layer = Int8Conv2d(channels, 2, 3, padding=1)
    layer.weight.fill_(-128)
    layer.weight[1, :, 1, 1] = 127
    layer.input_zero_point.fill_(-128)
    layer.shift.fill_(24)
    inputs = torch.full((1, channels, 3, 3), 127, dtype=torch.int8)
    inputs[0, 0, 0, 0] = 126
    np.testing.assert_array_equal(layer(inputs).numpy(), naive_conv(layer, inputs.numpy()))
    sums = int8._sums(torch.matmul, torch.full((1, 700), 255), torch.full((700, 1), 255), (-1, -2), 255 * 255)
    assert sums.tolist() == [[700 * 255 * 255]]


def test_layers_on_other_processors_use_float64(monkeypatch: pytest.MonkeyPatch):
    workload = workloads.load("digits-cnn-int8")
    expected = workload.model(workload.inputs)
    monkeypatch.setattr(int8.platform, "machine", lambda: "aarch64")
    seen = []
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda *args, **kwargs: seen.append(args[0].dtype) or convolve(*args, **kwargs)
    )
    assert torch.equal(workload.model(workload.inputs), expected)
    assert set(seen) == {torch.float64}


def naive_add(module: Int8Add, first: int, second: int) -> int:
    """The three roundings of TensorFlow Lite's ADD with Python's own integers."""
    parts = [
        round_half_away(Fraction((value - int(zero)) * 2**20 * int(multiplier), 2 ** (31 + int(shift))))
        for value, zero, multiplier, shift in zip(
            (first, second), module.zero_points, module.multipliers, module.shifts, strict=True
        )
    ]
    low = int(module.output_zero_point) if module.relu else -128
    return naive_requantize(sum(parts), int(module.multiplier), int(module.shift), int(module.output_zero_point), low)


@given(data=st.data())
def test_residual_sum_equals_plain_integers(data: st.DataObject):
    module = Int8Add(relu=data.draw(st.booleans()))
    positive = st.integers(2**30, 2**31 - 1)
    drawn = {
        "multipliers": data.draw(hnp.arrays(np.int32, 2, elements=positive)),
        "shifts": data.draw(hnp.arrays(np.int8, 2, elements=st.integers(0, 31))),
        "zero_points": data.draw(hnp.arrays(np.int8, 2)),
        "multiplier": np.int32(data.draw(positive)),
        "shift": np.int8(data.draw(st.integers(15, 22))),
        "output_zero_point": np.int8(data.draw(INT8)),
    }
    module.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in drawn.items()})
    first, second = (data.draw(hnp.arrays(np.int8, 6)) for _ in range(2))
    outputs = module(torch.from_numpy(first), torch.from_numpy(second))
    assert outputs.tolist() == [naive_add(module, int(a), int(b)) for a, b in zip(first, second, strict=True)]


def test_residual_sum_known_answer():
    """0.5 (q₁ + 3) + 0.25 q₂ in steps of 0.5: 0.5 · 13 + 0.25 · 7 = 8.25 = 16.5 steps, rounded to 17."""
    module = Int8Add()
    module.zero_points.copy_(torch.tensor([-3, 0]))
    module.multipliers.copy_(torch.tensor([2**30, 2**30]))
    module.shifts.copy_(torch.tensor([0, 1]))
    module.shift.fill_(18)
    module.output_zero_point.fill_(5)
    outputs = module(torch.tensor([10, -16], dtype=torch.int8), torch.tensor([7, -7], dtype=torch.int8))
    assert outputs.tolist() == [22, -12]


@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(3, 7), st.integers(3, 7))))
def test_average_pooling_rounds_halves_away_from_zero(inputs: np.ndarray):
    for kernel, outputs in ((3, Int8AvgPool2d(3)), (2, Int8AvgPool2d(2)), (None, Int8AvgPool2d())):
        found = outputs(torch.from_numpy(inputs)).numpy()
        height, width = (kernel, kernel) if kernel else inputs.shape[2:]
        assert found.shape[2:] == (inputs.shape[2] // height, inputs.shape[3] // width)
        for at in np.ndindex(*found.shape):
            top, left = at[2] * height, at[3] * width
            window = inputs[at[0], at[1], top : top + height, left : left + width].astype(int)
            assert found[at] == round_half_away(Fraction(int(window.sum()), window.size))


def test_padding_and_relu_use_the_zero_point():
    pad, relu = Int8Pad((0, 1, 1, 0)), Int8ReLU()
    for module in (pad, relu):
        module.zero_point.fill_(-100)
    values = torch.tensor([[[127, -128], [-100, 3]]], dtype=torch.int8)
    assert pad(values).tolist() == [[[-100, -100, -100], [127, -128, -100], [-100, 3, -100]]]
    assert relu(values).tolist() == [[[127, -100], [-100, 3]]]


@given(data=st.data())
def test_product_of_activations_equals_plain_integers(data: st.DataObject):
    module = Int8MatMul()
    drawn = {
        "multiplier": np.int32(data.draw(st.integers(2**30, 2**31 - 1))),
        "shift": np.int8(data.draw(st.integers(0, 16))),
        **{name: np.int8(data.draw(INT8)) for name in ("first_zero_point", "second_zero_point", "output_zero_point")},
    }
    module.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in drawn.items()})
    m, k, n = (data.draw(st.integers(1, 4)) for _ in range(3))
    first, second = data.draw(hnp.arrays(np.int8, (2, m, k))), data.draw(hnp.arrays(np.int8, (2, k, n)))
    found = module(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    sums = (first.astype(int) - drawn["first_zero_point"]) @ (second.astype(int) - drawn["second_zero_point"])
    expected = [
        naive_requantize(int(a), int(drawn["multiplier"]), int(drawn["shift"]), int(drawn["output_zero_point"]), -128)
        for a in sums.ravel()
    ]
    assert found.ravel().tolist() == expected


def test_softmax_is_within_a_step_of_the_real_one():
    module = Int8Softmax()
    module.exponentials.copy_(torch.round(2**16 * torch.exp(-0.05 * torch.arange(256, dtype=torch.float64))))
    inputs = torch.arange(-128, 128, dtype=torch.int8).reshape(16, 16)[:, torch.tensor([3, 15, 0, 9, 6])]
    probabilities = (module(inputs).double() + 128) / 256
    real = torch.softmax(inputs.double() * 0.05, -1)
    assert ((probabilities - real).abs() <= 0.5 / 256 + 1e-4).all()
    assert module(torch.tensor([[127, -128, -128]], dtype=torch.int8)).tolist() == [[127, -128, -128]]
