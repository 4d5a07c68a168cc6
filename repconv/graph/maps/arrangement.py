"""How a term is written between tensors of any layouts: where it can be in place, else between changes of layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ...errors import GeometryError
from ..core.form import REMEMBERED, Form
from .carried import Carried
from .layout import BATCH, Atom, Layout, plain, size_of

Change = tuple[Literal["permute", "reshape"], tuple[int, ...]]
"""Axes in another order, or another shape; one side of a shape may be -1."""


@dataclass(frozen=True)
class Arrangement:
    """What to do to the source, whether the last axis is multiplied by a matrix or [n, c, pixels] convolved, and after.

    pixels: pixel axes of the convolution; None for the matrix, and for scales, which any layout takes. flat: the matrix
    is multiplied by a tensor of two axes.
    """

    before: tuple[Change, ...]
    pixels: int | None
    after: tuple[Change, ...]
    flat: bool = False

    @property
    def passes(self) -> int:
        """How often the tensor is moved."""
        return sum(kind == "permute" for kind, _ in (*self.before, *self.after))


@lru_cache(maxsize=REMEMBERED)
def arrange(form: Form, source: Carried, output: Carried) -> Arrangement:
    """How to write a term of this form.

    Raises:
        GeometryError: a layout needs a reshape of more than one open side, or see `broadcasts`.
    """
    written = form.without_cropping()
    same = source.frame == output.frame
    if form.is_diagonal and not form.is_identity:
        broadcasts(source)
    if form.is_diagonal:
        return Arrangement((), None, () if same else changes(source, output))
    if written.is_pointwise and same and source.channel_axis == output.channel_axis == len(output.layout.axes) - 1:
        return Arrangement((), None, ())
    if written.is_pointwise and output.channel_axis == 1 and len(output.layout.axes) == 2:
        vector = Carried(source.name, plain(source.layout.channels, 0), source.dims)
        return Arrangement(changes(source, vector), None, (), flat=True)
    if written.covers(source.dims[2:]):
        # One pixel of a whole image: its rows and columns are as many more channels to a matrix.
        parts = (Atom("pixel", number) for number in range(len(source.dims) - 2))
        flat = Layout(((BATCH,), (Atom("channels", source.layout.channels), *parts)))
        made = Carried(output.name, plain(output.layout.channels, 0), output.dims)
        return Arrangement(
            changes(source, Carried(source.name, flat, source.dims)), None, changes(made, output), flat=True
        )
    pixels = max(source.layout.pixel_axes, output.layout.pixel_axes, written.geometry.spanned, 1)
    if source.is_plain and output.is_plain and len(source.layout.axes) == len(output.layout.axes) == pixels + 2:
        return Arrangement((), pixels, ())
    read = Carried(source.name, plain(source.layout.channels, pixels), source.dims)
    made = Carried(output.name, plain(output.layout.channels, pixels), output.dims)
    return Arrangement(changes(source, read), pixels, changes(made, output))


def broadcasts(tensor: Carried) -> None:
    """Make sure that one number a channel can be written so that it broadcasts against a tensor.

    Raises:
        GeometryError: channels share an axis with pixels or images.
    """
    if any("channels" in axis and len(axis) > 1 for axis in tensor.frame):
        raise GeometryError(
            "its channels share an axis with pixels or images, where no constant broadcasts against them"
        )


def to_image(tensors: Sequence[Carried | None]) -> tuple[int, ...] | None:
    """What permutation of axes takes tensors of one layout and size to [n, c, pixels].

    None where they are so already, where layout or size is unknown or not the same, and where no permutation does it.
    """
    first = tensors[0]
    if first is None or first.is_plain or first.channel_axis is None:
        return None
    if any(t is None or (t.frame, t.dims) != (first.frame, first.dims) for t in tensors):
        return None
    pixels = len(first.layout.axes) - 2
    if pixels < 1 or any(len(axis) != 1 for axis in first.layout.axes):
        return None
    try:
        found = changes(first, Carried(first.name, plain(first.layout.channels, pixels), first.dims))
    except GeometryError:
        return None  # pixel axes that are not the first ones
    return next((order for kind, order in found if kind == "permute"), None) if len(found) == 1 else None


def changes(source: Carried, target: Carried) -> tuple[Change, ...]:
    """What takes a tensor from one layout to another of as many channels.

    Raises:
        GeometryError: a reshape of more than one open side.
    """
    if source.frame == target.frame and source.layout.widths == target.layout.widths:
        return ()
    order = _order_of_axes(source.layout, target.layout)
    if order is not None:
        return (("permute", order),)
    digits = _digits(source.layout, target.layout)
    mine, theirs = _labels(source, digits), _labels(target, digits)
    if sorted(map(str, mine)) != sorted(map(str, theirs)):
        raise GeometryError("two layouts hold different pixels")
    sides = {label: digits[label[1]] if label[0] == "channels" else target.size_of(label) for label in theirs}
    order = tuple(mine.index(label) for label in theirs)
    apart = _shape([[sides[label]] for label in mine])
    together = _shape([[size_of(a, target.size_of) for a in axis] for axis in target.layout.axes])
    turned = order != tuple(range(len(order)))
    if not turned:
        return (("reshape", together),)
    own = _shape([[size_of(a, source.size_of) for a in axis] for axis in source.layout.axes])
    moved = tuple(apart[i] for i in order)
    found: list[Change] = [("reshape", apart)] if apart != own else []
    found.append(("permute", order))
    return (*found, ("reshape", together)) if moved != together else tuple(found)


def _order_of_axes(source: Layout, target: Layout) -> tuple[int, ...] | None:
    """The permutation of axes between two layouts whose axes each are one part."""
    mine, theirs = ([axis[0] if len(axis) == 1 else None for axis in x.axes] for x in (source, target))
    if None in mine or None in theirs or sorted(map(str, mine)) != sorted(map(str, theirs)):
        return None
    if sum(atom is not None and atom.kind == "channels" for atom in mine) != 1:
        return None
    return tuple(mine.index(atom) for atom in theirs)


def _digits(source: Layout, target: Layout) -> list[int]:
    """The numbers of channels that the axes of both layouts are made of, outermost first.

    Raises:
        GeometryError: neither layout divides the channels as the other one does, and more.
    """
    first, second = ([w for w in layout.widths if w != 1] for layout in (source, target))
    finer, coarser = (first, second) if len(first) >= len(second) else (second, first)
    rest = list(finer)
    for width in coarser:
        product = 1
        while product < width and rest:
            product *= rest.pop(0)
        if product != width:
            raise GeometryError("two layouts divide their channels differently")
    return finer


def _labels(tensor: Carried, digits: Sequence[int]) -> list[Atom]:
    """The parts of a tensor's axes, channels as the numbers of `digits`."""
    found: list[Atom] = []
    number = 0
    for axis, width in zip(tensor.layout.axes, tensor.layout.widths, strict=True):
        done = False
        for atom in axis:
            if atom.kind != "channels":
                if tensor.size_of(atom) != 1:
                    found.append(atom)
                continue
            product = 1
            while not done and product < width:
                product *= digits[number]
                found.append(Atom("channels", number))
                number += 1
            done = True
    return found


def _shape(axes: Sequence[Sequence[object]]) -> tuple[int, ...]:
    """Sides for a reshape, -1 for the one that is open.

    Raises:
        GeometryError: more than one is open.
    """
    sides: list[int] = []
    for axis in axes:
        total = 1
        for side in axis:
            total = total * side if isinstance(side, int) and total > 0 else -1
        sides.append(total)
    if sides.count(-1) > 1:
        raise GeometryError("a change of layout would reshape more than one open side")
    return tuple(sides)
