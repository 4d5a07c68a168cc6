"""Plain VGG networks whose every convolution is a `ConvBranch` (convolution with bias and batch normalisation)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..blocks.branches import ConvBranch


class VGG(nn.Module):
    """VGG with batch normalisation and one fully connected layer, on images [n, 3, h, w].

    Each stage is `blocks[i]` 3x3 convolutions, then max-pooling; widths double up to eight times `width`. The last
    maps are averaged over the image, so any image of at least 2**len(blocks) pixels a side will do.

    Args:
        blocks: convolutions a stage; (2, 2, 3, 3, 3) is VGG-16.
        width: channels of the first stage.
        num_classes: logits.
        in_channels: channels of the image.
    """

    def __init__(self, *, blocks: Sequence[int], width: int = 64, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, count in enumerate(blocks):
            out = width * min(2**stage, 8)
            for _ in range(count):
                layers += [ConvBranch(channels, out, (3, 3), bias=True), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, h, w] -> logits [n, num_classes]."""
        x = functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]
