"""What a convolution looks like before its numbers: `Geometry`, and where its non-zero taps can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from typing import TypeVar

from ...algebra.geometry import Geometry, Pair

T = TypeVar("T")

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
    spare: by axis, how many rows or columns at the end of the image and its padding no window reads; None where that
        depends on a size that is not known. So much of the padding may be left out, and some be added.
    """

    geometry: Geometry
    lattice: Pair = (0, 0)
    ones: bool = False
    zeros: bool = False
    spare: tuple[int | None, ...] = (None, None)

    def of_sides(self, sides: Sequence[object]) -> Form:
        """The same, of an image whose sides are these; text or anything else for one that is open."""
        g = self.geometry
        spare = [
            0 if stride == 1 else (((n - 1) * up + 1 + before + after - k) % stride if isinstance(n, int) else None)
            for n, up, before, after, k, stride in zip(sides, g.up, *_halves(g.padding), g.size, g.stride, strict=True)
        ]
        return replace(self, spare=tuple(spare))

    @property
    def closed(self) -> tuple[bool, ...]:
        """See `Geometry.closed`: here of images of the size that `spare` knows."""
        g = self.geometry
        before, after = _halves(g.closed)
        known = [
            shut or (spare is not None and pad + stride >= k + spare)
            for shut, spare, pad, k, stride in zip(
                after, self.spare, _halves(g.padding)[1], g.size, g.stride, strict=True
            )
        ]
        return (*before, *known)

    def flush(self) -> Form:
        """The same map without padding, or with cropping, that no window reads."""
        return self._padded_after([-(spare or 0) for spare in self.spare])

    def symmetric(self) -> Form:
        """The same map padded alike before and after where that is possible, and not cropped where that is needless."""
        changes = []
        for before, after, stride, spare in zip(
            *_halves(self.geometry.padding), self.geometry.stride, self.spare, strict=True
        ):
            least = after - (spare or 0)
            most = after if spare is None else least + stride - 1
            wanted = before if least <= before <= most else max(after, min(0, most))
            changes.append(wanted - after)
        return self._padded_after(changes)

    def _padded_after(self, changes: Sequence[int]) -> Form:
        """With so much more padding at the end of each axis, which no window reads."""
        if not any(changes):
            return self
        spare = [None if s is None else s + change for s, change in zip(self.spare, changes, strict=True)]
        return replace(self, geometry=padded_after(self.geometry, changes), spare=tuple(spare))

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
            f", transposed {g.up[0]}x{g.up[1]}" if g.up != (1, 1) else "",
        )
        return f"{rows}x{columns}, {g.in_channels} -> {g.out_channels}{''.join(extra)}"

    @property
    def is_diagonal(self) -> bool:
        """True for one number a channel: a scale."""
        g = self.geometry
        return (
            g.in_channels == g.out_channels == g.groups
            and g.size == g.stride == g.up == (1, 1)
            and g.padding == (0, 0, 0, 0)
        )

    def covers(self, sides: Sequence[object]) -> bool:
        """True if one window sees the whole of a larger image of these sides, and nothing else."""
        g = self.geometry
        alone = not any(g.padding) and g.up == self.dilation == (1, 1) and g.groups == 1
        return alone and g.size == tuple(sides) != (1, 1)

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
        geometry = self.geometry.series(inner.geometry, inner.closed)
        if inner.ones:
            geometry = replace(geometry, groups=self.geometry.groups)
        if self.ones:
            geometry = replace(geometry, groups=inner.geometry.groups)
        lattice = tuple(
            gcd(mine * s, theirs * u)
            for mine, s, theirs, u in zip(
                self.lattice, inner.geometry.stride, inner.lattice, self.geometry.up, strict=True
            )
        )
        spare = tuple(
            None if mine is None or theirs is None else mine * s + theirs
            for mine, s, theirs in zip(self.spare, inner.geometry.stride, inner.spare, strict=True)
        )
        return Form(geometry, (lattice[0], lattice[1]), self.ones and inner.ones, self.zeros or inner.zeros, spare)

    @lru_cache(maxsize=REMEMBERED)  # noqa: B019  # forms are a few integers
    def parallel(self, other: Form) -> Form:
        """The form of the sum of two convolutions of one input, which are as large; `aligned` makes them so.

        Raises:
            GeometryError: see `Geometry.parallel`.
        """
        geometry = self.geometry.parallel(other.geometry)
        lattice = tuple(
            gcd(mine, theirs, self.geometry.padding[axis] - other.geometry.padding[axis])
            for axis, (mine, theirs) in enumerate(zip(self.lattice, other.lattice, strict=True))
        )
        spare = tuple(theirs if mine is None else mine for mine, theirs in zip(self.spare, other.spare, strict=True))
        return Form(geometry, (lattice[0], lattice[1]), spare=spare)

    def ungrouped(self) -> Form:
        """The form of the same map written with one group."""
        return replace(self, geometry=replace(self.geometry, groups=1))

    def without_cropping(self) -> Form:
        """The same map `symmetric` and with padding of at least 0: a cropped pixel becomes a zero tap.

        One of pixels put apart is padded as a transposed convolution can be: by less than its size, and after the image
        by up to `up - 1` more than before it.
        """
        form = self.symmetric()
        if form.geometry.up != (1, 1):
            return form.as_transposed()
        top, left, bottom, right = form.geometry.padding
        if min(top, left, bottom, right) >= 0:
            return form
        (kh, kw), (rows, columns) = form.geometry.size, form.lattice
        size = (kh + max(-top, 0) + max(-bottom, 0), kw + max(-left, 0) + max(-right, 0))
        padding = (max(top, 0), max(left, 0), max(bottom, 0), max(right, 0))
        lattice = (gcd(rows, min(top, 0), min(bottom, 0)), gcd(columns, min(left, 0), min(right, 0)))
        return Form(replace(form.geometry, size=size, padding=padding), lattice, spare=form.spare)

    def as_transposed(self) -> Form:
        """With zero taps where a transposed convolution needs them, before and after, by axis."""
        first, last = [], []
        for k, up, before, after in zip(
            self.geometry.size, self.geometry.up, *_halves(self.geometry.padding), strict=True
        ):
            both = max(before - (k - 1), 0)  # a transposed convolution crops what its windows overlap, and never less
            first.append(both + max(after - before - (up - 1), 0))
            last.append(both + max(before - after, 0))
        if not any((*first, *last)):
            return self
        (kh, kw), (top, left, bottom, right) = self.geometry.size, self.geometry.padding
        size = (kh + first[0] + last[0], kw + first[1] + last[1])
        padding = (top + first[0], left + first[1], bottom + last[0], right + last[1])
        lattice = (gcd(self.lattice[0], first[0], last[0]), gcd(self.lattice[1], first[1], last[1]))
        return Form(replace(self.geometry, size=size, padding=padding), lattice, spare=self.spare)


def padded_after(geometry: Geometry, changes: Sequence[int]) -> Geometry:
    """A geometry with so much more padding at the end of each axis."""
    top, left, bottom, right = geometry.padding
    return replace(geometry, padding=(top, left, bottom + changes[0], right + changes[1]))


def aligned(first: Form, second: Form) -> tuple[Form, Form]:
    """Two forms of one input, so padded that outputs of equal size are known to be."""
    if first.geometry.excess == second.geometry.excess:
        return first, second
    return first.flush(), second.flush()


def _halves(sides: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """What comes before, and what comes after the pixels, by axis."""
    middle = len(sides) // 2
    return sides[:middle], sides[middle:]


def identity_form(channels: int) -> Form:
    """The form that returns its input."""
    return Form(Geometry(channels, channels, groups=channels), ones=True)


def scale_form(channels: int, *, zeros: bool = False) -> Form:
    """The form of one factor a channel; `zeros` if they all are 0."""
    return Form(Geometry(channels, channels, groups=channels), zeros=zeros)
