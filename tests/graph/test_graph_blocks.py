"""Blocks rebuilt from their papers' descriptions: each exported graph collapses to one convolution a block."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import repconv
from repconv.benchmarks.studies.graph.networks import randomise, to_onnx
from repconv.graph import fuse_onnx


def conv_bn(i: int, o: int, k: int | tuple[int, int], **options: object) -> nn.Sequential:
    size = (k, k) if isinstance(k, int) else k
    options.setdefault("padding", tuple(n // 2 for n in size))
    return nn.Sequential(nn.Conv2d(i, o, size, bias=False, **options), nn.BatchNorm2d(o))


class Sum(nn.Module):
    def __init__(self, *branches: nn.Module, post: nn.Module | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.post = post or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.post(sum(branch(x) for branch in self.branches))


class BorderedSeries(nn.Module):
    """DBB and ECBSR: 1x1, then a border of what the 1x1 makes of a zero pixel, then k x k or pooling unpadded."""

    def __init__(self, first: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.first, self.then = first, then

    def forward(self, x: Tensor) -> Tensor:
        border = self.first(x.new_zeros(1, x.shape[1], 1, 1))
        return self.then(functional.pad(self.first(x) - border, (1, 1, 1, 1)) + border)


class Edge(nn.Module):
    """ECBSR: fixed Sobel or Laplacian masks, scaled by channel, with a bias."""

    def __init__(self, channels: int, mask: list[list[float]]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1, 1) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels))
        self.register_buffer("mask", torch.tensor(mask).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.scale * self.mask, self.bias, groups=len(self.bias))


class RepMixer(nn.Module):
    """FastViT: x + layer scale * (mixer(x) - norm(x)), mixer = dw 3x3 + dw 1x1 + BN."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(c)
        self.mixer = Sum(conv_bn(c, c, 3, groups=c), conv_bn(c, c, 1, groups=c), nn.BatchNorm2d(c))
        self.gamma = nn.Parameter(torch.rand(c, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * (self.mixer(x) - self.norm(x))


def dbb(c: int, o: int) -> Sum:
    inner = conv_bn(c, o, 1)
    return Sum(
        conv_bn(c, o, 3),
        conv_bn(c, o, 1),
        BorderedSeries(conv_bn(c, c, 1), conv_bn(c, o, 3, padding=0)),
        BorderedSeries(inner, nn.Sequential(nn.AvgPool2d(3, 1), nn.BatchNorm2d(o))),
    )


def ecbsr(c: int, o: int) -> Sum:
    sobel_x, sobel_y = [[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], [[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]
    laplacian = [[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]
    wide = 2 * o
    edges = [BorderedSeries(nn.Conv2d(c, o, 1), Edge(o, mask)) for mask in (sobel_x, sobel_y, laplacian)]
    expanded = BorderedSeries(nn.Conv2d(c, wide, 1), nn.Conv2d(wide, o, 3))
    return Sum(nn.Conv2d(c, o, 3, padding=1), expanded, *edges, nn.Identity())


def mobileone(i: int, o: int, k: int, groups: int = 1, stride: int = 1) -> Sum:
    branches = [conv_bn(i, o, k, groups=groups, stride=stride) for _ in range(4)]
    branches.append(conv_bn(i, o, 1, groups=groups, stride=stride))
    return Sum(*branches, *([nn.BatchNorm2d(i)] if i == o and stride == 1 else []))


BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "RepVGG": (lambda: Sum(conv_bn(8, 8, 3), conv_bn(8, 8, 1), nn.BatchNorm2d(8)), 1),
    "RepVGG, stride 2": (lambda: Sum(conv_bn(8, 12, 3, stride=2), conv_bn(8, 12, 1, stride=2)), 1),
    "ACB": (lambda: Sum(conv_bn(8, 8, 3), conv_bn(8, 8, (1, 3)), conv_bn(8, 8, (3, 1))), 1),
    "DBB": (lambda: dbb(8, 12), 1),
    "MobileOne": (lambda: nn.Sequential(mobileone(8, 8, 3, 8), nn.ReLU(), mobileone(8, 8, 1)), 2),
    "MobileOne, stride 2": (lambda: mobileone(8, 8, 3, 8, 2), 1),
    "RepLK": (lambda: Sum(conv_bn(8, 8, 31, groups=8), conv_bn(8, 8, 5, groups=8)), 1),
    "UniRepLKNet": (
        lambda: Sum(conv_bn(8, 8, 13, groups=8), *(
            conv_bn(8, 8, k, groups=8, dilation=d, padding=d * (k // 2)) for k, d in ((5, 1), (7, 2), (3, 3), (3, 5))
        )), 1,
    ),
    "ECBSR": (lambda: ecbsr(8, 8), 1),
    "YOLO RepConv": (lambda: Sum(conv_bn(8, 8, 3, groups=4), conv_bn(8, 8, 1, groups=4), nn.BatchNorm2d(8)), 1),
    "QARep": (
        lambda: Sum(conv_bn(8, 8, 3), nn.Conv2d(8, 8, 1, bias=False), nn.Identity(), post=nn.BatchNorm2d(8)), 1,
    ),
    "RepMixer": (lambda: RepMixer(8), 1),
    "DyRep, DBB inside DBB": (lambda: Sum(dbb(8, 8), Sum(dbb(8, 8), conv_bn(8, 8, 1), post=nn.BatchNorm2d(8))), 1),
    "dilated with BN": (lambda: conv_bn(8, 8, 3, dilation=2, padding=2), 1),
}  # fmt: skip


def export(model: nn.Module, x: Tensor, *, opset: int = 17, open_size: bool = False) -> onnx.ModelProto:
    sizes = {"x": [0, 2, 3], "y": [0, 2, 3]} if open_size else None
    return to_onnx(model, x, opset, dynamic_axes=sizes)


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("open_size", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_becomes_one_convolution(name: str, open_size: bool) -> None:
    build, convolutions = BLOCKS[name]
    model, x = randomise(build()), torch.randn(2, 8, 17, 14)
    if name == "RepLK":
        x = torch.randn(1, 8, 33, 32)
    exported = export(model, x, open_size=open_size)
    fused, report = fuse_onnx(exported)
    assert kinds(fused)["Conv"] == convolutions == report.after.convolutions
    assert set(kinds(fused)) <= {"Conv", "Relu"}, report.refusals
    with torch.no_grad():
        wanted = model.double()(x.double())
    for size in [x, *([torch.randn(1, 8, 21, 9)] if open_size and name != "RepLK" else [])]:
        with torch.no_grad():
            wanted = model.double()(size.double())
        error = float((run(fused, size) - wanted).abs().max() / wanted.abs().max())
        assert error < 2e-6, f"{name}: {error:.1e}"
    assert all(layer.branches for layer in report.layers)


def test_a_dilated_convolution_stays_dilated() -> None:
    fused, report = fuse_onnx(export(randomise(BLOCKS["dilated with BN"][0]()), torch.randn(1, 8, 9, 9)))
    assert list(fused.graph.initializer[0].dims) == [8, 8, 3, 3]
    assert report.after.flops == report.before.flops


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_our_own_network_becomes_the_plain_one(dynamo: bool) -> None:
    x = torch.randn(1, 3, 32, 32)
    found = {}
    for name in ("irep_resnet18", "resnet18"):
        model = randomise(repconv.create_model(name, width=8, blocks=(1, 1)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if dynamo:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    program = torch.onnx.export(
                        model, (x,), dynamo=True, optimize=False, verbose=False, input_names=["x"]
                    )
                exported = program.model_proto
            else:
                exported = export(model, x)
        fused, _ = fuse_onnx(exported)
        found[name] = kinds(fused)
        with torch.no_grad():
            wanted = model.double()(x.double())
        assert float((run(fused, x) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert found["irep_resnet18"] == found["resnet18"]
    assert found["resnet18"]["Conv"] == 6


@pytest.mark.parametrize("opset", [13, 15, 20])
def test_opsets(opset: int) -> None:
    model, x = randomise(dbb(4, 4)), torch.randn(1, 4, 9, 8)
    fused, _ = fuse_onnx(export(model, x, opset=opset))
    assert kinds(fused) == {"Conv": 1}
    assert fused.opset_import[0].version == opset


def test_half_precision_weights_are_cast_once() -> None:
    model, x = randomise(Sum(conv_bn(8, 8, 3), conv_bn(8, 8, 1))).half(), torch.randn(1, 8, 9, 8).half()
    fused, _ = fuse_onnx(export(model, x))
    assert kinds(fused) == {"Conv": 1}
    assert {t.data_type for t in fused.graph.initializer} == {onnx.TensorProto.FLOAT16}
    with torch.no_grad():
        wanted = model.double()(x.double())
    assert float((run(fused, x).double() - wanted).abs().max() / wanted.abs().max()) < 4e-3


def test_nothing_to_gain_changes_no_byte() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU())
    exported = export(model.eval(), torch.randn(1, 4, 9, 9))
    fused, report = fuse_onnx(exported)
    assert fused.SerializeToString() == exported.SerializeToString()
    assert not report.layers
    again, _ = fuse_onnx(fuse_onnx(export(randomise(dbb(4, 4)), torch.randn(1, 4, 9, 8)))[0])
    assert np.array_equal(
        onnx.numpy_helper.to_array(again.graph.initializer[0]),
        onnx.numpy_helper.to_array(fuse_onnx(again)[0].graph.initializer[0]),
    )
