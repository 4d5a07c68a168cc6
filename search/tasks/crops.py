"""Augmentation of small images: a random crop after padding, and a random flip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class CropAndFlip:
    """An image [c, h, w] moved by up to `padding` pixels each way, black beyond its border; `flip`: perhaps mirrored.

    It draws and gives what torchvision's `RandomCrop` with a padding above 0 and `RandomHorizontalFlip` do, in less
    time, which beside an update of a small network counts.
    """

    padding: int
    flip: bool

    def __call__(self, image: Tensor) -> Tensor:
        """Drawn from torch's generator."""
        _, height, width = image.shape
        down, right = (self.padding - int(torch.randint(0, 2 * self.padding + 1, ())) for _ in range(2))
        moved = torch.zeros_like(image)
        rows, columns = _overlap(height, down), _overlap(width, right)
        moved[:, rows[0], columns[0]] = image[:, rows[1], columns[1]]
        return moved.flip(-1) if self.flip and float(torch.rand(1)) < 0.5 else moved


def _overlap(size: int, by: int) -> tuple[slice, slice]:
    """Where in the moved axis something of the image is, and where that was in it."""
    return slice(max(0, by), size + min(0, by)), slice(max(0, -by), size - max(0, by))
