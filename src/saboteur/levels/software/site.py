"""What all fault sites of a model have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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
        if isinstance(self.format, Affine) and self.format.scale.ndim:
            return self.format.at(np.unravel_index(elements, self.shape)[self.channel_axis])
        return self.format


def position(elements: NDArray[np.int64], shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The index tensors of flat ``elements`` of an array of ``shape``; a scalar counts as an array of one."""
    return tensors(np.unravel_index(elements, shape or (1,)), device)


def tensors(arrays: tuple[NDArray, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Index arrays as tensors."""
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
