"""Stored values of a model (parameters, buffers, packed weights), read and overwritten as words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from saboteur.faults.formats import Affine, NumberFormat
from saboteur.levels.software.emulation import native_format, raw_view, tensor_of, with_integers, words_of
from saboteur.levels.software.flow import MODEL, named_modules
from saboteur.levels.software.site import Site, position


@dataclass(frozen=True, eq=False, kw_only=True)
class Memory(Site, ABC):
    """A stored tensor."""

    tensor: str

    @abstractmethod
    def values(self) -> Tensor:
        """What is stored, fault-free, as the format's values or raw integers."""

    @abstractmethod
    def overwritten(self, elements: NDArray[np.int64], words: NDArray[np.uint64]) -> AbstractContextManager[None]:
        """A context in which the distinct ``elements`` hold ``words``; afterwards all is as before."""

    def words(self, elements: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
        """The fault-free words [n] of flat ``elements`` [n], or of all."""
        values = torch.atleast_1d(self.values())
        chosen = np.arange(values.numel()) if elements is None else elements
        return words_of(values[position(chosen, self.shape, values.device)], self.format_at(chosen))

    def faulted(self, elements: NDArray[np.int64], words: NDArray[np.uint64]) -> Tensor:
        """A copy of the values in which ``elements`` hold ``words``."""
        values = self.values().clone()
        index = position(elements, self.shape, values.device)
        torch.atleast_1d(values)[index] = tensor_of(words, self.format_at(elements), values)
        return values


class Plain(Memory):
    """A parameter or buffer."""

    def values(self) -> Tensor:
        """The tensor itself."""
        return getattr(self.module, self.tensor).detach()

    @contextmanager
    def overwritten(self, elements: NDArray[np.int64], words: NDArray[np.uint64]) -> Iterator[None]:
        """Write in place."""
        values = torch.atleast_1d(self.values())
        bits, index = raw_view(values), position(elements, self.shape, values.device)
        before = bits[index]
        try:
            bits[index] = raw_view(tensor_of(words, self.format_at(elements), values))
            yield
        finally:
            bits[index] = before


class Pruned(Memory):
    """A tensor that a hook before each forward pass computes from others (pruning masks, weight norm)."""

    def values(self) -> Tensor:
        """What the hooks compute."""
        before = getattr(self.module, self.tensor)
        try:
            for hook in self.module._forward_pre_hooks.values():
                if _computed_name(hook) == self.tensor:
                    hook(self.module, ())
            return getattr(self.module, self.tensor).detach()
        finally:
            setattr(self.module, self.tensor, before)

    @contextmanager
    def overwritten(self, elements: NDArray[np.int64], words: NDArray[np.uint64]) -> Iterator[None]:
        """Replace the computed tensor before each forward pass."""
        faulted = self.faulted(elements, words)
        before = getattr(self.module, self.tensor)
        handle = self.module.register_forward_pre_hook(lambda module, _args: setattr(module, self.tensor, faulted))
        try:
            yield
        finally:
            handle.remove()
            setattr(self.module, self.tensor, before)

    def uncompute(self) -> None:
        """Take out the hooks and their sources, so that a tensor can be stored under this name."""
        for key, hook in list(self.module._forward_pre_hooks.items()):
            if _computed_name(hook) == self.tensor:
                del self.module._forward_pre_hooks[key]
        for name in _sources(self.tensor):
            self.module._parameters.pop(name, None)
            self.module._buffers.pop(name, None)
        del self.module.__dict__[self.tensor]


class Parametrized(Memory):
    """A tensor that ``torch.nn.utils.parametrize`` computes at each use."""

    def values(self) -> Tensor:
        """What the parametrisation computes."""
        return getattr(self.module, self.tensor).detach()

    @contextmanager
    def overwritten(self, elements: NDArray[np.int64], words: NDArray[np.uint64]) -> Iterator[None]:
        """Replace what the parametrisation computes."""
        faulted = self.faulted(elements, words)
        handle = _parametrizations(self.module)[self.tensor].register_forward_hook(lambda *_: faulted)
        try:
            yield
        finally:
            handle.remove()

    def uncompute(self) -> None:
        """Take the parametrisation out, so that a tensor can be stored under this name.

        ``parametrize.remove_parametrizations`` would change the class, which copies of the module share.
        """
        parametrizations = _parametrizations(self.module)
        del parametrizations[self.tensor]
        if not len(parametrizations):
            del self.module.parametrizations
            self.module.__class__ = type(self.module).__bases__[0]


def _parametrizations(module: nn.Module) -> nn.ModuleDict:
    found = module.parametrizations
    assert isinstance(found, nn.ModuleDict)
    return found


@runtime_checkable
class PackedLayer(Protocol):
    """A layer of ``torch.ao.nn.quantized``."""

    def weight(self) -> Tensor:
        """The quantised weight."""
        ...

    def bias(self) -> Tensor | None:
        """The floating-point bias."""
        ...

    def set_weight_bias(self, w: Tensor, b: Tensor | None) -> None:
        """Pack others in their place."""
        ...


class Packed(Memory):
    """The weight or bias of a layer of ``torch.ao.nn.quantized``, which holds both in one packed object."""

    def values(self) -> Tensor:
        """The stored integers of the weight, or the floating-point bias."""
        values = getattr(self.module, self.tensor)().detach()
        return values.int_repr() if values.is_quantized else values

    @contextmanager
    def overwritten(self, elements: NDArray[np.int64], words: NDArray[np.uint64]) -> Iterator[None]:
        """Pack a faulted weight or bias in place of the stored one."""
        layer = self.module
        assert isinstance(layer, PackedLayer)
        weight, bias = layer.weight(), layer.bias()
        faulted = self.faulted(elements, words)
        if self.tensor == "bias":
            bias = faulted
        else:
            weight = with_integers(weight, faulted)
        inner = self.module._packed_params
        holder = inner if isinstance(inner, nn.Module) else self.module
        before = holder._packed_params
        try:
            layer.set_weight_bias(weight, bias)
            yield
        finally:
            holder._packed_params = before


def _computed_name(hook: object) -> str | None:
    """The tensor that a pruning, weight-norm or spectral-norm hook computes."""
    name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
    return name if isinstance(name, str) else None


def computed_tensors(module: nn.Module) -> list[str]:
    """The tensors of ``module`` that its hooks compute before each forward pass."""
    names = {_computed_name(hook) for hook in module._forward_pre_hooks.values()}
    return sorted(name for name in names if name and isinstance(module.__dict__.get(name), Tensor))


def _sources(name: str) -> list[str]:
    return [f"{name}_{part}" for part in ("orig", "mask", "g", "v", "u")]


def memories(model: nn.Module) -> list[Memory]:
    """Every stored tensor that holds numbers, in the model's order; tied ones once."""
    found: list[Memory] = []
    seen: set[int] = set()
    for path, module in named_modules(model).items():
        prefix = "" if path == MODEL else path + "."

        def add(kind: type[Memory], name: str, values: Tensor, component: str, fmt: NumberFormat | None = None) -> None:
            found.append(
                kind(
                    name=prefix + name,  # noqa: B023
                    layer=path,  # noqa: B023
                    module=module,  # noqa: B023
                    component=component,
                    shape=tuple(values.shape),
                    format=fmt or native_format(values.dtype),
                    tensor=name,
                )
            )

        if isinstance(module, PackedLayer):
            weight, bias = module.weight(), module.bias()
            add(Packed, "weight", weight, "weight", quantized_format(weight))
            if bias is not None:
                add(Packed, "bias", bias, "bias")
            continue
        computed = computed_tensors(module)
        parametrized = list(_parametrizations(module)) if parametrize.is_parametrized(module) else []
        sources = {source for name in computed for source in _sources(name)}
        for name in [*computed, *parametrized]:
            add(Pruned if name in computed else Parametrized, name, getattr(module, name), _component(name))
        for name, values in (*module._parameters.items(), *module._buffers.items()):
            if values is None or name in sources or id(values) in seen or not _holds_numbers(values):
                continue
            seen.add(id(values))
            add(Plain, name, values, "buffer" if name in module._buffers else _component(name))
    return found


def _component(name: str) -> str:
    return "bias" if name.startswith("bias") else "weight"


def _holds_numbers(values: Tensor) -> bool:
    return not (values.is_complex() or values.dtype == torch.bool or values.is_sparse or values.is_quantized)


def quantized_format(values: Tensor) -> Affine:
    """The affine format of a quantised tensor, with its scales."""
    integers = torch.iinfo(values.int_repr().dtype)
    if values.qscheme() == torch.per_tensor_affine:
        scale, zero_point = np.array(values.q_scale()), np.array(values.q_zero_point())
    else:
        scale = values.q_per_channel_scales().double().numpy()
        zero_point = values.q_per_channel_zero_points().long().numpy()
    return Affine(integers.bits, integers.min < 0, scale, zero_point)
