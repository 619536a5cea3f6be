"""A plain mapping: just enough for the simulator of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PlainBlocks:
    """Tiles of a product, n-blocks fastest."""

    dataflow: str
    rows: int
    cols: int
    m: int
    k: int
    n: int

    @property
    def _steps(self) -> int:
        return -(-(self.m if self.dataflow == "output_stationary" else self.k) // self.rows)

    @property
    def tiles(self) -> int:
        return self._steps * -(-self.n // self.cols)

    def block(self, tile: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        step, column = np.divmod(tile, -(-self.n // self.cols))
        zero = np.zeros_like(tile)
        first, n0 = step * self.rows, column * self.cols
        return (first, zero, n0) if self.dataflow == "output_stationary" else (zero, first, n0)
