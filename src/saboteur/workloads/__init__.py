"""Small trained networks with their test data, ready to be injected.

Each workload is a digit classifier with the 360 test images it was never trained on. Weights and images ship
with the package, so that loading one needs neither a download nor scikit-learn::

    from saboteur import workloads

    workload = workloads.load("digits-cnn")
    logits = workload.model(workload.inputs)

Importing this package does not import PyTorch; :func:`load` does. ``python -m saboteur.workloads.train``
trains the networks again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from saboteur.errors import TargetError, near

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Workload", "load", "metadata", "names"]

_DATA = resources.files(__name__) / "data"


@dataclass(frozen=True, eq=False, slots=True)
class Workload:
    """A trained network and its labelled test set.

    Attributes:
        name: The name that :func:`load` knows it by.
        model: The network in evaluation mode, on the CPU, with no parameter requiring a gradient. It maps
            ``inputs`` to float32 logits ``[360, 10]``.
        inputs: Test images, float32 in [0, 1]: ``[360, 1, 8, 8]``, or ``[360, 8 rows, 8 values]`` for the
            recurrent networks.
        labels: The digit each image shows, int64 ``[360]``.
        accuracy: Fraction of ``inputs`` that ``model`` classifies correctly, as measured when it was trained.
        description: One sentence on the architecture.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    accuracy: float
    description: str


def names() -> list[str]:
    """Return the names of all workloads, sorted."""
    return sorted(entry.name.removesuffix(".json") for entry in _DATA.iterdir() if entry.name.endswith(".json"))


def metadata(name: str) -> dict[str, Any]:
    """Return how the network called ``name`` was trained: accuracy, seed, versions, hyperparameters.

    Raises:
        TargetError: If there is no workload of that name; the message lists the nearest names.
    """
    known = names()
    if name not in known:
        raise TargetError(f"unknown workload {name!r}{near(name, known)}")
    return json.loads((_DATA / f"{name}.json").read_text(encoding="utf-8"))


def load(name: str) -> Workload:
    """Load the workload called ``name``; every call returns a new model and new tensors.

    Raises:
        TargetError: If there is no workload of that name; the message lists the nearest names.
    """
    record = metadata(name)
    import torch

    from saboteur.workloads import models

    model = models.without_weights(name)
    weights = {key: torch.from_numpy(array) for key, array in _read_arrays(name).items()}
    model.load_state_dict(weights, assign=True)
    test_set = _read_arrays("digits")
    inputs = torch.from_numpy(models.scale_images(test_set["images"])).reshape(-1, *record["input_shape"])
    return Workload(
        name=name,
        model=model.requires_grad_(False).eval(),
        inputs=inputs,
        labels=torch.from_numpy(test_set["labels"].astype(np.int64)),
        accuracy=record["accuracy"],
        description=record["description"],
    )


def _read_arrays(stem: str) -> dict[str, np.ndarray]:
    with (_DATA / f"{stem}.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
