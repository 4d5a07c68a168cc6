"""The affine operations both readers know, as terms of a sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..geometry import Geometry, Pair, Sides
from ..kernels import Kernel
from .expression import Term
from .form import Form, scale_form


def convolution_term(
    source: str,
    weight: Callable[[], Tensor],
    shape: tuple[int, int, int, int],
    *,
    stride: Pair = (1, 1),
    padding: Sides = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Term:
    """A convolution whose `weight` gives [o, i/g, kh, kw] = `shape` in float64 when its numbers are needed."""
    o, i, kh, kw = shape
    size = ((kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1)
    geometry = Geometry(i * groups, o, size, stride, padding, groups)
    form = Form(geometry, (dilation[0] if kh > 1 else 0, dilation[1] if kw > 1 else 0))

    def numbers() -> Tensor:
        full = weight()
        return Kernel(full, full.new_zeros(o)).dilate(dilation).weight

    return Term.leaf(source, form, numbers)


def average_term(
    source: str, channels: int, taps: Pair, *, stride: Pair, padding: Sides, dilation: Pair = (1, 1)
) -> Term:
    """Average pooling that counts padded pixels."""
    shape = (channels, 1, *taps)
    return convolution_term(
        source, lambda: torch.full(shape, 1 / (taps[0] * taps[1]), dtype=torch.float64), shape,
        stride=stride, padding=padding, dilation=dilation, groups=channels,
    )  # fmt: skip


def scale_term(source: str, factors: Tensor) -> Term:
    """One factor a channel, [c] in float64."""
    return Term.leaf(source, scale_form(len(factors)), lambda: factors.reshape(-1, 1, 1, 1))


def matrix_term(source: str, matrix: Tensor) -> Term:
    """A matrix [o, i] in float64 at every pixel."""
    o, i = matrix.shape
    return Term.leaf(source, Form(Geometry(i, o)), lambda: matrix[:, :, None, None])


def grid_term(source: str, channels: int, *, stride: Pair = (1, 1), padding: Sides = (0, 0, 0, 0)) -> Term:
    """Zeros around every channel, or rows and columns taken out of it."""
    return Term.leaf(source, Form(Geometry(channels, channels, (1, 1), stride, padding, channels), ones=True))


def select_term(source: str, channels: int, index: Sequence[int]) -> Term:
    """Some channels, in an order."""
    if list(index) == list(range(channels)):
        return Term.itself(source, channels)
    weight = _ones(len(index), channels, range(len(index)), index)
    return Term.leaf(source, Form(Geometry(channels, len(index))), weight)


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
