"""Networks on arrays pass the contract of a target: both engines, both dataflows, both levels."""

from __future__ import annotations

from typing import Literal

import pytest

from saboteur.campaign.target import FaultSpec, Resources, Target
from saboteur.faults import BitFlip, RandomValue, StuckAt
from saboteur.levels.crosslayer.spec import AcceleratorFault, AcceleratorSpec
from saboteur.levels.hardware.models import Delay, Open
from saboteur.testing import TargetContract


class AcceleratorContract(TargetContract):
    workload = "digits-cnn-int8"
    array = "output_stationary"
    level: Literal["word", "gate"] = "word"
    engine: Literal["plain", "exact"] = "exact"
    layers: tuple[str, ...] = ("*",)
    changed: dict[str, object] = {"layers": ("conv*",)}  # noqa: RUF012
    trials = 10

    def _open(self, **changes: object) -> Target:
        settings = {"array": self.array, "rows": 4, "cols": 3, "level": self.level, "engine": self.engine, "inputs": 4}
        settings["layers"] = self.layers
        return AcceleratorSpec.model_validate({"workload": self.workload, **settings, **changes}).open(Resources())

    def open(self) -> Target:
        return self._open()

    def open_changed(self) -> Target:
        return self._open(**self.changed)

    def specs(self) -> list[FaultSpec]:
        return [
            AcceleratorFault(where="flip_flops", model=BitFlip(), duration="transient"),
            AcceleratorFault(where="flip_flops", model=RandomValue(), duration="transient"),
            AcceleratorFault(where="flip_flops", model=StuckAt()),
            AcceleratorFault(where="nets", model=BitFlip(), duration="transient", captured=0.7),
            AcceleratorFault(where="nets", model=Delay()),
            AcceleratorFault(where="pins", model=StuckAt(), duration="intermittent", activity=0.5),
        ]


class TestOutputStationary(AcceleratorContract):
    pass


class TestOutputStationaryPlain(AcceleratorContract):
    engine = "plain"
    trials = 6


class TestWeightStationary(AcceleratorContract):
    array = "weight_stationary"
    changed = {"rows": 3}  # noqa: RUF012


class TestGates(AcceleratorContract):
    workload = "digits-lenet7-int8"
    level = "gate"
    layers = ("fc3",)
    changed = {"layers": ("fc2",)}  # noqa: RUF012

    def specs(self) -> list[FaultSpec]:
        return [
            AcceleratorFault(where="flip_flops", names="acc", model=BitFlip(), duration="transient"),
            AcceleratorFault(where="nets", model=StuckAt()),
            AcceleratorFault(where="nets", model=Open()),
            AcceleratorFault(where="pins", model=StuckAt(), duration="intermittent", activity=0.5),
        ]


class ArchitectureContract(TargetContract):
    architecture: str
    trials = 14

    def _open(self, **changes: object) -> Target:
        settings = {"workload": "digits-cnn-int8", "architecture": self.architecture, "inputs": 4}
        return AcceleratorSpec.model_validate({**settings, **changes}).open(Resources())

    def open(self) -> Target:
        return self._open()

    def open_changed(self) -> Target:
        return self._open(layers=("conv*",))

    def specs(self) -> list[FaultSpec]:
        return [
            AcceleratorFault(where="components", model=BitFlip(), duration="transient"),
            AcceleratorFault(where="components", model=RandomValue(), duration="transient"),
        ]


class TestEyeriss(ArchitectureContract):
    architecture = "eyeriss"


class TestDescribedSystolicArray(ArchitectureContract):
    architecture = "weight_stationary"


pytestmark = pytest.mark.timeout(300)
