"""Where the wrong values of a layer's output lie: patterns, told apart and laid out, as columns.

A layer's output is seen as channels × rows × columns; a *position* is one (row, column), numbered in raster
order. The wrong elements of one inference are described by which positions and which channels they touch. Pattern
names follow Bolchini et al., "Fast and Accurate Error Simulation for CNNs Against Soft Errors" (IEEE Transactions
on Computers 2023), where they have one: same row, bullet wake (one position in several channels).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import FaultError
from saboteur.faults import draws

Pattern = Literal[
    "single",
    "row",
    "column",
    "run",
    "block",
    "scattered",
    "bullet_wake",
    "row_across_channels",
    "column_across_channels",
    "run_across_channels",
    "block_across_channels",
    "scattered_across_channels",
]
"""One channel, then several: one position; positions of one row; of one column; neighbours in raster order that go
on in the next row; a rectangle of which at least half is wrong; others."""

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
_ACROSS = len(PATTERNS) // 2
_POINT, _ROW, _COLUMN, _RUN, _BLOCK, _SCATTERED = range(_ACROSS)

_LEAST_DENSITY = 0.5

SMALL_MAP = 64
"""Positions up to which a map counts as small: of the order of the rows of an array that computes it."""

ShapeClass = Literal["vector", "small_map", "large_map"]

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class LayerShape:
    """The shape of one layer's output for one input, seen as channels × rows × columns.

    Attributes:
        shape: the shape, without the batch.
        channel_axis: which of its axes counts channels. The last of the others counts columns, those before it
            together count rows.

    Raises:
        FaultError: when the shape is empty or has no such axis.
    """

    shape: tuple[int, ...]
    channel_axis: int = 0

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise FaultError(f"shape: {list(self.shape)} has no elements")
        if not 0 <= self.channel_axis < len(self.shape):
            raise FaultError(f"channel_axis: {self.channel_axis} is no axis of a shape of {len(self.shape)}")

    @classmethod
    def usual(cls, shape: tuple[int, ...]) -> LayerShape:
        """Channels first, as in images; last where there are two axes, as in [tokens, features]."""
        return cls(shape, 1 if len(shape) == 2 else 0)

    @property
    def elements(self) -> int:
        """How many values the output has."""
        return prod(self.shape)

    @property
    def _others(self) -> tuple[int, ...]:
        return self.shape[: self.channel_axis] + self.shape[self.channel_axis + 1 :]

    @property
    def channels(self) -> int:
        """How many channels."""
        return self.shape[self.channel_axis]

    @property
    def rows(self) -> int:
        """How many rows; 1 where the output has at most two axes."""
        return prod(self._others[:-1])

    @property
    def columns(self) -> int:
        """How many columns; 1 where the output is a vector."""
        return self._others[-1] if self._others else 1

    @property
    def positions(self) -> int:
        """Rows times columns."""
        return self.rows * self.columns

    @property
    def shape_class(self) -> ShapeClass:
        """By the number of positions: 1, up to :data:`SMALL_MAP`, more."""
        if self.positions == 1:
            return "vector"
        return "small_map" if self.positions <= SMALL_MAP else "large_map"

    def split(self, flat: Integers) -> tuple[Integers, Integers]:
        """Channel and position of flat indices."""
        after = prod(self.shape[self.channel_axis + 1 :])
        rest, behind = np.divmod(flat, after)
        before, channel = np.divmod(rest, self.channels)
        return channel, before * after + behind

    def join(self, channel: Integers, position: Integers) -> Integers:
        """Flat indices of channels and positions; the inverse of :meth:`split`."""
        after = prod(self.shape[self.channel_axis + 1 :])
        before, behind = np.divmod(position, after)
        return (before * self.channels + channel) * after + behind


Entry = TypeVar("Entry", int, Integers)


class Footprint(NamedTuple, Generic[Entry]):
    """Size and spread of a pattern, or columns with one entry a pattern.

    Attributes:
        pattern: index into :data:`PATTERNS`.
        channels: how many channels are touched.
        channel_span: from the first of these to the last, both counted.
        positions: how many positions are touched in any of these channels.
        rows: from the first row to the last.
        columns: from the first column to the last.
        span: from the first position to the last, in raster order.
        elements: how many values are wrong, at most channels × positions.
    """

    pattern: Entry
    channels: Entry
    channel_span: Entry
    positions: Entry
    rows: Entry
    columns: Entry
    span: Entry
    elements: Entry


def footprints(group: Integers, flat: Integers, shape: LayerShape) -> Footprint[Integers]:
    """Classify the wrong elements of many inferences of one layer.

    Args:
        group: [elements] which inference each wrong element belongs to, 0 .. groups − 1, each at least once.
        flat: [elements] its flat index in the output; distinct within a group.
        shape: of the output.

    Returns:
        Columns [groups].
    """
    groups = int(group.max(initial=-1)) + 1
    channel, position = shape.split(flat)

    def distinct(values: Integers) -> Integers:
        first = np.unique(group * (values.max(initial=0) + 1) + values, return_index=True)[1]
        return np.bincount(group[first], minlength=groups)

    def extent(values: Integers) -> Integers:
        low, high = np.full(groups, np.iinfo(np.int64).max), np.full(groups, -1)
        np.minimum.at(low, group, values)
        np.maximum.at(high, group, values)
        return high - low + 1

    channels, positions = distinct(channel), distinct(position)
    rows, columns, span = extent(position // shape.columns), extent(position % shape.columns), extent(position)
    box = rows * columns
    kind = np.select(
        [
            positions == 1,
            rows == 1,
            columns == 1,
            positions == box,
            positions < _LEAST_DENSITY * np.minimum(span, box),
            span <= box,
        ],
        [_POINT, _ROW, _COLUMN, _BLOCK, _SCATTERED, _RUN],
        _BLOCK,
    )
    return Footprint(
        pattern=kind + _ACROSS * (channels > 1),
        channels=channels,
        channel_span=extent(channel),
        positions=positions,
        rows=rows,
        columns=columns,
        span=span,
        elements=np.bincount(group, minlength=groups),
    )


def lay_out(
    footprint: Footprint[int], anchor: Integers, key: NDArray[np.uint64], shape: LayerShape
) -> tuple[Integers, Integers]:
    """Draw, for each of many faults, wrong elements of one footprint around an anchor.

    A footprint that is larger than the output is cut to it. One of its elements, drawn at random, comes to lie on
    the anchor, or as near to it as the edges of the output allow.

    Args:
        footprint: of all of them.
        anchor: [faults] flat index of the element around which the pattern lies.
        key: [faults] 64-bit keys, from which all is drawn.
        shape: of the output.

    Returns:
        Flat indices [faults, elements] and which of these columns came to lie next to the anchor [faults].
    """
    drawn = _Stream(key)
    channel_span = min(footprint.channel_span, shape.channels)
    channels = _ends_and_some(drawn, channel_span, min(footprint.channels, channel_span))
    offsets, height, width = _positions(drawn, footprint, shape)
    pairs = _pairs(drawn, channels.shape[1], offsets.shape[1], footprint.elements)
    channel = np.take_along_axis(channels, pairs // offsets.shape[1], axis=1)
    offset = np.take_along_axis(offsets, pairs % offsets.shape[1], axis=1)
    centre = drawn.below(pairs.shape[1])
    rows = np.arange(len(anchor))
    anchor_channel, anchor_position = shape.split(anchor)
    first_channel = np.clip(anchor_channel - channel[rows, centre], 0, shape.channels - channel_span)
    channel = first_channel[:, None] + channel
    anchor_row, anchor_column = np.divmod(anchor_position, shape.columns)
    row, column = np.divmod(offset, width)
    if footprint.pattern % _ACROSS == _RUN and shape.rows > 1:
        start = _start_of_run(drawn, anchor_position - offset[rows, centre], offset.max(axis=1) + 1, shape)
        position = start[:, None] + offset
    else:
        first_row = np.clip(anchor_row - row[rows, centre], 0, shape.rows - height)
        first_column = np.clip(anchor_column - column[rows, centre], 0, shape.columns - width)
        position = (first_row[:, None] + row) * shape.columns + first_column[:, None] + column
    return shape.join(channel, position), centre


class _Stream:
    """Draws one after the other from one key for each fault."""

    def __init__(self, key: NDArray[np.uint64]):
        self._key, self._lane = key, 0
        self.faults = len(key)

    def uniform(self, width: int) -> NDArray[np.float64]:
        """[faults, width] numbers in (0, 1)."""
        self._lane += 1
        return draws.uniform(self._key[:, None], np.arange(width), self._lane)

    def below(self, limit: int | Integers) -> Integers:
        """[faults] whole numbers below ``limit``."""
        return (self.uniform(1)[:, 0] * limit).astype(np.int64)

    def subset(self, size: int, chosen: int) -> Integers:
        """[faults, chosen] distinct whole numbers below ``size``, in increasing order."""
        if chosen >= size:
            return np.tile(np.arange(size), (self.faults, 1))
        return np.sort(np.argsort(self.uniform(size), axis=1)[:, :chosen], axis=1)


def _ends_and_some(drawn: _Stream, span: int, count: int) -> Integers:
    """[faults, count] increasing offsets below ``span``, the first and the last among them."""
    count = max(min(count, span), 2 if span > 1 else 1)
    if count == span:
        return np.tile(np.arange(span), (drawn.faults, 1))
    inner = 1 + drawn.subset(span - 2, count - 2)
    ends = np.zeros((len(inner), 1), np.int64)
    return np.concatenate([ends, inner, ends + span - 1], axis=1)


def _positions(drawn: _Stream, footprint: Footprint[int], shape: LayerShape) -> tuple[Integers, int, int]:
    """Offsets [faults, positions], numbered in a box of the given height and width (a run: in raster order)."""
    kind, positions = footprint.pattern % _ACROSS, footprint.positions
    if kind == _RUN:
        span = min(footprint.span, shape.positions)
        if shape.rows > 1:
            return _ends_and_some(drawn, span, positions), 1, shape.columns
        kind, footprint = _ROW, footprint._replace(rows=1, columns=span)
    height, width = min(footprint.rows, shape.rows), min(footprint.columns, shape.columns)
    if height == 1 or width == 1:
        return _ends_and_some(drawn, height * width, positions), height, width
    return _tight_subset(drawn, height, width, positions), height, width


def _tight_subset(drawn: _Stream, height: int, width: int, count: int) -> Integers:
    """[faults, count] cells of a box, two opposite corners among them."""
    cells = height * width
    count = max(min(count, cells), 2)
    if count == cells:
        return np.tile(np.arange(cells), (drawn.faults, 1))
    order = drawn.uniform(cells)
    falling = drawn.below(2) == 0
    rows = np.arange(len(order))
    order[rows, np.where(falling, 0, width - 1)] = -1
    order[rows, np.where(falling, cells - 1, cells - width)] = -1
    return np.sort(np.argsort(order, axis=1, kind="stable")[:, :count], axis=1)


def _pairs(drawn: _Stream, channels: int, positions: int, elements: int) -> Integers:
    """[faults, elements] numbers channel · positions + position; each channel and each position at least once."""
    elements = min(max(elements, channels, positions), channels * positions)
    order = drawn.uniform(channels * positions)
    if elements < channels * positions:
        longest = max(channels, positions)
        turn = drawn.subset(longest, longest)
        shuffled = np.argsort(drawn.uniform(longest), axis=1)
        cover = turn % channels * positions + shuffled % positions
        np.put_along_axis(order, cover, -1.0, axis=1)
    return np.argsort(order, axis=1, kind="stable")[:, :elements]


def _start_of_run(drawn: _Stream, start: Integers, span: Integers, shape: LayerShape) -> Integers:
    """The nearest start from which a run goes on in the next row."""
    width = shape.columns
    row, column = np.divmod(np.clip(start, 0, shape.positions - span), width)
    crossing = column + span > width
    longest = np.minimum(span - 1, width)
    moved = np.minimum(row, shape.rows - 2) * width + width - 1 - drawn.below(longest)
    return np.where(crossing, row * width + column, np.minimum(moved, shape.positions - span))
