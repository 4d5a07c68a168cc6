"""The laws of the algebra: `+` is parallel, `@` is series, `*` scales, and what is not exact is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from repconv import GeometryError, Kernel
from repconv.algebra.geometry import Geometry
from repconv.algebra.kernels import average, combine, compose, identity
from repconv.blocks.branches import conv_kernel

Draw = Callable[[st.SearchStrategy[Any]], Any]
SIDES = (12, 11, 10)
laws = settings(max_examples=60, derandomize=True, deadline=None)
assert_close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def random_kernel(geometry: Geometry, bias: bool = True) -> Kernel:
    """Random float64 numbers in the shape of `geometry`."""
    o = geometry.out_channels
    weight = torch.randn(geometry.weight_shape, dtype=torch.float64)
    offset = torch.randn(o, dtype=torch.float64) if bias else torch.zeros(o, dtype=torch.float64)
    return Kernel(weight, offset, geometry.stride, geometry.padding, geometry.groups)


def image(channels: int, *sides: int) -> Tensor:
    """Two random float64 images, of two axes unless `sides` say otherwise."""
    return torch.randn(2, channels, *(sides or SIDES[:2]), dtype=torch.float64)


def read_by(kernel: Kernel, *sides: int) -> Tensor:
    """An image for a kernel of any number of axes."""
    return image(kernel.geometry.in_channels, *(sides or SIDES)[: kernel.axes])


def assert_same(a: Kernel, b: Kernel) -> None:
    """Both kernels have one geometry and, to rounding, the same numbers."""
    assert a.geometry == b.geometry
    assert_close(a.weight, b.weight)
    assert_close(a.bias, b.bias)


def assert_same_map(a: Kernel, b: Kernel) -> None:
    """Both kernels make the same of an image, whatever they are written like."""
    x = read_by(a)
    assert_close(a(x), b(x))


def by_channel(numbers: Tensor, kernel: Kernel) -> Tensor:
    """One number a channel of what a kernel makes, as it broadcasts."""
    return numbers.reshape(-1, *(1,) * kernel.axes)


axes = st.integers(1, 3)


def each(numbers: st.SearchStrategy[int], count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """So many numbers."""
    return st.tuples(*(numbers,) * count)


def sizes(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """1..4 x 1..3 x 1..3 taps."""
    return st.tuples(*(st.integers(1, most) for most in (4, 3, 3)[:count]))


def strides(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """How many pixels apart windows are."""
    return st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 2, 1), (3, 1, 2)]).map(lambda found: found[:count])


@st.composite
def addable(draw: Draw, count: int) -> list[Kernel]:
    """Kernels of one image that agree in axes, channels, stride and output size, and in nothing else.

    1..4 x 1..3 taps, any padding of -2..5 a side that gives the drawn output size, any groups dividing 12 and 6.
    """
    of = draw(axes)
    stride, excess = draw(strides(of)), draw(each(st.integers(-3, 2), of))
    found = []
    for _ in range(count):
        size, groups = draw(sizes(of)), draw(st.sampled_from([1, 2, 3, 6]))
        before = draw(each(st.integers(-1, 2), of))
        after = [e + k - b for e, k, b in zip(excess, size, before, strict=True)]
        found.append(random_kernel(Geometry(12, 6, size, stride, (*before, *after), groups)))
    return found


@st.composite
def chainable(draw: Draw, count: int, *, inner_padding: bool = True) -> list[Kernel]:
    """Kernels, outermost first, of which only the innermost pads; the others may crop; any size, stride and groups."""
    of, channels = draw(axes), [draw(st.sampled_from([2, 4, 6])) for _ in range(count + 1)]
    found = []
    for depth in range(count):
        o, i = channels[depth], channels[depth + 1]
        innermost = depth == count - 1 and inner_padding
        sides = st.integers(-1, 2) if innermost else st.integers(-1, 0)
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 6) if o % g == 0 and i % g == 0]))
        padding = draw(each(sides, 2 * of))
        found.append(random_kernel(Geometry(i, o, draw(sizes(of)), draw(strides(of)), padding, groups)))
    return found


class TestParallel:
    """a + b."""

    @laws
    @given(addable(2))
    def test_the_sum_of_kernels_is_the_sum_of_outputs(self, kernels: list[Kernel]) -> None:
        a, b = kernels
        x = read_by(a)
        assert_close((a + b)(x), a(x) + b(x))

    @laws
    @given(addable(2))
    def test_addition_commutes(self, kernels: list[Kernel]) -> None:
        a, b = kernels
        assert_same(a + b, b + a)

    @laws
    @given(addable(3))
    def test_addition_associates(self, kernels: list[Kernel]) -> None:
        a, b, c = kernels
        assert_same((a + b) + c, a + (b + c))

    @laws
    @given(addable(3))
    def test_a_combination_is_the_scaled_sum(self, kernels: list[Kernel]) -> None:
        """`combine` adds in place what `+` and `*` say one by one."""
        a, b, c = kernels
        factors = [torch.tensor(-1.5, dtype=torch.float64), None, torch.tensor(0.0, dtype=torch.float64)]
        assert_same(combine([a, b, c], factors), -1.5 * a + b + 0 * c)

    @pytest.mark.parametrize("swap", [False, True])
    def test_kernels_of_two_dtypes_add_in_the_wider_one(self, swap: bool) -> None:
        """As tensors do, whichever comes first."""
        a, b = random_kernel(Geometry(4, 4)).to(dtype=torch.float32), random_kernel(Geometry(4, 4))
        total = b + a if swap else a + b
        assert (total.weight.dtype, total.bias.dtype) == (torch.float64, torch.float64)
        assert torch.equal(total.weight, a.weight + b.weight)

    def test_the_sum_is_no_larger_than_what_its_terms_reach(self) -> None:
        """3x3 + 1x1 + identity is a 3x3 with padding 1; two depthwise kernels stay depthwise."""
        full = random_kernel(Geometry(4, 4, (3, 3), padding=(1, 1, 1, 1), groups=4))
        point = random_kernel(Geometry(4, 4, groups=4))
        assert (point + full + identity(4, groups=4)).geometry == full.geometry


class TestScaling:
    """c * a."""

    @laws
    @given(addable(2), st.floats(-3, 3))
    def test_a_number_distributes_over_parallel(self, kernels: list[Kernel], factor: float) -> None:
        a, b = kernels
        assert_same(factor * (a + b), factor * a + b * factor)

    @laws
    @given(addable(2))
    def test_a_number_a_channel_scales_each_output(self, kernels: list[Kernel]) -> None:
        a, b = kernels
        c = torch.randn(6, dtype=torch.float64)
        assert_same(c * (a + b), c * a + c * b)
        x = read_by(a)
        assert_close((c * a)(x), by_channel(c, a) * a(x))

    @laws
    @given(chainable(2))
    def test_scaling_the_outer_kernel_scales_the_chain(self, kernels: list[Kernel]) -> None:
        outer, inner = kernels
        c = torch.randn(outer.geometry.out_channels, dtype=torch.float64)
        assert_same((c * outer) @ inner, c * (outer @ inner))

    def test_shift_moves_the_output(self) -> None:
        a, x = random_kernel(Geometry(3, 2, (2, 2))), image(3)
        offset = torch.randn(2, dtype=torch.float64)
        assert_close(a.shift(offset)(x), a(x) + offset[:, None, None])


class TestSeries:
    """outer @ inner."""

    @laws
    @given(chainable(2))
    def test_the_chain_of_kernels_is_the_chain_of_maps(self, kernels: list[Kernel]) -> None:
        outer, inner = kernels
        x = read_by(inner, 17, 19, 14)
        assume(min(inner(x).shape[2:]) > 5)
        assert_close((outer @ inner)(x), outer(inner(x)))

    @laws
    @given(chainable(3))
    def test_series_associates(self, kernels: list[Kernel]) -> None:
        c, b, a = kernels
        assert_same((c @ b) @ a, c @ (b @ a))

    @laws
    @given(st.data())
    def test_series_distributes_over_parallel_inside(self, data: st.DataObject) -> None:
        """outer (a + b) = outer a + outer b for an outer kernel without bias, which would count twice."""
        a, b = data.draw(addable(2))
        size, groups = data.draw(sizes(a.axes)), data.draw(st.sampled_from([1, 2]))
        outer = random_kernel(Geometry(6, 4, size, data.draw(strides(a.axes)), groups=groups), bias=False)
        assert_same(outer @ (a + b), outer @ a + outer @ b)

    @laws
    @given(st.data())
    def test_series_distributes_over_parallel_outside(self, data: st.DataObject) -> None:
        """(a + b) inner = a inner + b inner; one may pad where inner is a single tap without bias."""
        a, b = data.draw(addable(2))
        stride, groups = data.draw(strides(a.axes)), data.draw(st.sampled_from([1, 4]))
        inner = random_kernel(Geometry(4, 12, (1,) * a.axes, stride, groups=groups))
        inner = Kernel(inner.weight, torch.zeros_like(inner.bias), inner.stride, inner.padding, inner.groups)
        assert_same((a + b) @ inner, a @ inner + b @ inner)

    @laws
    @given(st.data())
    def test_padding_zeros_after_a_single_tap_without_bias_is_exact(self, data: st.DataObject) -> None:
        of = data.draw(axes)
        padding, around = data.draw(each(st.integers(0, 2), 2 * of)), (1, 0, 0, 2, 1, 0)[: 2 * of]
        outer = random_kernel(Geometry(6, 4, (3, 2, 2)[:of], data.draw(strides(of)), padding))
        inner = random_kernel(Geometry(4, 6, (1,) * of, data.draw(strides(of)), around), bias=False)
        x = image(4, *data.draw(each(st.integers(9, 13), of)))
        assert_close((outer @ inner)(x), outer(inner(x)))

    @laws
    @given(st.data())
    def test_padding_the_inner_bias_is_exact(self, data: st.DataObject) -> None:
        """`border="inner"`: the border holds what the inner kernel makes of a zero pixel."""
        of, groups = data.draw(axes), data.draw(each(st.sampled_from([1, 2]), 2))
        before, after = data.draw(each(st.integers(0, 2), of)), data.draw(each(st.integers(0, 2), of))
        size, padding = (3, 2, 2)[:of], (*before, *after)
        outer = random_kernel(Geometry(6, 4, size, data.draw(strides(of)), padding, groups[0]))
        inner = random_kernel(Geometry(4, 6, (1,) * of, data.draw(strides(of)), groups=groups[1]))
        x = image(4, *data.draw(each(st.integers(9, 13), of)))
        middle = inner(x)
        sides = [b + n + a for b, n, a in zip(before, middle.shape[2:], after, strict=True)]
        bordered = by_channel(inner.bias, inner).expand(*middle.shape[:2], *sides).clone()
        bordered[(..., *(slice(b, b + n) for b, n in zip(before, middle.shape[2:], strict=True)))] = middle
        unpadded = Kernel(outer.weight, outer.bias, outer.stride, groups=outer.groups)
        assert_close(compose(outer, inner, border="inner")(x), unpadded(bordered))

    @pytest.mark.parametrize("groups", [1, 2, 6])
    def test_identity_is_neutral_on_both_sides(self, groups: int) -> None:
        a = random_kernel(Geometry(6, 6, (3, 2), (2, 1), (1, 0, 2, 1), groups))
        unit = identity(6, groups=6)
        assert_same(a @ unit, a)
        assert_same(unit @ a, a)


class TestCall:
    """kernel(x)."""

    @pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 2, 1, 2), (2, 0, 1, 3), (-1, -2, -1, -2), (-1, 2, 0, -3)])
    @pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
    def test_padding_is_a_side_each_and_negative_padding_crops(
        self, padding: tuple[int, int, int, int], stride: tuple[int, int]
    ) -> None:
        a, x = random_kernel(Geometry(4, 6, (3, 2), stride, padding, 2)), image(4)
        top, left, bottom, right = padding
        bordered = torch.zeros(2, 4, 12 + top + bottom, 11 + left + right, dtype=x.dtype)
        rows, columns = slice(max(0, -top), 12 - max(0, -bottom)), slice(max(0, -left), 11 - max(0, -right))
        seen = x[:, :, rows, columns]
        first = max(0, top), max(0, left)
        bordered[:, :, first[0] : first[0] + seen.shape[2], first[1] : first[1] + seen.shape[3]] = seen
        expected = functional.conv2d(bordered, a.weight, a.bias, stride, groups=2)
        assert_close(a(x), expected)

    @laws
    @given(addable(1), each(st.integers(7, 12), 3))
    def test_the_geometry_knows_the_output_size_and_cost(self, kernels: list[Kernel], sides: tuple[int, ...]) -> None:
        (a,) = kernels
        x = read_by(a, *sides)
        y = a(x)
        assert a.geometry.output_size(*x.shape[2:]) == y.shape[2:]
        assert a.geometry.multiply_adds(*x.shape[2:]) == y[0].numel() * a.weight[0].numel()


class TestRegroup:
    """The same map with fewer groups."""

    @pytest.mark.parametrize("groups", [1, 2, 3, 6])
    def test_merging_groups_keeps_the_map(self, groups: int) -> None:
        a = random_kernel(Geometry(12, 6, (3, 3), padding=(1, 1, 1, 1), groups=6))
        merged = a.regroup(groups)
        assert merged.groups == groups
        assert_same_map(merged, a)

    def test_enlarging_keeps_the_map(self) -> None:
        a = random_kernel(Geometry(3, 2, (2, 1), padding=(0, -1, 1, 0)))
        larger = a.enlarge((4, 3), (1, 1, 2, 0))
        assert larger.geometry.size == (4, 3)
        assert_same_map(larger, a)


class TestAxes:
    """Kernels of different numbers of pixel axes: the ones that one lacks are flat."""

    @laws
    @given(addable(1), addable(1), chainable(1))
    def test_what_meets_is_of_the_larger_number(
        self, first: list[Kernel], second: list[Kernel], third: list[Kernel]
    ) -> None:
        """As if the axes that one lacks had been there, flat, in sums and series; and back again."""
        a, b, c = *first, *second, *third
        count = max(a.axes, b.axes)
        try:
            assert_same(a + b, a.of_axes(count) + b.of_axes(count))
        except GeometryError:
            with pytest.raises(GeometryError):
                a.of_axes(count) + b.of_axes(count)
        point = random_kernel(Geometry(c.geometry.out_channels, 12, (1,) * b.axes), bias=False)
        count = max(b.axes, c.axes)
        assert_same(point @ c, point.of_axes(count) @ c.of_axes(count))
        assert_same(a.of_axes(3).of_axes(a.axes), a)
        x = read_by(a)
        assert_close(a.of_axes(3)(x.reshape(*x.shape, *(1,) * (3 - a.axes))).flatten(), a(x).flatten())

    def test_what_is_left_out_is_so_for_every_axis(self) -> None:
        kernel = Kernel(torch.ones(2, 1, 3, 3, 3), torch.zeros(2))
        assert (kernel.stride, kernel.padding, kernel.up) == ((1, 1, 1), (0,) * 6, (1, 1, 1))
        assert str(Geometry(4, 4, (3, 1, 3), (1, 2, 2))) == "4->4 3x1x3 stride 1x2x2 padding 0,0,0,0,0,0 groups 1"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"stride": (2, 2)}, r"of 3 pixel axes has a stride of 3 numbers, got \(2, 2\)"),
            ({"padding": (1, 1, 1, 1)}, r"of 3 pixel axes has a padding of 6 numbers"),
        ],
    )
    def test_other_numbers_of_axes_are_refused(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(GeometryError, match=words):
            Kernel(torch.ones(2, 1, 3, 3, 3), torch.zeros(2), **arguments)
        with pytest.raises(GeometryError, match="is no convolution of 2 pixel axes"):
            Geometry(4, 4, (3, 1, 3)).of_axes(2)


class TestDilate:
    """The same taps further apart."""

    @pytest.mark.parametrize("rate", [(1, 1), (2, 2), (1, 3), (3, 2)])
    def test_a_dilated_kernel_is_a_dilated_convolution(self, rate: tuple[int, int]) -> None:
        a, x = random_kernel(Geometry(4, 6, (3, 2), (1, 2), (1, 1, 1, 1), 2)), image(4)
        expected = functional.conv2d(x, a.weight, a.bias, (1, 2), (1, 1), rate, 2)
        assert_close(a.dilate(rate)(x), expected)

    def test_one_number_dilates_both_ways(self) -> None:
        a = random_kernel(Geometry(2, 2, (2, 3)))
        assert_same(a.dilate(2), a.dilate((2, 2)))


class TestFoldBatchNorm:
    """Convolution, then batch normalisation with fixed statistics."""

    @pytest.mark.parametrize("conv_bias", [False, True])
    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1e-3, 1.0])
    def test_folding_is_the_two_layers(self, conv_bias: bool, affine: bool, eps: float) -> None:
        norm = nn.BatchNorm2d(6, eps=eps, affine=affine).double().eval()
        norm.running_mean = torch.randn(6, dtype=torch.float64)
        norm.running_var = 10 ** torch.linspace(-3, 2, 6, dtype=torch.float64)
        if affine:
            nn.init.uniform_(norm.weight, -2, 2)
            nn.init.uniform_(norm.bias, -2, 2)
        conv = nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=conv_bias).double()
        folded = conv_kernel(conv, torch.float64).fold_batch_norm(
            norm.running_mean, norm.running_var, norm.weight, norm.bias, eps
        )
        x = image(4)
        assert_close(folded(x), norm(conv(x)))


class TestConvKernel:
    """A `Conv2d` as a kernel."""

    @pytest.mark.filterwarnings(
        "ignore:Using padding='same' with even kernel lengths"
    )  # the uneven sides are the point
    @pytest.mark.parametrize(
        "arguments",
        [
            {"kernel_size": 3, "padding": 1, "bias": False},
            {"kernel_size": (1, 3), "padding": (0, 2), "dilation": (1, 2), "groups": 2},
            {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": (2, 1), "groups": 4},
            {"kernel_size": (2, 4), "padding": "same", "dilation": (3, 1)},
            {"kernel_size": 5, "padding": "valid", "stride": 3},
        ],
        ids=str,
    )
    def test_the_kernel_is_the_layer(self, arguments: dict[str, Any]) -> None:
        conv, x = nn.Conv2d(4, 8, **arguments).double(), image(4)
        assert_close(conv_kernel(conv, torch.float64)(x), conv(x))

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
    def test_padding_with_other_than_zeros_is_refused(self, mode: str) -> None:
        with pytest.raises(GeometryError, match=f"padding_mode='{mode}' does not pad with zeros"):
            conv_kernel(nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode), torch.float64)


class TestSimpleKernels:
    """identity and average."""

    @pytest.mark.parametrize("groups", [1, 2, 3, 6])
    def test_identity_returns_its_input(self, groups: int) -> None:
        unit, x = identity(6, groups=groups), image(6)
        assert unit.groups == groups
        assert torch.equal(unit(x), x)

    @pytest.mark.parametrize(
        ("size", "stride", "padding"), [((3, 3), (1, 1), 1), ((2, 3), (2, 1), 1), ((1, 2), (3, 2), 0)]
    )
    def test_average_counts_padded_pixels(self, size: tuple[int, int], stride: tuple[int, int], padding: int) -> None:
        x = image(3)
        pool = average(3, size=size, stride=stride, padding=(0, padding, 0, padding))
        expected = functional.avg_pool2d(x, size, stride, (0, padding), count_include_pad=True)
        assert_close(pool(x), expected)


OPERATIONS: dict[str, Callable[[Kernel, Kernel, Tensor], Kernel]] = {
    "add": lambda a, b, c: a + b,  # noqa: ARG005
    "series": lambda a, b, c: compose(a, b, border="inner"),  # noqa: ARG005
    "combine": lambda a, b, c: combine([a, b, a], [None, c[0], c[1]]),
    "scale": lambda a, b, c: c * a,  # noqa: ARG005
    "scale by a number": lambda a, b, c: 0.5 * a,  # noqa: ARG005
    "shift": lambda a, b, c: a.shift(c),  # noqa: ARG005
    "fold": lambda a, b, c: a.fold_batch_norm(c, c * c, c, None, 1e-5),  # noqa: ARG005
    "dilate": lambda a, b, c: a.dilate((2, 1)),  # noqa: ARG005
    "regroup": lambda a, b, c: b.regroup(1),  # noqa: ARG005
}
"""Every operation on a 3x3 kernel `a` with padding 1, a pointwise one `b` in two groups, and a number a channel."""


def operands(dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights and biases of a and b, and the numbers c, requiring gradients."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 4, 3, 3), (4,), (4, 2, 1, 1), (4,), (4,)]
    made = [torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5 for shape in shapes]
    a, p, b, q, c = (t.to(dtype=dtype, device=device).requires_grad_() for t in made)
    return a, p, b, q, c


def apply(name: str, a: Tensor, p: Tensor, b: Tensor, q: Tensor, c: Tensor) -> Kernel:
    """One row of the table on raw tensors."""
    return OPERATIONS[name](Kernel(a, p, padding=(1, 1, 1, 1)), Kernel(b, q, groups=2), c)


@pytest.mark.parametrize("name", OPERATIONS)
class TestEveryOperation:
    """What holds for each of them."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_keeps_the_dtype(self, name: str, dtype: torch.dtype) -> None:
        result = apply(name, *operands(dtype))
        assert (result.weight.dtype, result.bias.dtype) == (dtype, dtype)

    def test_keeps_the_device(self, name: str) -> None:
        result = apply(name, *operands(torch.float32, "meta"))
        assert (result.weight.device.type, result.bias.device.type) == ("meta", "meta")

    def test_is_differentiable(self, name: str) -> None:
        """To the precision of finite differences in float64."""

        def numbers(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            result = apply(name, *tensors)
            return result.weight, result.bias

        assert torch.autograd.gradcheck(numbers, operands(torch.float64))

    def test_float32_gradients_are_the_float64_ones(self, name: str) -> None:
        gradients = {}
        for dtype in (torch.float32, torch.float64):
            tensors = operands(dtype)
            result = apply(name, *tensors)
            (result.weight.square().sum() + result.bias.square().sum()).backward()
            gradients[dtype] = [t.grad for t in tensors]
        assert any(g is not None and g.abs().max() > 0 for g in gradients[torch.float32])
        for single, double in zip(gradients[torch.float32], gradients[torch.float64], strict=True):
            assert (single is None) == (double is None)
            if single is not None and double is not None:
                assert single.dtype == torch.float32
                torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_new_kernels_come_in_the_asked_dtype_and_device() -> None:
    device = torch.device("meta")
    half = {"dtype": torch.float16, "device": device}
    for made in (identity(2, **half), average(2, size=(2, 2), **half)):
        assert (made.weight.dtype, made.weight.device, made.bias.dtype) == (torch.float16, device, torch.float16)
    moved = identity(2).to(dtype=torch.bfloat16, device=device)
    assert (moved.weight.dtype, moved.bias.device) == (torch.bfloat16, device)


def make(i: int = 4, o: int = 4, size: tuple[int, int] = (3, 3), bias: bool = True, **rest: Any) -> Kernel:
    """A random kernel, for the rules below."""
    return random_kernel(Geometry(i, o, size, **rest), bias)


padded: dict[str, Any] = {"padding": (1, 1, 1, 1)}
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "differing stride": (lambda: make() + make(stride=(2, 2)), r"strides differ: 4->4 3x3 stride 1x1 .* stride 2x2"),
    "differing output size": (lambda: make() + make(size=(1, 1)), "outputs differ in size"),
    "differing input channels": (lambda: make(i=2) + make(), "input channels differ"),
    "differing output channels": (lambda: make(o=2) + make(), "output channels differ"),
    "a chain of unlike channels": (lambda: make() @ make(o=6), "takes 4 channels, the inner one gives 6"),
    "a biased 1x1, then zeros": (lambda: make(**padded) @ make(size=(1, 1)), "with bias followed by one padded with"),
    "a padded 3x3 after a 3x3": (lambda: make(**padded) @ make(bias=False), "is not one convolution at the border"),
    "padding after a crop": (
        lambda: make(**padded) @ make(size=(1, 1), bias=False, padding=(-1, 0, 0, 0)),
        "is not one convolution at the border",
    ),
    "the same, bordered by the inner bias": (
        lambda: compose(make(**padded), make(**padded), border="inner"),
        "is not one convolution at the border",
    ),
    "groups that do not divide": (lambda: Geometry(6, 4, groups=3), "3 groups must divide both 6 input and 4 output"),
    "no groups": (lambda: Geometry(4, 4, groups=0), "must be at least 1, got 4->4 .* groups 0"),
    "no stride": (lambda: Geometry(4, 4, stride=(1, 0)), "at least 1, got .* stride 1x0"),
    "a flat weight": (lambda: Kernel(torch.ones(2, 2), torch.ones(2)), r"is \[o, i/g, kh, kw\], got shape \(2, 2\)"),
    "a bias of another size": (
        lambda: Kernel(torch.ones(2, 2, 1, 1), torch.ones(3)), r"bias is \[o\] = \[2\], got shape \(3,\)"
    ),
    "groups that do not divide a weight": (
        lambda: Kernel(torch.ones(4, 2, 1, 1), torch.ones(4), groups=3), "3 groups must divide"
    ),
    "more groups": (lambda: make().regroup(2), "1 groups can be merged into a divisor of them, not into 2"),
    "a scale of another size": (lambda: make() * torch.ones(3), r"by \[o\] = \[4\], got shape \(3,\)"),
    "an offset of another size": (lambda: make().shift(torch.ones(4, 4)), r"bias is \[o\] = \[4\]"),
    "no dilation": (lambda: make().dilate((0, 1)), r"dilation is at least 1 in each direction, got \(0, 1\)"),
    "enlarging to less": (lambda: make(**padded).enlarge((1, 1), (0, 0, 0, 0)), "cannot be written with 1x1 taps"),
    "enlarging past the padding": (lambda: make(**padded).enlarge((5, 5), (1, 1, 1, 1)), "be written with 5x5 taps"),
}  # fmt: skip


@pytest.mark.parametrize("rule", REFUSED)
def test_what_is_not_exact_is_refused_in_words(rule: str) -> None:
    operation, words = REFUSED[rule]
    with pytest.raises(GeometryError, match=words):
        operation()


@pytest.mark.parametrize("operation", [lambda a: a + 1, lambda a: a @ torch.ones(4)])
def test_only_kernels_combine(operation: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError):
        operation(make())
