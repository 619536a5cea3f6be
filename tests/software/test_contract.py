"""Every kind of PyTorch model passes the contract of a target."""

from __future__ import annotations

import torch
from torch import nn

from saboteur import workloads
from saboteur.campaign.target import FaultSpec, Resources, Target
from saboteur.faults import BitFlip, Noise, RandomValue, StuckAt
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.testing import TargetContract


class SoftwareContract(TargetContract):
    """Adds what the software level promises: no hook is left and no bit of the model changed."""

    def model(self) -> nn.Module:
        raise NotImplementedError

    def inputs(self) -> torch.Tensor:
        raise NotImplementedError

    def settings(self) -> dict:
        return {}

    def _target(self, model: nn.Module) -> Target:
        return SoftwareTarget(model, self.inputs(), resources=Resources(batch_size=7), **self.settings())

    def open(self) -> Target:
        return self._target(self.model())

    def open_changed(self) -> Target:
        model = self.model()
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1
        return self._target(model)

    def state(self, target: Target) -> bytes:
        hooks = [(path, len(m._forward_hooks), len(m._forward_pre_hooks)) for path, m in target._model.named_modules()]
        words = b"".join(site.words().tobytes() for site in target._memories.values())
        tensors = repr([(name, id(value)) for name, value in target._model.state_dict(keep_vars=True).items()])
        return repr(hooks).encode() + words + tensors.encode() + target.golden().digest.encode()


class TestDigitsCnn(SoftwareContract):
    def model(self) -> nn.Module:
        return workloads.load("digits-cnn").model

    def inputs(self) -> torch.Tensor:
        return workloads.load("digits-cnn").inputs[:20]

    def specs(self) -> list[FaultSpec]:
        return [
            SoftwareFault(where="weights", model=BitFlip()),
            SoftwareFault(where="biases", model=StuckAt(), duration="intermittent", activity=0.5),
            SoftwareFault(where="activations", model=BitFlip(), duration="transient"),
            SoftwareFault(where="activations", granularity="channel", model=Noise(additive=1.0)),
            SoftwareFault(where="inputs", model=RandomValue()),
        ]
