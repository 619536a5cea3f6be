"""What the tests of the command share: a campaign file on the toy target, a runner, a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from saboteur.cli import app

ROOT = Path(__file__).resolve().parents[2]
TOY = {
    "name": "toy",
    "target": {"kind": "tests.campaign.toy:ToyTarget"},
    "faults": [{"model": "bit_flip"}],
    "sampling": {"kind": "fixed", "n": 200, "stratify": "layer", "confidence": 0.95},
    "criteria": ["sdc-1", "sdc-10%", {"kind": "accuracy_drop", "tolerance": 0.05}],
    "resources": {"unit_trials": 16},
}


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No colours, a wide terminal, no settings from outside, and a folder of its own."""
    for name in list(os.environ):
        if name.startswith("SABOTEUR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toy_file(tmp_path: Path) -> Callable[..., str]:
    """Write a campaign file on the toy target with some fields changed."""

    def write(file: str = "toy.yaml", name: str = "toy", **changes: object) -> str:
        with (tmp_path / file).open("w") as stream:
            YAML(typ="safe", pure=True).dump(TOY | {"name": name} | changes, stream)
        return file

    return write


@pytest.fixture
def saboteur() -> Callable[..., Result]:
    """Run the command in this process."""

    def call(*arguments: object, **environment: str) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)

    return call


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run the command as a process of its own."""

    def call(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "saboteur.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return call


def units(store: Path) -> dict[str, bytes]:
    """The unit files of a store."""
    return {file.name: file.read_bytes() for file in sorted((store / "units").glob("*.parquet"))}
