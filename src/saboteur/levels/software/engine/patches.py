"""Deviations that are confined to a small part of each map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Patch:
    """The part of each pair's map outside of which it is fault-free; channels come last.

    Attributes:
        values: [pairs, height, width, channels].
        top: int64 [pairs], the first row.
        left: int64 [pairs], the first column.
    """

    values: Tensor
    top: Tensor
    left: Tensor

    def __getitem__(self, chosen: Tensor) -> Patch:
        return Patch(self.values[chosen], self.top[chosen], self.left[chosen])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[1], self.values.shape[2]

    def inside(self, top: Tensor, left: Tensor, size: tuple[int, int]) -> bool:
        """Whether every pair's patch lies in its window."""
        below, right = self.top + self.size[0] <= top + size[0], self.left + self.size[1] <= left + size[1]
        return bool(((self.top >= top) & below & (self.left >= left) & right).all())

    def paste(self, windows: Tensor, top: Tensor, left: Tensor) -> None:
        """Overwrite what it covers of ``windows`` [pairs, height, width, channels] that begin at ``top``, ``left``."""
        rows = (self.top - top)[:, None] + torch.arange(self.size[0])
        columns = (self.left - left)[:, None] + torch.arange(self.size[1])
        height, width = windows.shape[1:3]
        valid = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        first = torch.arange(len(windows))[:, None] * height
        place = ((first + rows) * width)[:, :, None] + columns[:, None]
        windows.view(-1, windows.shape[3])[place[valid]] = self.values[valid]


def cut_out(maps: Tensor, row: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows [pairs, *size, channels] of ``maps`` [inputs, height, width, channels], which must be contiguous."""
    height, width, channels = maps.shape[1:]
    rows = (row * height + top)[:, None] + torch.arange(size[0])
    columns = left[:, None] + torch.arange(size[1])
    place = (rows * width)[:, :, None] + columns[:, None]
    return maps.view(-1, channels).index_select(0, place.reshape(-1).to(maps.device)).view(len(row), *size, channels)


def window_after(
    first: Tensor, length: int, kernel: int, stride: int, padding: int, dilation: int, outputs: int
) -> tuple[Tensor, int]:
    """Where along one axis the results of a convolution begin that read any of ``length`` values from ``first`` on.

    Returns:
        the first result [pairs], and how many; at most ``outputs``, the length of the axis.
    """
    reach = dilation * (kernel - 1)
    count = min((length - 1 + reach) // stride + 1, outputs)
    begin = -torch.div(-(first + padding - reach), stride, rounding_mode="floor")
    return begin.clamp(min=0, max=outputs - count), count
