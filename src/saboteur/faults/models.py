"""Fault models: what goes wrong with a word, as columns.

A model names its ``variants`` (which bit, which pattern, which value) by the integers 0 .. n − 1, so that a
fault space can count them, and corrupts whole arrays of words at once. What is random in a fault comes in
as one 64-bit word a fault, which the campaign draws by counter: the model itself draws nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from math import comb
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from scipy.special import ndtri

from saboteur.errors import FaultError
from saboteur.extensions import Part, described, extensible
from saboteur.faults import draws
from saboteur.faults.formats import NumberFormat

Words = NDArray[np.uint64]


class FaultModel(Part):
    """What goes wrong with one word in one number format."""

    group: ClassVar[str] = "saboteur.fault_models"
    memoryless: ClassVar[bool] = True
    """Whether the faulted word follows from the fault-free one; otherwise a level has to simulate the fault."""

    @property
    def name(self) -> str:
        """How tables call it; distinct for distinct settings."""
        return described(self)

    @abstractmethod
    def variants(self, bits: int) -> int:
        """How many different faults of this model one word of ``bits`` bits can have.

        Raises:
            FaultError: when the model does not fit such a word.
        """

    def bit(self, variant: NDArray[np.int64], bits: int) -> NDArray[np.int16]:
        """The lowest bit that each variant touches; −1 where the model acts on the value.

        Never decreases with the variant, so that the faults of one bit are one range of variants.
        """
        return np.full(np.shape(variant), -1, np.int16)

    @abstractmethod
    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """The faulted words.

        Args:
            words: [n] fault-free words of ``fmt``.
            variant: [n] which fault of the model.
            drawn: [n] a random 64-bit word for each fault.
            fmt: the number format (its scale lined up with the n elements).
        """


class _BitModel(FaultModel):
    bits: tuple[Annotated[int, Field(ge=0, le=63)], ...] | None = Field(
        default=None, description="the bits that can be hit, 0 the least significant; all if absent"
    )

    @field_validator("bits")
    @classmethod
    def _sorted_and_distinct(cls, bits: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if bits is None:
            return None
        if not bits or len(set(bits)) != len(bits):
            raise ValueError("must be distinct and at least one")
        return tuple(sorted(bits))

    def _positions(self, bits: int) -> NDArray[np.int64]:
        if self.bits is None:
            return np.arange(bits)
        if self.bits[-1] >= bits:
            raise FaultError(
                f"bits: bit {self.bits[-1]} is outside a {bits}-bit format, whose bits are 0 .. {bits - 1}"
            )
        return np.array(self.bits)


class BitFlip(_BitModel):
    """Inverts one bit, ``count`` bits of a word at random positions, or ``count`` adjacent bits.

    With ``count`` bits, ``bits`` limits the positions (of the lowest bit of an adjacent burst).
    """

    kind: str = "bit_flip"
    count: Annotated[int, Field(ge=1, le=16)] = 1
    adjacent: bool = False

    def _candidates(self, bits: int) -> NDArray[np.int64]:
        positions = self._positions(bits)
        if self.adjacent:
            positions = positions[positions + self.count <= bits]
        if len(positions) < (1 if self.adjacent else self.count):
            kind, where = "adjacent bits" if self.adjacent else "bits", f" at bits={self.bits}" if self.bits else ""
            raise FaultError(f"count: {self.count} {kind} do not fit a word of {bits} bits{where}")
        return positions

    def variants(self, bits: int) -> int:
        """The positions, or the combinations of positions."""
        candidates = len(self._candidates(bits))
        return candidates if self.adjacent else comb(candidates, self.count)

    def bit(self, variant: NDArray[np.int64], bits: int) -> NDArray[np.int16]:
        """The lowest inverted bit."""
        mask = self.mask(np.asarray(variant), bits)
        return np.round(np.log2((mask & (~mask + np.uint64(1))).astype(np.float64))).astype(np.int16)

    def mask(self, variant: NDArray[np.int64], bits: int) -> Words:
        """The inverted bits of each variant; combinations are numbered in lexicographic order."""
        candidates = self._candidates(bits).astype(np.uint64)
        if self.adjacent or self.count == 1:
            return np.uint64((1 << self.count) - 1) << candidates[variant]
        rest = np.array(variant, np.int64)
        mask, left = np.zeros(rest.shape, np.uint64), np.full(rest.shape, self.count)
        binomials = np.array([[comb(n, k) for k in range(self.count + 1)] for n in range(len(candidates) + 1)])
        for i, position in enumerate(candidates):
            with_it = np.where(left > 0, binomials[len(candidates) - 1 - i, np.maximum(left - 1, 0)], 0)
            takes = (left > 0) & (rest < with_it)
            rest = np.where(takes, rest, rest - with_it)
            mask |= np.where(takes, np.uint64(1) << position, np.uint64(0))
            left = left - takes
        return mask

    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """XOR with the mask."""
        return words ^ self.mask(variant, fmt.bits)


class StuckAt(_BitModel):
    """One bit of the word reads 0, or 1, whatever was stored; ``value`` "both" makes each a fault."""

    kind: str = "stuck_at"
    value: Literal[0, 1, "both"] = "both"

    def variants(self, bits: int) -> int:
        """The bits, twice if both values are meant."""
        return len(self._positions(bits)) * (2 if self.value == "both" else 1)

    def _site(self, variant: NDArray[np.int64], bits: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        variant = np.asarray(variant)
        positions = self._positions(bits)
        if self.value == "both":
            return positions[variant // 2], variant % 2 == 1
        return positions[variant], np.full(variant.shape, self.value == 1)

    def bit(self, variant: NDArray[np.int64], bits: int) -> NDArray[np.int16]:
        """The stuck bit."""
        return self._site(variant, bits)[0].astype(np.int16)

    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """OR or AND with the bit."""
        position, high = self._site(variant, fmt.bits)
        mask = np.uint64(1) << position.astype(np.uint64)
        return np.where(high, words | mask, words & ~mask)


def _refuse_repeats(given: tuple) -> tuple:
    if len(set(given)) != len(given):
        raise ValueError("must be distinct, or one fault would count twice")
    return given


class StuckValue(FaultModel):
    """The site transmits a given value whatever it should (byzantine neuron; Torres-Huitzil and Girau, 2017)."""

    kind: str = "stuck_value"
    values: Annotated[tuple[float, ...], Field(min_length=1)]

    _distinct = field_validator("values")(_refuse_repeats)

    def variants(self, bits: int) -> int:
        """The given values."""
        return len(self.values)

    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """The value, rounded to the format."""
        return fmt.encode(np.array(self.values)[variant])


class Dead(FaultModel):
    """The site stops: it reads zero, or saturates at the format's highest or lowest finite value (crash)."""

    kind: str = "dead"
    outputs: Annotated[tuple[Literal["zero", "high", "low"], ...], Field(min_length=1)] = ("zero",)

    _distinct = field_validator("outputs")(_refuse_repeats)

    def variants(self, bits: int) -> int:
        """The listed outputs."""
        return len(self.outputs)

    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """Zero, highest or lowest."""
        output = np.array(self.outputs)[variant]
        return fmt.encode(np.where(output == "zero", 0.0, np.where(output == "high", fmt.highest, fmt.lowest)))


class RandomValue(FaultModel):
    """The site reads a random value: uniform in [low, high], or a uniformly random word if no range is given."""

    kind: str = "random_value"
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _range(self) -> RandomValue:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high are given together or not at all")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def variants(self, bits: int) -> int:
        """One; the value is drawn."""
        return 1

    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """A drawn value or word."""
        if self.low is None or self.high is None:
            return drawn >> np.uint64(64 - fmt.bits)
        return fmt.encode(self.low + (self.high - self.low) * draws.unit_interval(drawn))


class Noise(FaultModel):
    """value · (1 + multiplicative · z) + additive · z with z standard normal, or uniform in [−1, 1]."""

    kind: str = "noise"
    additive: Annotated[float, Field(ge=0)] = 0.0
    multiplicative: Annotated[float, Field(ge=0)] = 0.0
    distribution: Literal["normal", "uniform"] = "normal"

    @model_validator(mode="after")
    def _some_noise(self) -> Noise:
        if self.additive == 0 and self.multiplicative == 0:
            raise ValueError("additive or multiplicative must be above 0")
        return self

    def variants(self, bits: int) -> int:
        """One; the noise is drawn."""
        return 1

    def corrupt(self, words: Words, variant: NDArray[np.int64], drawn: Words, fmt: NumberFormat) -> Words:
        """The noisy value, rounded to the format."""
        u = draws.unit_interval(drawn)
        z = ndtri(u) if self.distribution == "normal" else 2 * u - 1
        values = fmt.decode(words)
        with np.errstate(over="ignore", invalid="ignore"):
            return fmt.encode(values * (1 + self.multiplicative * z) + self.additive * z)


if TYPE_CHECKING:
    AnyFaultModel = FaultModel
else:
    AnyFaultModel = extensible(FaultModel)
