"""Regions are proven on images no larger than shows all they do: what that rests on, and what it must not miss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import Tensor, nn

from repconv.benchmarks.studies.graph.networks import to_onnx
from repconv.graph import fuse_onnx, fuse_program
from repconv.graph.maps.extent import Repeats, fewer_pixels
from repconv.graph.onnx.fuse import proof_of
from repconv.graph.onnx.proof.repeating import repeats as onnx_repeats
from repconv.graph.program.proof.repeating import repeats as program_repeats

CHANNELS = 3


class Scaled(nn.Module):
    """A number for each channel, multiplied and added."""

    def __init__(self, *pixels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, CHANNELS, *pixels))
        self.shift = nn.Parameter(torch.randn(CHANNELS, *pixels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Joined(nn.Module):
    """Two halves of the channels, the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 1:], x[:, :1]], 1)


def convolution(kernel: int, stride: int, padding: int, dilation: int) -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding, dilation)


LAYERS = st.one_of(
    st.builds(convolution, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2)),
    st.builds(
        lambda k, s, p: nn.AvgPool2d(k, s, min(p, k // 2)), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2)
    ),
    st.builds(lambda k, s: nn.ConvTranspose2d(CHANNELS, CHANNELS, k, s, 0, 0), st.integers(1, 3), st.integers(1, 2)),
    st.builds(lambda: nn.BatchNorm2d(CHANNELS)),
    st.builds(lambda: Scaled(1, 1)),
    st.builds(Joined),
)


def of_program(network: nn.Module, x: Tensor) -> Repeats | None:
    program = torch.export.export(network, (x,))
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    given = program.graph_signature.user_inputs
    ends = {n: n.name for n in program.graph.nodes if n.name in given}
    return program_repeats(nodes, ends, 4)


@pytest.mark.parametrize("form", ["onnx", "program"])
@settings(deadline=None, max_examples=40)
@given(layers=st.lists(LAYERS, min_size=1, max_size=3), extra=st.integers(0, 6), seed=st.integers(0, 99))
def test_a_smaller_image_shows_both_borders_and_what_lies_between(
    form: str, layers: list[nn.Module], extra: int, seed: int
) -> None:
    """What is nearer to one border than to the other is the same, whatever lies beyond."""
    torch.manual_seed(seed)
    network = nn.Sequential(*layers).eval().double()
    side = 150 + extra
    x = torch.randn(1, CHANNELS, side, side, dtype=torch.float64)
    with torch.no_grad():
        wanted = network(x)
        found = of_program(network, x) if form == "program" else onnx_repeats(to_onnx(network, x), 4)
        assert found is not None
        less = fewer_pixels({"x": tuple(x.shape)}, [found])["x"][2]
        assume(less < side)
        assert (side - less) % found.step == 0
        for keep in (slice(None, less), slice(side - less, None)):
            got = network(x[:, :, keep, keep])
            half = got.shape[2] // 2
            seen = slice(None, half) if keep.start is None else slice(-half, None)
            torch.testing.assert_close(got[:, :, seen, seen], wanted[:, :, seen, seen])


def test_pads_count_as_margins() -> None:
    program = torch.export.export(nn.ZeroPad2d((0, 1, 2, 5)), (torch.randn(1, 3, 64, 64),))
    (given,), (pad,) = ([n for n in program.graph.nodes if n.op == op] for op in ("placeholder", "call_function"))
    assert program_repeats([pad], {given: "x"}, 4) == Repeats(1, 5)
    x, y = (onnx.ValueInfoProto(name=name) for name in "xy")
    pads = numpy_helper.from_array(np.array([0, 0, 2, 0, 0, 0, 5, 1]), "pads")
    for node, stored in (
        (helper.make_node("Pad", ["x"], ["y"], pads=[0, 0, 2, 0, 0, 0, 5, 1]), []),
        (helper.make_node("Pad", ["x", "pads"], ["y"]), [pads]),
    ):
        model = helper.make_model(helper.make_graph([node], "pads", [x], [y], stored))
        assert onnx_repeats(model, 4) == Repeats(1, 5)
    computed = helper.make_model(helper.make_graph([node], "pads", [x], [y]))
    assert onnx_repeats(computed, 4) is None, "how much is not known"


@pytest.mark.parametrize("form", ["onnx", "program"])
@pytest.mark.parametrize(
    "layer",
    [Scaled(64, 64), nn.AdaptiveAvgPool2d(1), nn.PixelShuffle(1), nn.Flatten(2), nn.Upsample(scale_factor=2)],
    ids=["a number a pixel", "a mean of all", "pixels moved", "flat", "resized"],
)
def test_what_may_do_something_else_at_every_pixel_is_not_shown_on_less(form: str, layer: nn.Module) -> None:
    x = torch.randn(1, CHANNELS, 64, 64)
    network = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), layer).eval()
    found = of_program(network, x) if form == "program" else onnx_repeats(to_onnx(network, x), 4)
    assert found is None


@given(
    st.lists(st.builds(Repeats, st.integers(1, 8), st.integers(0, 40)), min_size=1, max_size=3),
    st.lists(st.integers(1, 500), min_size=1, max_size=3),
)
def test_an_image_is_shortened_by_whole_steps_and_never_below_its_margins(
    maps: list[Repeats], image: list[int]
) -> None:
    shapes: Mapping[str, tuple[int, ...]] = {"a": (1, 4, *image), "b": (2, 7, *image)}
    found = fewer_pixels(shapes, maps)
    assert {name: shape[:2] for name, shape in found.items()} == {"a": (1, 4), "b": (2, 7)}
    assert found["a"][2:] == found["b"][2:]
    for side, now in zip(image, found["a"][2:], strict=True):
        assert now <= side
        assert all((side - now) % each.step == 0 for each in maps)
        assert now == side or now >= 2 * max(each.margin for each in maps) + math.lcm(*(each.step for each in maps))


def test_nothing_is_shortened_where_a_map_is_unknown_or_sources_differ_in_size() -> None:
    one: Mapping[str, tuple[int, ...]] = {"a": (1, 4, 300, 300)}
    two: Mapping[str, tuple[int, ...]] = {**one, "b": (1, 4, 150, 150)}
    assert fewer_pixels(one, [Repeats(), None]) == one
    assert fewer_pixels(two, [Repeats()]) == two
    assert fewer_pixels({"a": (8, 4)}, [Repeats()]) == {"a": (8, 4)}
    assert fewer_pixels(one, [Repeats(2, 3)])["a"][2:] == (22, 22)


def large() -> tuple[nn.Module, Tensor]:
    """Branches over an image of 224 x 224, folded into one convolution."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():
        for numbers in (norm.weight, norm.bias, norm.running_mean):
            assert isinstance(numbers, Tensor)
            numbers.normal_()
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), norm, nn.ReLU()).eval(), torch.randn(1, 3, 224, 224)


def test_regions_of_large_images_are_proven_on_small_ones() -> None:
    network, x = large()
    model = to_onnx(network, x)
    _, report = fuse_onnx(model, feeds=[{"x": x.numpy()}])
    _, told = fuse_program(torch.export.export(network, (x,)))
    for found in (report, told):
        assert found.agreement is not None
        region = found.agreement.comparisons[0]
        assert found.agreement.passed
        assert region.shape[2:] == (12, 12)


def test_a_wrong_column_of_taps_shows_on_the_smaller_image() -> None:
    """It matters at every pixel but the leftmost, or at those alone: either is there."""
    network, x = large()
    model = to_onnx(network, x)
    fused, report = fuse_onnx(model, prove=False)
    (weight,) = (t for t in fused.graph.initializer if len(t.dims) == 4)
    for column in range(3):
        numbers = numpy_helper.to_array(weight).copy()
        numbers[0, 0, :, column] *= np.float32(1.0001)
        wrong = onnx.ModelProto()
        wrong.CopyFrom(fused)
        (held,) = (t for t in wrong.graph.initializer if len(t.dims) == 4)
        held.CopyFrom(numpy_helper.from_array(numbers, held.name))
        assert not proof_of(model, wrong, report, [{"x": x.numpy()}]).agreement.passed
    assert proof_of(model, fused, report, [{"x": x.numpy()}]).agreement.passed
