"""What a piece of graph costs, from shapes alone: multiply-adds of convolutions, and elements moved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from .form import REMEMBERED, Form

MOVE = 16.0
"""Multiply-adds that one element read or written is worth. A processor core that does 50 G multiply-adds a second and
moves 3 G floats a second sits at about 16; choices hardly depend on it between 4 and 60."""

Size = tuple[int, ...]
"""Channels and the sides of one image; open ones stand at a nominal value."""


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of convolutions, elements read and written, and how many convolutions."""

    multiply_adds: float = 0.0
    moved: float = 0.0
    convolutions: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.moved + other.moved,
            self.convolutions + other.convolutions,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds - other.multiply_adds,
            self.moved - other.moved,
            self.convolutions - other.convolutions,
        )

    def price(self, move: float = MOVE) -> float:
        """One number to compare."""
        return self.multiply_adds + move * self.moved


def elements(size: Size) -> int:
    """How many numbers one image of this size holds."""
    return prod(size)


@lru_cache(maxsize=REMEMBERED)
def convolution(form: Form, source: Size, output: Size) -> Cost:
    """One convolution as it is written, without cropping; its weight is read once."""
    pixels = prod((source if form.geometry.is_transposed else output)[1:])
    return Cost(pixels * form.weights, elements(source) + elements(output) + form.weights, 1)


def elementwise(reads: int, output: Size) -> Cost:
    """One pass over `reads` tensors as large as the output, and the output."""
    return Cost(0.0, (reads + 1) * elements(output))


def averaging(source: Size, output: Size) -> Cost:
    """One pass of a pool, which reads as many numbers as its source has."""
    return Cost(0.0, elements(source) + elements(output))
