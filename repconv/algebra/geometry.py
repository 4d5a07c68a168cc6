"""Shapes of convolutions and how they combine, without any numbers.

A 2-D convolution is priced, aligned and refused by its geometry alone; `repconv.algebra.kernels` adds the weights.
Padding is per side, in the order top, left, bottom, right, and may be negative, which crops the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from ..errors import GeometryError

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]


@dataclass(frozen=True)
class Geometry:
    """Everything about a 2-D convolution but its numbers; dilation is already written out as zeros.

    up: how far apart the pixels of the input are put, zeros between them, before it is padded and convolved. That is
        a transposed convolution, whose kernel is turned around here.

    Raises:
        GeometryError: sizes that are not positive, or groups that do not divide the channels.
    """

    in_channels: int
    out_channels: int
    size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    groups: int = 1
    up: Pair = (1, 1)

    def __post_init__(self) -> None:
        if min(self.in_channels, self.out_channels, self.groups, *self.size, *self.stride, *self.up) < 1:
            raise GeometryError(f"channels, groups, size and stride must be at least 1, got {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise GeometryError(
                f"{self.groups} groups must divide both {self.in_channels} input and {self.out_channels} output "
                "channels"
            )

    def __str__(self) -> str:
        """Describe the convolution the way people write it: `8->16 3x3 stride 2x2 padding 1,1,1,1 groups 1`."""
        height, width = self.size
        return (
            f"{self.in_channels}->{self.out_channels} {height}x{width} stride {self.stride[0]}x{self.stride[1]} "
            f"padding {','.join(map(str, self.padding))} groups {self.groups}"
            + ("" if self.up == (1, 1) else f" transposed {self.up[0]}x{self.up[1]}")
        )

    @property
    def label(self) -> str:
        """What a table shows: `3x3, 8 -> 16, stride 2x2, groups 4`; padding is left out."""
        groups = f", groups {self.groups}" if self.groups > 1 else ""
        stride = "" if self.stride == (1, 1) else f", stride {self.stride[0]}x{self.stride[1]}"
        return f"{self.size[0]}x{self.size[1]}, {self.in_channels} -> {self.out_channels}{stride}{groups}"

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[o, i/g, kh, kw]."""
        return (self.out_channels, self.in_channels // self.groups, *self.size)

    @property
    def closed(self) -> tuple[bool, bool, bool, bool]:
        """Of each side, whether windows past the outermost ones would see nothing of the image, whatever its size.

        A window before the first begins `stride` pixels earlier. The one after the last begins where its stride takes
        it, which is outside for every size only if the last one may reach `size - 1` pixels into the padding.
        """
        top, left, bottom, right = self.padding
        before = [k <= s + p for k, s, p in zip(self.size, self.stride, (top, left), strict=True)]
        after = [p >= k - 1 for k, p in zip(self.size, (bottom, right), strict=True)]
        return (before[0], before[1], after[0], after[1])

    @property
    def excess(self) -> Pair:
        """Padding minus kernel size by axis; with the stride it fixes the output size for every input size."""
        top, left, bottom, right = self.padding
        return (top + bottom - self.size[0], left + right - self.size[1])

    def output_size(self, height: int, width: int) -> Pair:
        """Height and width of the output for an input of `height` x `width` pixels."""
        rows, columns = (
            ((n - 1) * u + 1 + e) // s + 1
            for n, u, e, s in zip((height, width), self.up, self.excess, self.stride, strict=True)
        )
        return rows, columns

    def multiply_adds(self, height: int, width: int) -> int:
        """Multiply-adds of one image of `height` x `width` input pixels; none of zeros put between those."""
        rows, columns = self.output_size(height, width) if self.up == (1, 1) else (height, width)
        o, i, kh, kw = self.weight_shape
        return rows * columns * o * i * kh * kw

    def dilate(self, rate: Pair) -> Geometry:
        """The same taps `rate` pixels apart, zeros between them."""
        kh, kw = ((k - 1) * d + 1 for k, d in zip(self.size, rate, strict=True))
        return replace(self, size=(kh, kw))

    def parallel(self, other: Geometry) -> Geometry:
        """The geometry of the sum of two convolutions of one input.

        Raises:
            GeometryError: channels or strides differ, or the outputs differ in size.
        """
        for what, mine, theirs in (
            ("input channels", self.in_channels, other.in_channels),
            ("output channels", self.out_channels, other.out_channels),
            ("strides", self.stride, other.stride),
            ("strides of the input", self.up, other.up),
        ):
            if mine != theirs:
                raise GeometryError(f"cannot add convolutions whose {what} differ: {self} + {other}")
        if self.excess != other.excess:
            raise GeometryError(f"cannot add convolutions whose outputs differ in size: {self} + {other}")
        top, left = (max(pair) for pair in zip(self.padding[:2], other.padding[:2], strict=True))
        reach = [
            max(g.size[axis] - g.padding[axis] for g in (self, other)) for axis in (0, 1)
        ]  # one past the last pixel read by output (0, 0)
        size = (reach[0] + top, reach[1] + left)
        bottom, right = (e + k - p for e, k, p in zip(self.excess, size, (top, left), strict=True))
        return replace(self, size=size, padding=(top, left, bottom, right), groups=gcd(self.groups, other.groups))

    def series(self, inner: Geometry, closed: Sequence[bool] | None = None) -> Geometry:
        """The geometry of this convolution after `inner`.

        Where this one pads, it reads pixels `inner` never made. Those are what `inner` would have made of zero
        pixels only if `inner` is `closed` on that side, as a single tap is on every one; what they must hold is the
        caller's business (`repconv.algebra.kernels.compose`).

        Args:
            inner: the convolution before.
            closed: where `inner` is, of a size that the caller knows; None: where it is for every size.

        Raises:
            GeometryError: channels differ, a padded convolution follows one that is not closed where it pads, or pixels
                are put apart after others were left out, or the other way round.
        """
        if self.in_channels != inner.out_channels:
            raise GeometryError(
                f"cannot chain: the outer convolution takes {self.in_channels} channels, "
                f"the inner one gives {inner.out_channels} ({self} after {inner})"
            )
        sides = inner.closed if closed is None else closed
        if max(*self.stride, *inner.stride) > 1 and max(*self.up, *inner.up) > 1:
            raise GeometryError(
                f"a stride and a transposed convolution after one another are not one: {self} after {inner}"
            )
        if any(pad >= u and not shut for pad, u, shut in zip(self.padding, self.up * 2, sides, strict=True)):
            raise GeometryError(
                f"a padded convolution after one larger than 1x1 is not one convolution at the border: "
                f"{self} after {inner}"
            )
        kh, kw = (
            (k - 1) * s + 1 + (i - 1) * u
            for k, s, i, u in zip(self.size, inner.stride, inner.size, self.up, strict=True)
        )
        top, left, bottom, right = (
            mine * s + theirs * u
            for mine, s, theirs, u in zip(self.padding, inner.stride * 2, inner.padding, self.up * 2, strict=True)
        )
        return Geometry(
            inner.in_channels,
            self.out_channels,
            (kh, kw),
            (self.stride[0] * inner.stride[0], self.stride[1] * inner.stride[1]),
            (top, left, bottom, right),
            gcd(self.groups, inner.groups),
            (self.up[0] * inner.up[0], self.up[1] * inner.up[1]),
        )
