"""Every kind of PyTorch model passes the contract of a target."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from saboteur import workloads
from saboteur.campaign.target import FaultSpec, Resources, Target
from saboteur.faults import BitFlip, Dead, Noise, RandomValue, StuckAt
from saboteur.levels.software.memory import memories
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.testing import TargetContract
from tests.software import models

EVERYWHERE = [
    SoftwareFault(where="parameters", model=BitFlip()),
    SoftwareFault(where="parameters", model=StuckAt(), duration="intermittent", activity=0.5),
    SoftwareFault(where="activations", model=BitFlip(), duration="transient"),
    SoftwareFault(where="activations", granularity="channel", model=Noise(additive=1.0)),
    SoftwareFault(where="inputs", model=RandomValue()),
]


class SoftwareContract(TargetContract):
    """Adds what the software level promises: no hook is left and no bit of the model changed."""

    inputs: torch.Tensor
    engine = "plain"
    settings: ClassVar[dict] = {}
    changed = "0.weight"

    @staticmethod
    def model() -> nn.Module:
        raise NotImplementedError

    def specs(self) -> list[FaultSpec]:
        return EVERYWHERE

    def _target(self, model: nn.Module) -> Target:
        target = SoftwareTarget(
            model, self.inputs, engine=self.engine, resources=Resources(batch_size=7), **self.settings
        )
        target.given = model
        return target

    def open(self) -> Target:
        return self._target(self.model())

    def open_changed(self) -> Target:
        model = self.model()
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1
        return self._target(model)

    def state(self, target: Target) -> bytes:
        given, used = target.given, target._model
        parts = [target.golden().digest]
        for model in {id(given): given, id(used): used}.values():
            parts += [(path, len(m._forward_hooks), len(m._forward_pre_hooks)) for path, m in model.named_modules()]
            parts += [
                (site.name, id(getattr(site.module, site.tensor)) if site.tensor in site.module._parameters else 0)
                for site in memories(model)
            ]
            parts += [site.words().tobytes() for site in memories(model)]
        return repr(parts).encode()


class TestDigitsCnn(SoftwareContract):
    inputs = workloads.load("digits-cnn").inputs[:20]
    settings: ClassVar[dict] = {"labels": workloads.load("digits-cnn").labels[:20]}

    @staticmethod
    def model() -> nn.Module:
        return workloads.load("digits-cnn").model


class TestConvNet(SoftwareContract):
    inputs = models.numbers(9, 2, 4, 4)

    @staticmethod
    def model() -> nn.Module:
        return models.filled(models.ConvNet())

    def specs(self) -> list[FaultSpec]:
        return [
            *EVERYWHERE,
            SoftwareFault(where="buffers", model=BitFlip()),
            SoftwareFault(where="operators", model=BitFlip(), duration="transient"),
            SoftwareFault(where="operators", granularity="layer", model=Dead()),
            SoftwareFault(where="connections", model=BitFlip(), duration="transient"),
        ]


class TestTwice(SoftwareContract):
    inputs = models.numbers(9, 5)
    model = staticmethod(lambda: models.filled(models.Twice()))


class TestTied(SoftwareContract):
    inputs = models.numbers(9, 5)
    model = staticmethod(lambda: models.filled(models.Tied()))


class TestPruned(SoftwareContract):
    inputs = models.numbers(9, 5)
    model = staticmethod(models.pruned)

    def open_changed(self) -> Target:
        model = self.model()
        with torch.no_grad():
            model[0].weight_orig[0, 0] += 1
            model[0].weight_mask[0, 0] = 1
        return self._target(model)


class TestParametrized(SoftwareContract):
    inputs = models.numbers(9, 5)
    model = staticmethod(models.parametrized)

    def open_changed(self) -> Target:
        model = self.model()
        with torch.no_grad():
            model[0].parametrizations.weight.original[0, 0] += 1
        return self._target(model)


class TestPrunedEmulated(TestPruned):
    settings: ClassVar[dict] = {"weights_format": "int8", "activations_format": "int8"}


class TestParametrizedEmulated(TestParametrized):
    settings: ClassVar[dict] = {"weights_format": "16b_rb10"}


class TestLstm(SoftwareContract):
    inputs = models.numbers(9, 6, 4)
    model = staticmethod(lambda: models.filled(models.Recurrent(nn.LSTM, layers=2)))

    def specs(self) -> list[FaultSpec]:
        return [
            SoftwareFault(where="weights", model=BitFlip()),
            SoftwareFault(where="hidden_state", model=BitFlip(), duration="transient"),
            SoftwareFault(where="cell_state", model=StuckAt()),
            SoftwareFault(where="cell_state", model=BitFlip(), duration="intermittent", activity=0.5),
        ]


class TestGruTimeFirst(TestLstm):
    model = staticmethod(lambda: models.filled(models.Recurrent(nn.GRU, batch_first=False)))

    def specs(self) -> list[FaultSpec]:
        return [
            SoftwareFault(where="activations", model=BitFlip(), duration="transient"),
            SoftwareFault(where="hidden_state", model=BitFlip(), duration="transient"),
            SoftwareFault(where="hidden_state", model=StuckAt()),
        ]


class TestLstmCells(TestLstm):
    model = staticmethod(lambda: models.filled(models.Cells(nn.LSTMCell)))


class TestTokens(SoftwareContract):
    inputs = torch.arange(9 * 6).reshape(9, 6) % 11
    settings: ClassVar[dict] = {"output": "logits"}
    model = staticmethod(lambda: models.filled(models.Tokens()))

    def specs(self) -> list[FaultSpec]:
        return [*EVERYWHERE, SoftwareFault(where="operators", model=BitFlip(), duration="transient")]


class TestInt8(SoftwareContract):
    inputs = workloads.load("digits-cnn-int8").inputs[:20]
    model = staticmethod(lambda: workloads.load("digits-cnn-int8").model)

    def specs(self) -> list[FaultSpec]:
        return [
            SoftwareFault(where="parameters", model=BitFlip()),
            SoftwareFault(where="activations", model=BitFlip(), duration="transient"),
            SoftwareFault(where="activations", granularity="channel", model=Dead(outputs=("high",))),
        ]


class TestQuantized(SoftwareContract):
    inputs = models.numbers(9, 2, 4, 4)
    model = staticmethod(models.quantized)

    def specs(self) -> list[FaultSpec]:
        return EVERYWHERE

    def open_changed(self) -> Target:
        model = self.model()
        weight = model.fc.weight()
        changed = weight.int_repr()
        changed[0, 0] ^= 1
        model.fc.set_weight_bias(
            torch._make_per_channel_quantized_tensor(
                changed, weight.q_per_channel_scales(), weight.q_per_channel_zero_points(), 0
            ),
            model.fc.bias(),
        )
        return self._target(model)


class TestDynamicallyQuantized(SoftwareContract):
    inputs = models.numbers(9, 5)
    model = staticmethod(models.dynamically_quantized)

    def open_changed(self) -> Target:
        model = self.model()
        model[0].set_weight_bias(model[0].weight(), model[0].bias() + 1)
        return self._target(model)


class TestEmulatedInt8(SoftwareContract):
    inputs = models.numbers(9, 2, 4, 4)
    settings: ClassVar[dict] = {"weights_format": "int8", "activations_format": "int8"}
    model = staticmethod(lambda: models.filled(models.ConvNet()))

    def specs(self) -> list[FaultSpec]:
        return [*EVERYWHERE, SoftwareFault(where="connections", model=BitFlip(), duration="transient")]


class TestEmulatedFixedPoint(TestEmulatedInt8):
    settings: ClassVar[dict] = {"weights_format": "32b_rb26", "activations_format": "16b_rb10"}


class TestEmulatedFloat8(TestEmulatedInt8):
    settings: ClassVar[dict] = {"weights_format": "float8_e4m3", "activations_format": "bfloat16"}
