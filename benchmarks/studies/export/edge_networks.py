"""Networks made for phones, with random statistics, as factories: `NAME`, or `NAME_folded` as its author folds it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..graph.networks import randomise, specimen

OF_TIMM = ("mobileone_s0", "repvit_m0_9", "fastvit_t8", "ghostnetv3_050", "repghostnet_050")
NECK = "yolov6_neck"
NAMES = (*OF_TIMM, NECK)
SIDE = 96
"""Of the images, so that networks without branches folded take minutes, not hours, to build."""


def network(name: str, *, folded: bool = False) -> nn.Module:
    """A network in evaluation mode, of `NAMES`; those of timm also as their authors fold them."""
    if name == NECK:
        torch.manual_seed(0)
        return randomise(Neck())
    found = specimen(name)
    if folded and found.author is not None:
        return found.author
    return found.model


class Rep(nn.Module):
    """A RepVGG block: a 3x3 convolution, a 1x1 one and, where shapes allow it, the input itself, each normalised."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.point = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.identity = nn.BatchNorm2d(outputs) if (inputs, stride) == (outputs, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""
        branches = self.dense(x) + self.point(x)
        return functional.relu(branches if self.identity is None else branches + self.identity(x))


class Neck(nn.Module):
    """RepVGG blocks at three scales with a path from coarse to fine and one back, in the manner of YOLOv6's neck."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(Rep(3, w, 2), Rep(w, 2 * w, 2))
        self.fine, self.middle, self.coarse = (
            nn.Sequential(Rep(i, o, 2), Rep(o, o)) for i, o in ((2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 16 * w))
        )
        self.reduce = nn.ModuleList([nn.Conv2d(16 * w, 4 * w, 1), nn.Conv2d(4 * w, 4 * w, 1)])
        self.down = nn.ModuleList([_blocks(8 * w + 4 * w, 4 * w), _blocks(4 * w + 4 * w, 4 * w)])
        self.stride = nn.ModuleList([Rep(4 * w, 4 * w, 2), Rep(4 * w, 4 * w, 2)])
        self.up = nn.ModuleList([_blocks(8 * w, 4 * w), _blocks(8 * w, 4 * w)])
        self.head = nn.Linear(12 * w, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, 10]."""
        fine = self.fine(self.stem(x))
        middle = self.middle(fine)
        top = self.reduce[0](self.coarse(middle))
        across = self.reduce[1](self.down[0](torch.cat([functional.interpolate(top, scale_factor=2.0), middle], 1)))
        first = self.down[1](torch.cat([functional.interpolate(across, scale_factor=2.0), fine], 1))
        second = self.up[0](torch.cat([self.stride[0](first), across], 1))
        third = self.up[1](torch.cat([self.stride[1](second), top], 1))
        answer: Tensor = self.head(torch.cat([level.mean((2, 3)) for level in (first, second, third)], 1))
        return answer


def _blocks(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Rep(inputs, outputs), Rep(outputs, outputs))


# A factory each, since the command line finds networks by the names of functions.
globals().update({name: partial(network, name) for name in NAMES})
globals().update({f"{name}_folded": partial(network, name, folded=True) for name in OF_TIMM})
