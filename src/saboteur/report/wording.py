"""Numbers as a report prints them."""

from __future__ import annotations

import math

UNKNOWN = "–"
SIGN = "\u202f%"
"""Set off by a narrow space that no line breaks at."""


def percent(share: float) -> str:
    """A share of 1 as a percentage with three significant digits, at least two decimals below 100 %."""
    if math.isnan(share):
        return "unknown"
    value = 100 * share
    if value == 0 or value == 100:
        return f"{value:.0f}{SIGN}"
    decimals = min(max(2 - math.floor(math.log10(abs(value))), 2), 8)
    return f"{value:.{decimals}f}{SIGN}"


def whole(number: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{round(number):,d}".replace(",", "\u202f")


def given(share: float) -> str:
    """A share that a person chose, as a percentage as short as it was given."""
    return f"{100 * share:.10g}{SIGN}"
