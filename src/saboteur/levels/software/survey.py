"""Finds the signals of a model by running it fault-free on a few inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypedDict

import torch
from torch import Tensor, nn

from saboteur.errors import TargetError
from saboteur.faults.formats import NumberFormat
from saboteur.levels.software.emulation import native_format
from saboteur.levels.software.flow import MODEL, Event, leaves, tapped
from saboteur.levels.software.memory import quantized_format
from saboteur.levels.software.signals import Connection, Granularity, Output, has_connections
from saboteur.levels.software.states import CELL, HIDDEN, State

_PROBES = (2, 3)
_LAST_AXIS_COUNTS_CHANNELS = (nn.Linear, nn.RNNBase, nn.Embedding, nn.LayerNorm)


@dataclass
class _Record:
    module: nn.Module
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    argument_shapes: list[tuple[int, ...]] = field(default_factory=list)
    argument_format: NumberFormat | None = None
    format: NumberFormat | None = None
    reason: str | None = None


class _Named(TypedDict):
    name: str
    layer: str
    module: nn.Module
    component: str
    place: str


class Survey:
    """What the model's places put out.

    Args:
        model: in eval mode.
        forward: runs it fault-free on so many inputs.
        emulated: formats that are emulated, by place, and by ``argument_of(place)`` for what a layer reads.

    Raises:
        TargetError: when a module takes no hooks.

    Attributes:
        skipped: places that faults cannot hit, each with the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[int], None],
        emulated: Mapping[str, NumberFormat] = MappingProxyType({}),
    ):
        for place, module in leaves(model).items():
            if isinstance(module, torch.jit.ScriptModule):
                raise TargetError(f"model: {place} is compiled by torch.jit, so that only stored values can be hit")
        self._model = model
        self._emulated = emulated
        first, second = (self._records(lambda n=n: forward(n)) for n in _PROBES)
        self.skipped: dict[str, str] = {}
        self._places: dict[str, tuple[_Record, int]] = {}
        for place, record in first.items():
            axis = _axis_of_inputs(record, second.get(place))
            if isinstance(axis, str):
                self.skipped[place] = axis
            else:
                self._places[place] = (record, axis)

    def _records(self, forward: Callable[[], None]) -> dict[str, _Record]:
        records: dict[str, _Record] = {}

        def visit(event: Event) -> object:
            record = records.setdefault(event.place, _Record(event.module))
            tensor = event.tensor
            try:
                if tensor is None:
                    raise TargetError(f"its output is a {type(event.output).__name__}, not a tensor")
                record.format = self._format(event.place, tensor)
                record.shapes.append(tuple(tensor.shape))
                if isinstance(event.argument, Tensor) and not event.argument.is_quantized:
                    record.argument_shapes.append(tuple(event.argument.shape))
                    record.argument_format = self._format(argument_of(event.place), event.argument)
            except TargetError as error:
                record.reason = str(error)
            return event.output

        with tapped(self._model, visit, leaves(self._model), functions=True):
            forward()
        return records

    def _format(self, name: str, tensor: Tensor) -> NumberFormat:
        if tensor.is_quantized:
            return quantized_format(tensor)
        native = native_format(tensor.dtype)
        return self._emulated.get(name, native) if tensor.dtype.is_floating_point else native

    @property
    def batch_axes(self) -> dict[str, int]:
        """The axis that tells inputs apart, of each place that faults can hit."""
        return {place: axis for place, (_, axis) in self._places.items()}

    def outputs(self, granularity: Granularity, *, functions: bool) -> Iterator[Output]:
        """The outputs of leaf modules, or of functions called in inner modules."""
        modules = {module: path for path, module in leaves(self._model).items()}
        for place, (record, axis) in self._places.items():
            is_function = "#" in place
            if is_function != functions:
                continue
            shape = record.shapes[0][:axis] + record.shapes[0][axis + 1 :]
            assert record.format is not None  # with each shape comes a format
            yield output_site(
                name=place if is_function else f"{place}:output",
                layer=(place.rpartition("/")[0] or MODEL) if is_function else modules[record.module],
                module=record.module,
                component="operator" if is_function else "activation",
                place=place,
                shape=shape,
                fmt=record.format,
                steps=len(record.shapes),
                batch_axis=axis,
                granularity=granularity,
            )

    def connections(self) -> Iterator[Connection]:
        """The connections of linear and convolution layers."""
        for place, (record, axis) in self._places.items():
            if "#" in place or axis != 0 or not has_connections(record.module) or record.argument_format is None:
                continue
            yield Connection(
                name=f"{place}:connection",
                layer=place,
                module=record.module,
                component="connection",
                shape=(*record.shapes[0][1:], record.module.weight[0].numel()),
                format=record.argument_format,
                steps=len(record.shapes),
                place=place,
            )

    def states(self, component: str) -> Iterator[State | Output]:
        """The hidden or cell states of recurrent layers and cells."""
        for place, (record, _) in self._places.items():
            module = record.module
            if "#" in place or (component == CELL and not isinstance(module, nn.LSTM | nn.LSTMCell)):
                continue
            if isinstance(module, nn.RNNBase) and module.bidirectional:
                self.skipped[f"{place}:{component}"] = (
                    "it is bidirectional, so that no state comes after a time step of both directions"
                )
                continue
            common: _Named = {
                "name": f"{place}:{component}",
                "layer": place,
                "module": module,
                "component": component,
                "place": place,
            }
            if isinstance(module, nn.RNNBase):
                time_axis = 1 if module.batch_first else 0
                projected = module.proj_size if component == HIDDEN else 0
                lengths = tuple(shape[time_axis] for shape in record.argument_shapes)
                yield State(
                    **common,
                    shape=(module.num_layers, projected or module.hidden_size),
                    format=native_format(module.all_weights[0][1].dtype),
                    steps=sum(lengths),
                    lengths=lengths,
                )
            elif isinstance(module, nn.RNNCellBase):
                yield output_site(
                    **common,
                    shape=(module.hidden_size,),
                    fmt=native_format(module.weight_hh.dtype),
                    granularity="element",
                    steps=len(record.shapes),
                    part=1 if component == CELL else 0,
                )


def argument_of(place: str) -> str:
    """The name of what the module at ``place`` reads."""
    return f"{place}:argument"


def output_site(
    *,
    name: str,
    layer: str,
    module: nn.Module,
    component: str,
    place: str,
    shape: tuple[int, ...],
    fmt: NumberFormat,
    granularity: Granularity,
    steps: int = 1,
    batch_axis: int = 0,
    part: int = 0,
) -> Output:
    """An output site; its own shape follows from what one fault hits at once."""
    last = isinstance(module, _LAST_AXIS_COUNTS_CHANNELS) and component != "operator"
    unit_axis = len(shape) - 1 if last and shape else 0
    units = {"element": shape, "channel": shape[unit_axis : unit_axis + 1], "layer": ()}[granularity]
    return Output(
        name=name if granularity == "element" else f"{name}:{granularity}",
        layer=layer,
        module=module,
        component=component,
        shape=units,
        format=fmt,
        steps=steps,
        place=place,
        part=part,
        batch_axis=batch_axis,
        value_shape=shape,
        granularity=granularity,
        unit_axis=unit_axis,
    )


def _axis_of_inputs(first: _Record, second: _Record | None) -> int | str:
    """The axis of a place's output that tells the inputs apart, or why faults cannot hit it."""
    if first.reason is not None:
        return first.reason
    if second is None or len(second.shapes) != len(first.shapes):
        return "how often it is reached depends on the batch size"
    if len(set(first.shapes)) > 1:
        return f"its calls put out different shapes: {sorted(set(first.shapes))}"
    axis = _batch_axis(first.shapes[0], second.shapes[0])
    if axis is None:
        shape = list(first.shapes[0])
        return f"its output of shape {shape} for {_PROBES[0]} inputs has no axis that tells the inputs apart"
    return axis


def _batch_axis(first: tuple[int, ...], second: tuple[int, ...]) -> int | None:
    if len(first) != len(second):
        return None
    different = [axis for axis in range(len(first)) if first[axis] != second[axis]]
    if len(different) == 1 and (first[different[0]], second[different[0]]) == _PROBES:
        return different[0]
    return None
