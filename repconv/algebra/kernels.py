"""The algebra of convolutions: `a + b` in parallel, `outer @ inner` in series, `c * a` scaled.

Between two non-linearities a network is affine and shift-equivariant, so it is one convolution. Everything the
package folds, it folds with the operations here; they are pure tensor code, so they run in float64 when a model is
fused and under autograd when one is trained. What would not be exact raises `GeometryError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import GeometryError
from .geometry import Axes, Geometry, Sides, by, halves, with_flat

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_SPREAD = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution with bias, as a value: `y = weight * pad(x) + bias`.

    weight: [o, i/g, kh, kw] for images, else [o, i/g, k...] of one to three pixel axes; bias: [o]; padding: zeros added
    at the top, left, bottom, right (negative: cropped), or before each axis and then after each. What is left out is so
    for any number of axes.
    up: how far apart the pixels of x are put first, zeros between them, as a transposed convolution does.

    Raises:
        GeometryError: shapes that do not fit each other.
    """

    weight: Tensor
    bias: Tensor
    stride: Axes = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    groups: int = 1
    up: Axes = (1, 1)

    def __post_init__(self) -> None:
        if self.weight.dim() - 2 not in _CONVOLVE:
            raise GeometryError(
                f"a kernel's weight is [o, i/g, kh, kw], got shape {tuple(self.weight.shape)}; of one to three axes of "
                "taps"
            )
        if self.bias.shape != self.weight.shape[:1]:
            raise GeometryError(
                f"a kernel's bias is [o] = [{self.weight.shape[0]}], got shape {tuple(self.bias.shape)}"
            )
        shapes = self.geometry
        if self.weight.dim() != 4:
            for name in ("stride", "padding", "up"):
                object.__setattr__(self, name, getattr(shapes, name))

    @property
    def geometry(self) -> Geometry:
        """The shapes alone."""
        o, i, *size = self.weight.shape
        return Geometry(i * self.groups, o, tuple(size), self.stride, self.padding, self.groups, self.up)

    @property
    def axes(self) -> int:
        """How many pixel axes there are."""
        return self.weight.dim() - 2

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve x [n, i, h, w] -> [n, o, h', w'], or of as many pixel axes as there are."""
        before, after = halves(self.padding)
        if max(self.up) > 1:
            apart = x.new_zeros(*x.shape[:2], *((n - 1) * u + 1 for n, u in zip(x.shape[2:], self.up, strict=True)))
            apart[every(self.up)] = x
            x = apart
        convolve = _CONVOLVE[self.axes]
        if before == after and min(before) >= 0:
            return convolve(x, self.weight, self.bias, self.stride, before, groups=self.groups)
        x = functional.pad(x, innermost_first(self.padding))
        return convolve(x, self.weight, self.bias, self.stride, groups=self.groups)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Kernel:
        """The same kernel in another dtype or on another device."""
        weight = self.weight.to(dtype=dtype, device=device)
        return Kernel(weight, self.bias.to(dtype=dtype, device=device), self.stride, self.padding, self.groups, self.up)

    def regroup(self, groups: int) -> Kernel:
        """The same map written with fewer groups, a divisor of today's; the weight becomes block-diagonal."""
        if groups < 1 or self.groups % groups:
            raise GeometryError(f"{self.groups} groups can be merged into a divisor of them, not into {groups}")
        if groups == self.groups:
            return self
        merged = self.groups // groups
        o, i, *size = self.weight.shape
        blocks = self.weight.reshape(groups, merged, o // self.groups, i, *size)
        # diag_embed puts the merged axis on the diagonal of (out block, in block).
        square = torch.diag_embed(blocks.movedim(1, -1), dim1=1, dim2=3)
        return Kernel(square.reshape(o, merged * i, *size), self.bias, self.stride, self.padding, groups, self.up)

    def of_axes(self, count: int) -> Kernel:
        """The same map of so many pixel axes, of which those that come or go at the end are flat; `Geometry.of_axes`.

        Raises:
            GeometryError: one that would go is not flat.
        """
        if count == self.axes:
            return self
        g = self.geometry.of_axes(count)
        return Kernel(self.weight.reshape(g.weight_shape), self.bias, g.stride, g.padding, g.groups, g.up)

    def enlarge(self, size: Axes, padding: Sides) -> Kernel:
        """The same map with zero taps around it: `size` taps, `padding` around the image.

        Raises:
            GeometryError: this map has no such form.
        """
        # Every zero tap on a side is one pixel of padding more on that side.
        added = [new - old for new, old in zip(padding, self.padding, strict=True)]
        if min(added) < 0 or size != tuple(
            k + b + a for k, b, a in zip(self.weight.shape[2:], *halves(added), strict=True)
        ):
            raise GeometryError(
                f"{self.geometry} cannot be written with {by(size)} taps and padding "
                f"{','.join(map(str, padding))}: every added tap is a pixel of padding on its side"
            )
        weight = functional.pad(self.weight, innermost_first(added))
        return Kernel(weight, self.bias, self.stride, padding, self.groups, self.up)

    def __add__(self, other: Kernel) -> Kernel:
        """Two convolutions of one input, added: kernels are aligned by their padding, groups merged."""
        if not isinstance(other, Kernel):
            return NotImplemented
        return combine((self, other))

    def __mul__(self, factor: float | Tensor) -> Kernel:
        """Scale the output by a number or by one number a channel, [o]."""
        return self.scale(factor)

    def scale(self, factor: float | Tensor) -> Kernel:
        """`self * factor`; torch.compile does not follow the operator of a class it does not know."""
        if not isinstance(factor, Tensor):
            return Kernel(self.weight * factor, self.bias * factor, self.stride, self.padding, self.groups, self.up)
        if factor.dim() and factor.shape != self.bias.shape:
            raise GeometryError(
                f"scale a kernel by a number or by [o] = [{self.bias.shape[0]}], got shape {tuple(factor.shape)}"
            )
        weight = self.weight * (factor.reshape(-1, *(1,) * (self.axes + 1)) if factor.dim() else factor)
        return Kernel(weight, self.bias * factor, self.stride, self.padding, self.groups, self.up)

    __rmul__ = __mul__

    def shift(self, offset: Tensor) -> Kernel:
        """Add `offset` [o] to the output."""
        return Kernel(self.weight, self.bias + offset, self.stride, self.padding, self.groups, self.up)

    def __matmul__(self, inner: Kernel) -> Kernel:
        """`outer @ inner`: this convolution, padding with zeros, after `inner`."""
        if not isinstance(inner, Kernel):
            return NotImplemented
        return compose(self, inner)

    def dilate(self, rate: int | Axes) -> Kernel:
        """The same taps `rate` pixels apart. Padding is kept, so set it for the dilated size."""
        rate = (rate,) * self.axes if isinstance(rate, int) else rate
        if set(rate) == {1}:
            return self
        if min(rate) < 1:
            raise GeometryError(f"a dilation is at least 1 in each direction, got {rate}")
        size = self.geometry.dilate(rate).size
        weight = self.weight.new_zeros((*self.weight.shape[:2], *size))
        weight[every(rate)] = self.weight
        return Kernel(weight, self.bias, self.stride, self.padding, self.groups, self.up)

    def fold_batch_norm(
        self, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Kernel:
        """This convolution followed by batch normalisation with fixed statistics, all [o]; see `batch_norm_affine`."""
        scale, shift = batch_norm_affine(mean, variance, weight, bias, eps)
        return (self * scale).shift(shift)


def innermost_first(padding: Sequence[int]) -> list[int]:
    """Padding as PyTorch's `pad` takes it: before and after the last axis, then the one before that."""
    return [side for pair in reversed([*zip(*halves(padding), strict=True)]) for side in pair]


def every(steps: Sequence[int]) -> tuple[slice, ...]:
    """An index of [n, c, ...] that takes a pixel in so many, by axis."""
    return (slice(None), slice(None), *(slice(None, None, step) for step in steps))


def batch_norm_affine(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Batch normalisation with fixed statistics as `y * scale + shift`, [..., c] each.

    `BN(y) = (y - mean) / sqrt(variance + eps) * weight + bias`; `weight=None` means 1, `bias=None` means 0.
    """
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def combine(
    kernels: Sequence[Kernel],
    factors: Tensor | Sequence[Tensor | None] | None = None,
    *,
    rates: Sequence[Axes] | None = None,
    within: Geometry | None = None,
) -> Kernel:
    """`sum_j factors[j] * kernels[j]` of convolutions of one input: aligned by their padding, groups merged.

    Args:
        kernels: at least one.
        factors: for each kernel a scalar tensor, one number a channel [o], or None for 1; or all in one, [j, o].
        rates: of each kernel, how many pixels apart its taps are, 1 if not given (see `Kernel.dilate`).
        within: a geometry the result has room for, for example that of a 3x3 around smaller kernels.

    Raises:
        GeometryError: see `Geometry.parallel`.
    """
    if factors is not None and not isinstance(factors, Tensor):
        ones = torch.ones_like(kernels[0].bias)
        factors = torch.stack([ones if f is None else f.expand_as(ones) for f in factors])
    axes = max(kernel.axes for kernel in kernels)
    kernels = [kernel.of_axes(axes) for kernel in kernels]
    rates = ((1,) * axes,) * len(kernels) if rates is None else tuple(with_flat(rate, axes, 1) for rate in rates)
    target, places = _places(tuple(kernel.geometry for kernel in kernels), rates, within)
    weight: Tensor = _WeightedSum.apply(target.weight_shape, places, factors, *(k.weight for k in kernels))
    biases = torch.stack([k.bias for k in kernels])
    if factors is not None:
        biases = biases * factors
    return Kernel(weight, biases.sum(0), target.stride, target.padding, target.groups, target.up)


class _Place(NamedTuple):
    """Where in a larger weight another one stands: at some taps, `merged` of its groups in each of `groups`."""

    taps: tuple[slice, ...]
    merged: int
    groups: int

    def of(self, weight: Tensor) -> Tensor:
        """The blocks of the larger weight, a view [groups, o/groups/merged, i/groups/merged, k..., merged].

        Writing dense blocks of zeros around them costs more.
        """
        taps = weight[(slice(None), slice(None), *self.taps)]
        o, i, *size = taps.shape
        merged, groups = self.merged, self.groups
        square = taps.view(groups, merged, o // groups // merged, merged, i // merged, *size)
        return square.diagonal(dim1=1, dim2=3)

    def shaped(self, value: Tensor) -> Tensor:
        """The smaller weight, or one number for each of its channels [o], as such blocks."""
        rest = value.shape[1:] if value.dim() > 1 else (1,) * (len(self.taps) + 1)
        return value.reshape(self.groups, self.merged, -1, *rest).movedim(1, -1)


@lru_cache(maxsize=1024)  # a training step asks for the same ones as the last
def _places(
    geometries: tuple[Geometry, ...], rates: tuple[Axes, ...], within: Geometry | None
) -> tuple[Geometry, tuple[_Place, ...]]:
    """The geometry of a sum of convolutions, and where in it each stands."""
    dilated = [geometry.dilate(rate) for geometry, rate in zip(geometries, rates, strict=True)]
    target = reduce(Geometry.parallel, dilated if within is None else (within, *dilated))
    places = []
    for geometry, rate in zip(dilated, rates, strict=True):
        inside = halves(geometry.padding)[0]
        first = [new - old for new, old in zip(halves(target.padding)[0], inside, strict=True)]
        taps = tuple(slice(f, f + k, r) for f, k, r in zip(first, geometry.size, rate, strict=True))
        places.append(_Place(taps, geometry.groups // target.groups, target.groups))
    return target, tuple(places)


class _WeightedSum(torch.autograd.Function):
    """`sum_j factors[j] * weight_j`, each at its place: one pass over each weight forwards, two backwards.

    Adding to views under autograd instead copies the whole gradient for each of them.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch's own
        shape: tuple[int, ...],
        places: tuple[_Place, ...],
        factors: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(factors, *weights)
        dtype = reduce(torch.promote_types, (w.dtype for w in weights))
        last = any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)
        form = torch.channels_last if last else torch.contiguous_format
        total = torch.empty(shape, dtype=dtype, device=weights[0].device, memory_format=form).zero_()
        ctx.places, ctx.form = places, form
        for index, (place, weight) in enumerate(zip(places, weights, strict=True)):
            view = place.of(total)
            if factors is None:
                view += place.shaped(weight)
            else:
                view.addcmul_(place.shaped(weight), place.shaped(factors[index]))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        factors, *weights = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=ctx.form)  # products of unlike layouts take three times as long
        of_factors = torch.empty_like(factors) if ctx.needs_input_grad[2] else None
        of_weights: list[Tensor | None] = []
        for index, (place, weight) in enumerate(zip(ctx.places, weights, strict=True)):
            view = place.of(gradient)
            if of_factors is not None:
                inner = tuple(range(2, view.dim() - 1))
                of_factors[index] = (view * place.shaped(weight)).sum(inner).movedim(-1, 1).reshape(-1)
            if not ctx.needs_input_grad[3 + index]:
                of_weights.append(None)
                continue
            scaled = view if factors is None else view * place.shaped(factors[index])
            of_weights.append(scaled.movedim(-1, 1).reshape(weight.shape))
        return (None, None, of_factors, *of_weights)


def compose(
    outer: Kernel,
    inner: Kernel,
    *,
    border: Literal["zero", "inner"] = "zero",
    closed: Sequence[bool] | None = None,
) -> Kernel:
    """`outer` after `inner` as one kernel.

    `border` says what the outer convolution's padding holds: "zero", or "inner": what `inner` makes of a zero pixel,
    which is its bias. Only the second is exact where `outer` pads and `inner` has a bias. `closed`: see
    `Geometry.series`.

    Raises:
        GeometryError: the result is not one convolution at every pixel (see `Geometry.series`).
    """
    target = outer.geometry.series(inner.geometry, closed)
    outer, inner = outer.of_axes(target.axes), inner.of_axes(target.axes)
    if border == "zero" and max(outer.padding) > 0 and bool(torch.any(inner.bias != 0)):
        raise GeometryError(
            "a convolution with bias followed by one padded with zeros is not one convolution at the border: "
            f"{outer.geometry} after {inner.geometry}; pad with the inner bias instead, or drop it"
        )
    response = outer.weight.sum(
        tuple(range(2, outer.axes + 2))
    )  # what the outer convolution makes of a constant image, [o, m/g]
    constant = inner.bias.reshape(outer.groups, 1, -1)
    bias = (response.reshape(outer.groups, -1, response.shape[1]) * constant).sum(2).reshape(-1)
    inner = inner.regroup(target.groups).dilate(
        outer.up
    )  # the outer groups may stay finer: each reads inside one inner group
    groups = outer.groups
    o, m, *size = outer.weight.shape
    if set(inner.weight.shape[2:]) == {1}:
        # One matrix product, about three times faster than the general form below for 512 channels in float64.
        taps = outer.weight.movedim(1, -1).reshape(groups, -1, m)  # nothing is moved if it is channels last
        full = torch.matmul(taps, inner.weight.reshape(groups, m, -1)).reshape(o, *size, -1).movedim(-1, 1)
        spread = Kernel(full, outer.bias + bias, target.stride, target.padding, target.groups, target.up)
        return spread.dilate(inner.stride)
    # A transposed convolution of the outer taps by the inner ones is their full convolution, with the outer taps
    # `inner.stride` pixels apart: sum over m, u of W2[o, m, u] W1[m, i, y - u s].
    rows = outer.weight.reshape(groups, o // groups, m, *size).transpose(0, 1).reshape(-1, groups * m, *size)
    full = _SPREAD[target.axes](rows, inner.weight, stride=inner.stride, groups=groups)
    full = full.reshape(o // groups, groups, -1, *full.shape[2:]).transpose(0, 1).reshape(target.weight_shape)
    return Kernel(full, outer.bias + bias, target.stride, target.padding, target.groups, target.up)


def identity(
    channels: int, *, groups: int = 1, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Kernel:
    """The 1x1 kernel that returns its input, in any number of groups."""
    shape = Geometry(channels, channels, groups=groups).weight_shape
    weight = torch.zeros(shape, dtype=dtype, device=device)
    index = torch.arange(channels, device=device)
    weight[index, index % (channels // groups)] = 1
    return Kernel(weight, weight.new_zeros(channels), groups=groups)


def average(
    channels: int,
    *,
    size: Axes,
    stride: Axes = (1, 1),
    padding: Sides = (0, 0, 0, 0),
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Kernel:
    """Average pooling that counts padded pixels, as a depthwise kernel."""
    weight = torch.full((channels, 1, *size), 1 / prod(size), dtype=dtype, device=device)
    return Kernel(weight, weight.new_zeros(channels), stride, padding, channels)
