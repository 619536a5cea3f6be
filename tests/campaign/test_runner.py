"""Running, resuming, workers: the finished store is the same however it came about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from saboteur.campaign import Campaign, Results, Session, Store, run
from saboteur.campaign import store as store_module
from saboteur.campaign.store import Round
from saboteur.errors import FaultError, StoreError, TargetError

ROOT = Path(__file__).resolve().parents[2]


def units(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / "units").glob("*.parquet"))}


@pytest.fixture
def finished(toy_campaign, tmp_path):
    run(toy_campaign(), tmp_path / "whole")
    return tmp_path / "whole"


def test_every_planned_trial_is_there_once(finished):
    table = pq.read_table(finished / "units")
    assert len(table) == 200
    pairs = set(zip(table["stratum"].to_pylist(), table["trial"].to_pylist(), strict=True))
    with Results.open(finished) as results:
        assert pairs == {(h, i) for h, n in enumerate(results.plan.n.tolist()) for i in range(n)}
        assert results.planned == 200


def test_observations_equal_a_loop_that_flips_the_bit_by_hand(finished, toy_campaign):
    with Session.open(toy_campaign()) as session:
        toy, golden = session.target, session.golden
        for table in Store.open(finished).tables():
            for row in table.to_pylist():
                region = session.space.regions[row["region"]]
                saved = toy.weights[region.layer].copy()
                toy.weights[region.layer].reshape(-1).view(np.uint32)[row["element"]] ^= np.uint32(1 << row["bit"])
                outputs = toy.run()
                toy.weights[region.layer] = saved
                finite = np.isfinite(outputs).all(axis=1)
                assert row["nonfinite"] == (~finite).sum()
                assert row["sdc:sdc-1"] == (outputs.argmax(axis=1) != golden.top1)[finite].sum()
                assert row["correct"] == (outputs.argmax(axis=1) == golden.labels)[finite].sum()
                assert row["identical"] == (outputs == golden.outputs).all(axis=1).sum()


def test_running_again_does_nothing(finished, toy_campaign):
    before = {path: path.stat().st_mtime_ns for path in (finished / "units").iterdir()}
    run(toy_campaign(), finished, lambda progress: pytest.fail("a finished campaign ran again"))
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "units").iterdir()}


def test_missing_and_cut_units_are_run_again_to_the_same_bytes(finished, toy_campaign):
    whole = units(finished)
    names = sorted(whole)
    (finished / "units" / names[0]).unlink()
    cut = finished / "units" / names[3]
    cut.write_bytes(whole[names[3]][: len(whole[names[3]]) // 2])
    (finished / "units" / f".{names[0]}.123.tmp").write_bytes(b"left behind")
    run(toy_campaign(), finished)
    assert units(finished) == whole
    assert (finished / "quarantine" / names[3]).exists()


def test_no_flipped_bit_changes_a_result(finished, toy_campaign, tmp_path):
    """Whatever bit of a unit's file is flipped: it is put aside and run again, or what is read is unharmed."""
    whole = units(finished)
    name = sorted(whole)[2]
    path = finished / "units" / name
    store = Store.open(finished)
    good, _ = store.read_unit(0, 2)
    noticed = 0
    for position in range(0, len(whole[name]), 5):
        damaged = bytearray(whole[name])
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            table, _ = store.read_unit(0, 2)
        except StoreError:
            noticed += 1
        else:
            assert table.equals(good), position
    assert noticed > 500
    path.unlink(missing_ok=True)
    run(toy_campaign(), finished)
    assert units(finished) == whole


def test_a_larger_plan_continues(toy_campaign, finished, tmp_path):
    run(toy_campaign(sampling={"kind": "fixed", "n": 300, "stratify": "layer", "confidence": 0.95}), finished)
    run(toy_campaign(sampling={"kind": "fixed", "n": 300, "stratify": "layer"}), tmp_path / "at once")

    def rows(path: Path) -> list:
        return pq.read_table(path / "units").sort_by([("stratum", "ascending"), ("trial", "ascending")]).to_pylist()

    assert rows(finished) == rows(tmp_path / "at once")


def test_worker_processes_give_the_same_bytes(toy_campaign, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run(toy_campaign(resources={"unit_trials": 16, "workers": 2}), tmp_path / "spread")
    assert units(tmp_path / "spread") == units(finished)


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_and_resume(toy_campaign, finished, tmp_path, monkeypatch, workers):
    """The process (or one of its workers) is killed in mid-campaign by a trial; the second run finishes."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    flag = tmp_path / "kill"
    killed = {"kind": "tests.campaign.toy:ToyTarget", "misbehave": "killed", "kill_flag": str(flag)}
    campaign = toy_campaign(target=killed, resources={"unit_trials": 16, "workers": workers})
    file = tmp_path / "campaign.yaml"
    file.write_text(campaign.to_yaml())
    store = tmp_path / "killed"
    script = (
        "import sys; from pathlib import Path; from saboteur.campaign import *\n"
        "def progress(p):\n"
        f"    if p.done == 64: Path({str(flag)!r}).touch()\n"
        "if __name__ == '__main__':\n"
        "    run(Campaign.from_yaml(Path(sys.argv[1])), Path(sys.argv[2]), progress)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(script)
    command = [sys.executable, str(program), str(file), str(store)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert first.returncode != 0
    assert not flag.exists()
    if workers == 2:
        assert "a worker process died" in first.stderr
    assert 64 <= 16 * len(units(store)) < 200
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert second.returncode == 0, second.stderr
    assert units(store) == units(finished)


def test_a_store_of_another_campaign_is_refused(toy_campaign, finished):
    whole = units(finished)
    with pytest.raises(StoreError, match=r"holds campaign c1-.*, not c1-"):
        run(toy_campaign(seed=5), finished)
    assert units(finished) == whole


def test_a_store_with_another_golden_run_is_refused(toy_campaign, finished):
    path = finished / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"golden_digest": "0" * 16, "environment": {"numpy": "1.0"}}))
    with pytest.raises(StoreError, match=r"another golden run; changed since: \{'numpy': \('1.0'"):
        run(toy_campaign(), finished)


def test_a_folder_of_something_else_is_refused(toy_campaign, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="is not a result store"):
        run(toy_campaign(), tmp_path)
    with pytest.raises(StoreError, match="not a result store"):
        Store.open(tmp_path)


def test_a_full_disk_keeps_what_is_done(toy_campaign, tmp_path, monkeypatch):
    write, left = store_module._write_parquet, [5]

    def filling(table, path):
        left[0] -= 1
        if left[0] < 0:
            path.write_bytes(b"half of")
            raise OSError(28, os.strerror(28))
        write(table, path)

    monkeypatch.setattr(store_module, "_write_parquet", filling)
    with pytest.raises(StoreError, match="No space left on device; what was finished before is kept"):
        run(toy_campaign(), tmp_path / "full")
    assert len(units(tmp_path / "full")) == 4
    assert not list((tmp_path / "full").rglob("*.tmp"))
    monkeypatch.undo()
    run(toy_campaign(), tmp_path / "full")
    run(toy_campaign(), tmp_path / "whole")
    assert units(tmp_path / "full") == units(tmp_path / "whole")


@pytest.mark.parametrize(
    ("misbehave", "message"),
    [
        ("random", "two fault-free runs differ for 40 of 40 inputs"),
        ("nan", "outputs for 1 of 40 inputs hold NaN"),
        ("no_logits", "sdc-1 needs class logits"),
    ],
)
def test_targets_that_cannot_be_assessed(toy_campaign, tmp_path, misbehave, message):
    target = {"kind": "tests.campaign.toy:ToyTarget", "misbehave": misbehave}
    with pytest.raises(TargetError, match=message):
        run(toy_campaign(target=target), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_unknown_layer_and_an_empty_space(toy_campaign, tmp_path):
    with pytest.raises(FaultError, match="no layer 'aa'; did you mean 'a'"):
        run(toy_campaign(faults=[{"model": "bit_flip", "layers": ["aa"]}]), tmp_path / "store")
    with pytest.raises(FaultError, match="empty"):
        run(toy_campaign(faults=[{"model": "bit_flip", "layers": []}]), tmp_path / "store")
    with pytest.raises(FaultError, match=r"bit 32 is outside a 32-bit format, whose bits are 0 \.\. 31"):
        run(toy_campaign(faults=[{"model": {"kind": "bit_flip", "bits": [32]}}]), tmp_path / "store")


def test_a_worker_that_cannot_open_its_target_says_why(toy_campaign, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    campaign: Campaign = toy_campaign(resources={"unit_trials": 16, "workers": 2})
    # The test module is importable here but not in a fresh interpreter elsewhere.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(ROOT))])
    with pytest.raises(Exception, match="tests"):
        run(campaign, tmp_path / "store")


@pytest.mark.parametrize("unit_trials", [1, 7, 16, 1000])
def test_units_partition_a_round(unit_trials):
    step = Round(0, np.array([2, 0, 5, 0]), np.array([10, 0, 6, 40]), unit_trials)
    pieces = [piece for unit in range(step.units) for piece in step.slices(unit)]
    trials = [(h, i) for h, start, stop in pieces for i in range(start, stop)]
    assert trials == [(0, i) for i in range(2, 10)] + [(2, 5)] + [(3, i) for i in range(40)]
    assert all(sum(b - a for _, a, b in step.slices(unit)) <= unit_trials for unit in range(step.units))
