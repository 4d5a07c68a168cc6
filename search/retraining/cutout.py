"""What training does to images beyond the task's own augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Cutout:
    """A square of `side` pixels of a normalised image [c, h, w] put to 0, its middle anywhere (DeVries, 2017)."""

    side: int

    def __call__(self, image: Tensor) -> Tensor:
        """The image with the square; drawn from torch's generator."""
        height, width = image.shape[1:]
        row, column = (int(torch.randint(size, ())) for size in (height, width))
        half = self.side // 2
        top, left = max(0, row - half), max(0, column - half)
        cut = image.clone()
        cut[:, top : max(0, row - half + self.side), left : max(0, column - half + self.side)] = 0
        return cut
