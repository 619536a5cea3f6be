"""A campaign on an accelerator from the command line: stopped, resumed, replayed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saboteur.cli import app

CAMPAIGN = """
name: upsets
target: {kind: accelerator, workload: digits-lenet7-int8, array: ARRAY, rows: 4, cols: 4, inputs: 40}
faults:
  - {where: flip_flops, model: bit_flip, duration: transient}
  - {where: flip_flops, model: stuck_at}
sampling: {kind: fixed, n: 64, n_for: total, stratify: layer}
inputs_per_fault: 3
criteria: [sdc-1, sdc-10%]
resources: {unit_trials: 8}
"""


@pytest.mark.parametrize("array", ["output_stationary", "weight_stationary"])
def test_stopped_and_resumed_equals_the_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("upsets.yaml").write_text(CAMPAIGN.replace("ARRAY", array))

    def saboteur(*arguments: str) -> str:
        found = CliRunner().invoke(app, list(arguments))
        assert found.exit_code == 0, found.output
        return found.stdout

    saboteur("run", "upsets.yaml", "--store", "whole", "--no-report")
    units = {file.name: file.read_bytes() for file in Path("whole/units").glob("*.parquet")}
    assert len(units) >= 8
    saboteur("run", "upsets.yaml", "--store", "stopped", "--no-report")
    for name in sorted(units)[3:]:  # as a kill after three units leaves it
        Path("stopped/units", name).unlink()
    saboteur("run", "upsets.yaml", "--store", "stopped", "--no-report")
    assert {file.name: file.read_bytes() for file in Path("stopped/units").glob("*.parquet")} == units
    layers = json.loads(saboteur("check", "upsets.yaml", "--json"))["sites"]
    assert {site["layer"] for site in layers} == {"conv1", "conv2", "fc1", "fc2", "fc3", "array"}


def test_the_embedded_example_is_a_campaign() -> None:
    found = CliRunner().invoke(app, ["check", "digits-accelerator", "--json"])
    assert found.exit_code == 0, found.output
    checked = json.loads(found.stdout)
    assert checked["golden"]["inputs"] == 360
    assert {site["component"] for site in checked["sites"]} == {"a", "b", "acc", "valid", "clear", "drain"}


def test_the_report_tells_layers_and_registers_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("upsets.yaml").write_text(CAMPAIGN.replace("ARRAY", "output_stationary"))
    found = CliRunner().invoke(app, ["run", "upsets.yaml"])
    assert found.exit_code == 0, found.output
    page = Path("runs/upsets/report.html").read_text()
    assert all(f">{name}<" in page for name in ("conv2", "array", "acc", "valid"))
