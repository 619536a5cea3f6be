r"""Layers that compute in integers only; :mod:`saboteur.workloads.quantization` makes them from float networks.

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
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.errors import TargetError

INT8_MIN, INT8_MAX = -128, 127
WEIGHT_MAX = 127
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
MULTIPLIER_FRACTION_BITS = 31
SHIFT_MASK = 31
ADD_FRACTION_BITS = 20


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
    # To look at the constants would cost more than it saves where there are few accumulators for each.
    many = accumulators.numel() >= 16 * multiplier.numel()
    if many and _float64_is_exact(_bytes(multiplier), _bytes(shift)):
        outputs = _rounded_in_float64(accumulators, multiplier, shift)
    else:
        outputs = _rounded(accumulators, multiplier, shift)
    outputs += zero_point
    return outputs.clamp(INT8_MIN, INT8_MAX).to(torch.int8)


def _rounded(accumulators: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """Return ``round(a · multiplier · 2^−(31 + shift))`` as int64."""
    bits = MULTIPLIER_FRACTION_BITS + (shift.to(torch.int64) & SHIFT_MASK)
    scaled = accumulators.to(torch.int64) * multiplier
    minus_one_if_negative = scaled >> 63
    # In place from here on: fresh memory would cost more than the arithmetic.
    scaled += minus_one_if_negative
    scaled += torch.ones_like(bits) << (bits - 1)
    scaled >>= bits
    return scaled


def _rounded_in_float64(accumulators: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """Return the same in float64, a factor of ten faster, where :func:`_float64_is_exact`.

    The factor is larger than it should be by 2⁻⁵¹, which moves halves off zero.
    """
    bits = MULTIPLIER_FRACTION_BITS + (shift.to(torch.int64) & SHIFT_MASK)
    factor = torch.ldexp(multiplier.double() * (1 + 2.0**-51), -bits)
    return (accumulators.double() * factor).round_()


@lru_cache(maxsize=4096)
def _float64_is_exact(multiplier: bytes, shift: bytes) -> bool:
    """Whether rounding in float64 is exact for these constants and every accumulator, up to what is clamped anyway.

    Both functions of the accumulator never fall (or never rise). So they are the same from −256 to 256 if they are
    the same on both sides of each step of the exact one: around ``a · multiplier = ±(2 j + 1) 2^(n − 1)``.
    """
    multipliers = torch.from_numpy(np.frombuffer(multiplier, np.int32).copy())[:, None]
    shifts = torch.from_numpy(np.frombuffer(shift, np.int8).copy())[:, None]
    half = torch.ones_like(shifts, dtype=torch.int64) << (30 + (shifts.to(torch.int64) & SHIFT_MASK))
    # Steps above 2^62 are out of reach for a 32-bit accumulator and multiplier.
    steps = torch.minimum(2 * torch.arange(256) + 1, 2**62 // half) * half
    below = (steps // multipliers.to(torch.int64).abs().clamp(min=1)).clamp(max=INT32_MAX - 1)
    around = torch.cat([below - 1, below, below + 1], 1)
    around = torch.cat([around, -around], 1).to(torch.int32)
    return torch.equal(
        _rounded(around, multipliers, shifts).clamp(-256, 256).double(),
        _rounded_in_float64(around, multipliers, shifts).clamp(-256, 256),
    )


def _bytes(constants: Tensor) -> bytes:
    return constants.detach().cpu().numpy().tobytes()


def _sums(
    multiply: Callable[[Tensor, Tensor], Tensor],
    first: Tensor,
    second: Tensor,
    axes: tuple[int, int],
    largest_product: int,
    products_each: int = 1,
) -> Tensor:
    """Add up products of integers exactly, in float32 where that is proved to be exact.

    Float32 holds all integers up to 2²⁴, so that sums of at most ``2²⁴ / largest_product`` products are exact in
    any order and with any grouping, whatever the weights (also faulty ones); longer sums are cut into such parts.

    Args:
        multiply: Convolution or matrix product of two float tensors.
        first: Integers of any type.
        second: Likewise.
        axes: The axis of each over which ``multiply`` adds up.
        largest_product: Largest magnitude of the product of one element of each.
        products_each: How many products each place along these axes adds.

    Returns:
        int32, wrapped.
    """
    places = first.shape[axes[0]]
    step = 2**24 // (largest_product * products_each)
    if step == 0 or not _only_multiplies_and_adds(first.device):
        return _to_int32(multiply(first.double(), second.double()))
    first, second = first.float(), second.float()
    if step >= places:
        return _to_int32(multiply(first, second))
    total, *rest = (
        _to_int32(multiply(one, other))
        for one, other in zip(first.split(step, axes[0]), second.split(step, axes[1]), strict=True)
    )
    for part in rest:
        total = total + part
    return total


def _only_multiplies_and_adds(device: torch.device) -> bool:
    """Whether PyTorch computes convolutions by their products alone: by oneDNN's direct method on x86 processors.

    Elsewhere it may go through a transform with fractions (Winograd, FFT), and float64 has the room to spare.
    """
    return device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and bool(torch.backends.mkldnn.enabled)


def _to_int32(sums: Tensor) -> Tensor:
    """Keep the low 32 bits: the accumulator wraps. A float32 sum is below 2²⁴."""
    return (sums if sums.dtype == torch.float32 else sums.to(torch.int64)).to(torch.int32)


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

    def _finish(self, sums: Tensor, channel_axis: int) -> Tensor:
        """Add the bias to sums of products (int32) and requantise."""
        channel = (-1, *[1] * (sums.dim() - 1 - channel_axis))
        outputs = requantize(
            sums + self.bias.view(channel),
            self.multiplier.view(channel),
            self.shift.view(channel),
            self.output_zero_point,
        )
        return torch.maximum(outputs, self.output_zero_point) if self.relu else outputs


class Int8Linear(_Int8Layer):
    """Fully connected layer on int8 ``[..., in_features]``, with int8 result ``[..., out_features]``."""

    def __init__(self, in_features: int, out_features: int, *, relu: bool = False) -> None:
        super().__init__((out_features, in_features), relu)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8 ``[..., out_features]``."""
        centred = _centred(inputs, self.input_zero_point)
        return self._finish(_sums(F.linear, centred, self.weight, (-1, 1), 255 * 128), inputs.dim() - 1)


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

        def convolve(centred: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(centred, weight, stride=self.stride, padding=self.padding)

        centred = _centred(inputs, self.input_zero_point)
        kernel_area = self.weight.shape[2] * self.weight.shape[3]
        return self._finish(_sums(convolve, centred, self.weight, (1, 1), 255 * 128, kernel_area), 1)


class Int8MatMul(nn.Module):
    r"""Matrix product of two int8 activations, as attention needs it.

    The accumulator is ``Σ_k (a[m, k] − Z_a) (b[k, n] − Z_b)``, 32 bits, requantised by ``M = S_a S_b / S_y`` (Jacob
    et al., equations 3 to 5, with both zero points).

    Attributes:
        multiplier: int32 scalar, a buffer.
        shift: int8 scalar, a buffer.
        first_zero_point: int8 scalar, a buffer: Z_a.
        second_zero_point: int8 scalar, a buffer: Z_b.
        output_zero_point: int8 scalar, a buffer.
    """

    multiplier: Tensor
    shift: Tensor
    first_zero_point: Tensor
    second_zero_point: Tensor
    output_zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("multiplier", torch.full((), 2**30, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros((), dtype=torch.int8))
        for name in ("first_zero_point", "second_zero_point", "output_zero_point"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int8))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return int8 ``[..., m, n]`` from int8 ``[..., m, k]`` and ``[..., k, n]``."""
        centred = _centred(first, self.first_zero_point), _centred(second, self.second_zero_point)
        sums = _sums(torch.matmul, *centred, (-1, -2), 255 * 255)
        return requantize(sums, self.multiplier, self.shift, self.output_zero_point)


class Int8Add(nn.Module):
    r"""Sum of two int8 tensors that have scales of their own: a residual connection.

    The steps are those of TensorFlow Lite's quantised ADD (``reference/integer_ops/add.h``), each rounded once, halves
    away from zero::

        s_i = round((x_i − Z_i) · 2²⁰ · M_i),  M_i = S_i / (2 max(S_1, S_2))
        y = clamp(Z_y + round((s_1 + s_2) · M_y), −128, 127),  M_y = 2 max(S_1, S_2) / (2²⁰ S_y)

    Attributes:
        multipliers: int32 ``[2]``, a buffer: of M_1 and M_2.
        shifts: int8 ``[2]``, a buffer.
        zero_points: int8 ``[2]``, a buffer: Z_1 and Z_2.
        multiplier: int32 scalar, a buffer: of M_y.
        shift: int8 scalar, a buffer.
        output_zero_point: int8 scalar, a buffer: Z_y.
        relu: Whether a ReLU is fused into the sum.
    """

    multipliers: Tensor
    shifts: Tensor
    zero_points: Tensor
    multiplier: Tensor
    shift: Tensor
    output_zero_point: Tensor

    def __init__(self, *, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.register_buffer("multipliers", torch.full((2,), 2**30, dtype=torch.int32))
        self.register_buffer("shifts", torch.zeros(2, dtype=torch.int8))
        self.register_buffer("zero_points", torch.zeros(2, dtype=torch.int8))
        self.register_buffer("multiplier", torch.full((), 2**30, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros((), dtype=torch.int8))
        self.register_buffer("output_zero_point", torch.zeros((), dtype=torch.int8))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return int8 of the shape that ``first`` and ``second`` broadcast to."""
        sums = (self._aligned(first, 0) + self._aligned(second, 1)).to(torch.int32)
        outputs = requantize(sums, self.multiplier, self.shift, self.output_zero_point)
        return torch.maximum(outputs, self.output_zero_point) if self.relu else outputs

    def _aligned(self, integers: Tensor, which: int) -> Tensor:
        """Return s_i in float64, which holds (x − Z) · multiplier, of at most 40 bits, with room for 2⁻⁵¹ more."""
        bits = MULTIPLIER_FRACTION_BITS + (self.shifts[which].to(torch.int64) & SHIFT_MASK) - ADD_FRACTION_BITS
        factor = torch.ldexp(self.multipliers[which].double() * (1 + 2.0**-51), -bits)
        return (_centred(integers, self.zero_points[which]) * factor).round()


class Int8AvgPool2d(nn.Module):
    """Mean of square windows of int8 ``[batch, channels, height, width]`` that do not overlap.

    ``y = round(Σ x / count)``, halves away from zero, with scale and zero point of the input, as TensorFlow Lite's
    quantised AVERAGE_POOL_2D does. What is left at the bottom and the right is cut.

    Attributes:
        kernel_size: Edge of a window; ``None`` takes the whole image, to height and width 1.
    """

    def __init__(self, kernel_size: int | None = None) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8 ``[batch, channels, height // kernel_size, width // kernel_size]``."""
        window = tuple(inputs.shape[2:]) if self.kernel_size is None else (self.kernel_size, self.kernel_size)
        sums = F.avg_pool2d(inputs.double(), window, divisor_override=1)
        count = window[0] * window[1]
        halves = torch.copysign(torch.full_like(sums, count // 2), sums)
        return torch.div(sums + halves, count, rounding_mode="trunc").to(torch.int8)


class Int8Pad(nn.Module):
    """Puts the real number 0 around int8 tensors, as channels that a shortcut lacks (He et al., CVPR 2016, option A).

    Attributes:
        padding: Places before and after each of the last axes, the last axis first, as in ``F.pad``.
        zero_point: int8 scalar, a buffer: what stands for 0.
    """

    zero_point: Tensor

    def __init__(self, padding: tuple[int, ...]) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8, padded."""
        return (F.pad(_centred(inputs, self.zero_point), self.padding) + self.zero_point).to(torch.int8)


class Int8ReLU(nn.Module):
    """``max(x, Z_x)``, where no layer before it takes the ReLU in."""

    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8 of the shape of ``inputs``."""
        return torch.maximum(inputs, self.zero_point)


class Int8Softmax(nn.Module):
    """Softmax over the last axis of int8 tensors, with scale 1/256 and zero point −128 at the output.

    ``y = min(round(256 e[x_max − x] / Σ e[x_max − x]) − 128, 127)``, halves up, with the table
    ``e[d] = round(2¹⁶ exp(−S d))`` for the 256 differences *d* (the scale of the output is that of TensorFlow Lite's
    quantised SOFTMAX, the table is of this module).

    Attributes:
        exponentials: int32 ``[256]``, a buffer: *e*.
    """

    exponentials: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("exponentials", torch.zeros(256, dtype=torch.int32))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8 of the shape of ``inputs``."""
        wide = inputs.to(torch.int64)
        powers = self.exponentials[wide.amax(-1, keepdim=True) - wide].to(torch.int64)
        sums = powers.sum(-1, keepdim=True).clamp(min=1)
        parts = torch.div(512 * powers + sums, 2 * sums, rounding_mode="floor")
        return (parts + INT8_MIN).clamp(INT8_MIN, INT8_MAX).to(torch.int8)


def _centred(integers: Tensor, zero_point: Tensor) -> Tensor:
    """Return ``q − Z`` as int16, of magnitude at most 255."""
    return integers.to(torch.int16) - zero_point


class Int8MaxPool2d(nn.Module):
    """Largest of each 2×2 block of int8 ``[batch, channels, height, width]``; an odd last row or column is cut."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return int8 ``[batch, channels, height // 2, width // 2]``."""
        height, width = (size // 2 * 2 for size in inputs.shape[2:])
        rows = torch.maximum(inputs[..., 0:height:2, :], inputs[..., 1:height:2, :])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
