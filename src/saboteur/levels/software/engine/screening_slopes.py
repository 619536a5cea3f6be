"""How steeply a model's outputs follow its layers, image by image: what the screened tier predicts with.

For a place z of a model (the output of a module or function) and one image, let g_k = ∂(output k)/∂z. A change δ
of one channel of z moves output k, to first order, by Σ g_k·δ over the channel's positions, at most by
‖g_k‖·‖δ‖ (Cauchy and Schwarz). The *channel slope* is the largest ‖g_k‖ over all outputs k **and all channels**,
the *value slope* the largest |g_k| over all outputs and values. Taking the steepest channel rather than the one
that is hit costs little and covers what a gradient at one point does not see: a channel behind closed ReLU gates
has a gradient of zero until a fault opens them. For a change of the whole of z, the *whole slope* is the largest norm
of g_k over the outputs.

A weight w of a layer changes one channel of the layer's output by Δw times the values that w meets, so
‖δ‖ = |Δw|·‖values met‖. The values met depend on the input channel and the place in the kernel, not on the output
channel: one number for each *tap* is enough for all weights of a layer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from saboteur.levels.software.engine.suffix import Extent
from saboteur.levels.software.flow import Event, named_modules, tapped
from saboteur.levels.software.runner import Runner, differentiable, input_place

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_AFFINE = (*_CONVOLUTIONS, *_BATCH_NORMS, nn.Linear)
HEADROOM = 2.0
"""How many times the predicted deviation must fit into the radius.

Measured on ResNet-20 (CIFAR-10; 400,000 pairs of weight faults, 150,000 of activation faults): no decided pair
moved further than predicted, so that none came nearer than half-way to its radius.
"""

SPREAD = 32.0
"""A measured deviation of a whole result of n values is taken to move the outputs by at most 32 / √n of ‖g_k‖·‖δ‖.

Of a deviation in a direction that has nothing to do with g_k, one part in √n moves output k. Faults are not quite like
that: measured on ResNet-20 (15,000 deviations), it is at most 12 / √n between its blocks, 7 / √n in 99 of 100 cases,
and at most 24 / √n after the last block.
"""

RULE = (HEADROOM, SPREAD)
"""What decides, apart from the model and its workload."""

MOST_OUTPUTS = 128
"""Slopes take one backward pass for each output of an image; models with more outputs are not screened."""


def is_affine(module: nn.Module) -> bool:
    """Whether the output of ``module`` is an affine function of its weight and of its bias, of a known kind."""
    if isinstance(module, _BATCH_NORMS):
        return type(module) in _BATCH_NORMS and module.running_mean is not None
    return type(module) in _AFFINE


def tap_of(module: nn.Module, tensor: str, elements: NDArray[np.int64]) -> NDArray[np.int64]:
    """The column of :func:`tap_norms` that each flat element of the module's ``weight`` or ``bias`` belongs to."""
    if tensor == "bias":
        return np.zeros_like(elements)
    if isinstance(module, _BATCH_NORMS):
        return elements
    if isinstance(module, nn.Linear):
        return elements % module.in_features
    assert isinstance(module, _CONVOLUTIONS)
    fan_in = module.weight[0].numel()
    channel, tap = np.divmod(elements, fan_in)
    return channel // (module.out_channels // module.groups) * fan_in + tap


def tap_norms(module: nn.Module, x: Tensor, z: Tensor, tensor: str) -> Tensor:
    """The norm, over the positions of a channel of ``z`` = module(``x``), of what one unit of each tap adds.

    Args:
        module: one that :func:`is_affine` accepts.
        x: its input [images, ...].
        z: its output [images, ...].
        tensor: ``weight`` or ``bias``.

    Returns:
        [images, taps].
    """
    if tensor == "bias":
        return z.new_full((len(z), 1), _channels(module, z).shape[2] ** 0.5)
    if isinstance(module, nn.Linear):
        return torch.linalg.vector_norm(x.reshape(len(x), -1, x.shape[-1]), dim=1)
    if isinstance(module, _BATCH_NORMS):
        normalised = functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
        return torch.linalg.vector_norm(_channels(module, normalised), dim=2)
    assert isinstance(module, _CONVOLUTIONS)
    return _convolution_tap_norms(module, x, z.shape[2:])


def _convolution_tap_norms(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, positions: torch.Size) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    squares = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode).square()
    norms = []
    for offset in product(*map(range, module.kernel_size)):
        window = tuple(
            slice(first * dilation, first * dilation + (count - 1) * stride + 1, stride)
            for first, dilation, stride, count in zip(offset, module.dilation, module.stride, positions, strict=True)
        )
        norms.append(squares[(..., *window)].flatten(2).sum(2).sqrt())
    return torch.stack(norms, dim=2).flatten(1)


def _channels(module: nn.Module | None, z: Tensor) -> Tensor:
    """``z`` as [images, channels, positions]."""
    if isinstance(module, nn.Linear):
        z = z.movedim(-1, 1)
    return z.reshape(len(z), z.shape[1] if z.dim() > 1 else 1, -1)


_PER_IMAGE = ("channel", "value", "whole", "size")


@dataclass(frozen=True)
class Slopes:
    """What is known of one call of a place, for each image.

    Attributes:
        channel: float32 [images], the channel slope.
        value: float32 [images], the value slope.
        whole: float32 [images], the whole slope.
        size: float32 [images], the norm of a channel, root mean square over the channels.
        count: how many values the place has for each image.
        taps: by tensor name (``weight``, ``bias``), float32 [taps, images]: see :func:`tap_norms`.
    """

    channel: NDArray[np.float32]
    value: NDArray[np.float32]
    whole: NDArray[np.float32]
    size: NDArray[np.float32]
    count: int
    taps: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(array.nbytes for array in (self.channel, self.value, self.whole, self.size, *self.taps.values()))

    def strain_at_source(self, extent: Extent, radius: NDArray[np.float64]) -> NDArray[np.float32]:
        """The strain of one unit of change where a fault acts: [images]; see :func:`_strain`."""
        return _strain(getattr(self, extent), self.size, radius / HEADROOM)

    def strain_on_the_way(self, extent: Extent, radius: NDArray[np.float64]) -> NDArray[np.float32]:
        """The strain of one unit of measured deviation: [images]."""
        spread = min(1.0, SPREAD / self.count**0.5) if extent == "whole" else 1.0
        return _strain(getattr(self, extent) * spread, self.size, radius)

    @classmethod
    def blank(cls, images: int, count: int) -> Slopes:
        """Of ``images`` of which nothing is known, so that no change is small."""
        return cls(*np.full((4, images), np.nan, np.float32), count=count)

    def fill_in(self, images: range, call: Slopes) -> None:
        """Take over what ``call`` knows of ``images``, but for its taps."""
        for name in _PER_IMAGE:
            getattr(self, name)[images.start : images.stop] = getattr(call, name)

    @classmethod
    def joined(cls, parts: list[Slopes]) -> Slopes:
        """One after the other along the images."""
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in _PER_IMAGE),
            count=parts[0].count,
            taps={name: np.concatenate([part.taps[name] for part in parts], axis=1) for name in parts[0].taps},
        )


def _strain(slope: NDArray, size: NDArray, radius: NDArray) -> NDArray[np.float32]:
    """For one unit of change: the larger of deviation / radius and of change / size of a channel.

    Infinite where the slope is zero: then everything behind is closed, and a slope says nothing.
    """
    with np.errstate(all="ignore"):
        return np.where(slope > 0, np.maximum(slope / radius, 1 / size), np.inf).astype(np.float32)


@dataclass
class _Call:
    place: str
    module: nn.Module
    argument: Any
    output: Tensor


class Slopemeter:
    """Measures slopes of a model by backward passes from each of its outputs.

    Args:
        runner: holds the model and its inputs.
        layers: affine modules by path, each with the names of the tensors whose taps are wanted.
        places: other places of :mod:`~saboteur.levels.software.flow`, or of the model's input.
    """

    def __init__(self, runner: Runner, layers: Mapping[str, set[str]], places: set[str]):
        self._runner = runner
        self._layers = layers
        self._places = {*layers, *places}
        self._modules = {path: module for path, module in named_modules(runner.model).items() if path in self._places}

    def measure(self, batch: range) -> dict[str, list[Slopes]]:
        """The slopes of each place, call by call, for the images of ``batch``."""
        index = torch.arange(batch.start, batch.stop)
        with differentiable():
            outputs, calls = self._forward(index)
            steepest = self._steepest(outputs, calls)
            measured: dict[str, list[Slopes]] = defaultdict(list)
            for call, (channel, value, whole) in zip(calls, steepest, strict=True):
                module = call.module if call.place in self._layers else None
                norms = torch.linalg.vector_norm(_channels(module, call.output.detach()), dim=2)
                taps = {
                    name: tap_norms(call.module, call.argument.detach(), call.output.detach(), name)
                    for name in self._layers.get(call.place, ())
                }
                measured[call.place].append(
                    Slopes(
                        _array(channel),
                        _array(value),
                        _array(whole),
                        _array(norms.square().mean(1).sqrt()),
                        call.output[0].numel(),
                        {name: _array(norm.T) for name, norm in taps.items()},
                    )
                )
        return dict(measured)

    def misfits(self) -> dict[str, str]:
        """Places whose slopes cannot be relied on, each with the reason.

        Runs on two and three images, to see that the first axis of each place tells images apart, and that the
        gradient of each tensor of ``layers`` is what the calls seen account for.
        """
        few, more = (torch.arange(size) % self._runner.inputs for size in (2, 3))
        found: dict[str, str] = {}
        with differentiable(), _requiring_gradients(self._tensors()):
            _, first = self._forward(few)
            outputs, calls = self._forward(more)
            numbers = Counter(call.place for call in first), Counter(call.place for call in calls)
            for place in self._places:
                if numbers[0][place] != numbers[1][place] or not numbers[1][place]:
                    found[place] = "it does not put out one floating-point tensor, as often for any number of inputs"
            for call, other in zip(calls, first, strict=False):
                if len(call.output) != len(more) or len(other.output) != len(few):
                    found.setdefault(call.place, "the first axis of its output does not tell the inputs apart")
            found |= self._unexplained(outputs, calls)
        return found

    def _tensors(self) -> dict[tuple[str, str], Tensor]:
        return {
            (path, name): getattr(self._modules[path], name) for path, names in self._layers.items() for name in names
        }

    def _unexplained(self, outputs: Tensor, calls: list[_Call]) -> dict[str, str]:
        weighted = (outputs * torch.cos(torch.arange(outputs.shape[1], device=outputs.device))).sum()
        tensors = self._tensors()
        if not tensors:
            return {}
        distinct = {id(tensor): tensor for tensor in tensors.values()}
        whole = _gradients(weighted, list(distinct.values()))
        by_call = _gradients(weighted, [call.output for call in calls])
        explained = {key: torch.zeros_like(tensor) for key, tensor in distinct.items()}
        for call, gradient in zip(calls, by_call, strict=True):
            own = [getattr(call.module, name) for name in self._layers.get(call.place, ())]
            if own:
                again = type(call.module).forward(call.module, call.argument.detach())
                parts = _gradients((again * gradient).sum(), own)
                for tensor, part in zip(own, parts, strict=True):
                    explained[id(tensor)] += part
        wrong = {
            key
            for (key, sum_of_calls), gradient in zip(explained.items(), whole, strict=True)
            if not torch.allclose(sum_of_calls, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
        }
        reason = "its gradient is not explained by calls of its layers; something else uses it"
        return {path: reason for (path, _), tensor in tensors.items() if id(tensor) in wrong}

    def _forward(self, index: Tensor) -> tuple[Tensor, list[_Call]]:
        """Flat outputs [images, outputs] and the calls of all places, differentiable."""
        calls: list[_Call] = []

        def visit(event: Event) -> Any:
            if event.place not in self._places or not _is_floating(event.output):
                return event.output
            output = event.output if event.output.requires_grad else event.output.detach().requires_grad_()
            argument = event.argument.clone() if isinstance(event.argument, Tensor) else None
            calls.append(_Call(event.place, event.module, argument, output))
            return output.clone()  # so that operators in place do not change what is kept

        tensors = []
        for position, tensor in enumerate(self._runner.tensors):
            place = input_place(position, len(self._runner.tensors))
            tensors.append(visit(Event(place, 0, self._runner.model, (), {}, tensor[index.to(tensor.device)].clone())))
        functions = any("#" in place for place in self._places)
        with tapped(self._runner.model, visit, self._modules, functions=functions):
            outputs = self._runner.model(*tensors)
        if self._runner.output is not None:
            outputs = outputs[self._runner.output]
        outputs = outputs.reshape(len(index), -1)
        if outputs.shape[1] > MOST_OUTPUTS:
            raise ValueError(f"the model has {outputs.shape[1]} outputs for each input, more than {MOST_OUTPUTS}")
        if not outputs.requires_grad:
            raise ValueError("the outputs cannot be differentiated")
        return outputs, calls

    def _steepest(self, outputs: Tensor, calls: list[_Call]) -> list[tuple[Tensor, ...]]:
        """Channel, value and whole slope of each call."""
        steepest = [tuple(outputs.new_zeros(len(outputs)) for _ in range(3)) for _ in calls]
        for k in range(outputs.shape[1]):
            gradients = _gradients(outputs[:, k].sum(), [call.output for call in calls])
            for i, (call, gradient) in enumerate(zip(calls, gradients, strict=True)):
                module = call.module if call.place in self._layers else None
                parts = _channels(module, gradient)
                norms = torch.linalg.vector_norm(parts, dim=2)
                found = norms.amax(1), parts.abs().amax((1, 2)), torch.linalg.vector_norm(norms, dim=1)
                steepest[i] = tuple(
                    torch.maximum(most, slope.to(most.dtype)) for most, slope in zip(steepest[i], found, strict=True)
                )
        return steepest


def _is_floating(output: Any) -> bool:
    return isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 0


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _gradients(scalar: Tensor, of: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(scalar, of, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if gradient is None else gradient for t, gradient in zip(of, found, strict=True)]


@contextmanager
def _requiring_gradients(tensors: Mapping[Any, Tensor]) -> Iterator[None]:
    before = [(tensor, tensor.requires_grad) for tensor in tensors.values()]
    try:
        for tensor in tensors.values():
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor, required in before:
            tensor.requires_grad_(required)
