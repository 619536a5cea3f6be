"""Campaigns on the toy target of the campaign tests, at two "levels"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saboteur.campaign import Campaign, run

BASE = {
    "name": "toy",
    "target": {"kind": "tests.campaign.toy:ToyTarget"},
    "faults": [{"model": "bit_flip"}],
    "sampling": {"kind": "fixed", "n": 400, "stratify": "network", "confidence": 0.95},
    "criteria": ["sdc-1"],
    "resources": {"unit_trials": 128},
}


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Runs a campaign with some fields changed; gives its store."""

    def build(name: str, **changes: object) -> Path:
        run(Campaign.read(BASE | changes), tmp_path / name)
        return tmp_path / name

    return build
