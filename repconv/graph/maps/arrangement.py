"""How a term is written between tensors of any layouts: where it can be in place, else between changes of layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ...errors import GeometryError
from ..core.cost import Cost, convolution, elementwise
from ..core.dims import nominal
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
    def changes(self) -> int:
        """How often the layout is changed."""
        return len(self.before) + len(self.after)


@lru_cache(maxsize=REMEMBERED)
def arrange(form: Form, source: Carried, output: Carried) -> Arrangement:
    """How to write a term of this form: of the ways there are, the first of those that cost least.

    Raises:
        GeometryError: a layout needs a reshape of more than one open side, or see `broadcasts`.
    """
    written = form.without_cropping()
    if form.is_diagonal:
        if not form.is_identity:
            broadcasts(source)
        return Arrangement((), None, () if source.frame == output.frame else changes(source, output))
    ways: list[Arrangement] = []
    refused = GeometryError("two layouts that nothing is written between")
    for way in (_in_place, _at_source, _of_whole_image, _convolved, _at_output):
        try:
            found = way(written, source, output)
        except GeometryError as error:
            refused = error
            continue
        if found is not None:
            ways.append(found)
        if ways and way is _in_place:
            break
    if not ways:
        raise refused
    # Gemm, a product of two axes, takes the constant along.
    return min(ways, key=lambda way: (_price(way, written, source, output), way.changes, not way.flat))


def _in_place(form: Form, source: Carried, output: Carried) -> Arrangement | None:
    """A matrix times the last axis, or a convolution of [n, c, pixels], with nothing moved."""
    if (
        form.is_pointwise
        and source.frame == output.frame
        and source.layout.ends_with_channels
        and output.layout.ends_with_channels
    ):
        return Arrangement((), None, (), flat=len(output.layout.axes) == 2)
    pixels = _pixels(form, source, output)
    if source.is_plain and output.is_plain and len(source.layout.axes) == len(output.layout.axes) == pixels + 2:
        return Arrangement((), pixels, ())
    return None


def _at_output(form: Form, source: Carried, output: Carried) -> Arrangement | None:
    """The source moved to where the output has its pixels, times a matrix."""
    if not form.is_pointwise or not output.layout.ends_with_channels:
        return None
    read = Carried(source.name, output.layout.with_last(source.layout.channels), source.dims)
    return Arrangement(changes(source, read), None, (), flat=len(output.layout.axes) == 2)


def _at_source(form: Form, source: Carried, output: Carried) -> Arrangement | None:
    """The source times a matrix, moved to where the output has its pixels."""
    if not form.is_pointwise or not source.layout.ends_with_channels:
        return None
    made = Carried(output.name, source.layout.with_last(output.layout.channels), output.dims)
    return Arrangement((), None, changes(made, output), flat=len(source.layout.axes) == 2)


def _of_whole_image(form: Form, source: Carried, output: Carried) -> Arrangement | None:
    """One pixel of a whole image: its rows and columns are as many more channels to a matrix."""
    if not form.covers(source.dims[2:]):
        return None
    parts = (Atom("pixel", number) for number in range(len(source.dims) - 2))
    flat = Layout(((BATCH,), (Atom("channels", source.layout.channels), *parts)))
    made = Carried(output.name, plain(output.layout.channels, 0), output.dims)
    return Arrangement(changes(source, Carried(source.name, flat, source.dims)), None, changes(made, output), flat=True)


def _convolved(form: Form, source: Carried, output: Carried) -> Arrangement:
    """A convolution of [n, c, pixels], with axes moved before and after it where they are elsewhere."""
    pixels = _pixels(form, source, output)
    read = Carried(source.name, plain(source.layout.channels, pixels), source.dims)
    made = Carried(output.name, plain(output.layout.channels, pixels), output.dims)
    return Arrangement(changes(source, read), pixels, changes(made, output))


def _pixels(form: Form, source: Carried, output: Carried) -> int:
    """The pixel axes of a convolution between two tensors."""
    return max(source.layout.pixel_axes, output.layout.pixel_axes, form.geometry.spanned, 1)


def _price(way: Arrangement, form: Form, source: Carried, output: Carried) -> float:
    """What a way costs; a matrix has no groups."""
    read, made = nominal(source.dims), nominal(output.dims)
    sizes = (size for size, found in ((read, way.before), (made, way.after)) for kind, _ in found if kind == "permute")
    moved = sum((elementwise(1, size) for size in sizes), Cost())
    return (moved + convolution(form if way.pixels else form.ungrouped(), read, made)).price()


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
    order = _order_of_axes(source, target)
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


def _order_of_axes(source: Carried, target: Carried) -> tuple[int, ...] | None:
    """The permutation of axes between two tensors that are made of the same ones, the channels on one of them.

    None where a reshape does it, as only axes of a single element are elsewhere.
    """
    mine: Sequence[tuple[object, ...]] = source.layout.axes
    theirs: Sequence[tuple[object, ...]] = target.layout.axes
    if () in mine or () in theirs or len(set(mine)) < len(mine):
        mine, theirs = source.frame, target.frame
        if [axis for axis in mine if axis] == [axis for axis in theirs if axis]:
            return None
    if sorted(map(str, mine)) != sorted(map(str, theirs)) or sum(width > 1 for width in source.layout.widths) > 1:
        return None
    single = iter([i for i, axis in enumerate(mine) if not axis])
    return tuple(mine.index(axis) if axis else next(single) for axis in theirs)


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
