"""Drivers and reference models of the systolic arrays.

A driver turns tile products ``C[t] = A[t] @ B[t]`` into the port values of every cycle, and the outputs of every
cycle back into ``C``. Tiles follow one another as closely as the dataflow permits. Cycle *c* of an output is its
value while the inputs of cycle *c* are applied, just before the clock edge that ends the cycle. Every stimulus
begins with one cycle of reset.

``docs/designs.md`` says in which cycle each register of each processing element holds which operand or sum;
:meth:`SystolicArray.trace` is the same as a program.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from saboteur.errors import TargetError
from saboteur.levels.hardware.designs.ports import pack, unpack

RESET_CYCLES = 1


class TileShape(NamedTuple):
    """Sizes of a sequence of tile products ``[tiles, m, k] @ [tiles, k, n]``."""

    tiles: int
    m: int
    k: int
    n: int

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> TileShape:
        """Return the sizes of the products ``a[t] @ b[t]``."""
        tiles, m, k = a.shape
        return cls(tiles, m, k, b.shape[2])


@dataclass(frozen=True, slots=True)
class SystolicArray(ABC):
    """A systolic array of ``rows × cols`` processing elements (PEs), each a multiply-accumulate unit.

    Attributes:
        rows: Rows of PEs, from 1.
        cols: Columns of PEs, from 1.
        data_width: Bits of an operand, two's complement.
        acc_width: Bits of a sum, two's complement, from ``2 * data_width`` to 64; sums wrap.

    Raises:
        TargetError: If a size is out of range.
    """

    design: ClassVar[str]
    """Name of the design, of its file and of its top module."""
    registers: ClassVar[tuple[str, ...]]
    """Names of the registers in each PE, which is the instance ``row[i].column[j].pe``."""

    rows: int = 8
    cols: int = 8
    data_width: int = 8
    acc_width: int = 32

    def __post_init__(self) -> None:
        for field in ("rows", "cols", "data_width"):
            if getattr(self, field) < 1:
                raise TargetError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if not 2 * self.data_width <= self.acc_width <= 64:
            raise TargetError(
                f"acc_width is {self.acc_width}; it must be between twice data_width = {2 * self.data_width} and 64"
            )

    @property
    def parameters(self) -> dict[str, int]:
        """The parameters of the Verilog module."""
        return {
            "ROWS": self.rows,
            "COLS": self.cols,
            "DATA_WIDTH": self.data_width,
            "ACC_WIDTH": self.acc_width,
        }

    @abstractmethod
    def cycles(self, shape: TileShape) -> int:
        """Return the number of cycles, reset included, until the last result has left the array."""

    @abstractmethod
    def stimulus(self, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        """Return the port values that compute ``a[t] @ b[t]`` for every tile *t*.

        Args:
            a: Integers ``[tiles, m, k]`` in the range of ``data_width``.
            b: Integers ``[tiles, k, n]`` in the same range.

        Returns:
            For each input port except ``clk``, ``[cycles]`` (see
            :mod:`saboteur.levels.hardware.designs.ports`).

        Raises:
            TargetError: If the shapes do not match each other or the array, or a value is out of range.
        """

    @abstractmethod
    def result(self, outputs: Mapping[str, np.ndarray], shape: TileShape) -> np.ndarray:
        """Return int64 ``[tiles, m, n]`` from the outputs of :meth:`stimulus`.

        The results are read in the cycles in which they are due, whatever ``south_valid`` says.

        Args:
            outputs: At least ``south``, ``[cycles]``.
            shape: Sizes of the tiles that went in.
        """

    @abstractmethod
    def trace(self, stimulus: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Simulate the array cycle by cycle in NumPy: the reference for what each register holds when.

        Returns:
            For each of :attr:`registers`, int64 ``[cycles, rows, cols]``: its value in each cycle, before the
            clock edge that ends the cycle. All registers begin at 0.
        """

    def reference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return ``a @ b`` (int64), wrapped to ``acc_width`` bits of two's complement."""
        return self._wrap(a.astype(np.int64) @ b.astype(np.int64))

    def _wrap(self, sums: np.ndarray) -> np.ndarray:
        unused = 64 - self.acc_width
        return sums << unused >> unused

    def _check(self, a: np.ndarray, b: np.ndarray, **limits: int) -> TileShape:
        if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1] or 0 in a.shape + b.shape:
            raise TargetError(f"shapes of a and b are {a.shape} and {b.shape}; need [tiles, m, k] and [tiles, k, n]")
        shape = TileShape.of(a, b)
        for size, limit in limits.items():
            if getattr(shape, size) > limit:
                raise TargetError(f"{size} is {getattr(shape, size)}; this array holds at most {limit}")
        highest = 2 ** (self.data_width - 1) - 1
        for name, operand in (("a", a), ("b", b)):
            if not np.issubdtype(operand.dtype, np.integer):
                raise TargetError(f"{name} is of type {operand.dtype}; need integers")
            if operand.min() < -highest - 1 or operand.max() > highest:
                raise TargetError(
                    f"{name} ranges over [{operand.min()}, {operand.max()}]; "
                    f"{self.data_width} bits hold [{-highest - 1}, {highest}]"
                )
        return shape

    def _lanes(self, stimulus: Mapping[str, np.ndarray], port: str, count: int, width: int) -> np.ndarray:
        return unpack(stimulus[port], width, count, signed=width > 1)

    def _empty_trace(self, cycles: int) -> dict[str, np.ndarray]:
        return {name: np.zeros((cycles, self.rows, self.cols), dtype=np.int64) for name in self.registers}


@dataclass(frozen=True, slots=True)
class OutputStationary(SystolicArray):
    """``output_stationary.v``: element ``C[i, j]`` is summed up in PE (i, j); ``m <= rows``, ``n <= cols``, any ``k``.

    Tile *t* begins in cycle ``T = 1 + t (k + rows)``. ``A[i, k']`` is at lane *i* of ``west`` in cycle
    ``T + i + k'``, ``B[k', j]`` at lane *j* of ``north`` in cycle ``T + j + k'``. Row *r* of ``C`` leaves in cycle
    ``T + k + 2 rows − 1 − r + j`` at lane *j* of ``south``. All in all ``tiles (k + rows) + rows + cols`` cycles.
    """

    design: ClassVar[str] = "output_stationary"
    registers: ClassVar[tuple[str, ...]] = ("a", "b", "acc", "valid", "clear", "drain")

    def cycles(self, shape: TileShape) -> int:  # noqa: D102
        return shape.tiles * (shape.k + self.rows) + self.rows + self.cols

    def _starts(self, shape: TileShape) -> np.ndarray:
        return RESET_CYCLES + np.arange(shape.tiles) * (shape.k + self.rows)

    def stimulus(self, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:  # noqa: D102
        shape = self._check(a, b, m=self.rows, n=self.cols)
        cycles = self.cycles(shape)
        west, north = np.zeros((cycles, self.rows), np.int64), np.zeros((cycles, self.cols), np.int64)
        valid, clear, drain = (np.zeros((cycles, self.rows), np.int64) for _ in range(3))
        start = self._starts(shape)[:, None, None]
        row, depth, column = np.arange(self.rows), np.arange(shape.k), np.arange(shape.n)
        west[start + row[: shape.m, None] + depth, row[: shape.m, None]] = a
        north[start + depth[:, None] + column, column] = b
        valid[start + row[:, None] + depth, row[:, None]] = 1
        clear[start[..., 0] + row, row] = 1
        # Row i takes the i rows above it. The last row says once more that a result is at the south: row 0's.
        first_drain = start[..., 0] + shape.k + self.rows - 1
        rows, times = np.tril_indices(self.rows, -1)
        drain[first_drain + times, rows] = 1
        drain[first_drain + self.rows - 1, self.rows - 1] = 1
        return {
            "rst": pack((np.arange(cycles) < RESET_CYCLES)[:, None], 1),
            "valid": pack(valid, 1),
            "clear": pack(clear, 1),
            "drain": pack(drain, 1),
            "west": pack(west, self.data_width),
            "north": pack(north, self.data_width),
        }

    def result(self, outputs: Mapping[str, np.ndarray], shape: TileShape) -> np.ndarray:  # noqa: D102
        south = unpack(outputs["south"], self.acc_width, self.cols)
        due = self._starts(shape)[:, None, None] + shape.k + 2 * self.rows - 1 - np.arange(shape.m)[:, None]
        column = np.arange(shape.n)
        return south[due + column, column]

    def trace(self, stimulus: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: D102
        sources = {
            "a": self._lanes(stimulus, "west", self.rows, self.data_width),
            "b": self._lanes(stimulus, "north", self.cols, self.data_width),
            "valid": self._lanes(stimulus, "valid", self.rows, 1),
            "clear": self._lanes(stimulus, "clear", self.rows, 1),
            "drain": self._lanes(stimulus, "drain", self.rows, 1),
        }
        cycles = len(stimulus["rst"])
        held = self._empty_trace(cycles)
        for cycle in range(cycles - 1):
            if stimulus["rst"][cycle]:
                continue
            now = {name: values[cycle] for name, values in held.items()}
            for name in ("a", "valid", "clear", "drain"):
                held[name][cycle + 1, :, 0] = sources[name][cycle]
                held[name][cycle + 1, :, 1:] = now[name][:, :-1]
            held["b"][cycle + 1, 0] = sources["b"][cycle]
            held["b"][cycle + 1, 1:] = now["b"][:-1]
            northern = np.vstack([np.zeros_like(now["acc"][:1]), now["acc"][:-1]])
            summed = self._wrap(np.where(now["clear"], 0, now["acc"]) + now["a"] * now["b"])
            accumulated = np.where(now["valid"], summed, now["acc"])
            held["acc"][cycle + 1] = np.where(now["drain"], northern, accumulated)
        return held


@dataclass(frozen=True, slots=True)
class WeightStationary(SystolicArray):
    """``weight_stationary.v``: PE (i, j) holds ``B[i, j]``; ``k <= rows``, ``n <= cols``, any ``m``.

    The weights of tile *t* enter from cycle ``L = 1 + t (m + rows)`` on: ``B[rows − 1 − s, j]`` is at lane *j* of
    ``north_weight`` in cycle ``L + 1 + s + j``. The products begin in cycle ``T = L + rows``: ``A[m', i]`` is at
    lane *i* of ``west`` in cycle ``T + m' + i``, and ``C[m', j]`` leaves in cycle ``T + 1 + rows + m' + j`` at lane
    *j* of ``south``. All in all ``1 + tiles (m + rows) + rows + cols`` cycles.
    """

    design: ClassVar[str] = "weight_stationary"
    registers: ClassVar[tuple[str, ...]] = ("activation", "weight", "sum", "valid", "load")

    def cycles(self, shape: TileShape) -> int:  # noqa: D102
        return 1 + shape.tiles * (shape.m + self.rows) + self.rows + self.cols

    def _starts(self, shape: TileShape) -> np.ndarray:
        return RESET_CYCLES + np.arange(shape.tiles) * (shape.m + self.rows)

    def stimulus(  # noqa: D102
        self, a: np.ndarray, b: np.ndarray, partial: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        # ``partial`` (int64 ``[tiles, m, n]``) enters from the north and is added to the products.
        shape = self._check(a, b, k=self.rows, n=self.cols)
        cycles = self.cycles(shape)
        west, weights, sums = (np.zeros((cycles, count), np.int64) for count in (self.rows, self.cols, self.cols))
        valid, load = (np.zeros((cycles, self.rows), np.int64) for _ in range(2))
        loading = self._starts(shape)[:, None, None]
        start = loading + self.rows
        row, step, column = np.arange(self.rows), np.arange(shape.m), np.arange(shape.n)
        rows, times = np.triu_indices(self.rows)
        # Row i takes part in the last rows - i shifts.
        load[loading[..., 0] + times, rows] = 1
        weights[loading + self.rows - row[: shape.k, None] + column, column] = b
        west[start + step[:, None] + row[: shape.k], row[: shape.k]] = a
        valid[start + step[:, None] + row, row] = 1
        if partial is not None:
            sums[start + 1 + step[:, None] + column, column] = partial
        return {
            "rst": pack((np.arange(cycles) < RESET_CYCLES)[:, None], 1),
            "valid": pack(valid, 1),
            "load": pack(load, 1),
            "west": pack(west, self.data_width),
            "north_weight": pack(weights, self.data_width),
            "north_sum": pack(sums, self.acc_width),
        }

    def result(self, outputs: Mapping[str, np.ndarray], shape: TileShape) -> np.ndarray:  # noqa: D102
        south = unpack(outputs["south"], self.acc_width, self.cols)
        due = self._starts(shape)[:, None, None] + 2 * self.rows + 1 + np.arange(shape.m)[:, None]
        column = np.arange(shape.n)
        return south[due + column, column]

    def trace(self, stimulus: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: D102
        sources = {
            "activation": self._lanes(stimulus, "west", self.rows, self.data_width),
            "valid": self._lanes(stimulus, "valid", self.rows, 1),
            "load": self._lanes(stimulus, "load", self.rows, 1),
        }
        weights = self._lanes(stimulus, "north_weight", self.cols, self.data_width)
        sums = self._lanes(stimulus, "north_sum", self.cols, self.acc_width)
        cycles = len(stimulus["rst"])
        held = self._empty_trace(cycles)
        for cycle in range(cycles - 1):
            if stimulus["rst"][cycle]:
                continue
            now = {name: values[cycle] for name, values in held.items()}
            for name, source in sources.items():
                held[name][cycle + 1, :, 0] = source[cycle]
                held[name][cycle + 1, :, 1:] = now[name][:, :-1]
            northern_weights = np.vstack([weights[cycle], now["weight"][:-1]])
            northern_sums = np.vstack([sums[cycle], now["sum"][:-1]])
            held["weight"][cycle + 1] = np.where(now["load"], northern_weights, now["weight"])
            summed = self._wrap(northern_sums + now["activation"] * now["weight"])
            held["sum"][cycle + 1] = np.where(now["valid"], summed, now["sum"])
        return held
