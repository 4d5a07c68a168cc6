"""Tensors put together of a window onto another tensor and of constants: borders, however they are spelled.

Assigning to a slice, copying into the middle, joining strips, masking and choosing by a mask all paint constants around
a tensor, or it into constants. A `Canvas` cuts rows, columns and further axes into runs and says what each cell of that
grid shows. The runs are as many for every size of the image, one may be of open length, and nothing is as large as the
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ...algebra.geometry import Sides, halves
from ...errors import GeometryError
from ..core.constant import Constant
from ..core.dims import Dim, Dims, told
from ..core.terms import grid_term
from .carried import Carried, Made
from .layout import Layout

Run = int | None
"""How many rows or columns alike; None for the rest of an open side."""

MOST_RUNS = 4096
"""A canvas of more cells is not followed."""


@dataclass(frozen=True)
class Canvas:
    """A tensor of this layout: `source` as far as it is shown, plus constants.

    dims: with a side for every axis. source: the tensor it is a window onto; None if there is none. padding: of the
        window; what is outside is never shown. runs: of each axis, such as rows and columns. shown: bool [runs...].
        value: float64 [c, runs...], added where the source is shown, alone where it is not.
    """

    layout: Layout
    dims: Dims
    source: Carried | None
    padding: Sides
    runs: tuple[tuple[Run, ...], ...]
    shown: Tensor
    value: Tensor

    @property
    def carried(self) -> Carried:
        """Its layout and size."""
        return Carried("", self.layout, told(self.dims))

    @property
    def axes(self) -> int:
        """How many pixel axes there are, two at least."""
        return len(self.runs)


def of_tensor(tensor: Carried) -> Canvas:
    """A tensor, all of it shown."""
    count = _axes(tensor)
    sides, cell = tensor.sides(count), (1,) * count
    return Canvas(
        tensor.layout,
        (*tensor.dims[:2], *sides),
        tensor,
        (0,) * (2 * count),
        tuple((side if isinstance(side, int) else None,) for side in sides),
        torch.ones(cell, dtype=torch.bool),
        torch.zeros(tensor.layout.channels, *cell, dtype=torch.float64),
    )


def _axes(tensor: Carried) -> int:
    """How many axes the canvas of a tensor has."""
    return max(tensor.layout.pixel_axes, len(tensor.dims) - 2)


def of_constant(value: Tensor, like: Carried, *, broadcasts: bool) -> Canvas:
    """A constant laid out like a tensor; against which it `broadcasts`, or its sides are its own.

    Raises:
        GeometryError: it differs from image to image, or has several pixels where the side is open.
    """
    layout, rank = like.layout, len(like.layout.axes)
    if value.dim() > rank or any(len(axis) > 1 for axis in layout.axes):
        raise GeometryError("its constant has more axes than the tensor, or several parts share an axis")
    value = value.detach().cpu().double().reshape((1,) * (rank - value.dim()) + tuple(value.shape))
    order = {
        (axis[0].kind, axis[0].number if axis[0].kind == "pixel" else 0): i
        for i, axis in enumerate(layout.axes)
        if axis
    }
    count = _axes(like)
    places = [order.get(("batch", 0)), order.get(("channels", 0)), *(order.get(("pixel", i)) for i in range(count))]
    known = [place for place in places if place is not None]
    rest = [i for i in range(rank) if i not in known]
    if any(value.shape[i] != 1 for i in rest):
        raise GeometryError("its constant varies along an axis that is a single element")
    value = value.permute(*known, *rest)
    value = value.reshape([value.shape[known.index(p)] if p is not None else 1 for p in places])
    if not bool((value == value[:1]).all()):
        raise GeometryError("its constant differs from image to image")
    if value.shape[0] not in (1, like.dims[0]):
        raise GeometryError("its constant makes several images of one")
    if value.shape[1] not in (1, layout.channels):
        raise GeometryError("its constant is not one number a channel")
    image = value[0].expand(layout.channels, *(-1,) * count)
    dims: list[Dim] = [*like.dims[:2], *like.sides(count)]
    runs: list[tuple[Run, ...]] = []
    for axis in range(1, count + 1):
        side = dims[1 + axis]
        if image.shape[axis] == 1 and broadcasts:
            runs.append((side if isinstance(side, int) else None,))
            continue
        dims[1 + axis] = image.shape[axis]
        change = (image.movedim(axis, 0)[1:] != image.movedim(axis, 0)[:-1]).flatten(1).any(1)
        first = [0, *(torch.nonzero(change).flatten() + 1).tolist()]
        image = image.index_select(axis, torch.tensor(first))
        runs.append(tuple(b - a for a, b in zip(first, [*first[1:], dims[1 + axis]], strict=True)))
    cells = torch.zeros(image.shape[1:], dtype=torch.bool)
    return Canvas(layout, tuple(dims), None, (0,) * (2 * count), tuple(runs), cells, image)


def _cut(canvas: Canvas, axis: int, place: int, *, from_end: bool = False) -> Canvas:
    """The same with a boundary between runs at `place` rows or columns from the start, or the end.

    Raises:
        GeometryError: the place depends on the open size, or is outside.
    """
    runs = canvas.runs[axis][::-1] if from_end else canvas.runs[axis]
    done = 0
    for index, run in enumerate(runs):
        if done == place:
            return canvas
        if run is None:
            raise GeometryError("it paints over a part of an open number of rows or columns")
        if done < place < done + run:
            parts = (*runs[:index], place - done, run - (place - done), *runs[index + 1 :])
            repeats = [2 if i == index else 1 for i in range(len(runs))]
            found, doubled = (parts[::-1], repeats[::-1]) if from_end else (parts, repeats)
            counts = torch.tensor(doubled)
            return _with(
                canvas,
                axis,
                found,
                canvas.shown.repeat_interleave(counts, axis),
                canvas.value.repeat_interleave(counts, axis + 1),
            )
        done += run
    if done == place:
        return canvas
    raise GeometryError("it paints outside the image")


def _with(canvas: Canvas, axis: int, runs: Sequence[Run], shown: Tensor, value: Tensor) -> Canvas:
    both = [*canvas.runs]
    both[axis] = tuple(runs)
    if shown.numel() > MOST_RUNS:
        raise GeometryError("its constants differ at too many places to be a border")
    dims: list[Dim] = list(canvas.dims)
    if None not in runs:
        dims[2 + axis] = sum(run for run in runs if run is not None)
    return replace(canvas, runs=tuple(both), shown=shown, value=value, dims=tuple(dims))


def _alike(first: Canvas, second: Canvas, axis: int) -> tuple[Canvas, Canvas]:
    """Two canvases cut at the same places of an axis.

    Raises:
        GeometryError: their sides differ.
    """
    for _ in range(2):
        runs = first.runs[axis]
        opened = runs.index(None) if None in runs else len(runs)
        for place in accumulate(run for run in runs[:opened] if run is not None):
            second = _cut(second, axis, place)
        for place in accumulate(run for run in runs[:opened:-1] if run is not None):
            second = _cut(second, axis, place, from_end=True)
        first, second = second, first
    if first.runs[axis] != second.runs[axis]:
        raise GeometryError("it puts together constants and tensors of different sizes")
    return first, second


def _together(first: Canvas, second: Canvas, but: int | None = None) -> tuple[Canvas, Canvas]:
    """Two canvases of one layout with the same runs along every pixel axis, `but` for one."""
    if first.carried.frame != second.carried.frame and first.layout != second.layout:
        raise GeometryError("it puts together tensors whose channels are on different axes")
    if first.axes != second.axes or first.layout.channels != second.layout.channels:
        raise GeometryError("it puts together tensors of different numbers of axes or channels")
    for axis in range(first.axes):
        if axis != but:
            first, second = _alike(first, second, axis)
    return first, second


def _only_source(first: Canvas, second: Canvas, shown: Tensor, of_second: Tensor) -> Canvas:
    """Which of two canvases of one grid is still shown, `of_second` where it is the second one.

    Raises:
        GeometryError: both are.
    """
    sees = [
        each.source is not None and bool((shown & mine).any())
        for each, mine in ((first, ~of_second), (second, of_second))
    ]
    if all(sees):
        raise GeometryError("it shows a part of one tensor beside a part of another")
    return second if sees[1] else first


def choose(mask: Canvas, first: Canvas, second: Canvas) -> Canvas:
    """`first` where a mask is not 0, `second` elsewhere."""
    first, second = _together(first, second)
    for axis in range(first.axes):
        mask, first = _alike(mask, first, axis)
        first, second = _alike(first, second, axis)
        mask, first = _alike(mask, first, axis)
    if not bool((mask.value == mask.value[:1]).all()):
        raise GeometryError("its mask differs from channel to channel")
    taken = mask.value[0] != 0
    shown = torch.where(taken, first.shown, second.shown)
    value = torch.where(taken, first.value, second.value)
    origin = _only_source(first, second, shown, ~taken)
    return replace(origin, shown=shown, value=value)


def multiply(canvas: Canvas, constant: Canvas) -> Canvas:
    """A canvas times a constant one, which is 0 or 1 wherever a tensor is shown."""
    canvas, constant = _together(canvas, constant)
    factor = constant.value
    if bool((canvas.shown & (factor != 0).any(0) & (factor != 1).any(0)).any()):
        raise GeometryError("its constant differs from pixel to pixel by other numbers than 0 and 1")
    return replace(canvas, shown=canvas.shown & (factor != 0).all(0), value=canvas.value * factor)


def add(canvas: Canvas, constant: Canvas, sign: float = 1.0) -> Canvas:
    """A canvas plus a constant one."""
    canvas, constant = _together(canvas, constant)
    return replace(canvas, value=canvas.value + sign * constant.value)


def pixel_axis(canvas: Canvas, axis: int) -> int:
    """Which pixel axis an axis of the tensor is.

    Raises:
        GeometryError: it is none.
    """
    parts = canvas.layout.axes[axis % len(canvas.layout.axes)]
    if len(parts) != 1 or parts[0].kind != "pixel":
        raise GeometryError("it paints along images or channels")
    return parts[0].number


def paint(base: Canvas, patch: Canvas, axis: int, start: int | None, end: int | None) -> Canvas:
    """`base` with `patch` in `start:end` of a pixel axis."""
    first, first_from_end = (start or 0), (start or 0) < 0
    last_from_end = end is None or end < 0 or end >= 2**31 - 1
    last = 0 if end is None or end >= 2**31 - 1 else end
    base = _cut(base, axis, abs(first), from_end=first_from_end)
    base = _cut(base, axis, abs(last), from_end=last_from_end)
    base, patch = _together(base, patch, axis)
    low, high = (
        _index(base, axis, abs(place), from_end=backwards)
        for place, backwards in ((first, first_from_end), (last, last_from_end))
    )
    before, after = base.runs[axis][:low], base.runs[axis][high:]
    if low >= high or _length(base.runs[axis][low:high]) != _length(patch.runs[axis]):
        raise GeometryError("it paints what is larger or smaller than its place")
    runs = (*before, *patch.runs[axis], *after)

    def spliced(mine: Tensor, theirs: Tensor, dim: int) -> Tensor:
        rest = mine.shape[dim] - high
        return torch.cat([mine.narrow(dim, 0, low), theirs, mine.narrow(dim, high, rest)], dim)

    shown = spliced(base.shown, patch.shown, axis)
    value = spliced(base.value, patch.value, axis + 1)
    of_patch = spliced(torch.zeros_like(base.shown), torch.ones_like(patch.shown), axis)
    wide = _with(base, axis, runs, shown, value)
    if patch.source is None or not bool(patch.shown.any()):
        return wide
    if base.source is not None and bool((shown & ~of_patch).any()):
        raise GeometryError("it shows a part of one tensor beside a part of another")
    return replace(wide, source=patch.source, padding=_moved(patch.padding, axis, before, after))


def _length(runs: Sequence[Run]) -> int | None:
    return None if None in runs else sum(run for run in runs if run is not None)


def _index(canvas: Canvas, axis: int, place: int, *, from_end: bool) -> int:
    """Which run begins at a place where there is a boundary."""
    runs = canvas.runs[axis][::-1] if from_end else canvas.runs[axis]
    done = index = 0
    while done < place:
        done += runs[index] or 0
        index += 1
    return len(runs) - index if from_end else index


def _moved(padding: Sides, axis: int, before: Sequence[Run], after: Sequence[Run]) -> Sides:
    """Padding with so many more rows or columns around.

    Raises:
        GeometryError: an open number of them.
    """
    sizes = _length(before), _length(after)
    if sizes[0] is None or sizes[1] is None:
        raise GeometryError("where it shows a tensor depends on the open input size")
    sides = list(padding)
    sides[axis] += sizes[0]
    sides[len(sides) // 2 + axis] += sizes[1]
    return tuple(sides)


def pad(canvas: Canvas, amounts: Sides, number: float) -> Canvas:
    """A number around a canvas; no cropping."""
    if min(amounts) < 0:
        raise GeometryError("it crops what is put together of constants and a tensor")
    for axis, both in enumerate(zip(*halves(amounts), strict=True)):
        for at, amount in enumerate(both):
            if amount:
                strip = line(canvas, axis, torch.full((canvas.layout.channels,), number, dtype=torch.float64), amount)
                canvas = join([canvas, strip] if at else [strip, canvas], axis)
    return canvas


def join(parts: Sequence[Canvas], axis: int) -> Canvas:
    """Canvases one after another along a pixel axis."""
    total = parts[0]
    for part in parts[1:]:
        first, second = _together(total, part, axis)
        runs = (*first.runs[axis], *second.runs[axis])
        if runs.count(None) > 1:
            raise GeometryError("it joins two open numbers of rows or columns")
        shown = torch.cat([first.shown, second.shown], axis)
        value = torch.cat([first.value, second.value], axis + 1)
        wide = _with(first, axis, runs, shown, value)
        if None in second.runs[axis]:
            dims = list(wide.dims)
            dims[2 + axis] = second.dims[2 + axis]
            wide = replace(wide, dims=tuple(dims))
        if bool(first.shown.any()) and bool(second.shown.any()):
            raise GeometryError("it shows a part of one tensor beside a part of another")
        if bool(second.shown.any()):
            total = replace(wide, source=second.source, padding=_moved(second.padding, axis, first.runs[axis], ()))
        else:
            total = replace(wide, padding=_moved(first.padding, axis, (), second.runs[axis]))
    return total


def recognised(canvas: Canvas) -> tuple[Made, Constant | None]:
    """A canvas as a padded window, and what the padding holds, [c]; None for zeros.

    Raises:
        GeometryError: it is something else.
    """
    if canvas.source is None or not bool(canvas.shown.any()):
        raise GeometryError("it shows nothing but constants")
    padding = list(canvas.padding)
    inside = []
    for axis in range(canvas.axes):
        some = canvas.shown.movedim(axis, 0).flatten(1).any(1)
        first = int(torch.nonzero(some)[0])
        last = int(torch.nonzero(some)[-1]) + 1
        inside.append(slice(first, last))
        before, after = _length(canvas.runs[axis][:first]), _length(canvas.runs[axis][last:])
        if before is None or after is None:
            raise GeometryError("how much of a tensor it shows depends on the open input size")
        padding[axis], padding[canvas.axes + axis] = before, after
    box = torch.zeros_like(canvas.shown)
    box[tuple(inside)] = True
    if not bool((canvas.shown == box).all()) or bool(canvas.value[:, box].any()):
        raise GeometryError("what it shows of a tensor is no window, or has constants of its own added")
    crop = [mine - whole for mine, whole in zip(padding, canvas.padding, strict=True)]
    if min(crop) < 0:
        raise GeometryError("it shows what is outside the tensor")
    if any(crop) and any(p > 0 and c > 0 for p, c in zip(padding, crop, strict=True)):
        raise GeometryError("it paints over the outermost pixels of a tensor")
    border = canvas.value[:, ~box]
    channels = canvas.layout.channels
    term = grid_term(canvas.source.name, channels, padding=tuple(padding))
    made = Made(canvas.layout, (term,))
    if not border.numel() or not bool(border.any()):
        return made, None
    if not bool((border == border[:, :1]).all()):
        raise GeometryError("what it paints around a tensor is not one number a channel")
    return made, Constant.stored(border[:, 0])


def laid_out(canvas: Canvas, layout: Layout) -> Canvas:
    """The same on other axes."""
    return replace(canvas, layout=layout)


def crop(canvas: Canvas, axis: int, start: int, end: int) -> Canvas:
    """Rows or columns `start:end`, counted from the start."""
    canvas = _cut(_cut(canvas, axis, start), axis, end)
    low, high = _index(canvas, axis, start, from_end=False), _index(canvas, axis, end, from_end=False)
    after = _length(canvas.runs[axis][high:])
    if after is None:
        raise GeometryError("where it shows a tensor depends on the open input size")
    sides = list(canvas.padding)
    sides[axis] -= start
    sides[canvas.axes + axis] -= after
    part = _with(
        canvas,
        axis,
        canvas.runs[axis][low:high],
        canvas.shown.narrow(axis, low, high - low),
        canvas.value.narrow(axis + 1, low, high - low),
    )
    return replace(part, padding=tuple(sides))


def numbers(canvas: Canvas) -> Tensor:
    """The one number a channel that a canvas is everywhere, [c].

    Raises:
        GeometryError: it is something else.
    """
    cells = canvas.value.flatten(1)
    if bool(canvas.shown.any()) or not bool((cells == cells[:, :1]).all()):
        raise GeometryError("what it paints is not one number a channel")
    return cells[:, 0]


def line(canvas: Canvas, axis: int, value: Tensor, width: int = 1) -> Canvas:
    """So many rows or columns beside a canvas, of one number a channel [c]."""
    runs, dims, grid = list(canvas.runs), list(canvas.dims), list(canvas.shown.shape)
    runs[axis], dims[2 + axis], grid[axis] = (width,), width, 1
    return Canvas(
        canvas.layout,
        tuple(dims),
        None,
        (0,) * (2 * canvas.axes),
        tuple(runs),
        torch.zeros(grid, dtype=torch.bool),
        value.reshape(-1, *(1,) * canvas.axes).expand(-1, *grid),
    )
