"""AmoebaNets in their authors' own wiring, for their latency: nothing here is trained.

Wiring and operations are those of github.com/tensorflow/tpu, models/official/amoeba_net, without the auxiliary head.
What that code leaves open is as in NASNet (github.com/tensorflow/models, research/slim/nets/nasnet), from which it
began: a factorised reduction to an odd number of channels, and the stem for CIFAR-10. The counts of Real et al. (2019)
and of DARTS' Table 3 hold them to it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv.errors import GeometryError

from .cells import FactorizedReduction, depthwise, pointwise
from .genotypes import CellPlan, Genotype

Making = Callable[[int, int, int], nn.Module]
"""From channels in, channels out and stride to a module."""

IMAGENET_STEM = 32
"""Channels of the convolution before the first cell."""


def _projection(in_channels: int, out_channels: int) -> list[nn.Module]:
    """What brings a state to a cell's width without ReLU: a 1x1 convolution and batch normalisation, or nothing."""
    if in_channels == out_channels:
        return []
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]


def _pooled(pool: Callable[[int], nn.Module]) -> Making:
    return lambda in_channels, width, stride: nn.Sequential(pool(stride), *_projection(in_channels, width))


def _twice_separable(size: int) -> Making:
    """Two depthwise separable convolutions, the first with the stride."""
    return lambda in_channels, width, stride: nn.Sequential(
        *depthwise(in_channels, width, size, stride), *depthwise(width, width, size, 1)
    )


def _unless_idle(in_channels: int, width: int, stride: int) -> nn.Module:
    """The state itself, or a 1x1 convolution where its size or its channels change."""
    return nn.Identity() if stride == 1 and in_channels == width else pointwise(in_channels, width, stride)


def _bottleneck(*sizes: tuple[int, int]) -> Making:
    """Convolutions of these sizes over a quarter of the channels, between two 1x1, each after ReLU and normalised."""

    def make(in_channels: int, width: int, stride: int) -> nn.Module:
        narrow = width // 4
        inner: list[nn.Module] = []
        for high, wide in sizes:
            steps = (stride if high > 1 else 1, stride if wide > 1 else 1)
            padding = (high // 2, wide // 2)
            convolution = nn.Conv2d(narrow, narrow, (high, wide), steps, padding, bias=False)
            inner += [nn.ReLU(), convolution, nn.BatchNorm2d(narrow)]
        return nn.Sequential(pointwise(in_channels, narrow), *inner, pointwise(narrow, width))

    return make


AMOEBANET_OPERATIONS = MappingProxyType({
    "avg_pool_3x3": _pooled(lambda stride: nn.AvgPool2d(3, stride, 1, count_include_pad=False)),
    "max_pool_3x3": _pooled(lambda stride: nn.MaxPool2d(3, stride, 1)),
    "max_pool_2x2": _pooled(lambda stride: nn.MaxPool2d(2, stride, ceil_mode=True)),
    "skip_connect": _unless_idle, "conv_1x1": pointwise,
    "conv_3x3": _bottleneck((3, 3)), "conv_1x7_7x1": _bottleneck((1, 7), (7, 1)),
    "sep_conv_3x3": _twice_separable(3), "sep_conv_5x5": _twice_separable(5), "sep_conv_7x7": _twice_separable(7),
})  # fmt: skip
"""From channels in, channels out and stride to a module [n, in, h, w] -> [n, out, h/stride, w/stride], rounded up.

`max_pool_2x2` keeps the size of no image at stride 1: the cells have it on what they halve alone.
"""


class AmoebaCell(nn.Module):
    """One cell: the last cell's output brought to `width`, pairs of operations added, some of the states concatenated.

    Args:
        plan: the operations. A cell that halves concatenates sums alone.
        channels: of the outputs of the cell before the last, and of the last.
        width: channels of each state.
        halves: the operations on the inputs have stride 2.
        after_reduction: the cell before the last gave an image twice as large.
        begins: there is no cell before the last; its output stands for that, too, as it is.
    """

    def __init__(
        self,
        plan: CellPlan,
        channels: tuple[int, int],
        width: int,
        *,
        halves: bool,
        after_reduction: bool,
        begins: bool,
    ) -> None:
        super().__init__()
        self.plan = plan
        before_last = channels[0] if begins else width
        if after_reduction:
            self.first: nn.Module = FactorizedReduction(channels[0], width)
        else:
            self.first = _unless_idle(channels[0], before_last, 1)
        self.second = pointwise(channels[1], width)
        widths = [before_last] + [width] * (1 + len(plan.pairs))
        self.operations = nn.ModuleList(
            AMOEBANET_OPERATIONS[name](widths[state], width, 2 if halves and state < 2 else 1)
            for pair in plan.pairs
            for name, state in pair
        )
        self.ends = nn.ModuleList(nn.Sequential(*_projection(widths[i], width)) for i in plan.concatenated)

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """Two maps -> [n, width * len(plan.concatenated), h, w]."""
        states = [self.first(before_last), self.second(last)]
        for i, ((_, a), (_, b)) in enumerate(self.plan.pairs):
            states.append(self.operations[2 * i](states[a]) + self.operations[2 * i + 1](states[b]))
        return torch.cat([end(states[i]) for end, i in zip(self.ends, self.plan.concatenated, strict=True)], 1)


class AmoebaNet(nn.Module):
    """A stem, three stacks of normal cells with a reduction between two, the mean over the image, one linear layer.

    Args:
        genotype: the two cells.
        stem: "cifar" (a 3x3 convolution to 3 * width channels) or "imagenet" (one of stride 2, and two reductions of a
            quarter and a half of the width).
        repeats: normal cells of a stack, N in the paper.
        width: channels of a state in the first stack, doubled from stack to stack; F in the paper.
        num_classes: logits.

    Raises:
        GeometryError: an unknown stem, no cells, or a width that has no quarter in its narrowest cell.
    """

    def __init__(
        self, genotype: Genotype, *, stem: str = "cifar", repeats: int = 6, width: int = 36, num_classes: int = 10
    ) -> None:
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise GeometryError(f"the stem of an AmoebaNet is 'cifar' or 'imagenet', got {stem!r}")
        large = stem == "imagenet"
        least = 16 if large else 4
        if repeats < 1 or width < least:
            raise GeometryError(
                f"an AmoebaNet has at least 1 cell a stack and a width of at least {least}, got {repeats} and {width}"
            )
        start = IMAGENET_STEM if large else 3 * width
        stride, padding = (2, 0) if large else (1, 1)
        self.stem = nn.Sequential(nn.Conv2d(3, start, 3, stride, padding, bias=False), nn.BatchNorm2d(start))
        cells = [(True, width // 4), (True, width // 2)] if large else []
        for stack in range(3):
            cells += [(True, width << stack)] * (stack > 0) + [(False, width << stack)] * repeats
        channels, built, after_reduction = (start, start), list[AmoebaCell](), False
        for halves, wide in cells:
            plan = genotype.reduction if halves else genotype.normal
            built.append(
                AmoebaCell(
                    plan, channels, wide, halves=halves, after_reduction=after_reduction, begins=not built
                )
            )  # fmt: skip
            channels, after_reduction = (channels[1], wide * len(plan.concatenated)), halves
        self.cells = nn.ModuleList(built)
        self.fc = nn.Linear(channels[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """X [n, 3, h, w], sides of at least 3 -> logits [n, num_classes]."""
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        mean = functional.adaptive_avg_pool2d(functional.relu(last), 1)
        return self.fc(torch.flatten(mean, 1))  # type: ignore[no-any-return]
