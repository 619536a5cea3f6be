"""What Saboteur must know of ``broadcast_array.sv``: an adapter for an array of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saboteur.levels.hardware.designs import TileShape, pack, unpack


@dataclass(frozen=True)
class BroadcastArray:
    """An outer-product array; see :class:`saboteur.levels.crosslayer.arrays.ArrayAdapter`.

    Tile *t* begins in cycle ``T = 1 + t · max(k, rows)``: column *k'* of A and row *k'* of B are applied in cycle ``T +
    k'``; row *i* of C is read in cycle ``T + k + 1 + i``.
    """

    rows: int = 4
    cols: int = 4
    data_width: int = 8
    acc_width: int = 32

    sources = (Path(__file__).with_name("broadcast_array.sv"),)
    top = "broadcast_array"
    dataflow = "output_stationary"

    @property
    def parameters(self) -> dict[str, int]:
        """Of the top module."""
        return {"ROWS": self.rows, "COLS": self.cols, "WIDTH": self.data_width, "SUM": self.acc_width}

    def cycles(self, shape: TileShape) -> int:
        """Until the last row of the last tile has been read."""
        return 1 + (shape.tiles - 1) * max(shape.k, self.rows) + shape.k + 1 + self.rows

    def _starts(self, shape: TileShape) -> np.ndarray:
        return 1 + np.arange(shape.tiles) * max(shape.k, self.rows)

    def stimulus(self, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of A [tiles, rows, k] and rows of B [tiles, k, cols]; the first cycle is the reset."""
        shape = TileShape.of(a, b)
        columns = np.zeros((self.cycles(shape), self.rows), np.int64)
        rows = np.zeros((len(columns), self.cols), np.int64)
        last, first, active = np.zeros((3, len(columns), 1), np.int64)
        cycle = self._starts(shape)[:, None] + np.arange(shape.k)
        columns[cycle], rows[cycle] = a.swapaxes(1, 2), b
        active[cycle], first[cycle[:, 0]], last[cycle[:, -1]] = 1, 1, 1
        return {
            "reset_n": pack((np.arange(len(columns)) > 0)[:, None], 1),
            "step": pack(np.concatenate([last, first, active], axis=1), 1),
            "column_of_a": pack(columns, self.data_width),
            "row_of_b": pack(rows, self.data_width),
        }

    def result(self, outputs: Mapping[str, np.ndarray], shape: TileShape) -> np.ndarray:
        """C [tiles, rows, cols]."""
        read = self._starts(shape)[:, None] + shape.k + 1 + np.arange(self.rows)
        return unpack(outputs["row_of_c"], self.acc_width, self.cols)[read]
