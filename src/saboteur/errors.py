"""Errors a user can act on: each names the field, the value and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SaboteurError(Exception):
    """Base of every error that Saboteur raises on purpose."""


class CampaignError(SaboteurError):
    """A campaign file or value that cannot be run as it stands."""


class FaultError(SaboteurError):
    """A fault, fault list or fault space that does not fit its target."""


class TargetError(SaboteurError):
    """A system under test that cannot be assessed: no golden run, wrong outputs, unknown sites."""


class StoreError(SaboteurError):
    """A result store that is damaged, full, or of another campaign."""


def near(name: str, known: Iterable[str], limit: int = 3) -> str:
    """End an error about an unknown ``name`` with the names that come nearest, or with all when few."""
    known = sorted(set(known))
    matches = difflib.get_close_matches(name, known, n=limit, cutoff=0.4)
    if matches:
        return "; did you mean " + " or ".join(repr(match) for match in matches) + "?"
    if known and len(known) <= 12:
        return "; known: " + ", ".join(known)
    return ""
