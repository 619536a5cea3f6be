"""Every error that a user can act on: exit code 1 and one clear line on stderr, nothing lost."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import units

TOY = "tests.campaign.toy:ToyTarget"


def one_line(result) -> str:
    """The error line, of which there is exactly one."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error ")]
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"faults": [{"model": "bit_flip", "layers": ["bb"]}]}, ["layers", "'bb'", "'b'"]),
        ({"faults": [{"model": {"kind": "bit_flip", "bits": [32]}}]}, ["bits", "bit 32 is outside", "0 .. 31"]),
        ({"faults": [{"model": "bit_flop"}]}, ["faults.0.model", "'bit_flop'", "did you mean 'bit_flip'"]),
        ({"faults": [{"model": "bit_flip", "layers": []}]}, ["faults", "empty"]),
        ({"target": {"kind": TOY, "misbehave": "random"}}, ["golden run", "two fault-free runs differ", "eval()"]),
        ({"target": {"kind": TOY, "misbehave": "nan"}}, ["golden run", "1 of 40", "NaN"]),
        ({"target": {"kind": TOY, "misbehave": "no_logits"}}, ["criteria", "sdc-1", "needs class logits", "values"]),
        ({"target": {"kind": "pytorhc"}}, ["target", "'pytorhc'", "'pytorch'"]),
        ({"target": {"kind": TOY, "inptus": 3}}, ["target", "inptus"]),
        ({"criteria": ["sdc-2"]}, ["criteria.0", "'sdc-2'"]),
        ({"requirement": {"criterion": "sdc-5", "at_most": 0.1}}, ["requirement.criterion", "'sdc-5'", "sdc-1"]),
        ({"sampling": {"kind": "fixed", "n": 2000}}, ["sampling.n", "2000", "1600", "exhaustive"]),
        ({"sampling": {"kind": "list", "path": "nowhere.csv"}}, ["fault list", "nowhere.csv"]),
        ({"seed": "1e3"}, ["seed", "1e3"]),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_campaign_that_cannot_be_run(saboteur, toy_file, command, changes, said):
    if command == "check" and changes.get("sampling"):
        command = "plan"
    line = one_line(saboteur(command, toy_file(**changes)))
    for part in said:
        assert part in line


def test_duplicate_keys(saboteur, toy_file):
    path = Path(toy_file())
    path.write_text(path.read_text() + "seed: 1\nseed: 2\n")
    line = one_line(saboteur("check", path))
    assert 'duplicate key "seed"' in line
    assert "toy.yaml" in line
    assert "line" in line


def test_no_such_campaign_or_store(saboteur):
    assert "did you mean 'digits-cnn'" in one_line(saboteur("run", "digit-cnn"))
    assert "is a folder" in one_line(saboteur("run", "."))
    for command in ("status", "report", "worker"):
        assert "not a result store" in one_line(saboteur(command, "nowhere"))


def test_a_folder_of_something_else_is_left_alone(saboteur, toy_file):
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("precious")
    assert "not a result store" in one_line(saboteur("run", toy_file(), "--store", "mine"))
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.tex"]


def test_the_store_of_another_campaign(saboteur, toy_file):
    assert saboteur("run", toy_file(), "--no-report").exit_code == 0
    before = units(Path("runs/toy"))
    line = one_line(saboteur("run", toy_file(seed=1), "--no-report"))
    assert "runs/toy holds campaign c1-" in line
    assert "another folder" in line
    assert units(Path("runs/toy")) == before


def test_a_cut_file_is_put_aside_and_run_again(saboteur, toy_file):
    saboteur("run", toy_file(), "--no-report")
    whole = units(Path("runs/toy"))
    cut = Path("runs/toy/units/000-000005.parquet")
    cut.write_bytes(whole[cut.name][:300])
    assert saboteur("run", "toy.yaml", "--no-report").exit_code == 0
    assert units(Path("runs/toy")) == whole
    assert cut.name in saboteur("status", "runs/toy").stdout


def test_a_full_disk_loses_nothing(saboteur, toy_file, monkeypatch):
    saboteur("run", toy_file(), "--no-report", "--store", "whole")
    written, write = [], pq.write_table

    def fill(table, path, **options):
        written.append(path)
        if len(written) == 8:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path, **options)

    with monkeypatch.context() as full:
        full.setattr(pq, "write_table", fill)
        line = one_line(saboteur("run", "toy.yaml", "--no-report"))
    assert "No space left on device" in line
    assert "the same command goes on" in line
    assert len(units(Path("runs/toy"))) == 6  # the first write is the golden run
    assert saboteur("run", "toy.yaml", "--no-report").exit_code == 0
    assert units(Path("runs/toy")) == units(Path("whole"))


def test_invalid_trials_are_shown_and_in_no_denominator(saboteur, toy_file):
    result = saboteur("run", toy_file(target={"kind": TOY, "misbehave": "invalid"}), "--no-report")
    assert result.exit_code == 0
    invalid = int(next(line for line in result.stdout.splitlines() if line.startswith("invalid")).split()[1])
    assert invalid > 0
    n = {
        int(line.split()[-1].replace(",", ""))
        for line in result.stdout.splitlines()
        if " faults " in line and "%" in line
    }
    assert n == {200 - invalid}
