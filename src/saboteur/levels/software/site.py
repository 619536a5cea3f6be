"""What all fault sites of a model have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from saboteur.faults.formats import Affine, NumberFormat


@dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """A place that faults can hit.

    Attributes:
        name: unique in its model.
        layer: the path of its module.
        module: that module.
        component: ``weight``, ``bias``, ``buffer``, ``activation`` and the like.
        shape: how its elements are indexed, without the batch.
        format: of its words; a scale for each channel belongs to ``channel_axis``.
        steps: how many moments of an inference a transient fault can choose from.
    """

    name: str
    layer: str
    module: nn.Module
    component: str
    shape: tuple[int, ...]
    format: NumberFormat
    steps: int = 1
    channel_axis: int = 0

    def format_at(self, elements: NDArray[np.int64]) -> NumberFormat:
        """The format lined up with flat element indices."""
        if isinstance(self.format, Affine) and np.ndim(self.format.scale):
            return self.format.at(np.unravel_index(elements, self.shape)[self.channel_axis])
        return self.format
