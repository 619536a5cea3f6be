"""The commands for several levels: levels, hybrid, learn."""

from __future__ import annotations

import json
from pathlib import Path

from saboteur.faults.error_models import ErrorModel

ACCELERATOR = """
name: upsets
target: {kind: accelerator, workload: digits-cnn-int8, inputs: 8, array: output_stationary, rows: 4, cols: 4}
faults: {where: flip_flops, model: bit_flip, duration: transient}
sampling: {kind: fixed, n: 300, stratify: layer}
inputs_per_fault: 2
criteria: [sdc-1]
"""


def test_levels_side_by_side(saboteur, toy_file, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        assert saboteur("run", toy_file(seed=seed), "--no-report", "--store", name).exit_code == 0
    shown = saboteur("levels", "rtl=a", "model=b", "--figure", "levels.png")
    assert shown.exit_code == 0, shown.output
    assert "SDC of faults by sdc-1, by layer and level" in shown.stdout
    assert "level − rtl" in shown.stdout
    assert (tmp_path / "levels.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(saboteur("levels", "rtl=a", "model=b", "--unit", "inferences", "--json").stdout)
    assert (found["reference"], found["unit"]) == ("rtl", "inferences")
    assert [row["layer"] for row in found["rows"]] == ["a", "b", "all layers"] * 2
    assert saboteur("levels", "rtl=a", "model=b", "--figure", "levels.svg").exit_code == 0
    assert b"<svg" in (tmp_path / "levels.svg").read_bytes()
    assert "must end in .svg or .png" in saboteur("levels", "x=a", "y=b", "--figure", "levels.bmp").stderr
    assert "two are called 'toy'" in saboteur("levels", "a", "b").stderr
    assert "unit: 'trials'" in saboteur("levels", "x=a", "y=b", "--unit", "trials").stderr


def test_hybrid_of_two_campaigns(saboteur, toy_file):
    common = {"sampling": {"kind": "fixed", "n": 300, "confidence": 0.95}, "criteria": ["sdc-1"]}
    cheap = {"kind": "tests.campaign.toy:ToyTarget", "inputs": 10}
    assert saboteur("run", toy_file(target=cheap, **common), "--no-report", "--store", "cheap").exit_code == 0
    assert saboteur("faults", "cheap", "faults.csv").exit_code == 0
    listed = {"kind": "list", "path": "faults.csv", "first": 60, "confidence": 0.95}
    exact = toy_file(sampling=listed, criteria=["sdc-1"])
    assert saboteur("run", exact, "--no-report", "--store", "exact").exit_code == 0
    options = ("--cheap-cost", 1, "--exact-cost", 4, "--budget", 1000)
    shown = saboteur("hybrid", "cheap", "exact", *options)
    assert shown.exit_code == 0, shown.output
    assert "Strategies for a budget of 1000" in shown.stdout
    found = json.loads(saboteur("hybrid", "cheap", "exact", *options, "--strategy", "difference", "--json").stdout)
    assert found["estimate"]["n"] == 60
    assert found["estimate"]["method"] == "two-phase difference"
    assert len(found["plans"]) == 4
    assert "did not run in the cheap campaign" in saboteur("hybrid", "exact", "cheap", *options).stderr
    assert "strategy is 'best'" in saboteur("hybrid", "cheap", "exact", *options, "--strategy", "best").stderr


def test_learn_and_inject(saboteur, tmp_path: Path):
    (tmp_path / "rtl.yaml").write_text(ACCELERATOR)
    assert saboteur("run", "rtl.yaml", "--no-report", "--store", "rtl").exit_code == 0
    shown = saboteur("learn", "rtl", "array.yaml", "--title", "4 by 4")
    assert shown.exit_code == 0, shown.output
    model = ErrorModel.read(tmp_path / "array.yaml")
    assert model.title == "4 by 4"
    assert (model.source.faults, model.source.inferences) == (300, 600)
    assert sum(profile.inferences for profile in model.profiles) == 600
    assert {profile.layer for profile in model.profiles} == {"conv1", "conv2", "fc"}
    assert saboteur("learn", "rtl", "any.yaml", "--by-shape").exit_code == 0
    assert {(p.layer, p.shape) for p in ErrorModel.read(tmp_path / "any.yaml").profiles} == {
        (None, "small_map"),
        (None, "vector"),
    }
    software = ACCELERATOR.replace("accelerator", "pytorch").replace(", array: output_stationary, rows: 4, cols: 4", "")
    faults = "{where: outputs, model: {kind: error_model, file: array.yaml}, duration: transient, layers: [conv*, fc]}"
    software = software.replace("{where: flip_flops, model: bit_flip, duration: transient}", faults)
    (tmp_path / "software.yaml").write_text(software)
    ran = saboteur("run", "software.yaml", "--no-report", "--store", "software")
    assert ran.exit_code == 0, ran.output
    assert saboteur("levels", "rtl=rtl", "model=software").exit_code == 0


def test_learn_and_inject_permanent_faults(saboteur, tmp_path: Path):
    rtl = ACCELERATOR.replace("bit_flip, duration: transient", "stuck_at, duration: permanent")
    (tmp_path / "rtl.yaml").write_text(rtl.replace("n: 300, stratify: layer", "n: 90, stratify: component"))
    assert saboteur("run", "rtl.yaml", "--no-report", "--store", "rtl").exit_code == 0
    shown = saboteur("learn", "rtl", "array.yaml")
    assert shown.exit_code == 0, shown.output
    assert "upsets, permanent, from 90 faults" in shown.stdout
    assert (tmp_path / "array.yaml").read_text().startswith("saboteur_error_model: 2\n")
    assert "repeats: {positions: 4, channels: 4}" in (tmp_path / "array.yaml").read_text()
    software = (
        ACCELERATOR.replace("n: 300", "n: 90")
        .replace("accelerator", "pytorch")
        .replace(", array: output_stationary, rows: 4, cols: 4", "")
    )
    faults = "{where: outputs, model: {kind: error_model, file: array.yaml}, duration: permanent, layers: [conv*, fc]}"
    software = software.replace("{where: flip_flops, model: bit_flip, duration: transient}", faults)
    (tmp_path / "software.yaml").write_text(software)
    ran = saboteur("run", "software.yaml", "--no-report", "--store", "software")
    assert ran.exit_code == 0, ran.output
    compared = saboteur("levels", "rtl=rtl", "model=software", "--unit", "inferences", "--json")
    assert [row["layer"] for row in json.loads(compared.stdout)["rows"]] == ["array", "all layers"] * 2
    (tmp_path / "software.yaml").write_text(software.replace("duration: permanent", "duration: transient"))
    assert "was not learned from such faults" in saboteur("run", "software.yaml").stderr


def test_only_accelerators_can_be_learned_from(saboteur, toy_file):
    saboteur("run", toy_file(), "--no-report", "--store", "a")
    assert "does not tell what a fault does to the output of a layer" in saboteur("learn", "a", "a.yaml").stderr
