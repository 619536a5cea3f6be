"""What the calls of a graph do to a deviation: operators, how they are run, how much they can amplify.

Gains bound the ratio of Euclidean norms, deviation of the result to deviation of the argument, for one input
of the workload. A call that is not understood has an infinite gain: it runs, but nothing is proved across it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from saboteur.levels.software.engine.graph import Graph, Node, Values

_DENSE_SPECTRUM = 128
"""Up to so many channels, norms of convolutions come from their symbols; beyond, from their weights."""

_DENSE_MATRIX = 2048
"""Up to this size, norms of matrices come from eigenvalues."""


@dataclass(frozen=True, eq=False)
class Operator:
    """A call, or several in a row taken as one.

    Attributes:
        index: the node whose result this gives.
        inputs: the nodes it takes.
    """

    index: int
    inputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Mixing(Operator):
    """A convolution or linear layer, with the batch norm that follows folded in: every channel feeds every other.

    Attributes:
        weight: [channels out, channels in, *kernel].
        bias: [channels out] or none.
        layer: the node of the layer itself; ``index`` is that of its batch norm, if it has one.
        scale: [channels out] of the batch norm.
    """

    weight: Tensor
    bias: Tensor | None
    layer: int
    scale: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def spatial(self) -> bool:
        """A convolution, not a linear layer."""
        return self.weight.dim() == 4

    def run(self, x: Tensor, padding: tuple[int, ...]) -> Tensor:
        """The result for ``x``, around which a convolution reads ``padding`` zeros."""
        if self.spatial:
            return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation)
        return F.linear(x, self.weight, self.bias)

    def sides_after(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Height and width of the result for an input with ``sides``; none for a linear layer."""
        axes = zip(sides, self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple(
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in axes
        )

    @cached_property
    def residual_norms(self) -> dict[Mixing, float | None]:
        """What :func:`residual_norm` has found with this layer as the first."""
        return {}

    def reads(self, planes: Tensor, tap: Tensor) -> Tensor:
        """What a weight at ``tap`` [n] of the kernel reads of the input channel ``planes`` [n, ...]: [n, positions]."""
        if not self.spatial:
            return planes.reshape(-1, 1)
        (up, left), (down, right) = self.padding, self.stride
        padded = F.pad(planes, (left, left, up, up))
        width = padded.shape[2]
        rows, columns = (torch.arange(size, device=planes.device) for size in self.sides_after(tuple(planes.shape[1:])))
        positions = (rows[:, None] * down * width + columns * right).reshape(-1)
        across = self.weight.shape[3]
        offset = tap // across * self.dilation[0] * width + tap % across * self.dilation[1]
        return padded.reshape(len(planes), -1).gather(1, positions + offset[:, None].to(planes.device))

    @cached_property
    def norm(self) -> float:
        """An upper bound on the spectral norm of the linear part."""
        return _spectral_norm(self)

    @cached_property
    def channel_norms(self) -> Tensor:
        """Upper bounds on the norm for deviations confined to one input channel: float64 [channels in]."""
        return _channel_norms(self)


@dataclass(frozen=True, eq=False)
class Scaling(Operator):
    """A batch norm in eval mode: each channel times a number plus a number."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class Pointwise(Operator):
    """One function of each value by itself; its secants lie in [0, 1] where ``monotone``."""

    function: Callable[[Tensor], Tensor]
    slope: float
    monotone: bool
    rectifier: bool


@dataclass(frozen=True, eq=False)
class Adding(Operator):
    """The sum of two results of equal shape."""


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """Averages, copies or moves values, or picks the largest ones.

    Attributes:
        gain: from each input.
        channelwise: whether channel c of the result depends on channel c of the only input alone.
    """

    gain: float
    channelwise: bool = False


_POINTWISE: dict[Any, tuple[float, bool, bool]] = {
    nn.ReLU: (1.0, True, True),
    nn.ReLU6: (1.0, True, False),
    nn.Hardtanh: (1.0, True, False),
    nn.Tanh: (1.0, True, False),
    nn.Sigmoid: (0.25, True, False),
    nn.SiLU: (1.1, False, False),
    nn.GELU: (1.13, False, False),
    nn.Hardswish: (1.5, False, False),
    F.relu: (1.0, True, True),
    torch.relu: (1.0, True, True),
    F.relu6: (1.0, True, False),
    torch.tanh: (1.0, True, False),
    F.tanh: (1.0, True, False),
    torch.sigmoid: (0.25, True, False),
    F.sigmoid: (0.25, True, False),
    F.silu: (1.1, False, False),
    F.gelu: (1.13, False, False),
    "relu": (1.0, True, True),
    "tanh": (1.0, True, False),
    "sigmoid": (0.25, True, False),
}
"""Slope, whether secants lie in [0, 1], whether it is max(x, 0)."""

_MOVING = (
    nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ZeroPad2d, F.dropout, torch.flatten, "flatten", "view",
    "reshape", "contiguous", "permute", "transpose", torch.permute, torch.transpose, torch.reshape, "squeeze",
    "unsqueeze", torch.squeeze, torch.unsqueeze, operator.getitem, torch.cat, torch.concat, F.pad,
)  # fmt: skip


def understood(graph: Graph, values: Values) -> dict[int, Operator]:
    """The operators of a graph by the node that they give the result of; calls not understood are left out.

    Args:
        graph: what is computed.
        values: the result of every call for a few inputs.
    """
    found: dict[int, Operator] = {}
    for node in graph.nodes:
        described = _described(graph, node, values)
        if described is None:
            continue
        before = found.get(node.inputs[0])
        if isinstance(described, Scaling) and isinstance(before, Mixing) and before.index == before.layer:
            only = graph.nodes[before.layer].consumers == (node.index,) and before.layer != graph.output
            if only:
                described = _folded(before, described)
        found[node.index] = described
    return found


def _folded(layer: Mixing, norm: Scaling) -> Mixing:
    weight = layer.weight * norm.scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    bias = norm.shift if layer.bias is None else norm.shift + norm.scale * layer.bias
    return Mixing(
        norm.index,
        layer.inputs,
        weight.contiguous(),
        bias,
        layer.layer,
        norm.scale,
        layer.stride,
        layer.padding,
        layer.dilation,
    )


def _described(graph: Graph, node: Node, values: Values) -> Operator | None:
    value = values[node.index]
    sources = tuple(source for source in node.inputs if isinstance(values[source], Tensor))
    operands = [values[source] for source in sources]
    told_apart = graph.tensors.issuperset({node.index, *sources})
    if not operands or not told_apart or not all(_is_float32(part) for part in (value, *operands)):
        return None
    if not all(graph.varies[source] for source in sources):
        return None
    layer = _layer(node, operands[0])
    if layer is not None:
        return layer
    key = _key(node)
    if key in _POINTWISE and value.shape == operands[0].shape and len(node.inputs) == 1:
        slope, monotone, rectifier = _POINTWISE[key]
        return Pointwise(node.index, sources, _function(graph, node), slope, monotone, rectifier)
    if key in (operator.add, torch.add, "add", operator.iadd):
        plain = len(node.call.args) == 2 and not node.call.kwargs and len(node.inputs) == 2
        if plain and operands[0].shape == operands[1].shape and node.inputs[0] != node.inputs[1]:
            return Adding(node.index, node.inputs)
        return None
    if key in _MOVING and _pads_with_zeros(node):
        channelwise = len(sources) == 1 and _keeps_channels(node, value, operands[0])
        return Linear(node.index, sources, 1.0, channelwise)
    if len(sources) == 1 and operands[0].dim() == 4 and value.shape[:2] == operands[0].shape[:2]:
        numbers = [_number(graph, values, part) for part in (*node.call.args[1:], *node.call.kwargs.values())]
        return _pooling(node, sources, key, value, operands[0], numbers)
    return None


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _key(node: Node) -> Any:
    return type(node.module) if node.module is not None else node.call.target


def _function(graph: Graph, node: Node) -> Callable[[Tensor], Tensor]:
    source = node.inputs[0]
    return lambda x: graph.call(node, {source: x})


def _layer(node: Node, x: Tensor) -> Operator | None:
    module = node.module
    if module is None or len(node.inputs) != 1:
        return None
    if _is_plain_convolution(module, x) and not isinstance(module.padding, str):
        ones = torch.ones(len(module.weight), device=x.device)
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        return Mixing(
            node.index, node.inputs, weight, bias, node.index, ones, module.stride, module.padding, module.dilation
        )
    if type(module) is nn.Linear and x.dim() == 2:
        ones = torch.ones(len(module.weight), device=x.device)
        bias = None if module.bias is None else module.bias.detach()
        return Mixing(node.index, node.inputs, module.weight.detach(), bias, node.index, ones)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        if module.running_mean is None or module.running_var is None:
            return None
        mean, variance = module.running_mean.double(), module.running_var.double()
        weight = 1.0 if module.weight is None else module.weight.detach().double()
        bias = 0.0 if module.bias is None else module.bias.detach().double()
        scale = weight / torch.sqrt(variance + module.eps)
        return Scaling(node.index, node.inputs, scale.float(), (bias - mean * scale).float())
    return None


def _is_plain_convolution(module: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    return type(module) is nn.Conv2d and x.dim() == 4 and module.groups == 1 and module.padding_mode == "zeros"


def _pads_with_zeros(node: Node) -> bool:
    if node.call.target is not F.pad:
        return True
    mode, fill = node.call.kwargs.get("mode", "constant"), node.call.kwargs.get("value")
    more = node.call.args[2:]
    return (more[0] if more else mode) == "constant" and not (more[1] if len(more) > 1 else fill)


def _keeps_channels(node: Node, value: Tensor, x: Tensor) -> bool:
    """Whether a moving call leaves each channel where it was, as flattening single values does."""
    if value.shape[:2] != x.shape[:2]:
        return False
    copies = _key(node) in (nn.Dropout, nn.Dropout2d, nn.Identity, F.dropout, "contiguous")
    return copies or math.prod(value.shape[2:]) == math.prod(x.shape[2:]) == 1


_AVERAGES = (nn.AvgPool2d, F.avg_pool2d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, torch.mean, "mean")
_WINDOWED = (nn.AvgPool2d, F.avg_pool2d, nn.MaxPool2d, F.max_pool2d)


def _pooling(node: Node, sources: tuple[int, ...], key: Any, value: Tensor, x: Tensor, settings: list) -> Linear | None:
    """Pooling: each value lies in at most so many windows, each of so many values."""
    if key in _WINDOWED:
        if node.module is not None:
            kernel, stride = node.module.kernel_size, node.module.stride
        else:
            names = ("kernel_size", "stride")
            given = dict(zip((*names[: len(node.call.args) - 1], *node.call.kwargs), settings, strict=False))
            kernel, stride = given.get("kernel_size"), given.get("stride")
        (height, width), (down, right) = (_pair(part) for part in (kernel, stride or kernel))
        overlap = math.ceil(height / down) * math.ceil(width / right)
        size = height * width if key in _AVERAGES else 1
    elif key in _AVERAGES and math.prod(value.shape[2:]) == 1:
        size, overlap = x[0, 0].numel(), 1
    else:
        return None
    return Linear(node.index, sources, math.sqrt(overlap / size), True)


def _pair(number: Any) -> tuple[int, int]:
    return tuple(number) if isinstance(number, tuple | list) else (number, number)


def _number(graph: Graph, values: Values, part: Any) -> Any:
    """A setting of a call, with what the graph computes for it filled in."""
    return map_arg(part, lambda source: values[graph.number_of(source)])


def _spectral_norm(op: Mixing) -> float:
    """An upper bound on ‖op‖₂.

    For a convolution, the largest singular value of its symbol over all frequencies (Sedghi, Gupta and Long,
    ICLR 2019, for circular padding; cutting an endless image down to a zero-padded one only lowers it). The
    symbol is sampled; between samples it can be larger by 1/cos(πn/m) for each axis with degree n and m samples
    (Ehlich and Zeller, 1964). Where there are many channels, √r·‖W‖₂ with W the weight as a matrix that reads
    whole patches, and r in how many patches a value can lie (Singla and Feizi, ICML 2021).
    """
    if not op.spatial:
        return _matrix_norms(op.weight.double()[None]).item() * ROUNDING
    if _is_large(op):
        return math.sqrt(_patches_of_a_value(op)) * _matrix_norms(op.weight.flatten(1)[None].cpu()).item() * ROUNDING
    symbol, slack = _symbol(op.weight, op.stride, op.dilation)
    return float(_matrix_norms(symbol).max()) * slack * ROUNDING


def _channel_norms(op: Mixing) -> Tensor:
    """Upper bounds on ‖op‖₂ for deviations confined to one input channel: [channels in]."""
    if not op.spatial:
        return op.weight.double().norm(dim=0).cpu() * ROUNDING
    if _is_large(op):
        matrices = op.weight.transpose(0, 1).flatten(2).cpu()
        return math.sqrt(_patches_of_a_value(op)) * _matrix_norms(matrices) * ROUNDING
    symbol, slack = _symbol(op.weight, op.stride, op.dilation)
    phases = symbol.reshape(*symbol.shape[:2], op.weight.shape[1], -1).permute(2, 0, 1, 3)
    return torch.stack([_matrix_norms(channel).max() for channel in phases]) * slack * ROUNDING


def _is_large(op: Mixing) -> bool:
    """Whether the symbol of a convolution would take too long."""
    return op.weight.shape[0] * op.weight.shape[1] > _DENSE_SPECTRUM**2


def _patches_of_a_value(op: Mixing) -> int:
    axes = zip(op.weight.shape[2:], op.stride, op.dilation, strict=True)
    return math.prod(kernel if dilation > 1 else math.ceil(kernel / stride) for kernel, stride, dilation in axes)


def residual_norm(first: Mixing, second: Mixing) -> float | None:
    """As :func:`_residual_norm`, computed once."""
    if second not in first.residual_norms:
        first.residual_norms[second] = _residual_norm(first, second)
    return first.residual_norms[second]


def _residual_norm(first: Mixing, second: Mixing) -> float | None:
    """An upper bound on ‖x + second·S·first·x‖ / ‖x‖ over all x and all diagonal S with entries in [0, 1].

    The semidefinite bound of Fazlyab et al. (NeurIPS 2019) with one multiplier λ for all neurons: the block's
    Lipschitz constant is at most √ρ where, for s = S·first·x,

        ρ‖x‖² − ‖x + second·s‖² − 2λ sᵀ(first·x − s) ≥ 0 for all x and s.

    For convolutions this parts into one small problem for each frequency; eliminating s leaves
    ρ = 1 + λ_max(K Q⁻¹ Kᴴ) with K = second + λ firstᴴ and Q = 2λI − secondᴴ·second. The form is a trigonometric
    polynomial of degree kernel − 1 in each axis, so that between samples it can fall short by no more than
    (1/cos²(πn/m) − 1) times half its range (Ehlich and Zeller, 1964). ``None`` where the two do not keep the size
    of a map.
    """
    for op in (first, second):
        axes = zip(op.stride, op.weight.shape[2:], op.padding, op.dilation, strict=True)
        if not op.spatial or any(axis != (1, 2 * axis[2] + 1, axis[2], 1) for axis in axes):
            return None
    if second.weight.shape[0] != first.weight.shape[1] or _is_large(first) or _is_large(second):
        return None
    degree = 2 * max(*first.padding, *second.padding)
    multipliers = [share * second.norm**2 for share in (0.55, 0.6, 0.7, 0.85, 1.0, 1.3, 1.8)]
    coarse = _centred_symbol(first, max(4, 4 * degree)), _centred_symbol(second, max(4, 4 * degree))
    best = min(multipliers, key=lambda multiplier: _block_norm(*coarse, multiplier, 0.0))
    samples = max(4, 24 * degree)
    short = 1 / math.cos(math.pi * degree / samples) ** 2 - 1
    fine = _centred_symbol(first, samples), _centred_symbol(second, samples)
    certified = _block_norm(*fine, best, short) * ROUNDING
    return min(certified, 1 + first.norm * second.norm)


def _block_norm(first: Tensor, second: Tensor, multiplier: float, short: float) -> float:
    """√ρ over the sampled frequencies, if the form, scaled to eigenvalues ≤ 2, may fall ``short`` between them."""
    size = first.shape[1]
    inner = (1 - short) * torch.eye(size, dtype=first.dtype) - second.mH @ second / (2 * multiplier)
    coupling = (second + multiplier * first.mH) / math.sqrt(2 * multiplier)
    outer = coupling @ torch.linalg.solve(inner, coupling.mH)
    largest = float(torch.linalg.eigvalsh((outer + outer.mH) / 2)[:, -1].max())
    return math.sqrt((1 + max(largest, 0.0)) / (1 - short))


ROUNDING = 1 + 1e-4
"""Covers that gains are computed in floating point, and weights folded in single precision."""


def _symbol(weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Tensor, float]:
    """The polyphase symbol [frequencies, out, in · phases] on half of a grid, and the factor between samples."""
    kernel = weight.detach().double().cpu()
    if any(step > 1 for step in dilation):
        rows, columns = ((size - 1) * step + 1 for size, step in zip(kernel.shape[2:], dilation, strict=True))
        wide = kernel.new_zeros(*kernel.shape[:2], rows, columns)
        wide[:, :, :: dilation[0], :: dilation[1]] = kernel
        kernel = wide
    offsets = [(row, column) for row in range(stride[0]) for column in range(stride[1])]
    phases = [kernel[:, :, row :: stride[0], column :: stride[1]] for row, column in offsets]
    phases = [part for part in phases if part.numel()]
    degree = max(max(part.shape[2:]) for part in phases) - 1
    samples = max(8, 12 * degree)
    spectra = torch.stack([torch.fft.rfft2(part, s=(samples, samples)) for part in phases], dim=2)
    symbol = spectra.permute(3, 4, 0, 1, 2).reshape(-1, kernel.shape[0], kernel.shape[1] * len(phases))
    return symbol, 1 / math.cos(math.pi * degree / samples)


def _centred_symbol(op: Mixing, samples: int) -> Tensor:
    spectrum = torch.fft.rfft2(op.weight.detach().double().cpu(), s=(samples, samples)).permute(2, 3, 0, 1)
    turns = torch.arange(samples, dtype=torch.float64) * (2 * math.pi / samples)
    rows = torch.polar(torch.ones_like(turns), turns * op.padding[0])
    columns = torch.polar(torch.ones_like(turns), turns * op.padding[1])[: spectrum.shape[1]]
    centred = spectrum * (rows[:, None] * columns)[:, :, None, None]
    return centred.reshape(-1, *op.weight.shape[:2]).to(torch.complex64)


def _matrix_norms(matrices: Tensor) -> Tensor:
    """Upper bounds on the largest singular value of each matrix [n, rows, columns].

    Very large matrices have min(‖·‖_F, √(‖·‖₁‖·‖_∞)), which costs less than eigenvalues.
    """
    rows, columns = matrices.shape[-2:]
    if min(rows, columns) == 1:
        return torch.linalg.vector_norm(matrices, dim=(-2, -1)).double()
    if min(rows, columns) > _DENSE_MATRIX:
        sizes = matrices.abs()
        schur = (sizes.sum(-1).amax(-1) * sizes.sum(-2).amax(-1)).sqrt()
        return torch.minimum(schur, torch.linalg.vector_norm(sizes, dim=(-2, -1)))
    matrices = matrices.to(torch.complex64 if matrices.is_complex() else torch.float32)
    gram = matrices @ matrices.mH if rows <= columns else matrices.mH @ matrices
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt().double()
