"""A model as a graph of calls that can be run from any point on."""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from saboteur.faults.formats import NumberFormat
from saboteur.levels.software.emulation import rounded_output
from saboteur.levels.software.flow import Event, children, first_tensor, leaves, tapped
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
        rounding: formats that outputs of modules and inputs are rounded to, by place.
        shapes: of the model's arguments, so that loops over any axis but the first can be unrolled.

    Raises:
        Untraceable: when the model's control flow depends on its inputs, its output is no tensor, or what is to be
            rounded is inside a call.
    """

    def __init__(
        self,
        model: nn.Module,
        output: int | str | None = None,
        rounding: Mapping[str, NumberFormat] = MappingProxyType({}),
        shapes: Sequence[tuple[int, ...]] = (),
    ):
        tracer = _Tracer(shapes)
        try:
            with _creation_traced():
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
        self._rounding = self._rounded(rounding)
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
        """The nodes whose results are tensors of which the first axis tells the inputs apart, known after
        :meth:`check`."""
        self.places: dict[str, tuple[int, ...]] = {}
        """The nodes of places, as :mod:`saboteur.levels.software.flow` names them, in the order in which they are
        reached, known after :meth:`find_places`."""
        self.place_of: dict[int, tuple[str, int]] = {}
        """The place of each node that has one, and how many times it was reached before."""
        self.absorbing: set[int] = set()
        """The nodes in whose results a NaN makes the output NaN: see :mod:`.absorption`."""
        self._after: dict[tuple[int, ...], set[int]] = {}
        self.varies = self._varying()
        self.leads_to_output = self._leading()

    def _rounded(self, rounding: Mapping[str, NumberFormat]) -> dict[int, NumberFormat]:
        """The formats that results are rounded to, by node."""
        if not rounding:
            return {}
        found = {}
        for position, node in enumerate(self.arguments):
            place = input_place(position, len(self.arguments))
            if place in rounding:
                found[node] = rounding[place]
        for path, module in leaves(self.model).items():
            if path in rounding:
                calls = self.calls_of(module)
                if not calls:
                    raise Untraceable(f"{path}: its output is rounded to a number format inside a call")
                found |= {node.index: rounding[path] for node in calls}
        return found

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

    def find_places(self, tensors: Sequence[Tensor], values: Values) -> None:
        """Find the :attr:`places` that are nodes each time they are reached.

        Args:
            tensors: the model's arguments.
            values: the result of every call for them; a place is only found where its results are the same.
        """
        seen: dict[str, list[Any]] = defaultdict(list)
        arguments = enumerate(self.arguments)
        named: dict[str, tuple[int, ...]] = {input_place(place, len(tensors)): (node,) for place, node in arguments}
        rounding = {place: self._rounding.get(nodes[0]) for place, nodes in named.items()}
        for path, module in leaves(self.model).items():
            calls = tuple(node.index for node in self.calls_of(module))
            if calls:
                named[path] = calls
                rounding[path] = self._rounding.get(calls[0])

        def visit(event: Event) -> Any:
            event.output = rounded_output(event.output, rounding.get(event.place))
            seen[event.place].append(_copied(event.output))
            return event.output

        with tapped(self.model, visit, leaves(self.model), functions=True):
            self.model(*(_copied(values[node]) for node in self.arguments))
        named |= {place: (node,) for place, node in self._function_places(values).items()}
        for place, nodes in named.items():
            reached = [values[node] for node in nodes]
            if nodes[0] in self.arguments or same(seen[place], reached):
                self.places[place] = nodes
                self.place_of |= {node: (place, call) for call, node in enumerate(nodes)}

    def _function_places(self, values: Values) -> dict[str, int]:
        calls: Counter[str] = Counter()
        places = {}
        for node in self.nodes:
            is_function = node.call.op in ("call_function", "call_method")
            of_tensors = node.call.target in _CREATING or any(isinstance(values[one], Tensor) for one in node.inputs)
            if not is_function or not of_tensors or first_tensor(values[node.index]) is None:
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
            self._after[key] = self.reached_from(key) - set(key)
        return self._after[key]

    def reached_from(self, sources: Iterable[int]) -> set[int]:
        """The nodes that depend on any of ``sources``, and these."""
        reached = set(sources)
        for node in self.nodes:
            if any(source in reached for source in node.inputs):
                reached.add(node.index)
        return reached

    def call(self, node: Node, values: Mapping[int, Any]) -> Any:
        """The result of ``node`` from the values of its inputs, which stay as they are."""
        return rounded_output(self.event(node, values).output, self._rounding.get(node.index))

    def event(self, node: Node, values: Mapping[int, Any]) -> Event:
        """The call of ``node``, not rounded; values of inputs stay as they are."""

        def value(source: fx.Node) -> Any:
            found = values[self._index[source]]
            return found.clone() if node.overwrites and isinstance(found, Tensor) else found

        call = node.call
        place, reached = self.place_of.get(node.index, ("", 0))
        if call.op == "get_attr":
            return Event(place, reached, self.model, (), {}, operator.attrgetter(str(call.target))(self.model))
        args = map_arg(call.args, value)
        kwargs = map_arg(call.kwargs, value)
        if node.module is not None:
            return Event(place, reached, node.module, args, kwargs, node.module(*args, **kwargs))
        if callable(call.target):
            return Event(place, reached, self.model, args, kwargs, call.target(*args, **kwargs))
        output = getattr(args[0], str(call.target))(*args[1:], **kwargs)
        return Event(place, reached, self.model, args, kwargs, output)

    def run(self, tensors: Sequence[Tensor]) -> Values:
        """The result of every call for the model's arguments ``tensors``."""
        if len(self.arguments) != len(tensors):
            raise Untraceable(f"it takes {len(self.arguments)} arguments, of which {len(tensors)} are given")
        values = self._given(tensors)
        for node in self.nodes:
            if node.index not in values:
                values[node.index] = self.call(node, values)
        return values

    def _given(self, tensors: Sequence[Tensor]) -> Values:
        given = zip(self.arguments, tensors, strict=True)
        return {node: rounded_output(tensor, self._rounding.get(node)) for node, tensor in given}

    def check(self, tensors: Sequence[Tensor], *, every: bool = True) -> Values:
        """Make sure that the first axis of results tells the inputs apart, and that calls repeat.

        Args:
            tensors: the model's arguments for a few inputs.
            every: whether it has to be so for every result, and not only for the output; results of which another axis
                tells the inputs apart, or the first one together with another, are not among :attr:`tensors`.

        Returns:
            The results of all calls.

        Raises:
            Untraceable: naming the call that mixes inputs, changes its arguments, or gives other bits when
                it is made again.
        """
        size = len(tensors[0])
        values = self._given([tensor.clone() for tensor in tensors])
        for node in self.nodes:
            if node.index not in values:
                before = {source: _copied(values[source]) for source in node.inputs}
                try:
                    values[node.index] = self.call(node, values)
                except Exception as error:
                    raise Untraceable(f"{node.call.name}: as traced the call fails: {error}") from error
                if not all(same(values[source], copy) for source, copy in before.items()):
                    raise Untraceable(f"{node.call.name}: the call changes its arguments")
        order = torch.arange(size - 1, -1, -1)[: max(size - 1, 1)]
        other = self.run([tensor[order.to(tensor.device)].clone() for tensor in tensors])
        for node in self.nodes:
            value = values[node.index]
            if not isinstance(value, Tensor):
                continue
            matters = self.varies[node.index] and self.leads_to_output[node.index]
            if not matters or _rows_agree(value, other[node.index], order):
                self.tensors.add(node.index)
            elif every or node.index == self.output or not _tells_apart(value, other[node.index], size, order):
                raise Untraceable(f"{node.call.name}: the first axis of its result does not tell the inputs apart")
        for node in self.nodes:
            repeats = node.call.op in ("placeholder", "get_attr") or same(self.call(node, values), values[node.index])
            if not repeats:
                raise Untraceable(f"{node.call.name}: the call does not repeat bit for bit")
        return values


class _Tracer(fx.Tracer):
    """Calls every module without children, every module of PyTorch, and every module with hooks as one.

    Args:
        shapes: of the model's arguments, of which all but the first axis are the same for any batch.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        super().__init__()
        self._shapes = list(shapes)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        hooked = bool(m._forward_hooks or m._forward_pre_hooks)
        return hooked or not children(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if node.op == "placeholder" and self._shapes:
            return _Argument(node, self, self._shapes.pop(0))
        return super().proxy(node)


class _Argument(fx.Proxy):
    """An argument of the model, whose axes but the first are known numbers while it is traced."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, shape: tuple[int, ...]):
        super().__init__(node, tracer)
        self._axes = tuple(shape[1:])

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name == "shape":
            return (super().__getattr__("shape").__getitem__(0), *self._axes)
        if name == "ndim":
            return 1 + len(self._axes)
        return found

    def size(self, axis: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """As of a tensor."""
        return self.ndim


_CREATING = (torch.zeros, torch.ones, torch.empty, torch.full, torch.arange)


@contextmanager
def _creation_traced() -> Iterator[None]:
    """Functions that make new tensors become calls where their size is that of a batch, which tracing does not know."""
    with ExitStack() as stack:
        for function in _CREATING:

            def make(*args: Any, function: Callable = function, **kwargs: Any) -> Any:
                asked = [part for part in (*args, *kwargs.values()) if isinstance(part, fx.Proxy | tuple | list)]
                proxies = [one for part in asked for one in (part if isinstance(part, tuple | list) else [part])]
                first = next((one for one in proxies if isinstance(one, fx.Proxy)), None)
                if first is None:
                    return function(*args, **kwargs)
                return first.tracer.create_proxy("call_function", function, args, kwargs)

            stack.enter_context(mock.patch.object(torch, function.__name__, make))
        yield


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


def _tells_apart(value: Tensor, other: Tensor, size: int, order: Tensor) -> bool:
    """Whether some axis tells the ``size`` inputs apart, or the first one, into which another axis is folded."""
    folds = value.dim() > 0 and value.shape[0] % size == 0 and other.shape[0] % len(order) == 0
    if folds and _rows_agree(value.reshape(size, -1), other.reshape(len(order), -1), order):
        return True
    return any(_rows_agree(value.movedim(axis, 0), other.movedim(axis, 0), order) for axis in range(1, value.dim()))


def _rows_agree(value: Tensor, other: Tensor, order: Tensor) -> bool:
    if value.dim() == 0 or len(other) != len(order) or value.shape[1:] != other.shape[1:] or len(value) <= order.max():
        return False
    expected, scale = value[order.to(value.device)], value.abs().amax() if value.is_floating_point() else 0
    if not value.is_floating_point():
        return bool((expected == other).all())
    return bool(((expected - other).abs() <= 1e-3 * scale + 1e-30).all())
