"""Forms of convolutions of an image of known size, one after another and added: exact whenever they are not refused."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repconv.errors import GeometryError
from repconv.graph.core.expression import Term, merge
from repconv.graph.core.terms import convolution_term, grid_term

SIDES = st.integers(1, 9)


@st.composite
def terms(draw: st.DrawFn, source: str, channels: int) -> Term:
    """A convolution, or rows and columns that are taken out or put around, of any sides."""
    padding = tuple(draw(st.lists(st.integers(-2, 3), min_size=4, max_size=4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    if draw(st.booleans()):
        return grid_term(source, channels, stride=stride, padding=padding)
    shape = (2, channels, draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return convolution_term(source, lambda: weight, shape, stride=stride, padding=padding)


def made(term: Term, x: torch.Tensor) -> torch.Tensor | None:
    """What a term makes of x; None if x is too small for it."""
    for axis, n in enumerate(x.shape[2:]):
        pads = term.form.geometry.padding[axis::2]
        if n + sum(pads) < term.form.geometry.size[axis] or n + sum(min(pad, 0) for pad in pads) < 1:
            return None
    return term.kernel(x)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.data(), SIDES, SIDES)
def test_one_after_another_is_exact_or_refused(data: st.DataObject, height: int, width: int) -> None:
    x = torch.randn(2, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = data.draw(terms("x", 2)).of_sides((height, width))
    middle = made(inner, x)
    if middle is None:
        return
    outer = data.draw(terms("m", 2)).of_sides(middle.shape[2:])
    wanted = made(outer, middle)
    if wanted is None:
        return
    try:
        both = outer.after(inner)
    except GeometryError:
        return
    written = both.uncropped()
    assert min(written.padding) >= 0
    torch.testing.assert_close(written(x), wanted, rtol=0, atol=1e-12)
    assert both.form == both.form.of_sides((height, width)), "what is known of the size came out otherwise"


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.data(), SIDES, SIDES)
def test_a_sum_is_exact_or_stays_a_sum(data: st.DataObject, height: int, width: int) -> None:
    x = torch.randn(2, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stride = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    drawn = [data.draw(terms("x", 2)).of_sides((height, width)) for _ in range(3)]
    several = [term for term in drawn if term.form.geometry.stride == stride] or drawn[:1]
    values = [made(term, x) for term in several]
    if any(value is None or value.shape != values[0].shape for value in values):
        return
    found = merge(several)
    assert len(found) == 1, "outputs of one size were not added"
    torch.testing.assert_close(found[0].uncropped()(x), sum(values), rtol=0, atol=1e-12)


def test_every_other_pixel_of_an_even_side_may_be_followed_by_a_padded_convolution() -> None:
    tiles = [grid_term("x", 2, stride=(2, 2), padding=(-i, -j, 0, 0)) for i in (0, 1) for j in (0, 1)]
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outer = convolution_term("m", lambda: weight, (2, 2, 3, 3), padding=(1, 1, 1, 1))
    (even,) = merge([tile.of_sides((6, 4)) for tile in tiles])
    both = outer.of_sides((3, 2)).after(even)
    assert (both.form.geometry.size, both.form.geometry.padding) == ((6, 6), (2, 2, 2, 2))
    assert len(merge([tile.of_sides(("rows", 4)) for tile in tiles])) == 2, "rows of an open number are not known alike"
