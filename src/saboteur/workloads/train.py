"""Train the shipped networks and write their weights, metadata and test set.

Run as ``python -m saboteur.workloads.train [NAME ...]`` (needs the ``train`` extra for scikit-learn); without
a name, all networks are trained. Runs with the same PyTorch version on the same kind of CPU give the same
weights, bit for bit: every random draw comes from one seeded generator, on one thread.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur import workloads
from saboteur.errors import near
from saboteur.workloads import models
from saboteur.workloads.quantization import quantize_statically

DATA = Path(__file__).parent / "data"
IMAGE_SHAPE = (1, 8, 8)
ROWS_SHAPE = (8, 8)
TEST_IMAGES = 360
SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one network is trained: Adam with decoupled weight decay and a cosine learning rate.

    Attributes:
        description: One sentence on the architecture, kept in the metadata.
        input_shape: Shape of one input.
        epochs: Passes over the training images.
        batch_size: Images a step.
        learning_rate: The highest learning rate; it falls to zero along half a cosine.
        weight_decay: Decoupled weight decay (Loshchilov and Hutter, ICLR 2019).
        shifted_fraction: Fraction of the images that each epoch moves by −1, 0 or 1 pixel along each axis.
        seed: Seed of the one generator that draws initial weights, the order of images and their shifts.
    """

    description: str
    input_shape: tuple[int, ...] = IMAGE_SHAPE
    epochs: int = 80
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    shifted_fraction: float = 0.5
    seed: int = 0


RECIPES = {
    "digits-cnn": Recipe("CNN: two 3×3 convolutions with ReLU, max pooling, one fully connected layer."),
    "digits-mlp6": Recipe("Multilayer perceptron: six fully connected layers with ReLU between them.", batch_size=16),
    "digits-lenet7": Recipe("LeNet-style CNN: conv, pool, conv, pool and three fully connected layers."),
    "digits-gru": Recipe(
        "GRU of 32 units that reads an image row by row, then a fully connected layer.",
        ROWS_SHAPE,
        batch_size=16,
    ),
    "digits-lstm": Recipe(
        "LSTM of 32 units that reads an image row by row, then a fully connected layer.",
        ROWS_SHAPE,
        batch_size=16,
    ),
}

QUANTIZED_FROM = {f"{name}-int8": name for name in ("digits-cnn", "digits-mlp6", "digits-lenet7")}


@dataclass(frozen=True, slots=True)
class Split:
    """Images ``uint8 [n, 8, 8]`` (0..16), labels ``uint8 [n]`` and their rows in scikit-learn's digits."""

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    def tensors(self, input_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the network's float32 inputs ``[n, *input_shape]`` and int64 labels ``[n]``."""
        inputs = torch.from_numpy(models.scale_images(self.images)).reshape(-1, *input_shape)
        return inputs, torch.from_numpy(self.labels.astype(np.int64))


def split_digits() -> tuple[Split, Split]:
    """Return the fixed, stratified split of scikit-learn's digits: 1,437 training and 360 test images."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    train_rows, test_rows = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=SPLIT_SEED
    )
    train_rows, test_rows = np.sort(train_rows), np.sort(test_rows)
    return (
        Split(images[train_rows], labels[train_rows], train_rows),
        Split(images[test_rows], labels[test_rows], test_rows),
    )


def train(name: str, training: Split) -> nn.Module:
    """Train the network called ``name`` on one thread and return it in evaluation mode."""
    recipe = RECIPES[name]
    generator = torch.Generator().manual_seed(recipe.seed)
    model = models.without_weights(name).to_empty(device="cpu")
    _initialise(model, generator)
    images, labels = training.tensors(IMAGE_SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    with _one_thread():
        for _ in range(recipe.epochs):
            shifted = _shift(images, recipe.shifted_fraction, generator)
            inputs = shifted.reshape(-1, *recipe.input_shape)
            for batch in torch.randperm(len(labels), generator=generator).split(recipe.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
            schedule.step()
    return model.requires_grad_(False).eval()


def quantize(name: str, training: Split) -> nn.Module:
    """Return the int8 network called ``name``, quantised from its shipped float network.

    The training images calibrate the ranges of the activations.
    """
    source = workloads.load(QUANTIZED_FROM[name])
    model = models.ARCHITECTURES[name]()
    calibration_inputs, _ = training.tensors(source.inputs.shape[1:])
    with _one_thread():
        quantize_statically(model, source.model, calibration_inputs)
    return model.eval()


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the fraction of ``inputs [n, ...]`` whose largest logit is at the label ``[n]``."""
    with torch.inference_mode(), _one_thread():
        return (model(inputs).argmax(dim=1) == labels).sum().item() / len(labels)


def write(name: str, model: nn.Module, test: Split, folder: Path = DATA) -> dict[str, Any]:
    """Write the weights to ``NAME.npz`` and the metadata to ``NAME.json``; return the metadata."""
    if name in QUANTIZED_FROM:
        source = QUANTIZED_FROM[name]
        origin: dict[str, Any] = {
            "description": f"{source} after post-training quantisation to int8, computed in integers.",
            "input_shape": RECIPES[source].input_shape,
            "quantized_from": source,
        }
    else:
        origin = {**asdict(RECIPES[name]), "optimizer": "AdamW, cosine annealing"}
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    np.savez_compressed(folder / f"{name}.npz", **state)
    record = {
        "name": name,
        "accuracy": accuracy(model, *test.tensors(origin["input_shape"])),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **origin,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "scikit_learn": sklearn.__version__,
    }
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def write_test_set(test: Split, folder: Path = DATA) -> None:
    """Write the test images, labels and rows to ``digits.npz``."""
    np.savez_compressed(folder / "digits.npz", images=test.images, labels=test.labels, rows=test.rows.astype(np.uint16))


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter from U(−1/√fan_in, 1/√fan_in), PyTorch's own default for these layers."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            fan_in = module.hidden_size
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
        else:
            continue
        bound = 1 / math.sqrt(fan_in)
        for parameter in module.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)


def _shift(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Move a random fraction of images ``[n, 1, 8, 8]`` by −1, 0 or 1 pixel along each axis; fill with 0."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 3, (count, 2), generator=generator)
    offsets[torch.rand(count, generator=generator) >= fraction] = 1
    rows = offsets[:, 0, None, None] + torch.arange(height)[:, None]
    columns = offsets[:, 1, None, None] + torch.arange(width)
    padded = F.pad(images, (1, 1, 1, 1)).squeeze(1)
    return padded[torch.arange(count)[:, None, None], rows, columns].unsqueeze(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread, so that sums are always added in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the networks named on the command line and write them into the package."""
    known = [*RECIPES, *QUANTIZED_FROM]
    parser = argparse.ArgumentParser(prog="python -m saboteur.workloads.train", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(known)}; default: all")
    chosen = parser.parse_args(arguments).names or known
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown network {unknown[0]!r}{near(unknown[0], known)}")
    training, test = split_digits()
    write_test_set(test)
    for name in sorted(chosen, key=known.index):
        model = train(name, training) if name in RECIPES else quantize(name, training)
        record = write(name, model, test)
        print(f"{name}: accuracy {record['accuracy']:.4f}, {record['parameters']} parameters")


if __name__ == "__main__":
    main()
