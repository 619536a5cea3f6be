r"""Layers that compute in integers only, and post-training static quantisation into them.

The arithmetic is that of Jacob et al., *Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference* (CVPR 2018), with signed eight-bit values and one weight scale per output
channel (Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference*, 2018). All steps are
exact, so that a hardware description of it matches bit for bit:

* A real number *r* is held as an integer *q* with ``r = S (q − Z)`` (Jacob et al., equation 1). Activations
  have one scale *S* and zero point *Z* a tensor, ``−128 <= q, Z <= 127``; weights have a scale *S_w* for each
  output channel, ``Z = 0`` and ``−127 <= q <= 127``; biases have ``S = S_x S_w`` and ``Z = 0`` (equation 11).
* The accumulator of output channel *o* is ``a = bias[o] + Σ weight[o, i] (x[i] − Z_x)`` (equation 4 with a
  weight zero point of 0), kept as 32-bit two's complement: it wraps modulo 2³². Padding holds *Z_x*, which is
  the real number 0.
* The output is ``y = clamp(Z_y + round(a M[o]), −128, 127)``; ``M[o] = S_x S_w[o] / S_y`` (equation 5) is held
  as a multiplier and a right shift, ``M ≈ multiplier · 2^−(31 + shift)`` with ``2³⁰ <= multiplier < 2³¹``
  (equation 6). The product is kept in 64 bits and rounded **once**, to nearest with **halves away from zero**:
  with ``n = 31 + shift`` and ``p = a · multiplier``, ``round = (p + 2^(n−1) − (p < 0)) >> n``, an arithmetic
  shift. (gemmlowp, and TensorFlow Lite unless built for single rounding, round twice, after 31 bits and after
  the shift, and so can differ by one.)
* A fused ReLU is ``max(y, Z_y)`` (section 2.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.errors import TargetError

INT8_MIN, INT8_MAX = -128, 127
WEIGHT_MAX = 127
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
MULTIPLIER_FRACTION_BITS = 31
SHIFT_MASK = 31


@dataclass(frozen=True, slots=True)
class AffineScale:
    """The affine map ``real = scale · (q − zero_point)`` of one int8 tensor (Jacob et al., equation 1).

    Attributes:
        scale: Real step between neighbouring integers, positive, representable in float32.
        zero_point: The integer that stands for 0.0, in [−128, 127].
    """

    scale: float
    zero_point: int

    @classmethod
    def covering(cls, lowest: float, highest: float) -> AffineScale:
        """Return the finest map onto [−128, 127] that covers ``[lowest, highest]`` and 0.

        0.0 falls exactly on an integer, as padding and ReLU need it (Jacob et al., section 3.1).

        Raises:
            TargetError: If the range is empty (only 0) or not finite.
        """
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        if not 0 < highest - lowest < math.inf:
            raise TargetError(f"activations range over [{lowest}, {highest}]; need a finite range wider than 0")
        scale = torch.tensor((highest - lowest) / (INT8_MAX - INT8_MIN), dtype=torch.float32).item()
        zero_point = round(INT8_MIN - lowest / scale)
        return cls(scale, max(INT8_MIN, min(INT8_MAX, zero_point)))


def fixed_point(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Split real factors into a Q31 multiplier and a right shift (Jacob et al., equation 6).

    Args:
        factors: float64 of any shape, each in [2⁻³², 1).

    Returns:
        ``multiplier`` (int32, in [2³⁰, 2³¹)) and ``shift`` (int8, in [0, 31]), of the same shape, with
        ``factors ≈ multiplier · 2^−(31 + shift)`` to within a relative error of 2⁻³¹.

    Raises:
        TargetError: If a factor is outside that range.
    """
    mantissa, exponent = torch.frexp(factors.double())
    multiplier = torch.round(torch.ldexp(mantissa, torch.tensor(MULTIPLIER_FRACTION_BITS))).to(torch.int64)
    carried = multiplier == 2**MULTIPLIER_FRACTION_BITS
    multiplier = torch.where(carried, multiplier // 2, multiplier)
    shift = -(exponent.to(torch.int64) + carried)
    if not ((factors > 0) & (factors < 1) & (shift >= 0) & (shift <= SHIFT_MASK)).all():
        raise TargetError(f"requantisation factors must lie in [2**-32, 1), got {factors.flatten().tolist()}")
    return multiplier.to(torch.int32), shift.to(torch.int8)


def requantize(accumulators: Tensor, multiplier: Tensor, shift: Tensor, zero_point: Tensor) -> Tensor:
    """Scale 32-bit accumulators *a* to int8.

    The result is ``clamp(zero_point + round(a · multiplier · 2^−(31 + shift)), −128, 127)``, rounded once, to
    nearest, halves away from zero. Defined for every bit pattern, as hardware is: the shifter reads the five
    lowest bits of ``shift``.

    Args:
        accumulators: int32, any shape.
        multiplier: int32, broadcastable to ``accumulators``.
        shift: int8, broadcastable likewise.
        zero_point: int8 scalar.

    Returns:
        int8 of the shape of ``accumulators``.
    """
    bits = MULTIPLIER_FRACTION_BITS + (shift.to(torch.int64) & SHIFT_MASK)
    scaled = accumulators.to(torch.int64) * multiplier
    minus_one_if_negative = scaled >> 63
    # In place from here on: fresh memory would cost more than the arithmetic.
    scaled += minus_one_if_negative
    scaled += torch.ones_like(bits) << (bits - 1)
    scaled >>= bits
    scaled += zero_point
    return scaled.clamp(INT8_MIN, INT8_MAX).to(torch.int8)


class Quantize(nn.Module):
    """Turn real inputs into int8: ``q = clamp(round(r / scale) + zero_point, −128, 127)``.

    The division is one float32 operation; halves are rounded away from zero; NaN is read as 0.0.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8))

    def forward(self, reals: Tensor) -> Tensor:
        """Return int8 of the shape of ``reals`` (float32)."""
        # float64 holds every float32 plus one half exactly.
        steps = torch.nan_to_num(reals / self.scale, nan=0.0).double()
        rounded = torch.trunc(steps + torch.copysign(torch.full_like(steps, 0.5), steps))
        return (rounded + self.zero_point).clamp(INT8_MIN, INT8_MAX).to(torch.int8)


class Dequantize(nn.Module):
    """Turn int8 into real numbers: ``r = scale · (q − zero_point)`` in float32."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8))

    def forward(self, integers: Tensor) -> Tensor:
        """Return float32 of the shape of ``integers`` (int8)."""
        return (integers.to(torch.float32) - self.zero_point) * self.scale


class _Int8Layer(nn.Module):
    """Weights, bias and requantisation constants of one layer; see the module's text for the formulas.

    Attributes:
        weight: int8 ``[outputs, ...]``, a parameter.
        bias: int32 ``[outputs]``, a parameter.
        multiplier: int32 ``[outputs]``, a buffer.
        shift: int8 ``[outputs]``, a buffer.
        input_zero_point: int8 scalar, a buffer.
        output_zero_point: int8 scalar, a buffer.
        relu: Whether a ReLU is fused into the layer.
    """

    multiplier: Tensor
    shift: Tensor
    input_zero_point: Tensor
    output_zero_point: Tensor

    def __init__(self, weight_shape: tuple[int, ...], relu: bool) -> None:
        super().__init__()
        outputs = weight_shape[0]
        self.relu = relu
        self.weight = nn.Parameter(torch.zeros(weight_shape, dtype=torch.int8), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.int32), requires_grad=False)
        self.register_buffer("multiplier", torch.full((outputs,), 2**30, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(outputs, dtype=torch.int8))
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.int8))
        self.register_buffer("output_zero_point", torch.zeros((), dtype=torch.int8))

    def _centred(self, inputs: Tensor) -> Tensor:
        """Return ``x − Z_x``; float64 holds these integers, and all their sums of products, exactly."""
        return inputs.double() - self.input_zero_point

    def _finish(self, products: Tensor) -> Tensor:
        """Add the bias to sums of products (float64 ``[batch, outputs, *positions]``) and requantise."""
        channel = (-1, *[1] * (products.dim() - 2))
        # Casting to int32 keeps the low 32 bits: the accumulator wraps.
        accumulators = (products + self.bias.view(channel)).to(torch.int64).to(torch.int32)
        outputs = requantize(
            accumulators, self.multiplier.view(channel), self.shift.view(channel), self.output_zero_point
        )
        return torch.maximum(outputs, self.output_zero_point) if self.relu else outputs


class Int8Linear(_Int8Layer):
    """Fully connected layer on int8 ``[batch, in_features]``, with int8 result ``[batch, out_features]``."""

    def __init__(self, in_features: int, out_features: int, *, relu: bool = False) -> None:
        super().__init__((out_features, in_features), relu)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8 ``[batch, out_features]``."""
        return self._finish(F.linear(self._centred(inputs), self.weight.double()))


class Int8Conv2d(_Int8Layer):
    """Convolution on int8 ``[batch, in_channels, height, width]``; pads with the input's zero point."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
    ) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), relu)
        self.stride, self.padding = stride, padding

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8 ``[batch, out_channels, out_height, out_width]``."""
        products = F.conv2d(self._centred(inputs), self.weight.double(), stride=self.stride, padding=self.padding)
        return self._finish(products)


class Int8MaxPool2d(nn.Module):
    """Largest of each 2×2 block of int8 ``[batch, channels, height, width]``; an odd last row or column is cut."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8 ``[batch, channels, height // 2, width // 2]``."""
        height, width = (size // 2 * 2 for size in inputs.shape[2:])
        rows = torch.maximum(inputs[..., 0:height:2, :], inputs[..., 1:height:2, :])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


def quantize_statically(int8_model: nn.Module, model: nn.Module, calibration_inputs: Tensor) -> None:
    """Fill ``int8_model`` with the quantised weights of ``model``: post-training static quantisation.

    The range of each layer's output is its minimum and maximum over ``calibration_inputs`` (from 0 where a
    ReLU is fused). Layers are paired by name; they must form a chain, in the order in which ``int8_model``
    registers them, between a :class:`Quantize` called ``quantize`` and a :class:`Dequantize` called
    ``dequantize``. What lies between two layers may only move or select values (flatten, max pooling).

    Args:
        int8_model: Chain of :class:`Int8Conv2d` and :class:`Int8Linear`, changed in place.
        model: The trained network, with ``nn.Conv2d`` or ``nn.Linear`` of the same names.
        calibration_inputs: Representative float32 inputs of ``model``, ``[n, ...]``.

    Raises:
        TargetError: If a layer of ``model`` does not match its int8 layer, its output is constant zero or not
            finite, or a requantisation factor falls out of range.
    """
    layers = {name: layer for name, layer in int8_model.named_modules() if isinstance(layer, _Int8Layer)}
    outputs = _observe(model, layers, calibration_inputs)
    current = AffineScale.covering(*_range(calibration_inputs))
    _set_scale(int8_model.quantize, current)
    for name, layer in layers.items():
        lowest, highest = _range(outputs[name])
        following = AffineScale.covering(0.0 if layer.relu else lowest, highest)
        source = model.get_submodule(name)
        if (
            not isinstance(source, nn.Conv2d | nn.Linear)
            or source.bias is None
            or source.weight.shape != layer.weight.shape
        ):
            raise TargetError(
                f"layer {name!r} is {source}; need a Conv2d or Linear with a bias and a weight of shape "
                f"{list(layer.weight.shape)}"
            )
        _fill(layer, source, current, following)
        current = following
    _set_scale(int8_model.dequantize, current)


def _observe(model: nn.Module, names: Iterable[str], inputs: Tensor) -> dict[str, Tensor]:
    """Run ``model`` once and return the outputs of the modules called ``names``."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[name] = output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _range(values: Tensor) -> tuple[float, float]:
    lowest, highest = torch.aminmax(values)
    return lowest.item(), highest.item()


def _set_scale(module: Quantize | Dequantize, affine: AffineScale) -> None:
    module.scale.fill_(affine.scale)
    module.zero_point.fill_(affine.zero_point)


def _fill(layer: _Int8Layer, source: nn.Conv2d | nn.Linear, before: AffineScale, after: AffineScale) -> None:
    weight, bias = source.weight.detach().double(), source.bias.detach().double()
    largest = weight.flatten(1).abs().amax(dim=1)
    # A channel without weights may have any scale; 1 keeps the arithmetic defined.
    weight_scale = torch.where(largest > 0, largest / WEIGHT_MAX, torch.ones_like(largest))
    per_output = weight_scale.view(-1, *[1] * (weight.dim() - 1))
    layer.weight.copy_(torch.round(weight / per_output).to(torch.int8))
    accumulator_scale = before.scale * weight_scale
    layer.bias.copy_(torch.round(bias / accumulator_scale).clamp(INT32_MIN, INT32_MAX).to(torch.int32))
    multiplier, shift = fixed_point(accumulator_scale / after.scale)
    layer.multiplier.copy_(multiplier)
    layer.shift.copy_(shift)
    layer.input_zero_point.fill_(before.zero_point)
    layer.output_zero_point.fill_(after.zero_point)
