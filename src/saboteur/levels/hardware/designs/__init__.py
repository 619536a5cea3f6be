"""Designs that ship with Saboteur: Verilog sources, their drivers and reference models.

``output_stationary`` and ``weight_stationary`` are systolic arrays that multiply matrix tiles::

    array = designs.OutputStationary(rows=4, cols=4)
    stimulus = array.stimulus(a, b)                   # {port: words by cycle}
    ...                                               # simulate designs.sources(array.design)
    c = array.result(outputs, designs.TileShape.of(a, b))

``layer_engine`` computes one layer of a network; :func:`build` and :func:`build_fixed_point` chain engines into a
:class:`Pipeline` that runs an embedded network from end to end::

    pipeline = designs.build(workloads.load("digits-lenet7-int8"), pes=8)
    files = [*designs.sources("layer_engine"), pipeline.write(folder)]
    stimulus = pipeline.stimulus(range(4))
    ...                                               # simulate files with the top module pipeline.name
    logits = pipeline.result(outputs, 4)              # equal to pipeline.expected(range(4))

``docs/designs.md`` in the repository describes ports, registers and schedules.
"""

from __future__ import annotations

from pathlib import Path

from saboteur.errors import TargetError, near
from saboteur.levels.hardware.designs.arrays import OutputStationary, SystolicArray, TileShape, WeightStationary
from saboteur.levels.hardware.designs.engine import EngineLayer, Pipeline, build, build_fixed_point
from saboteur.levels.hardware.designs.ports import pack, unpack

__all__ = [
    "EngineLayer",
    "OutputStationary",
    "Pipeline",
    "SystolicArray",
    "TileShape",
    "WeightStationary",
    "build",
    "build_fixed_point",
    "names",
    "pack",
    "sources",
    "unpack",
]

_VERILOG = Path(__file__).parent / "verilog"
_FILES = {
    "output_stationary": ("output_stationary",),
    "weight_stationary": ("weight_stationary",),
    "layer_engine": ("layer_engine", "tap_sequencer", "input_buffer", "layer_pe", "requantizer", "max_pool"),
}


def names() -> list[str]:
    """Return the names of all designs, sorted; each is the name of its top module too."""
    return sorted(_FILES)


def sources(name: str) -> list[Path]:
    """Return the Verilog files of the design called ``name``, the one with its top module first.

    Raises:
        TargetError: If there is no design of that name; the message lists the nearest names.
    """
    if name not in _FILES:
        raise TargetError(f"unknown design {name!r}{near(name, names())}")
    return [_VERILOG / f"{stem}.v" for stem in _FILES[name]]
