"""The architectures of the networks that ship with the package.

All of them classify the 8×8 grey-level handwritten digits of scikit-learn (the test set of Alpaydin and
Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998) into ten classes
and return logits of shape ``[batch, 10]``. None of them draws a random number in its forward pass.
The integer networks have 256 values for a logit, so that two logits of an image may be equal; ``torch.argmax``
takes the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.workloads.int8 import Dequantize, Int8Conv2d, Int8Linear, Int8MaxPool2d, Quantize

CLASSES = 10


class DigitsCNN(nn.Module):
    """Two convolutions, one max pooling and one fully connected layer; images ``[batch, 1, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 16, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(16 * 4 * 4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, 10]`` for images ``[batch, 1, 8, 8]``."""
        features = self.relu1(self.conv1(images))
        features = self.pool(self.relu2(self.conv2(features)))
        return self.fc(self.flatten(features))


class DigitsMLP6(nn.Module):
    """Six fully connected layers with ReLU between them; images ``[batch, 1, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(64, 64)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(64, 48)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(48, 48)
        self.relu3 = nn.ReLU()
        self.fc4 = nn.Linear(48, 32)
        self.relu4 = nn.ReLU()
        self.fc5 = nn.Linear(32, 32)
        self.relu5 = nn.ReLU()
        self.fc6 = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, 10]`` for images ``[batch, 1, 8, 8]``."""
        features = self.relu1(self.fc1(self.flatten(images)))
        features = self.relu2(self.fc2(features))
        features = self.relu3(self.fc3(features))
        features = self.relu4(self.fc4(features))
        features = self.relu5(self.fc5(features))
        return self.fc6(features)


class DigitsLeNet7(nn.Module):
    """LeNet-style: convolution, pooling, convolution, pooling, three fully connected layers.

    The seven layers are those of LeNet-5 (LeCun et al., *Proc. IEEE* 86(11), 1998) scaled to 8×8 images.
    ReLU and pooling are functional calls, so that they are operators without a module of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(16 * 2 * 2, 60)
        self.fc2 = nn.Linear(60, 42)
        self.fc3 = nn.Linear(42, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, 10]`` for images ``[batch, 1, 8, 8]``."""
        features = F.max_pool2d(F.relu(self.conv1(images)), 2)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2)
        features = torch.flatten(features, start_dim=1)
        features = F.relu(self.fc1(features))
        features = F.relu(self.fc2(features))
        return self.fc3(features)


class DigitsGRU(nn.Module):
    """A gated recurrent unit that reads an image row by row: ``[batch, 8 steps, 8 values]``."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(input_size=8, hidden_size=32, batch_first=True)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits ``[batch, 10]`` for rows ``[batch, 8, 8]``, from the last hidden state."""
        hidden_states, _ = self.gru(rows)
        return self.fc(hidden_states[:, -1])


class DigitsLSTM(nn.Module):
    """A long short-term memory that reads an image row by row: ``[batch, 8 steps, 8 values]``."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size=8, hidden_size=32, batch_first=True)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits ``[batch, 10]`` for rows ``[batch, 8, 8]``, from the last hidden state."""
        hidden_states, _ = self.lstm(rows)
        return self.fc(hidden_states[:, -1])


class DigitsCNNInt8(nn.Module):
    """:class:`DigitsCNN` in integer arithmetic; images ``[batch, 1, 8, 8]`` in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = Quantize()
        self.conv1 = Int8Conv2d(1, 8, kernel_size=3, padding=1, relu=True)
        self.conv2 = Int8Conv2d(8, 16, kernel_size=3, padding=1, relu=True)
        self.pool = Int8MaxPool2d()
        self.flatten = nn.Flatten()
        self.fc = Int8Linear(16 * 4 * 4, CLASSES)
        self.dequantize = Dequantize()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, 10]`` for images ``[batch, 1, 8, 8]``."""
        features = self.pool(self.conv2(self.conv1(self.quantize(images))))
        return self.dequantize(self.fc(self.flatten(features)))


class DigitsMLP6Int8(nn.Module):
    """:class:`DigitsMLP6` in integer arithmetic; images ``[batch, 1, 8, 8]`` in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.quantize = Quantize()
        self.fc1 = Int8Linear(64, 64, relu=True)
        self.fc2 = Int8Linear(64, 48, relu=True)
        self.fc3 = Int8Linear(48, 48, relu=True)
        self.fc4 = Int8Linear(48, 32, relu=True)
        self.fc5 = Int8Linear(32, 32, relu=True)
        self.fc6 = Int8Linear(32, CLASSES)
        self.dequantize = Dequantize()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, 10]`` for images ``[batch, 1, 8, 8]``."""
        features = self.fc2(self.fc1(self.quantize(self.flatten(images))))
        features = self.fc5(self.fc4(self.fc3(features)))
        return self.dequantize(self.fc6(features))


class DigitsLeNet7Int8(nn.Module):
    """:class:`DigitsLeNet7` in integer arithmetic; images ``[batch, 1, 8, 8]`` in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = Quantize()
        self.conv1 = Int8Conv2d(1, 6, kernel_size=3, padding=1, relu=True)
        self.pool1 = Int8MaxPool2d()
        self.conv2 = Int8Conv2d(6, 16, kernel_size=3, padding=1, relu=True)
        self.pool2 = Int8MaxPool2d()
        self.flatten = nn.Flatten()
        self.fc1 = Int8Linear(16 * 2 * 2, 60, relu=True)
        self.fc2 = Int8Linear(60, 42, relu=True)
        self.fc3 = Int8Linear(42, CLASSES)
        self.dequantize = Dequantize()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, 10]`` for images ``[batch, 1, 8, 8]``."""
        features = self.pool1(self.conv1(self.quantize(images)))
        features = self.flatten(self.pool2(self.conv2(features)))
        features = self.fc2(self.fc1(features))
        return self.dequantize(self.fc3(features))


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    "digits-cnn": DigitsCNN,
    "digits-mlp6": DigitsMLP6,
    "digits-lenet7": DigitsLeNet7,
    "digits-gru": DigitsGRU,
    "digits-lstm": DigitsLSTM,
    "digits-cnn-int8": DigitsCNNInt8,
    "digits-mlp6-int8": DigitsMLP6Int8,
    "digits-lenet7-int8": DigitsLeNet7Int8,
}


def without_weights(name: str) -> nn.Module:
    """Build the architecture called ``name`` on the meta device: shapes only, no memory, no random draw."""
    with torch.device("meta"):
        return ARCHITECTURES[name]()


def scale_images(images: np.ndarray) -> np.ndarray:
    """Scale grey levels 0..16 of any shape to float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(16)
