"""Designs that ship with Saboteur: Verilog sources, their drivers and reference models.

``output_stationary`` and ``weight_stationary`` are systolic arrays that multiply matrix tiles::

    array = designs.OutputStationary(rows=4, cols=4)
    stimulus = array.stimulus(a, b)                   # {port: words by cycle}
    ...                                               # simulate designs.sources(array.design)
    c = array.result(outputs, designs.TileShape(*a.shape, b.shape[2]))

``docs/designs.md`` in the repository describes ports, registers and schedules.
"""

from __future__ import annotations

from pathlib import Path

from saboteur.errors import TargetError, near
from saboteur.levels.hardware.designs.arrays import OutputStationary, SystolicArray, TileShape, WeightStationary
from saboteur.levels.hardware.designs.ports import pack, unpack

__all__ = [
    "OutputStationary",
    "SystolicArray",
    "TileShape",
    "WeightStationary",
    "names",
    "pack",
    "sources",
    "unpack",
]

_VERILOG = Path(__file__).parent / "verilog"


def names() -> list[str]:
    """Return the names of all designs, sorted; each is the name of its top module too."""
    return sorted(path.stem for path in _VERILOG.glob("*.v"))


def sources(name: str) -> list[Path]:
    """Return the Verilog files of the design called ``name``.

    Raises:
        TargetError: If there is no design of that name; the message lists those there are.
    """
    known = names()
    if name not in known:
        raise TargetError(f"unknown design {name!r}{near(name, known)}")
    return [_VERILOG / f"{name}.v"]
