"""Sizes of tensors whose height, width or batch may be open, comparable without knowing them.

Every pass of a convolution maps a side n to floor((n + e) / s) + 1, and such maps compose. So an open side is
(root, s, e): two are equal for every input if these agree.
"""

from __future__ import annotations

from ...algebra.geometry import Geometry

Dim = int | tuple[str, int, int]
Dims = tuple[Dim, Dim, Dim, Dim]

NOMINAL = 64
"""What an open side counts as when something is priced."""


def symbol(name: str) -> Dim:
    """An open side of its own."""
    return (name, 1, -1)


def through(geometry: Geometry, dims: Dims) -> Dims:
    """The size of what a convolution makes of a tensor of size `dims`."""
    top, left, bottom, right = geometry.padding
    sides: list[Dim] = []
    for given, pad, k, s, up in zip(
        dims[2:], (top + bottom, left + right), geometry.size, geometry.stride, geometry.up, strict=True
    ):
        side = given
        if up > 1:
            side = (given - 1) * up + 1 if isinstance(given, int) else apart(given, up)
        if isinstance(side, int):
            sides.append((side + pad - k) // s + 1)
        else:
            root, stride, excess = side
            sides.append((root, stride * s, excess + stride * (1 + pad - k)))
    return (dims[0], geometry.out_channels, sides[0], sides[1])


def apart(side: tuple[str, int, int], up: int) -> Dim:
    """An open side whose pixels are put `up` apart: one of its own, named by what it is made of, so equal ones are."""
    root, stride, excess = side
    return symbol(f"(({root}{excess:+d})/{stride})*{up}")


def nominal(dims: Dims) -> tuple[int, int, int]:
    """Channels, height and width with `NOMINAL` for open roots, at least 1."""
    channels, height, width = map(nominal_side, dims[1:])
    return channels, height, width


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
