"""Tensors as words of a number format, and number formats emulated on floating-point tensors.

Where a tensor's own type is the format, words are its raw bits, NaN payloads included. Where a format is
emulated, the tensor holds the format's values, and words are found through the format's definition in
:mod:`saboteur.faults.formats`. A value that needs more digits than the tensor's type has is rounded to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from saboteur.errors import TargetError
from saboteur.faults.formats import Affine, FixedPoint, Floating, NumberFormat
from saboteur.levels.software.flow import first_tensor, replace_first_tensor


@dataclass(frozen=True)
class Integer64(NumberFormat):
    """Plain 64-bit integers, such as token numbers. Values beyond 2⁵³ are read to float64's precision."""

    name: str = "int64"
    bits: int = 64

    def encode(self, values: ArrayLike) -> NDArray[np.uint64]:
        """Round to nearest even and saturate; NaN becomes zero."""
        values = np.rint(np.nan_to_num(np.asarray(values, np.float64)))
        inside = np.clip(values, -(2.0**63), np.nextafter(2.0**63, 0)).astype(np.int64)
        return np.where(values >= 2.0**63, np.iinfo(np.int64).max, inside).astype(np.uint64)

    def decode(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Two's complement."""
        return words.astype(np.int64).astype(np.float64)

    @property
    def lowest(self) -> float:
        """−2⁶³."""
        return -(2.0**63)

    @property
    def highest(self) -> float:
        """2⁶³ − 1, which float64 holds as 2⁶³."""
        return 2.0**63


_FLOATING = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float8_e4m3fn: "float8_e4m3",
    torch.float8_e5m2: "float8_e5m2",
}
_TORCH_FLOATING = {name: dtype for dtype, name in _FLOATING.items()}
_INTEGER = {
    torch.int8: Affine(8),
    torch.uint8: Affine(8, signed=False),
    torch.int16: Affine(16),
    torch.int32: Affine(32),
    torch.int64: Integer64(),
}
_SIGNED_WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def native_format(dtype: torch.dtype) -> NumberFormat:
    """The number format that tensors of ``dtype`` are stored in.

    Raises:
        TargetError: for types that hold no numbers, such as bool or complex.
    """
    if dtype in _FLOATING:
        return Floating(_FLOATING[dtype])
    if dtype in _INTEGER:
        return _INTEGER[dtype]
    raise TargetError(f"dtype: {dtype} has no number format that faults could hit")


def _is_raw(fmt: NumberFormat, dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point or fmt == native_format(dtype)


def raw_view(tensor: Tensor) -> Tensor:
    """The bits of ``tensor`` as signed integers of the same width, sharing its memory."""
    return tensor.view(_SIGNED_WORD[tensor.element_size()])


def words_of(tensor: Tensor, fmt: NumberFormat) -> NDArray[np.uint64]:
    """The words of ``fmt`` that ``tensor`` holds; same shape."""
    if not _is_raw(fmt, tensor.dtype):
        return fmt.encode(tensor.detach().to("cpu", torch.float64).numpy())
    bits = raw_view(tensor.detach()).cpu().numpy()
    return bits.view(f"u{bits.dtype.itemsize}").astype(np.uint64)


def tensor_of(words: NDArray[np.uint64], fmt: NumberFormat, like: Tensor) -> Tensor:
    """The tensor of ``like``'s type and device that holds ``words``; the inverse of :func:`words_of`."""
    if not _is_raw(fmt, like.dtype):
        return torch.from_numpy(np.ascontiguousarray(fmt.decode(words))).to(like.device, like.dtype)
    size = like.element_size()
    bits = np.ascontiguousarray(words.astype(f"u{size}")).view(f"i{size}")
    return torch.from_numpy(bits).to(like.device).view(like.dtype)


def with_integers(tensor: Tensor, integers: Tensor) -> Tensor:
    """A quantised tensor of the same scales as ``tensor`` that holds other ``integers``."""
    aten = torch.ops.aten
    if tensor.qscheme() == torch.per_tensor_affine:
        return aten._make_per_tensor_quantized_tensor(integers, tensor.q_scale(), tensor.q_zero_point())
    scales, zero_points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return aten._make_per_channel_quantized_tensor(integers, scales, zero_points, tensor.q_per_channel_axis())


def rounded(tensor: Tensor, fmt: NumberFormat, axis: int = 0) -> Tensor:
    """The values of ``fmt`` nearest to a floating-point ``tensor``, in the tensor's type.

    Equal to ``fmt.round`` (the definition), computed on the tensor's device.

    Args:
        tensor: any shape.
        fmt: a format whose scale is one for the tensor or one for each index of ``axis``.
        axis: the channel axis.
    """
    if _is_raw(fmt, tensor.dtype):
        return tensor
    if isinstance(fmt, Floating):
        narrow = _TORCH_FLOATING[fmt.name]
        if fmt.bits == 8:
            tensor_in = tensor.clamp(fmt.lowest, fmt.highest)
        else:
            tensor_in = tensor
        return tensor_in.to(narrow).to(tensor.dtype)
    if isinstance(fmt, FixedPoint):
        limit = 1 << (fmt.bits - 1)
        steps = tensor.to(torch.float64, copy=True).mul_(2.0**fmt.fraction).round_().nan_to_num_()
        steps.add_(0.0)  # integers have no −0
        return steps.clamp_(-limit, limit - 1).mul_(2.0**-fmt.fraction).to(tensor.dtype)
    if isinstance(fmt, Affine):
        scale, zero_point = (_along(np.asarray(part, np.float64), axis, tensor) for part in (fmt.scale, fmt.zero_point))
        steps = tensor.to(torch.float64, copy=True).div_(scale).round_().nan_to_num_(posinf=math.inf, neginf=-math.inf)
        low, high = fmt.integer_range
        steps.add_(zero_point).clamp_(low, high)
        return steps.sub_(zero_point).mul_(scale).to(tensor.dtype)
    return torch.from_numpy(fmt.round(tensor.double().cpu().numpy())).to(tensor.device, tensor.dtype)


def rounded_output(output: Any, fmt: NumberFormat | None) -> Any:
    """What a call returned, with its first tensor rounded to ``fmt``, if given, where that holds floating point."""
    tensor = None if fmt is None else first_tensor(output)
    if fmt is None or tensor is None or not tensor.is_floating_point():
        return output
    return replace_first_tensor(output, rounded(tensor, fmt))


def _along(part: NDArray[np.float64], axis: int, tensor: Tensor) -> Tensor:
    shape = [1] * tensor.dim()
    if part.ndim:
        shape[axis] = -1
    return torch.from_numpy(part.copy()).to(tensor.device).reshape(shape)
