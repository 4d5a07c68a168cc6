"""Where the batch, the channels and the pixel axes of a tensor are among its axes.

Convolutions see every tensor as [n, c, pixels]. A `Layout` says how a tensor's own axes are made of these: tokens
[n, t, c] have their channels last, a stack [k, n, c, h, w] of k tensors has k * c channels on two axes, and a flattened
image [n, c, h * w] has two pixel axes in one. The channels count row by row over the axes that hold them, so moving
axes permutes channels, and every movement of channels alone is a table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...errors import GeometryError
from ..core.dims import ONE, amount, over
from ..core.reasons import Kind, StaysError

MOST_PIXEL_AXES = 3
"""Of kernels; a tensor with one stands as a column of pixels."""


class Atom(NamedTuple):
    """A part of an axis: the batch, one pixel axis by its number, or so many channels."""

    kind: Literal["batch", "pixel", "channels"]
    number: int = 0


BATCH = Atom("batch")


@dataclass(frozen=True)
class Layout:
    """What each axis of a tensor is made of, outermost first; an axis of one element may be made of nothing."""

    axes: tuple[tuple[Atom, ...], ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """How many channels each axis holds, 1 for none."""
        return tuple(prod(atom.number for atom in axis if atom.kind == "channels") for axis in self.axes)

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return prod(self.widths)

    @property
    def pixel_axes(self) -> int:
        """How many pixel axes there are."""
        return max((a.number + 1 for axis in self.axes for a in axis if a.kind == "pixel"), default=0)

    def holds_only_channels(self, axis: int) -> bool:
        """True if an axis is channels, or a single element."""
        return all(atom.kind == "channels" for atom in self.axes[axis])

    def table(self) -> Tensor:
        """The number of each channel at its place: int64, `widths`."""
        return torch.arange(self.channels).reshape(self.widths)

    @property
    def ends_with_channels(self) -> bool:
        """True if the last axis is all of the channels and nothing else, as matrices take it."""
        return self.holds_only_channels(-1) and self.widths[-1] == self.channels

    def with_last(self, channels: int) -> Layout:
        """The same with so many channels on the last axis, which holds nothing else."""
        return Layout((*self.axes[:-1], (Atom("channels", channels),)))

    def with_widths(self, widths: Sequence[int]) -> Layout:
        """The same axes with so many channels on each.

        Raises:
            GeometryError: channels on an axis that has other parts.
        """
        axes = []
        for axis, old, new in zip(self.axes, self.widths, widths, strict=True):
            if old == new:
                axes.append(axis)
            elif any(atom.kind != "channels" for atom in axis):
                raise GeometryError("an axis would hold channels besides pixels or images")
            else:
                axes.append((Atom("channels", new),) if new != 1 or axis else ())
        return Layout(tuple(axes))


def plain(channels: int, pixels: int) -> Layout:
    """[n, c] and so many pixel axes."""
    return Layout(((BATCH,), (Atom("channels", channels),), *((Atom("pixel", i),) for i in range(pixels))))


def with_channels_at(axis: int, channels: int, rank: int) -> Layout:
    """The layout of a tensor of `rank` axes, the first the batch, `axis` the channels.

    Raises:
        GeometryError: no such layout, or more pixel axes than kernels have.
    """
    if not 0 < axis < rank or rank - 2 > MOST_PIXEL_AXES:
        raise GeometryError(f"axis {axis} of {rank} as channels leaves more than {MOST_PIXEL_AXES} pixel axes")
    others = iter(Atom("pixel", i) for i in range(rank - 2))
    rest = tuple((Atom("channels", channels),) if i == axis else (next(others),) for i in range(1, rank))
    return Layout(((BATCH,), *rest))


def permuted(layout: Layout, order: Sequence[int]) -> tuple[Layout, list[int]]:
    """The layout after the axes are put in `order`, and which old channel each new one is.

    Raises:
        GeometryError: `order` does not name every axis once.
    """
    rank = len(layout.axes)
    if sorted(axis + rank if axis < 0 else axis for axis in order) != list(range(rank)):
        raise GeometryError(f"axes in the order {list(order)} are no order of {rank} axes")
    order = [axis % rank for axis in order]
    return Layout(tuple(layout.axes[axis] for axis in order)), layout.table().permute(order).flatten().tolist()


def reshaped(layout: Layout, sizes: Callable[[Atom], object], shape: Sequence[object]) -> Layout:
    """The layout after a reshape to `shape`, which keeps the order of all numbers.

    sizes: of the batch and the pixel axes; sides that are open are anything but a number, and are equal or not.
    shape: what is None, at most one side, is as large as the others leave.

    Raises:
        StaysError: pixels or images would be divided among axes.
    """
    said = ", ".join(str(side) if isinstance(side, int) else "?" for side in shape)
    divides = Kind.PIXELS(does=f"its reshape to [{said}] divides pixels or images among axes")
    waiting = [atom for axis in layout.axes for atom in axis if size_of(atom, sizes) != 1][::-1]
    whole = amount(size_of(atom, sizes) for atom in waiting)
    rest = over(whole, amount(side for side in shape if side is not None))
    if rest is None or (None not in shape and rest != ONE):
        raise StaysError(divides)
    axes: list[tuple[Atom, ...]] = []
    for side in shape:
        axis: list[Atom] = []
        left = rest if side is None else amount([side])
        while left != ONE and waiting:
            atom = waiting.pop()
            found = over(left, amount([size_of(atom, sizes)]))
            if found is not None:
                left = found
            elif atom.kind == "channels" and not left[1] and atom.number % left[0] == 0:
                waiting.append(Atom("channels", atom.number // left[0]))
                atom, left = Atom("channels", left[0]), ONE
            else:
                break
            axis.append(atom)
        if left != ONE:
            raise StaysError(divides)
        axes.append(_merged(axis))
    return Layout(tuple(axes))


def size_of(atom: Atom, sizes: Callable[[Atom], object]) -> object:
    """How many elements a part of an axis has, `sizes` saying that of the batch and of pixel axes."""
    return atom.number if atom.kind == "channels" else sizes(atom)


def _merged(axis: Sequence[Atom]) -> tuple[Atom, ...]:
    """An axis with neighbouring channels as one."""
    found: list[Atom] = []
    for atom in axis:
        if atom.kind == "channels" and found and found[-1].kind == "channels":
            found[-1] = Atom("channels", found[-1].number * atom.number)
        else:
            found.append(atom)
    return tuple(found)
