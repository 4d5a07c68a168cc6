"""Linear tensors as sums over sources, `T = sum_s K_s * s + b`: forms first, numbers only when asked for.

A `Term` knows its form at once and computes its kernel, in float64, when somebody reads it. So regions are chosen from
shapes alone, and only what is written is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ..errors import GeometryError
from ..geometry import Geometry
from ..kernels import Kernel, combine, compose, identity
from .form import Form, identity_form
from .ordering import dependencies_first

Weight = Callable[[], Tensor]
"""Gives a weight [o, i/g, kh, kw] in float64, its dilation written out as zeros."""

MOST_ADDENDS = 32
"""A term with more than this many is summed once and kept: tensors added to themselves double them at every step."""

CANCELS_WITHIN = 8.0
"""A bias counts as zero if it is within this many roundings of the parts it is the sum of: exporters write constants
that cancel exactly in real numbers (a border of BN(0) subtracted and added again) rounded to the model's dtype."""


@dataclass(frozen=True)
class Addend:
    """`scales * weight`, one of the convolutions a term is the sum of.

    scales: each gives one factor a channel, [o] in float64. They are multiplied first and applied while summing, as a
        scaled copy of every weight takes longer than all else.
    needs: terms whose numbers the weight and scales are made of.
    """

    form: Form
    weight: Weight
    scales: tuple[Weight, ...] = ()
    needs: tuple[Term, ...] = ()

    def scaled(self, scale: Term) -> Addend:
        """The same with one more scale, a diagonal term."""
        scales = (*self.scales, lambda: scale.kernel.weight.reshape(-1))
        return Addend(replace(self.form, ones=False), self.weight, scales, (*self.needs, scale))

    def factor(self) -> Tensor | None:
        """The product of the scales, [o]; None for 1."""
        return reduce(torch.mul, (scale() for scale in self.scales)) if self.scales else None


class Term:
    """A convolution without bias of one tensor, `source`, whose numbers come when asked for."""

    def __init__(self, source: str, form: Form, addends: Sequence[Addend]) -> None:
        self.source = source
        self.form = form
        self._addends = tuple(addends)
        self.known: Kernel | None = None

    @classmethod
    def leaf(cls, source: str, form: Form, weight: Weight | None = None) -> Term:
        """A term as the graph has it; `weight` None for an identity's numbers."""
        return cls(source, form, [Addend(form, weight or _ones(form.geometry))])

    @classmethod
    def itself(cls, source: str, channels: int) -> Term:
        """The term that is its source."""
        return cls.leaf(source, identity_form(channels))

    @property
    def kernel(self) -> Kernel:
        """The numbers, bias 0, in float64."""
        if self.known is None:
            for term in dependencies_first(self, Term.missing):
                term.known = term.compute()
        return self.known or self.compute()

    def missing(self) -> list[Term]:
        """Terms whose numbers come before these."""
        return [term for addend in self._addends for term in addend.needs if term.known is None]

    def compute(self) -> Kernel:
        """The numbers, those of `missing` being known."""
        kernels = [_kernel(addend.form.geometry, addend.weight()) for addend in self._addends]
        factors = [addend.factor() for addend in self._addends]
        if len(kernels) > 1:
            return combine(kernels, factors)
        return kernels[0] if factors[0] is None else kernels[0] * factors[0]

    def plus(self, other: Term) -> Term:
        """The sum with another term of this source.

        Raises:
            GeometryError: they are not one convolution together.
        """
        return Term(self.source, self.form.parallel(other.form), self._few() + other._few())

    def _few(self) -> tuple[Addend, ...]:
        """What to add, the sum if that is many."""
        if len(self._addends) <= MOST_ADDENDS:
            return self._addends
        return (Addend(self.form, lambda: self.kernel.weight, (), (self,)),)

    def after(self, inner: Term) -> Term:
        """This term of the tensor that `inner` makes.

        Raises:
            GeometryError: not one convolution at every pixel.
        """
        if inner.form.is_identity:
            return Term(inner.source, self.form, self._addends)
        if self.form.is_identity:
            return inner
        form = self.form.series(inner.form)
        if self.form.is_diagonal:
            return Term(inner.source, form, [addend.scaled(self) for addend in inner._few()])
        return Term(inner.source, form, [Addend(form, lambda: _series(self, inner, form).weight, (), (self, inner))])


def _ones(geometry: Geometry) -> Weight:
    return lambda: identity(geometry.in_channels, groups=geometry.groups).weight


def _kernel(geometry: Geometry, weight: Tensor) -> Kernel:
    return Kernel(weight, weight.new_zeros(weight.shape[0]), geometry.stride, geometry.padding, geometry.groups)


def _series(outer: Term, inner: Term, form: Form) -> Kernel:
    """The numbers of `outer`, no scale, after `inner`; an inner scale and shifts of the grid are no general case."""
    target = form.geometry
    if outer.form.ones:
        return _kernel(target, inner.kernel.weight)
    if inner.form.ones or inner.form.is_diagonal:
        g, (o, m, kh, kw) = outer.kernel.groups, outer.kernel.weight.shape
        scale = inner.kernel.weight.reshape(g, 1, m, 1, 1)
        weight = (outer.kernel.weight.reshape(g, o // g, m, kh, kw) * scale).reshape(o, m, kh, kw)
        return _kernel(target, _kernel(target, weight).dilate(inner.form.geometry.stride).weight)
    return compose(outer.kernel, inner.kernel)


class Bias:
    """The constant part of a tensor, [o] in float64, with the size of the numbers it was made of."""

    def __init__(
        self, compute: Callable[[], tuple[Tensor, Tensor]] | None, rounding: float, needs: Sequence[Bias] = ()
    ) -> None:
        """`compute` reads the biases it `needs`; None for no bias."""
        self._compute = compute
        self._rounding = rounding
        self._needs = tuple(needs)
        self.known: tuple[Tensor, Tensor] | None = None

    @property
    def is_surely_zero(self) -> bool:
        """True if there is none, without looking at a number."""
        return self._compute is None

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The bias and the sum of its parts' magnitudes, [o] each; what cancels to rounding is 0.

        Raises:
            GeometryError: there is no bias.
        """
        if self.known is None:
            for bias in dependencies_first(self, Bias.missing):
                bias.known = bias.add()
        return self.known or self.add()

    def missing(self) -> list[Bias]:
        """Biases whose numbers come before these."""
        return [bias for bias in self._needs if bias.known is None]

    def add(self) -> tuple[Tensor, Tensor]:
        """The parts, those of `missing` being known."""
        if self._compute is None:
            raise GeometryError("a bias that is surely zero has no parts")
        value, magnitude = self._compute()
        noise = value.abs() <= CANCELS_WITHIN * self._rounding * magnitude
        return torch.where(noise, 0.0, value), magnitude

    @property
    def is_zero(self) -> bool:
        """True if every number is 0."""
        return self.is_surely_zero or not bool(self.parts[0].any())


@dataclass(frozen=True)
class Expression:
    """`sum_s K_s * s + b`; a source appears more than once only where its terms are not one convolution."""

    terms: tuple[Term, ...]
    bias: Bias


def merge(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The same sum with one term a source where that is one convolution, and none that is zero beside others."""
    merged: list[Term] = []
    for term in [term for term in terms if not term.form.zeros] or terms[:1]:
        for position, known in enumerate(merged):
            if known.source == term.source:
                try:
                    merged[position] = known.plus(term)
                except GeometryError:
                    continue
                break
        else:
            merged.append(term)
    return tuple(merged)


def substitute(term: Term, inner: Expression, what: str) -> tuple[Term, ...]:
    """`term` of a tensor that is `inner` itself, without the bias.

    Raises:
        GeometryError: not one convolution a source at every pixel; `what` names the tensor.
    """
    if max(term.form.geometry.padding) > 0 and not inner.bias.is_zero:
        raise GeometryError(
            f"{what} has a bias and is padded with zeros afterwards: where the padding shows, the two are not one "
            "convolution"
        )
    return tuple(term.after(t) for t in inner.terms)


def respond(term: Term, bias: Bias) -> tuple[Tensor, Tensor]:
    """What `term` makes of a constant image `bias`, and of its magnitude, [o] each."""
    value, magnitude = bias.parts
    if term.form.is_identity:
        return value, magnitude
    taps = term.kernel.weight
    g, (o, m) = term.kernel.groups, taps.shape[:2]

    def apply(response: Tensor, constant: Tensor) -> Tensor:
        return (response.reshape(g, o // g, m) @ constant.reshape(g, m, 1)).reshape(o)

    return apply(taps.sum((2, 3)), value), apply(torch.linalg.vector_norm(taps, 1, (2, 3)), magnitude)
