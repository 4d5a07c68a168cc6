"""The law of rounded affine maps: right ones pass whatever their roundings, wrong ones show by their own size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from repconv.blocks.proof import prove_block
from repconv.proof.affine import SIGMAS, Sources, Written, affine_agreement, largest_on_the_way, square
from repconv.proof.agreement import Comparison

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Half the machine epsilon of each type: what rounding once may change, relative to a number."""


def proven(
    branch: nn.Module, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 1, groups: int = 1
) -> Comparison:
    """What the proof makes of a convolution of these numbers instead of `branch`."""
    o, i, kh, kw = weight.shape
    conv = nn.Conv2d(i * groups, o, (kh, kw), stride, padding, groups=groups, dtype=weight.dtype).eval()
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
    return prove_block(branch, conv, "here")


def exact(channels: int = 4, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution in float64, one channel far smaller than the others."""
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=groups, dtype=torch.float64).eval()
    with torch.no_grad():
        conv.weight[0] *= 1e-3
    return conv


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(DTYPES), st.sampled_from(["nearest", "up", "down", "coherent"]), st.integers(1, 2), st.data())
def test_every_way_of_rounding_once_passes(dtype: torch.dtype, way: str, stride: int, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**20)))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    branch = exact(stride=stride, groups=groups)
    assert branch.bias is not None
    unit = HALF[dtype] * (1 - 1e-6)

    def rounded(t: Tensor) -> Tensor:
        """As far from `t` as one rounding may bring it, in float64, since `dtype` has no such numbers of itself."""
        sign = {"up": torch.ones_like(t), "down": -torch.ones_like(t), "coherent": t.sign()}[way]
        return t + sign * unit * t.abs()

    numbers = [t.detach() for t in (branch.weight, branch.bias)]
    if way == "nearest":
        stored = [t.to(dtype) for t in numbers]
        found = proven(branch, stored[0], stored[1], stride=stride, groups=groups)
    else:
        weight, bias = map(rounded, numbers)
        found = law(branch, weight, bias, dtype, stride=stride, groups=groups)
    assert found.passed, found


def law(
    branch: nn.Module, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, stride: int = 1, groups: int = 1
) -> Comparison:
    """The proof of float64 numbers that claim to be rounded to `dtype`."""

    def value(sources: Sources) -> Tensor:
        return functional.conv2d(sources["x"], weight, bias, stride, 1, 1, groups)

    def power(sources: Sources) -> Tensor:
        return functional.conv2d(sources["x"], square(weight, dtype), None, stride, 1, 1, groups)

    shapes = {"x": (1, 4, 11, 13)}
    return affine_agreement(
        largest_on_the_way(lambda s: branch(s["x"])), Written(value, power, 9), shapes, dtype, "here"
    )


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("channel", [0, 3])
def test_one_channel_wrong_by_three_roundings_shows(dtype: torch.dtype, seed: int, channel: int) -> None:
    """Below the 7 of a single output: the mean over a channel sees it, the smallest channel's as well."""
    torch.manual_seed(seed)
    branch = exact()
    assert branch.bias is not None
    weight, bias = branch.weight.detach().clone(), branch.bias.detach()
    weight[channel] *= 1 + 3 * HALF[dtype]
    found = law(branch, weight, bias, dtype)
    assert not found.passed


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_one_bias_wrong_by_two_roundings_shows(dtype: torch.dtype) -> None:
    branch = exact()
    assert branch.bias is not None
    bias = branch.bias.detach().clone()
    bias[2] *= 1 + 2 * HALF[dtype]
    found = law(branch, branch.weight.detach(), bias, dtype)
    assert not found.passed
    assert "bias" in found.reason


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_a_tap_that_shows_at_one_column_only(dtype: torch.dtype) -> None:
    """Three columns and a kernel of five: the outermost tap meets one column of the image, at one border."""
    branch = nn.Conv2d(4, 4, 5, padding=2, dtype=torch.float64).eval()
    assert branch.bias is not None
    weight = branch.weight.detach().clone()
    weight[:, :, :, 0] *= 1.1
    conv = nn.Conv2d(4, 4, 5, padding=2, dtype=dtype).eval()
    conv.weight, conv.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(branch.bias.detach().to(dtype))
    assert not prove_block(branch, conv, "here").passed


class Shifted(nn.Module):
    """A constant before a padded convolution: at the border it is missing."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))
        self.conv = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x + self.shift)
        return found


def test_a_border_folded_as_if_it_did_not_show_is_found_and_one_that_cancels_is_not() -> None:
    for shift, passes in ((0.5, False), (1e-2, False), (0.0, True)):
        branch = Shifted(shift).eval()
        conv = branch.conv
        assert conv.bias is not None
        bias = conv.bias.detach() + shift * conv.weight.detach().sum((1, 2, 3))
        found = proven(branch, conv.weight.detach().float(), bias.float())
        assert found.passed is passes, found


@pytest.mark.parametrize("sides", [(1, 9), (6, 1), (1, 1), (2, 5)], ids=str)
def test_of_an_image_that_is_all_border_a_border_that_cancels_is_right_and_one_that_shows_is_not(
    sides: tuple[int, int],
) -> None:
    """A norm, its constant subtracted before padding and added behind, rounded, around a 3x3 convolution."""
    for seed in range(8):
        torch.manual_seed(seed)
        weight, point = torch.randn(4, 4, 3, 3).double(), torch.randn(4, 4, 1, 1).double()
        constant = 3 * torch.randn(1, 4, 1, 1).double()
        rounded = constant.float().double()
        for bias, passes in ((0.0, True), (0.01, False)):
            stored = (weight.sum((2, 3)) @ constant.flatten() + bias).float().double()
            kernel = torch.einsum("omhw,mi->oihw", weight, point.flatten(1)).float().double()

            def right(s: Sources, given: tuple[Tensor, ...] = (weight, point, constant, rounded)) -> Tensor:
                outer, inner, shift, edge = given
                bare = functional.conv2d(s["x"], inner) + shift - edge
                return functional.conv2d(functional.pad(bare, (1, 1, 1, 1)) + edge, outer)

            def power(s: Sources, kernel: Tensor = kernel) -> Tensor:
                return functional.conv2d(s["x"], square(kernel, torch.float32), None, 1, 1)

            def value(s: Sources, kernel: Tensor = kernel, stored: Tensor = stored) -> Tensor:
                return functional.conv2d(s["x"], kernel, stored, 1, 1)

            written = Written(value, power, 9, reach=(3, 3))
            found = affine_agreement(largest_on_the_way(right), written, {"x": (1, 4, *sides)}, torch.float32, "here")
            assert found.passed is passes, found


def test_several_sources_are_proven_one_by_one() -> None:
    """A weight that one large source hides from a look at the sum shows for its own source."""
    large, small = torch.full((1, 4, 1, 1), 1e3).double(), torch.randn(1, 4, 1, 1).double()

    def of(b: Tensor) -> Written:
        first, second = (square(t, torch.float32) for t in (large, b))
        return Written(lambda s: s["a"] * large + s["b"] * b, lambda s: s["a"] * first + s["b"] * second, 1)

    reference = largest_on_the_way(lambda s: s["a"] * large + s["b"] * small)
    shapes = {"a": (1, 4, 5, 5), "b": (1, 4, 5, 5)}
    assert affine_agreement(reference, of(small.float().double()), shapes, torch.float32, "here").passed
    assert not affine_agreement(reference, of(small * (1 + 1e-6)), shapes, torch.float32, "here").passed
    swapped = Written(lambda s: s["b"] * large + s["a"] * small, of(small).power, 1)
    assert not affine_agreement(reference, swapped, shapes, torch.float32, "here").passed


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_fails(wrong: float) -> None:
    branch = exact()
    assert branch.bias is not None
    weight = branch.weight.detach().clone()
    weight[1, 0, 0, 0] = wrong
    assert not proven(branch, weight.float(), branch.bias.detach().float()).passed


def test_shapes_that_differ_are_said() -> None:
    branch = exact()
    assert branch.bias is not None
    found = proven(branch, branch.weight.detach().float(), branch.bias.detach().float(), padding=0)
    assert not found.passed
    assert found.mismatch is not None
    assert "shape 1x4x9x11 instead of 1x4x11x13" in found.mismatch


def test_weights_below_the_smallest_normal_number_are_rounded_to_it() -> None:
    branch = exact()
    assert branch.bias is not None
    with torch.no_grad():
        branch.weight *= 1e-6
    found = proven(branch, branch.weight.detach().half(), branch.bias.detach().half())
    assert found.passed
    assert SIGMAS > 1
