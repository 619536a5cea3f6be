"""Each command: what it prints, what it writes, how it ends."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from saboteur import __version__
from saboteur.campaign import Campaign, Results, Store
from saboteur.cli.source import example_names, read_campaign
from tests.cli.conftest import units


@pytest.fixture
def finished(saboteur, toy_file):
    result = saboteur("run", toy_file(), "--no-report")
    assert result.exit_code == 0, result.stderr
    return Path("runs/toy")


def test_version(saboteur):
    assert saboteur("--version").stdout == f"saboteur {__version__}\n"


def test_help_imports_no_heavy_library():
    script = (
        "import sys\nfrom saboteur.cli import app\n"
        "try:\n    app(['run', '--help'], prog_name='saboteur')\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pyarrow', 'duckdb', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert "SABOTEUR_WORKERS" in found.stdout


def test_reading_a_campaign_imports_no_deep_learning_library(toy_file):
    script = (
        "import sys\nfrom saboteur.cli import app\n"
        "try:\n    app(['init', 'mine'], prog_name='saboteur')\nexcept SystemExit:\n    pass\n"
        "from saboteur.cli.source import read_campaign\nread_campaign('mine.yaml')\nread_campaign('digits-cnn')\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


class TestInit:
    def test_what_it_writes_is_a_campaign(self, saboteur):
        result = saboteur("init", "mine")
        assert (result.exit_code, result.stdout) == (0, "mine.yaml\n")
        campaign = Campaign.from_yaml(Path("mine.yaml"))
        assert campaign.name == "mine"
        assert campaign.target.workload == "digits-cnn"

    def test_an_own_model(self, saboteur):
        assert saboteur("init", "mine", "--model", "net.py:make", "--data", "test.npz").exit_code == 0
        target = Campaign.from_yaml(Path("mine.yaml")).target
        here = Path.cwd()  # the folder of the file, from which its paths are read
        assert (target.workload, target.model, target.data) == (None, f"{here}/net.py:make", f"{here}/test.npz")

    def test_nothing_is_overwritten(self, saboteur):
        Path("mine.yaml").write_text("precious")
        result = saboteur("init", "mine")
        assert result.exit_code == 1
        assert "mine.yaml exists" in result.stderr
        assert Path("mine.yaml").read_text() == "precious"

    def test_model_without_data_is_wrong_usage(self, saboteur):
        assert saboteur("init", "mine", "--model", "net.py:make").exit_code == 2


def test_check_lists_the_population_and_injects_nothing(saboteur, toy_file):
    result = saboteur("check", toy_file(), "--json")
    found = json.loads(result.stdout)
    assert found["population"] == 6 * 5 * 32 + 5 * 4 * 32
    assert [(site["site"], site["faults"]) for site in found["sites"]] == [("a.weight", 960), ("b.weight", 640)]
    assert found["golden"]["inputs"] == 40
    assert 0.8 < found["golden"]["accuracy"] < 1
    assert not Path("runs").exists()
    shown = saboteur("check", "toy.yaml").stdout
    assert "a.weight" in shown
    assert "1,600 single faults" in shown


def test_plan_gives_the_published_formula(saboteur, toy_file):
    sampling = {"kind": "statistical", "stratify": "layer", "margin": 0.1, "margin_for": "stratum", "confidence": 0.95}
    found = json.loads(saboteur("plan", toy_file(sampling=sampling), "--json", "--pilot", "0.05").stdout)
    # Leveugle et al. (2009): N / (1 + e² (N − 1) / (t² p (1 − p))) with N = 960 and 640.
    assert [(s["name"], s["population"], s["n"]) for s in found["strata"]] == [("a", 960, 87), ("b", 640, 84)]
    assert found["n"] == 171
    assert found["inferences"] == 171 * 40
    assert found["forecast"]["seconds"] > 0
    assert json.loads(saboteur("plan", "toy.yaml", "--json", "--pilot", "0").stdout)["forecast"] is None


def test_plan_cuts_long_tables_unless_asked(saboteur, toy_file):
    sampling = {"kind": "fixed", "n": 200, "stratify": "layer_bit"}
    short = saboteur("plan", toy_file(sampling=sampling), "--pilot", "0").stdout
    assert "… and 24 more strata" in short
    assert "b bit 31" not in short
    assert "b bit 31" in saboteur("plan", "toy.yaml", "--pilot", "0", "--all").stdout


class TestRun:
    def test_prints_estimates_on_stdout_and_progress_on_stderr(self, saboteur, toy_file):
        result = saboteur("run", toy_file())
        assert result.exit_code == 0, result.stderr
        assert "accuracy_drop(tolerance=0.05)" in result.stdout
        assert "toy → runs/toy" in result.stderr
        assert (Path("runs/toy") / "report.html").exists()

    def test_json_equals_the_results(self, saboteur, toy_file):
        summary = json.loads(saboteur("run", toy_file(), "--json", "--no-report").stdout)
        with Results.open(Path("runs/toy")) as results:
            for rate in summary["rates"]:
                judge = results.campaign.criterion(rate["criterion"])
                estimate = results.estimate(judge, rate["outcome"], rate["unit"])
                assert (rate["estimate"]["k"], rate["estimate"]["n"]) == (estimate.k, estimate.n)
                assert rate["estimate"]["best"] == estimate.best
        units_met = {(rate["criterion"], rate["unit"]) for rate in summary["rates"]}
        assert ("sdc-1", "faults") in units_met
        assert ("sdc-1", "inferences") in units_met
        assert ("accuracy_drop(tolerance=0.05)", "inferences") not in units_met

    def test_a_finished_campaign_is_not_run_again(self, saboteur, finished):
        before = {path: path.stat().st_mtime_ns for path in (finished / "units").iterdir()}
        again = saboteur("run", "toy.yaml", "--no-report")
        assert again.exit_code == 0
        assert "nothing left to run" in again.stderr
        assert before == {path: path.stat().st_mtime_ns for path in (finished / "units").iterdir()}

    @pytest.mark.parametrize(
        ("at_most", "verdict", "code"), [(0.9, "met", 0), (0.001, "not met", 1), (None, "open", 1)]
    )
    def test_strict_ends_by_the_verdict(self, saboteur, toy_file, finished, at_most, verdict, code):
        with Results.open(finished) as results:
            measured = results.estimate(results.campaign.criteria[0]).best
        campaign = toy_file(requirement={"criterion": "sdc-1", "at_most": at_most or measured})
        shown = json.loads(saboteur("run", campaign, "--no-report", "--json").stdout)
        assert shown["verdict"] == verdict
        low, high = shown["verdict_estimate"]["low"], shown["verdict_estimate"]["high"]
        assert {"met": high <= 0.9, "not met": low > 0.001, "open": low < measured < high}[verdict]
        assert saboteur("run", campaign, "--no-report").exit_code == 0
        assert saboteur("run", campaign, "--no-report", "--strict").exit_code == code
        assert saboteur("run", campaign, "--no-report", SABOTEUR_STRICT="1").exit_code == code

    def test_options_by_environment(self, saboteur, toy_file, finished):
        result = saboteur(
            "run", "toy.yaml", "--no-report", SABOTEUR_STORE="elsewhere", SABOTEUR_WORKERS="2", SABOTEUR_JSON="1"
        )
        assert json.loads(result.stdout)["store"] == "elsewhere"
        assert Store.open(Path("elsewhere")).campaign.resources.workers == 2
        assert units(Path("elsewhere")) == units(finished)

    def test_workers_below_one_are_wrong_usage(self, saboteur, toy_file):
        assert saboteur("run", toy_file(), "--workers", "0").exit_code == 2


def test_report_writes_the_file_the_figures_and_its_data(saboteur, finished):
    result = saboteur("report", finished, "--figures", "figures", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["schema"] == 1
    assert (finished / "report.html").read_text().startswith("<!doctype html>")
    endings = [path.suffix for path in Path("figures").iterdir()]
    assert endings.count(".svg") == endings.count(".pdf") > 3
    assert "accuracy_drop(tolerance=0.05)" in saboteur("report", finished).stdout


def test_status_counts_every_trial_once(saboteur, finished):
    found = json.loads(saboteur("status", finished, "--json").stdout)
    assert found["rounds"] == [{"round": 1, "faults": 200, "done": 200, "units": 13, "finished": 13}]
    assert sum(found["counts"].values()) == 200
    with Results.open(finished) as results:
        assert found["counts"]["sdc"] == results.estimate(results.campaign.question).k
    next((finished / "units").iterdir()).unlink()
    assert json.loads(saboteur("status", finished, "--json").stdout)["rounds"][0]["finished"] == 12
    assert "goes on" in saboteur("status", finished).stdout


def test_replay_agrees_with_the_store(saboteur, finished):
    saboteur("export", finished, "all.parquet")
    rows = pq.read_table("all.parquet").to_pylist()
    row = max(rows, key=lambda row: row["sdc:sdc-1"])
    found = json.loads(saboteur("replay", finished, f"{row['stratum']}:{row['trial']}", "--json").stdout)
    assert found["outcomes"]["sdc-1"] == row["outcome:sdc-1"]
    assert [(fault["site"], fault["index"], fault["bit"]) for fault in found["faults"]] == [
        (row["site"], row["index"], row["bit"])
    ]
    shown = saboteur("replay", finished, f"{row['stratum']}:{row['trial']}").stdout
    assert f"permanent bit_flip in {row['site']}{row['index']}, bit {row['bit']} of float32" in shown
    assert saboteur("replay", finished, "0:99999").exit_code == 1
    assert saboteur("replay", finished, "zero").exit_code == 2


def test_compare_of_a_campaign_with_itself(saboteur, finished):
    found = json.loads(saboteur("compare", finished, finished, "--criterion", "sdc-1", "--json").stdout)
    assert found["paired"] > 150
    assert found["faults"]["best"] == 0
    assert found["p_value"] == 1
    assert "nosuch" in saboteur("compare", finished, finished, "--criterion", "nosuch").stderr


def test_rescore(saboteur, toy_file):
    saboteur("run", toy_file(keep_outputs=True), "--no-report", "--store", "kept")
    result = saboteur("rescore", "kept", "-c", "sdc-1", "-c", "confidence_change(percent=50)", "--out", "new", "--json")
    assert result.exit_code == 0, result.stderr
    rates = {(r["criterion"], r["outcome"], r["unit"]): r["estimate"]["k"] for r in json.loads(result.stdout)["rates"]}
    with Results.open(Path("kept")) as results:
        assert rates["sdc-1", "sdc", "faults"] == results.estimate(results.campaign.criterion("sdc-1")).k
    assert ("confidence_change(percent=50.0)", "sdc", "faults") in rates


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sdc-11", "did you mean 'sdc-1'"),
        ("accuracy_drop(tolerance=2)", "tolerance"),
        ("accuracy_drop(tolerant=1)", "tolerant"),
        ("accuracy_drop(", "must read like"),
    ],
)
def test_rescore_names_what_is_wrong_with_a_criterion(saboteur, finished, text, said):
    result = saboteur("rescore", finished, "-c", text, "--out", "new")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not Path("new").exists()


def test_rescore_needs_raw_outputs(saboteur, finished):
    result = saboteur("rescore", finished, "-c", "sdc-5", "--out", "new")
    assert result.exit_code == 1
    assert "keep_outputs: true" in result.stderr


def test_export_csv_and_parquet_hold_the_same(saboteur, finished):
    assert saboteur("export", finished, "all.csv").stdout == "all.csv: 200 trials\n"
    saboteur("export", finished, "all.parquet")
    table = pq.read_table("all.parquet")
    with Path("all.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["trial"]) for row in rows] == table["trial"].to_pylist()
    assert [row["outcome:sdc-1"] for row in rows] == table["outcome:sdc-1"].to_pylist()
    assert saboteur("export", finished, "all.xlsx").exit_code == 1
    assert [path.name for path in Path().glob(".*part")] == []


def test_planned_faults_run_as_a_list(saboteur, toy_file, finished):
    assert saboteur("faults", "toy.yaml", "planned.csv").stdout == "planned.csv: 200 faults\n"
    assert saboteur("faults", finished, "made.csv").stdout == "made.csv: 200 faults\n"
    assert Path("planned.csv").read_bytes() == Path("made.csv").read_bytes()
    listed = toy_file("list.yaml", "listed", sampling={"kind": "list", "path": "planned.csv"})
    assert saboteur("run", listed, "--no-report").exit_code == 0
    found = json.loads(saboteur("compare", finished, "runs/listed", "--json").stdout)
    assert (found["paired"], found["only_a"], found["only_b"]) == (200, 0, 0)


def test_list_names_every_part_and_where_it_comes_from(saboteur):
    found = json.loads(saboteur("list", "--json").stdout)
    assert {"digits-cnn", "digits-mlp6", "digits-lenet7"} <= {row["name"] for row in found["workloads"]}
    assert {row["name"] for row in found["fault_models"]} >= {"bit_flip", "stuck_at", "dead", "noise"}
    assert all(row["from"].startswith("saboteur ") for row in found["criteria"])
    assert list(json.loads(saboteur("list", "formats", "--json").stdout)) == ["formats"]
    wrong = saboteur("list", "format")
    assert wrong.exit_code == 2
    assert "formats" in wrong.stderr


def test_schema_describes_the_campaign(saboteur):
    schema = json.loads(saboteur("schema").stdout)
    assert {"target", "faults", "sampling", "criteria"} <= set(schema["properties"])


def test_doctor(saboteur):
    found = json.loads(saboteur("doctor", "--json").stdout)
    assert found["saboteur"] == __version__
    assert found["disk_free_gb"] > 0


@pytest.mark.parametrize("name", example_names())
def test_examples_are_campaigns(name):
    campaign = read_campaign(name)
    assert campaign.name == name
    assert campaign.description
    assert campaign.requirement is not None
