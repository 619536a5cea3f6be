"""ResNet-20 for CIFAR-10 (He et al., CVPR 2016, section 4.2) with parameter-free shortcuts, and its test data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Block(nn.Module):
    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.widens = before != planes

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widens:
            quarter = y.shape[1] // 4
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
        return F.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Block(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(y, y.shape[3]).flatten(1))


def trained(data: Path) -> nn.Module:
    """The network with its published weights, in eval mode."""
    state = torch.load(data / "resnet20-cifar10" / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    model = ResNet20()
    model.load_state_dict({name.removeprefix("module."): values for name, values in state["state_dict"].items()})
    return model.eval()


def test_images(data: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first test images, normalised as the published campaign did, and their classes."""
    with np.load(data / "cifar10" / "cifar10_test.npz") as arrays:
        x, y = arrays["x"][:count], arrays["y"][:count]
    images = torch.from_numpy(x).float() / 255
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, DEVIATION))
    return (images - mean) / deviation, torch.from_numpy(y.astype(np.int64))


test_images.__test__ = False
