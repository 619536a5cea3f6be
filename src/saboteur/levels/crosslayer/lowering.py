"""Layers of an int8 network as matrix products, which an array of multiply–accumulate units computes.

``C[m, n] = Σ_k A[m, k] B[k, n]`` of raw int8 words: zero points are not subtracted before the array. What they
contribute is a function of the sums of rows of A and columns of B, and is added after it, with the bias::

    Σ (a − Z_a)(b − Z_b) = C[m, n] − Z_a Σ_k B[k, n] − Z_b Σ_k A[m, k] + k Z_a Z_b

(Jacob et al., CVPR 2018, equation 7; weights have ``Z_b = 0``). All of it is 32-bit two's complement, which wraps, so
that the result is that of :mod:`saboteur.workloads.int8` bit for bit.

=================  =============================  ============================================  ==================
module             m                              k                                             n
=================  =============================  ============================================  ==================
``Int8Conv2d``     output positions, by rows      taps: channel, kernel row, kernel column      output channels
``Int8Linear``     tokens (1 for a vector)        input features                                output features
``Int8MatMul``     rows of the first operand      columns of the first, rows of the second      columns of the second
=================  =============================  ============================================  ==================

The matrix B of a convolution or a linear layer holds the weights and is the same for all images. A module that is
called more than once gives a layer for each call, and a product of stacked matrices (the heads of attention) one for
each matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.errors import TargetError
from saboteur.workloads.int8 import Int8Conv2d, Int8Linear, Int8MatMul, requantize

Lowerable = Int8Conv2d | Int8Linear | Int8MatMul


class Window(NamedTuple):
    """The geometry of a convolution: what row- and column-wise dataflows need to know of it."""

    channels: int
    kernel_rows: int
    kernel_columns: int
    out_rows: int
    out_columns: int
    stride: int
    padding: int
    in_rows: int
    in_columns: int


@dataclass(frozen=True, eq=False)
class LoweredLayer:
    """One matrix product in the inference of one image; see the module's text.

    Attributes:
        name: unique: the module's path, with ``[call]`` where it is called more than once and ``:part`` where one call
            multiplies more than one pair of matrices.
        path: the module's path.
        module: the module itself. Its parameters are read anew in every call.
        call: which call of the module in one inference, from 0.
        part: which of the stacked matrices of an :class:`Int8MatMul`, from 0.
        m: rows of A and C.
        k: columns of A, rows of B.
        n: columns of B and C.
        output_shape: shape of the module's output for one image.
        window: the geometry of a convolution, otherwise ``None``.
    """

    name: str
    path: str
    module: Lowerable
    call: int
    part: int
    m: int
    k: int
    n: int
    output_shape: tuple[int, ...]
    window: Window | None = None

    @property
    def shares_b(self) -> bool:
        """Whether B is the same for all images."""
        return not isinstance(self.module, Int8MatMul)

    def operands(self, inputs: Sequence[Tensor]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """The words that enter the array.

        Args:
            inputs: int8 arguments of the module's call, ``[images, ...]`` each.

        Returns:
            A ``[images, m, k]`` and B ``[1, k, n]``, or ``[images, k, n]`` where :attr:`shares_b` is false.
        """
        module = self.module
        if isinstance(module, Int8MatMul):
            first, second = (tensor.flatten(1, -3) if tensor.dim() > 3 else tensor[:, None] for tensor in inputs)
            return first[:, self.part].numpy(), second[:, self.part].numpy()
        (values,) = inputs
        if isinstance(module, Int8Conv2d):
            rows = _patches(values, module)
        else:
            rows = values.reshape(len(values), self.m, self.k)
        return rows.numpy(), module.weight.detach().flatten(1).T[None].numpy()

    def finish(
        self,
        inputs: Sequence[Tensor],
        image: NDArray[np.int64],
        row: NDArray[np.int64],
        column: NDArray[np.int64],
        products: NDArray[np.int64],
    ) -> NDArray[np.int8]:
        """The module's outputs from what the array gives: zero points, bias, requantisation, ReLU.

        Args:
            inputs: as for :meth:`operands`.
            image: [count], index into ``inputs``.
            row: [count], m.
            column: [count], n.
            products: [count], elements of ``A @ B``, right or wrong; only their low 32 bits count.

        Returns:
            [count] output values.
        """
        module = self.module
        to = torch.from_numpy
        if isinstance(module, Int8MatMul):
            first, second = self.operands(inputs)
            zero_first, zero_second = int(module.first_zero_point), int(module.second_zero_point)
            pairs = _sums_of(first, 2, image, row), _sums_of(second, 1, image, column)
            corrected = products - zero_second * pairs[0] - zero_first * pairs[1] + self.k * zero_first * zero_second
            accumulators = to(corrected).to(torch.int32)
            return requantize(accumulators, module.multiplier, module.shift, module.output_zero_point).numpy()
        channel = to(column)
        weight_sums = module.weight.detach().flatten(1).sum(1, dtype=torch.int64)
        constant = module.bias.detach().to(torch.int64) - int(module.input_zero_point) * weight_sums
        accumulators = (to(products) + constant[channel]).to(torch.int32)
        outputs = requantize(accumulators, module.multiplier[channel], module.shift[channel], module.output_zero_point)
        return (torch.maximum(outputs, module.output_zero_point) if module.relu else outputs).numpy()

    def position(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the element (row, column) of C lies in the module's output of one image, counted flat."""
        if isinstance(self.module, Int8Conv2d):
            return np.asarray(column) * self.m + row
        return (self.part * self.m + np.asarray(row)) * self.n + column

    def element(self, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the element of C that lies at ``position``: the inverse of :meth:`position`.

        Raises:
            TargetError: when a position belongs to another part of the output, or is outside of it.
        """
        position = np.asarray(position) - self.part * self.m * self.n
        if position.size and (position.min() < 0 or position.max() >= self.m * self.n):
            raise TargetError(f"{self.name}: a position is not among the {self.m * self.n} elements of this layer")
        if isinstance(self.module, Int8Conv2d):
            column, row = np.divmod(position, self.m)
        else:
            row, column = np.divmod(position, self.n)
        return row, column


def lower(model: nn.Module, inputs: Sequence[Tensor]) -> list[LoweredLayer]:
    """The matrix products of an int8 network, in the order in which they are computed.

    Args:
        model: in evaluation mode; it is run once.
        inputs: arguments of ``model``, for one image or more: they tell the sizes of activations.

    Raises:
        TargetError: when no int8 layer is called.
    """
    found: list[tuple[str, Lowerable, tuple[Tensor, ...], Tensor]] = []
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, Lowerable):

            def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor, path: str = path) -> None:
                assert isinstance(module, Lowerable)
                found.append((path, module, args, output))

            hooks.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        kinds = ", ".join(kind.__name__ for kind in (Int8Conv2d, Int8Linear, Int8MatMul))
        raise TargetError(
            f"{type(model).__name__}: calls no int8 layer ({kinds}); quantise it with "
            "saboteur.workloads.quantization.quantized"
        )
    total = Counter(path for path, *_ in found)
    calls: Counter[str] = Counter()
    layers: list[LoweredLayer] = []
    for path, module, args, output in found:
        name = f"{path}[{calls[path]}]" if total[path] > 1 else path
        layers += _layers(name, path, module, calls[path], args, output)
        calls[path] += 1
    return layers


def _layers(
    name: str, path: str, module: Lowerable, call: int, args: tuple[Tensor, ...], output: Tensor
) -> list[LoweredLayer]:
    shape = tuple(output.shape[1:])
    if isinstance(module, Int8MatMul):
        first, second = args
        if first.shape[:-2] != second.shape[:-2] or first.dim() < 3:
            raise TargetError(
                f"{name}: operands are {list(first.shape)} and {list(second.shape)}; need [images, ..., m, k] and "
                "[images, ..., k, n], with the same leading sizes"
            )
        parts = prod(shape[:-2])
        m, n = shape[-2:]
        return [
            LoweredLayer(
                f"{name}:{part}" if parts > 1 else name, path, module, call, part, m, first.shape[-1], n, shape
            )
            for part in range(parts)
        ]
    n, k = module.weight.flatten(1).shape
    if isinstance(module, Int8Linear):
        return [LoweredLayer(name, path, module, call, 0, prod(shape[:-1]), k, n, shape)]
    _, channels, kernel_rows, kernel_columns = module.weight.shape
    rows, columns = shape[1:]
    window = Window(
        channels, kernel_rows, kernel_columns, rows, columns, module.stride, module.padding, *args[0].shape[2:]
    )
    return [LoweredLayer(name, path, module, call, 0, prod(shape[1:]), k, n, shape, window)]


def _patches(images: Tensor, module: Int8Conv2d) -> Tensor:
    """The taps of every output position: int8 ``[images, positions, channels · kernel rows · kernel columns]``."""
    border = (module.padding,) * 4
    padded = F.pad(images, border, value=int(module.input_zero_point))
    size = module.weight.shape[2:]
    windows = padded.unfold(2, size[0], module.stride).unfold(3, size[1], module.stride)
    count, channels, rows, columns = windows.shape[:4]
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(count, rows * columns, channels * size[0] * size[1])


def _sums_of(
    matrices: NDArray[np.int8], axis: int, image: NDArray[np.int64], place: NDArray[np.int64]
) -> NDArray[np.int64]:
    return matrices.sum(axis, dtype=np.int64)[image, place]
