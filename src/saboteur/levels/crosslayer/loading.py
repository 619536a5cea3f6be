"""The network, its data and the array that a campaign file names."""

from __future__ import annotations

from saboteur.campaign.target import Resources
from saboteur.errors import TargetError
from saboteur.levels.crosslayer.architecture import Architecture, shipped
from saboteur.levels.crosslayer.arrays import ArrayAdapter
from saboteur.levels.crosslayer.spec import AcceleratorSpec
from saboteur.levels.crosslayer.target import AcceleratorTarget
from saboteur.levels.hardware import designs
from saboteur.levels.software import loading as software
from saboteur.levels.software.spec import PyTorchTarget
from saboteur.loading import call

_SHIPPED = {"output_stationary": designs.OutputStationary, "weight_stationary": designs.WeightStationary}
_DEFAULT_SIZE = 8
_ADAPTER = [name for name in vars(ArrayAdapter) if not name.startswith("_")]


def load(spec: AcceleratorSpec, resources: Resources) -> AcceleratorTarget:
    """What the campaign file names.

    Raises:
        TargetError: when a file or function is missing or gives something else.
    """
    network = PyTorchTarget(workload=spec.workload, model=spec.model, data=spec.data, inputs=spec.inputs)
    model, tensors, labels = software.load(network)
    return AcceleratorTarget(
        model,
        tensors,
        labels,
        array=load_array(spec),
        level=spec.level,
        layers=spec.layers,
        outputs=spec.outputs,
        output=spec.output,
        engine=spec.engine,
        resources=resources,
    )


def load_array(spec: AcceleratorSpec) -> designs.SystolicArray | ArrayAdapter | Architecture:
    """The array or architecture that a campaign file names.

    Raises:
        TargetError: when its function or file is missing or gives something else.
    """
    if spec.architecture is not None:
        own = spec.architecture.endswith((".yaml", ".yml"))
        return Architecture.read(spec.architecture) if own else shipped(spec.architecture)
    name = spec.array or "output_stationary"
    if name in _SHIPPED:
        return _SHIPPED[name](rows=spec.rows or _DEFAULT_SIZE, cols=spec.cols or _DEFAULT_SIZE)
    array = call("array", name)
    missing = (
        [] if isinstance(array, designs.SystolicArray) else [name for name in _ADAPTER if not hasattr(array, name)]
    )
    if missing:
        raise TargetError(
            f"array: {name} returned a {type(array).__name__} without {', '.join(missing)}; see "
            "saboteur.levels.crosslayer.arrays.ArrayAdapter"
        )
    return array
