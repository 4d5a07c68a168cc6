"""The affine operations both readers know, as terms of a sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from ...algebra.geometry import Axes, Geometry, Pair, Sides, with_flat
from ...algebra.kernels import Kernel
from ...errors import GeometryError
from .expression import Term
from .form import Form, scale_form
from .pool import Pool
from .reasons import Kind, StaysError

_TO_THE_END = 2**31 - 1
"""Exporters write "to the end" as the largest number of 32 or 64 bits."""


def convolution_term(
    source: str,
    weight: Callable[[], Tensor],
    shape: tuple[int, ...],
    *,
    stride: Axes = (1, 1),
    padding: Sides = (0, 0, 0, 0),
    dilation: Axes = (1, 1),
    groups: int = 1,
    up: Axes = (1, 1),
) -> Term:
    """A convolution whose `weight` gives [o, i/g, k...] = `shape` in float64 when its numbers are needed."""
    o, i, *taps = shape
    dilation = with_flat(dilation, len(taps), 1)
    geometry = Geometry(i * groups, o, extent(taps, dilation), stride, padding, groups, up)
    form = Form(geometry, tuple(d if k > 1 else 0 for k, d in zip(taps, dilation, strict=True)))

    def numbers() -> Tensor:
        full = weight()
        return Kernel(full, full.new_zeros(o)).dilate(dilation).weight

    return Term.leaf(source, form, numbers, weight)


def transposed_term(
    source: str,
    weight: Callable[[], Tensor],
    shape: tuple[int, ...],
    *,
    stride: Axes = (1, 1),
    crop: Sides = (0, 0, 0, 0),
    dilation: Axes = (1, 1),
    groups: int = 1,
) -> Term:
    """A transposed convolution whose `weight` gives [i, o/g, k...] = `shape`; the whole overlap but for `crop`."""
    i, m, *taps = shape
    dilation = with_flat(dilation, len(taps), 1)
    overlap = [k - 1 for k in extent(taps, dilation)] * 2
    crop = crop if any(crop) else (0,) * len(overlap)

    def turned() -> Tensor:
        return turned_around(weight(), groups)

    return convolution_term(
        source,
        turned,
        (m * groups, i // groups, *taps),
        padding=tuple(pixels - cut for pixels, cut in zip(overlap, crop, strict=True)),
        dilation=dilation,
        groups=groups,
        up=stride,
    )


def extent(taps: Sequence[int], dilation: Sequence[int]) -> Axes:
    """Pixels from the first tap to the last, by axis."""
    return tuple((k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True))


def turned_around(weight: Tensor, groups: int) -> Tensor:
    """The weight [i, o/g, k...] of a transposed convolution as that [o, i/g, k...] of a convolution, or back."""
    a, b, *size = weight.shape
    blocks = weight.reshape(groups, a // groups, b, *size).transpose(1, 2)
    return blocks.reshape(groups * b, a // groups, *size).flip(tuple(range(2, weight.dim())))


def average_term(
    source: str, channels: int, taps: Axes, *, stride: Axes, padding: Sides, dilation: Axes = (1, 1)
) -> Term:
    """Average pooling that counts padded pixels; a pool, too, where it pads none; a grid of single pixels is none."""
    if prod(taps) == 1:
        return grid_term(source, channels, stride=stride, padding=padding)
    shape = (channels, 1, *taps)
    term = convolution_term(
        source,
        lambda: torch.full(shape, 1 / prod(taps), dtype=torch.float64),
        shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=channels,
    )
    if any(padding) or max(dilation) > 1:
        return term
    return term.with_pool(None, Term.average(source, channels, Pool(tuple(taps), tuple(stride))))


def scale_term(source: str, factors: Tensor) -> Term:
    """One factor a channel, [c] in float64."""
    form = scale_form(len(factors), zeros=not bool(factors.any()))
    return Term.leaf(source, form, lambda: factors.reshape(-1, 1, 1, 1))


def matrix_term(source: str, matrix: Callable[[], Tensor], shape: Pair) -> Term:
    """A matrix at every pixel; `matrix` gives [o, i] = `shape` in float64 when its numbers are needed."""
    o, i = shape
    return Term.leaf(source, Form(Geometry(i, o)), lambda: matrix()[:, :, None, None])


def grid_term(source: str, channels: int, *, stride: Axes = (1, 1), padding: Sides = (0, 0, 0, 0)) -> Term:
    """Zeros around every channel, or rows and columns taken out of it."""
    size = (1,) * (len(padding) // 2 if any(padding) else len(stride))
    return Term.leaf(source, Form(Geometry(channels, channels, size, stride, padding, channels), ones=True))


def select_term(source: str, channels: int, index: Sequence[int]) -> Term:
    """Some channels, in an order."""
    if list(index) == list(range(channels)):
        return Term.itself(source, channels)
    weight = _ones(len(index), channels, range(len(index)), index)
    return Term.leaf(source, Form(Geometry(channels, len(index))), weight)


def slice_term(
    source: str, dims: Sequence[object], axis: int, start: int | None, end: int | None, step: int = 1
) -> Term:
    """`start:end:step` of one axis of a tensor of size `dims`, [n, c, ...] with something else for open sides.

    Raises:
        GeometryError: images, nothing at all, rows backwards, or rows of an open number counted from both ends.
    """
    count = max(len(dims), axis + 1) - 2
    channels, side = dims[1], with_flat(dims, count + 2, 1)[axis]
    if not isinstance(channels, int):
        raise GeometryError("it takes something out of an open number of channels")
    if axis == 1:
        kept = range(channels)[start:end:step]
        if not kept:
            raise GeometryError("it takes no channel at all")
        return select_term(source, channels, kept)
    if axis == 0:
        raise StaysError(Kind.PIXELS(does="it takes images out of a batch"))
    if step < 1:
        raise StaysError(Kind.PIXELS(does="it takes rows or columns backwards"))
    if isinstance(side, int):
        first, last, _ = slice(start, end, 1).indices(side)
        if first >= last:
            raise GeometryError("it takes no row or column at all")
        before, after = -first, last - side
    else:
        before, after = _open_crop(start or 0, end)
    crop, stride = [0] * (2 * count), [1] * count
    crop[axis - 2], crop[count + axis - 2], stride[axis - 2] = before, after, step
    return grid_term(source, channels, stride=tuple(stride), padding=tuple(crop))


def _open_crop(start: int, end: int | None) -> Pair:
    """What a slice of an open number of rows cuts off at its beginning and end, as negative padding."""
    if start < 0 or (end is not None and 0 <= end < _TO_THE_END):
        raise StaysError(Kind.OPEN_SIZE(what="how many rows or columns it leaves out"))
    return -start, end if end is not None and end < 0 else 0


def concatenation(sources: Sequence[tuple[str, int]]) -> tuple[Term, ...]:
    """Tensors of so many channels each, one after another."""
    total, start, terms = sum(width for _, width in sources), 0, []
    for name, width in sources:
        rows = range(start, start + width)
        terms.append(Term.leaf(name, Form(Geometry(width, total)), _ones(total, width, rows, range(width))))
        start += width
    return tuple(terms)


def _ones(out: int, into: int, rows: Sequence[int], columns: Sequence[int]) -> Callable[[], Tensor]:
    """A weight [out, into, 1, 1] with ones at the (row, column) pairs."""

    def numbers() -> Tensor:
        weight = torch.zeros(out, into, 1, 1, dtype=torch.float64)
        weight[list(rows), list(columns)] = 1
        return weight

    return numbers
