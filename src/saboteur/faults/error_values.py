"""By how much the wrong values of a layer's output are off: changes as codes, told apart and drawn, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import FaultError
from saboteur.faults.error_patterns import LayerShape
from saboteur.faults.formats import Affine, Floating, NumberFormat

_STEP_BITS = 8
_STEPS_OF_RANGE = 2**_STEP_BITS - 1
_CLAMPED_SHARE = 0.01
_LEAST_OCTAVE, _LARGEST_OCTAVE = -64, 1100
_TOP, _BOTTOM, _NONFINITE, _IN_RANGE, _OUT_OF_RANGE, _ZERO, _OCTAVES = range(7)
_NAMED = {
    "top": _TOP,
    "bottom": _BOTTOM,
    "nonfinite": _NONFINITE,
    "in_range": _IN_RANGE,
    "out_of_range": _OUT_OF_RANGE,
    "zero": _ZERO,
}
CHANGE_NAME = rf"^({'|'.join(_NAMED)}|>?[+-]2\^-?\d{{1,4}})$"
_NEAREST_BEYOND, _FURTHEST_BEYOND = 2.0, 600.0
_DOWN, _CUT_SHORT, _WAYS = 1, 2, 4

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerOutput:
    """What is known of one layer's fault-free output.

    Attributes:
        shape: of one input's.
        step: what a change is counted in: that of an integer format of at most eight bits, else 1/255 of the range.
        bottom: no value is below it: where a rectifier or a saturating format clamps; −∞ where nothing does.
        top: no value is above it.
        low: the smallest fault-free value.
        high: the largest.
        at_bottom: the share of fault-free values at the bottom.
        quantised: whether values are whole numbers of steps.
        at_bottom_by_element: [elements] the same share for each element, where it is known.
    """

    shape: LayerShape
    step: float
    bottom: float
    top: float
    low: float
    high: float
    at_bottom: float
    quantised: bool
    at_bottom_by_element: Floats | None = field(default=None, compare=False, repr=False)

    @classmethod
    def observed(cls, values: NDArray, shape: LayerShape, fmt: NumberFormat) -> LayerOutput:
        """From the fault-free values [inputs, ...] of many inputs; see :meth:`of_range`."""
        values = values.astype(np.float64)
        low, high = float(np.min(values, initial=np.inf)), float(np.max(values, initial=-np.inf))
        by_element = np.mean(values == low, axis=0).ravel()
        return cls.of_range(
            shape, fmt, low, high, float(np.mean(values == low)), float(np.mean(values == high)), by_element
        )

    @classmethod
    def of_range(
        cls,
        shape: LayerShape,
        fmt: NumberFormat,
        low: float,
        high: float,
        at_low: float,
        at_high: float,
        at_low_by_element: Floats | None = None,
    ) -> LayerOutput:
        """From the range of its fault-free values.

        An end of the range at which at least 1 % of all values lie is taken for a clamp; otherwise the limits are
        those of an integer or fixed-point format, and floats have none.

        Args:
            shape: of one input's output.
            fmt: the number format, with one scale for all elements.
            low: the smallest fault-free value.
            high: the largest.
            at_low: the share of values that are the smallest.
            at_high: the share of values that are the largest.
            at_low_by_element: [elements] how often each element is the smallest, where that is known.

        Raises:
            FaultError: when the range is not finite, as where there are no values.
        """
        if not (np.isfinite(low) and np.isfinite(high)):
            raise FaultError(f"values: a layer whose fault-free values range over {low} .. {high} has no steps")
        quantised = isinstance(fmt, Affine) and fmt.bits <= _STEP_BITS
        floating = isinstance(fmt, Floating)
        limits = (-np.inf, np.inf) if floating else (float(np.min(fmt.lowest)), float(np.max(fmt.highest)))
        step = float(np.max(fmt.scale)) if isinstance(fmt, Affine) and quantised else (high - low) / _STEPS_OF_RANGE
        bottom = low if at_low >= _CLAMPED_SHARE else limits[0]
        return cls(
            shape=shape,
            step=step or 1.0,
            bottom=bottom,
            top=high if at_high >= _CLAMPED_SHARE else limits[1],
            low=low,
            high=high,
            at_bottom=at_low if bottom == low else 0.0,
            quantised=quantised,
            at_bottom_by_element=at_low_by_element if bottom == low else None,
        )

    def bottom_shares(self) -> Floats:
        """[elements]: how often each element is at the bottom; as often as any where that is not known."""
        if self.at_bottom_by_element is None:
            return np.full(self.shape.elements, self.at_bottom)
        return self.at_bottom_by_element

    def changes(self, golden: Floats, faulty: Floats) -> Integers:
        """The change of each wrong value [n] as a code: sign, octave, whether it was cut short; or not finite."""
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            steps = (faulty - golden) / self.step
            octave = np.floor(np.log2(np.abs(np.where(np.isfinite(steps) & (steps != 0), steps, 1.0))))
        octave = np.clip(octave, _LEAST_OCTAVE, _LARGEST_OCTAVE).astype(np.int64)
        cut_short = (faulty >= self.top) | (faulty <= self.bottom)
        codes = _OCTAVES + _WAYS * (octave - _LEAST_OCTAVE) + _DOWN * (steps < 0) + _CUT_SHORT * cut_short
        return np.where(np.isfinite(faulty), codes, _NONFINITE)

    def changed(self, golden: Floats, codes: Integers, uniform: Floats) -> Floats:
        """Values that are off by the changes of ``codes``; the inverse of :meth:`changes` up to the draw.

        The size within an octave is drawn log-uniformly (uniformly among whole steps where values are quantised);
        a value that would leave the limits is set to them; a value that is at a limit already moves the other way.
        Where there is no limit, the top is the largest fault-free value.

        The changes that error models of CLASSES know have no size: a value anywhere in the range of fault-free
        values, zero, or one that is moved out of the range by 2 to 600 times its width, where the limits leave room
        (Bolchini et al., IEEE TC 2022; ``InjectionValue`` of its published code).

        Args:
            golden: [n] fault-free values.
            codes: [n] changes, none of them cut short.
            uniform: [n] numbers in (0, 1).
        """
        downward = np.where(codes >= _OCTAVES, (codes - _OCTAVES) % 2 == _DOWN, codes == _BOTTOM)
        downward = np.where(codes == _OUT_OF_RANGE, self._leaves_below(uniform), downward)
        downward = np.where(golden >= self.top, True, np.where(golden <= self.bottom, False, downward))
        octave = _octave(codes).astype(np.float64)
        with np.errstate(over="ignore"):
            size = np.exp2(octave + uniform)
            if self.quantised:
                size = np.maximum(np.floor(np.exp2(octave) * (1 + uniform)), 1.0)
            beyond = _NEAREST_BEYOND + (_FURTHEST_BEYOND - _NEAREST_BEYOND) * np.abs(2 * uniform - 1)
            size = np.where(codes == _OUT_OF_RANGE, beyond * np.ceil((self.high - self.low) / self.step), size)
            moved = golden + np.where(downward, -size, size) * self.step
        ends = np.where(downward, self.low if np.isinf(self.bottom) else self.bottom, self._end_above)
        values = np.where(codes <= _BOTTOM, ends, np.clip(moved, self.bottom, self.top))
        values = np.where(codes == _IN_RANGE, self._within(uniform), np.where(codes == _ZERO, 0.0, values))
        return np.where(codes == _NONFINITE, np.nan, values)

    def _leaves_below(self, uniform: Floats) -> NDArray[np.bool_]:
        """On which side of the range a value leaves it: one that has room, either with equal probability."""
        below, above = self.bottom < self.low, self.top > self.high
        return uniform < 0.5 if below == above else np.full(uniform.shape, below)

    def _within(self, uniform: Floats) -> Floats:
        if not self.quantised:
            return self.low + uniform * (self.high - self.low)
        steps = np.round((self.high - self.low) / self.step)
        return self.low + np.floor(uniform * (steps + 1)) * self.step

    @property
    def _end_above(self) -> float:
        return self.high if np.isinf(self.top) else self.top


def _octave(codes: Integers) -> Integers:
    return (codes - _OCTAVES) // _WAYS + _LEAST_OCTAVE


def octaves(codes: Integers) -> Floats:
    """The octave of each change; 0 of those that have none."""
    return np.where(codes >= _OCTAVES, _octave(codes), 0).astype(np.float64)


def name_of(code: int) -> str:
    """How files call a change."""
    for name, named in _NAMED.items():
        if code == named:
            return name
    octave, way = divmod(code - _OCTAVES, _WAYS)
    return f"{'>' if way & _CUT_SHORT else ''}{'-' if way & _DOWN else '+'}2^{octave + _LEAST_OCTAVE}"


def code_of(name: str) -> int:
    """The change of a name in a file."""
    if name in _NAMED:
        return _NAMED[name]
    sign, _, octave = name.lstrip(">").partition("2^")
    octave = min(max(int(octave), _LEAST_OCTAVE), _LARGEST_OCTAVE)
    return _OCTAVES + _WAYS * (octave - _LEAST_OCTAVE) + _DOWN * (sign == "-") + _CUT_SHORT * name.startswith(">")


def at_least(code: int) -> int:
    """The change to the limit of one that was cut short there; any other change as it is."""
    if code < _OCTAVES or not (code - _OCTAVES) & _CUT_SHORT:
        return code
    return _BOTTOM if (code - _OCTAVES) & _DOWN else _TOP


def uncut(counts: Mapping[int, int]) -> dict[int, float]:
    """Counts of changes without those that were cut short.

    Each of these is spread over what is of a larger octave and the same sign, in proportion (redistribution to the
    right, Efron, Proc. 5th Berkeley Symposium 1967, the Kaplan–Meier estimator). Where nothing is larger, it goes to
    the limit from anywhere.
    """
    found: dict[int, float] = {code: float(n) for code, n in counts.items() if code < _OCTAVES}
    for way, limit in ((0, _TOP), (_DOWN, _BOTTOM)):
        codes = [code for code in counts if code >= _OCTAVES and (code - _OCTAVES) & _DOWN == way]
        octaves = np.unique(_octave(np.array(codes, np.int64)))
        first = _OCTAVES - _WAYS * _LEAST_OCTAVE + way
        seen, cut = (
            np.array([counts.get(first + _WAYS * octave + extra, 0) for octave in octaves.tolist()], float)
            for extra in (0, _CUT_SHORT)
        )
        for place in range(len(octaves)):
            larger = seen[place + 1 :].sum() + cut[place + 1 :].sum()
            if larger == 0:
                found[limit] = found.get(limit, 0.0) + cut[place]
                continue
            growth = 1 + cut[place] / larger
            seen[place + 1 :] *= growth
            cut[place + 1 :] *= growth
        found |= {first + _WAYS * octave: n for octave, n in zip(octaves.tolist(), seen.tolist(), strict=True)}
    return {code: n for code, n in sorted(found.items()) if n > 0}
