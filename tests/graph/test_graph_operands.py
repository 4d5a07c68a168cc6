"""What a node multiplies by and its graph computes of constants becomes one constant, unless it is stored in less."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import repconv
from repconv.benchmarks.studies.graph.networks import to_onnx
from repconv.graph import foresee_onnx, fuse_onnx, fuse_program
from repconv.graph.core.reasons import Kind

C = 6


class Alone(nn.Module):
    """One operation between activations, of weights that `make` computes."""

    def __init__(self, make: Callable[[Alone, Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make
        self.w, self.one = nn.Parameter(torch.randn(C, C, 3, 3)), nn.Parameter(torch.randn(2 * C, C, 1, 1))
        self.full, self.t = nn.Parameter(torch.randn(C, 2 * C, 3, 3)), nn.Parameter(torch.rand(C, 1, 1, 1) + 0.5)
        self.spread, self.u = nn.Parameter(torch.randn(C, C, 2, 2)), nn.Parameter(torch.randn(C, 4))
        self.register_buffer("mask", (torch.rand(C, C, 3, 3) > 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.make(self, torch.sigmoid(x)))


def conv(x: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(x, weight, None, 1, weight.shape[2] // 2)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).softmax(2)


COMPUTED: dict[str, tuple[Callable[[Alone, Tensor], Tensor], str, str]] = {
    "two kernels composed": (
        lambda m, x: conv(x, functional.conv2d(m.full, m.one.permute(1, 0, 2, 3))), "aten.conv2d.default", "Conv",
    ),
    "product of matrices": (lambda m, x: conv(x, torch.einsum("oihw,ij->ojhw", m.w, m.u @ m.u.T)),
                            "aten.conv2d.default", "Conv"),
    "standardised": (
        lambda m, x: conv(x, (m.w - m.w.mean((1, 2, 3), True)) / (m.w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()),
        "aten.conv2d.default", "Conv",
    ),
    "weighed and divided": (lambda m, x: conv(x, m.w * m.t / 3), "aten.conv2d.default", "Conv"),
    "reduced": (lambda m, x: conv(x, torch.stack([m.w, m.w * m.t]).sum(0)), "aten.conv2d.default", "Conv"),
    "masked": (lambda m, x: conv(x, m.w * m.mask), "aten.conv2d.default", "Conv"),
    "transposed": (
        lambda m, x: functional.conv_transpose2d(x, m.spread * m.t, stride=2), "aten.conv_transpose2d.input",
        "ConvTranspose",
    ),
    "matrix": (lambda m, x: functional.linear(tokens(x), m.u @ m.u.T), "aten.linear.default", "MatMul"),
    "matrix from the right": (lambda m, x: tokens(x) @ (m.u @ m.u.T), "aten.linear.default", "MatMul"),
    "factor": (lambda m, x: x * torch.exp(m.t).view(1, -1, 1, 1), "aten.mul.Tensor", "Mul"),
}  # fmt: skip


def opaque(names: list[str]) -> list[str]:
    """The operations without those around the one that is looked at."""
    around = {"relu", "sigmoid", "softmax", "reshape", "flatten", "transpose", "view", "permute"}
    return [name for name in names if around.isdisjoint(name.lower().split("."))]


@pytest.mark.parametrize("make", COMPUTED.values(), ids=COMPUTED)
def test_a_computed_operand_of_an_operation_that_stands_alone_is_written_as_one_constant(
    make: tuple[Callable[[Alone, Tensor], Tensor], str, str],
) -> None:
    torch.manual_seed(0)
    function, in_program, in_onnx = make
    model, x = Alone(function).eval(), torch.randn(2, C, 5, 7)
    wanted = model(x).detach()
    fused, report = repconv.fuse(model, (x,))
    assert report.layers
    assert report.agreement.passed
    assert opaque([str(n.target) for n in fused.graph.nodes if n.op == "call_function"]) == [in_program]
    torch.testing.assert_close(fused.module()(x), wanted, rtol=0, atol=2e-5)
    given = to_onnx(model, x, 17, do_constant_folding=False)
    graph, report = fuse_onnx(given)
    assert opaque([n.op_type for n in graph.graph.node]) == [in_onnx]
    assert {layer.name for layer in foresee_onnx(given).layers} == {layer.branches[0] for layer in report.layers}
    got = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=2e-5)


def test_parametrised_layers_are_plain_ones_afterwards() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, C, 3)), nn.ReLU(), parametrizations.spectral_norm(nn.Conv2d(C, C, 1)),
        nn.ReLU(), parametrizations.spectral_norm(nn.ConvTranspose2d(C, C, 2, 2)), nn.ReLU(),
        nn.Flatten(), parametrizations.weight_norm(nn.Linear(C * 64, 4)),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 6, 6)
    fused, _ = repconv.fuse(model, (x,))
    names = [str(n.target).split(".")[1] for n in fused.graph.nodes if n.op == "call_function"]
    assert [n for n in names if n not in ("flatten", "view", "reshape")] == [
        "conv2d", "relu", "conv2d", "relu", "conv_transpose2d", "relu", "linear",
    ]  # fmt: skip
    torch.testing.assert_close(fused.module()(x), model(x).detach(), rtol=0, atol=2e-5)


LESS = {
    "half precision": ({"s": np.float16}, ["Cast"]),
    "quantised": ({"s": np.int8, "scale": np.float32}, ["DequantizeLinear"]),
    "quantised, spelled out": ({"s": np.int8, "scale": np.float32}, ["Cast", "Mul"]),
    "laid out anew": ({"s": np.float32}, ["Transpose"]),
}


def weighted(types: dict[str, type], kinds: list[str]) -> onnx.ModelProto:
    """x -> Relu -> Conv by what `kinds` make of s -> y."""
    numbers = {"s": np.arange(C * C).reshape(C, C, 1, 1) % 5, "scale": np.float32(0.5)}
    nodes, last = [helper.make_node("Relu", ["x"], ["a"])], "s"
    for index, kind in enumerate(kinds):
        inputs = [last, "scale"] if kind in ("DequantizeLinear", "Mul") else [last]
        settings = {"to": TensorProto.FLOAT} if kind == "Cast" else {}
        last = f"w{index}"
        nodes.append(helper.make_node(kind, inputs, [last], last, **settings))
    nodes.append(helper.make_node("Conv", ["a", last], ["y"], "conv"))
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, C, 5, 7]) for n in ("x", "y")]
    if kinds == ["Transpose"]:
        nodes[1].attribute.append(helper.make_attribute("perm", [1, 0, 2, 3]))
    held = [numpy_helper.from_array(np.asarray(numbers[n], kind), n) for n, kind in types.items()]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("types", "kinds"), LESS.values(), ids=LESS)
def test_a_weight_that_is_stored_in_less_or_only_laid_out_stays_as_it_is(
    types: dict[str, type], kinds: list[str]
) -> None:
    model = weighted(types, kinds)
    fused, report = fuse_onnx(model)
    assert not report.layers
    assert fused.SerializeToString() == model.SerializeToString()


def quantised(onto: str) -> onnx.ModelProto:
    """Q/DQ around a convolution of an int8 weight, with `onto`, a normalisation or nothing, behind it."""
    rng = np.random.default_rng(0)
    held = {"w": rng.integers(-100, 100, (C, C, 3, 3)).astype(np.int8), "b": rng.integers(-9, 9, C).astype(np.int32)}
    held |= {name: np.float32(value) for name, value in (("sx", 0.02), ("sb", 0.0002), ("sy", 0.05))}
    held |= {"sw": np.full(C, 0.01, np.float32), "sbs": np.full(C, 0.0002, np.float32), "z": np.int8(0)}
    held |= {name: rng.uniform(0.5, 2, C).astype(np.float32) for name in ("g", "s", "m", "v")}
    lines = """
        q = QuantizeLinear (x, sx, z)  d = DequantizeLinear (q, sx, z)
        dw = DequantizeLinear <axis=0> (w, sw)  db = DequantizeLinear <axis=0> (b, sbs)
        c = Conv <pads=[1,1,1,1]> (d, dw, db)
    """
    last = "c"
    if onto:
        lines, last = f"{lines} n = BatchNormalization (c, g, s, m, v)", "n"
    parsed = onnx.parser.parse_graph(
        f"g (float[1,{C},5,7] x) => (float[1,{C},5,7] y) {{ {lines} p = QuantizeLinear ({last}, sy, z) "
        "y = DequantizeLinear (p, sy, z) }"
    )
    for node in parsed.node:
        node.name = node.output[0]
    read = {name for node in parsed.node for name in node.input}
    parsed.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in held.items() if n in read)
    return helper.make_model(parsed, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("onto", ["", "norm"])
def test_quantised_weights_stay_as_their_author_has_them(onto: str) -> None:
    model = quantised(onto)
    fused, report = fuse_onnx(model)
    assert fused.SerializeToString() == model.SerializeToString()
    assert [each.kind for each in report.refusals if each.where == "c"] == [Kind.QUANTISED.label] * bool(onto)


def test_a_program_stores_quantised_weights_afterwards_as_before() -> None:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  # it registers the operations

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.randint(-100, 100, (C, C, 3, 3), dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            made = torch.ops.quantized_decomposed.dequantize_per_tensor(self.w, 0.5, 0, -128, 127, torch.int8)
            return conv(torch.relu(x), made)

    program = torch.export.export(Quantised().eval(), (torch.randn(1, C, 5, 7),))
    fused, report = fuse_program(program)
    assert fused is program
    assert not report.layers


def test_what_is_computed_for_others_too_costs_nothing_more_and_stays() -> None:
    torch.manual_seed(0)
    model, x = Alone(lambda m, x: (m.w * m.t, conv(x, m.w * m.t))[1]).eval(), torch.randn(1, C, 5, 7)

    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = model

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            weight = self.of.w * self.of.t
            return conv(x, weight), weight

    given = to_onnx(Gives().eval(), x, 17, do_constant_folding=False)
    fused, report = fuse_onnx(given, prove=False)
    assert not report.layers
    assert fused.SerializeToString() == given.SerializeToString()
    program = torch.export.export(Gives().eval(), (x,))
    assert fuse_program(program)[0] is program


def test_a_buffer_that_the_program_writes_into_is_no_constant() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(C, C, 1)
            self.register_buffer("count", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return self.conv(x) * self.count

    torch.manual_seed(0)
    x = torch.randn(1, C, 5, 7)
    model = Counts().eval()
    fused, _ = fuse_program(torch.export.export(copy.deepcopy(model), (x,)))
    module = fused.module()
    for _ in range(3):
        torch.testing.assert_close(module(x), model(x))
