"""ResNet-20 on CIFAR-10, as an example of bringing one's own network: a model function and a data function.

The network is that of He et al. (CVPR 2016, section 4.2) with parameter-free shortcuts (option A). Its weights are
the public checkpoint ``resnet20-12fca82f.th`` (akamaster/pytorch_resnet_cifar10); the images are the CIFAR-10 test
set as ``cifar10_test.npz`` with ``x`` uint8 [10000, 3, 32, 32] and ``y`` uint8 [10000]. Where these files lie is
told by the environment variable ``RESNET20_DATA``; by default, in a folder ``shared/data`` beside the checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

DATA = Path(os.environ.get("RESNET20_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut that pads missing channels with zeros."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels_in, height, width] to [n, channels, height / stride, width / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(y + x)


class ResNet20(nn.Module):
    """Three stages of three blocks with 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10] of normalised images [n, 3, 32, 32]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.avg_pool2d(x, x.shape[3]).flatten(1))


def model() -> nn.Module:
    """The trained network."""
    checkpoint = torch.load(DATA / "resnet20-cifar10" / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    network = ResNet20()
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in checkpoint["state_dict"].items()})
    return network.eval()


def data() -> tuple[Tensor, Tensor]:
    """The test images, normalised as the public fault-injection campaign did, and their classes."""
    with np.load(DATA / "cifar10" / "cifar10_test.npz") as file:
        images, labels = torch.from_numpy(file["x"]), torch.from_numpy(file["y"].astype(np.int64))
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std, labels
