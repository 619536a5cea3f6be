"""Faults put in by hand, one at a time, in the plainest way: what the software level is checked against."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from saboteur.faults import NumberFormat
from saboteur.faults.models import BitFlip, Dead, FaultModel, Noise, RandomValue, StuckAt, StuckValue

INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def faulty_word(word: int, model: FaultModel, variant: int, drawn: int, fmt: NumberFormat) -> int:
    """One word after one fault, in Python integers and floats."""
    bits = fmt.bits

    def held(value: float) -> int:
        return int(fmt.encode(np.array([value]))[0])

    match model:
        case BitFlip(count=1):
            return word ^ (1 << variant)
        case BitFlip(adjacent=True):
            return word ^ (((1 << model.count) - 1) << variant)
        case BitFlip(count=2):
            pairs = [(low, high) for low in range(bits) for high in range(low + 1, bits)]
            return word ^ (1 << pairs[variant][0]) ^ (1 << pairs[variant][1])
        case StuckAt():
            bit, high = divmod(variant, 2)
            return word | (1 << bit) if high else word & ~(1 << bit)
        case StuckValue():
            return held(model.values[variant])
        case Dead():
            value = {"zero": 0.0, "high": fmt.highest, "low": fmt.lowest}[model.outputs[variant]]
            return held(float(np.ravel(value)[0]))
        case RandomValue():
            return drawn >> (64 - bits)
        case Noise():
            z = float(ndtri(((drawn >> 12) + 0.5) * 2.0**-52))
            value = float(fmt.decode(np.array([word], np.uint64))[0])
            return held(value * (1 + model.multiplicative * z) + model.additive * z)
    raise AssertionError(model)


def faulty_scalar(value: Tensor, fmt: NumberFormat, native: bool, change: Callable[[int], int]) -> Tensor:
    """A tensor of one value after ``change`` of its word."""
    if native:
        raw = value.reshape(1).clone().view(INTEGER[value.element_size()])
        size = 8 * value.element_size()
        word = change(int(raw) % (1 << size))
        raw[0] = word if raw.dtype == torch.uint8 or word < 1 << (size - 1) else word - (1 << size)
        return raw.view(value.dtype)[0]
    word = change(int(fmt.encode(value.double().numpy().reshape(1))[0]))
    return torch.tensor(fmt.decode(np.array([word], np.uint64))[0]).to(value.dtype)


def with_value(tensor: Tensor, index: tuple[int, ...], new: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy of a (possibly quantised) tensor with one value replaced."""
    if tensor.is_quantized:
        integers = with_value(tensor.int_repr(), index, new)
        return torch._make_per_tensor_quantized_tensor(integers, tensor.q_scale(), tensor.q_zero_point())
    tensor = tensor.clone()
    tensor[index] = new(tensor[index])
    return tensor


def in_batches(forward: Callable[[Tensor], Tensor], inputs: Tensor, size: int) -> Tensor:
    """All outputs, computed in batches of ``size``."""
    with torch.inference_mode():
        return torch.cat([forward(inputs[i : i + size].clone()) for i in range(0, len(inputs), size)])


def stage_by_stage(
    model: nn.Sequential,
    x: Tensor,
    round_signal: Callable[[str, Tensor], Tensor],
    fault: Callable[[str, Tensor], Tensor],
) -> Tensor:
    """Run a chain of modules, rounding and then faulting what comes out of each, the input first."""
    x = fault("input", round_signal("input", x))
    for name, stage in model.named_children():
        x = fault(name, round_signal(name, stage(x)))
    return x


def with_weight(model: nn.Module, path: str, new: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the model whose parameter, buffer or packed tensor at ``path`` is ``new`` of the present one."""
    model = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    module = model.get_submodule(parent)
    if hasattr(module, "set_weight_bias"):
        parts = {"weight": module.weight(), "bias": module.bias()}
        if name == "weight":
            old = parts["weight"]
            integers = new(old.int_repr())
            if old.qscheme() == torch.per_tensor_affine:
                parts["weight"] = torch._make_per_tensor_quantized_tensor(integers, old.q_scale(), old.q_zero_point())
            else:
                parts["weight"] = torch._make_per_channel_quantized_tensor(
                    integers, old.q_per_channel_scales(), old.q_per_channel_zero_points(), 0
                )
        else:
            parts["bias"] = new(parts["bias"].detach())
        module.set_weight_bias(parts["weight"], parts["bias"])
        return model
    with torch.no_grad():
        getattr(module, name).copy_(new(getattr(module, name).detach().clone()))
    return model
