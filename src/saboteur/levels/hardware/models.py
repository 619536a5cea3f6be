"""Fault models of logic that the other levels do not have, and how any model acts on a word of logic."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import FaultError
from saboteur.faults.formats import NumberFormat
from saboteur.faults.models import FaultModel
from saboteur.levels.hardware.simulate import WAYS


@dataclass(frozen=True)
class Bits(NumberFormat):
    """Words of plain logic: ``bits`` wires or cells, read as an unsigned number where a value is asked for."""

    bits: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """Such as ``bits8``."""
        return f"bits{self.bits}"

    def encode(self, values: object) -> NDArray[np.uint64]:
        """Round to nearest even and saturate; NaN becomes zero."""
        values = np.nan_to_num(np.rint(np.asarray(values, np.float64)), nan=0.0)
        top = np.uint64((1 << self.bits) - 1)
        inside = np.clip(values, 0, 2.0 ** min(self.bits, 63)).astype(np.uint64)
        return np.where(values > self.highest, top, np.minimum(inside, top))

    def decode(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Exact up to 53 bits."""
        return words.astype(np.float64)

    @property
    def lowest(self) -> float:
        """Zero."""
        return 0.0

    @property
    def highest(self) -> float:
        """All ones."""
        return float((1 << self.bits) - 1)


class _LogicModel(FaultModel):
    """A fault that is no function of the word alone; the hardware level simulates it."""

    memoryless: ClassVar[bool] = False

    def variants(self, bits: int) -> int:
        """The bits."""
        return bits

    def bit(self, variant: NDArray[np.int64], bits: int) -> NDArray[np.int16]:
        """The bit."""
        return np.asarray(variant).astype(np.int16)

    @property
    @abstractmethod
    def way(self) -> str:
        """Which of the simulator's WAYS."""

    def corrupt(
        self, words: NDArray[np.uint64], variant: NDArray[np.int64], drawn: NDArray[np.uint64], fmt: NumberFormat
    ) -> NDArray[np.uint64]:
        """Refused: needs the word of the cycle before.

        Raises:
            FaultError: always.
        """
        raise FaultError(f"model: {self.kind} needs the value of the cycle before; only nets of HDL designs have it")


class Delay(_LogicModel):
    """A net's transition comes too late for the clock edge, so that the old value is captured (transition fault).

    With ``edge`` rise a 0 stays for a cycle, with fall a 1, with both any value (Waicukauskas et al., IEEE Design
    & Test 4(2), 1987).
    """

    kind: str = "delay"
    edge: Literal["rise", "fall", "both"] = "both"

    @property
    def way(self) -> str:
        """By edge."""
        return {"rise": "delay_rise", "fall": "delay_fall", "both": "delay"}[self.edge]


class Open(_LogicModel):
    """A broken net keeps the value that it had when it broke; one that floats to a constant is a ``stuck_at``."""

    kind: str = "open"

    @property
    def way(self) -> str:
        """Hold."""
        return "hold"


class Bridge(_LogicModel):
    """Two shorted nets: both read the AND of what drives them, or the OR, or one driver dominates the other net.

    Variant 0 of ``dominant``: the first net of the pair wins; variant 1: the second (Abramovici, Breuer and Friedman,
    "Digital Systems Testing and Testable Design", 1990, chapter 7). Where a bridge closes a loop, the nets hold their
    value if what drives them, computed from it, agrees; else they take the other one. If that fits no better, the
    machine oscillates and counts as one that hangs. Several bridges in one machine have eight passes to settle.
    """

    kind: str = "bridge"
    effect: Literal["wired_and", "wired_or", "dominant"] = "wired_and"

    def variants(self, bits: int) -> int:
        """One, or which net wins."""
        return 2 if self.effect == "dominant" else 1

    def bit(self, variant: NDArray[np.int64], bits: int) -> NDArray[np.int16]:
        """Nets have one bit."""
        return np.zeros(np.shape(variant), np.int16)

    @property
    def way(self) -> str:
        """By effect."""
        return {"wired_and": "bridge_and", "wired_or": "bridge_or", "dominant": "bridge_take"}[self.effect]


def masks(
    model: FaultModel, variant: NDArray[np.int64], drawn: NDArray[np.uint64], bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int]:
    """How a model acts on words of ``bits`` bits: v ← (v AND a) XOR x.

    Returns:
        a [n], x [n] and the number of the way; of a bridge, x is the variant.

    Raises:
        FaultError: when it does not act bit by bit, as noise does not.
    """
    if isinstance(model, Bridge):
        return np.zeros(len(variant), np.uint64), variant.astype(np.uint64), WAYS.index(model.way)
    if isinstance(model, _LogicModel):
        return np.zeros(len(variant), np.uint64), np.uint64(1) << variant.astype(np.uint64), WAYS.index(model.way)
    fmt = Bits(bits)
    ones = np.full(len(variant), (1 << bits) - 1, np.uint64)
    x = model.corrupt(np.zeros_like(ones), variant, drawn, fmt)
    a = model.corrupt(ones, variant, drawn, fmt) ^ x
    probe = (drawn * np.uint64(0x9E3779B97F4A7C15)) & ones
    if (model.corrupt(probe, variant, drawn, fmt) != (probe & a) ^ x).any():
        raise FaultError(f"model: {model.kind} does not act bit by bit; words of logic have no magnitude")
    return a, x, 0


_TABLE_VARIANTS = 4096


def mask_table(model: FaultModel, bits: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64], int] | None:
    """:func:`masks` of every variant, where nothing in them is drawn and there are few; else None."""
    count = model.variants(bits)
    if count > _TABLE_VARIANTS:
        return None
    variants = np.arange(count)
    drawn = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    table, other = (masks(model, variants, words, bits) for words in (drawn, ~drawn))
    same = all(np.array_equal(one, two) for one, two in zip(table, other, strict=True))
    return table if same else None
