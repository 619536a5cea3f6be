"""What flows through a model: every output of its modules and functions, in the order of computation.

Probing, calibrating, rounding, injecting and tracing are all visits to the same events. A model is tapped
for one forward pass and left without a hook, whatever happens in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

MODEL = "(model)"
"""How the outermost module is called, whose path is empty."""


@dataclass
class Event:
    """An output that came to be.

    Attributes:
        place: the module's path, or ``path/function#k`` for the k-th call of a function inside a module.
        call: how many times the place was reached before in this forward pass.
        module: the module, or the one that called the function.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        output: what it returned.
    """

    place: str
    call: int
    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    output: Any

    @property
    def tensor(self) -> Tensor | None:
        """The output itself, or the first tensor of a tuple; ``None`` where there is none."""
        return first_tensor(self.output)

    @property
    def argument(self) -> Any:
        """The first argument of the call."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)


Visit = Callable[[Event], Any]
"""Sees an event and returns the output that takes its place."""


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by path, each once, without the inner parts of parametrisations and packed weights."""
    found = {}

    def walk(path: str, module: nn.Module) -> None:
        if module in seen:
            return
        seen.add(module)
        found[path or MODEL] = module
        for name, child in children(module).items():
            walk(f"{path}.{name}" if path else name, child)

    seen: set[nn.Module] = set()
    walk("", model)
    return found


def children(module: nn.Module) -> dict[str, nn.Module]:
    """The child modules that are steps of the computation."""
    return {
        name: child
        for name, child in module.named_children()
        if not (
            name == "_packed_params"
            or (
                name == "parametrizations"
                and isinstance(child, nn.ModuleDict)
                and all(isinstance(part, ParametrizationList) for part in child.values())
            )
        )
    }


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """The modules without children, by path."""
    return {path: module for path, module in named_modules(model).items() if not children(module)}


def first_tensor(output: Any) -> Tensor | None:
    """The output itself, or the first tensor of a tuple; ``None`` where there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list):
        return next((part for part in output if isinstance(part, Tensor)), None)
    return None


def replace_first_tensor(output: Any, tensor: Tensor) -> Any:
    """The output with ``tensor`` in the place of its first tensor."""
    if isinstance(output, Tensor):
        return tensor
    parts = list(output)
    parts[next(i for i, part in enumerate(parts) if isinstance(part, Tensor))] = tensor
    if hasattr(output, "_fields"):
        return type(output)(*parts)
    return type(output)(parts)


@contextmanager
def tapped(
    model: nn.Module, visit: Visit, modules: Mapping[str, nn.Module], *, functions: bool = False
) -> Iterator[None]:
    """Send the outputs of ``modules`` (by path), and of functions called in inner modules, through ``visit``.

    Valid for one forward pass. Hooks are gone on leaving.
    """
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for path, module in modules.items():

            def after(module: nn.Module, args: tuple, kwargs: dict, output: Any, path: str = path) -> Any:
                event = Event(path, calls[path], module, args, kwargs, output)
                calls[path] += 1
                with torch._C.DisableTorchFunction():
                    return visit(event)

            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        if functions:
            stack.enter_context(_functions_tapped(model, visit))
        yield


@contextmanager
def _functions_tapped(model: nn.Module, visit: Visit) -> Iterator[None]:
    active: list[tuple[str, nn.Module, bool]] = []
    with ExitStack() as stack:
        for path, module in named_modules(model).items():
            inner = bool(children(module)) or path == MODEL

            def enter(module: nn.Module, args: tuple, path: str = path, inner: bool = inner) -> None:
                active.append((path, module, inner))

            def leave(module: nn.Module, args: tuple, output: Any) -> None:
                active.pop()

            stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(_Functions(visit, active))
        yield


class _Functions(TorchFunctionMode):
    """Sends the results of functions that inner modules call through ``visit``.

    Not a class within a function: each such class is part of a cycle, and would keep all that ``visit`` has seen.

    Args:
        visit: sees the events.
        active: the modules that are running, the innermost last: path, module and whether it is an inner one.
    """

    def __init__(self, visit: Visit, active: list[tuple[str, nn.Module, bool]]):
        super().__init__()
        self._visit = visit
        self._active = active
        self._calls: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "").strip("_")
        before = first_tensor(output)
        if before is None or not self._active or not self._active[-1][2] or name in ("get", "set", ""):
            return output
        path, module, _ = self._active[-1]
        stem = f"{name}#" if path == MODEL else f"{path}/{name}#"
        event = Event(f"{stem}{self._calls[stem]}", 0, module, args, kwargs or {}, output)
        self._calls[stem] += 1
        result = self._visit(event)
        after = first_tensor(result)
        if after is not None and after is not before and any(before is arg for arg in args):
            before.copy_(after)
            return output
        return result
