"""Opening a target: models, data, layers, formats, and what is said when something does not fit."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from saboteur import workloads
from saboteur.campaign.target import FaultSpec, Resources
from saboteur.errors import FaultError, TargetError
from saboteur.faults import Affine, BitFlip, StuckAt
from saboteur.levels.software.spec import PyTorchTarget, SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from tests.software import models

X = models.numbers(6, 5)


def sites(target: SoftwareTarget, **spec: object) -> list[str]:
    return [region.site for region in target.space([SoftwareFault(model=BitFlip(), **spec)]).regions]


def refused(match: str, kind: type = TargetError) -> object:
    return pytest.raises(kind, match=match)


class TestModels:
    def test_training_mode(self) -> None:
        with refused(r"training mode; call model\.eval\(\)"):
            SoftwareTarget(models.mlp().train(), X)

    def test_not_a_module(self) -> None:
        with refused("model: a function is not a torch.nn.Module"):
            SoftwareTarget(lambda x: x, X)

    def test_another_device(self) -> None:
        with refused(r"0\.weight is on cpu, the campaign on meta; move the model with model\.to\('meta'\)"):
            SoftwareTarget(models.mlp(), X, resources=Resources(device="meta"))

    @pytest.mark.parametrize("device", ["warp", "xpu:7"])
    def test_no_such_device(self, device: str) -> None:
        with refused(f"device: '{device}' cannot be used here: "):
            SoftwareTarget(models.mlp(), X, resources=Resources(device=device))
        with refused(f"device: '{device}' cannot be used here: "):
            PyTorchTarget(workload="digits-cnn").open(Resources(device=device))

    def test_failing_fault_free(self) -> None:
        with refused("fails without any fault: RuntimeError: mat1 and mat2"):
            SoftwareTarget(models.mlp(), models.numbers(6, 4))

    def test_random_numbers(self) -> None:
        class Drops(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.dropout(x, 0.5)

        with refused("two fault-free runs on the same inputs differ; it draws random numbers"):
            SoftwareTarget(Drops().eval(), X).golden()

    def test_nan(self) -> None:
        model = models.mlp()
        with torch.no_grad():
            model[2].bias[0] = float("nan")
        with refused("outputs for 6 of 6 inputs hold NaN"):
            SoftwareTarget(model, X).golden()


class TestOutputs:
    class Returns(nn.Module):
        def __init__(self, shape_of: object) -> None:
            super().__init__()
            self.fc, self.shape_of = nn.Linear(5, 3), shape_of

        def forward(self, x: Tensor) -> object:
            return self.shape_of(self.fc(x))

    def target(self, shape_of: object, output: int | str | None = None) -> SoftwareTarget:
        return SoftwareTarget(self.Returns(shape_of).eval(), X, output=output)

    def test_mapping(self) -> None:
        with refused("returns a mapping with the keys 'logits', 'loss'; say which element"):
            self.target(lambda y: {"logits": y, "loss": 0})
        assert self.target(lambda y: {"logits": y}, "logits").golden().outputs.shape == (6, 3)

    def test_tuple(self) -> None:
        with refused("returns a tuple of 2; say which element"):
            self.target(lambda y: (y, y))
        assert self.target(lambda y: (0, y), 1).golden().outputs.shape == (6, 3)

    def test_missing_element(self) -> None:
        with refused("returns a tuple of 2, which has no element 2"):
            self.target(lambda y: (y, y), 2)
        with refused("a mapping with the keys 'a', which has no element 'logits'"):
            self.target(lambda y: {"a": y}, "logits")

    def test_no_tensor(self) -> None:
        with refused("returns a str; say which element"):
            self.target(lambda _: "yes")

    def test_no_batch_axis(self) -> None:
        with refused(r"shape \[\] for 6 inputs; the first axis must tell the inputs apart"):
            self.target(lambda y: y.sum())


class TestData:
    def test_label_count(self) -> None:
        with refused(r"labels: int64 of shape \[5\] for 6 inputs"):
            SoftwareTarget(models.mlp(), X, torch.zeros(5, dtype=torch.int64))

    def test_label_type(self) -> None:
        with refused("labels: float64 of shape"):
            SoftwareTarget(models.mlp(), X, [0.5] * 6)

    def test_inputs_of_different_length(self) -> None:
        with refused("several with as many inputs each"):
            SoftwareTarget(models.mlp(), (X, X[:3]))

    def test_no_inputs(self) -> None:
        with refused("at least one input"):
            SoftwareTarget(models.mlp(), X[:0])


class TestSpaces:
    target = SoftwareTarget(models.filled(models.ConvNet()), models.numbers(5, 2, 4, 4))

    def test_names(self) -> None:
        assert sites(self.target, where="weights") == ["conv1.weight", "conv2.weight", "fc.weight"]
        assert sites(self.target, where="biases") == ["bn1.bias", "conv2.bias", "fc.bias"]
        assert sites(self.target, where="buffers") == ["bn1.running_mean", "bn1.running_var"]
        assert sites(self.target, where="parameters") == [
            *("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "conv2.bias", "fc.weight", "fc.bias")
        ]
        assert sites(self.target, where="connections") == ["conv1:connection", "conv2:connection", "fc:connection"]
        assert sites(self.target, where="weights", layers="conv*") == ["conv1.weight", "conv2.weight"]
        assert sites(self.target, where="weights", layers=("fc", "conv?")) == [
            *("conv1.weight", "conv2.weight", "fc.weight")
        ]
        assert sites(self.target, where="weights", layer_types="Linear") == ["fc.weight"]
        assert sites(self.target, where="parameters", layer_types=("BatchNorm2d",)) == ["bn1.weight", "bn1.bias"]

    def test_components_and_layers(self) -> None:
        specs = [
            SoftwareFault(where=w, model=BitFlip())
            for w in ("parameters", "buffers", "activations", "operators", "inputs", "connections")
        ]
        found = {(r.site, r.layer, r.component) for r in self.target.space(specs).regions}
        assert {
            ("bn1.weight", "bn1", "weight"),
            ("fc.bias", "fc", "bias"),
            ("bn1.running_var", "bn1", "buffer"),
            ("conv1:output", "conv1", "activation"),
            ("add#0", "(model)", "operator"),
            ("input", "input", "input"),
            ("fc:connection", "fc", "connection"),
        } <= found

    def test_a_site_described_twice_counts_once(self) -> None:
        once = self.target.space([SoftwareFault(where="parameters", model=BitFlip())])
        twice = self.target.space(
            [SoftwareFault(where=w, model=BitFlip()) for w in ("parameters", "weights", "biases")]
        )
        assert once == twice
        other = self.target.space([SoftwareFault(where="weights", model=m) for m in (BitFlip(), StuckAt())])
        assert len(other.regions) == 6

    def test_tied_weights_count_once(self) -> None:
        assert sites(SoftwareTarget(models.filled(models.Tied()), X), where="weights") == ["a.weight"]

    def test_parameters_of_the_outermost_module(self) -> None:
        class Scale(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1, 5))

            def forward(self, x: Tensor) -> Tensor:
                return torch.relu(x * self.weight)

        target = SoftwareTarget(Scale().eval(), X, outputs="values")
        assert sites(target, where="weights") == ["weight"]
        assert sites(target, where="activations") == ["(model):output"]
        assert sites(target, where="operators") == ["mul#0", "relu#0"]

    def test_no_activations_at_all(self) -> None:
        with refused("the model has no operators that faults can hit", FaultError):
            sites(SoftwareTarget(models.mlp(), X), where="operators")

    def test_unknown_layer(self) -> None:
        with refused("layers: no layer matches 'conv3'; did you mean 'conv", FaultError):
            sites(self.target, where="weights", layers="conv3")

    def test_layer_without_such_sites(self) -> None:
        with refused("layers: 'relu' has no weights; layers that have: conv1, conv2, fc", FaultError):
            sites(self.target, where="weights", layers="relu")

    def test_unknown_layer_type(self) -> None:
        with refused("layer_types: none of the layers with weights is a 'Conv3d'; did you mean 'Conv2d'", FaultError):
            sites(self.target, where="weights", layer_types="Conv3d")

    def test_bit_outside_the_format(self) -> None:
        with refused("bit 32 is outside a", FaultError):
            self.target.space([SoftwareFault(where="weights", model=BitFlip(bits=(32,)))])

    def test_nothing_to_hit(self) -> None:
        with refused("the model has no hidden_state that faults can hit", FaultError):
            sites(self.target, where="hidden_state")

    def test_another_levels_fault(self) -> None:
        with refused("a FaultSpec is not a fault of the software level", FaultError):
            self.target.space([FaultSpec(model=BitFlip())])

    def test_bidirectional(self) -> None:
        model = nn.Sequential(nn.LSTM(4, 5, bidirectional=True, batch_first=True)).eval()
        target = SoftwareTarget(model, models.numbers(3, 6, 4), output=0, outputs="values")
        with refused("the cell_state of 0 cannot be hit: it is bidirectional"):
            sites(target, where="cell_state")
        assert sites(target, where="activations") == ["0:output"]

    def test_outputs_without_a_batch_axis_are_listed(self) -> None:
        class Mixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.total, self.name = nn.Linear(5, 3), Total(), Name()

            def forward(self, x: Tensor) -> Tensor:
                self.name(x)
                return self.fc(x) + 0 * self.total(x)

        class Total(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.sum().nan_to_num() * 0

        class Name(nn.Module):
            def forward(self, x: Tensor) -> str:
                return "x"

        target = SoftwareTarget(Mixed().eval(), X)
        assert sites(target, where="activations") == ["fc:output"]
        assert "no axis that tells the inputs apart" in target.skipped["total"]
        assert target.skipped["name"] == "its output is a str, not a tensor"

    def test_nothing_but_outputs_without_a_batch_axis(self) -> None:
        class Total(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.sum()

        class Adds(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.total = Total()

            def forward(self, x: Tensor) -> Tensor:
                return x + 0 * self.total(x)

        target = SoftwareTarget(Adds().eval(), X[:1], outputs="values")
        with refused(r"has no activations that faults can hit; total: its output of shape \[\] for 2", FaultError):
            sites(target, where="activations")

    def test_compiled_modules_hold_stored_values_only(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.script(models.mlp())
        target = SoftwareTarget(model, X)
        assert sites(target, where="weights") == ["0.weight", "2.weight"]
        with refused("model: 0 is compiled by torch.jit, so that only stored values can be hit"):
            sites(target, where="activations")

    def test_no_stored_value(self) -> None:
        space = self.target.space([SoftwareFault(where="inputs", model=BitFlip())])
        with refused("input: holds no stored value"):
            self.target.stored(space.regions[0])

    def test_input_outside_the_workload(self) -> None:
        from saboteur.testing import draw_faults

        space = self.target.space([SoftwareFault(where="inputs", model=BitFlip())])
        with refused(re.escape("input: 5 is outside 0 .. 4")):
            self.target.trace(space, draw_faults(space, 1), 5)


class TestFormats:
    def test_per_channel_and_per_tensor(self) -> None:
        model = models.mlp()
        weight = model[0].weight.detach().double().numpy()
        for per_channel in (True, False):
            target = SoftwareTarget(model, X, weights_format="int8", per_channel=per_channel)
            (region, _) = target.space([SoftwareFault(where="weights", model=BitFlip())]).regions
            words, fmt = target.stored(region)
            largest = np.abs(weight).max(axis=1 if per_channel else None)
            assert isinstance(fmt, Affine)
            np.testing.assert_allclose(np.broadcast_to(fmt.scale, 20)[::5], np.broadcast_to(largest / 127, 4))
            assert np.abs(fmt.decode(words) - weight.ravel()).max() <= largest.max() / 127 / 2
            used = target._model[0].weight.detach().double().numpy().ravel()
            np.testing.assert_allclose(used, fmt.decode(words), rtol=1e-6)

    def test_transposed_convolutions_have_their_channels_second(self) -> None:
        model = models.filled(nn.Sequential(nn.ConvTranspose2d(2, 3, 2)))
        target = SoftwareTarget(model, models.numbers(2, 2, 3, 3), outputs="values", weights_format="int8")
        (region,) = target.space([SoftwareFault(where="weights", model=BitFlip())]).regions
        assert region.format.scale.shape == (3,)
        words, fmt = target.stored(region)
        largest = np.abs(fmt.decode(words)).reshape(2, 3, 4).max(axis=(0, 2))
        np.testing.assert_allclose(largest, region.format.scale * 127)

    def test_the_users_model_is_left_alone(self) -> None:
        model = models.pruned()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        golden = model(X)
        SoftwareTarget(model, X, weights_format="16b_rb10", activations_format="int8").golden()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(model(X), golden)

    def test_formats_that_change_nothing(self) -> None:
        plain = SoftwareTarget(models.mlp(), X)
        same = SoftwareTarget(models.mlp(), X, weights_format="float32", activations_format="float32")
        assert same.golden().digest == plain.golden().digest
        assert same.fingerprint != plain.fingerprint

    def test_no_weights_to_emulate(self) -> None:
        with refused("weights_format: the model has no floating-point weights to hold in int8"):
            SoftwareTarget(nn.Sequential(nn.ReLU()).eval(), X, weights_format="int8")

    def test_unknown_format(self) -> None:
        with refused("format: unknown 'int9'", FaultError):
            SoftwareTarget(models.mlp(), X, weights_format="int9")

    def test_accuracy_survives_int8(self) -> None:
        workload = workloads.load("digits-cnn")
        target = SoftwareTarget(
            workload.model, workload.inputs, workload.labels, weights_format="int8", activations_format="int8"
        )
        assert target.golden().accuracy > workload.accuracy - 0.02


class TestFingerprints:
    def test_everything_that_decides_answers_counts(self) -> None:
        labels = torch.zeros(6, dtype=torch.int64)
        model = models.mlp()
        prints = {
            SoftwareTarget(models.mlp(), X, labels).fingerprint,
            SoftwareTarget(models.mlp(), X + 1, labels).fingerprint,
            SoftwareTarget(models.mlp(), X, labels + 1).fingerprint,
            SoftwareTarget(models.mlp(), X).fingerprint,
            SoftwareTarget(models.mlp(), X, labels, outputs="values").fingerprint,
            SoftwareTarget(models.mlp(), X, labels, activations_format="int8").fingerprint,
            SoftwareTarget(models.mlp().double(), X.double(), labels).fingerprint,
            SoftwareTarget(nn.Sequential(model[0], nn.Tanh(), model[2]).eval(), X, labels).fingerprint,
        }
        assert len(prints) == 8
        assert SoftwareTarget(models.mlp(), X, labels, resources=Resources(batch_size=2)).fingerprint in prints


USER_FILE = """
import torch
from pydantic import ValidationError
from torch import nn

def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 3))

def data():
    return torch.ones(4, 5), torch.tensor([0, 1, 2, 0])

def numpy_data():
    import numpy as np
    return np.ones((4, 5), np.float32), None

def wrong():
    return 3

def fails():
    raise OSError("no disk")
"""


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "mine.py").write_text(USER_FILE)
        np.savez(tmp_path / "data.npz", x=np.ones((4, 5), np.float32), y=np.array([0, 1, 2, 0], np.uint8))
        np.savez(tmp_path / "unlabelled.npz", x=np.ones((4, 5), np.float32))
        np.savez(tmp_path / "wrong.npz", images=np.ones((4, 5)))
        (tmp_path / "cut.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:100])
        return tmp_path

    def open(self, folder: Path, model: str = "mine.py:network", data: str = "mine.py:data", **more: object):
        return PyTorchTarget(model=model, data=data, **more).located(folder).open(Resources())

    def test_workload(self) -> None:
        golden = PyTorchTarget(workload="digits-cnn", inputs=100).open(Resources()).golden()
        assert golden.inputs == 100 and golden.accuracy > 0.97

    def test_every_workload_has_its_accuracy(self) -> None:
        for name in workloads.names():
            golden = PyTorchTarget(workload=name).open(Resources()).golden()
            assert golden.accuracy == pytest.approx(workloads.metadata(name)["accuracy"])

    @pytest.mark.parametrize("data", ["mine.py:data", "mine.py:numpy_data", "data.npz", "unlabelled.npz"])
    def test_files(self, folder: Path, data: str) -> None:
        golden = self.open(folder, data=data).golden()
        assert golden.outputs.shape == (4, 3)
        labelled = data in ("mine.py:data", "data.npz")
        assert (None if golden.labels is None else golden.labels.tolist()) == ([0, 1, 2, 0] if labelled else None)

    def test_the_first_inputs(self, folder: Path) -> None:
        golden = self.open(folder, inputs=3).golden()
        assert (golden.inputs, golden.labels.tolist()) == (3, [0, 1, 2])
        with refused("inputs: 5 asked for, the data has 4"):
            self.open(folder, inputs=5)

    def test_module(self) -> None:
        target = PyTorchTarget(model="tests.software.models:mlp", data="tests.software.test_target:five_inputs")
        assert target.open(Resources()).golden().outputs.shape == (5, 3)

    @pytest.mark.parametrize(
        ("model", "data", "message"),
        [
            ("absent.py:network", "data.npz", "model: there is no file"),
            ("mine.py:netwerk", "data.npz", "has no function 'netwerk'; did you mean 'network'"),
            ("mine.py:wrong", "data.npz", "returned a int, not a torch.nn.Module"),
            ("mine.py:fails", "data.npz", "mine.py:fails failed: OSError: no disk"),
            ("no.such.module:f", "data.npz", "model: cannot import 'no.such.module'"),
            ("network", "data.npz", "model: 'network' must be 'package.module:function' or"),
            ("mine.py:network", "wrong.npz", "has no array 'x'; it has images"),
            ("mine.py:network", "cut.npz", "data: cannot read"),
            ("mine.py:network", "absent.npz", "data: cannot read"),
            ("mine.py:network", "mine.py:wrong", "returned a int; it must return"),
        ],
    )
    def test_what_is_missing(self, folder: Path, model: str, data: str, message: str) -> None:
        with refused(message):
            self.open(folder, model, data)


def five_inputs() -> tuple[Tensor, None]:
    return models.numbers(5, 5), None


def test_a_model_that_needs_the_cycle_before_is_refused() -> None:
    with pytest.raises(ValidationError, match="delay needs the value of the cycle before"):
        SoftwareFault.model_validate({"where": "weights", "model": "delay"})
