"""Pooling that averages and pads nothing: what it makes of a tensor is a source of terms, as tensors are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...algebra.geometry import Axes, Geometry
from .dims import Dim, Dims, through, told


@dataclass(frozen=True)
class Pool:
    """The average of each window of so many pixels, `stride` apart; of the whole image for no size.

    With a matrix at every pixel it commutes, and of a constant it makes that: `P(K * s + b) = K * P(s) + b`.
    """

    size: Axes = ()
    stride: Axes = ()

    def sides(self, sides: Sequence[Dim]) -> Dims:
        """The sides of what it makes of an image of these."""
        if not self.size:
            return (1,) * len(sides)
        return through(Geometry(1, 1, self.size, self.stride), (1, 1, *sides))[2:]

    def through(self, dims: Dims) -> Dims:
        """The size of what it makes of a tensor."""
        return told((*dims[:2], *self.sides(dims[2:])))
