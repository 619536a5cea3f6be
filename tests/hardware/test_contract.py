"""Designs pass the contract of a target at both levels."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from saboteur.campaign.target import FaultSpec, Resources, Target
from saboteur.errors import TargetError
from saboteur.faults import BitFlip, RandomValue, StuckAt, StuckValue
from saboteur.levels.hardware.importing import read_verilog
from saboteur.levels.hardware.models import Bridge, Delay, Open
from saboteur.levels.hardware.simulate import Stimulus
from saboteur.levels.hardware.spec import HardwareFault, HardwareTarget
from saboteur.levels.hardware.target import DesignTarget
from saboteur.levels.hardware.testbench import Observation, Observed
from saboteur.testing import TargetContract
from tests.hardware.test_golden import DESIGNS, INPUTS, random_stimulus

EVERYWHERE = [
    HardwareFault(where="flip_flops", model=BitFlip(), duration="transient"),
    HardwareFault(where="flip_flops", model=StuckAt(), duration="intermittent", activity=0.5),
    HardwareFault(where="inputs", model=StuckValue(values=(0.0, 1.0))),
    HardwareFault(where="nets", model=BitFlip(), duration="transient", captured=0.7),
    HardwareFault(where="nets", model=StuckAt()),
    HardwareFault(where="nets", model=Delay()),
    HardwareFault(where="nets", model=Open()),
    HardwareFault(where="pins", model=StuckAt()),
]


class DesignContract(TargetContract):
    name: str
    level = "word"
    ports: tuple[Observed, ...]
    parameters: ClassVar[dict[str, int]] = {}
    memories = False
    trials = 20

    def specs(self) -> list[FaultSpec]:
        words = [HardwareFault(where="memories", model=RandomValue(), duration="transient")]
        words += [HardwareFault(where="memories", model=StuckAt())]
        return EVERYWHERE + words * self.memories

    def _target(self, stimulus: Stimulus) -> Target:
        netlist = read_verilog([DESIGNS / f"{self.name}.v"], self.name, self.level, self.parameters)
        strobe = np.arange(stimulus.cycles) >= 30
        return DesignTarget(netlist, stimulus, Observation(self.ports, strobe=strobe), first_cycle=2)

    def _stimulus(self) -> Stimulus:
        return random_stimulus(self.name, INPUTS[self.name], runs=5)

    def open(self) -> Target:
        return self._target(self._stimulus())

    def open_changed(self) -> Target:
        stimulus = self._stimulus()
        inputs = {port: words.copy() for port, words in stimulus.inputs.items()}
        port = next(port for port in inputs if not port.startswith("rst"))
        inputs[port][0, 40] ^= 1
        return self._target(replace(stimulus, inputs=inputs))


class TestCounter(DesignContract):
    name = "counter"
    ports = (Observed("count"), Observed("wrap"))


class TestArrayWords(DesignContract):
    name = "array"
    parameters: ClassVar[dict[str, int]] = {"N": 2}
    ports = (Observed("c", lanes=4, signed=True),)

    def _stimulus(self) -> Stimulus:
        return random_stimulus(self.name, {"rst": 1, "clear": 2, "en": 2, "a": 16, "b": 16}, runs=5)


class TestFifo(DesignContract):
    name = "fifo"
    memories = True
    ports = (Observed("dout"), Observed("last"), Observed("empty"))

    def _stimulus(self) -> Stimulus:
        stimulus = super()._stimulus()
        inputs = {**stimulus.inputs, "lanes": np.full((5, 60), 3, np.uint64)}
        inputs["push"][:, 2:20] = 1
        return Stimulus(inputs)


class TestArrayGates(DesignContract):
    name = "multiplier"
    level = "gate"
    ports = (Observed("p"), Observed("held"))
    trials = 40

    def specs(self) -> list[FaultSpec]:
        pairs = HardwareFault(where="bridges", neighbours=True, model=Bridge(effect="dominant"))
        neighbours = BitFlip(count=2, adjacent=True)
        return [*EVERYWHERE, pairs, HardwareFault(where="flip_flops", model=neighbours, duration="transient")]


class TestPipeline(TargetContract):
    """A network at register-transfer level, with preloaded memories and an answer of ten words when valid."""

    def _spec(self, **settings: object) -> Target:
        return HardwareTarget(network="digits-cnn-int8", inputs=2, **settings).open(Resources())

    def open(self) -> Target:
        return self._spec()

    def open_changed(self) -> Target:
        return self._spec(pes=4)

    def specs(self) -> list[FaultSpec]:
        return [
            HardwareFault(where="flip_flops", instances="fc.*", model=StuckAt()),
            HardwareFault(where="memories", instances="conv1*", model=BitFlip()),
        ]


@pytest.mark.parametrize("network", ["digits-cnn-int8", "digits-lenet7-int8"])
def test_network_at_register_transfer_level(network: str) -> None:
    from saboteur import workloads
    from saboteur.levels.hardware import designs

    target = HardwareTarget(network=network, inputs=3).open(Resources())
    golden = target.golden()
    expected = designs.build(workloads.load(network), pes=8).expected(range(3))
    assert (golden.outputs == expected).all()
    assert golden.accuracy == 1.0


@pytest.mark.parametrize("level", ["word", "gate"])
@pytest.mark.parametrize("array", ["output_stationary", "weight_stationary"])
def test_shipped_arrays_multiply(array: str, level: str) -> None:
    """The answer of each input is the product of its random tiles, in the order in which it leaves the array."""
    from saboteur.levels.hardware import designs, loading

    sizes = {"rows": 3, "cols": 2, "data_width": 6, "acc_width": 20}
    spec = HardwareTarget(array=array, parameters=sizes, inputs=2, level=level)
    golden = spec.open(Resources()).golden()
    kind = {"output_stationary": designs.OutputStationary, "weight_stationary": designs.WeightStationary}[array]
    a, b = loading.tiles(kind(**sizes), 2)
    expected = kind(**sizes).reference(a, b)
    assert expected.any()
    assert np.sort(golden.outputs).tolist() == np.sort(expected.reshape(2, -1)).tolist()


def test_array_sizes_are_checked() -> None:
    with pytest.raises(TargetError, match=r"parameters: .*'lines'"):
        HardwareTarget(array="output_stationary", parameters={"lines": 3}).open(Resources())
