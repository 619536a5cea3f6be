"""Which processing element (PE) of an array computes which product of a layer, in which cycle.

A layer ``C[m, n] = Σ_k A[m, k] B[k, n]`` is cut into tiles that follow each other through the array without a gap: its
*stream*. All tiles of a layer have the full size of the array, padded with zeros at the edges, and so they all take the
same number of cycles. Cycles count from the start of the stream; what is said of a cycle holds before the clock edge
that ends it, as in :mod:`saboteur.levels.hardware.designs`.

Every product is one *operation* (m, k, n). It has exactly one *place* (tile, PE row, PE column, cycle): the cycle in
which its operands lie in the operand registers of the PE and are multiplied. The sum with it is in the accumulator in
the next cycle. :meth:`Mapping.where` and :meth:`Mapping.operation` are inverse to each other.

With *R* rows and *C* columns of PEs, row *i*, column *j*, ``⌈x⌉`` blocks, and *t* the tile:

``output_stationary``
    One element of C in each PE. Tile ``t = (m / R) ⌈n / C⌉ + n / C`` (blocks of n fastest), starts in cycle
    ``T = 1 + t (k + R)``; PE ``(m mod R, n mod C)``; cycle ``T + 1 + i + j + k``.
``weight_stationary``
    One element of B in each PE. Tile ``t = (n / C) ⌈k / R⌉ + k / R`` (blocks of k fastest: their partial sums are added
    up outside of the array, modulo 2³²), is loaded from cycle ``L = 1 + t (m + R)`` and computed from ``T = L + R`` on;
    PE ``(k mod R, n mod C)``; cycle ``T + 1 + m + i + j``.
``row_stationary``
    One row of a filter in each PE: Chen et al., *Eyeriss* (JSSC 52(1), 2017; ISCA 2016, section V). See
    :class:`RowStationary`.

The first two are the schedules of the designs that ship with the hardware level (``docs/designs.md``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saboteur.errors import TargetError
from saboteur.faults.space import expanded
from saboteur.levels.crosslayer.lowering import LoweredLayer, Window

Dataflow = Literal["output_stationary", "weight_stationary", "row_stationary"]
Matrix = Literal["A", "B", "C"]
Integers = NDArray[np.int64]
RESET_CYCLES = 1


class Operation(NamedTuple):
    """Columns: the product ``A[m, k] B[k, n]``; −1 in all three where a PE does none."""

    m: Integers
    k: Integers
    n: Integers


class Place(NamedTuple):
    """Columns: where and when an operation is done."""

    tile: Integers
    row: Integers
    col: Integers
    cycle: Integers


class Block(NamedTuple):
    """Columns: the part of a layer that a tile holds, ``m .. m + m_size − 1`` and so on, without the padding."""

    m: Integers
    k: Integers
    n: Integers
    m_size: Integers
    k_size: Integers
    n_size: Integers


class Reach(NamedTuple):
    """Columns: what a word is a part of from a cycle on, as a ragged list.

    For a word of A or B, the operations that still read it: ``k_stop = k + 1``. For a word of C, the one element (m, n)
    that it becomes a part of, and the products ``k .. k_stop − 1`` that it sums up so far.

    Attributes:
        fault: index into the columns that were asked for; ascending.
        m: row of A and C.
        k: column of A, row of B.
        k_stop: the first k behind.
        n: column of B and C.
    """

    fault: Integers
    m: Integers
    k: Integers
    k_stop: Integers
    n: Integers


@dataclass(frozen=True)
class Mapping(ABC):
    """A layer on an array.

    Attributes:
        rows: rows of PEs.
        cols: columns of PEs.
        m: rows of A and C.
        k: columns of A, rows of B.
        n: columns of B and C.

    Raises:
        TargetError: when a size is below 1.
    """

    dataflow: ClassVar[Dataflow]
    registers: ClassVar[dict[str, Matrix]]
    """The data registers of a PE, and the matrix whose words each holds."""

    rows: int
    cols: int
    m: int
    k: int
    n: int

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "m", "k", "n"):
            if getattr(self, name) < 1:
                raise TargetError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    @abstractmethod
    def tiles(self) -> int:
        """How many tiles the stream has."""

    @property
    @abstractmethod
    def interval(self) -> int:
        """Cycles from the start of a tile to the start of the next."""

    @property
    @abstractmethod
    def cycles(self) -> int:
        """Cycles of the stream, until the last result has left the array."""

    def start(self, tile: ArrayLike) -> Integers:
        """The cycle in which ``tile`` begins."""
        return RESET_CYCLES + np.asarray(tile, np.int64) * self.interval

    @abstractmethod
    def block(self, tile: ArrayLike) -> Block:
        """The part of the layer that each tile holds."""

    @abstractmethod
    def where(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> Place:
        """The place of each operation."""

    @abstractmethod
    def operation(self, row: ArrayLike, col: ArrayLike, cycle: ArrayLike) -> Operation:
        """What PE (row, col) multiplies in ``cycle``; −1 where nothing, or only padding."""

    @abstractmethod
    def reach(
        self,
        register: str,
        row: ArrayLike,
        col: ArrayLike,
        cycle: ArrayLike,
        word: ArrayLike = 0,
        most: int | None = None,
    ) -> Reach:
        """The operations that read what a register holds in ``cycle``, from this cycle on, in all PEs it goes to.

        For a register of sums, the one element of C that the word becomes a part of. Words that are not read any more
        and padding reach nothing.

        Args:
            register: one of :attr:`registers`.
            row: [faults], row of the PE.
            col: [faults], column of the PE.
            cycle: [faults].
            word: [faults], which word of a register file; 0 for a plain register.
            most: give at most so many operations of each.
        """

    @abstractmethod
    def first_cycle(self, register: str, row: ArrayLike, col: ArrayLike) -> Integers:
        """The first cycle in which a register can hold a word of tile 0; of tile *t*, ``t`` intervals later."""

    @abstractmethod
    def fetched(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> tuple[Integers, Integers]:
        """The cycles in which ``A[m, k]`` and ``B[k, n]`` enter the array from their memories for an operation."""

    @abstractmethod
    def left(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> Integers:
        """The cycle in which the sum of an operation's tile leaves the array."""

    def words(self, register: str) -> int:
        """How many words a register has in each PE."""
        del register
        return 1

    def picture(self, path: Path | str, tile: int = 0, pe: tuple[int, int] = (0, 0), cycle: int | None = None) -> None:
        """Draw one tile: its blocks in A, B and C, the array in one cycle, and one PE over time.

        Args:
            path: of the picture; the suffix says how, such as ``.svg`` or ``.png``.
            tile: which one.
            pe: row and column of the PE whose registers are shown over time.
            cycle: of the stream; the one in which the most PEs work on the tile if absent.

        Raises:
            TargetError: when the tile, the PE or the cycle is not there.
        """
        from saboteur.levels.crosslayer import picture

        if not 0 <= tile < self.tiles:
            raise TargetError(f"tile is {tile}; this layer has tiles 0 to {self.tiles - 1}")
        if not (0 <= pe[0] < self.rows and 0 <= pe[1] < self.cols):
            raise TargetError(f"pe is {pe}; the array has {self.rows} × {self.cols}")
        if cycle is None:
            first = self.first_cycle(next(iter(self.registers)), self.rows - 1, self.cols - 1)
            cycles = self.start(tile) - RESET_CYCLES + first + np.arange(self.interval)
            row, col = (axis[..., None] for axis in np.indices((self.rows, self.cols)))
            cycle = int(cycles[(self.operation(row, col, cycles).m >= 0).sum((0, 1)).argmax()])
        if not 0 <= cycle < self.cycles:
            raise TargetError(f"cycle is {cycle}; the stream has cycles 0 to {self.cycles - 1}")
        picture.draw(self, path, tile, pe, cycle)

    def _checked(self, register: str, *columns: ArrayLike) -> list[Integers]:
        if register not in self.registers:
            raise TargetError(
                f"{register!r} is not a data register of a {self.dataflow} PE: {', '.join(self.registers)}"
            )
        return list(np.broadcast_arrays(*_columns(*columns)))


@dataclass(frozen=True)
class Systolic(Mapping):
    """A mapping on an array whose tiles are matrix products, as the shipped designs and many others are."""

    @abstractmethod
    def operands(
        self, a: NDArray[np.int8], b: NDArray[np.int8], tiles: ArrayLike
    ) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """The padded operands of tiles, as the drivers of the arrays take them.

        Args:
            a: ``[..., m, k]``.
            b: ``[..., k, n]``, with the same leading axes or none.
            tiles: [t].

        Returns:
            ``[..., t, rows, k]`` and ``[..., t, k, cols]`` (output-stationary), or ``[..., t, m, rows]`` and
            ``[..., t, rows, cols]`` (weight-stationary).
        """


@dataclass(frozen=True)
class OutputStationary(Systolic):
    """One element of C in each PE; see the module's text."""

    dataflow: ClassVar[Dataflow] = "output_stationary"
    registers: ClassVar[dict[str, Matrix]] = {"a": "A", "b": "B", "acc": "C"}

    @property
    def tiles(self) -> int:  # noqa: D102
        return -(-self.m // self.rows) * self._n_blocks

    @property
    def interval(self) -> int:  # noqa: D102
        return self.k + self.rows

    @property
    def cycles(self) -> int:  # noqa: D102
        return self.tiles * self.interval + self.rows + self.cols

    @property
    def _n_blocks(self) -> int:
        return -(-self.n // self.cols)

    def block(self, tile: ArrayLike) -> Block:  # noqa: D102
        m_block, n_block = np.divmod(np.asarray(tile, np.int64), self._n_blocks)
        m, n = m_block * self.rows, n_block * self.cols
        none = np.zeros_like(m)
        return Block(m, none, n, np.minimum(self.rows, self.m - m), none + self.k, np.minimum(self.cols, self.n - n))

    def where(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> Place:  # noqa: D102
        m, k, n = _columns(m, k, n)
        (m_block, row), (n_block, col) = np.divmod(m, self.rows), np.divmod(n, self.cols)
        tile = m_block * self._n_blocks + n_block
        return Place(tile, row, col, self.start(tile) + 1 + row + col + k)

    def operation(self, row: ArrayLike, col: ArrayLike, cycle: ArrayLike) -> Operation:  # noqa: D102
        row, col, cycle = _columns(row, col, cycle)
        tile, k = np.divmod(cycle - RESET_CYCLES - 1 - row - col, self.interval)
        block = self.block(tile)
        does = (tile >= 0) & (tile < self.tiles) & (k < self.k) & (row < block.m_size) & (col < block.n_size)
        return Operation(*(np.where(does, value, -1) for value in (block.m + row, k, block.n + col)))

    def reach(  # noqa: D102
        self,
        register: str,
        row: ArrayLike,
        col: ArrayLike,
        cycle: ArrayLike,
        word: ArrayLike = 0,
        most: int | None = None,
    ) -> Reach:
        row, col, cycle, _ = self._checked(register, row, col, cycle, word)
        if register == "acc":
            return self._reach_of_sum(row, col, cycle)
        tile, k = np.divmod(cycle - RESET_CYCLES - 1 - row - col, self.interval)
        block = self.block(tile)
        live = (tile >= 0) & (tile < self.tiles) & (k < self.k)
        if register == "a":
            count = np.where(live & (row < block.m_size), block.n_size - col, 0)
            fault, step = _ragged(count, most)
            return _reads(fault, (block.m + row)[fault], k[fault], (block.n + col)[fault] + step)
        count = np.where(live & (col < block.n_size), block.m_size - row, 0)
        fault, step = _ragged(count, most)
        return _reads(fault, (block.m + row)[fault] + step, k[fault], (block.n + col)[fault])

    def first_cycle(self, register: str, row: ArrayLike, col: ArrayLike) -> Integers:  # noqa: D102
        row, col = self._checked(register, row, col)
        return RESET_CYCLES + 1 + (register == "acc") + row + col

    def fetched(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> tuple[Integers, Integers]:  # noqa: D102
        place = self.where(m, k, n)
        return place.cycle - 1 - place.col, place.cycle - 1 - place.row

    def left(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> Integers:  # noqa: D102
        place = self.where(m, k, n)
        return self.start(place.tile) + self.k + 2 * self.rows - 1 - place.row + place.col

    def _reach_of_sum(self, row: Integers, col: Integers, cycle: Integers) -> Reach:
        # From the first sum on, an accumulator holds its own element until the drain reaches it, then those above it.
        tile, age = np.divmod(cycle - RESET_CYCLES - 2 - row - col, self.interval)
        block = self.block(tile)
        passed_on = np.maximum(age - (self.k + self.rows - 2 - row), 0)
        element = row - passed_on
        live = (tile >= 0) & (tile < self.tiles) & (element >= 0) & (element < block.m_size) & (col < block.n_size)
        (fault,) = np.nonzero(live)
        summed = np.minimum(age + 1, self.k)
        return Reach(fault, (block.m + element)[fault], block.k[fault], summed[fault], (block.n + col)[fault])

    def operands(  # noqa: D102
        self, a: NDArray[np.int8], b: NDArray[np.int8], tiles: ArrayLike
    ) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        block = self.block(np.atleast_1d(tiles))
        depth = np.arange(self.k)[None]
        row, column = block.m[:, None] + np.arange(self.rows), block.n[:, None] + np.arange(self.cols)
        return _tiles_of(a, row, depth), _tiles_of(b, depth, column)


@dataclass(frozen=True)
class WeightStationary(Systolic):
    """One element of B in each PE; see the module's text."""

    dataflow: ClassVar[Dataflow] = "weight_stationary"
    registers: ClassVar[dict[str, Matrix]] = {"activation": "A", "weight": "B", "sum": "C"}

    @property
    def tiles(self) -> int:  # noqa: D102
        return self._k_blocks * -(-self.n // self.cols)

    @property
    def interval(self) -> int:  # noqa: D102
        return self.m + self.rows

    @property
    def cycles(self) -> int:  # noqa: D102
        return 1 + self.tiles * self.interval + self.rows + self.cols

    @property
    def _k_blocks(self) -> int:
        return -(-self.k // self.rows)

    def block(self, tile: ArrayLike) -> Block:  # noqa: D102
        n_block, k_block = np.divmod(np.asarray(tile, np.int64), self._k_blocks)
        k, n = k_block * self.rows, n_block * self.cols
        none = np.zeros_like(k)
        return Block(none, k, n, none + self.m, np.minimum(self.rows, self.k - k), np.minimum(self.cols, self.n - n))

    def where(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> Place:  # noqa: D102
        m, k, n = _columns(m, k, n)
        (k_block, row), (n_block, col) = np.divmod(k, self.rows), np.divmod(n, self.cols)
        tile = n_block * self._k_blocks + k_block
        return Place(tile, row, col, self.start(tile) + self.rows + 1 + row + col + m)

    def operation(self, row: ArrayLike, col: ArrayLike, cycle: ArrayLike) -> Operation:  # noqa: D102
        row, col, cycle = _columns(row, col, cycle)
        tile, m = np.divmod(cycle - RESET_CYCLES - self.rows - 1 - row - col, self.interval)
        block = self.block(tile)
        does = (tile >= 0) & (tile < self.tiles) & (m < self.m) & (row < block.k_size) & (col < block.n_size)
        return Operation(*(np.where(does, value, -1) for value in (m, block.k + row, block.n + col)))

    def reach(  # noqa: D102
        self,
        register: str,
        row: ArrayLike,
        col: ArrayLike,
        cycle: ArrayLike,
        word: ArrayLike = 0,
        most: int | None = None,
    ) -> Reach:
        row, col, cycle, _ = self._checked(register, row, col, cycle, word)
        if register == "weight":
            return self._reach_of_weight(row, col, cycle, most)
        summed = int(register == "sum")
        tile, m = np.divmod(cycle - RESET_CYCLES - self.rows - 1 - summed - row - col, self.interval)
        block = self.block(tile)
        live = (tile >= 0) & (tile < self.tiles) & (m < self.m) & (col < block.n_size)
        if summed:
            (fault,) = np.nonzero(live)
            stop = block.k + np.minimum(row + 1, block.k_size)
            return Reach(fault, m[fault], block.k[fault], stop[fault], (block.n + col)[fault])
        count = np.where(live & (row < block.k_size), block.n_size - col, 0)
        fault, step = _ragged(count, most)
        return _reads(fault, m[fault], (block.k + row)[fault], (block.n + col)[fault] + step)

    def first_cycle(self, register: str, row: ArrayLike, col: ArrayLike) -> Integers:  # noqa: D102
        row, col = self._checked(register, row, col)
        later = {"activation": self.rows, "weight": 1, "sum": self.rows + 1}[register]
        return RESET_CYCLES + 1 + later + row + col

    def fetched(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> tuple[Integers, Integers]:  # noqa: D102
        place = self.where(m, k, n)
        return place.cycle - 1 - place.col, self.start(place.tile) + self.rows - place.row + place.col

    def left(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> Integers:  # noqa: D102
        place = self.where(m, k, n)
        return place.cycle - place.row + self.rows

    def _reach_of_weight(self, row: Integers, col: Integers, cycle: Integers, most: int | None) -> Reach:
        # Weights move south, the last row's first, and arrive in all rows of a column in the same cycle. The weights of
        # a tile enter a row while the rows below still use those of the tile before.
        tile, age = np.divmod(cycle - RESET_CYCLES - 2 - row - col, self.interval)
        block = self.block(tile)
        to_go = np.maximum(self.rows - 1 - row - age, 0)
        used_by = row + to_go
        first = np.where(to_go > 0, 0, np.maximum(age - (self.rows - 1), 0))
        live = (tile >= 0) & (tile < self.tiles) & (used_by < block.k_size) & (col < block.n_size)
        fault, step = _ragged(np.where(live, self.m - first, 0), most)
        return _reads(fault, first[fault] + step, (block.k + used_by)[fault], (block.n + col)[fault])

    def operands(  # noqa: D102
        self, a: NDArray[np.int8], b: NDArray[np.int8], tiles: ArrayLike
    ) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        block = self.block(np.atleast_1d(tiles))
        depth, column = block.k[:, None] + np.arange(self.rows), block.n[:, None] + np.arange(self.cols)
        return _tiles_of(a, np.arange(self.m)[None], depth), _tiles_of(b, depth, column)


@dataclass(frozen=True)
class RowStationary(Mapping):
    """One filter row in each PE, as in Eyeriss, with sizes of the convolution in :attr:`window`.

    A *logical set* of R × E PEs (R filter rows, E output rows) computes one channel of one filter: PE (r, e) slides
    filter row *r* along image row ``e · stride + r − padding``. A filter row is the same along a row of PEs, an image
    row along a diagonal, and the sums of a column of PEs add up to output row *e*. A physical array of *rows* × *cols*
    holds ``⌊rows / R⌋`` sets on top of each other, of successive channels, whose sums add up too, and *cols* output
    rows at a time. So with S kernel columns, X output columns, filter rows numbered ``q = k / S`` (channel and kernel
    row; Q of them), and H rows of PEs in use: tile ``t = (n ⌈E / cols⌉ + e / cols) ⌈Q / H⌉ + q / H`` (blocks of filter
    rows fastest; their partial sums are added up outside of the array), PE ``(q mod H, e mod cols)``.

    Row *i* works *i* cycles after row 0, so that a sum that is complete is added to the southern neighbour's own while
    that does its last product. From ``T = 1 + t (S + X S)`` on, PE (i, j) takes S cycles to fill its filter row, word
    by word, then does ``A[(e, x), (q, s)] B[(q, s), n]`` in cycle ``T + i + S + x S + s``. Image words come in the
    cycle of their first use and stay until the last; column *c* of a row is kept in word ``c mod S``.

    What is simpler than in the chip: a PE works on one filter and one channel at a time (no interleaving in the
    register files), a pass holds one filter and one image, words are loaded between passes and not during one, and a
    set of more filter rows than the array has is folded at the array's height. A layer that is no convolution is taken
    as one of 1 × 1, whose output rows are the rows of A.

    Attributes:
        window: geometry of the convolution.
    """

    dataflow: ClassVar[Dataflow] = "row_stationary"
    registers: ClassVar[dict[str, Matrix]] = {"image": "A", "filter": "B", "psum": "C"}

    window: Window

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.window
        if (window.out_rows * window.out_columns, window.channels * window.kernel_rows * window.kernel_columns) != (
            self.m,
            self.k,
        ):
            raise TargetError(f"window {window} does not fit m = {self.m} and k = {self.k}")

    @property
    def rows_in_use(self) -> int:
        """H: rows of PEs that hold filter rows."""
        kernel_rows = self.window.kernel_rows
        return self.rows // kernel_rows * kernel_rows or self.rows

    @property
    def tiles(self) -> int:  # noqa: D102
        return self.n * self._row_blocks * self._filter_blocks

    @property
    def interval(self) -> int:  # noqa: D102
        return self.window.kernel_columns * (1 + self.window.out_columns)

    @property
    def cycles(self) -> int:  # noqa: D102
        return RESET_CYCLES + self.tiles * self.interval + self.rows_in_use

    @property
    def _row_blocks(self) -> int:
        return -(-self.window.out_rows // self.cols)

    @property
    def _filter_rows(self) -> int:
        return self.window.channels * self.window.kernel_rows

    @property
    def _filter_blocks(self) -> int:
        return -(-self._filter_rows // self.rows_in_use)

    def block(self, tile: ArrayLike) -> Block:  # noqa: D102
        outer, filter_block = np.divmod(np.asarray(tile, np.int64), self._filter_blocks)
        n, row_block = np.divmod(outer, self._row_blocks)
        width, taps = self.window.out_columns, self.window.kernel_columns
        first_row, first_filter_row = row_block * self.cols, filter_block * self.rows_in_use
        return Block(
            first_row * width,
            first_filter_row * taps,
            n,
            np.minimum(self.cols, self.window.out_rows - first_row) * width,
            np.minimum(self.rows_in_use, self._filter_rows - first_filter_row) * taps,
            np.ones_like(n),
        )

    def where(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> Place:  # noqa: D102
        width, taps = self.window.out_columns, self.window.kernel_columns
        m, k, n = _columns(m, k, n)
        (out_row, x), (filter_row, s) = np.divmod(m, width), np.divmod(k, taps)
        (row_block, col), (filter_block, row) = np.divmod(out_row, self.cols), np.divmod(filter_row, self.rows_in_use)
        tile = (n * self._row_blocks + row_block) * self._filter_blocks + filter_block
        return Place(tile, row, col, self.start(tile) + row + taps + x * taps + s)

    def operation(self, row: ArrayLike, col: ArrayLike, cycle: ArrayLike) -> Operation:  # noqa: D102
        row, col, cycle = _columns(row, col, cycle)
        width, taps = self.window.out_columns, self.window.kernel_columns
        tile, age = np.divmod(cycle - RESET_CYCLES - row, self.interval)
        x, s = np.divmod(age - taps, taps)
        block = self.block(tile)
        does = self._works(tile, row, col) & (age >= taps)
        return Operation(
            *(
                np.where(does, value, -1)
                for value in (block.m + col * width + x, block.k + row * taps + s, np.broadcast_to(block.n, does.shape))
            )
        )

    def words(self, register: str) -> int:
        """S words of an image row and of a filter row, one sum."""
        return 1 if register == "psum" else self.window.kernel_columns

    def reach(  # noqa: D102
        self,
        register: str,
        row: ArrayLike,
        col: ArrayLike,
        cycle: ArrayLike,
        word: ArrayLike = 0,
        most: int | None = None,
    ) -> Reach:
        row, col, cycle, word = self._checked(register, row, col, cycle, word)
        width, taps = self.window.out_columns, self.window.kernel_columns
        tile, age = np.divmod(cycle - RESET_CYCLES - row - (register == "psum"), self.interval)
        block, live = self.block(tile), self._works(tile, row, col)
        m, k, n = block.m + col * width, block.k + row * taps, block.n
        x, s = np.divmod(age - taps, taps)
        if register == "psum":
            # The last product of a row is added together with the sum from the north.
            whole = s == taps - 1
            (fault,) = np.nonzero(live & (x >= 0))
            first = np.where(whole, block.k, k)
            return Reach(fault, (m + x)[fault], first[fault], (k + s + 1)[fault], n[fault])
        if register == "filter":
            first = np.maximum(x + (s > word), 0)
            fault, step = _ragged(np.where(live & (age >= word), width - first, 0), most)
            return _reads(fault, (m + first)[fault] + step, (k + word)[fault], n[fault])
        stride = self.window.stride
        # The column of the window at x that is kept in this word, and the products that read it from now on.
        column = x * stride + (word - x * stride) % taps
        comes_now = (x == 0) | (column > (x - 1) * stride + taps - 1)
        used_at = column - x * stride
        first = x + (s > used_at)
        last = np.minimum(column // stride, width - 1)
        present = ~comes_now | (s >= used_at)
        fault, step = _ragged(np.where(live & (x >= 0) & present, last - first + 1, 0), most)
        at = first[fault] + step
        return _reads(fault, m[fault] + at, k[fault] + column[fault] - at * stride, n[fault])

    def first_cycle(self, register: str, row: ArrayLike, col: ArrayLike) -> Integers:  # noqa: D102
        row, col = self._checked(register, row, col)
        return RESET_CYCLES + row + (register == "psum") + 0 * col

    def fetched(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> tuple[Integers, Integers]:  # noqa: D102
        taps, stride = self.window.kernel_columns, self.window.stride
        place = self.where(m, k, n)
        x, s = np.asarray(m) % self.window.out_columns, np.asarray(k) % taps
        column = x * stride + s
        x_first = np.maximum(-((taps - 1 - column) // stride), 0)
        begin = self.start(place.tile) + place.row
        return begin + taps + x_first * taps + column - x_first * stride, begin + s

    def left(self, m: ArrayLike, k: ArrayLike, n: ArrayLike) -> Integers:  # noqa: D102
        taps = self.window.kernel_columns
        tile = self.where(m, k, n).tile
        last_row = self.block(tile).k_size // taps - 1
        return self.start(tile) + last_row + 2 * taps + np.asarray(m) % self.window.out_columns * taps

    def _works(self, tile: Integers, row: Integers, col: Integers) -> NDArray[np.bool_]:
        width, taps = self.window.out_columns, self.window.kernel_columns
        block = self.block(tile)
        return (tile >= 0) & (tile < self.tiles) & (row * taps < block.k_size) & (col * width < block.m_size)


def mapped(layer: LoweredLayer, dataflow: Dataflow, rows: int, cols: int) -> Mapping:
    """The mapping of a layer on an array of ``rows × cols`` PEs.

    Raises:
        TargetError: for an unknown dataflow, or an array without PEs.
    """
    if dataflow == "row_stationary":
        return RowStationary(rows, cols, layer.m, layer.k, layer.n, window_of(layer))
    kinds: dict[str, type[OutputStationary | WeightStationary]] = {
        "output_stationary": OutputStationary,
        "weight_stationary": WeightStationary,
    }
    if dataflow not in kinds:
        raise TargetError(f"dataflow: {dataflow!r} is not one of {', '.join([*kinds, 'row_stationary'])}")
    return kinds[dataflow](rows, cols, layer.m, layer.k, layer.n)


def window_of(layer: LoweredLayer) -> Window:
    """The geometry of a layer; what is no convolution is one of 1 × 1 on an image of k channels and m rows of one."""
    return layer.window or Window(layer.k, 1, 1, layer.m, 1, 1, 0, layer.m, 1)


def _columns(*values: ArrayLike) -> tuple[Integers, ...]:
    return tuple(np.asarray(value, np.int64) for value in values)


def _reads(fault: Integers, m: Integers, k: Integers, n: Integers) -> Reach:
    return Reach(fault, m, k, k + 1, n)


def _ragged(count: Integers, most: int | None) -> tuple[Integers, Integers]:
    """``count[i]`` rows, or at most ``most``, for each i: their i, and their number from 0 on."""
    count = np.clip(count, 0, most)
    return expanded(np.zeros_like(count), count)


def _tiles_of(matrix: NDArray[np.int8], row: Integers, column: Integers) -> NDArray[np.int8]:
    """``[..., t, x, y]`` from ``[..., r, c]``, rows ``[t or 1, x]`` and columns ``[t or 1, y]``; 0 outside."""
    inside = (row < matrix.shape[-2])[:, :, None] & (column < matrix.shape[-1])[:, None]
    found = matrix[
        ..., np.minimum(row, matrix.shape[-2] - 1)[:, :, None], np.minimum(column, matrix.shape[-1] - 1)[:, None]
    ]
    return np.where(inside, found, matrix.dtype.type(0))
