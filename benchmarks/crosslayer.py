"""Faults in the hardware of an array, exact to the bit, against plain injection into the software of the network.

The network is ResNet-20 in eight-bit integers where its data are at hand, else an embedded CNN; the array multiplies
8 × 8 output-stationary. Plain injection flips a bit of a weight in software and runs the network on a batch of 64
images, each of which counts as an injection: nothing that injects, runs and restores can be faster. ENFOR-SA (VTS 2026)
reaches 0.94 of it with registers at RTL. All times are CPU seconds of one thread, the ways measured in turns.

Stuck nets of one processing element are simulated through all tiles of a layer, 505 of 512 side by side; a third of the
time is the rest of the network, a third what surrounds the element, an eighth the element itself (``perf``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from examples import resnet20, resnet20_int8
from torch import Tensor, nn

from saboteur import workloads
from saboteur.campaign.target import FaultSpec, Target
from saboteur.faults import BitFlip, Faults, FaultSpace, StuckAt
from saboteur.levels.crosslayer.lowering import lower
from saboteur.levels.crosslayer.spec import AcceleratorFault
from saboteur.levels.crosslayer.target import AcceleratorTarget
from saboteur.levels.hardware import designs
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.criteria import Sdc1
from saboteur.outcomes.recorder import Recorder
from saboteur.testing.targets import draw_faults

Row = dict[str, object]

_IMAGES = 64
_SIZE = 8
_ENFOR_SA = "ENFOR-SA: 0.94"
_NIGHT_IMAGES = 100
_STUCK_NETS = 512

UPSETS = AcceleratorFault(where="flip_flops", model=BitFlip(), duration="transient")
PULSES = AcceleratorFault(where="nets", model=BitFlip(), duration="transient")
STUCK_REGISTERS = AcceleratorFault(where="flip_flops", model=StuckAt())
STUCK_NETS = AcceleratorFault(where="nets", model=StuckAt())
WEIGHTS = SoftwareFault(where="weights", model=BitFlip())


def transient(full: bool = False) -> list[Row]:
    """Register upsets at word level in any cycle of any layer; and stuck registers over whole inferences."""
    name, model, images, labels = _network()
    target = _on_array(model, images, labels, "word")
    count = 20_000 if full else 4000
    space = target.space([UPSETS])
    faults, inputs = draw_faults(space, count), _one_image_each(count)
    ours, plain = _rates(_injecting(target, space, faults, inputs), count, model, images, labels)
    benchmark, where = "crosslayer.transient", f"{name}, {_SIZE}x{_SIZE}"
    rows = [_row(benchmark, f"{where}: register upsets ({_ENFOR_SA})", ours, "injections/s", plain)]
    stages = target.masking(space, faults, inputs)["stage"].to_pylist()
    for stage in ("array", "requantisation", "network"):
        rows.append(_row(benchmark, f"{where}: masked in {stage}", stages.count(stage) / count, "of upsets"))
    few = faults.take(np.arange(60 if full else 12))
    rows.append(
        _row(benchmark, f"{where}: other outputs than plain", _differing(model, images[:1], few), f"of {few.trials}")
    )
    return rows + _stuck(benchmark, where, target, full)


def gate(full: bool = False) -> list[Row]:
    """Upsets, pulses on nets and stuck nets of the gate-level array; baseline is the rate of upsets at word level."""
    name, model, images, labels = _network()
    word, gates = (_on_array(model, images, labels, level) for level in ("word", "gate"))
    count = 8000 if full else 2000
    space, inputs = word.space([UPSETS]), _one_image_each(count)
    upsets = _injecting(word, space, draw_faults(space, count), inputs)
    upsets()
    runs = {}
    for label, spec in (("upsets", UPSETS), ("pulses on nets", PULSES)):
        space = gates.space([spec])
        runs[label] = _injecting(gates, space, draw_faults(space, count), inputs), count
    runs["nets of a PE stuck, one layer"] = _stuck_nets(model, images, labels), _STUCK_NETS
    rows = []
    for label, (run, injections) in runs.items():
        run()
        seconds = [(_seconds(run), _seconds(upsets)) for _ in range(2)]
        ours, reference = (min(column) for column in zip(*seconds, strict=True))
        where = f"{name}, {_SIZE}x{_SIZE}: {label}"
        rows.append(_row("crosslayer.gate", where, injections / ours, "injections/s", count / reference))
    return rows


def _stuck_nets(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Recorder]:
    """Nets of one processing element, stuck through all tiles of the layer in the middle, one image each."""
    calls = lower(model, [images[:1]])
    array, middle = designs.OutputStationary(_SIZE, _SIZE), calls[len(calls) // 2].name
    target = AcceleratorTarget(model, images, labels, array=array, level="gate", layers=[middle])
    space = target.space([STUCK_NETS])
    rng = np.random.default_rng(9)
    nets = space.regions[0].shape[2]
    element = (_SIZE + 1) * nets + rng.integers(0, nets, _STUCK_NETS)
    zero = np.zeros(_STUCK_NETS, np.int32)
    key, variant = np.arange(_STUCK_NETS, dtype=np.uint64), rng.integers(0, 2, _STUCK_NETS)
    faults = Faults(key, np.arange(_STUCK_NETS), zero, element, zero, variant)
    return _injecting(target, space, faults, _one_image_each(_STUCK_NETS))


def _network() -> tuple[str, nn.Module, Tensor, Tensor]:
    if resnet20.DATA.is_dir():
        model, (images, labels) = resnet20_int8.model(), resnet20_int8.data()
        return "ResNet-20 int8", model, images[:_IMAGES], labels[:_IMAGES]
    workload = workloads.load("digits-cnn-int8")
    return workload.name, workload.model, workload.inputs[:_IMAGES], workload.labels[:_IMAGES]


def _on_array(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    level: Literal["word", "gate"],
    engine: Literal["plain", "exact"] = "exact",
) -> AcceleratorTarget:
    array = designs.OutputStationary(_SIZE, _SIZE)
    return AcceleratorTarget(model, images, labels, array=array, level=level, engine=engine)


def _one_image_each(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, _IMAGES, (count, 1))


def _injecting(
    target: Target, space: FaultSpace, faults: Faults, inputs: np.ndarray | None = None
) -> Callable[[], Recorder]:
    golden = target.golden()

    def run() -> Recorder:
        recorder = Recorder(golden, [Sdc1()], faults.trials, inputs)
        target.inject(space, faults, recorder)
        return recorder

    return run


def _seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def _rates(
    run: Callable[[], Recorder], count: int, model: nn.Module, images: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Injections a second: ours, and plain ones in software on the same network."""
    software = SoftwareTarget(model, images, labels, engine="plain")
    specs: list[FaultSpec] = [WEIGHTS]
    space = software.space(specs)
    faults = draw_faults(space, 8)
    plain = _injecting(software, space, faults)
    run(), plain()
    seconds = [(_seconds(run), _seconds(plain)) for _ in range(3)]
    ours, theirs = (min(column) for column in zip(*seconds, strict=True))
    return count / ours, faults.trials * len(images) / theirs


def _differing(model: nn.Module, image: Tensor, faults: Faults) -> int:
    """How many trials have another output than with all tiles of the layer at RTL and the whole network in software."""
    found = []
    for engine in ("exact", "plain"):
        one = _on_array(model, image, torch.zeros(1, dtype=torch.int64), "word", engine)
        recorder = Recorder(one.golden(), [Sdc1()], faults.trials, keep_outputs=True)
        one.inject(one.space([UPSETS]), faults, recorder)
        pairs = recorder.pairs()
        assert pairs is not None
        found.append(dict(zip(pairs["trial"].to_pylist(), pairs["output"].to_pylist(), strict=True)))
    return sum(found[0].get(trial) != found[1].get(trial) for trial in range(faults.trials))


def _stuck(benchmark: str, where: str, target: AcceleratorTarget, full: bool) -> list[Row]:
    """Each bit of each register of each processing element stuck for good, over whole inferences."""
    space = target.space([STUCK_REGISTERS])
    faults = draw_faults(space, 256 if full else 64)
    inputs = np.random.default_rng(8).permuted(np.tile(np.arange(_IMAGES), (faults.trials, 1)), axis=1)[:, :2]
    run = _injecting(target, space, faults, inputs)
    seconds = _seconds(run) / inputs.size
    hours = space.size * _NIGHT_IMAGES * seconds / 3600 / 2
    listed = f"{where}: all {space.size} stuck register bits on {_NIGHT_IMAGES} images, 2 cores"
    return [
        _row(benchmark, f"{where}: stuck registers, whole inferences", 1 / seconds, "injections/s"),
        _row(benchmark, listed, hours, "h (extrapolated)"),
    ]


def _row(benchmark: str, quantity: str, value: float, unit: str, baseline: float | None = None) -> Row:
    ratio = None if baseline is None else value / baseline
    return dict(benchmark=benchmark, quantity=quantity, value=value, unit=unit, baseline=baseline, ratio=ratio)
