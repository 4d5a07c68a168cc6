"""Two ONNX files: float64 is the reference, its file's own error stands beside, and shared decisions are replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repconv.export.artefacts.open import open_artefact
from repconv.export.comparing.compare import inputs_for, verify_artefacts
from repconv.graph import fuse_onnx
from repconv.proof.agreement import Agreement


def chain(layers: int, *, quantised: bool = False, gain: float = 1.0, name: str = "x") -> onnx.ModelProto:
    """Convolutions and norms, with quantisers or hyperbolic tangents between."""
    random = np.random.default_rng(0)
    nodes, weights = [], []

    def weight(key: str, value, kind=np.float32) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value, kind), key))
        return key

    x = name
    for i in range(layers):
        conv = weight(f"w{i}", gain * random.normal(size=(6, 6, 3, 3)) / (9 * 6) ** 0.5)
        norm = [random.uniform(0.5, 2, 6), random.normal(size=6), random.normal(size=6) / 4, random.uniform(0.5, 2, 6)]
        named = [weight(f"n{i}{k}", value) for k, value in enumerate(norm)]
        nodes.append(helper.make_node("Conv", [x, conv], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *named], [f"b{i}"]))
        x = f"b{i}"
        if i + 1 < layers and quantised:
            pair = [weight(f"s{i}", 0.05), weight(f"z{i}", 0, np.int8)]
            nodes.append(helper.make_node("QuantizeLinear", [x, *pair], [f"q{i}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", *pair], [f"d{i}"]))
            x = f"d{i}"
        elif i + 1 < layers:
            nodes.append(helper.make_node("Tanh", [x], [f"t{i}"]))
            x = f"t{i}"
    nodes[-1].output[0] = "y"
    given, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 6, 24, 24]) for n in (name, "y"))
    graph = helper.make_graph(nodes, "g", [given], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def verified(folder: Path, a: onnx.ModelProto, b: onnx.ModelProto) -> tuple[Agreement, str]:
    for name, model in (("a.onnx", a), ("b.onnx", b)):
        onnx.save(model, folder / name)
    one, other = open_artefact(str(folder / "a.onnx")), open_artefact(str(folder / "b.onnx"))
    return verify_artefacts(one, other, inputs_for(one, other))


def spoiled(model: onnx.ModelProto, by: float) -> onnx.ModelProto:
    """The first convolution's weights are off."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    conv = next(node for node in result.graph.node if node.op_type == "Conv")
    tensor = next(t for t in result.graph.initializer if t.name == conv.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1 + by), tensor.name))
    return result


@pytest.mark.parametrize("quantised", [False, True])
def test_a_right_fold_is_equal_and_a_wrong_one_is_not(quantised: bool, tmp_path: Path) -> None:
    model = chain(4, quantised=quantised)
    fused, _ = fuse_onnx(model)
    right, told = verified(tmp_path, model, fused)
    assert right.passed, right.verdict
    assert "a.onnx in float64" in told
    assert ("decides as the other does" in told) == quantised
    assert all(c.own is not None for c in right.end_to_end)
    wrong, _ = verified(tmp_path, model, spoiled(fused, 1e-3))
    assert not wrong.passed
    assert wrong.verdict.startswith("NOT equal")


def test_inputs_of_other_names_are_taken_in_order(tmp_path: Path) -> None:
    agreement, _ = verified(tmp_path, chain(3), chain(3, name="image"))
    assert agreement.passed, agreement.verdict


def test_a_chaotic_file_is_equal_to_its_fold_and_tells_when_it_cannot(tmp_path: Path) -> None:
    model = chain(24, gain=2.5)
    fused, _ = fuse_onnx(model)
    agreement, _ = verified(tmp_path, model, fused)
    assert agreement.passed, agreement.verdict
    hopeless = chain(40, gain=6.0)
    told, _ = verified(tmp_path, hopeless, spoiled(hopeless, 0.05))
    assert not told.passed


def test_what_float64_cannot_compute_is_compared_as_it_is_and_says_so(tmp_path: Path) -> None:
    model = chain(2)
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("QuickGelu", ["z"], ["y"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    agreement, _ = verified(tmp_path, model, model)
    assert agreement.passed, agreement.verdict
    assert "measured against the original, which cannot be run in float64" in agreement.verdict
