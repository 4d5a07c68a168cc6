"""The laws of the graph's algebra: series associates and distributes, and forms foretell kernels."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from repconv.algebra.kernels import every
from repconv.errors import GeometryError
from repconv.graph.core.expression import Term
from repconv.graph.core.terms import (
    average_term,
    convolution_term,
    grid_term,
    matrix_term,
    scale_term,
    select_term,
    transposed_term,
)

CHANNELS = 4
KINDS = ("convolution", "transposed", "average", "grid", "scale", "matrix", "select", "itself")
laws = settings(max_examples=200, derandomize=True, deadline=None)


def each(numbers: st.SearchStrategy[int], count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """So many numbers."""
    return st.tuples(*(numbers,) * count)


@st.composite
def terms(draw: st.DrawFn, source: str = "x", sides: tuple[int, int] = (-1, 2)) -> Term:
    """A term of any kind from 4 to 4 channels: 1..3 taps, strides and dilations of 1..3, padding within `sides`.

    Of one, two or three axes, whatever others have: what one lacks is flat.
    """
    axes = draw(st.sampled_from([1, 2, 2, 2, 3]))
    numbers = each(st.integers(1, 3), axes)
    kind, stride, dilation, taps = draw(st.sampled_from(KINDS)), draw(numbers), draw(numbers), draw(numbers)
    padding, groups = draw(each(st.integers(*sides), 2 * axes)), draw(st.sampled_from([1, 2, 4]))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=numbers)

    if kind in ("convolution", "transposed"):
        weight = random(CHANNELS, CHANNELS // groups, *taps)
        shape = (CHANNELS, CHANNELS // groups, *taps)
        if kind == "transposed":
            return transposed_term(source, lambda: weight, shape, stride=stride, dilation=dilation, groups=groups)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return convolution_term(source, lambda: weight, shape, **options)
    if kind == "average":
        return average_term(source, CHANNELS, taps, stride=stride, padding=padding)
    if kind == "grid":
        return grid_term(source, CHANNELS, stride=stride, padding=padding)
    if kind == "scale":
        return scale_term(source, random(CHANNELS))
    if kind == "matrix":
        matrix = random(CHANNELS, CHANNELS)
        return matrix_term(source, lambda: matrix, (CHANNELS, CHANNELS))
    return Term.itself(source, CHANNELS) if kind == "itself" else select_term(source, CHANNELS, (2, 0, 3, 1))


def assert_same(a: Term, b: Term) -> None:
    """One source and geometry, up to how many groups it is written in, and the same numbers to float64's rounding."""
    assert a.source == b.source
    mine, theirs = a.kernel.of_axes(3).regroup(1), b.kernel.of_axes(3).regroup(1)
    assert mine.geometry == theirs.geometry
    torch.testing.assert_close(mine.weight, theirs.weight, rtol=1e-12, atol=1e-12)


def series(outer: Term, inner: Term) -> Term | None:
    """`outer` after `inner`; None where that is no one convolution."""
    try:
        return outer.after(inner)
    except GeometryError:
        return None


def total(first: Term, second: Term) -> Term | None:
    """The sum; None where that is no one convolution."""
    try:
        return first.plus(second)
    except GeometryError:
        return None


@laws
@given(terms("x"), terms("y", (-1, 0)), terms("z", (-1, 0)))
def test_series_associates(a: Term, b: Term, c: Term) -> None:
    """(c after b) after a = c after (b after a), whenever both are one convolution."""
    late, early = series(c, b), series(b, a)
    assume(late is not None and early is not None)
    left, right = series(late, a), series(c, early)
    assume(left is not None and right is not None)
    assert_same(left, right)


@laws
@given(terms("y", (-1, 0)), terms("x"), terms("x"))
def test_series_distributes_over_a_sum_of_what_it_reads(c: Term, a: Term, b: Term) -> None:
    """c after (a + b) = c after a + c after b."""
    inside, one, other = total(a, b), series(c, a), series(c, b)
    assume(None not in (inside, one, other))
    whole, parts = series(c, inside), total(one, other)
    assume(whole is not None and parts is not None)
    assert_same(whole, parts)


@laws
@given(terms("y", (-1, 0)), terms("y", (-1, 0)), terms("x"))
def test_a_sum_distributes_over_what_it_reads(a: Term, b: Term, c: Term) -> None:
    """(a + b) after c = a after c + b after c."""
    outside, one, other = total(a, b), series(a, c), series(b, c)
    assume(None not in (outside, one, other))
    whole, parts = series(outside, c), total(one, other)
    assume(whole is not None and parts is not None)
    assert_same(whole, parts)


@laws
@given(terms("x"), terms("y", (-1, 0)), st.booleans())
def test_taps_are_the_kernel_without_what_a_dilation_leaves_out(first: Term, second: Term, scaled: bool) -> None:
    factors = scale_term("x", torch.arange(1.0, CHANNELS + 1, dtype=torch.float64))
    both = series(second, factors if scaled else first)
    for term in (first, second, both, *([] if both is None else [series(factors, both)])):
        if term is not None:
            wanted = term.uncropped().weight[every(term.form.without_cropping().dilation)]
            torch.testing.assert_close(term.taps(), wanted, rtol=1e-14, atol=0)


@laws
@given(terms("x"), terms("y", (-1, 0)), each(st.integers(7, 9), 3))
def test_a_form_foretells_its_kernel(inner: Term, outer: Term, sides: tuple[int, ...]) -> None:
    """What forms say without numbers is what the composed kernel is, and as large as torch makes one after the other.

    That series associates does not say that it is right: any other rule for padding that associates would do.
    """
    both = series(outer, inner)
    assume(both is not None)
    kernel = both.kernel
    assert both.form.geometry == kernel.geometry
    sides = sides[: max(inner.form.geometry.axes, outer.form.geometry.axes)]
    first, second = (term.kernel.of_axes(len(sides)) for term in (inner, outer))
    x = torch.randn(1, CHANNELS, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    on_lattice, kept = every(both.form.dilation), torch.zeros_like(kernel.weight)
    kept[on_lattice] = kernel.weight[on_lattice]
    assert torch.equal(kept, kernel.weight), "a tap that is off the lattice of the form"
    middle = first.geometry.output_size(*sides)
    assume(min(*middle, *second.geometry.output_size(*middle)) > 0)
    wanted = second(first(x))
    kernel = kernel.of_axes(len(sides))
    assert kernel.geometry.output_size(*sides) == tuple(wanted.shape[2:])
    torch.testing.assert_close(kernel(x), wanted, rtol=1e-12, atol=1e-12)
