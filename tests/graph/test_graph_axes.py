"""Graphs of one to three pixel axes, and of images that are put together of more: folded by one and the same rules."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import repconv
from repconv.benchmarks.studies.graph.networks import to_onnx
from repconv.graph import foresee_onnx, fuse_onnx
from repconv.graph.onnx.proof.prove import random_feeds

C = 4
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
IMAGES = {1: (7,), 2: (7, 6), 3: (3, 7, 6)}


class Module(nn.Module):
    """Parts of random statistics, and a function of them and x."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)
            if "norm" in name:
                part.running_mean.uniform_(-1, 1)
                part.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def branches(axes: int) -> Module:
    """A block of branches, one of them transposed, behind it a strided convolution and what pads one side."""
    conv, norm = CONVOLUTIONS[axes], NORMS[axes]

    def forward(m: Module, x: Tensor) -> Tensor:
        y = functional.relu(m.norm_a(m.a(x)) + m.norm_b(m.b(x)) + m.norm_c(m.t(x)) + m.norm_d(x))
        return functional.relu(m.norm_e(m.e(functional.pad(y, (1, 0) * axes))))

    return Module(
        forward,
        a=conv(C, C, 3, padding=1, groups=2, bias=False),
        b=conv(C, C, 1, groups=2),
        t=TRANSPOSED[axes](C, C, 3, padding=1, groups=2),
        e=conv(C, C, 3, 2),
        **{f"norm_{letter}": norm(C) for letter in "abcde"},
    )


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_branches_of_any_number_of_axes_become_one_convolution(axes: int) -> None:
    model, x = branches(axes).double(), torch.randn(3, C, *IMAGES[axes]).double()
    fused, report = repconv.fuse(model, (x,))
    assert (report.before.batch_norms, report.after.batch_norms, report.after.convolutions) == (5, 0, 2)
    torch.testing.assert_close(fused.module()(x), model(x), rtol=1e-12, atol=1e-12)
    shape = "x".join("3" * max(axes, 2)) if axes > 1 else "3x1"
    assert [layer.geometry.split(",")[0] for layer in report.layers] == [shape] * 2


@pytest.mark.parametrize("axes", [1, 3])
def test_onnx_of_any_number_of_axes_becomes_one_convolution(axes: int) -> None:
    model = to_onnx(branches(axes), torch.randn(2, C, *IMAGES[axes]))
    fused, report = fuse_onnx(model)
    weights = {tensor.name: tensor for tensor in fused.graph.initializer}
    written = [weights[node.input[1]].dims for node in fused.graph.node if node.op_type == "Conv"]
    assert [list(dims) for dims in written] == [[C, C // 2, *(3,) * axes], [C, C, *(3,) * axes]]
    assert (report.after.batch_norms, report.unmeasured) == (0, ())
    assert foresee_onnx(model).batch_norms[1] == 0


def images_of_a_clip(m: Module, x: Tensor) -> Tensor:
    """[n, c, t, h, w]: the images one by one, then along time."""
    n, c, t, h, w = x.shape
    y = functional.relu(m.norm_a(m.a(x.transpose(1, 2).reshape(n * t, c, h, w))))
    return functional.relu(m.norm_b(m.b(y.reshape(n, t, c, h, w).transpose(1, 2))))


def channels_as_images(m: Module, x: Tensor) -> Tensor:
    """[n, c, h, w]: each channel by itself."""
    n, c, h, w = x.shape
    return functional.relu(m.norm_a(m.a(x.reshape(n * c, 1, h, w))))


CLIPS = {
    "images of a clip": (
        lambda: Module(
            images_of_a_clip,
            a=nn.Conv2d(C, C, 3, padding=1, bias=False),
            norm_a=nn.BatchNorm2d(C),
            b=nn.Conv3d(C, C, (3, 1, 1), padding=(1, 0, 0)),
            norm_b=nn.BatchNorm3d(C),
        ),
        (2, C, 3, 5, 4),
    ),
    "channels as images": (
        lambda: Module(channels_as_images, a=nn.Conv2d(1, 1, 3, padding=1), norm_a=nn.BatchNorm2d(1)),
        (2, C, 5, 4),
    ),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_tensor_that_a_convolution_reads_among_others_than_it_was_is_one_of_its_own(name: str) -> None:
    """Images that share an axis with time, or channels with images, are no [n, c, pixels] of what they were."""
    build, shape = CLIPS[name]
    model, x = build(), torch.randn(shape)
    fused, report = repconv.fuse(model, (x,))
    assert (report.after.batch_norms, report.before.batch_norms) == (0, len(report.layers))
    assert not any("laid out otherwise" in refusal.why for refusal in report.refusals)
    torch.testing.assert_close(fused.module()(x), model(x))
    _, of_onnx = fuse_onnx(to_onnx(model, x))
    assert of_onnx.after.batch_norms == 0


def normalised_then_flat(m: Module, x: Tensor) -> Tensor:
    """[n, c, 1, 1]: what has its channels last, of an operation that no convolution follows, and is flattened."""
    y = functional.layer_norm(x.permute(0, 2, 3, 1), (C,)).permute(0, 3, 1, 2)
    return functional.relu(m.a(y.flatten(1)) * 0.5 + 2)


@pytest.mark.parametrize("n", [1, 3])
def test_a_row_of_numbers_that_is_an_image_of_one_channel_is_folded_into_a_matrix(n: int) -> None:
    model = to_onnx(Module(normalised_then_flat, a=nn.Linear(C, 3)), torch.randn(n, C, 1, 1))
    fused, report = fuse_onnx(model)
    kinds = [node.op_type for node in fused.graph.node]
    assert (kinds.count("Gemm"), kinds.count("Mul"), kinds.count("Add")) == (1, 0, 0), kinds
    assert report.unmeasured == ()


def test_open_sides_of_a_clip_are_drawn_smaller_than_those_of_an_image() -> None:
    """As many numbers would take seconds a convolution."""
    info = onnx.helper.make_tensor_value_info
    for sides, drawn in ((["h", "w"], [64, 64]), (["t", "h", "w"], [32, 32, 32]), ([8, "h", "w"], [8, 64, 64])):
        x = info("x", onnx.TensorProto.FLOAT, ["n", C, *sides])
        model = onnx.helper.make_model(onnx.helper.make_graph([], "inputs", [x], [], []))
        assert random_feeds(model)[0][0]["x"].shape == (2, C, *drawn)
