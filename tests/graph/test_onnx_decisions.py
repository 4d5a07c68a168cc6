"""Rounding steps of an ONNX graph: right folds are accepted whatever flips, wrong ones refused; flips are counted."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from repconv.graph import fuse_onnx
from repconv.graph.onnx.proof.decisions import decisions
from repconv.graph.onnx.proof.prove import prove_onnx

C = 8


class _Graph:
    """Nodes and weights, collected."""

    def __init__(self, seed: int) -> None:
        self.random, self.nodes, self.weights = np.random.default_rng(seed), [], []

    def weight(self, name, value, kind=np.float32):
        self.weights.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def node(self, op, given, out, **attributes):
        self.nodes.append(helper.make_node(op, given, [out], name=out, **attributes))
        return out

    def conv_and_norm(self, x, name):
        r = self.random
        weight = self.weight(f"{name}w", r.normal(size=(C, C, 3, 3)) / (3 * C**0.5))
        values = (r.uniform(0.5, 2, C), r.normal(size=C), r.normal(size=C) / 4, r.uniform(0.3, 2, C))
        norm = [self.weight(f"{name}{k}", v) for k, v in enumerate(values)]
        conv = self.node("Conv", [x, weight], f"{name}c", pads=[1] * 4)
        return self.node("BatchNormalization", [conv, *norm], f"{name}n")

    def model(self, opset) -> ModelProto:
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, C, 40, 40]) for name in "xy")
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def quantised(seed: int, opset: int) -> ModelProto:
    """A pair of QuantizeLinear and DequantizeLinear before and behind a convolution of float weights."""
    g = _Graph(seed)
    x = g.node("Relu", [g.conv_and_norm("x", "a")], "ar")
    for name, out in (("b", "br"), ("c", "y")):
        pair = [g.weight(f"{name}s", 0.05), g.weight(f"{name}z", 0, np.int8)]
        steps = g.node("QuantizeLinear", [x, *pair], f"{name}q")
        x = g.node("DequantizeLinear", [steps, *pair], f"{name}d")
        x = g.node("Relu", [g.conv_and_norm(x, name)], out)
    return g.model(opset)


def fine(op: str) -> ModelProto:
    """Steps so fine, a ten thousandth of the scale, that float32's rounding flips some."""
    g = _Graph(0)
    g.node("Mul", [g.conv_and_norm("x", "a"), g.weight("many", 1e4)], "am")
    if op == "Cast":
        g.node("Cast", [g.node("Cast", ["am"], "whole", to=TensorProto.INT32)], "y", to=TensorProto.FLOAT)
    else:
        g.node(op, ["am"], "y")
    return g.model(17)


def _feeds(seed: int = 0):
    return [{"x": np.random.default_rng(seed + k).normal(size=(1, C, 40, 40)).astype(np.float32)} for k in range(2)]


def _spoiled(model: ModelProto, off: float) -> ModelProto:
    """The first convolution's weights scaled by 1 + off."""
    result = ModelProto()
    result.CopyFrom(model)
    conv = next(n for n in result.graph.node if n.op_type == "Conv")
    tensor = next(t for t in result.graph.initializer if t.name == conv.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1 + off), tensor.name))
    return result


@pytest.mark.parametrize("opset", [13, 19])
@pytest.mark.parametrize("seed", range(3))
def test_right_folds_between_quantisers_are_accepted_and_wrong_ones_are_not(seed: int, opset: int) -> None:
    """onnxruntime would round the folded weights to 8 bits, which is not what the file says."""
    before = quantised(seed, opset)
    after = fuse_onnx(before, prove=False)[0]
    assert not [n for n in after.graph.node if n.op_type == "BatchNormalization"]
    found = prove_onnx(before, after, _feeds(seed))
    assert found.agreement.passed, found.agreement.verdict
    assert {"ar", "br"} <= {c.path for c in found.agreement.end_to_end}
    wrong = prove_onnx(before, _spoiled(after, 1e-3), _feeds(seed)).agreement
    assert not all(c.passed for c in wrong.end_to_end)


@pytest.mark.parametrize("op", ["Round", "Floor", "Ceil", "Cast"])
def test_steps_that_flip_are_counted_and_no_difference(op: str) -> None:
    before = fine(op)
    after = fuse_onnx(before, prove=False)[0]
    found = prove_onnx(before, after, _feeds()).agreement
    assert all(c.passed for c in found.end_to_end), found.verdict
    assert any("rounded to the neighbouring step" in c.reason for c in found.end_to_end)
    wrong = prove_onnx(before, _spoiled(after, 1e-3), _feeds()).agreement
    assert any("more than one step off" in c.found for c in wrong.end_to_end)


def test_what_whole_numbers_decide_is_no_decision() -> None:
    """Casts of sizes and comparisons of them are the same in every run: replaying them is work for nothing."""
    g = _Graph(0)
    x = g.node("Relu", [g.conv_and_norm("x", "a")], "ar")
    g.node("Shape", [x], "size")
    g.node("Cast", ["size"], "narrow", to=TensorProto.INT32)
    g.node("Cast", ["narrow"], "wide", to=TensorProto.INT64)
    g.node("Equal", ["wide", g.weight("few", [1, C, 40, 40], np.int64)], "same")
    x = g.node("Reshape", [x, "wide"], "shaped")
    x = g.node("Where", ["same", x, g.weight("nothing", 0.0)], "chosen")
    g.node("Mul", [x, g.weight("many", 1e3)], "scaled")
    g.node("Floor", ["scaled"], "y")
    model = g.model(17)
    fused, report = fuse_onnx(model)
    assert report.after.batch_norms == 0
    assert [decision.outputs for decision in decisions(model, fused)] == [("y",)]
