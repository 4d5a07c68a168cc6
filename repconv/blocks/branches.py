"""The branches of a re-parameterizable block: each an affine, shift-equivariant map that equals one `Kernel`.

`BRANCHES` is the table of the kinds. CONTRIBUTING.md says what a new row touches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..algebra.geometry import Geometry, Pair, pair
from ..algebra.kernels import Kernel, compose, identity
from ..errors import GeometryError
from .statistics.normalisation import (
    Before,
    Statistics,
    fold_norm,
    norm_affine,
    running_statistics,
    update_running_statistics,
)


def conv_kernel(conv: nn.Conv2d, dtype: torch.dtype) -> Kernel:
    """The kernel of a zero-padded `Conv2d`, its dilation written out.

    Raises:
        GeometryError: the convolution pads with something other than zeros.
    """
    return conv_taps(conv, dtype).whole()


def conv_taps(conv: nn.Conv2d, dtype: torch.dtype) -> Before:
    """A zero-padded `Conv2d`, its dilation not written out.

    Raises:
        GeometryError: the convolution pads with something other than zeros.
    """
    if conv.padding_mode != "zeros":
        raise GeometryError(f"a convolution with padding_mode={conv.padding_mode!r} does not pad with zeros: {conv}")
    rows, columns = pair(conv.dilation)
    if isinstance(conv.padding, str):
        # "same" puts the odd pixel of an even total at the bottom and right, as torch does.
        taps, same = conv.weight.shape[2:], conv.padding == "same"
        total = [d * (k - 1) * same for d, k in zip((rows, columns), taps, strict=True)]
        top, left = (t // 2 for t in total)
        bottom, right = total[0] - top, total[1] - left
    else:
        top, left = bottom, right = pair(conv.padding)
    weight = conv.weight.to(dtype)
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.to(dtype)
    return Before(Kernel(weight, bias, pair(conv.stride), (top, left, bottom, right), conv.groups), (rows, columns))


def _centred(size: Pair, dilation: Pair = (1, 1)) -> Pair:
    """The padding that keeps an odd (dilated) kernel centred on its pixel."""
    rows, columns = ((k - 1) * d // 2 for k, d in zip(size, dilation, strict=True))
    return rows, columns


class Branch(nn.Module, ABC):
    """An affine, shift-equivariant module: `forward(x)` equals `kernel()(x)` in evaluation."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [n, i, h, w] -> [n, o, h', w']."""

    @abstractmethod
    def kernel(self, statistics: Statistics = running_statistics, dtype: torch.dtype = torch.float64) -> Kernel:
        """The one convolution this branch is, given its batch normalisations' `statistics`, computed in `dtype`.

        Raises:
            FusionError: a batch normalisation has no fixed statistics.
            GeometryError: the branch is not one zero-padded convolution.
        """


class NormedBranch(Branch):
    """A branch that ends in a batch normalisation, `norm`."""

    @property
    @abstractmethod
    def norm(self) -> nn.BatchNorm2d:
        """The last batch normalisation."""

    @abstractmethod
    def before(self, statistics: Statistics, dtype: torch.dtype) -> Before:
        """What the last normalisation is given; arguments and errors as of `kernel`."""

    def kernel(self, statistics: Statistics = running_statistics, dtype: torch.dtype = torch.float64) -> Kernel:
        """The folded convolution."""
        return fold_norm(self.before(statistics, dtype), self.norm, statistics).whole()


@final
class ConvBranch(NormedBranch):
    """Convolution, then batch normalisation. Plain networks are made of these, too."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Pair,
        *,
        stride: Pair = (1, 1),
        padding: Pair | None = None,
        dilation: Pair = (1, 1),
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        padding = _centred(size, dilation) if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding, dilation, groups, bias)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, i, h, w] -> [n, o, h', w']."""
        return self.bn(self.conv(x))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The last batch normalisation."""
        return self.bn

    def before(self, statistics: Statistics, dtype: torch.dtype) -> Before:  # noqa: ARG002  # none inside
        """The convolution."""
        return conv_taps(self.conv, dtype)


@final
class SkipBranch(NormedBranch):
    """Batch normalisation of the input."""

    def __init__(self, channels: int, *, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, h, w] -> [n, c, h, w]."""
        return self.bn(x)  # type: ignore[no-any-return]

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The batch normalisation."""
        return self.bn

    def before(self, statistics: Statistics, dtype: torch.dtype) -> Before:  # noqa: ARG002  # none inside
        """The identity."""
        # A normalisation may keep no statistics, or have no parameters.
        held = next((t for t in (*self.bn.parameters(), *self.bn.buffers())), None)
        device = None if held is None else held.device
        return Before(identity(self.bn.num_features, groups=self.groups, dtype=dtype, device=device))


class _Pointwise(nn.Module):
    """The first half of a two-step branch: 1x1 convolution, batch normalisation, one pixel of border all round.

    Padding the output with zeros could not be fused, because the normalisation shifts. The border holds what this
    stage makes of a zero pixel, b0 = BN(conv bias), from the same statistics as the image itself.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, i, h, w] -> [n, m, h + 2, w + 2]."""
        y = self.conv(x)
        # Half precision cannot hold a BN's scale and shift to the accuracy the BN itself works with.
        dtype = torch.promote_types(y.dtype, torch.float32)
        bias = y.new_zeros(y.shape[1], dtype=dtype) if self.conv.bias is None else self.conv.bias.to(dtype)
        if self.bn.training or self.bn.running_mean is None or self.bn.running_var is None:
            wide = y.to(dtype)
            variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
            update_running_statistics([self.bn], mean[None], variance[None], y.numel() // y.shape[1])
            scale, shift = norm_affine(self.bn, mean, variance, dtype)
            padded = functional.pad(wide - bias[:, None, None], (1, 1, 1, 1))
            return (padded * scale[:, None, None] + (bias * scale + shift)[:, None, None]).to(y.dtype)
        scale, shift = norm_affine(self.bn, self.bn.running_mean, self.bn.running_var, dtype)
        b0 = (bias * scale + shift).to(y.dtype)[:, None, None]
        return functional.pad(self.bn(y) - b0, (1, 1, 1, 1)) + b0

    def kernel(self, statistics: Statistics, dtype: torch.dtype) -> Kernel:
        """The folded 1x1 convolution, without the border."""
        return fold_norm(conv_taps(self.conv, dtype), self.bn, statistics).kernel


@final
class SeriesBranch(NormedBranch):
    """1x1 convolution - BN - 3x3 convolution - BN; the inner width is the input width."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: Pair, groups: int, bias: bool) -> None:
        super().__init__()
        self.inner = _Pointwise(in_channels, in_channels, groups=groups, bias=bias)
        self.outer = ConvBranch(
            in_channels, out_channels, (3, 3), stride=stride, padding=(0, 0), groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [n, i, h, w] -> [n, o, h', w']."""
        return self.outer(self.inner(x))  # type: ignore[no-any-return]

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The last batch normalisation."""
        return self.outer.bn

    def before(self, statistics: Statistics, dtype: torch.dtype) -> Before:
        """W2 after W1, the border holding W1's answer to a zero pixel."""
        outer = conv_kernel(self.outer.conv, dtype)
        outer = Kernel(outer.weight, outer.bias, outer.stride, (1, 1, 1, 1), outer.groups)
        return Before(compose(outer, self.inner.kernel(statistics, dtype), border="inner"))


@final
class PoolBranch(NormedBranch):
    """1x1 convolution - BN - 3x3 average pooling that counts padded pixels - BN."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: Pair, groups: int, bias: bool) -> None:
        super().__init__()
        self.inner = _Pointwise(in_channels, out_channels, groups=groups, bias=bias)
        self.pool = nn.AvgPool2d(3, stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, i, h, w] -> [n, o, h', w']."""
        return self.bn(self.pool(self.inner(x)))  # type: ignore[no-any-return]

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The last batch normalisation."""
        return self.bn

    def before(self, statistics: Statistics, dtype: torch.dtype) -> Before:
        """W1 of averages: at the border, too, since what pads W1's output is W1's answer to a zero pixel."""
        stride = pair(self.pool.stride)  # type: ignore[arg-type]  # always built from a pair
        inner = self.inner.kernel(statistics, dtype)
        return Before(Kernel(inner.weight, inner.bias, stride, groups=inner.groups), pooled=True)


def _conv(target: Geometry, bias: bool, *, size: Pair, dilation: Pair = (1, 1)) -> NormedBranch:
    return ConvBranch(
        target.in_channels,
        target.out_channels,
        size,
        stride=pair(target.stride),
        dilation=dilation,
        groups=target.groups,
        bias=bias,
    )


def _series(target: Geometry, bias: bool) -> NormedBranch:
    i, o = target.in_channels, target.out_channels
    return SeriesBranch(i, o, stride=pair(target.stride), groups=target.groups, bias=bias)


def _pool(target: Geometry, bias: bool) -> NormedBranch:
    i, o = target.in_channels, target.out_channels
    return PoolBranch(i, o, stride=pair(target.stride), groups=target.groups, bias=bias)


def _skip(target: Geometry, bias: bool) -> NormedBranch:  # noqa: ARG001  # the table's signature
    return SkipBranch(target.in_channels, groups=target.groups)


@dataclass(frozen=True)
class BranchKind:
    """A row of `BRANCHES`: how a kind is built for the 3x3 convolution a block stands for, and where it lands."""

    lands: str
    build: Callable[[Geometry, bool], NormedBranch]
    keeps_shape: bool = False

    def unfit(self, target: Geometry) -> str | None:
        """Why this kind cannot be part of a block of geometry `target`; None if it can."""
        if self.keeps_shape and (target.stride != (1, 1) or target.in_channels != target.out_channels):
            return f"needs stride 1 and as many output as input channels, the block is {target}"
        return None


BRANCHES: Mapping[str, BranchKind] = MappingProxyType({
    "3x3": BranchKind("everywhere", partial(_conv, size=(3, 3))),
    "1x3": BranchKind("middle row", partial(_conv, size=(1, 3))),
    "3x1": BranchKind("middle column", partial(_conv, size=(3, 1))),
    "1x1": BranchKind("centre", partial(_conv, size=(1, 1))),
    "1x1_3x3": BranchKind("everywhere, W2 after W1", _series),
    "avg": BranchKind("everywhere, W1 / 9", _pool),
    "skip": BranchKind("centre, identity", _skip, keeps_shape=True),
    "1x2_d2": BranchKind("middle row, columns 0 and 2", partial(_conv, size=(1, 2), dilation=(1, 2))),
    "2x1_d2": BranchKind("middle column, rows 0 and 2", partial(_conv, size=(2, 1), dilation=(2, 1))),
    "2x2_d2": BranchKind("the four corners", partial(_conv, size=(2, 2), dilation=(2, 2))),
})  # fmt: skip
"""The ten kinds, by name; equations (1) to (3) of the paper are the three dilated rows."""


def branch_kind(name: str) -> BranchKind:
    """The row of `BRANCHES` called `name`.

    Raises:
        GeometryError: no such kind.
    """
    if name in BRANCHES:
        return BRANCHES[name]
    near = get_close_matches(name, BRANCHES, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise GeometryError(f"unknown branch kind {name!r}{hint}; the kinds are {', '.join(BRANCHES)}")
