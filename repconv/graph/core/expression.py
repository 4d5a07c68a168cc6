"""Linear tensors as sums over sources, `T = sum_s K_s * s + b`: forms first, numbers only when asked for.

A `Term` knows its form at once and computes its kernel, in float64, when somebody reads it. So regions are chosen from
shapes alone, and only what is written is computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

from ...algebra.geometry import Geometry, halves
from ...algebra.kernels import Kernel, combine, compose, every, identity
from ...errors import GeometryError
from .constant import Bias, Constant
from .dims import Dim, Dims, through
from .form import Form, aligned, identity_form, padded_after
from .ordering import dependencies_first
from .pool import Pool
from .reasons import Kind, StaysError

Weight = Callable[[], Tensor]
"""Gives a weight [o, i/g, kh, kw] in float64, its dilation written out as zeros."""

MOST_ADDENDS = 32
"""A term with more than this many is summed once and kept: tensors added to themselves double them at every step."""


@dataclass(frozen=True)
class Addend:
    """`scales * weight`, one of the convolutions a term is the sum of.

    scales: each gives one factor a channel, [o] in float64. They are multiplied first and applied while summing, as a
        scaled copy of every weight takes longer than all else.
    needs: terms whose numbers the weight and scales are made of.
    key: alike for weights that are known to be alike without a number of them: the name by which one is stored, or a
        hash of what else it is made of; a tuple would double at every step of a tensor that is added to itself.
    taps: the weight without the zeros its dilation stands for, where it is known without them: those of three taps 36
        pixels apart are 600 times as many.
    """

    form: Form
    weight: Weight
    scales: tuple[Weight, ...] = ()
    needs: tuple[Term, ...] = ()
    key: Hashable = field(default_factory=object)
    taps: Weight | None = None

    def scaled(self, scale: Term) -> Addend:
        """The same with one more scale, a diagonal term."""
        scales = (*self.scales, lambda: scale.kernel.weight.reshape(-1))
        return replace(self, form=replace(self.form, ones=False), scales=scales, needs=(*self.needs, scale))

    def of_axes(self, count: int) -> Addend:
        """The same of so many pixel axes."""
        return self if count == self.form.geometry.axes else replace(self, form=self.form.of_axes(count))

    def padded(self, change: Sequence[int]) -> Addend:
        """The same with so much more padding, which no window reads."""
        if not any(change):
            return self
        return replace(self, form=replace(self.form, geometry=padded_after(self.form.geometry, change)))

    @property
    def scaled_key(self) -> Hashable:
        """The key of the weight times its scales."""
        return hash((self.key, *(term.key for term in self.needs))) if self.scales else self.key

    def factor(self) -> Tensor | None:
        """The product of the scales, [o]; None for 1."""
        return reduce(torch.mul, (scale() for scale in self.scales)) if self.scales else None


class Term:
    """A convolution without bias of one tensor, `source`, whose numbers come when asked for.

    pool: what is done to the source first. pooled: the same map as one of a pool, where it is that, too.
    """

    def __init__(
        self,
        source: str,
        form: Form,
        addends: Sequence[Addend],
        *,
        pool: Pool | None = None,
        pooled: Term | None = None,
    ) -> None:
        self.source = source
        self.form = form
        self.pool = pool
        self.pooled = pooled
        self.addends = tuple(addends)
        self.known: Kernel | None = None

    @classmethod
    def leaf(cls, source: str, form: Form, weight: Weight | None = None, taps: Weight | None = None) -> Term:
        """A term as the graph has it; `weight` None for an identity's numbers, `taps` as in an addend."""
        return cls(source, form, [Addend(form, weight or _ones(form.geometry), taps=taps)])

    @classmethod
    def itself(cls, source: str, channels: int) -> Term:
        """The term that is its source."""
        return cls.leaf(source, identity_form(channels))

    @classmethod
    def average(cls, source: str, channels: int, pool: Pool) -> Term:
        """The term that is a pool of its source."""
        return cls.itself(source, channels).with_pool(pool, None)

    def with_pool(self, pool: Pool | None, pooled: Term | None) -> Term:
        """The same convolution of a pool; `pooled` as in a term."""
        if (pool, pooled) == (self.pool, self.pooled):
            return self
        return Term(self.source, self.form, self.addends, pool=pool, pooled=pooled)

    def known_as(self, key: Hashable) -> Term:
        """The same under a key, if it is one weight; see `Addend`."""
        if len(self.addends) > 1:
            return self
        addends = [replace(self.addends[0], key=key)]
        return Term(self.source, self.form, addends, pool=self.pool, pooled=self.pooled)

    @cached_property
    def key(self) -> Hashable:
        """Alike for terms whose numbers are known to be; see `Addend`."""
        if len(self.addends) == 1:
            return self.addends[0].scaled_key
        # In words, as numbers -1 and -2, such as of padding, have one hash.
        return hash(tuple((addend.scaled_key, str(addend.form)) for addend in self.addends))

    def stored(self) -> set[str]:
        """The names of the stored weights its numbers are made of."""
        parts = dependencies_first(self, lambda term: [each for a in term.addends for each in a.needs])
        return {addend.key for term in parts for addend in term.addends if isinstance(addend.key, str)}

    def makes(self, dims: Dims) -> Dims:
        """The size of what it makes of a source of size `dims`."""
        return through(self.form.geometry, dims if self.pool is None else self.pool.through(dims))

    @property
    def kernel(self) -> Kernel:
        """The numbers, bias 0, in float64."""
        if self.known is None:
            for term in dependencies_first(self, Term.missing):
                term.known = term.compute()
        return self.known or self.compute()

    def missing(self) -> list[Term]:
        """Terms whose numbers come before these."""
        return [term for addend in self.addends for term in addend.needs if term.known is None]

    def forget(self) -> None:
        """Let go of these numbers and all they were made of; who asks again has them computed again."""
        for term in dependencies_first(self, Term.kept):
            term.known = None

    def kept(self) -> list[Term]:
        """Terms these were made of whose numbers are still held."""
        return [term for addend in self.addends for term in addend.needs if term.known is not None]

    def compute(self) -> Kernel:
        """The numbers, those of `missing` being known."""
        kernels = [_kernel(addend.form.geometry, addend.weight()) for addend in self.addends]
        factors = [addend.factor() for addend in self.addends]
        if len(kernels) > 1:
            return combine(kernels, factors)
        kernel = kernels[0] if factors[0] is None else kernels[0] * factors[0]
        return kernel.of_axes(self.form.geometry.axes)

    def plus(self, other: Term) -> Term:
        """The sum with another term of this source.

        Raises:
            GeometryError: they are not one convolution together.
        """
        if self.pool != other.pool:
            said = "cannot add what reads an average of pixels to what reads the pixels, or another average"
            raise StaysError(Kind.NOT_ADDED(said=said))
        mine, theirs = aligned(self.form, other.form)
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            with contextlib.suppress(GeometryError):
                pooled = self.pooled.plus(other.pooled)
        added = self.like(mine).few() + other.like(theirs).few()
        return Term(self.source, mine.parallel(theirs), added, pool=self.pool, pooled=pooled)

    def of_sides(self, sides: Sequence[Dim]) -> Term:
        """The same term, of an image of these sides; see `Form.of_sides`."""
        inside = sides if self.pool is None else self.pool.sides(sides)
        pooled = None if self.pooled is None else self.pooled.of_sides(sides)
        return self.like(self.form.of_sides(inside)).with_pool(self.pool, pooled)

    def like(self, form: Form) -> Term:
        """The same numbers under another padding after the image, or with more known of it."""
        if form == self.form:
            return self
        count = form.geometry.axes
        old, new = (halves(each.geometry.padding)[1] for each in (self.form.of_axes(count), form))
        change = [mine - theirs for mine, theirs in zip(new, old, strict=True)]
        addends = [addend.of_axes(count).padded(change) for addend in self.addends]
        return Term(self.source, form, addends, pool=self.pool, pooled=self.pooled)

    def uncropped(self) -> Kernel:
        """The numbers as `form.without_cropping()` has them."""
        settled, target = self.form.symmetric().geometry, self.form.without_cropping().geometry
        kernel = replace(self.kernel, padding=settled.padding)
        return kernel if settled == target else kernel.enlarge(target.size, target.padding)

    def taps(self) -> Tensor:
        """The weight of `uncropped` without the zeros that its dilation stands for: [o, i/g, k...]."""
        form, target = self.form.symmetric(), self.form.without_cropping()
        addend, *others = self.addends
        as_far = addend.form.of_axes(form.geometry.axes).dilation == form.dilation
        if addend.taps is None or others or form != target or not as_far:
            return self.uncropped().weight[every(target.dilation)]
        weight, factor = addend.taps(), addend.factor()
        weight = weight if factor is None else weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
        return weight.reshape(*weight.shape[:2], *form.taps)

    def few(self) -> tuple[Addend, ...]:
        """What to add, the sum if that is many."""
        if len(self.addends) <= MOST_ADDENDS:
            return self.addends
        return (Addend(self.form, lambda: self.kernel.weight, (), (self,), self.key),)

    def after(self, inner: Term) -> Term:
        """This term of the tensor that `inner` makes.

        Raises:
            GeometryError: not one convolution at every pixel, or a pool of what is none of a matrix at every pixel.
        """
        if self.pool is None:
            found = self._after(inner)
            return found if found is inner else found.with_pool(inner.pool, self._pooled_after(inner))
        if not inner.form.is_pointwise or inner.pool not in (None, Pool()):
            said = f"{inner.form.label}, padding {','.join(map(str, inner.form.geometry.padding))}"
            raise StaysError(Kind.AVERAGED(said=said))
        # The average of a single pixel is that.
        return self._after(inner).with_pool(inner.pool or self.pool, None)

    def _pooled_after(self, inner: Term) -> Term | None:
        """What this term of the tensor that `inner` makes is of a pool; None if that is not known."""
        with contextlib.suppress(GeometryError):
            if inner.pooled is not None:
                return self.after(inner.pooled)
            if self.pooled is not None and inner.pool is None:
                return self.pooled.after(inner)
        return None

    def _after(self, inner: Term) -> Term:
        """The convolution, whatever is pooled."""
        if inner.form.is_identity:
            return Term(inner.source, self.form, self.addends)
        if self.form.is_identity:
            return inner
        form = self.form.series(inner.form)
        if self.form.is_diagonal:
            return Term(inner.source, form, [addend.scaled(self) for addend in inner.few()])
        series = Addend(
            form,
            lambda: _series(self, inner, form).weight,
            needs=(self, inner),
            key=_key_of_series(self, inner),
            taps=_taps_of_series(self, inner, form),
        )
        return Term(inner.source, form, [series])


def _ones(geometry: Geometry) -> Weight:
    return lambda: identity(geometry.in_channels, groups=geometry.groups).weight


def _kernel(geometry: Geometry, weight: Tensor) -> Kernel:
    weight = weight.reshape(geometry.weight_shape)  # it may have fewer axes
    return Kernel(
        weight, weight.new_zeros(weight.shape[0]), geometry.stride, geometry.padding, geometry.groups, geometry.up
    )


def _series(outer: Term, inner: Term, form: Form) -> Kernel:
    """The numbers of `outer`, no scale, after `inner`; an inner scale and shifts of the grid are no general case."""
    target = form.geometry
    if outer.form.ones:
        return _kernel(target, inner.kernel.weight)
    if inner.form.ones or inner.form.is_diagonal:
        scaled = _scaled_inside(outer.kernel.weight, outer, inner)
        kernel = replace(outer.kernel, weight=scaled).of_axes(target.axes)
        return _kernel(target, kernel.dilate(inner.form.of_axes(target.axes).geometry.stride).weight)
    return compose(outer.kernel, inner.kernel, closed=inner.form.closed)


def _taps_of_series(outer: Term, inner: Term, form: Form) -> Weight | None:
    """`Addend.taps` of a series, where one of the two leaves pixels where they are."""
    if inner.form.is_diagonal:
        return lambda: _scaled_inside(outer.taps(), outer, inner)
    if max(form.dilation) > 1 and (outer.form.is_pointwise or inner.form.is_pointwise):
        return lambda: compose(_close_together(outer), _close_together(inner)).weight
    return None


def _close_together(term: Term) -> Kernel:
    """A convolution of the same taps, next to each other."""
    weight = term.taps()
    return Kernel(weight, weight.new_zeros(weight.shape[0]), groups=term.form.geometry.groups)


def _scaled_inside(weight: Tensor, outer: Term, inner: Term) -> Tensor:
    """The weight of `outer`, with or without zeros, after what gives each channel one factor."""
    o, m = weight.shape[:2]
    g = outer.form.geometry.groups
    return (weight.reshape(g, o // g, m, -1) * inner.kernel.weight.reshape(g, 1, m, 1)).reshape(weight.shape)


def _key_of_series(outer: Term, inner: Term) -> Hashable:
    """The key of a series; an identity leaves the other's numbers, but where its stride puts zeros between them."""
    if outer.form.ones:
        return inner.key
    if inner.form.ones and max(*inner.form.geometry.stride, *inner.form.geometry.up) == 1:
        return outer.key
    return hash(("after", outer.key, inner.key))


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
    """`term` of a tensor that is `inner` itself, without the bias, which `respond` carries on.

    A bias that counts as zero is carried on exactly. Where `term` pads, the border lacks it, which is less than the
    rounding that made it count as zero, times the taps outside the image.

    Raises:
        GeometryError: not one convolution a source at every pixel; `what` names the tensor.
    """
    if term.form.geometry.is_transposed and not inner.bias.is_zero:
        raise StaysError(Kind.BIAS_SPREAD(maker=what))
    if max(term.form.geometry.padding) > 0 and not inner.bias.is_zero:
        raise StaysError(Kind.BIAS_PADDED(maker=what))
    return tuple(term.after(t) for t in inner.terms)


def respond(term: Term, bias: Bias) -> Constant:
    """What `term` makes of a constant image `bias`."""
    if term.form.is_identity:
        return bias.constant
    weight = term.taps() if max(term.form.dilation) > 1 else term.kernel.weight
    return bias.constant.after(weight, term.form.geometry.groups)
