"""What a convolution looks like before its numbers: `Geometry`, and where its non-zero taps can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import gcd, prod

from ...algebra.geometry import Axes, Geometry, by, halves, with_flat

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

    What is left out of lattice and spare is so for any number of axes.
    """

    geometry: Geometry
    lattice: Axes = (0, 0)
    ones: bool = False
    zeros: bool = False
    spare: tuple[int | None, ...] = (None, None)

    def __post_init__(self) -> None:
        axes = self.geometry.axes
        if not len(self.lattice) == len(self.spare) == axes:
            object.__setattr__(self, "lattice", with_flat(self.lattice, axes, 0))
            object.__setattr__(self, "spare", with_flat(self.spare, axes, None))

    def of_axes(self, count: int) -> Form:
        """The same of so many pixel axes; see `Geometry.of_axes`. Of one that comes, a single element is read."""
        if count == self.geometry.axes:
            return self
        spare = with_flat(self.spare, count, 0)
        return replace(
            self, geometry=self.geometry.of_axes(count), lattice=with_flat(self.lattice, count, 0), spare=spare
        )

    def of_sides(self, sides: Sequence[object]) -> Form:
        """The same, of an image whose sides are these, 1 for those left out; anything but a number for an open one."""
        if self.geometry.axes < len(sides):
            return self.of_axes(len(sides)).of_sides(sides)
        g = self.geometry
        sides = with_flat(sides, g.axes, 1)
        spare = [
            0 if stride == 1 else (((n - 1) * up + 1 + before + after - k) % stride if isinstance(n, int) else None)
            for n, up, before, after, k, stride in zip(sides, g.up, *halves(g.padding), g.size, g.stride, strict=True)
        ]
        return replace(self, spare=tuple(spare))

    @property
    def closed(self) -> tuple[bool, ...]:
        """See `Geometry.closed`: here of images of the size that `spare` knows."""
        g = self.geometry
        before, after = halves(g.closed)
        known = [
            shut or (spare is not None and pad + stride >= k + spare)
            for shut, spare, pad, k, stride in zip(
                after, self.spare, halves(g.padding)[1], g.size, g.stride, strict=True
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
            *halves(self.geometry.padding), self.geometry.stride, self.spare, strict=True
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
    def dilation(self) -> Axes:
        """How far apart taps are when written as a dilated convolution, at least 1."""
        return tuple(max(step, 1) for step in self.lattice)

    @property
    def taps(self) -> Axes:
        """Taps by axis, without the zeros a dilation stands for."""
        return tuple((k - 1) // d + 1 for k, d in zip(self.geometry.size, self.dilation, strict=True))

    @property
    def label(self) -> str:
        """What a table shows: `3x3, 8 -> 16, stride 2x2, dilation 2x2, groups 4`."""
        g = self.geometry
        extra = (
            f", stride {by(g.stride)}" if max(g.stride) > 1 else "",
            f", dilation {by(self.dilation)}" if max(self.dilation) > 1 else "",
            f", groups {g.groups}" if g.groups > 1 else "",
            f", transposed {by(g.up)}" if g.is_transposed else "",
        )
        return f"{by(self.taps)}, {g.in_channels} -> {g.out_channels}{''.join(extra)}"

    @cached_property
    def is_diagonal(self) -> bool:
        """True for one number a channel: a scale."""
        g = self.geometry
        return g.in_channels == g.out_channels == g.groups and self.is_pointwise

    @cached_property
    def is_pointwise(self) -> bool:
        """True if each pixel is made of the one at its place."""
        g = self.geometry
        return max(*g.size, *g.stride, *g.up) == 1 and not any(g.padding)

    def covers(self, sides: Sequence[object]) -> bool:
        """True if one window sees the whole of a larger image of these sides, and nothing else."""
        g = self.geometry
        alone = not any(g.padding) and max(*g.up, *self.dilation) == 1 and g.groups == 1
        count = max(g.axes, len(sides))
        return alone and max(g.size) > 1 and with_flat(g.size, count, 1) == with_flat(sides, count, 1)

    @property
    def is_identity(self) -> bool:
        """True if the output is the input."""
        return self.ones and self.is_diagonal

    @property
    def weights(self) -> int:
        """How many numbers the weight holds."""
        return prod((*self.geometry.weight_shape[:2], *self.taps))

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
        if self.geometry.axes != inner.geometry.axes:
            count = max(self.geometry.axes, inner.geometry.axes)
            return self.of_axes(count).series(inner.of_axes(count))
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
        return Form(geometry, lattice, self.ones and inner.ones, self.zeros or inner.zeros, spare)

    @lru_cache(maxsize=REMEMBERED)  # noqa: B019  # forms are a few integers
    def parallel(self, other: Form) -> Form:
        """The form of the sum of two convolutions of one input, which are as large; `aligned` makes them so.

        Raises:
            GeometryError: see `Geometry.parallel`.
        """
        if self.geometry.axes != other.geometry.axes:
            count = max(self.geometry.axes, other.geometry.axes)
            return self.of_axes(count).parallel(other.of_axes(count))
        geometry = self.geometry.parallel(other.geometry)
        lattice = tuple(
            gcd(mine, theirs, self.geometry.padding[axis] - other.geometry.padding[axis])
            for axis, (mine, theirs) in enumerate(zip(self.lattice, other.lattice, strict=True))
        )
        spare = tuple(theirs if mine is None else mine for mine, theirs in zip(self.spare, other.spare, strict=True))
        return Form(geometry, lattice, spare=spare)

    def ungrouped(self) -> Form:
        """The form of the same map written with one group."""
        return replace(self, geometry=replace(self.geometry, groups=1))

    def without_cropping(self) -> Form:
        """The same map `symmetric` and with padding of at least 0: a cropped pixel becomes a zero tap.

        One of pixels put apart is padded as a transposed convolution can be: by less than its size, and after the image
        by up to `up - 1` more than before it.
        """
        form = self.symmetric()
        if form.geometry.is_transposed:
            return form.as_transposed()
        return form.enlarged([max(-side, 0) for side in form.geometry.padding])

    def as_transposed(self) -> Form:
        """With zero taps where a transposed convolution needs them, before and after, by axis."""
        first: list[int] = []
        last: list[int] = []
        for k, up, before, after in zip(
            self.geometry.size, self.geometry.up, *halves(self.geometry.padding), strict=True
        ):
            both = max(before - (k - 1), 0)  # a transposed convolution crops what its windows overlap, and never less
            first.append(both + max(after - before - (up - 1), 0))
            last.append(both + max(before - after, 0))
        return self.enlarged([*first, *last])

    def enlarged(self, added: Sequence[int]) -> Form:
        """The same map with so many zero taps more on each side, each of which is a pixel of padding more."""
        if not any(added):
            return self
        ends = [*zip(*halves(added), strict=True)]
        size = tuple(k + sum(end) for k, end in zip(self.geometry.size, ends, strict=True))
        padding = tuple(pad + more for pad, more in zip(self.geometry.padding, added, strict=True))
        lattice = tuple(gcd(step, *end) for step, end in zip(self.lattice, ends, strict=True))
        return Form(replace(self.geometry, size=size, padding=padding), lattice, spare=self.spare)


def padded_after(geometry: Geometry, changes: Sequence[int]) -> Geometry:
    """A geometry with so much more padding at the end of each axis."""
    before, after = halves(geometry.padding)
    return replace(geometry, padding=(*before, *(a + change for a, change in zip(after, changes, strict=True))))


def aligned(first: Form, second: Form) -> tuple[Form, Form]:
    """Two forms of one input, so padded that outputs of equal size are known to be."""
    count = max(first.geometry.axes, second.geometry.axes)
    first, second = first.of_axes(count), second.of_axes(count)
    if first.geometry.excess == second.geometry.excess:
        return first, second
    return first.flush(), second.flush()


def identity_form(channels: int) -> Form:
    """The form that returns its input."""
    return Form(Geometry(channels, channels, groups=channels), ones=True)


def scale_form(channels: int, *, zeros: bool = False) -> Form:
    """The form of one factor a channel; `zeros` if they all are 0."""
    return Form(Geometry(channels, channels, groups=channels), zeros=zeros)
