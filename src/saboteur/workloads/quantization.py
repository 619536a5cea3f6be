"""Post-training static quantisation of PyTorch networks into the integer layers of :mod:`saboteur.workloads.int8`.

A network is traced to a graph of calls (``torch.fx``), run once on calibration inputs to find the range of every
result (minimum and maximum, and 0), and built again from integer layers of the same names: batch normalisation is
folded into the convolution or linear layer before it, a ReLU into the convolution, linear layer or sum before it (Jacob
et al., CVPR 2018, sections 2.4 and 3.2). What only moves or selects values, or scales them by a constant, keeps the
integers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from saboteur.errors import TargetError
from saboteur.workloads.int8 import (
    ADD_FRACTION_BITS,
    INT8_MIN,
    INT32_MAX,
    INT32_MIN,
    WEIGHT_MAX,
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
)


def quantized(model: nn.Module, calibration_inputs: Tensor) -> fx.GraphModule:
    """Return an int8 network that computes what ``model`` does: post-training static quantisation.

    Understood are convolutions (square, without groups or dilation), linear layers, batch normalisation behind these,
    ReLU, sums of two activations, matrix products of two activations, softmax over the last axis, 2 × 2 max pooling,
    average pooling without overlap, zero padding, products with and quotients by positive constants, and what only
    moves or selects values (flatten, reshape, permute, indexing, dropout in evaluation mode and the like).

    Args:
        model: trained float32 network of one argument, in evaluation mode; left as it is.
        calibration_inputs: representative float32 inputs, ``[n, ...]``, run in one pass.

    Returns:
        A network that takes and gives float32, with an int8 layer where ``model`` has a layer, of the same name; a call
        of a function has the name of the module that calls it and its own (``layer1.0.add``). ``quantize`` and
        ``dequantize`` are at the ends.

    Raises:
        TargetError: naming a call that is not understood; when a result is constant zero or not finite, or a
            requantisation factor is out of range; when ``model`` is in training mode.
    """
    if any(module.training for module in model.modules()):
        raise TargetError(f"{type(model).__name__} is in training mode, where ranges depend on the batch; call eval()")
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:
        raise TargetError(f"{type(model).__name__}: torch.fx cannot trace it: {error}") from error
    with torch.no_grad():
        observer = _Observer(traced)
        observer.run(calibration_inputs)
        return _Conversion(traced, observer).run()


def quantize_statically(int8_model: nn.Module, model: nn.Module, calibration_inputs: Tensor) -> None:
    """Fill ``int8_model``, an architecture of int8 layers, with what :func:`quantized` makes of ``model``.

    Args:
        int8_model: changed in place; its layers have the names that :func:`quantized` gives them.
        model: as there.
        calibration_inputs: as there.

    Raises:
        TargetError: as there, and when the two networks do not have the same layers.
    """
    filled = quantized(model, calibration_inputs)
    fused = {name: module.relu for name, module in filled.named_modules() if hasattr(module, "relu")}
    for name, relu in fused.items():
        own = getattr(dict(int8_model.named_modules()).get(name), "relu", relu)
        if own != relu:
            raise TargetError(f"layer {name!r} of {type(int8_model).__name__} has relu={own}; the network needs {relu}")
    try:
        int8_model.load_state_dict(filled.state_dict())
    except RuntimeError as error:
        raise TargetError(f"{type(int8_model).__name__} is not {type(model).__name__} in int8: {error}") from error


class _Observer(fx.Interpreter):
    """Runs a network and keeps the range of every tensor, and every result that is none."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.ranges: dict[fx.Node, tuple[float, float]] = {}
        self.plain: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            lowest, highest = torch.aminmax(result)
            self.ranges[n] = lowest.item(), highest.item()
        else:
            self.plain[n] = result
        return result


class _Value(NamedTuple):
    """A result in the int8 network: its node, and what its integers stand for."""

    node: fx.Node
    affine: AffineScale


class _Conversion:
    """One pass over a traced network that builds the int8 one."""

    def __init__(self, traced: fx.GraphModule, observer: _Observer):
        self.traced, self.observer = traced, observer
        self.modules = dict(traced.named_modules())
        self.graph = fx.Graph()
        self.parts: dict[str, nn.Module] = {}
        self.values: dict[fx.Node, _Value] = {}
        self.plain: dict[fx.Node, fx.Node] = {}

    def run(self) -> fx.GraphModule:
        for node in self.traced.graph.nodes:
            if node.op == "output":
                self._output(node)
            elif node in self.values or node in self.plain:
                continue  # taken in by a layer before it
            elif node.op == "placeholder":
                self._placeholder(node)
            elif node in self.observer.plain:
                self.plain[node] = self.graph.node_copy(node, self._copied)
            else:
                self._call(node)
        return fx.GraphModule(self.parts, self.graph, f"{type(self.traced).__name__}Int8").eval()

    def _placeholder(self, node: fx.Node) -> None:
        if self.values:
            raise TargetError(f"the network takes more than one argument: {node.target}")
        affine = AffineScale.covering(*self.observer.ranges[node])
        argument = self.graph.placeholder(str(node.target))
        self.values[node] = _Value(self._add("quantize", _scaled(Quantize(), affine), argument), affine)

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.values:
            raise TargetError("the output of the network is not one tensor")
        value = self.values[result]
        self.graph.output(self._add("dequantize", _scaled(Dequantize(), value.affine), value.node))

    def _call(self, node: fx.Node) -> None:
        known: Any = node.target
        if node.op == "call_module":
            known = type(self.modules[str(node.target)])
        convert = _CONVERSIONS.get(known)
        if convert is None or node.op == "get_attr":
            raise TargetError(
                f"{node.format_node()}: quantisation does not know {known}; see `quantized` for what it does"
            )
        convert(self, node)

    # -- what conversions are made of -------------------------------------------------------------------------

    def _add(self, name: str, module: nn.Module, *arguments: fx.Node) -> fx.Node:
        unique, count = name, 0
        while unique in self.parts:
            count += 1
            unique = f"{name}_{count}"
        self.parts[unique] = module
        return self.graph.call_module(unique, arguments)

    def _copied(self, node: fx.Node) -> fx.Node:
        return self.values[node].node if node in self.values else self.plain[node]

    def _value(self, node: fx.Node, place: int = 0) -> _Value:
        """The argument at ``place``, which must be a quantised activation."""
        argument = node.args[place] if place < len(node.args) else None
        if not isinstance(argument, fx.Node) or argument not in self.values:
            raise TargetError(f"{node.format_node()}: argument {place} is not an activation")
        return self.values[argument]

    def _setting(self, node: fx.Node, name: str, place: int, default: Any = None) -> Any:
        """An argument that is no tensor, as it was while calibrating."""
        given = node.kwargs.get(name, node.args[place] if place < len(node.args) else default)
        return fx.map_arg(given, self.observer.plain.__getitem__)

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        function = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "call")
        stack = list(node.meta.get("nn_module_stack", {}))
        return f"{stack[-1]}.{function.strip('_')}" if stack and stack[-1] else function.strip("_")

    def _after(self, node: fx.Node, kinds: tuple[Any, ...]) -> fx.Node | None:
        """The only user of ``node``, if it is of one of ``kinds``; what does nothing is passed over."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            target = type(self.modules[str(node.target)]) if node.op == "call_module" else node.target
            if target in kinds:
                return node
            if target not in _BY_CONVERSION[_Conversion.drop]:
                return None
        return None

    def _finish(self, node: fx.Node, module: nn.Module, *arguments: _Value, affine: AffineScale) -> None:
        added = self._add(self._name(node), module, *(argument.node for argument in arguments))
        self.values[node] = _Value(added, affine)

    def _with_relu(self, node: fx.Node) -> tuple[fx.Node, bool, AffineScale]:
        """The last node of ``node`` and a ReLU behind it, whether there is one, and what its integers stand for."""
        relu = self._after(node, _RELUS)
        last = relu or node
        return last, relu is not None, AffineScale.covering(*self.observer.ranges[last])

    def _alias(self, last: fx.Node, first: fx.Node) -> None:
        """Let all nodes of a fused chain stand for its one value."""
        node = first
        while node is not last:
            node = next(iter(node.users))
            self.values[node] = self.values[first]

    # -- conversions ------------------------------------------------------------------------------------------

    def layer(self, node: fx.Node) -> None:
        source = self.modules[str(node.target)]
        assert isinstance(source, nn.Conv2d | nn.Linear)
        before = self._value(node)
        weight = source.weight.double()
        bias = torch.zeros(len(weight), dtype=torch.float64) if source.bias is None else source.bias.double()
        norm = self._after(node, (nn.BatchNorm1d, nn.BatchNorm2d))
        if norm is not None:
            weight, bias = self._folded(source, self.modules[str(norm.target)], weight, bias)
        last, relu, after = self._with_relu(norm or node)
        if isinstance(source, nn.Conv2d):
            layer: Int8Conv2d | Int8Linear = _convolution(node, source, relu)
        else:
            layer = Int8Linear(source.in_features, source.out_features, relu=relu)
        _fill(layer, weight, bias, before.affine, after)
        self._finish(node, layer, before, affine=after)
        self._alias(last, node)

    @staticmethod
    def _folded(source: nn.Module, norm: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        fuse = fuse_conv_bn_weights if isinstance(source, nn.Conv2d) else fuse_linear_bn_weights
        if norm.running_mean is None:
            raise TargetError("batch normalisation without running statistics cannot be folded")
        gain, offset = (None if part is None else part.double() for part in (norm.weight, norm.bias))
        statistics = norm.running_mean.double(), norm.running_var.double()
        folded = fuse(weight, bias, *statistics, norm.eps, gain, offset)  # pyright: ignore[reportArgumentType]
        return folded[0].detach(), folded[1].detach()

    def add(self, node: fx.Node) -> None:
        operands = self._value(node, 0), self._value(node, 1)
        if node.kwargs:
            raise TargetError(f"{node.format_node()}: a sum takes no {', '.join(node.kwargs)}")
        last, relu, after = self._with_relu(node)
        module = Int8Add(relu=relu)
        largest = 2 * max(operand.affine.scale for operand in operands)
        multipliers, shifts = fixed_point(
            torch.tensor([operand.affine.scale / largest for operand in operands], dtype=torch.float64)
        )
        module.multipliers.copy_(multipliers)
        module.shifts.copy_(shifts)
        module.zero_points.copy_(torch.tensor([operand.affine.zero_point for operand in operands]))
        _requantising(module, largest / (2**ADD_FRACTION_BITS * after.scale), after)
        self._finish(node, module, *operands, affine=after)
        self._alias(last, node)

    def matmul(self, node: fx.Node) -> None:
        first, second = self._value(node, 0), self._value(node, 1)
        after = AffineScale.covering(*self.observer.ranges[node])
        module = Int8MatMul()
        module.first_zero_point.fill_(first.affine.zero_point)
        module.second_zero_point.fill_(second.affine.zero_point)
        _requantising(module, first.affine.scale * second.affine.scale / after.scale, after)
        self._finish(node, module, first, second, affine=after)

    def softmax(self, node: fx.Node) -> None:
        value = self._value(node)
        module: Any = self.modules[str(node.target)] if node.op == "call_module" else None
        axis = self._setting(node, "dim", 1) if module is None else module.dim
        if axis != -1:
            raise TargetError(f"{node.format_node()}: softmax over axis {axis}; need the last, −1")
        softmax = Int8Softmax()
        differences = torch.arange(256, dtype=torch.float64)
        softmax.exponentials.copy_(torch.round(2**16 * torch.exp(-value.affine.scale * differences)))
        self._finish(node, softmax, value, affine=AffineScale(1 / 256, INT8_MIN))

    def relu(self, node: fx.Node) -> None:
        value = self._value(node)
        module = Int8ReLU()
        module.zero_point.fill_(value.affine.zero_point)
        self._finish(node, module, value, affine=value.affine)

    def max_pool(self, node: fx.Node) -> None:
        value = self._value(node)
        kernel, stride, padding, dilation, ceil = self._pooling(node, "dilation")
        if (kernel, stride, padding, dilation, ceil) != (2, 2, 0, 1, False):
            raise TargetError(f"{node.format_node()}: max pooling is understood over 2 × 2 windows without overlap")
        self._finish(node, Int8MaxPool2d(), value, affine=value.affine)

    def average_pool(self, node: fx.Node) -> None:
        value = self._value(node)
        kernel, stride, padding, _, ceil = self._pooling(node)
        if kernel != stride or padding != 0 or ceil or not isinstance(kernel, int):
            raise TargetError(
                f"{node.format_node()}: average pooling is understood over square windows without overlap"
            )
        self._finish(node, Int8AvgPool2d(kernel), value, affine=value.affine)

    def global_average_pool(self, node: fx.Node) -> None:
        value = self._value(node)
        module: Any = self.modules[str(node.target)] if node.op == "call_module" else None
        size = self._setting(node, "output_size", 1) if module is None else module.output_size
        if size not in (1, (1, 1), [1, 1]):
            raise TargetError(f"{node.format_node()}: adaptive average pooling is understood to 1 × 1, not {size}")
        self._finish(node, Int8AvgPool2d(), value, affine=value.affine)

    def _pooling(self, node: fx.Node, *more: str) -> tuple[Any, ...]:
        """Kernel size, stride, padding, dilation (1 where there is none) and ceil_mode of a pooling."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        defaults = {"kernel_size": None, "stride": None, "padding": 0, **dict.fromkeys(more, 1), "ceil_mode": False}
        found = {
            name: self._setting(node, name, place, default) if module is None else getattr(module, name)
            for place, (name, default) in enumerate(defaults.items(), 1)
        }
        if found["stride"] in (None, ()):
            found["stride"] = found["kernel_size"]
        single = {name: _single(value) for name, value in found.items()}
        return tuple(single.get(name, 1) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))

    def pad(self, node: fx.Node) -> None:
        value = self._value(node)
        padding, mode, filling = (
            self._setting(node, name, place, default)
            for place, (name, default) in enumerate((("pad", None), ("mode", "constant"), ("value", 0)), 1)
        )
        if mode != "constant" or filling not in (0, None):
            raise TargetError(f"{node.format_node()}: padding is understood with zeros only")
        module = Int8Pad(tuple(padding))
        module.zero_point.fill_(value.affine.zero_point)
        self._finish(node, module, value, affine=value.affine)

    def scale(self, node: fx.Node) -> None:
        places = [place for place, argument in enumerate(node.args) if argument in self.values]
        if len(places) != 1 or (node.target in _QUOTIENTS and places != [0]):
            raise TargetError(f"{node.format_node()}: need an activation times, or over, one constant")
        (place,) = places
        factor = self._setting(node, "other", 1 - place)
        if not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise TargetError(f"{node.format_node()}: the constant is {factor}; need a positive number")
        value = self._value(node, place)
        scale = value.affine.scale / factor if node.target in _QUOTIENTS else value.affine.scale * factor
        self.values[node] = _Value(
            value.node, AffineScale(torch.tensor(scale, dtype=torch.float32).item(), value.affine.zero_point)
        )

    def keep(self, node: fx.Node) -> None:
        """What only moves or selects values."""
        value = self._value(node)
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            self._finish(node, type(module)(*_arguments(module)), value, affine=value.affine)
        else:
            self.values[node] = _Value(self.graph.node_copy(node, self._copied), value.affine)

    def drop(self, node: fx.Node) -> None:
        """What does nothing in evaluation mode."""
        self.values[node] = self._value(node)


def _arguments(module: nn.Module) -> tuple[Any, ...]:
    return (module.start_dim, module.end_dim) if isinstance(module, nn.Flatten) else ()


def _single(value: Any) -> Any:
    """The one value of a pair of equal ones."""
    return value[0] if isinstance(value, tuple | list) and len(set(value)) == 1 else value


def _convolution(node: fx.Node, source: nn.Conv2d, relu: bool) -> Int8Conv2d:
    kernel, stride, padding = _single(source.kernel_size), _single(source.stride), _single(source.padding)
    plain = source.groups == 1 and set(source.dilation) == {1} and source.padding_mode == "zeros"
    if not plain or not all(isinstance(size, int) for size in (kernel, stride, padding)):
        raise TargetError(
            f"{node.target}: {source}; need a square kernel, equal strides and paddings, no groups, no dilation"
        )
    return Int8Conv2d(source.in_channels, source.out_channels, kernel, stride=stride, padding=padding, relu=relu)


def _fill(
    layer: Int8Conv2d | Int8Linear, weight: Tensor, bias: Tensor, before: AffineScale, after: AffineScale
) -> None:
    largest = weight.flatten(1).abs().amax(dim=1)
    # A channel without weights may have any scale; 1 keeps the arithmetic defined.
    weight_scale = torch.where(largest > 0, largest / WEIGHT_MAX, torch.ones_like(largest))
    per_output = weight_scale.view(-1, *[1] * (weight.dim() - 1))
    layer.weight.copy_(torch.round(weight / per_output).to(torch.int8))
    accumulator_scale = before.scale * weight_scale
    layer.bias.copy_(torch.round(bias / accumulator_scale).clamp(INT32_MIN, INT32_MAX).to(torch.int32))
    layer.input_zero_point.fill_(before.zero_point)
    _requantising(layer, accumulator_scale / after.scale, after)


def _requantising(module: Any, factor: Tensor | float, after: AffineScale) -> None:
    multiplier, shift = fixed_point(torch.as_tensor(factor, dtype=torch.float64))
    module.multiplier.copy_(multiplier)
    module.shift.copy_(shift)
    module.output_zero_point.fill_(after.zero_point)


def _scaled(module: Quantize | Dequantize, affine: AffineScale) -> nn.Module:
    module.scale.fill_(affine.scale)
    module.zero_point.fill_(affine.zero_point)
    return module


_RELUS = (nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")
_QUOTIENTS = (operator.truediv, torch.div, "div")
_BY_CONVERSION: dict[Callable[[_Conversion, fx.Node], None], tuple[Any, ...]] = {
    _Conversion.layer: (nn.Conv2d, nn.Linear),
    _Conversion.add: (operator.add, operator.iadd, torch.add, "add", "add_"),
    _Conversion.matmul: (operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"),
    _Conversion.softmax: (nn.Softmax, F.softmax, torch.softmax, "softmax"),
    _Conversion.relu: _RELUS,
    _Conversion.max_pool: (nn.MaxPool2d, F.max_pool2d),
    _Conversion.average_pool: (nn.AvgPool2d, F.avg_pool2d),
    _Conversion.global_average_pool: (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
    _Conversion.pad: (F.pad,),
    _Conversion.scale: (operator.mul, torch.mul, "mul", *_QUOTIENTS),
    _Conversion.keep: (
        *(nn.Flatten, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze),
        *(operator.getitem, "flatten", "reshape", "view", "transpose", "permute", "contiguous", "squeeze", "unsqueeze"),
    ),
    _Conversion.drop: (nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout),
}
_CONVERSIONS = {target: convert for convert, targets in _BY_CONVERSION.items() for target in targets}
