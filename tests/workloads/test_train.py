"""The training script reproduces what it shipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from saboteur import workloads

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from saboteur.workloads import train  # noqa: E402

MISCLASSIFIED_MORE_OR_LESS = 4 / 360


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as loaded:
        return dict(loaded)


def assert_same_arrays(first: Path, second: Path) -> None:
    left, right = arrays(first), arrays(second)
    assert left.keys() == right.keys()
    for key, array in left.items():
        np.testing.assert_array_equal(array, right[key], strict=True)


def test_split_is_stratified_disjoint_and_the_shipped_one(tmp_path: Path):
    training, test = train.split_digits()
    assert (len(training.labels), len(test.labels)) == (1437, 360)
    assert len(np.union1d(training.rows, test.rows)) == 1797
    expected = np.bincount(training.labels) * 360 / 1437
    assert np.abs(np.bincount(test.labels) - expected).max() < 1
    train.write_test_set(test, tmp_path)
    assert_same_arrays(tmp_path / "digits.npz", train.DATA / "digits.npz")


@pytest.mark.parametrize("name", train.QUANTIZED_FROM)
def test_quantising_again_gives_the_shipped_int8_network(name: str, tmp_path: Path):
    training, test = train.split_digits()
    record = train.write(name, train.quantize(name, training), test, tmp_path)
    assert record["accuracy"] == workloads.metadata(name)["accuracy"]
    state, shipped = arrays(tmp_path / f"{name}.npz"), arrays(train.DATA / f"{name}.npz")
    for key in state:
        if key.endswith("weight"):
            np.testing.assert_array_equal(state[key], shipped[key], strict=True)


@pytest.mark.slow
def test_training_again_gives_the_shipped_accuracy(tmp_path: Path):
    training, test = train.split_digits()
    record = train.write("digits-lenet7", train.train("digits-lenet7", training), test, tmp_path)
    shipped = workloads.metadata("digits-lenet7")
    if all(record[key] == shipped[key] for key in ("torch", "cpu_capability")):
        assert json.loads((tmp_path / "digits-lenet7.json").read_text()) == shipped
        assert_same_arrays(tmp_path / "digits-lenet7.npz", train.DATA / "digits-lenet7.npz")
    else:
        assert abs(record["accuracy"] - shipped["accuracy"]) <= MISCLASSIFIED_MORE_OR_LESS


def test_unknown_network_is_a_usage_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_status:
        train.main(["digits-cn"])
    assert exit_status.value.code == 2
    assert "unknown network 'digits-cn'; did you mean 'digits-cnn'" in capsys.readouterr().err
