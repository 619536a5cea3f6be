"""Toy campaigns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saboteur.campaign import Campaign

BASE = {
    "name": "toy",
    "target": {"kind": "tests.campaign.toy:ToyTarget"},
    "faults": [{"model": "bit_flip"}],
    "sampling": {"kind": "fixed", "n": 200, "stratify": "layer", "confidence": 0.95},
    "criteria": ["sdc-1", "sdc-10%", {"kind": "accuracy_drop", "tolerance": 0.05}],
    "resources": {"unit_trials": 16},
}


@pytest.fixture
def toy_campaign() -> Callable[..., Campaign]:
    """A campaign on the toy target with some fields changed."""

    def build(**changes: object) -> Campaign:
        return Campaign.read(BASE | changes)

    return build
