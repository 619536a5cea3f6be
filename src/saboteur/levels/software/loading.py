"""Models and data that a campaign file names."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saboteur import workloads
from saboteur.errors import TargetError
from saboteur.levels.software.spec import PyTorchTarget
from saboteur.loading import call


def load(spec: PyTorchTarget) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    """The model in eval mode, its inputs and its labels (or ``None``), cut to ``spec.inputs``.

    Raises:
        TargetError: when a file or function is missing or gives something else.
    """
    if spec.workload is not None:
        workload = workloads.load(spec.workload)
        model, inputs, labels = workload.model, workload.inputs, workload.labels
    else:
        model = call("model", str(spec.model))
        if not isinstance(model, nn.Module):
            raise TargetError(f"model: {spec.model} returned a {type(model).__name__}, not a torch.nn.Module")
        inputs, labels = _data(str(spec.data))
    tensors = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    tensors = tuple(_tensor(spec, tensor) for tensor in tensors)
    if spec.inputs is not None:
        if any(len(tensor) < spec.inputs for tensor in tensors):
            raise TargetError(f"inputs: {spec.inputs} asked for, the data has {len(tensors[0])}")
        tensors = tuple(tensor[: spec.inputs] for tensor in tensors)
        labels = None if labels is None else labels[: spec.inputs]
    return model.eval(), tensors, labels


def _tensor(spec: PyTorchTarget, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(f"data: {spec.data} holds inputs that are no tensor: {error}") from error


def _data(name: str) -> tuple[Any, Any]:
    if name.endswith(".npz"):
        return _npz(Path(name))
    pair = call("data", name, "an .npz file")
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise TargetError(f"data: {name} returned a {type(pair).__name__}; it must return (inputs, labels)")
    return pair[0], pair[1]


def _npz(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "x" not in arrays:
                raise TargetError(f"data: {path} has no array 'x'; it has {', '.join(arrays) or 'none'}")
            return arrays["x"], arrays.get("y")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TargetError(f"data: cannot read {path}: {error}") from error
