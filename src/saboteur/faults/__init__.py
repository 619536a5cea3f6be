"""What can go wrong: number formats, fault models, fault spaces and fault lists.

- :mod:`~saboteur.faults.formats`: how values lie in bits
- :mod:`~saboteur.faults.models`: what goes wrong with a word
- :mod:`~saboteur.faults.space`: all faults of a campaign, counted and numbered
- :mod:`~saboteur.faults.lists`: faults as tables
- :mod:`~saboteur.faults.draws`: random numbers that are pure functions of a counter
"""

from saboteur.faults.formats import Affine, FixedPoint, Floating, NumberFormat, number_format
from saboteur.faults.models import BitFlip, Dead, FaultModel, Noise, RandomValue, StuckAt, StuckValue
from saboteur.faults.space import Faults, FaultSpace, Region, Stratum

__all__ = [
    "Affine",
    "BitFlip",
    "Dead",
    "FaultModel",
    "FaultSpace",
    "Faults",
    "FixedPoint",
    "Floating",
    "Noise",
    "NumberFormat",
    "RandomValue",
    "Region",
    "Stratum",
    "StuckAt",
    "StuckValue",
    "number_format",
]
