"""Whatever depends on no input is a constant, whichever operation makes it, in ONNX and in programs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import repconv
from repconv.benchmarks.studies.graph.networks import to_onnx
from repconv.benchmarks.studies.graph.reasons import of_onnx, unexplained
from repconv.errors import FusionError
from repconv.graph import fuse_onnx
from repconv.graph.onnx.facts import Facts

C = 6


class Branches(nn.Module):
    """A convolution beside another whose weight, or factor and shift, `make` computes of parameters."""

    def __init__(self, make: object) -> None:
        super().__init__()
        self.make = make
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)
        self.g, self.w = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(C, C, 3, 3))
        self.t = nn.Parameter(torch.rand(C) + 0.5)
        self.u, self.v = nn.Parameter(torch.randn(C, 2)), nn.Parameter(torch.randn(2, C * 9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.make(self, x))


MADE = {
    "eye": lambda m, x: m.a(x) + functional.conv2d(x, torch.eye(C)[:, :, None, None]),
    "full, arange": lambda m, x: m.a(x) * torch.full((1, C, 1, 1), 0.5) + torch.arange(float(C)).view(1, C, 1, 1),
    "zeros_like": lambda m, x: m.a(x) + torch.zeros_like(x) + m.b(x),
    "ones of a slice": lambda m, x: m.a(x) * torch.ones_like(x[:, :1]) + m.b(x),
    "full_like, new_full": lambda m, x: m.a(x) * torch.full_like(x, 2.0) + x.new_full((C, 1, 1), 0.3) + m.b(x),
    "einsum": lambda m, x: m.a(x) + functional.conv2d(x, torch.einsum("oihw,o->oihw", m.w, m.t), None, 1, 1),
    "matmul": lambda m, x: m.a(x) + functional.conv2d(x, (m.u @ m.v).view(C, C, 3, 3), None, 1, 1),
    "norm": lambda m, x: m.a(x) + functional.conv2d(x, m.w / m.w.flatten(1).norm(dim=1).view(-1, 1, 1, 1), None, 1, 1),
    "softmax, zip": lambda m, x: sum(g * y for g, y in zip(m.g.softmax(0), (m.a(x), m.b(x)), strict=True)),
    "sigmoid, unbind": lambda m, x: sum(
        g * y for g, y in zip(m.g.sigmoid().unbind(), (m.a(x), m.b(x)), strict=True)
    ),
    "split": lambda m, x: m.a(x) * m.g.split(1)[0] + m.b(x) * m.g.split(1)[1],
    "topk": lambda m, x: m.a(x) * m.g.topk(1)[0] + m.b(x),
    "every pixel": lambda m, x: m.a(x) + m.t.view(1, C, 1, 1).expand(1, C, 5, 7) + m.b(x),
}  # fmt: skip


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_is_made_of_parameters_folds_in_a_program_and_in_onnx(make: object) -> None:
    torch.manual_seed(0)
    model, x = Branches(make).eval(), torch.randn(1, C, 5, 7)
    wanted = model(x).detach()
    fused, report = repconv.fuse(model, (x,))
    assert report.after.convolutions == 1
    names = {str(n.target) for n in fused.graph.nodes if n.op == "call_function"}
    assert names == {"aten.conv2d.default", "aten.relu.default"}, names
    torch.testing.assert_close(fused.module()(x), wanted, rtol=0, atol=2e-5)
    graph, _ = fuse_onnx(to_onnx(model, x, 17, do_constant_folding=False))
    assert [n.op_type for n in graph.graph.node] == ["Conv", "Relu"]
    got = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=2e-5)


class SelfNormalised(nn.Module):
    """A convolution by filters of mean 0 and of one variance, before a normalisation of the usual kind."""

    def __init__(self, *, gain: bool, shift: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(C, C, 3, 3) + 0.5)
        self.gain = nn.Parameter(torch.rand(C) + 0.5) if gain else None
        self.shift = nn.Parameter(torch.randn(C)) if shift else None
        self.norm = nn.BatchNorm2d(C).eval()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.w.reshape(1, C, -1)
        w = functional.batch_norm(rows, None, None, self.gain, self.shift, training=True, momentum=0.0, eps=1e-4)
        return torch.relu(self.norm(functional.conv2d(x, w.reshape_as(self.w), None, 1, 1)))


@pytest.mark.parametrize(("gain", "shift"), [(True, False), (False, False), (True, True)])
def test_weights_normalised_by_their_own_statistics_are_constants(gain: bool, shift: bool) -> None:
    torch.manual_seed(0)
    model, x = SelfNormalised(gain=gain, shift=shift).eval(), torch.randn(2, C, 5, 7)
    model.norm.running_mean, model.norm.running_var = torch.randn(C), torch.rand(C) + 0.5
    with torch.no_grad():
        wanted = model(x)
    fused, report = repconv.fuse(model, (x,))
    assert report.agreement.passed
    names = [str(n.target) for n in fused.graph.nodes if n.op == "call_function"]
    assert names == ["aten.conv2d.default", "aten.relu.default"], names
    torch.testing.assert_close(fused.module()(x), wanted, rtol=2e-6, atol=1e-5)
    graph, report = fuse_onnx(to_onnx(model, x))
    assert report.agreement.passed
    assert [n.op_type for n in graph.graph.node] == ["Conv", "Relu"]
    got = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, wanted.numpy(), rtol=2e-6, atol=1e-5)


class Attending(nn.Module):
    """Attention; its exporter computes where the thirds of the channels end, and of their size what to divide by."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Conv2d(C, 3 * C, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.whole(x).reshape(1, 1, 3 * C, 35).transpose(-1, -2).chunk(3, -1)
        return functional.scaled_dot_product_attention(q, k, v)


def test_a_size_that_is_known_only_once_the_graph_is_read_makes_a_constant() -> None:
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(1, C, 5, 7)
    before = to_onnx(model, x)
    after, report = fuse_onnx(before)
    assert report.agreement.passed
    assert not [each for each in report.refusals if each.kind == "product" and "/Mul" in each.where]
    assert not unexplained(of_onnx(before, after, report), report.refusals)
    kinds = [node.op_type for node in after.graph.node]
    assert {"Shape", "Sqrt", "Div"}.isdisjoint(kinds), kinds
    got = onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=0, atol=1e-5)


def in_groups(batch: int | str) -> onnx.ModelProto:
    """Channels in two groups that change places, their number halved from a size; then a factor of a size's root."""
    weights = {
        "w": torch.randn(C, C, 3, 3).numpy(), "v": torch.randn(C, C, 1, 1).numpy(),
        "one": np.array([1]), "two": np.array([2]), "five": np.array([5]), "seven": np.array([7]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4), node("Shape", ["a"], ["s"]), node("Gather", ["s", "one"], ["c"]),
        node("Div", ["c", "two"], ["half"]), node("Shape", ["a"], ["n"], start=0, end=1),
        node("Concat", ["n", "two", "half", "five", "seven"], ["to"], axis=0), node("Reshape", ["a", "to"], ["g"]),
        node("Transpose", ["g"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Concat", ["n", "c", "five", "seven"], ["as"], axis=0), node("Reshape", ["t", "as"], ["b"]),
        node("Conv", ["b", "v"], ["d"]), node("Shape", ["g"], ["of"], start=2, end=3),
        node("Cast", ["of"], ["real"], to=TensorProto.FLOAT), node("Sqrt", ["real"], ["root"]),
        node("Mul", ["d", "root"], ["y"]),
    ]  # fmt: skip
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, C, 5, 7]) for n in ("x", "y")]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", [1, "n"])
def test_sizes_that_are_computed_of_sizes_tell_how_tensors_are_laid_out(batch: int | str) -> None:
    torch.manual_seed(0)
    before, x = in_groups(batch), np.random.default_rng(0).standard_normal((1, C, 5, 7), np.float32)
    facts = Facts(before)
    assert facts.sides["g"][1:] == (2, C // 2, 5, 7)
    assert facts.constant("root") == pytest.approx(np.sqrt(C / 2))
    after, report = fuse_onnx(before)
    assert report.agreement.passed
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    want, got = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0] for model in (before, after)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def between(nodes: list[onnx.NodeProto], made: str, width: int = 4, **values: object) -> onnx.ModelProto:
    """x [n, 4, h, 8] -> Conv "a" -> `nodes` -> Conv of `made`, which is `width` wide -> y."""
    weights = {"w": torch.randn(4, 4, 3, 3).numpy(), "v": torch.randn(4, width, 1, 1).numpy()}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4), *nodes, helper.make_node("Conv", [made, "v"], ["y"])
    ]  # fmt: skip
    held = {**weights, **{name: np.array(value) for name, value in values.items()}}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, "h", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


node = helper.make_node
SIZED = {
    "a size that nothing reads": (between([node("Shape", ["a"], ["s"])], "a"), {"Conv", "Shape"}),
    "a number that is called as a side of the input is": (
        between([
            node("Shape", ["a"], ["s"]), node("Gather", ["s", "two"], ["side"]), node("Mul", ["side", "two"], ["h"]),
            node("Slice", ["s", "zero", "two"], ["nc"]), node("Div", ["eight", "two"], ["less"]),
            node("Concat", ["nc", "h", "less"], ["to"], axis=0), node("Reshape", ["a", "to"], ["b"]),
        ], "b", two=[2], zero=[0], eight=[8]),
        None,
    ),
    "half of the channels": (
        between([
            node("Shape", ["a"], ["s"], start=1, end=2), node("Div", ["s", "two"], ["half"]),
            node("Slice", ["a", "zero", "half", "one"], ["p"]), node("Slice", ["a", "half", "s", "one"], ["q"]),
            node("Add", ["p", "q"], ["b"]),
        ], "b", 2, two=[2], zero=[0], one=[1]),
        {"Conv"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "left"), SIZED.values(), ids=SIZED)
def test_a_graph_that_computes_sizes_is_right_at_every_size(before: onnx.ModelProto, left: set[str] | None) -> None:
    """left: the kinds of nodes that are, where these show it."""
    after, report = fuse_onnx(before)
    assert report.agreement.passed or not report.layers
    assert left in (None, {node.op_type for node in after.graph.node})
    for shape in ((1, 4, 8, 8), (3, 4, 6, 8)):
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        want, got = (
            onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0] for model in (before, after)
        )
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def factor(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """x -> Conv -> Mul by the tensor "factor", which `nodes` make -> y."""
    weights = {"w": np.ones((C, C, 1, 1), np.float32), **weights}
    nodes = [helper.make_node("Conv", ["x", "w"], ["t"]), *nodes, helper.make_node("Mul", ["t", "factor"], ["y"])]
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, C, 5, 7]) for n in ("x", "y")]
    graph = helper.make_graph(
        nodes, "g", sides[:1], sides[1:], [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_random_numbers_are_no_constant_and_of_a_known_size_nothing_is_evaluated_beyond_the_limit() -> None:
    random = helper.make_node("RandomUniform", [], ["factor"], shape=[1, C, 1, 1])
    noisy = helper.make_node("RandomUniformLike", ["s"], ["factor"])
    of_ones = {"s": np.ones((1, C, 1, 1), np.float32)}
    for nodes, weights in (([random], {}), ([noisy], of_ones)):
        fused, _ = fuse_onnx(factor(nodes, weights))
        assert [n.op_type for n in fused.graph.node][-1] == "Mul"
    huge = [
        helper.make_node("ConstantOfShape", ["n"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "axes"], ["total"], keepdims=0),
        helper.make_node("Add", ["total", "s"], ["factor"]),
    ]
    many = {"n": np.array([2**32], np.int64), "axes": np.array([0], np.int64), **of_ones}
    fused, report = fuse_onnx(factor(huge, many), prove=False)
    assert [n.op_type for n in fused.graph.node][-1] == "Mul"  # gigabytes of zeros were not made
    assert any("computed by the graph" in refusal.why for refusal in report.refusals) or not report.layers
    with pytest.raises(FusionError, match="more numbers than any machine holds"):
        fuse_onnx(factor(huge, {**many, "n": np.array([2**40], np.int64)}))
    few = {**many, "n": np.array([2**4], np.int64)}
    fused, _ = fuse_onnx(factor(huge, few))
    assert [n.op_type for n in fused.graph.node] == ["Conv"]


def test_a_gate_that_is_shut_drops_its_branch_and_with_it_the_larger_kernel() -> None:
    torch.manual_seed(0)
    gate = torch.tensor([0.0, 1.0])
    model, x = Branches(lambda m, x: gate[0] * m.a(x) + gate[1] * m.b(x)).eval(), torch.randn(1, C, 5, 7)
    fused, report = repconv.fuse(model, (x,))
    assert [layer.geometry for layer in report.layers] == [f"1x1, {C} -> {C}"]
    torch.testing.assert_close(fused.module()(x), model(x).detach(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, C, 5, 1), (2, C, 5, 7), (1, 1, C, 5, 7)], ids=str)
def test_a_constant_that_differs_from_pixel_to_pixel_or_enlarges_the_tensor_stays(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    value = torch.rand(shape)
    if shape[0] == 2:
        value = value[:, :, :1, :1].expand(shape).clone()
        value[1] = value[0]  # one number a channel, but it makes two images of one
    model, x = Branches(lambda m, x: m.a(x) + m.b(x) * value).eval(), torch.randn(1, C, 5, 7)
    fused, _ = repconv.fuse(model, (x,))
    assert "aten.mul.Tensor" in {str(n.target) for n in fused.graph.nodes}
    torch.testing.assert_close(fused.module()(x), model(x).detach(), rtol=0, atol=2e-5)


def test_weights_made_by_products_of_many_channels_are_constants() -> None:
    """A chain of two kernels, as OREPA's blocks compose it, of 9.7e8 multiply-adds; and weighed by channels."""
    rng = np.random.default_rng(0)
    weights = {
        "one": rng.normal(size=(C, 512, 1, 1)).astype(np.float32), "t": rng.normal(size=C).astype(np.float32),
        "two": rng.normal(size=(512, 512, 3, 3)).astype(np.float32), "in": rng.normal(size=(512, C)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Einsum", ["one", "two"], ["left"], equation="oixy,ikhw->okhw"),
        helper.make_node("Einsum", ["left", "in"], ["both"], equation="okhw,kj->ojhw"),
        helper.make_node("Einsum", ["both", "t"], ["w"], equation="o...,o->o..."),
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "v"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    weights["v"] = rng.normal(size=(C, C, 1, 1)).astype(np.float32)
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, C, 5, 7]) for n in ("x", "y")]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], held)
    fused, _ = fuse_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert [n.op_type for n in fused.graph.node] == ["Conv"]


def test_values_that_were_let_go_of_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long chain of large constants one is held at a time; what comes out is the same."""
    monkeypatch.setattr("repconv.graph.onnx.evaluator.constants._HELD", 1)
    monkeypatch.setattr("repconv.graph.onnx.evaluator.constants._SMALL", 1)
    nodes = [helper.make_node("Add", [f"c{i}", f"c{i // 2}"], [f"c{i + 1}"]) for i in range(20)]
    model = factor([*nodes, helper.make_node("Mul", ["c20", "tiny"], ["factor"])], {
        "c0": np.arange(1, C + 1, dtype=np.float32).reshape(1, C, 1, 1), "tiny": np.float32(2.0**-20),
    })  # fmt: skip
    facts = Facts(model)
    assert facts.is_constant("factor")
    value = [np.arange(1, C + 1, dtype=np.float64).reshape(1, C, 1, 1)]
    for i in range(20):
        value.append(value[i] + value[i // 2])
    np.testing.assert_allclose(facts.constant("factor"), value[20] * 2.0**-20, rtol=1e-14)
