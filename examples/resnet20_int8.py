"""ResNet-20 on CIFAR-10 in eight-bit integers, quantised here from the weights of ``resnet20.py``.

The ranges of the activations are calibrated on every tenth test image: the training set is not among the public files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor, nn

from saboteur.workloads.quantization import quantized

sys.path.insert(0, str(Path(__file__).parent))
import resnet20

CALIBRATION_STEP = 10


def model() -> nn.Module:
    """The quantised network; the same, bit for bit, in every process on one kind of machine."""
    images, _ = data()
    return quantized(resnet20.model(), images[::CALIBRATION_STEP])


def data() -> tuple[Tensor, Tensor]:
    """The test images and their classes, as in ``resnet20.py``."""
    return resnet20.data()
