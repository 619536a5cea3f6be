"""A model as a graph of calls that can be run from any point on."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from saboteur.levels.software.flow import Event, children, leaves, tapped
from saboteur.levels.software.runner import input_place

Values = dict[int, Any]


class Untraceable(Exception):
    """Why a model cannot be run from the middle; it then runs the plain way."""


@dataclass(frozen=True, eq=False)
class Node:
    """One call of a module, function or method.

    Attributes:
        index: place in the order of computation.
        call: what is called, with which arguments.
        module: the module that is called, if any.
        inputs: the nodes whose results it takes.
        consumers: the nodes that take its result.
        overwrites: whether the call changes its arguments.
    """

    index: int
    call: fx.Node
    module: nn.Module | None
    inputs: tuple[int, ...]
    consumers: tuple[int, ...]
    overwrites: bool


class Graph:
    """The calls of one forward pass, in order.

    Args:
        model: in eval mode.
        output: which element of a returned tuple or mapping is the output.

    Raises:
        Untraceable: when the model's control flow depends on its inputs, or its output is no tensor.
    """

    def __init__(self, model: nn.Module, output: int | str | None = None):
        tracer = _Tracer()
        try:
            traced = tracer.trace(model)
        except Exception as error:
            raise Untraceable(f"torch.fx cannot trace it: {type(error).__name__}: {error}") from error
        calls = [call for call in traced.nodes if call.op != "output"]
        self._index = {call: index for index, call in enumerate(calls)}
        modules = dict(model.named_modules())
        self.model = model
        self.nodes = [
            Node(
                index,
                call,
                modules[call.target] if call.op == "call_module" else None,
                tuple(self._index[source] for source in call.all_input_nodes),
                tuple(sorted(self._index[user] for user in call.users if user.op != "output")),
                _overwrites(call, modules),
            )
            for index, call in enumerate(calls)
        ]
        self.arguments = [node.index for node in self.nodes if node.call.op == "placeholder"]
        returned = next(call for call in traced.nodes if call.op == "output").args[0]
        if output is not None:
            try:
                returned = returned[output]
            except (KeyError, IndexError, TypeError) as error:
                raise Untraceable(f"the element {output!r} of its output is made by a call") from error
        if not isinstance(returned, fx.Node):
            raise Untraceable("its output is not the result of one call")
        self.output = self._index[returned]
        self.tensors: set[int] = set()
        """The nodes whose results are tensors, known after :meth:`check`."""
        self.absorbing: set[int] = set()
        """The nodes in whose results a NaN makes the output NaN: see :mod:`.absorption`."""
        self._after: dict[tuple[int, ...], set[int]] = {}
        self.varies = self._varying()
        self.leads_to_output = self._leading()

    def _varying(self) -> list[bool]:
        """Whether each node depends on the model's input."""
        varies: list[bool] = []
        for node in self.nodes:
            varies.append(node.call.op == "placeholder" or any(varies[source] for source in node.inputs))
        return varies

    def _leading(self) -> list[bool]:
        """Whether the output depends on each node."""
        leading = [node.index == self.output for node in self.nodes]
        for node in reversed(self.nodes):
            leading[node.index] |= any(leading[consumer] for consumer in node.consumers)
        return leading

    @cached_property
    def cuts(self) -> list[int]:
        """The nodes on whose result alone all that follows depends, in order, the output last."""
        cuts, earliest = [self.output], self._earliest_read(self.output)
        for index in range(self.output - 1, -1, -1):
            if self.varies[index] and self.leads_to_output[index]:
                if earliest == index and index in self.tensors:
                    cuts.append(index)
                earliest = min(earliest, self._earliest_read(index))
        return cuts[::-1]

    def _earliest_read(self, index: int) -> int:
        return min((source for source in self.nodes[index].inputs if self.varies[source]), default=index)

    def number_of(self, call: fx.Node) -> int:
        """The index of the node of a traced call."""
        return self._index[call]

    def calls_of(self, module: nn.Module) -> list[Node]:
        """The calls of a module."""
        return [node for node in self.nodes if node.module is module]

    def places(self, tensors: Sequence[Tensor], values: Values) -> dict[str, int]:
        """The nodes of places, as :mod:`saboteur.levels.software.flow` names them, that are reached once.

        Args:
            tensors: the model's arguments.
            values: the result of every call for them; a place is only given where its result is the same.
        """
        seen: dict[str, Tensor] = {}
        again: set[str] = set()

        def visit(event: Event) -> Any:
            if event.place in seen:
                again.add(event.place)
            if isinstance(event.output, Tensor):
                seen[event.place] = event.output.clone()
            return event.output

        with tapped(self.model, visit, leaves(self.model), functions=True):
            self.model(*(tensor.clone() for tensor in tensors))
        named = {input_place(position, len(tensors)): node for position, node in enumerate(self.arguments)}
        for path, module in leaves(self.model).items():
            calls = self.calls_of(module)
            if len(calls) == 1:
                named[path] = calls[0].index
        named |= self._function_places(values)
        return {
            place: node
            for place, node in named.items()
            if place not in again and (node in self.arguments or same(seen.get(place), values[node]))
        }

    def _function_places(self, values: Values) -> dict[str, int]:
        calls: Counter[str] = Counter()
        places = {}
        for node in self.nodes:
            is_function = node.call.op in ("call_function", "call_method")
            on_tensors = any(isinstance(values[source], Tensor) for source in node.inputs)
            if not is_function or not on_tensors or not isinstance(values[node.index], Tensor):
                continue
            target = node.call.target
            name = (target if isinstance(target, str) else getattr(target, "__name__", "")).strip("_")
            stack = list(node.call.meta.get("nn_module_stack", {}))
            stem = f"{stack[-1]}/{name}#" if stack and stack[-1] else f"{name}#"
            if not node.overwrites:
                places[f"{stem}{calls[stem]}"] = node.index
            calls[stem] += 1
        return places

    def after(self, sources: Sequence[int]) -> set[int]:
        """The nodes that depend on any of ``sources``, these not included."""
        key = tuple(sources)
        if key not in self._after:
            self._after[key] = self._reached_from(key)
        return self._after[key]

    def _reached_from(self, sources: tuple[int, ...]) -> set[int]:
        reached = set(sources)
        for node in self.nodes:
            if any(source in reached for source in node.inputs):
                reached.add(node.index)
        return reached - set(sources)

    def call(self, node: Node, values: Mapping[int, Any]) -> Any:
        """The result of ``node`` from the values of its inputs, which stay as they are."""

        def value(source: fx.Node) -> Any:
            found = values[self._index[source]]
            return found.clone() if node.overwrites and isinstance(found, Tensor) else found

        call = node.call
        if call.op == "get_attr":
            return operator.attrgetter(str(call.target))(self.model)
        args = fx.node.map_arg(call.args, value)
        kwargs = fx.node.map_arg(call.kwargs, value)
        if node.module is not None:
            return node.module(*args, **kwargs)
        if call.op == "call_function":
            return call.target(*args, **kwargs)
        return getattr(args[0], str(call.target))(*args[1:], **kwargs)

    def run(self, tensors: Sequence[Tensor]) -> Values:
        """The result of every call for the model's arguments ``tensors``."""
        values: Values = dict(zip(self.arguments, tensors, strict=False))
        if len(self.arguments) != len(tensors):
            raise Untraceable(f"it takes {len(self.arguments)} arguments, of which {len(tensors)} are given")
        for node in self.nodes:
            if node.index not in values:
                values[node.index] = self.call(node, values)
        return values

    def check(self, tensors: Sequence[Tensor]) -> Values:
        """Make sure that the first axis of every result tells the inputs apart, and that calls repeat.

        Args:
            tensors: the model's arguments for a few inputs.

        Returns:
            The results of all calls.

        Raises:
            Untraceable: naming the call that mixes inputs, changes its arguments, or gives other bits when
                it is made again.
        """
        size = len(tensors[0])
        values: Values = dict(zip(self.arguments, (tensor.clone() for tensor in tensors), strict=True))
        for node in self.nodes:
            if node.index not in values:
                before = {source: _copied(values[source]) for source in node.inputs}
                values[node.index] = self.call(node, values)
                if not all(same(values[source], copy) for source, copy in before.items()):
                    raise Untraceable(f"{node.call.name}: the call changes its arguments")
        self.tensors = {index for index, value in values.items() if isinstance(value, Tensor)}
        order = torch.arange(size - 1, -1, -1)[: max(size - 1, 1)]
        other = self.run([tensor[order.to(tensor.device)].clone() for tensor in tensors])
        for node in self.nodes:
            value = values[node.index]
            if not (isinstance(value, Tensor) and self.varies[node.index] and self.leads_to_output[node.index]):
                continue
            if not _rows_agree(value, other[node.index], order):
                raise Untraceable(f"{node.call.name}: the first axis of its result does not tell the inputs apart")
        for node in self.nodes:
            repeats = node.call.op in ("placeholder", "get_attr") or same(self.call(node, values), values[node.index])
            if not repeats:
                raise Untraceable(f"{node.call.name}: the call does not repeat bit for bit")
        return values


class _Tracer(fx.Tracer):
    """Calls every module without children, every module of PyTorch, and every module with hooks as one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        hooked = bool(m._forward_hooks or m._forward_pre_hooks)
        return hooked or not children(m) or super().is_leaf_module(m, module_qualified_name)


def _overwrites(call: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if call.op == "call_module":
        return bool(getattr(modules[str(call.target)], "inplace", False))
    name = call.target if isinstance(call.target, str) else getattr(call.target, "__name__", "")
    in_place_method = name.endswith("_") and not name.endswith("__")
    in_place_operator = name.startswith("i") and hasattr(operator, f"__{name}__") and hasattr(operator, name[1:])
    return in_place_method or in_place_operator or bool(call.kwargs.get("inplace"))


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal, a NaN to any other NaN."""
    if isinstance(one, Tensor) != isinstance(other, Tensor):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        return bool(((one == other) | ((one != one) & (other != other))).all())
    return one == other


def _rows_agree(value: Tensor, other: Tensor, order: Tensor) -> bool:
    if value.dim() == 0 or len(other) != len(order) or value.shape[1:] != other.shape[1:] or len(value) <= order.max():
        return False
    expected, scale = value[order.to(value.device)], value.abs().amax() if value.is_floating_point() else 0
    if not value.is_floating_point():
        return bool((expected == other).all())
    return bool(((expected - other).abs() <= 1e-3 * scale + 1e-30).all())
