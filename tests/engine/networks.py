"""Random small networks with every kind of step that the engine treats in its own way, and some that it does not."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = (
    "conv",
    "conv_bn",
    "conv_bn_relu",
    "relu_in_place",
    "gelu",
    "tanh",
    "max_pool",
    "avg_pool",
    "residual",
    "downsampling",
    "projection",
    "concat",
    "shared",
    "grouped",
    "split",
    "scale",
    "dropout",
)


class Network(nn.Module):
    """Steps one after the other, then global average pooling (or flattening) and a linear layer."""

    def __init__(self, steps: list[str], flattened: bool, seed: int):
        super().__init__()
        self.steps, self.flattened = steps, flattened
        self.layers = nn.ModuleDict()
        channels, size = 3, 8
        for number, step in enumerate(steps):
            channels, size = self._add(f"{number}_{step}", step, channels, size)
        self.linear = nn.Linear(channels * size * size if flattened else channels, 4)
        generator = torch.Generator().manual_seed(seed)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                fan = tensor[0].numel() if tensor.dim() > 1 else 16
                tensor.data = torch.randn(tensor.shape, generator=generator) * (1.5 / fan**0.5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
        self.eval().requires_grad_(False)

    def _add(self, name: str, step: str, channels: int, size: int) -> tuple[int, int]:
        layers = self.layers
        if step in ("conv", "conv_bn", "conv_bn_relu"):
            layers[f"{name}_conv"] = nn.Conv2d(channels, 5, 3, padding=1, bias=step == "conv")
            layers[f"{name}_bn"] = nn.BatchNorm2d(5)
            return 5, size
        if step == "relu_in_place":
            layers[f"{name}_relu"] = nn.ReLU(inplace=True)
        if step in ("max_pool", "avg_pool") and size > 1:
            layers[f"{name}_pool"] = nn.MaxPool2d(2) if step == "max_pool" else nn.AvgPool2d(2)
            return channels, size // 2
        if step == "residual":
            for part in "ab":
                layers[f"{name}_conv{part}"] = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
                layers[f"{name}_bn{part}"] = nn.BatchNorm2d(channels)
        if step in ("downsampling", "projection") and size > 1:
            layers[f"{name}_conv"] = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
            layers[f"{name}_short"] = nn.Conv2d(channels, 6, 1, stride=2)
            return 6, (size + 1) // 2
        if step == "concat":
            layers[f"{name}_conv"] = nn.Conv2d(channels, 3, (1, 3), padding=(0, 1))
            return channels + 3, size
        if step == "shared":
            layers[f"{name}_conv"] = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        if step == "grouped":
            layers[f"{name}_conv"] = nn.Conv2d(channels, channels * 2, 3, padding=1, groups=channels)
            return channels * 2, size
        if step == "dropout":
            layers[f"{name}_dropout"] = nn.Dropout(0.5)
        return channels, size

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [batch, 4] for images [batch, 3, 8, 8]."""
        for number, step in enumerate(self.steps):
            x = self._run(f"{number}_{step}_", step, x)
        if not self.flattened:
            x = F.adaptive_avg_pool2d(x, 1)
        return self.linear(torch.flatten(x, 1))

    def _run(self, name: str, step: str, x: Tensor) -> Tensor:
        layers = {key.removeprefix(name): layer for key, layer in self.layers.items() if key.startswith(name)}
        if step == "conv":
            return layers["conv"](x)
        if step in ("conv_bn", "conv_bn_relu"):
            x = layers["bn"](layers["conv"](x))
            return F.relu(x) if step == "conv_bn_relu" else x
        if step == "residual":
            inner = F.relu(layers["bna"](layers["conva"](x)))
            return F.relu(layers["bnb"](layers["convb"](inner)) + x)
        if step == "projection" and layers:
            return torch.relu(torch.add(layers["short"](x), layers["conv"](x)))
        if step == "downsampling" and layers:
            return F.relu(layers["conv"](x)) + F.max_pool2d(F.pad(x, (0, 0, 0, 0, 0, 6)), 1, 2)[:, :6]
        if step == "concat":
            return torch.cat([F.relu(layers["conv"](x)), x], dim=1)
        if step == "shared":
            return layers["conv"](F.relu(layers["conv"](x)))
        if step == "split":
            first, second = x[:, :1], x[:, 1:]
            return torch.cat([second * first.sigmoid(), first], dim=1)
        if step == "scale":
            return x * 0.5 + x.mean(dim=(2, 3), keepdim=True)
        if step in ("gelu", "tanh"):
            return F.gelu(x) if step == "gelu" else torch.tanh(x)
        for layer in layers.values():
            x = layer(x)
        return x


networks = st.builds(
    Network, st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), st.booleans(), st.integers(0, 2**31)
)
