"""Borders however they are spelled: as torch paints them, folded where they hold what the tensor is there itself."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import repconv
from repconv.algebra.kernels import innermost_first
from repconv.benchmarks.studies.graph.networks import to_onnx
from repconv.errors import GeometryError
from repconv.graph import fuse_onnx, fuse_program
from repconv.graph.core.dims import symbol, told
from repconv.graph.maps import canvas
from repconv.graph.maps.canvas import Canvas
from repconv.graph.maps.carried import Carried
from repconv.graph.maps.layout import plain

C = 2


def dense(found: Canvas, x: Tensor, size: tuple[int, ...]) -> Tensor:
    """What a canvas of `size` shows of x [1, c, pixels]."""
    shown, value = found.shown, found.value
    for axis in range(found.axes):
        known = sum(run for run in found.runs[axis] if run is not None)
        repeats = torch.tensor([size[axis] - known if run is None else run for run in found.runs[axis]])
        shown, value = shown.repeat_interleave(repeats, axis), value.repeat_interleave(repeats, axis + 1)
    if found.source is None:
        return value[None]
    window = functional.pad(x, innermost_first(found.padding))
    return torch.where(shown, window, 0.0) + value[None]


def painted(draw: st.DrawFn, found: Canvas, value: Tensor) -> tuple[Canvas, Tensor]:
    """One operation that is drawn, on a canvas and on the tensor it stands for."""
    kind = draw(st.sampled_from(["pad", "first", "last", "join", "mask", "choose", "add"]))
    axis, flat = draw(st.integers(0, found.axes - 1)), (1,) * found.axes
    numbers = torch.tensor(draw(st.lists(st.integers(-3, 3), min_size=C, max_size=C))).double().reshape(1, C, *flat)
    shape = list(value.shape)
    shape[2 + axis] = 1
    strip = numbers.expand(shape)
    constant = canvas.of_constant(numbers, found.carried, broadcasts=True)
    runs = list(constant.runs)
    runs[axis] = (1,)
    dims = list(constant.dims)
    dims[2 + axis] = 1
    line = replace(constant, runs=tuple(runs), dims=tuple(dims))
    if kind == "pad":
        amounts = tuple(draw(st.integers(0, 2)) for _ in range(2 * found.axes))
        number = float(draw(st.integers(-1, 1)))
        return canvas.pad(found, amounts, number), functional.pad(value, innermost_first(amounts), value=number)
    if kind == "first":
        return canvas.paint(found, line, axis, 0, 1), value.slice_scatter(strip, 2 + axis, 0, 1)
    if kind == "last":
        return canvas.paint(found, line, axis, -1, None), value.slice_scatter(strip, 2 + axis, -1)
    if kind == "join":
        parts = [line, found, line] if draw(st.booleans()) else [found, line]
        tensors = [strip, value, strip] if len(parts) == 3 else [value, strip]
        return canvas.join(parts, axis), torch.cat(tensors, 2 + axis)
    if kind == "add":
        return canvas.add(found, constant), value + numbers
    inside = torch.ones(1, 1, *value.shape[2:]).double()
    inside.narrow(2 + axis, 0, 1).fill_(0)
    mask = canvas.pad(canvas.of_tensor(found.carried), (0,) * (2 * found.axes), 0)
    mask = replace(mask, source=None, shown=mask.shown & False, value=mask.value + 1)
    mask = canvas.paint(mask, replace(line, value=line.value * 0), axis, 0, 1)
    if kind == "mask":
        return canvas.multiply(found, mask), value * inside
    return canvas.choose(mask, found, constant), torch.where(inside > 0, value, numbers)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.data())
def test_a_chain_of_painting_is_what_torch_paints_for_fixed_and_open_sizes(data: st.DataObject) -> None:
    size = [data.draw(st.sampled_from(sides)) for sides in ([1, 2, 5], [1, 3, 4])]
    size += data.draw(st.sampled_from([(), (), (1,), (3,)]))
    sides = [data.draw(st.sampled_from([side, symbol(f"side{axis}")])) for axis, side in enumerate(size)]
    x = torch.arange(1.0, 1 + C * prod(size)).double().reshape(1, C, *size)
    found, value = canvas.of_tensor(Carried("x", plain(C, len(size)), told((1, C, *sides)))), x
    for _ in range(data.draw(st.integers(1, 6))):
        try:
            found, value = data.draw(st.composite(painted)(found, value))
        except GeometryError:
            continue
        torch.testing.assert_close(dense(found, x, tuple(value.shape[2:])), value, rtol=0, atol=0)
    try:
        made, border = canvas.recognised(found)
    except GeometryError:
        return
    kernel = made.terms[0].kernel.of_axes(len(size))
    ones = functional.pad(torch.ones_like(x), innermost_first(kernel.padding))
    numbers = torch.zeros(C).double() if border is None else border.value
    around = (1 - ones) * numbers.reshape(1, -1, *(1,) * len(size))
    torch.testing.assert_close(kernel(x) + around, value, rtol=0, atol=0)


def by_slices(y: Tensor, e: Tensor) -> Tensor:
    y = functional.pad(y, (1, 1, 1, 1))
    y[:, :, 0:1, :], y[:, :, -1:, :], y[:, :, :, 0:1], y[:, :, :, -1:] = e, e, e, e
    return y


def by_rows(y: Tensor, e: Tensor) -> Tensor:
    y = functional.pad(y, (1, 1, 1, 1))
    y[:, :, 0], y[:, :, -1], y[..., 0], y[..., -1] = e[..., 0], e[..., 0], e[..., 0], e[..., 0]
    return y


def by_copy(y: Tensor, e: Tensor) -> Tensor:
    out = e.expand(y.shape[0], -1, y.shape[2] + 2, y.shape[3] + 2).clone()
    out[:, :, 1:-1, 1:-1] = y
    return out


def by_concat(y: Tensor, e: Tensor) -> Tensor:
    row = e.expand(y.shape[0], -1, 1, y.shape[3])
    y = torch.cat([row, y, row], 2)
    column = e.expand(y.shape[0], -1, y.shape[2], 1)
    return torch.cat([column, y, column], 3)


def by_mask(y: Tensor, e: Tensor) -> Tensor:
    inside = functional.pad(torch.ones_like(y[:, :1]), (1, 1, 1, 1))
    return functional.pad(y, (1, 1, 1, 1)) * inside + e * (1 - inside)


def by_where(y: Tensor, e: Tensor) -> Tensor:
    inside = functional.pad(torch.ones_like(y[:, :1]), (1, 1, 1, 1)) > 0
    return torch.where(inside, functional.pad(y, (1, 1, 1, 1)), e)


BORDERS = (by_slices, by_rows, by_copy, by_concat, by_mask, by_where)


class Bordered(nn.Module):
    """1x1, norm, a border of `shift` more than what the norm makes of zeros, 3x3, beside a plain 3x3."""

    def __init__(self, fill: object, shift: float) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False)
        self.w, self.fill, self.shift = nn.Conv2d(4, 4, 3, padding=1), fill, shift
        for value, low, high in (
            (self.n.running_mean, -1, 1),
            (self.n.running_var, 0.3, 3),
            (self.n.weight, 0.5, 2),
            (self.n.bias, -1, 1),
        ):
            nn.init.uniform_(value, low, high)

    def forward(self, x: Tensor) -> Tensor:
        n = self.n
        edge = (n.bias - n.running_mean * n.weight / torch.sqrt(n.running_var + n.eps)).view(1, -1, 1, 1)
        return torch.relu(self.b(self.fill(n(self.a(x)), edge + self.shift)) + self.w(x))


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("fill", BORDERS, ids=lambda fill: fill.__name__)
def test_a_border_of_what_the_norm_makes_of_zeros_folds_and_another_one_stays(fill: object, shift: float) -> None:
    torch.manual_seed(0)
    model = Bordered(fill, shift).eval()
    for shape in ((1, 4, 6, 5), (3, 4, 1, 1)):
        x = torch.randn(shape)
        wanted = model(x).detach()
        fused, report = repconv.fuse(model, (x,))
        torch.testing.assert_close(fused.module()(x), wanted, rtol=0, atol=2e-5)
        if shape[2] > 1:
            assert report.after.convolutions == (3 if shift else 1)
        assert not report.unmeasured
        graph, report = fuse_onnx(to_onnx(model, x, 17, do_constant_folding=False))
        got = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x.numpy()})[0]
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=2e-5)
        assert not report.unmeasured
        if shape[2] == 1 or fill is by_rows:  # an index of one row is exported as a gather of all of them
            continue
        if shift:
            assert any("border would have to hold" in refusal.why for refusal in report.refusals), report.refusals
        else:
            assert [n.op_type for n in graph.graph.node] == ["Conv", "Relu"]


def test_what_is_painted_in_stays_where_something_else_reads_it() -> None:
    torch.manual_seed(0)

    class Shared(Bordered):
        def forward(self, x: Tensor) -> Tensor:
            n, y = self.n, self.n(self.a(x))
            edge = (n.bias - n.running_mean * n.weight / torch.sqrt(n.running_var + n.eps)).view(1, -1, 1, 1)
            half = torch.cat([edge.expand(1, -1, 1, y.shape[3]), y, edge.expand(1, -1, 1, y.shape[3])], 2)
            side = edge.expand(1, -1, half.shape[2], 1)
            whole = torch.cat([side, half, side], 3)
            return torch.relu(self.b(whole) + self.w(x)) + torch.sigmoid(half)[:, :, 1:-1]

    model, x = Shared(by_concat, 0.0).eval(), torch.randn(1, 4, 6, 5)
    fused, report = repconv.fuse(model, (x,))
    torch.testing.assert_close(fused.module()(x), model(x).detach(), rtol=0, atol=2e-5)
    assert report.after.convolutions <= 3


class Confused(nn.Module):
    """Joins tensors of which one is read as rows of numbers, too, so that its last axis is taken for the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.linear = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 5, 3), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = (functional.max_pool2d(conv(x), 2) for conv in (self.one, self.other))
        return torch.cat([one, other], 1), self.linear(one)


def test_tensors_with_channels_on_different_axes_are_not_put_together() -> None:
    program = torch.export.export(Confused().eval(), (torch.randn(2, 3, 8, 8),))
    fused, _ = fuse_program(program)
    assert [node.target for node in fused.graph.nodes] == [node.target for node in program.graph.nodes]
