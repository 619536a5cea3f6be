"""The design, the stimulus and what is looked at, as a campaign file names them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import TargetError
from saboteur.faults import draws
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.designs.arrays import RESET_CYCLES
from saboteur.levels.hardware.importing import Netlist, read_design, read_verilog
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import Stimulus
from saboteur.levels.hardware.spec import HardwareTarget, OutputPort
from saboteur.levels.hardware.testbench import Observation, Observed, read_hex, read_stimulus, stimulus_of
from saboteur.levels.hardware.waves import WAVE_FILES
from saboteur.loading import call

_DEFAULT_INPUTS = 4
_TILE_DEPTH = 128
_TILE_SEED = 1


@dataclass(frozen=True)
class Bench:
    """A design on its bench."""

    netlist: Netlist
    stimulus: Stimulus
    observation: Observation
    labels: NDArray[np.int64] | None = None


def load(spec: HardwareTarget) -> Bench:
    """What the campaign file names.

    Raises:
        TargetError: when a file or function is missing or gives something else.
    """
    if spec.network is not None:
        return _network(spec, spec.network)
    if spec.array is not None:
        return _array(spec, spec.array)
    return _own(spec)


def _network(spec: HardwareTarget, name: str) -> Bench:
    from saboteur import workloads

    workload = workloads.load(name)
    count = spec.inputs or _DEFAULT_INPUTS
    pipeline = designs.build(workload, pes=spec.pes)
    if count > len(pipeline.words):
        raise TargetError(f"inputs: {count} asked for, {name} has {len(pipeline.words)}")
    with tempfile.TemporaryDirectory() as folder:
        files = [*designs.sources("layer_engine"), pipeline.write(Path(folder))]
        netlist = read_verilog(files, pipeline.name, spec.level, liberty=spec.liberty)
    runs = [pipeline.stimulus([image], load=False) for image in range(count)]
    inputs = {port: np.stack([run[port] for run in runs]) for port in runs[0]}
    labels = None if workload.labels is None else np.asarray(workload.labels)[:count].astype(np.int64)
    out_of_reset = np.arange(len(runs[0]["rst"])) >= RESET_CYCLES
    observation = Observation((Observed("out_data", signed=True),), "out_valid", out_of_reset, spec.alarms)
    return Bench(netlist, Stimulus(inputs, pipeline.memories()), observation, labels)


def _array(spec: HardwareTarget, name: str) -> Bench:
    kinds = {"output_stationary": designs.OutputStationary, "weight_stationary": designs.WeightStationary}
    sizes = {key.lower(): int(value) for key, value in spec.parameters.items()}
    try:
        array = kinds[name](**sizes)
    except TypeError as error:
        raise TargetError(f"parameters: {error}; {name} has {', '.join(kinds[name]().parameters)}") from error
    netlist = read_verilog(designs.sources(name), name, spec.level, array.parameters, liberty=spec.liberty)
    a, b = tiles(array, spec.inputs or _DEFAULT_INPUTS)
    runs = [array.stimulus(a[t : t + 1], b[t : t + 1]) for t in range(len(a))]
    inputs = {port: np.stack([run[port] for run in runs]) for port in runs[0]}
    _, rows, depth = a.shape
    shape = designs.TileShape(1, rows, depth, array.cols)
    strobe = _due(array, shape, len(runs[0]["rst"]))
    observation = Observation((Observed("south", array.cols, signed=True),), strobe=strobe, alarms=spec.alarms)
    return Bench(netlist, Stimulus(inputs), observation)


def tiles(array: designs.SystolicArray, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The random operands [count, rows, depth] and [count, depth, columns] that a shipped array multiplies."""
    depth = array.rows if isinstance(array, designs.WeightStationary) else _TILE_DEPTH
    shapes = (count, array.rows, depth), (count, depth, array.cols)
    a, b = (_random_integers(_TILE_SEED + k, shape, 1 << (array.data_width - 1)) for k, shape in enumerate(shapes))
    return a, b


def _due(array: designs.SystolicArray, shape: designs.TileShape, cycles: int) -> NDArray[np.bool_]:
    """In which cycles [cycles, columns] an array's results are read: where the driver picks a number up."""
    number = np.arange(1, cycles * array.cols + 1).reshape(cycles, array.cols)
    limit = 1 << (array.acc_width - 1)
    if number.max() >= limit:
        raise TargetError("parameters: too narrow sums to number the cycles of a tile")
    picked = array.result({"south": designs.pack(number, array.acc_width)}, shape)
    return np.isin(number, picked)


def _random_integers(seed: int, shape: tuple[int, ...], limit: int) -> NDArray[np.int64]:
    words = draws.words(seed, np.arange(int(np.prod(shape))))
    return (words % np.uint64(2 * limit)).astype(np.int64).reshape(shape) - limit


def _own(spec: HardwareTarget) -> Bench:
    top = str(spec.top)
    netlist = read_design(spec.sources, top, spec.level, spec.parameters, spec.defines, spec.include, spec.liberty)
    stimulus, labels = _stimulus(str(spec.stimulus), netlist)
    memories = dict(stimulus.memories or {})
    memories |= {name: np.array(read_hex(Path(path)), np.uint64) for name, path in spec.memories.items()}
    if spec.inputs is not None and spec.inputs > stimulus.runs:
        raise TargetError(f"inputs: {spec.inputs} asked for, the stimulus has {stimulus.runs}")
    runs = slice(spec.inputs)
    inputs = {port: values[runs] for port, values in stimulus.inputs.items()}
    memories = {name: words[runs] if words.ndim == 2 else words for name, words in memories.items()}
    ports = (OutputPort(port=port) if isinstance(port, str) else port for port in spec.outputs)
    observed = tuple(Observed(port.port, port.lanes, port.signed) for port in ports)
    strobe = np.arange(stimulus.cycles) >= spec.first_cycle
    observation = Observation(observed, spec.valid, strobe, spec.alarms)
    labels = None if labels is None else np.asarray(labels)[runs].astype(np.int64)
    return Bench(netlist, Stimulus(inputs, memories), observation, labels)


def _stimulus(name: str, netlist: Netlist) -> tuple[Stimulus, NDArray | None]:
    if Path(name).suffix in WAVE_FILES:
        return read_stimulus(Path(name), Design(netlist))
    if Path(name).suffix in (".npz", ".csv"):
        return read_stimulus(Path(name))
    return stimulus_of(call("stimulus", name, "an .npz, .csv, .vcd or .fst file"))
