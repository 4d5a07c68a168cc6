"""What decides never alters what is written: every writer writes the float64 value, cast once."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import repconv
from repconv.export.onnx.exporter import to_onnx
from repconv.export.onnx.half import to_half
from repconv.graph import fuse_onnx
from repconv.graph.core.constant import Constant
from repconv.models.resnet import ConvBranch

TYPES = {
    torch.float64: TensorProto.DOUBLE, torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16,
}  # fmt: skip
ROUNDING = {dtype: torch.finfo(dtype).eps / 2 for dtype in TYPES}
CHANNELS = 8


def cancelling(seed: int, dtype: torch.dtype, left: float) -> ConvBranch:
    """A convolution and a norm whose shift is `left` of its parts, in `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(CHANNELS, generator=generator, dtype=torch.float64)

    branch = ConvBranch(CHANNELS, CHANNELS, (3, 3)).double().eval()
    norm = branch.bn
    with torch.no_grad():
        branch.conv.weight.copy_(torch.randn(branch.conv.weight.shape, generator=generator, dtype=torch.float64))
        norm.weight.copy_(uniform(0.2, 4))
        norm.running_mean.copy_(uniform(0.5, 1.5))
        norm.running_var.copy_(uniform(0.5, 2))
        norm.bias.copy_(norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt() * (1 + left))
    return branch.to(dtype)


def folded(branch: ConvBranch, eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias by the equation, from the parameters as they are stored, in float64 and cast once."""
    norm, dtype = branch.bn, branch.conv.weight.dtype
    scale = norm.weight.double() * (1 / (norm.running_var.double() + eps).sqrt())
    weight = branch.conv.weight.double() * scale[:, None, None, None]
    return weight.to(dtype), (norm.bias.double() - norm.running_mean.double() * scale).to(dtype)


def same(found: Tensor, wanted: Tensor, what: str) -> None:
    """Equal bit for bit; in float64, where the order of operations shows, up to a few roundings of the parts."""
    found, wanted = found.detach(), wanted.detach()
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), what
    if found.dtype == torch.float64:
        assert torch.allclose(found, wanted, rtol=1e-14, atol=1e-14), what
    else:
        assert torch.equal(found, wanted), f"{what}: {(found.double() - wanted.double()).abs().max()}"


def from_block(branch: ConvBranch) -> tuple[Tensor, Tensor, float]:
    fused, _ = repconv.fuse(branch)
    return fused.weight, fused.bias, branch.bn.eps


def from_program(branch: ConvBranch) -> tuple[Tensor, Tensor, float]:
    program, _ = repconv.fuse(branch, torch.zeros(1, CHANNELS, 4, 4, dtype=branch.conv.weight.dtype))
    held = dict(program.module().named_parameters())
    (weight,), (bias,) = ([v for v in held.values() if v.dim() == d] for d in (4, 1))
    return weight, bias, branch.bn.eps


def from_onnx(branch: ConvBranch) -> tuple[Tensor, Tensor, float]:
    fused, _ = fuse_onnx(conv_norm(branch))
    held = {len(t.dims): torch.from_numpy(numpy_helper.to_array(t).astype(np.float64)) for t in fused.graph.initializer}
    dtype = branch.conv.weight.dtype
    return held[4].to(dtype), held[1].to(dtype), float(np.float32(branch.bn.eps))


WRITERS = {"block": from_block, "program": from_program, "ONNX": from_onnx}


def tensor(value: Tensor, name: str) -> TensorProto:
    kind = TYPES[value.dtype]
    stored = value.detach().double().numpy().astype(helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(stored, name)


def conv_norm(branch: ConvBranch) -> onnx.ModelProto:
    norm, kind = branch.bn, TYPES[branch.conv.weight.dtype]
    held = {
        "w": branch.conv.weight, "g": norm.weight, "d": norm.bias, "m": norm.running_mean, "v": norm.running_var,
    }  # fmt: skip
    shape = [1, CHANNELS, 4, 4]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["a", "g", "d", "m", "v"], ["y"], "norm"),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [tensor(value, name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(list(TYPES)), st.floats(-6, 0))
@example(0, torch.bfloat16, -1.7)
@example(0, torch.float32, -6)
def test_a_shift_that_nearly_cancels_is_written_as_it_is(
    writer: str, seed: int, dtype: torch.dtype, power: float
) -> None:
    branch = cancelling(seed, dtype, 10**power)
    weight, bias, eps = WRITERS[writer](branch)
    for found, wanted, what in zip((weight, bias), folded(branch, eps), ("weight", "bias"), strict=True):
        same(found, wanted, what)


@pytest.mark.newer
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_half_export_holds_what_torch_casts_the_float64_fold_to(precision: str) -> None:
    branch = cancelling(0, torch.float64, 1e-3)
    with torch.no_grad():
        branch.conv.weight[0] = 1 + 2**-11 + torch.linspace(-1, 1, 72).reshape(8, 3, 3) * 2**-22  # near ties, too
        branch.bn.weight[0], branch.bn.running_var[0] = 1, 1 - branch.bn.eps
    exact = repconv.fuse(branch)[0]
    single = repconv.fuse(branch)[0].float()
    shape = [1, CHANNELS, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", pads=[1, 1, 1, 1])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [tensor(single.weight, "w"), tensor(single.bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    for held, wanted in zip(to_half(model, precision).graph.initializer, (exact.weight, exact.bias), strict=True):
        found = torch.from_numpy(numpy_helper.to_array(held).astype(np.float64))
        assert torch.equal(found, wanted.detach().to(dtype).double())


@pytest.mark.parametrize("opset", [13, 18])
def test_exporting_adds_no_rounding_to_a_fold_and_a_bounded_one_to_what_is_not_fused(opset: int) -> None:
    branch, x = cancelling(0, torch.float32, 1e-5), torch.zeros(1, CHANNELS, 4, 4)
    norm, wanted = branch.bn, folded(branch, branch.bn.eps)

    def numbers(model: nn.Module) -> list[Tensor]:
        found = to_onnx(model, x, opset=opset)
        assert [node.op_type for node in found.graph.node] == ["Conv"]
        held = {len(t.dims): torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in found.graph.initializer}
        return [held[4], held[1]]

    for found, value in zip(numbers(repconv.fuse(branch)[0]), wanted, strict=True):
        assert torch.equal(found, value)
    weight, bias = numbers(branch)  # docs/export.md, "What is rounded where"
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    parts = norm.bias.double().abs() + (norm.running_mean.double() * scale).abs()
    exact = branch.conv.weight.double() * scale[:, None, None, None]
    assert ((weight - exact).abs() <= 6 * 2**-24 * exact.abs()).all()
    assert ((bias - (norm.bias.double() - norm.running_mean.double() * scale)).abs() <= 6 * 2**-24 * parts).all()


@pytest.mark.parametrize("dtype", list(TYPES))
def test_a_checkpoint_holds_the_same_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = repconv.create_model("repvgg_vgg16", width=4, num_classes=10).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, 0.5, 1.5)
            nn.init.uniform_(part.running_var, 0.5, 2)
            scale = part.weight.data / (part.running_var + part.eps).sqrt()
            part.bias.data.copy_(part.running_mean * scale * 1.01)
    model = model.to(dtype)
    wanted = repconv.fuse(model.double())[0].state_dict()
    model = model.to(dtype)
    repconv.save(repconv.fuse(model)[0], tmp_path / "fused.pt")
    for name, value in repconv.load(tmp_path / "fused.pt").model.state_dict().items():
        same(value, wanted[name].to(dtype), name)


class Bordered(nn.Module):
    """1x1 - norm - a border of what they make of a zero pixel, spelled as `spelling` says - 3x3 - norm."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.first, self.norm = nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.then, self.last = nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32)

    def border(self, x: Tensor) -> Tensor:
        n = self.norm
        if self.spelling == "of zeros":
            return self.norm(self.first(x.new_zeros(1, 32, 1, 1)))
        return (n.bias - n.running_mean * n.weight / torch.sqrt(n.running_var + n.eps)).view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        border = self.border(x)
        return self.last(self.then(functional.pad(self.norm(self.first(x)) - border, (1, 1, 1, 1)) + border))


def shaken(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    return model.eval()


def block(spelling: str, seed: int) -> nn.Module:
    if spelling == "De-IReps":
        return shaken(repconv.RepBlock(32, 32, fixed=("3x3",), branches=("1x1_3x3", "avg")), seed)
    return shaken(Bordered(spelling), seed)


def exported(model: nn.Module, x: Tensor, how: str) -> onnx.ModelProto:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        if how.startswith("current"):
            return torch.onnx.export(
                model, (x,), dynamo=True, optimize="optimised" in how, verbose=False, opset_version=18
            ).model_proto
        buffer = io.BytesIO()
        mode = torch.onnx.TrainingMode.EVAL if "optimised" in how else torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(model, (x,), buffer, dynamo=False, opset_version=17, training=mode)
        return onnx.load_from_string(buffer.getvalue())


EXPORTERS = ("program", "older", "older, optimised", "current", "current, optimised")


@pytest.mark.newer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", EXPORTERS)
@pytest.mark.parametrize("spelling", ["De-IReps", "of zeros", "by formula"])
def test_borders_still_fold_however_they_were_exported(spelling: str, how: str, dtype: torch.dtype) -> None:
    if (spelling, how) == ("of zeros", "program"):
        pytest.skip("a program broadcasts that border over the image, which is read as constant elsewhere")
    if (spelling, how) == ("by formula", "older") and dtype != torch.float32:
        pytest.skip("computed in half precision step by step, it is several roundings off and not the same border")
    model, x = block(spelling, 0).to(dtype), torch.zeros(1, 32, 9, 9, dtype=dtype)
    report = repconv.fuse(model, x)[1] if how == "program" else fuse_onnx(exported(model, x, how))[1]
    assert report.after.convolutions == 1, report.refusals


@pytest.mark.parametrize("left", [1e-2, 2e-2, 0.1])
@pytest.mark.parametrize("dtype", list(TYPES))
def test_a_real_bias_is_seen_at_a_border(dtype: torch.dtype, left: float) -> None:
    inner = cancelling(0, dtype, left)
    outer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False).to(dtype)
    model = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False).to(dtype), inner.bn, outer).eval()
    _, report = repconv.fuse(model, torch.zeros(1, CHANNELS, 5, 5, dtype=dtype))
    assert report.after.convolutions == 2
    assert any("has a bias and is padded with zeros" in refusal.why for refusal in report.refusals)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(list(TYPES)))
def test_the_decision_takes_one_rounding_for_none_and_three_for_a_border(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(16, generator=generator, dtype=torch.float64)
    rounded = exact.to(dtype).double()
    parts = Constant.computed(exact, exact.abs())
    assert (parts + Constant.stored(-rounded)).cancels(ROUNDING[dtype])
    scale = float(exact.square().mean().sqrt())
    away = torch.zeros(16, dtype=torch.float64)
    away[int(exact.abs().argmin())] = 3 * ROUNDING[dtype] * scale + 20 * min(ROUNDING[dtype], 2**-24) * scale
    left = parts + Constant.stored(-(exact + away))
    assert not left.cancels(ROUNDING[dtype])
    assert torch.equal(left.value, exact - (exact + away)), "deciding changed the value"
