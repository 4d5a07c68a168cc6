"""What a convolution looks like before its numbers: `Geometry`, and where its non-zero taps can be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from ...algebra.geometry import Geometry, Pair

REMEMBERED = 4096
"""Results kept of combining forms: searches ask the same few questions thousands of times."""


@dataclass(frozen=True)
class Form:
    """A geometry, the lattice its taps lie on, and whether its numbers are those of the identity.

    lattice: taps not a multiple of this far from the first one are zero; 0 for a single tap. `Geometry` writes a
        dilation out as zeros, and a dilated convolution with nothing but a batch normalisation behind it should stay
        dilated.
    ones: channel c of the output reads 1 times channel c of the input, through one tap; stride and padding may be any.
    zeros: every number is 0, as after the factor of a gate that is shut.
    """

    geometry: Geometry
    lattice: Pair = (0, 0)
    ones: bool = False
    zeros: bool = False

    @property
    def dilation(self) -> Pair:
        """How far apart taps are when written as a dilated convolution, at least 1."""
        return max(self.lattice[0], 1), max(self.lattice[1], 1)

    @property
    def taps(self) -> Pair:
        """Rows and columns of taps, without the zeros a dilation stands for."""
        rows, columns = ((k - 1) // d + 1 for k, d in zip(self.geometry.size, self.dilation, strict=True))
        return rows, columns

    @property
    def label(self) -> str:
        """What a table shows: `3x3, 8 -> 16, stride 2x2, dilation 2x2, groups 4`."""
        g, (rows, columns) = self.geometry, self.taps
        extra = (
            f", stride {g.stride[0]}x{g.stride[1]}" if g.stride != (1, 1) else "",
            f", dilation {self.dilation[0]}x{self.dilation[1]}" if self.dilation != (1, 1) else "",
            f", groups {g.groups}" if g.groups > 1 else "",
        )
        return f"{rows}x{columns}, {g.in_channels} -> {g.out_channels}{''.join(extra)}"

    @property
    def is_diagonal(self) -> bool:
        """True for one number a channel: a scale."""
        g = self.geometry
        return (
            g.in_channels == g.out_channels == g.groups and g.size == g.stride == (1, 1) and g.padding == (0, 0, 0, 0)
        )

    @property
    def is_identity(self) -> bool:
        """True if the output is the input."""
        return self.ones and self.is_diagonal

    @property
    def weights(self) -> int:
        """How many numbers the weight holds."""
        o, i, _, _ = self.geometry.weight_shape
        return o * i * self.taps[0] * self.taps[1]

    @lru_cache(maxsize=REMEMBERED)  # noqa: B019  # forms are a few integers
    def series(self, inner: Form) -> Form:
        """The form of this one after `inner`.

        Raises:
            GeometryError: see `Geometry.series`.
        """
        if inner.is_identity:
            return self
        if self.is_identity:
            return inner
        geometry = self.geometry.series(inner.geometry)
        if inner.ones:
            geometry = replace(geometry, groups=self.geometry.groups)
        if self.ones:
            geometry = replace(geometry, groups=inner.geometry.groups)
        lattice = tuple(
            gcd(mine * s, theirs)
            for mine, s, theirs in zip(self.lattice, inner.geometry.stride, inner.lattice, strict=True)
        )
        return Form(geometry, (lattice[0], lattice[1]), self.ones and inner.ones, self.zeros or inner.zeros)

    @lru_cache(maxsize=REMEMBERED)  # noqa: B019  # forms are a few integers
    def parallel(self, other: Form) -> Form:
        """The form of the sum of two convolutions of one input.

        Raises:
            GeometryError: see `Geometry.parallel`.
        """
        geometry = self.geometry.parallel(other.geometry)
        lattice = tuple(
            gcd(mine, theirs, self.geometry.padding[axis] - other.geometry.padding[axis])
            for axis, (mine, theirs) in enumerate(zip(self.lattice, other.lattice, strict=True))
        )
        return Form(geometry, (lattice[0], lattice[1]))

    def ungrouped(self) -> Form:
        """The form of the same map written with one group."""
        return replace(self, geometry=replace(self.geometry, groups=1))

    def without_cropping(self) -> Form:
        """The same map with padding of at least 0: a cropped pixel becomes a zero tap."""
        top, left, bottom, right = self.geometry.padding
        if min(self.geometry.padding) >= 0:
            return self
        (kh, kw), (rows, columns) = self.geometry.size, self.lattice
        size = (kh + max(-top, 0) + max(-bottom, 0), kw + max(-left, 0) + max(-right, 0))
        padding = (max(top, 0), max(left, 0), max(bottom, 0), max(right, 0))
        lattice = (gcd(rows, min(top, 0), min(bottom, 0)), gcd(columns, min(left, 0), min(right, 0)))
        return Form(replace(self.geometry, size=size, padding=padding), lattice)


def identity_form(channels: int) -> Form:
    """The form that returns its input."""
    return Form(Geometry(channels, channels, groups=channels), ones=True)


def scale_form(channels: int, *, zeros: bool = False) -> Form:
    """The form of one factor a channel; `zeros` if they all are 0."""
    return Form(Geometry(channels, channels, groups=channels), zeros=zeros)
