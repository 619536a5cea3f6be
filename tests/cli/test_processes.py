"""The command as real processes: killed, interrupted, helped by workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from saboteur.campaign import worker as worker_module
from saboteur.campaign.store import Store
from saboteur.campaign.worker import claim
from tests.cli.conftest import units

N = {"kind": "fixed", "n": 1200, "stratify": "layer"}


@pytest.fixture
def start(tmp_path):
    """Start the command in a process group of its own."""
    running = []

    def call(*arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "saboteur.cli", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
        )
        running.append(process)
        return process

    yield call
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the workers that it left, if any
        process.wait()


def wait_for_files(folder: Path, pattern: str, count: int) -> None:
    until = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < until, f"fewer than {count} files {pattern} in a minute"
        time.sleep(0.005)


def wait_for_units(store: Path, count: int) -> None:
    wait_for_files(store, "units/0*.parquet", count)


def wait_for_end_of_group(group: int) -> None:
    """Worker processes must not outlive the process that was killed."""
    until = time.monotonic() + 30
    with suppress(ProcessLookupError):
        while True:
            os.killpg(group, 0)
            assert time.monotonic() < until, "a worker process was left behind"
            time.sleep(0.05)


@pytest.fixture
def slow_file(toy_file):
    """A campaign whose trials take long enough to be stopped in the middle."""
    return toy_file(sampling=N, target={"kind": "tests.campaign.toy:ToyTarget", "inputs": 4000})


@pytest.fixture
def held_file(toy_file, tmp_path):
    """A campaign of 13 units: each process waits in its first until the file ``hold`` is gone."""
    flag = tmp_path / "hold"
    flag.touch()
    return toy_file(target={"kind": "tests.campaign.toy:ToyTarget", "misbehave": "held", "kill_flag": str(flag)})


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_and_resume_equals_the_uninterrupted_run(start, process, slow_file, tmp_path, workers):
    whole = process("run", slow_file, "--store", "whole", "--no-report")
    assert whole.returncode == 0, whole.stderr
    running = start("run", slow_file, "--store", "killed", "--no-report", "--workers", workers)
    wait_for_units(tmp_path / "killed", 5)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    wait_for_end_of_group(running.pid)
    assert 5 <= len(units(tmp_path / "killed")) < 75
    resumed = process("run", slow_file, "--store", "killed", "--no-report", "--workers", workers)
    assert resumed.returncode == 0, resumed.stderr
    assert units(tmp_path / "killed") == units(tmp_path / "whole")
    assert resumed.stdout == whole.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupt_keeps_the_data_and_ends_with_3(start, process, slow_file, tmp_path, workers):
    running = start("run", slow_file, "--no-report", "--workers", workers)
    wait_for_units(tmp_path / "runs/toy", 5)
    os.killpg(running.pid, signal.SIGINT)  # as the terminal does
    stopped(running)
    kept = units(tmp_path / "runs/toy")
    assert len(kept) >= 5
    assert process("run", slow_file, "--no-report").returncode == 0
    after = units(tmp_path / "runs/toy")
    assert len(after) == 75
    assert {name: after[name] for name in kept} == kept


def interrupt(running: subprocess.Popen) -> None:
    """Press Ctrl-C, and wait until the command says that it waits for its workers."""
    os.killpg(running.pid, signal.SIGINT)
    assert running.stderr is not None
    for line in running.stderr:
        if "workers finish the units that they are at" in line:
            return
    raise AssertionError("the command ended without waiting for its workers")


def stopped(running: subprocess.Popen) -> None:
    """The command has ended as it should after an interrupt, and left nothing running."""
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 3, stderr
    assert stdout == ""
    assert "what was finished is kept" in stderr
    assert "Traceback" not in stderr
    wait_for_end_of_group(running.pid)


def test_an_interrupt_while_the_workers_start(start, process, toy_file, tmp_path, monkeypatch):
    """A worker that is importing its modules does not yet handle signals itself."""
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'spawn_main' in ' '.join(sys.orig_argv):\n"
        f"    open({str(tmp_path)!r} + f'/starting.{os.getpid()}', 'w').close()\n"
        "    time.sleep(0.3)\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path / 'early'}{os.pathsep}{os.environ['PYTHONPATH']}")
        running = start("run", toy_file(), "--no-report", "--workers", 2)
    wait_for_files(tmp_path, "starting.*", 1)
    os.killpg(running.pid, signal.SIGINT)
    stopped(running)
    assert len(units(tmp_path / "runs/toy")) < 13
    assert process("run", toy_file(), "--no-report", "--workers", 2).returncode == 0
    assert len(units(tmp_path / "runs/toy")) == 13


def test_workers_finish_the_units_that_an_interrupt_finds_them_at_and_no_more(start, process, held_file, tmp_path):
    running = start("run", held_file, "--no-report", "--workers", 2)
    wait_for_files(tmp_path, "hold.*", 2)
    interrupt(running)
    (tmp_path / "hold").unlink()
    stopped(running)
    assert sorted(units(tmp_path / "runs/toy")) == ["000-000000.parquet", "000-000001.parquet"]


def test_a_second_interrupt_does_not_wait_for_units(start, process, held_file, tmp_path):
    running = start("run", held_file, "--no-report", "--workers", 2)
    wait_for_files(tmp_path, "hold.*", 2)
    interrupt(running)
    os.killpg(running.pid, signal.SIGINT)
    stopped(running)
    assert units(tmp_path / "runs/toy") == {}


def test_a_reader_that_leaves_is_no_failure_to_speak_of(process, tmp_path):
    command = f"{sys.executable} -m saboteur.cli schema | head -n 1"
    found = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("{\n", "")


class TestWorker:
    def test_it_finishes_a_round_that_was_left(self, start, process, slow_file, tmp_path):
        running = start("run", slow_file, "--no-report")
        wait_for_units(tmp_path / "runs/toy", 5)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        left = 75 - len(units(tmp_path / "runs/toy"))
        assert left > 0
        helpers = [start("worker", "runs/toy", "--wait", "0") for _ in range(2)]
        done = 0
        for helper in helpers:
            stdout, stderr = helper.communicate(timeout=60)
            assert helper.returncode == 0, stderr
            done += int(stdout.split()[0])
        assert done == left  # none twice
        assert list((tmp_path / "runs/toy/claims").iterdir()) == []
        process("run", slow_file, "--store", "whole", "--no-report")
        assert units(tmp_path / "runs/toy") == units(tmp_path / "whole")
        assert "nothing left to run" in process("run", slow_file, "--no-report").stderr

    def test_a_unit_is_claimed_by_one(self, tmp_path):
        with claim(Store(tmp_path), 0, 3) as first, claim(Store(tmp_path), 0, 3) as second:
            assert (first, second) == (True, False)
            with claim(Store(tmp_path), 0, 4) as other:
                assert other
        with claim(Store(tmp_path), 0, 3) as again:
            assert again

    def test_a_claim_whose_holder_died_expires(self, tmp_path):
        path = tmp_path / "claims" / "000-000003"
        path.parent.mkdir()
        path.write_text("a machine 1\n")
        with claim(Store(tmp_path), 0, 3) as fresh:
            assert not fresh
        old = time.time() - 2 * worker_module.EXPIRES_S
        os.utime(path, (old, old))
        with claim(Store(tmp_path), 0, 3) as taken:
            assert taken
        assert list(path.parent.iterdir()) == []

    def test_a_claim_is_renewed_while_it_is_held(self, tmp_path, monkeypatch):
        monkeypatch.setattr(worker_module, "EXPIRES_S", 0.3)
        with claim(Store(tmp_path), 0, 3) as mine:
            assert mine
            time.sleep(1)
            with claim(Store(tmp_path), 0, 3) as other:
                assert not other

    def test_a_worker_with_another_golden_run_is_refused(self, process, toy_file, tmp_path):
        process("run", toy_file(), "--no-report")
        manifest = tmp_path / "runs/toy/manifest.json"
        golden = Store(tmp_path / "runs/toy").manifest["golden_digest"]
        manifest.write_text(manifest.read_text().replace(golden, "0" * 16))
        found = process("worker", "runs/toy", "--wait", "0")
        assert found.returncode == 1
        assert "another golden run" in found.stderr

    def test_it_shares_the_work_of_a_running_campaign(self, start, process, held_file, tmp_path):
        running = start("run", held_file, "--no-report")
        wait_for_files(tmp_path, "hold.*", 1)
        helper = start("worker", "runs/toy", "--wait", "1")
        wait_for_files(tmp_path, "hold.*", 2)  # each is at a unit of its own
        (tmp_path / "hold").unlink()
        stdout, stderr = running.communicate(timeout=60)
        assert running.returncode == 0, stderr
        helped, stderr = helper.communicate(timeout=60)
        assert helper.returncode == 0, stderr
        assert 0 < int(helped.split()[0]) < 13
        alone = process("run", held_file, "--store", "whole", "--no-report")
        assert stdout == alone.stdout
        assert units(tmp_path / "runs/toy") == units(tmp_path / "whole")
