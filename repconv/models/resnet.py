"""Plain ResNets whose every convolution is a `ConvBranch` (convolution and batch normalisation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..blocks.branches import ConvBranch
from ..errors import GeometryError


class _Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.conv2 = _conv(width, width, 3, 1)
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(functional.relu(self.conv1(x)))
        return functional.relu(y + self.shortcut(x))


class _Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride) and 1x1 convolutions, four times wider outside, and a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 1, 1)
        self.conv2 = _conv(width, width, 3, stride)
        self.conv3 = _conv(width, 4 * width, 1, 1)
        self.shortcut = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.conv1(x))
        y = self.conv3(functional.relu(self.conv2(y)))
        return functional.relu(y + self.shortcut(x))


def _conv(in_channels: int, out_channels: int, size: int, stride: int) -> ConvBranch:
    return ConvBranch(in_channels, out_channels, (size, size), stride=(stride, stride))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return _conv(in_channels, out_channels, 1, stride)


class ResNet(nn.Module):
    """A residual network (He et al., 2016) on images [n, 3, h, w], giving logits [n, num_classes].

    Args:
        unit: "basic" (ResNet-18, 34) or "bottleneck" (ResNet-50).
        blocks: residual units a stage; every stage after the first halves the image and doubles the width.
        width: channels of the first stage.
        num_classes: logits.
        stem: "imagenet" (7x7 with stride 2, then max-pooling) or "cifar" (3x3 with stride 1).
        in_channels: channels of the image.

    Raises:
        GeometryError: an unknown unit or stem.
    """

    def __init__(
        self,
        *,
        unit: Literal["basic", "bottleneck"],
        blocks: Sequence[int],
        width: int = 64,
        num_classes: int = 1000,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise GeometryError(f"a ResNet's stem is 'imagenet' or 'cifar', got {stem!r}")
        if unit not in ("basic", "bottleneck"):
            raise GeometryError(f"a ResNet's unit is 'basic' or 'bottleneck', got {unit!r}")
        make, expansion = {"basic": (_Basic, 1), "bottleneck": (_Bottleneck, 4)}[unit]
        large = stem == "imagenet"
        self.stem = _conv(in_channels, width, 7 if large else 3, 2 if large else 1)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        stages: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            inner = width * 2**stage
            units: list[nn.Module] = []
            for i in range(count):
                units.append(make(channels, inner, 2 if stage and not i else 1))
                channels = expansion * inner
            stages.append(nn.Sequential(*units))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, h, w] -> logits [n, num_classes]."""
        x = self.pool(functional.relu(self.stem(x)))
        x = self.stages(x)
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]
