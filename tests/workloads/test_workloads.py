"""The shipped networks are what their metadata says they are."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

from saboteur import workloads
from saboteur.errors import TargetError

torch = pytest.importorskip("torch")

MAX_PACKAGE_BYTES = 2_000_000


@pytest.fixture(params=workloads.names())
def workload(request: pytest.FixtureRequest) -> workloads.Workload:
    return workloads.load(request.param)


def test_stored_accuracy_is_the_accuracy(workload: workloads.Workload):
    with torch.inference_mode():
        logits = workload.model(workload.inputs)
    assert logits.shape == (360, 10)
    assert logits.dtype == torch.float32
    correct = int((logits.argmax(dim=1) == workload.labels).sum())
    assert correct / 360 == workload.accuracy


def test_model_is_ready_for_inference_and_repeatable(workload: workloads.Workload):
    assert not any(module.training for module in workload.model.modules())
    assert not any(parameter.requires_grad for parameter in workload.model.parameters())
    with torch.inference_mode():
        assert torch.equal(workload.model(workload.inputs), workload.model(workload.inputs))


def test_inputs_and_labels_have_the_documented_form(workload: workloads.Workload):
    recurrent = workload.name in {"digits-gru", "digits-lstm"}
    assert workload.inputs.shape == ((360, 8, 8) if recurrent else (360, 1, 8, 8))
    assert workload.inputs.dtype == torch.float32
    assert (workload.inputs.min(), workload.inputs.max()) == (0, 1)
    assert workload.labels.shape == (360,)
    assert workload.labels.dtype == torch.int64
    assert torch.bincount(workload.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]


@pytest.mark.parametrize("name", ["digits-cnn", "digits-mlp6", "digits-lenet7", "digits-gru", "digits-lstm"])
def test_networks_reach_the_accuracy_they_are_shipped_for(name: str):
    assert workloads.metadata(name)["accuracy"] >= (0.97 if name == "digits-cnn" else 0.95)


def test_loading_neither_draws_random_numbers_nor_shares_state():
    state = torch.get_rng_state()
    first = workloads.load("digits-cnn")
    assert torch.equal(torch.get_rng_state(), state)
    first.model.conv1.weight.fill_(0)
    assert workloads.load("digits-cnn").model.conv1.weight.abs().max() > 0


def test_unknown_name_is_refused_with_the_nearest_names():
    with pytest.raises(TargetError, match=r"unknown workload 'digit-cnn'; did you mean 'digits-cnn'"):
        workloads.load("digit-cnn")
    with pytest.raises(TargetError, match=r"unknown workload '\?'; known: .*digits-mlp6"):
        workloads.metadata("?")


def test_package_data_is_small_and_holds_no_pickle():
    sizes = 0
    for entry in (resources.files("saboteur.workloads") / "data").iterdir():
        sizes += len(entry.read_bytes())
        if entry.name.endswith(".npz"):
            with entry.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                assert all(array.dtype.kind in "iuf" for array in arrays.values())
    assert 0 < sizes <= MAX_PACKAGE_BYTES


def test_importing_the_package_does_not_import_torch():
    program = "import sys, saboteur.workloads as w; w.metadata('digits-cnn'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_test_set_is_the_stated_rows_of_scikit_learn_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    with (resources.files("saboteur.workloads") / "data" / "digits.npz").open("rb") as file:
        shipped = dict(np.load(file, allow_pickle=False))
    assert shipped["images"].dtype == shipped["labels"].dtype == np.uint8
    assert len(np.unique(shipped["rows"])) == 360
    np.testing.assert_array_equal(shipped["images"], digits.images[shipped["rows"]])
    np.testing.assert_array_equal(shipped["labels"], digits.target[shipped["rows"]])
    np.testing.assert_array_equal(workloads.load("digits-cnn").inputs.squeeze(1) * 16, shipped["images"])
