"""Tensors of any layout, and what moving, joining, taking apart and summing their parts makes of them.

Both readers say what their nodes do in these words. Each function gives what the node makes, or raises `GeometryError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ...algebra.geometry import Geometry, with_flat
from ...errors import GeometryError
from ..core.dims import Dim, Dims, symbol
from ..core.expression import Term
from ..core.form import Form
from ..core.pool import Pool
from ..core.reasons import Kind, StaysError
from ..core.step import Offset
from ..core.terms import convolution_term, matrix_term, scale_term, select_term, slice_term
from .layout import BATCH, MOST_PIXEL_AXES, Atom, Layout, permuted, plain, reshaped, size_of

MIXES_PIXELS = "it mixes pixels or images of an axis that is no channels"

LARGEST_MATRIX = 2**24
"""A matrix over channels of more numbers is not looked for."""


Reader = Literal["convolution", "norm", "matrix"]
"""An operation that takes a tensor in some layouts only: [n, c, pixels], channels alone on axis 1, or all channels
and no images on a last axis of known size."""


@dataclass(frozen=True)
class Carried:
    """A tensor as convolutions see it: its name, the layout of its axes, and its size, see `Dims`."""

    name: str
    layout: Layout
    dims: Dims

    def size_of(self, atom: Atom) -> object:
        """How many elements a part of an axis has."""
        return self.dims[0] if atom.kind == "batch" else self.sides(atom.number + 1)[atom.number]

    def sides(self, count: int) -> tuple[Dim, ...]:
        """So many sides of the image, 1 for those there are not."""
        return with_flat(self.dims[2:], count, 1)

    @property
    def size(self) -> tuple[object, ...]:
        """The tensor's own shape; None for an axis of several parts, some of them open."""
        return tuple(_product([size_of(a, self.size_of) for a in axis]) for axis in self.layout.axes)

    @property
    def frame(self) -> tuple[tuple[object, ...], ...]:
        """What its axes are but for the number of channels, and for whatever is a single element.

        Elementwise operations need tensors of equal frames.
        """
        axes = [[atom for atom in axis if size_of(atom, self.size_of) != 1] for axis in self.layout.axes]
        return tuple(tuple("channels" if a.kind == "channels" else a for a in axis) for axis in axes)

    @property
    def is_plain(self) -> bool:
        """True for [n, c, pixels], as convolutions take it."""
        pixels = len(self.layout.axes) - 2
        within = 0 <= pixels <= MOST_PIXEL_AXES
        return within and self.frame == Carried("", plain(self.layout.channels, pixels), self.dims).frame

    @property
    def channel_axis(self) -> int | None:
        """The one axis that is the channels and nothing else, if there is one."""
        if self.layout.channels == 1:
            return 1 if self.is_plain else len(self.layout.axes) - 1
        found = [i for i, axis in enumerate(self.frame) if "channels" in axis]
        return found[0] if len(found) == 1 and len(self.frame[found[0]]) == 1 else None

    def suits(self, reader: Reader | None) -> bool:
        """True if whoever reads it takes it in its layout."""
        if reader == "convolution":
            return self.is_plain
        if reader == "matrix":
            parts = self.layout.axes[-1]
            known = all(isinstance(size_of(atom, self.size_of), int) for atom in parts)
            return known and self.layout.widths[-1] == self.layout.channels and BATCH not in parts
        return reader is None or self.layout.holds_only_channels(1)

    @property
    def axes_of_pixels(self) -> tuple[int, ...]:
        """The axes that hold pixels."""
        return tuple(i for i, axis in enumerate(self.layout.axes) if any(atom.kind == "pixel" for atom in axis))

    def without_pixels(self, *, keep: bool) -> Carried:
        """What it is once its pixels are averaged; keep: the axes that held them stay, of one pixel.

        Raises:
            GeometryError: pixels share an axis with channels or images.
        """
        gone = self.axes_of_pixels
        if any(atom.kind != "pixel" for axis in gone for atom in self.layout.axes[axis]):
            raise StaysError(Kind.PIXELS(does="it averages pixels that share an axis with channels or images"))
        axes = [axis for i, axis in enumerate(self.layout.axes) if keep or i not in gone]
        return Carried(self.name, Layout(tuple(axes)), Pool().through(self.dims))

    @property
    def itself(self) -> Term:
        """The term that is this tensor."""
        return Term.itself(self.name, self.layout.channels)


@dataclass(frozen=True)
class Made:
    """What a node makes: terms and a constant over [n, c, pixels], and the layout of its axes.

    moves: passes over the output that the node takes.
    """

    layout: Layout
    terms: tuple[Term, ...]
    offset: Offset | None = None
    moves: int = 1


def _product(sides: Sequence[object]) -> object:
    total = 1
    for side in sides:
        if not isinstance(side, int):
            return side if len(sides) == 1 else None
        total *= side
    return total


def permute(tensor: Carried, order: Sequence[int]) -> Made:
    """The axes in another order."""
    layout, table = permuted(tensor.layout, order)
    return Made(layout, (select_term(tensor.name, tensor.layout.channels, table),))


def reshape(tensor: Carried, shape: Sequence[object]) -> Made:
    """The same numbers in the same order in another shape.

    Of open sides, those that are the tensor's own are known; another, if it is the only one, is what is left.
    """
    own = {size_of(atom, tensor.size_of) for axis in tensor.layout.axes for atom in axis}
    known = [side if isinstance(side, int) or side in own else None for side in shape]
    if known.count(None) > 1:
        raise StaysError(Kind.OPEN_SIZE(what="more than one side of the shape it makes"))
    return Made(reshaped(tensor.layout, tensor.size_of, known), (tensor.itself,), moves=0)


def insert_axes(tensor: Carried, positions: Sequence[int]) -> Made:
    """Axes of one element put in, at `positions` of the result."""
    rank = len(tensor.layout.axes) + len(positions)
    new = {position % rank for position in positions}
    old = iter(tensor.layout.axes)
    return Made(Layout(tuple(() if i in new else next(old) for i in range(rank))), (tensor.itself,), moves=0)


def drop_axes(tensor: Carried, positions: Sequence[int] | None) -> Made:
    """Axes of one element taken out, all of them for None."""
    rank, size = len(tensor.layout.axes), tensor.size
    gone = {p % rank for p in positions} if positions is not None else {i for i in range(rank) if size[i] == 1}
    if any(size[axis] != 1 for axis in gone):
        raise StaysError(Kind.OPEN_SIZE(what="whether the axis it drops is of one element"))
    kept = [axis for i, axis in enumerate(tensor.layout.axes) if i not in gone]
    return Made(Layout(tuple(kept)), (tensor.itself,), moves=0)


def on_channels(tensor: Carried, axis: int, move: Callable[[Tensor], Tensor], *, keeps_axis: bool = True) -> Made:
    """A movement along an axis that holds only channels: `move` of the table of their numbers."""
    axis %= len(tensor.layout.axes)
    if not tensor.layout.holds_only_channels(axis):
        raise StaysError(Kind.PIXELS(does=f"it takes or turns around images or pixels, of axis {axis}"))
    table = move(tensor.layout.table())
    if not table.numel():
        raise GeometryError("it takes no channel at all")
    widths, layout = list(table.shape), tensor.layout
    if not keeps_axis:
        widths.insert(axis, 1)
    layout = layout.with_widths(widths)
    if not keeps_axis:
        layout = Layout((*layout.axes[:axis], *layout.axes[axis + 1 :]))
    return Made(layout, (select_term(tensor.name, tensor.layout.channels, table.flatten().tolist()),))


def take(tensor: Carried, axis: int, index: Sequence[int], *, keeps_axis: bool = True) -> Made:
    """Some places of an axis of channels, in an order."""
    axis %= len(tensor.layout.axes)
    positions = torch.tensor(list(index), dtype=torch.int64)
    width = tensor.layout.widths[axis]
    if bool(((positions < -width) | (positions >= width)).any()):
        raise GeometryError(f"it takes a place outside axis {axis}")

    def move(table: Tensor) -> Tensor:
        found = table.index_select(axis, positions % width)
        return found if keeps_axis else found.squeeze(axis)

    return on_channels(tensor, axis, move, keeps_axis=keeps_axis)


def cut(tensor: Carried, axis: int, start: int | None, end: int | None, step: int = 1) -> Made:
    """`start:end:step` of an axis."""
    axis %= len(tensor.layout.axes)
    parts = tensor.layout.axes[axis]
    if tensor.layout.holds_only_channels(axis):
        places = range(tensor.layout.widths[axis])[start:end:step]
        if len(places) == tensor.layout.widths[axis] and step == 1:
            return Made(tensor.layout, (tensor.itself,), moves=0)
        return take(tensor, axis, list(places))
    if start in (None, 0) and (end is None or end >= 2**31 - 1) and step == 1:
        return Made(tensor.layout, (tensor.itself,), moves=0)  # x[:, 1:] takes every image first
    if len(parts) != 1:
        raise StaysError(Kind.PIXELS(does="it takes a part of an axis that holds several"))
    number = 0 if parts[0].kind == "batch" else 2 + parts[0].number
    return Made(tensor.layout, (slice_term(tensor.name, tensor.dims, number, start, end, step),))


def join(tensors: Sequence[Carried], axis: int) -> Made:
    """Tensors one after another along an axis of channels."""
    rank = len(tensors[0].layout.axes)
    axis %= rank
    widths = [list(t.layout.widths) for t in tensors]
    for each in tensors:
        if not each.layout.holds_only_channels(axis):
            raise StaysError(Kind.PIXELS(does=f"it joins images or pixels along axis {axis}, which are no channels"))
    together = [*widths[0]]
    together[axis] = sum(width[axis] for width in widths)
    holder = Layout((*tensors[0].layout.axes[:axis], (Atom("channels", 1),), *tensors[0].layout.axes[axis + 1 :]))
    layout = holder.with_widths(together)
    if len({t.frame[:axis] + t.frame[axis + 1 :] for t in tensors}) > 1:
        raise StaysError(Kind.AXES(does="joins"))
    if len({(t.dims[0], *t.dims[2:]) for t in tensors}) > 1:
        raise StaysError(Kind.SIZES(does="joins", sizes=" and ".join(str(t.size) for t in tensors)))
    places, start, terms = layout.table(), 0, []
    for each, width in zip(tensors, widths, strict=True):
        rows = places.narrow(axis, start, width[axis]).flatten()
        start += width[axis]
        terms.append(
            Term.leaf(each.name, Form(Geometry(each.layout.channels, layout.channels)), _placed(rows, layout.channels))
        )
    return Made(layout, tuple(terms))


def _placed(rows: Tensor, total: int) -> Callable[[], Tensor]:
    """The weight [total, len(rows), 1, 1] that puts channel i at rows[i]."""

    def numbers() -> Tensor:
        weight = torch.zeros(total, len(rows), 1, 1, dtype=torch.float64)
        weight[rows, torch.arange(len(rows))] = 1
        return weight

    return numbers


def combine(tensor: Carried, function: Callable[[Tensor], Tensor], layout: Layout) -> Made:
    """A linear function of channels alone, [channels as on the axes, 1 elsewhere] -> the same of `layout`.

    Its matrix is found by applying it to each channel by itself.
    """
    channels, out = tensor.layout.channels, layout.channels
    if channels * out > LARGEST_MATRIX:
        raise StaysError(Kind.MATRIX(channels=channels, made=out))
    basis = torch.eye(channels, dtype=torch.float64).reshape(channels, *tensor.layout.widths)
    found = torch.stack([function(each).reshape(-1) for each in basis])  # [i, o]
    if found.shape != (channels, out):
        raise StaysError(Kind.PIXELS(does="it sums over pixels or images besides channels"))
    if out == channels and bool((found == torch.diag(found.diagonal())).all()):
        return Made(layout, (scale_term(tensor.name, found.diagonal().clone()),))
    return Made(layout, (matrix_term(tensor.name, found.T.contiguous, (out, channels)),))


def total(tensor: Carried, axes: Sequence[int], *, mean: bool, keep: bool) -> Made:
    """The sum or mean along axes of channels, or the mean of all pixels."""
    rank = len(tensor.layout.axes)
    gone = {axis % rank for axis in axes}
    if mean and gone == set(tensor.axes_of_pixels):
        return Made(
            tensor.without_pixels(keep=keep).layout, (Term.average(tensor.name, tensor.layout.channels, Pool()),)
        )
    if any(not tensor.layout.holds_only_channels(axis) for axis in gone):
        raise StaysError(Kind.PIXELS(does="it sums over images or pixels, of which only the mean of all is known"))
    kept = [() if i in gone else axis for i, axis in enumerate(tensor.layout.axes) if keep or i not in gone]
    how = torch.mean if mean else torch.sum
    return combine(tensor, lambda t: how(t, tuple(gone), keepdim=keep), Layout(tuple(kept)))


def spread(value: Tensor, tensor: Carried) -> Tensor:
    """A constant that broadcasts against `tensor` as one number a channel, [c] in float64.

    Raises:
        GeometryError: it makes the tensor larger, or differs from pixel to pixel or image to image.
    """
    value = value.detach().cpu().to(torch.float64)
    shape, size, layout = list(value.shape), tensor.size, tensor.layout
    if len(shape) > len(size):
        raise StaysError(Kind.NOT_BY_CHANNEL(shape=shape, how=f"has more axes than the tensor, which has {len(size)}"))
    aligned = value.reshape((1,) * (len(size) - len(shape)) + tuple(shape))
    if any(mine not in (1, theirs) for mine, theirs in zip(aligned.shape, size, strict=True)):
        how = (
            f"is not one number a channel: there are {layout.channels} channels, and the other sides must be 1 or "
            "those of the tensor"
        )
        raise StaysError(Kind.NOT_BY_CHANNEL(shape=shape, how=how))
    for axis, side in enumerate(aligned.shape):
        if side > 1 and not layout.holds_only_channels(axis):
            first = aligned.narrow(axis, 0, 1)
            if not bool((aligned == first).all()):
                how = "is not one number a channel: it differs from pixel to pixel or image to image"
                raise StaysError(Kind.NOT_BY_CHANNEL(shape=shape, how=how))
            aligned = first
    return aligned.expand(layout.widths).flatten()


def einsum(tensor: Carried, equation: str, position: int, operands: Sequence[Tensor | None]) -> Made:
    """`torch.einsum` of constants and, at `position`, a tensor of which only channels are summed or weighed."""
    equation = equation.replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    letters = inputs.split(",")
    mine = letters[position]
    if not arrow or "." in equation or len(mine) != len(tensor.layout.axes) or len(set(mine)) < len(mine):
        raise StaysError(Kind.PIXELS(does=f"einsum {equation!r} takes a diagonal, or does not write its axes out"))
    others = "".join(letters[:position] + letters[position + 1 :])
    axes: list[tuple[Atom, ...]] = []
    values = [None if v is None else v.detach().cpu().to(torch.float64) for v in operands]
    sides = {
        letter: side
        for word, value in zip(letters, values, strict=True)
        if value is not None
        for letter, side in zip(word, value.shape, strict=True)
    }
    for axis, letter in enumerate(mine):
        if not tensor.layout.holds_only_channels(axis) and (letter in others or letter not in output):
            raise StaysError(Kind.PIXELS(does=f"einsum {equation!r} sums over pixels or images, or weighs them"))
    for letter in output:
        if letter in mine:
            axes.append(tensor.layout.axes[mine.index(letter)])
        else:
            axes.append((Atom("channels", sides[letter]),))

    def apply(each: Tensor) -> Tensor:
        return torch.einsum(equation, [each if value is None else value for value in values])

    return combine(tensor, apply, Layout(tuple(axes)))


def matmul(tensor: Carried, left: Tensor | None, right: Tensor | None) -> Made:
    """`left @ tensor` or `tensor @ right` of a constant matrix: it mixes one axis, which must be of channels."""
    matrix = right if left is None else left
    rank = len(tensor.layout.axes)
    axis = rank - 1 if left is None else rank - 2
    if left is None and matrix is not None and matrix.dim() == 2 and len(tensor.layout.axes[-1]) > 1:
        return last_axis(tensor, matrix.detach().cpu().double().T.contiguous, (matrix.shape[1], matrix.shape[0]))
    if matrix is None or matrix.dim() != 2 or rank < 2 or not tensor.layout.holds_only_channels(axis):
        raise StaysError(Kind.PIXELS(does=MIXES_PIXELS))
    value = matrix.detach().cpu().to(torch.float64)
    out = value.shape[1] if left is None else value.shape[0]
    if left is None and tensor.layout.channels == tensor.layout.widths[axis]:
        return last_axis(tensor, value.T.contiguous, (out, value.shape[0]))
    axes = [*tensor.layout.axes]
    axes[axis] = (Atom("channels", out),)
    return combine(tensor, lambda t: t @ value if left is None else value @ t, Layout(tuple(axes)))


def last_axis(tensor: Carried, matrix: Callable[[], Tensor], shape: tuple[int, int]) -> Made:
    """A matrix [o, i] = `shape` times the last axis: of channels alone, or with pixels, as of a flattened image.

    With pixels it is a convolution whose kernel is as large as the image.

    Raises:
        GeometryError: the axis is something else, or of an open size.
    """
    (o, i), parts = shape, tensor.layout.axes[-1]
    sides = [size_of(atom, tensor.size_of) for atom in parts]
    known = [side for side in sides if isinstance(side, int)]
    whole = tensor.layout.widths[-1] == tensor.layout.channels
    if not whole and all(atom.kind != "channels" for atom in parts) and prod(known) > 1:
        raise StaysError(Kind.PIXELS(does=MIXES_PIXELS))
    if not whole or len(known) < len(sides) or prod(known) != i or any(atom.kind == "batch" for atom in parts):
        raise StaysError(Kind.LAYOUT(what="it multiplies the last axis, and its input is laid out"))
    layout = Layout((*tensor.layout.axes[:-1], (Atom("channels", o),)))
    if tensor.layout.holds_only_channels(-1):
        return Made(layout, (matrix_term(tensor.name, matrix, (o, i)),))
    # Channels first, then rows and columns, whatever their order on the axis.
    order = sorted(range(len(parts)), key=lambda at: parts[at].number if parts[at].kind == "pixel" else -1)
    size = {atom.number: side for atom, side in zip(parts, known, strict=True) if atom.kind == "pixel"}
    kernel = (o, tensor.layout.channels, *(size.get(number, 1) for number in range(max(size) + 1)))

    def numbers() -> Tensor:
        return matrix().reshape(o, *known).permute(0, *(1 + at for at in order)).reshape(kernel)

    return Made(layout, (convolution_term(tensor.name, numbers, kernel),))


def open_side(text: object) -> object:
    """An open side as dims hold it, from the name a program gives it."""
    return symbol(str(text))


def after(source: Carried, first: Made, then: Callable[[Carried], Made]) -> Made:
    """What `then` makes of a tensor that is one term of `source` and is not there itself."""
    term = first.terms[0]
    inner = Carried(source.name, first.layout, term.makes(source.dims))
    second = then(inner)
    return Made(second.layout, (second.terms[0].after(term),), moves=max(first.moves, second.moves))
