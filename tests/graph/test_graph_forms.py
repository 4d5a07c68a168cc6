"""Forms of convolutions of an image of known size, one after another and added: exact whenever they are not refused."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from repconv.errors import GeometryError
from repconv.graph.core.constant import Bias
from repconv.graph.core.dims import through, told
from repconv.graph.core.expression import Expression, Term, merge
from repconv.graph.core.terms import convolution_term, grid_term, transposed_term
from repconv.graph.maps.carried import Carried
from repconv.graph.maps.layout import plain
from repconv.graph.onnx.writer import DIALECT
from repconv.graph.planning.emission import emission

SIDES = st.integers(1, 9)
IMAGE = st.sampled_from([1, 2, 2, 3]).flatmap(lambda axes: st.tuples(*(SIDES,) * axes))
SMALL = st.integers(1, 3)
TRANSPOSED = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@st.composite
def terms(draw: st.DrawFn, source: str, channels: int, axes: int = 2) -> Term:
    """A convolution, or rows and columns that are taken out or put around, of any sides."""
    padding = tuple(draw(st.lists(st.integers(-2, 3), min_size=2 * axes, max_size=2 * axes)))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    if draw(st.booleans()):
        return grid_term(source, channels, stride=stride, padding=padding)
    shape = (2, channels, *(draw(st.integers(1, 3)) for _ in range(axes)))
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return convolution_term(source, lambda: weight, shape, stride=stride, padding=padding)


def made(term: Term, x: torch.Tensor) -> torch.Tensor | None:
    """What a term makes of x; None if x is too small for it."""
    for axis, n in enumerate(x.shape[2:]):
        pads = term.form.geometry.padding[axis :: term.form.geometry.axes]
        if n + sum(pads) < term.form.geometry.size[axis] or n + sum(min(pad, 0) for pad in pads) < 1:
            return None
    return term.kernel(x)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.data(), IMAGE)
def test_one_after_another_is_exact_or_refused(data: st.DataObject, sides: tuple[int, ...]) -> None:
    x = torch.randn(2, 2, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = data.draw(terms("x", 2, len(sides))).of_sides(sides)
    middle = made(inner, x)
    if middle is None:
        return
    outer = data.draw(terms("m", 2, len(sides))).of_sides(middle.shape[2:])
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
    assert both.form == both.form.of_sides(sides), "what is known of the size came out otherwise"


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.data(), IMAGE)
def test_a_sum_is_exact_or_stays_a_sum(data: st.DataObject, sides: tuple[int, ...]) -> None:
    x = torch.randn(2, 2, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stride = tuple(data.draw(st.integers(1, 3)) for _ in sides)
    drawn = [data.draw(terms("x", 2, len(sides))).of_sides(sides) for _ in range(3)]
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


@st.composite
def transposed(draw: st.DrawFn, source: str, channels: int, axes: int = 2) -> tuple[Term, object]:
    """A transposed convolution as a term, and as PyTorch has it."""
    kernel, stride, dilation = (draw(st.tuples(*(SMALL,) * axes)) for _ in range(3))
    crop = draw(st.tuples(*(st.integers(0, 2),) * axes))
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    groups = draw(st.sampled_from([1, 2]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    weight = torch.randn(channels, 2 // groups, *kernel, dtype=torch.float64, generator=generator)
    term = transposed_term(
        source,
        lambda: weight,
        tuple(weight.shape),
        stride=stride,
        crop=(*crop, *(both - kept for both, kept in zip(crop, more, strict=True))),
        dilation=dilation,
        groups=groups,
    )

    def run(x: torch.Tensor) -> torch.Tensor:
        return TRANSPOSED[axes](x, weight, None, stride, crop, more, groups, dilation)

    return term, run


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.data(), st.sampled_from([2, 2, 3]).flatmap(lambda axes: st.tuples(*(SMALL,) * axes)))
def test_a_transposed_convolution_before_and_after_others_and_added(
    data: st.DataObject, sides: tuple[int, ...]
) -> None:
    x, axes = torch.randn(2, 2, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), len(sides)
    term, run = data.draw(transposed("x", 2, axes))
    wanted = fitting(term, run, x)
    if wanted is None:
        return
    term = term.of_sides(sides)
    assert through(term.form.geometry, (2, 2, *sides)) == told(tuple(wanted.shape))
    torch.testing.assert_close(as_written(term, x), wanted, rtol=0, atol=1e-12)
    for kind in ("after", "before", "added"):
        other, run_other = data.draw(st.one_of(transposed("m", 2, axes), terms("m", 2, axes).map(lambda t: (t, None))))
        source = wanted if kind == "after" else x
        other, found = other.of_sides(source.shape[2:]), fitting(other, run_other, source)
        if found is None:
            continue
        try:
            if kind == "after":
                both, right = other.after(term), found
            elif kind == "before":
                both, right = term.of_sides(found.shape[2:]).after(other), fitting(term, run, found)
            else:
                both, right = term.plus(other), wanted + found if found.shape == wanted.shape else None
        except GeometryError:
            continue
        if right is not None:
            torch.testing.assert_close(as_written(both, x), right, rtol=0, atol=1e-12)


def fitting(term: Term, run: object, x: torch.Tensor) -> torch.Tensor | None:
    """What a term, or `run`, makes of x; None if x is too small for it."""
    if run is None:
        return made(term, x)
    return run(x) if min(term.form.geometry.output_size(*x.shape[2:])) > 0 else None


def as_written(term: Term, x: torch.Tensor) -> torch.Tensor:
    """What the operation that is written for a term makes of x."""
    layout = plain(2, x.dim() - 2)
    tensor = Carried("x", layout, told(x.shape))
    output = Carried("y", layout, through(term.form.geometry, tensor.dims))
    layers = emission(output, Expression((term,), Bias(None, 2**-53)), [tensor], DIALECT).layers
    if not layers or not layers[0].is_transposed:
        return term.uncropped()(x)
    layer = layers[0]
    crop, more = layer.crop
    assert min(*crop, *more) >= 0
    groups = layer.form.geometry.groups
    return TRANSPOSED[layer.pixels](x, layer.weight, None, layer.stride, crop, more, groups, layer.dilation)


def test_an_open_side_put_apart_is_equal_to_itself_and_not_to_another() -> None:
    one, other, wide = (
        transposed_term("x", torch.Tensor, (2, 2, k, k), stride=(s, s), crop=(p, p, p, p))
        for k, s, p in ((4, 2, 1), (2, 2, 0), (4, 3, 1))
    )
    sizes = [through(term.form.geometry, ("n", 2, ("h", 1, -1), 5)) for term in (one, other, wide)]
    assert sizes[0] == sizes[1] != sizes[2]
