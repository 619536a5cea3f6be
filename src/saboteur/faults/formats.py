"""Number formats: how a value lies in the bits of a memory, and what a faulted word then means.

Bit 0 is the least significant. Words travel as ``uint64`` arrays of which the lowest ``bits`` count, values
as ``float64`` arrays, in which every value of a floating or fixed point format is exact.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from saboteur.errors import FaultError, near


class NumberFormat(ABC):
    """A bijection between words of ``bits`` bits and the values that hardware reads in them."""

    name: str
    bits: int

    @abstractmethod
    def encode(self, values: ArrayLike) -> NDArray[np.uint64]:
        """The words that hold ``values``, rounded and saturated as the format does; any shape."""

    @abstractmethod
    def decode(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """The values of ``words``; any shape."""

    def round(self, values: ArrayLike) -> NDArray[np.float64]:
        """The nearest values that the format can hold."""
        return self.decode(self.encode(values))

    @property
    @abstractmethod
    def lowest(self) -> ArrayLike:
        """The most negative finite value (per element where the format's scale is)."""

    @property
    @abstractmethod
    def highest(self) -> ArrayLike:
        """The most positive finite value (per element where the format's scale is)."""

    def flip_distance(self, values: ArrayLike) -> NDArray[np.float64]:
        """How far a flip of each bit moves each value.

        Args:
            values: any shape [...] that the format's scale lines up with.

        Returns:
            Absolute distances [..., bits], bit 0 first; infinite or NaN where the flip leaves the numbers.
        """
        words = self.encode(values)
        masks = np.uint64(1) << np.arange(self.bits, dtype=np.uint64)
        flips = words ^ masks.reshape(-1, *[1] * words.ndim)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.moveaxis(np.abs(self.decode(flips) - self.decode(words)), 0, -1)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Floating(NumberFormat):
    """A binary floating-point format: IEEE 754 binary64/32/16, bfloat16, OCP float8 E4M3 (no infinity) and E5M2.

    Values beyond the range become infinite, except in the 8-bit formats, which saturate as the OCP 8-bit
    specification (revision 1.0, 2023, section 5.2) lets conversions do.

    Raises:
        FaultError: when no format has that name, with the near names.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in FLOATING:
            raise FaultError(f"format: unknown {self.name!r}{near(self.name, FLOATING)}")

    @cached_property
    def _dtype(self) -> np.dtype:
        names = {"float8_e4m3": "float8_e4m3fn"}
        return np.dtype(getattr(ml_dtypes, names.get(self.name, self.name), None) or self.name)

    @cached_property
    def _word(self) -> np.dtype:
        return np.dtype(f"u{self._dtype.itemsize}")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits in a word."""
        return 8 * self._dtype.itemsize

    def encode(self, values: ArrayLike) -> NDArray[np.uint64]:
        """Round to nearest, ties to even."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asarray(values, np.float64)
            if self.bits == 8:
                values = np.clip(values, self.lowest, self.highest)
            if self._dtype.isbuiltin != 1:
                values = _float32_to_odd(values)
            return values.astype(self._dtype, order="C").view(self._word).astype(np.uint64)

    def decode(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Exact."""
        with np.errstate(invalid="ignore"):
            return words.astype(self._word, order="C").view(self._dtype).astype(np.float64)

    @property
    def lowest(self) -> float:
        """The most negative finite value."""
        return float(ml_dtypes.finfo(self._dtype).min)

    @property
    def highest(self) -> float:
        """The most positive finite value."""
        return float(ml_dtypes.finfo(self._dtype).max)


@dataclass(frozen=True, eq=False)
class Affine(NumberFormat):
    """Affine integers, value = scale · (word − zero_point) (Jacob et al., CVPR 2018, eq. 1).

    Rounds to nearest, ties to even, and saturates. ``scale`` and ``zero_point`` are scalars (per tensor) or
    arrays with one entry for each channel; :meth:`at` lines the latter up with single elements. Formats are
    equal when all their scales and zero points are.

    Raises:
        FaultError: when the width is not 2 to 32 bits, a scale is not positive and finite, a zero point is not
            one of the integers, or the two do not have the same shape.
    """

    bits: int = 8
    signed: bool = True
    scale: NDArray[np.float64] = field(default_factory=lambda: np.array(1.0))
    zero_point: NDArray[np.int64] = field(default_factory=lambda: np.array(0))

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise FaultError(f"format: affine integers of {self.bits} bits; needs 2 to 32 bits")
        scale, zero_point = np.asarray(self.scale, np.float64), np.asarray(self.zero_point)
        if not ((scale > 0) & np.isfinite(scale)).all():
            raise FaultError(f"format: {self.name} with scale {scale}; each must be above 0 and finite")
        smallest, largest = self.integer_range
        if not ((zero_point >= smallest) & (zero_point <= largest) & (zero_point == np.rint(zero_point))).all():
            raise FaultError(
                f"format: {self.name} with zero point {zero_point}; needs integers {smallest} .. {largest}"
            )
        if scale.ndim and zero_point.ndim and scale.shape != zero_point.shape:
            raise FaultError(f"format: {self.name} with {scale.size} scales and {zero_point.size} zero points")
        scale, zero_point = np.broadcast_arrays(scale, zero_point.astype(np.int64))
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    def _identity(self) -> tuple[object, ...]:
        return self.bits, self.signed, self.scale.shape, self.scale.tobytes(), self.zero_point.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Affine) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    @property
    def name(self) -> str:  # type: ignore[override]
        """Such as ``int8``, ``uint8`` or ``int4``."""
        return f"{'' if self.signed else 'u'}int{self.bits}"

    @property
    def integer_range(self) -> tuple[int, int]:
        """The smallest and the largest stored integer."""
        if self.signed:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1

    def at(self, channels: NDArray[np.int64]) -> Affine:
        """The same format with scale and zero point gathered for elements of the given channels."""
        if self.scale.ndim == 0:
            return self
        return replace(self, scale=self.scale[channels], zero_point=self.zero_point[channels])

    def calibrated(self, low: ArrayLike, high: ArrayLike, *, symmetric: bool = False) -> Affine:
        """The format with the scale that maps [low, high] (per channel if arrays) onto its integers.

        The range is widened to hold zero, which then is exact (Jacob et al., CVPR 2018, section 3).
        ``symmetric`` puts the zero point at 0 and gives the larger of −low and high the largest integer.

        Raises:
            FaultError: when a bound is not finite.
        """
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise FaultError(f"format: cannot calibrate {self.name} to a range that is not finite: {low} .. {high}")
        low, high = np.minimum(np.asarray(low, np.float64), 0), np.maximum(np.asarray(high, np.float64), 0)
        smallest, largest = self.integer_range
        if symmetric:
            scale = np.maximum(-low, high) / largest
            scale = np.where(scale == 0, 1.0, scale)
            zero_point = np.zeros_like(scale)
        else:
            scale = (high - low) / (largest - smallest)
            scale = np.where(scale == 0, 1.0, scale)
            zero_point = np.clip(np.rint(smallest - low / scale), smallest, largest)
        return replace(self, scale=scale, zero_point=zero_point.astype(np.int64))

    def encode(self, values: ArrayLike) -> NDArray[np.uint64]:
        """Divide by the scale, round to nearest even, add the zero point, saturate; NaN becomes zero."""
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero_point
        steps = np.clip(np.where(np.isnan(steps), self.zero_point, steps), *self.integer_range)
        return steps.astype(np.int64).astype(np.uint64) & np.uint64((1 << self.bits) - 1)

    def decode(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Scale times the distance from the zero point."""
        return np.asarray((integers(words, self.bits, self.signed) - self.zero_point) * self.scale)

    @property
    def lowest(self) -> ArrayLike:
        """The value of the smallest integer."""
        return (self.integer_range[0] - self.zero_point) * self.scale

    @property
    def highest(self) -> ArrayLike:
        """The value of the largest integer."""
        return (self.integer_range[1] - self.zero_point) * self.scale


@dataclass(frozen=True)
class FixedPoint(NumberFormat):
    """Two's-complement fixed point with ``fraction`` bits behind the radix point, saturating.

    Named ``16b_rb10`` as by Li et al., SC 2017 (16 bits, radix bit 10), which is Q5.10: one sign bit,
    5 integer and 10 fraction bits.
    """

    bits: int
    fraction: int

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 48 and 0 <= self.fraction < self.bits):
            raise FaultError(
                f"format: fixed point of {self.bits} bits with {self.fraction} fraction bits; "
                "needs 2 to 48 bits, of which at least one is the sign"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        """Such as ``16b_rb10``."""
        return f"{self.bits}b_rb{self.fraction}"

    def encode(self, values: ArrayLike) -> NDArray[np.uint64]:
        """Round to nearest even and saturate; NaN becomes zero."""
        limit = 1 << (self.bits - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.rint(np.asarray(values, np.float64) * 2.0**self.fraction)
        steps = np.clip(np.where(np.isnan(steps), 0, steps), -limit, limit - 1)
        return steps.astype(np.int64).astype(np.uint64) & np.uint64((1 << self.bits) - 1)

    def decode(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Exact."""
        return np.asarray(integers(words, self.bits, signed=True) * np.float64(2.0**-self.fraction))

    @property
    def lowest(self) -> float:
        """The most negative value."""
        return -(2.0 ** (self.bits - 1 - self.fraction))

    @property
    def highest(self) -> float:
        """The most positive value."""
        return -self.lowest - 2.0**-self.fraction


FLOATING = ("float64", "float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")
AFFINE = ("int8", "uint8", "int4", "uint4", "int16", "int32")


def number_format(name: str) -> NumberFormat:
    """The format of a name: ``float32``, ``bfloat16``, ``int8``, ``16b_rb10``, ``Q5.10`` and the like.

    Affine formats come with scale 1 and zero point 0: plain integers.

    Raises:
        FaultError: when no format has that name, with the near names.
    """
    if name in FLOATING:
        return Floating(name)
    if affine := re.fullmatch(r"(u?)int(\d+)", name):
        if name in AFFINE:
            return Affine(bits=int(affine[2]), signed=not affine[1])
    elif radix := re.fullmatch(r"(\d+)b_rb(\d+)", name):
        return FixedPoint(bits=int(radix[1]), fraction=int(radix[2]))
    elif q := re.fullmatch(r"[Qq](\d+)\.(\d+)", name):
        return FixedPoint(bits=1 + int(q[1]) + int(q[2]), fraction=int(q[2]))
    known = (*FLOATING, *AFFINE, "32b_rb26", "32b_rb10", "16b_rb10", "Q5.10")
    raise FaultError(f"format: unknown {name!r}{near(name, known)}")


def integers(words: NDArray[np.uint64], bits: int, signed: bool) -> NDArray[np.int64]:
    """Read words of ``bits`` bits as integers, in two's complement where ``signed``."""
    values = words.astype(np.int64)
    if not signed:
        return values
    sign = np.int64(1) << np.int64(bits - 1)
    return (values ^ sign) - sign


def _float32_to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to float32 so that rounding once more, to at most 22 bits, equals rounding once.

    Inexact results get an odd last bit (Boldo and Melquiond, IEEE Transactions on Computers 57(4), 2008);
    ml_dtypes itself converts float64 by way of float32 and would round twice.
    """
    narrow = values.astype(np.float32, order="C")
    back = narrow.astype(np.float64)
    even = (back != values) & ~np.isnan(values) & (narrow.view(np.uint32) % 2 == 0)
    if even.any():
        neighbour = np.nextafter(narrow, np.where(back < values, np.float32(np.inf), np.float32(-np.inf)))
        narrow = np.where(even, neighbour, narrow)
    return narrow
