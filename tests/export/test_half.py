"""Half-precision ONNX: strongly typed, rounded once, refused where it would not be what it says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from repconv.errors import BuildError, VerificationError
from repconv.export.onnx.half import to_half
from repconv.export.onnx.overflow import peaks, require_fp16

RNG = np.random.default_rng(0)


def network(opset: int = 18, *, scale: float = 1.0) -> onnx.ModelProto:
    """conv - relu - resize by float32 scales - conv - mean - gemm."""
    weights = {
        "w1": RNG.normal(size=(8, 3, 3, 3)) * scale, "b1": RNG.normal(size=8),
        "w2": RNG.normal(size=(8, 8, 1, 1)) * 0.3,
        "fc": RNG.normal(size=(5, 8)), "scales": np.array([1, 1, 2, 2]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Resize", ["b", "", "scales"], ["c"], "resize", mode="nearest"),
        helper.make_node("Conv", ["c", "w2"], ["d"], "second"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc"], ["y"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("fp32_io", [False, True])
def test_fp16_is_half_inside_and_as_asked_outside(fp32_io: bool) -> None:
    model = network()
    half = to_half(model, "fp16", fp32_io=fp32_io)
    io = TensorProto.FLOAT if fp32_io else TensorProto.FLOAT16
    assert {v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)} == {io}
    kinds = {t.name: t.data_type for t in half.graph.initializer}
    assert kinds.pop("scales") == TensorProto.FLOAT, "what the operation wants in float32 stays"
    assert set(kinds.values()) == {TensorProto.FLOAT16}
    inside = {v.name: v.type.tensor_type.elem_type for v in half.graph.value_info}
    assert {inside[name] for name in "abcdef"} == {TensorProto.FLOAT16}
    x = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    got = run(half, x if fp32_io else x.astype(np.float16))
    wanted = run(model, x)
    assert got.dtype == (np.float32 if fp32_io else np.float16)
    assert np.abs(got - wanted).max() < 8e-3 * np.sqrt(np.square(wanted).mean())
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT, "the input is not changed"


@pytest.mark.newer
def test_bf16_needs_the_opset_whose_convolutions_take_it() -> None:
    with pytest.raises(BuildError, match="Conv cannot be bf16 at opset 18; export at opset 22"):
        to_half(network(18), "bf16")
    half = to_half(network(22), "bf16")
    assert {t.data_type for t in half.graph.initializer} == {TensorProto.BFLOAT16, TensorProto.FLOAT}
    onnx.checker.check_model(half, full_check=True)


def test_an_operation_without_the_type_keeps_float32_between_casts() -> None:
    model = network(22)
    index = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Relu")
    model.graph.node[index].CopyFrom(helper.make_node("HardSwish", ["a"], ["b"], "swish"))
    model.opset_import[0].version = 21  # HardSwish takes bf16 from 22 on only, and so does Conv
    with pytest.raises(BuildError, match="Conv"):
        to_half(model, "bf16")
    mixed = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("HardSwish", ["a"], ["y"], "swish")],
            "g",
            [helper.make_tensor_value_info("x", 1, [2])],
            [helper.make_tensor_value_info("y", 1, [2])],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=9,
    )
    half = to_half(mixed, "bf16")
    assert [n.op_type for n in half.graph.node] == ["Relu", "Cast", "HardSwish", "Cast"]
    onnx.checker.check_model(half, full_check=True)


def test_weights_beyond_the_range_are_refused_by_name() -> None:
    with pytest.raises(BuildError, match=r"w1 holds .* which fp16 cannot"):
        to_half(network(scale=1e6), "fp16")


def test_tensors_that_would_overflow_are_named_first_computed_first() -> None:
    model = network(scale=3e3)
    found = peaks(model, [torch.full((2, 3, 8, 8), 10.0)])
    with pytest.raises(VerificationError, match=r"fp16 ends at 65504 and cannot hold \d tensors on noise: a \(first\)"):
        require_fp16(found, "noise")
    require_fp16(peaks(network(), [torch.randn(2, 3, 8, 8)]), "noise")
    by_name = {peak.tensor: peak.peak for peak in found}
    assert by_name["a"] > 65504 > by_name["w2"]


def test_subgraphs_are_refused() -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "then", [], [helper.make_tensor_value_info("z", 1, None)]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("y", 1, [2])],
    )
    with pytest.raises(BuildError, match="subgraphs"):
        to_half(helper.make_model(graph), "fp16")
