"""Sizes of tensors whose sides or batch may be open, comparable without knowing them.

Every pass of a convolution maps a side n to floor((n + e) / s) + 1, and such maps compose. So an open side is
(root, s, e): two are equal for every input if these agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import TypeVar

from ...algebra.geometry import Geometry, halves, with_flat

Dim = int | tuple[str, int, int]
Dims = tuple[Dim, ...]
"""[n, c, h, w], or of as many sides as there are pixel axes, two at least; sides that are not told are 1."""

NOMINAL = 64
"""What an open side counts as when something is priced."""


Side = TypeVar("Side")
"""A side as somebody writes it; what is no number is open, and equal to another or not."""

Amount = tuple[int, tuple[Side, ...]]
"""How many elements several sides hold together: the product of those that are numbers, and the open ones."""

ONE: Amount[object] = (1, ())


def amount(sides: Iterable[Side]) -> Amount[Side]:
    """How many elements sides hold together."""
    known = list(sides)
    return (
        prod(side for side in known if isinstance(side, int)),
        tuple(side for side in known if not isinstance(side, int)),
    )


def over(whole: Amount[Side], part: Amount[Side]) -> Amount[Side] | None:
    """How often a part is in a whole; None if that is no whole number, whatever the open sides are."""
    left = list(whole[1])
    for side in part[1]:
        if side not in left:
            return None
        left.remove(side)
    return (whole[0] // part[0], tuple(left)) if part[0] and not whole[0] % part[0] else None


def symbol(name: str) -> Dim:
    """An open side of its own."""
    return (name, 1, -1)


def told(dims: Sequence[Dim]) -> Dims:
    """The one way to tell a size: without sides of 1 at the end but the first two."""
    count = len(dims)
    while count > 4 and dims[count - 1] == 1:
        count -= 1
    return with_flat(dims, count, 1)


def through(geometry: Geometry, dims: Dims) -> Dims:
    """The size of what a convolution makes of a tensor of size `dims`."""
    count = max(geometry.axes, len(dims) - 2)
    geometry = geometry.of_axes(count)
    sides: list[Dim] = []
    for given, before, after, k, s, up in zip(
        with_flat(dims[2:], count, 1),
        *halves(geometry.padding),
        geometry.size,
        geometry.stride,
        geometry.up,
        strict=True,
    ):
        side, pad = given, before + after
        if up > 1:
            side = (given - 1) * up + 1 if isinstance(given, int) else apart(given, up)
        if isinstance(side, int):
            sides.append((side + pad - k) // s + 1)
        else:
            root, stride, excess = side
            sides.append((root, stride * s, excess + stride * (1 + pad - k)))
    return told((dims[0], geometry.out_channels, *sides))


def apart(side: tuple[str, int, int], up: int) -> Dim:
    """An open side whose pixels are put `up` apart: one of its own, named by what it is made of, so equal ones are."""
    root, stride, excess = side
    return symbol(f"(({root}{excess:+d})/{stride})*{up}")


def nominal(dims: Dims) -> tuple[int, ...]:
    """Channels and sides with `NOMINAL` for open roots, at least 1."""
    return tuple(map(nominal_side, dims[1:]))


def nominal_side(side: Dim) -> int:
    """One side with `NOMINAL` for an open root, at least 1."""
    return max(side if isinstance(side, int) else (NOMINAL + side[2]) // side[1] + 1, 1)


def broadcast(first: tuple[Dim, ...], second: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The size of an elementwise operation on tensors of one rank, None where it cannot be known."""
    if len(first) != len(second):
        return None
    joined: list[Dim] = []
    for a, b in zip(first, second, strict=True):
        if a == b or b == 1:
            joined.append(a)
        elif a == 1:
            joined.append(b)
        else:
            return None
    return tuple(joined)
