"""Shapes of convolutions and how they combine, without any numbers.

A convolution is priced, aligned and refused by its geometry alone; `repconv.algebra.kernels` adds the weights. It has
any number of pixel axes; of two that meet, the one with fewer is flat along those it lacks, which come last: one tap,
no padding. Padding is per side, of all axes first before the image and then after it (for images top, left, bottom,
right), and may be negative, which crops the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod
from typing import TypeVar

from ..errors import GeometryError

T = TypeVar("T")


class SumError(GeometryError):
    """Convolutions of one input whose sum is not one."""


class BorderError(GeometryError):
    """A padded convolution that reads what the one before it never made of zeros."""


class StridesError(GeometryError):
    """Pixels put apart after others were left out, or the other way round."""


Pair = tuple[int, int]

Axes = tuple[int, ...]
"""One number for each pixel axis."""

Sides = tuple[int, ...]
"""One number for each pixel axis before the image, then one for each after it."""


def halves(sides: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """What comes before, and what comes after the pixels, by axis."""
    middle = len(sides) // 2
    return sides[:middle], sides[middle:]


def with_flat(numbers: Sequence[T], count: int, flat: T) -> tuple[T, ...]:
    """The numbers of so many axes: the first ones, then `flat`."""
    return (*numbers[:count], *(flat,) * (count - len(numbers)))


def pair(axes: Axes) -> Pair:
    """The numbers of an image's two axes."""
    rows, columns = axes
    return rows, columns


def by(numbers: Iterable[int]) -> str:
    """Numbers of axes the way people write them: `3x3`."""
    return "x".join(map(str, numbers))


@dataclass(frozen=True)
class Geometry:
    """Everything about a convolution but its numbers; dilation is already written out as zeros.

    size, stride, padding, up: of as many axes as `size` has; the values they have by default stand for any number.
    up: how far apart the pixels of the input are put, zeros between them, before it is padded and convolved. That is
        a transposed convolution, whose kernel is turned around here.

    Raises:
        GeometryError: sizes that are not positive, groups that do not divide the channels, or numbers of axes that
            differ.
    """

    in_channels: int
    out_channels: int
    size: Axes = (1, 1)
    stride: Axes = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    groups: int = 1
    up: Axes = (1, 1)

    def __post_init__(self) -> None:
        if min(self.in_channels, self.out_channels, self.groups, *self.size, *self.stride, *self.up) < 1:
            raise GeometryError(f"channels, groups, size and stride must be at least 1, got {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise GeometryError(
                f"{self.groups} groups must divide both {self.in_channels} input and {self.out_channels} output "
                "channels"
            )
        if not 2 * self.axes == 2 * len(self.stride) == 2 * len(self.up) == len(self.padding):
            self._spread_defaults()

    def _spread_defaults(self) -> None:
        """Give what was left out the number of axes that the size has."""
        for name, default, count in (("stride", 1, 1), ("padding", 0, 2), ("up", 1, 1)):
            given = getattr(self, name)
            if set(given) <= {default}:
                object.__setattr__(self, name, (default,) * (count * self.axes))
            elif len(given) != count * self.axes:
                raise GeometryError(
                    f"a kernel of {self.axes} pixel axes has a {name} of {count * self.axes} numbers, got {given}"
                )

    def __str__(self) -> str:
        """Describe the convolution the way people write it: `8->16 3x3 stride 2x2 padding 1,1,1,1 groups 1`."""
        return (
            f"{self.in_channels}->{self.out_channels} {by(self.size)} stride {by(self.stride)} "
            f"padding {','.join(map(str, self.padding))} groups {self.groups}"
            + (f" transposed {by(self.up)}" if self.is_transposed else "")
        )

    @property
    def label(self) -> str:
        """What a table shows: `3x3, 8 -> 16, stride 2x2, groups 4`; padding is left out."""
        groups = f", groups {self.groups}" if self.groups > 1 else ""
        stride = f", stride {by(self.stride)}" if max(self.stride) > 1 else ""
        return f"{by(self.size)}, {self.in_channels} -> {self.out_channels}{stride}{groups}"

    @property
    def axes(self) -> int:
        """How many pixel axes there are."""
        return len(self.size)

    @property
    def spanned(self) -> int:
        """How many axes there are up to the last that is not flat."""
        before, after = halves(self.padding)
        flat = [
            k == s == u == 1 and not b and not a
            for k, s, u, b, a in zip(self.size, self.stride, self.up, before, after, strict=True)
        ]
        return max((axis + 1 for axis, is_flat in enumerate(flat) if not is_flat), default=0)

    @cached_property
    def is_transposed(self) -> bool:
        """True if pixels of the input are put apart."""
        return max(self.up) > 1

    def of_axes(self, count: int) -> Geometry:
        """The same of so many pixel axes, of which those that come or go at the end are flat.

        Raises:
            GeometryError: one that would go is not flat.
        """
        if count == self.axes:
            return self
        before, after = halves(self.padding)
        if {*self.size[count:], *self.stride[count:], *self.up[count:]} - {1} or any((*before[count:], *after[count:])):
            raise GeometryError(f"{self} is no convolution of {count} pixel axes")
        size, stride, up = (with_flat(part, count, 1) for part in (self.size, self.stride, self.up))
        padding = (*with_flat(before, count, 0), *with_flat(after, count, 0))
        return replace(self, size=size, stride=stride, up=up, padding=padding)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[o, i/g, k...]."""
        return (self.out_channels, self.in_channels // self.groups, *self.size)

    @property
    def closed(self) -> tuple[bool, ...]:
        """Of each side, whether windows past the outermost ones would see nothing of the image, whatever its size.

        A window before the first begins `stride` pixels earlier. The one after the last begins where its stride takes
        it, which is outside for every size only if the last one may reach `size - 1` pixels into the padding.
        """
        first, last = halves(self.padding)
        before = [k <= s + p for k, s, p in zip(self.size, self.stride, first, strict=True)]
        after = [p >= k - 1 for k, p in zip(self.size, last, strict=True)]
        return (*before, *after)

    @property
    def excess(self) -> Axes:
        """Padding minus kernel size by axis; with the stride it fixes the output size for every input size."""
        return tuple(b + a - k for b, a, k in zip(*halves(self.padding), self.size, strict=True))

    def output_size(self, *sides: int) -> Axes:
        """The sides of the output (of an image height and width) for an input of as many `sides`."""
        return tuple(
            ((n - 1) * u + 1 + e) // s + 1 for n, u, e, s in zip(sides, self.up, self.excess, self.stride, strict=True)
        )

    def multiply_adds(self, *sides: int) -> int:
        """Multiply-adds of one image of so many input pixels by axis; none of zeros put between those."""
        return prod(sides if self.is_transposed else self.output_size(*sides)) * prod(self.weight_shape)

    def dilate(self, rate: Axes) -> Geometry:
        """The same taps `rate` pixels apart, zeros between them."""
        return replace(self, size=tuple((k - 1) * d + 1 for k, d in zip(self.size, rate, strict=True)))

    def parallel(self, other: Geometry) -> Geometry:
        """The geometry of the sum of two convolutions of one input.

        Raises:
            SumError: channels or strides differ, or the outputs differ in size.
        """
        if self.axes != other.axes:
            return self.of_axes(max(self.axes, other.axes)).parallel(other.of_axes(max(self.axes, other.axes)))
        for what, mine, theirs in (
            ("input channels", self.in_channels, other.in_channels),
            ("output channels", self.out_channels, other.out_channels),
            ("strides", self.stride, other.stride),
            ("strides of the input", self.up, other.up),
        ):
            if mine != theirs:
                raise SumError(f"cannot add convolutions whose {what} differ: {self} + {other}")
        if self.excess != other.excess:
            raise SumError(f"cannot add convolutions whose outputs differ in size: {self} + {other}")
        firsts = [halves(g.padding)[0] for g in (self, other)]
        before = [max(pads) for pads in zip(*firsts, strict=True)]
        # One past the last pixel that the first output reads.
        reaches = [[k - p for k, p in zip(g.size, f, strict=True)] for g, f in zip((self, other), firsts, strict=True)]
        size = tuple(max(reach) + b for *reach, b in zip(*reaches, before, strict=True))
        after = [e + k - p for e, k, p in zip(self.excess, size, before, strict=True)]
        return replace(self, size=size, padding=(*before, *after), groups=gcd(self.groups, other.groups))

    def series(self, inner: Geometry, closed: Sequence[bool] | None = None) -> Geometry:
        """The geometry of this convolution after `inner`.

        Where this one pads, it reads pixels `inner` never made. Those are what `inner` would have made of zero
        pixels only if `inner` is `closed` on that side, as a single tap is on every one; what they must hold is the
        caller's business (`repconv.algebra.kernels.compose`).

        Args:
            inner: the convolution before.
            closed: where `inner` is, of a size that the caller knows; None: where it is for every size.

        Raises:
            GeometryError: channels differ.
            BorderError: a padded convolution follows one that is not closed where it pads.
            StridesError: pixels are put apart after others were left out, or the other way round.
        """
        if self.axes != inner.axes:
            count = max(self.axes, inner.axes)
            known = None if closed is None else [s for part in halves(closed) for s in with_flat(part, count, True)]
            return self.of_axes(count).series(inner.of_axes(count), known)
        if self.in_channels != inner.out_channels:
            raise GeometryError(
                f"cannot chain: the outer convolution takes {self.in_channels} channels, "
                f"the inner one gives {inner.out_channels} ({self} after {inner})"
            )
        sides = inner.closed if closed is None else closed
        if max(*self.stride, *inner.stride) > 1 and max(*self.up, *inner.up) > 1:
            raise StridesError(
                f"a stride and a transposed convolution after one another are not one: {self} after {inner}"
            )
        if any(pad >= u and not shut for pad, u, shut in zip(self.padding, self.up * 2, sides, strict=True)):
            raise BorderError(
                f"a padded convolution after one larger than 1x1 is not one convolution at the border: "
                f"{self} after {inner}"
            )
        size = tuple(
            (k - 1) * s + 1 + (i - 1) * u
            for k, s, i, u in zip(self.size, inner.stride, inner.size, self.up, strict=True)
        )
        padding = tuple(
            mine * s + theirs * u
            for mine, s, theirs, u in zip(self.padding, inner.stride * 2, inner.padding, self.up * 2, strict=True)
        )
        return Geometry(
            inner.in_channels,
            self.out_channels,
            size,
            tuple(mine * theirs for mine, theirs in zip(self.stride, inner.stride, strict=True)),
            padding,
            gcd(self.groups, inner.groups),
            tuple(mine * theirs for mine, theirs in zip(self.up, inner.up, strict=True)),
        )
