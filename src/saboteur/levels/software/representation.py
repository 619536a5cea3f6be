"""Models whose weights or activations are taken to be in another number format than PyTorch runs them in."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from saboteur.errors import TargetError
from saboteur.faults.formats import Affine, NumberFormat
from saboteur.levels.software.emulation import rounded
from saboteur.levels.software.flow import Event, leaves, tapped
from saboteur.levels.software.memory import Memory, Parametrized, Plain, Pruned, memories
from saboteur.levels.software.runner import Runner, input_place
from saboteur.levels.software.signals import has_connections
from saboteur.levels.software.survey import argument_of


def weights_in(model: nn.Module, fmt: NumberFormat, per_channel: bool) -> tuple[nn.Module, list[Memory]]:
    """A copy of ``model`` with its weights rounded into ``fmt``, and its stored tensors.

    Affine formats take the tensors of two or more dimensions, others all floating-point parameters. Pruned
    and parametrised weights are stored dense, as they take effect.

    Raises:
        TargetError: when the model has no floating-point weights.
    """
    computed = [site for site in memories(model) if isinstance(site, Pruned | Parametrized)]
    stand_ins = {id(getattr(site.module, site.tensor)): site.values().clone() for site in computed}
    model = copy.deepcopy(model, stand_ins)
    for site in memories(model):
        if isinstance(site, Pruned | Parametrized):
            values = site.values().clone()
            site.uncompute()
            site.module._parameters[site.tensor] = nn.Parameter(values, requires_grad=False)
    sites = memories(model)
    taken = 0
    for i, site in enumerate(sites):
        values = site.values()
        if not isinstance(site, Plain) or site.component == "buffer" or not values.is_floating_point():
            continue
        if isinstance(fmt, Affine) and (values.dim() < 2 or site.component == "bias"):
            continue
        sites[i] = _round_weight(site, fmt, per_channel)
        taken += 1
    if not taken:
        raise TargetError(f"weights_format: the model has no floating-point weights to hold in {fmt}")
    return model, sites


def _round_weight(site: Memory, fmt: NumberFormat, per_channel: bool) -> Memory:
    values = site.values()
    axis = 1 if isinstance(site.module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 0
    if isinstance(fmt, Affine):
        extent = values.double().abs()
        others = [a for a in range(values.dim()) if a != axis] if per_channel else list(range(values.dim()))
        largest = extent.amax(dim=others).cpu().numpy()
        fmt = fmt.calibrated(-largest, largest, symmetric=True)
    with torch.no_grad():
        values.copy_(rounded(values, fmt, axis))
    return replace(site, format=fmt, channel_axis=axis)


def activations_in(runner: Runner, fmt: NumberFormat) -> dict[str, NumberFormat]:
    """The formats of all module outputs, inputs, and what layers read, by place.

    Affine formats are calibrated on the range that each has in the fault-free run over all inputs.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def widen(name: str, values: object) -> None:
        if isinstance(values, Tensor) and values.is_floating_point() and values.numel():
            low, high = (float(bound) for bound in torch.aminmax(values.float()))
            before = ranges.get(name, (low, high))
            ranges[name] = min(low, before[0]), max(high, before[1])

    def visit(event: Event) -> object:
        widen(event.place, event.tensor)
        if has_connections(event.module):
            widen(argument_of(event.place), event.argument)
        return event.output

    for index, tensor in enumerate(runner.tensors):
        widen(input_place(index, len(runner.tensors)), tensor)
    with runner.prepared():
        for batch in runner.batches():
            with tapped(runner.model, visit, leaves(runner.model)):
                runner.run(batch)
    if not isinstance(fmt, Affine):
        return dict.fromkeys(ranges, fmt)
    return {name: fmt.calibrated(*bounds) for name, bounds in ranges.items()}
