"""The constant part of a tensor: exact numbers, and beside them what decides whether they count as none.

What decides never alters what is written. `Constant.value` is the float64 sum of what stands in the graph and is cast
once, when it is written; the other two numbers only bound how far that sum is from the one its author meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import GeometryError
from .ordering import dependencies_first

WRITTEN = 2.0
"""Roundings by which a number that stands in the graph may be off: that of its own cast, and as much again for an
exporter that computed it in the graph's type, or folded a batch normalisation away in it."""

ARITHMETIC = 8.0
"""Roundings of float32, or of the graph's type where that is finer, relative to the parts, by which an exporter's
arithmetic may be off: the shift of a batch normalisation takes six (sum, root, inverse, two products, difference)."""

_FLOAT32 = 2.0**-24


@dataclass(frozen=True)
class Constant:
    """A constant image, [o] in float64 each.

    value: one number a channel. parts: the sum of the magnitudes it was computed from. written: the sum of those that
        stand in the graph as one number, rounded to its type, such as a border that is subtracted or a bias; at least
        their root mean square over the channels, since a number that came out small was rounded when it was not.
    """

    value: Tensor
    parts: Tensor
    written: Tensor

    @classmethod
    def stored(cls, value: Tensor) -> Constant:
        """One that stands in the graph."""
        return cls(value, value.abs(), value.abs().clamp(min=value.square().mean().sqrt()))

    @classmethod
    def computed(cls, value: Tensor, parts: Tensor) -> Constant:
        """One that follows from others, such as the shift of a batch normalisation."""
        return cls(value, parts, torch.zeros_like(parts))

    def __add__(self, other: Constant) -> Constant:
        """The sum of two."""
        return Constant(self.value + other.value, self.parts + other.parts, self.written + other.written)

    def after(self, weight: Tensor, groups: int) -> Constant:
        """What a convolution without bias makes of it where no padding shows; weight: [o, i/g, k...] in float64."""
        g, (o, m) = groups, weight.shape[:2]

        def apply(response: Tensor, constant: Tensor) -> Tensor:
            return (response.reshape(g, o // g, m) @ constant.reshape(g, m, 1)).reshape(o)

        axes = tuple(range(2, weight.dim()))
        size = torch.linalg.vector_norm(weight, 1, axes)
        return Constant(apply(weight.sum(axes), self.value), apply(size, self.parts), apply(size, self.written))

    def cancels(self, rounding: float) -> bool:
        """True if nothing but rounding tells it from zero: then padding with zeros continues it.

        A border `BN(0)` that is subtracted before zeros are padded, and added again afterwards, cancels in real
        numbers; a file holds it rounded. What is left may be `WRITTEN` roundings of each number written and
        `ARITHMETIC` of the parts: less than what the graph rounds there itself when it runs in its type. The numbers of
        a batch normalisation stand for themselves: what its shift leaves is a border that shows, in any type.

        rounding: the most by which a cast to the graph's type changes a number, relative to it.
        """
        noise = WRITTEN * rounding * self.written + ARITHMETIC * min(rounding, _FLOAT32) * self.parts
        return bool((self.value.abs() <= noise).all())


class Bias:
    """The constant part of a tensor, whose numbers come when asked for.

    Its value is exact whatever `is_zero` decides.
    """

    def __init__(self, compute: Callable[[], Constant] | None, rounding: float, needs: Sequence[Bias] = ()) -> None:
        """`compute` reads the biases it `needs`, None for no bias; `rounding` is that of the graph's type."""
        self._compute = compute
        self._rounding = rounding
        self._needs = tuple(needs)
        self.known: Constant | None = None

    @property
    def is_surely_zero(self) -> bool:
        """True if there is none, without looking at a number."""
        return self._compute is None

    @property
    def constant(self) -> Constant:
        """The numbers.

        Raises:
            GeometryError: there is no bias.
        """
        if self.known is None:
            for bias in dependencies_first(self, Bias.missing):
                bias.known = bias.add()
        return self.known or self.add()

    def minus(self, border: Constant) -> Bias:
        """What is left of it where a border of these numbers shows."""
        negative = Constant(-border.value, border.parts, border.written)
        compute = (lambda: negative) if self.is_surely_zero else (lambda: self.constant + negative)
        return Bias(compute, self._rounding, () if self.is_surely_zero else (self,))

    def missing(self) -> list[Bias]:
        """Biases whose numbers come before these."""
        return [bias for bias in self._needs if bias.known is None]

    def add(self) -> Constant:
        """The numbers, those of `missing` being known."""
        if self._compute is None:
            raise GeometryError("a bias that is surely zero has no numbers")
        return self._compute()

    @property
    def value(self) -> Tensor | None:
        """What is written, [o] in float64; None if every number is exactly 0."""
        return None if self.is_surely_zero or not bool(self.constant.value.any()) else self.constant.value

    @property
    def is_zero(self) -> bool:
        """True if padding with zeros continues it, see `Constant.cancels`: it decides, and changes no number."""
        return self.is_surely_zero or self.constant.cancels(self._rounding)
