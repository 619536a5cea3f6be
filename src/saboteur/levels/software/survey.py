"""Finds the signals of a model by running it fault-free on a few inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from saboteur.errors import TargetError
from saboteur.faults.formats import NumberFormat
from saboteur.levels.software.emulation import native_format
from saboteur.levels.software.flow import Event, leaves, tapped
from saboteur.levels.software.memory import quantized_format
from saboteur.levels.software.signals import Granularity, Output

_PROBES = (2, 3)
_LAST_AXIS_COUNTS_CHANNELS = (nn.Linear, nn.RNNBase, nn.Embedding, nn.LayerNorm)


@dataclass
class _Record:
    module: nn.Module
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    format: NumberFormat | None = None
    reason: str | None = None


class Survey:
    """What the model's places put out.

    Attributes:
        skipped: places that faults cannot hit, each with the reason.
    """

    def __init__(self, model: nn.Module, forward: Callable[[int], Tensor]):
        self._model = model
        first, second = (self._records(lambda n=n: forward(n)) for n in _PROBES)
        self.skipped: dict[str, str] = {}
        self._places: dict[str, tuple[_Record, int]] = {}
        for place, record in first.items():
            other = second.get(place)
            axis = None
            if record.reason is None and (other is None or len(other.shapes) != len(record.shapes)):
                record.reason = "how often it is reached depends on the batch size"
            elif record.reason is None and len(set(record.shapes)) > 1:
                record.reason = f"its calls put out different shapes: {sorted(set(record.shapes))}"
            elif record.reason is None:
                axis = _batch_axis(record.shapes[0], other.shapes[0])
                if axis is None:
                    record.reason = (
                        f"its output of shape {list(record.shapes[0])} for {_PROBES[0]} inputs has no axis "
                        "that tells the inputs apart"
                    )
            if record.reason:
                self.skipped[place] = record.reason
            else:
                self._places[place] = (record, axis)

    def _records(self, forward: Callable[[], Tensor]) -> dict[str, _Record]:
        records: dict[str, _Record] = {}

        def visit(event: Event) -> object:
            record = records.setdefault(event.place, _Record(event.module))
            tensor = event.tensor
            try:
                if tensor is None:
                    raise TargetError(f"its output is a {type(event.output).__name__}, not a tensor")
                record.format = quantized_format(tensor) if tensor.is_quantized else native_format(tensor.dtype)
                record.shapes.append(tuple(tensor.shape))
            except TargetError as error:
                record.reason = str(error)
            return event.output

        with tapped(self._model, visit, leaves(self._model), functions=True):
            forward()
        return records

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
            yield output_site(
                name=place if is_function else f"{place}:output",
                layer=place.rpartition("/")[0] if is_function else modules[record.module],
                module=record.module,
                component="operator" if is_function else "activation",
                place=place,
                shape=shape,
                fmt=record.format,
                steps=len(record.shapes),
                batch_axis=axis,
                granularity=granularity,
            )


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


def _batch_axis(first: tuple[int, ...], second: tuple[int, ...]) -> int | None:
    if len(first) != len(second):
        return None
    different = [axis for axis in range(len(first)) if first[axis] != second[axis]]
    if len(different) == 1 and (first[different[0]], second[different[0]]) == _PROBES:
        return different[0]
    return None
