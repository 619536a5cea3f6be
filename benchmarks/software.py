"""The software level's engines against inject–forward–restore, and against PyTorchFI where it can be imported.

Faults are single bit flips; the network is ResNet-20 on CIFAR-10 test images where the shared data lies beside the
checkout, else the embedded ``digits-cnn``. Rates are faulty inferences per CPU second (1 thread) or per second
(2 threads); engine and baseline are timed in turns within one run, with 1 thread the best of three. Every trial
that the plain engine runs is compared with the fast engine's verdicts.

Where the exact engine's time goes (profile of 500 weight faults × 128 images drawn layer first, one thread): about 70 %
in the convolutions of the suffixes; the rest in measuring deviations and deciding, calls made again the plain way, the
start of trials, gathering and book-keeping. What the fault-free pass costs is paid once a chunk.

Tried and dropped: bounds from gates that cannot switch (a factor of about two, in the last block only); multipliers
for each channel (up to two, for 40 s of descent); batches of 2 or 8 MB (within 4 %). Convolutions in bfloat16 take half
the time, but the passes over each map that deviations would then need were estimated to cost as much, and not built.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from examples import resnet20
from torch import Tensor, nn

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.faults import BitFlip
from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software.engine.stages import LayerStage
from saboteur.levels.software.spec import EngineName, SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.criteria import Sdc1
from saboteur.outcomes.recorder import Recorder

Row = dict[str, object]
T = TypeVar("T")

_IMAGES = 128
_TRIALS = 1000
_PLAIN_TRIALS = 24
_ROUNDS = 3
_BATCH = 64


def weights(full: bool = False) -> list[Row]:
    """The exact engine on faults in weights: uniform over weights × bits, and drawn layer first."""
    rows = _rates("software.weights", "weights", "exact", "network", 1, full)
    rows += _rates("software.weights", "weights", "exact", "layer", 1, full)
    return rows + _rates("software.weights", "weights", "exact", "network", 2, full)


def weights_audited(full: bool = False) -> list[Row]:
    """The screened engine on faults in weights, its audit included."""
    return _rates("software.weights_audited", "weights", "screened", "network", 1, full)


def activations(full: bool = False) -> list[Row]:
    """Both engines on faults in layer outputs, uniform over values × bits."""
    rows = _rates("software.activations", "activations", "exact", "network", 1, full)
    return rows + _rates("software.activations", "activations", "screened", "network", 1, full)


def other_trials(full: bool = False) -> list[Row]:
    """The exact engine on trials that do not begin in one channel: each kind against the plain engine."""
    rows = []
    for name, (settings, spec, faults_a_trial) in _KINDS.items():
        workload = workloads.load(name.split()[0]) if name.startswith("digits") else None
        model, images, labels = _workload() if workload is None else (workload.model, workload.inputs, workload.labels)
        trials = (96 if workload is None else 480) * (10 if full else 1)
        resources = Resources(threads=1, batch_size=_BATCH)
        names: tuple[EngineName, EngineName] = ("exact", "plain")
        fast, plain = (SoftwareTarget(model, images, labels, engine=n, resources=resources, **settings) for n in names)
        space = plain.space([SoftwareFault(**spec)])
        faults = _drawn(space, "network", trials * faults_a_trial)
        faults = Faults(
            faults.key[::faults_a_trial],
            np.repeat(np.arange(trials), faults_a_trial),
            *(faults.region, faults.element, faults.step, faults.variant),
        )
        rows.append(_compared(f"exact engine, {name}", fast, plain, space, faults))
    return rows


_KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "2 faults in weights": ({}, dict(where="weights", model=BitFlip()), 2),
    "8 faults in weights": ({}, dict(where="weights", model=BitFlip()), 8),
    "2 faults in activations": ({}, dict(where="activations", model=BitFlip()), 2),
    "intermittent faults in weights": (
        {},
        dict(where="weights", model=BitFlip(), duration="intermittent", activity=0.5),
        1,
    ),
    "connections": ({}, dict(where="connections", model=BitFlip()), 1),
    "channels of activations": ({}, dict(where="activations", model=BitFlip(), granularity="channel"), 1),
    "layers of activations": ({}, dict(where="activations", model=BitFlip(), granularity="layer"), 1),
    "weights, int8 emulated": (
        dict(weights_format="int8", activations_format="int8"),
        dict(where="weights", model=BitFlip()),
        1,
    ),
    "activations, int8 emulated": (dict(activations_format="int8"), dict(where="activations", model=BitFlip()), 1),
    "digits-cnn-int8 weights": ({}, dict(where="weights", model=BitFlip()), 1),
    "digits-cnn-int8 activations": ({}, dict(where="activations", model=BitFlip()), 1),
    "digits-lstm parameters": ({}, dict(where="parameters", model=BitFlip()), 1),
    "digits-lstm hidden states": ({}, dict(where="hidden_state", model=BitFlip(), duration="transient"), 1),
}


def _compared(name: str, fast: SoftwareTarget, plain: SoftwareTarget, space: FaultSpace, faults: Faults) -> Row:
    golden = plain.golden()
    some = faults.take(np.linspace(0, faults.trials - 1, faults.trials // 8).astype(np.int64))

    def rate(target: SoftwareTarget, chosen: Faults) -> tuple[float, Recorder]:
        recorder = Recorder(golden, [Sdc1()], chosen.trials)
        seconds, _ = _timed(time.process_time, lambda: target.inject(space, chosen, recorder))
        return chosen.trials * golden.inputs / seconds, recorder

    rate(fast, faults.take([0]))
    rates = [(rate(fast, faults)[0], rate(plain, some)[0]) for _ in range(2)]
    if _differing(rate(fast, some)[1], rate(plain, some)[1]):
        raise AssertionError(f"{name}: verdicts differ from those of the plain engine")
    value, baseline = (max(column) for column in zip(*rates, strict=True))
    return _row("software.other_trials", name, value, "inferences/CPU s", baseline)


def _rates(benchmark: str, where: str, engine: EngineName, by: str, threads: int, full: bool) -> list[Row]:
    trials = _TRIALS * (10 if full else 1) // (1 if threads == 1 else 10)
    model, images, labels = _workload()
    resources = Resources(threads=threads, batch_size=_BATCH)
    names: tuple[EngineName, EngineName] = (engine, "plain")
    fast, plain = (SoftwareTarget(model, images, labels, engine=name, resources=resources) for name in names)
    golden = plain.golden()
    space = plain.space([SoftwareFault(where=where, model=BitFlip())])
    faults = _drawn(space, by, trials)
    some = faults.take(np.linspace(0, trials - 1, _PLAIN_TRIALS // threads**2).astype(np.int64))

    def run(target: SoftwareTarget, chosen: Faults) -> Recorder:
        recorder = Recorder(golden, [Sdc1()], chosen.trials)
        target.inject(space, chosen, recorder)
        return recorder

    clock = time.process_time if threads == 1 else time.perf_counter
    opening, _ = _timed(time.perf_counter, lambda: run(fast, faults.take([0])))
    run(fast, faults)
    rate, plain_rate = 0.0, 0.0
    for _ in range(_ROUNDS if threads == 1 else 1):
        seconds, _ = _timed(clock, lambda: run(fast, faults))
        rate = max(rate, faults.trials * golden.inputs / seconds)
        seconds, recorder = _timed(clock, lambda: run(plain, some))
        plain_rate = max(plain_rate, some.trials * golden.inputs / seconds)
    label = f"{engine} engine, {where}, {'layer first' if by == 'layer' else 'uniform'}, {threads} thread(s)"
    unit = "inferences/CPU s" if threads == 1 else "inferences/s"
    rows = [_row(benchmark, f"{label}: against the plain engine", rate, unit, plain_rate)]
    peer = _pytorchfi(model, images, where, space, some, threads, clock) if by == "network" else None
    if peer is not None:
        rows.append(_row(benchmark, f"{label}: against PyTorchFI", rate, unit, peer))
    differ = _differing(run(fast, some), recorder)
    rows.append(_row(benchmark, f"{label}: trials with other verdicts", differ, f"of {some.trials}", some.trials))
    if threads == 1:
        with _counted() as spent:
            run(fast, faults)
        share = spent[0] / (faults.trials * golden.inputs * _macs(model, images[:1]))
        rows.append(_row(benchmark, f"{label}: multiply–accumulates spent on suffixes", share, "of full runs", 1.0))
        rows.append(_row(benchmark, f"{label}: opening and first fault-free pass", opening, "s"))
    return rows


def _workload() -> tuple[nn.Module, Tensor, Tensor]:
    if resnet20.DATA.is_dir():
        return resnet20.model(), *(part[:_IMAGES] for part in resnet20.data())
    workload = workloads.load("digits-cnn")
    return workload.model, workload.inputs[:_IMAGES], workload.labels[:_IMAGES]


def _drawn(space: FaultSpace, by: str, trials: int) -> Faults:
    rng = np.random.default_rng(2024)
    strata = space.strata(by)
    which = rng.integers(0, len(strata), trials)
    columns = [np.zeros(trials, np.int64) for _ in range(4)]
    for number, stratum in enumerate(strata):
        chosen = np.flatnonzero(which == number)
        for column, part in zip(
            columns, space.decode(stratum, rng.integers(0, stratum.size, len(chosen))), strict=True
        ):
            column[chosen] = part
    region, element, step, variant = columns
    key = rng.integers(0, 2**63, trials).astype(np.uint64)
    return Faults(key, np.arange(trials), region.astype(np.int32), element, step.astype(np.int32), variant)


def _timed(clock: Callable[[], float], action: Callable[[], T]) -> tuple[float, T]:
    begin = clock()
    result = action()
    return clock() - begin, result


def _differing(fast: Recorder, plain: Recorder) -> int:
    tables = [recorder.table() for recorder in (fast, plain)]
    names = [name for name in tables[0].column_names if name.startswith("sdc:") or name in ("nonfinite", "correct")]
    columns = [np.array([table[name].to_numpy() for name in names]) for table in tables]
    return int((columns[0] != columns[1]).any(axis=0).sum())


def _macs(model: nn.Module, image: Tensor) -> int:
    """The multiply–accumulates of one inference in convolutions and linear layers."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    handles = [
        module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        model(image)
    for handle in handles:
        handle.remove()
    return total


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Counts the multiply–accumulates of the layer stages that are run in this context."""
    spent, run = [0], LayerStage.run

    def counting(stage: LayerStage, *args: Tensor, **options: bool) -> Tensor:
        result = run(stage, *args, **options)
        spent[0] += result.numel() * stage.mixing.weight[0].numel()
        return result

    LayerStage.run = counting
    try:
        yield spent
    finally:
        LayerStage.run = run


def _pytorchfi(
    model: nn.Module,
    images: Tensor,
    where: str,
    space: FaultSpace,
    faults: Faults,
    threads: int,
    clock: Callable[[], float],
) -> float | None:
    """Faulty inferences a second of PyTorchFI on the same faults in convolutions; ``None`` where it is missing."""
    try:
        core = importlib.import_module("pytorchfi.core")
    except ImportError:
        return None
    convolutions = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    sites = [space.regions[i].layer for i in faults.region]
    chosen = [i for i, site in enumerate(sites) if site in convolutions]
    size = _BATCH
    with torch.inference_mode():
        injector = core.fault_injection(model, size, input_shape=list(images.shape[1:]), layer_types=[nn.Conv2d])
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        begin = clock()
        for i in chosen:
            region = space.regions[faults.region[i]]
            place = [[int(part)] for part in np.unravel_index(faults.element[i], region.shape)]
            layer = [convolutions.index(region.layer)]
            if where == "weights":
                dims = dict(zip(("k", "dim1", "dim2", "dim3"), place, strict=True))
                faulty = injector.declare_weight_fi(layer_num=layer, value=[0.5], **dims)
            else:
                dims = {f"dim{axis + 1}": part * size for axis, part in enumerate(place)}
                values = [0.5] * size
                faulty = injector.declare_neuron_fi(
                    batch=list(range(size)), layer_num=layer * size, value=values, **dims
                )
            for first in range(0, len(images), size):
                faulty(images[first : first + size])
                injector.current_layer = 0
        seconds = clock() - begin
        torch.set_num_threads(before)
    return len(chosen) * len(images) / seconds


def _row(benchmark: str, quantity: str, value: float, unit: str, baseline: float | None = None) -> Row:
    ratio = None if baseline is None else value / baseline
    return dict(benchmark=benchmark, quantity=quantity, value=value, unit=unit, baseline=baseline, ratio=ratio)
