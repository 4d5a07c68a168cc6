"""Networks of searched cells, as DARTS builds them from a genotype, for their latency: nothing here is trained.

Wiring and operations are those of the evaluation networks in DARTS's code (github.com/quark0/darts, cnn/model.py and
operations.py), without the auxiliary head, which training alone needs and the published counts leave out. The counts of
parameters hold them to it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv.errors import GeometryError

from .genotypes import CellPlan, Genotype


class FactorizedReduction(nn.Module):
    """Halves an image with two 1x1 convolutions, one of the even rows and columns and one of the odd.

    [n, c, h, w] -> [n, out, h/2, w/2], rounded up: an image of odd sides gets zeros beyond its last row and column. Of
    an odd number of channels the odd pixels make one more.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """X [n, c, h, w] -> [n, out, h/2, w/2]."""
        x = functional.relu(x)
        below, right = (side % 2 for side in x.shape[-2:])
        padded = functional.pad(x, (0, right, 0, below)) if below or right else x
        return self.norm(torch.cat([self.even(x), self.odd(padded[:, :, 1:, 1:])], 1))  # type: ignore[no-any-return]


def pointwise(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """ReLU, 1x1 convolution, batch normalisation."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(out_channels))


def depthwise(in_channels: int, out_channels: int, size: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise convolution, 1x1 convolution, batch normalisation."""
    padding = dilation * (size - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(in_channels, in_channels, size, stride, padding, dilation, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


def _separable(size: int) -> Callable[[int, int], nn.Module]:
    """Two depthwise separable convolutions, the first with the stride."""
    return lambda channels, stride: nn.Sequential(
        *depthwise(channels, channels, size, stride), *depthwise(channels, channels, size, 1)
    )


def _dilated(size: int) -> Callable[[int, int], nn.Module]:
    """One depthwise separable convolution of dilation 2."""
    return lambda channels, stride: nn.Sequential(*depthwise(channels, channels, size, stride, dilation=2))


def _skip(channels: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduction(channels, channels)


def _seven(channels: int, stride: int) -> nn.Module:
    """ReLU, 1x7 and 7x1 convolutions over all channels, batch normalisation."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
        nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
        nn.BatchNorm2d(channels),
    )


OPERATIONS = MappingProxyType({
    "avg_pool_3x3": lambda channels, stride: nn.AvgPool2d(3, stride, 1, count_include_pad=False),  # noqa: ARG005
    "max_pool_3x3": lambda channels, stride: nn.MaxPool2d(3, stride, 1),  # noqa: ARG005
    "skip_connect": _skip,
    "sep_conv_3x3": _separable(3), "sep_conv_5x5": _separable(5), "sep_conv_7x7": _separable(7),
    "dil_conv_3x3": _dilated(3), "dil_conv_5x5": _dilated(5),
    "conv_7x1_1x7": _seven,
})  # fmt: skip
"""From channels and stride to a module [n, c, h, w] -> [n, c, h/stride, w/stride]."""


class Cell(nn.Module):
    """One cell: two inputs brought to `channels`, pairs of operations added, some of the sums concatenated.

    Args:
        plan: the operations.
        channels: of the two inputs, then of every state.
        width: channels of each state.
        halves: the operations on the inputs have stride 2.
        after_reduction: the cell before the last gave an image twice as large.
    """

    def __init__(
        self, plan: CellPlan, channels: tuple[int, int], width: int, *, halves: bool, after_reduction: bool
    ) -> None:
        super().__init__()
        self.plan = plan
        self.first = FactorizedReduction(channels[0], width) if after_reduction else pointwise(channels[0], width)
        self.second = pointwise(channels[1], width)
        self.operations = nn.ModuleList(
            OPERATIONS[name](width, 2 if halves and state < 2 else 1) for pair in plan.pairs for name, state in pair
        )

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Two maps -> [n, width * len(plan.concatenated), h, w]."""
        states = [self.first(before_last), self.second(last)]
        for i, ((_, a), (_, b)) in enumerate(self.plan.pairs):
            states.append(self.operations[2 * i](states[a]) + self.operations[2 * i + 1](states[b]))
        return torch.cat([states[i] for i in self.plan.concatenated], 1)


class CellNetwork(nn.Module):
    """A stem, cells with reductions after one and two thirds of them, the mean over the image, one linear layer.

    Args:
        genotype: the two cells.
        stem: "cifar" (a 3x3 convolution to 3 * width channels) or "imagenet" (three with stride 2).
        cells: how many, reductions included; 20 and 14 in the paper of DARTS.
        width: channels of a state in the first cells; 36 and 48.
        num_classes: logits.

    Raises:
        GeometryError: an unknown stem, fewer than three cells, or an odd width.
    """

    def __init__(
        self, genotype: Genotype, *, stem: str = "cifar", cells: int = 20, width: int = 36, num_classes: int = 10
    ) -> None:
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise GeometryError(f"the stem of a network of cells is 'cifar' or 'imagenet', got {stem!r}")
        if cells < 3 or width < 2 or width % 2:
            raise GeometryError(
                f"a network of cells has at least 3 cells and an even width of at least 2, got {cells} and {width}"
            )
        large = stem == "imagenet"
        start = width if large else 3 * width
        self.stem = nn.Sequential(
            *(_conv(3, width // 2), nn.ReLU(), _conv(width // 2, width))
            if large
            else (
                nn.Conv2d(3, start, 3, padding=1, bias=False),
                nn.BatchNorm2d(start),
            )
        )
        self.stem_end = nn.Sequential(nn.ReLU(), _conv(width, width)) if large else nn.Identity()
        channels, built, after_reduction = (start, start), list[Cell](), large
        for i in range(cells):
            halves = i in (cells // 3, 2 * cells // 3)
            width *= 2 if halves else 1
            plan = genotype.reduction if halves else genotype.normal
            built.append(Cell(plan, channels, width, halves=halves, after_reduction=after_reduction))
            channels, after_reduction = (channels[1], width * len(plan.concatenated)), halves
        self.cells = nn.ModuleList(built)
        self.fc = nn.Linear(channels[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """X [n, 3, h, w], sides divisible by 4 (ImageNet stem: 32) -> logits [n, num_classes]."""
        before_last = self.stem(x)
        last = self.stem_end(before_last)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(last, 1), 1))  # type: ignore[no-any-return]


def _conv(in_channels: int, out_channels: int) -> nn.Module:
    """3x3 convolution of stride 2 and batch normalisation."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, 2, 1, bias=False), nn.BatchNorm2d(out_channels))


def cifar_network(genotype: Genotype) -> CellNetwork:
    """As DARTS trains on CIFAR-10: 20 cells, 36 channels, images 32x32."""
    return CellNetwork(genotype)


def imagenet_network(genotype: Genotype) -> CellNetwork:
    """As DARTS trains on ImageNet: 14 cells, 48 channels, images 224x224."""
    return CellNetwork(genotype, stem="imagenet", cells=14, width=48, num_classes=1000)
