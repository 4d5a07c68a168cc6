"""Models out of the ordinary: types, opsets, names, functions, loops, sizes. Each is fused right, or left in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from repconv.graph import fuse_onnx

FLOAT = TensorProto.FLOAT
BRANCHES = (("Conv", "x w3", "p"), ("BatchNormalization", "p g s m v", "q"), ("Conv", "x w1", "r"), ("Add", "q r", "y"))
SHAPES = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "g": (4,), "s": (4,), "m": (4,), "v": (4,), "shift": (1, 4, 1, 1)}


def build(
    *calls: tuple[str, str, str], outputs: str = "y", opset: int = 17, inputs: str = "x", size: object = (1, 4, 8, 8)
) -> onnx.ModelProto:
    """A graph of (operation, inputs, outputs); `w3` is padded, `v` positive."""
    random = np.random.default_rng(0)
    read = {name for _, names, _ in calls for name in names.split()}
    weights = [
        numpy_helper.from_array(random.uniform(0.2, 1, shape).astype(np.float32), name)
        for name, shape in SHAPES.items()
        if name in read
    ]
    nodes = [
        helper.make_node(
            kind, names.split(), made.split(), made.split()[0], **({"pads": [1, 1, 1, 1]} if "w3" in names else {})
        )
        for kind, names, made in calls
    ]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info(n, FLOAT, size) for n in inputs.split()],
        [helper.make_tensor_value_info(n, FLOAT, size) for n in outputs.split()],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def image(value: onnx.ValueInfoProto, seed: int = 0) -> np.ndarray:
    sides = [d.dim_value if d.HasField("dim_value") else 5 for d in value.type.tensor_type.shape.dim]
    return np.random.default_rng(seed).standard_normal(sides).astype(np.float32)


def in_runtime(model: onnx.ModelProto) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {v.name: image(v) for v in model.graph.input})


def in_reference(model: onnx.ModelProto) -> list[np.ndarray]:
    return onnx.reference.ReferenceEvaluator(model).run(None, {v.name: image(v) for v in model.graph.input})


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def assert_same(
    before: onnx.ModelProto, after: onnx.ModelProto, run: Callable[[onnx.ModelProto], list[np.ndarray]] = in_runtime
) -> None:
    for wanted, got in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(initial=1))


@pytest.mark.newer
@pytest.mark.parametrize("opset", range(7, 27))
def test_every_opset_onnx_has_known_since_2018(opset: int) -> None:
    model = build(*BRANCHES, opset=opset)
    fused, report = fuse_onnx(model)
    assert kinds(fused) == ["Conv"], report.refusals
    assert fused.opset_import == model.opset_import
    assert_same(model, fused)


@pytest.mark.newer
@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64], ids=["float16", "bfloat16", "float64"])
def test_every_type_is_folded_in_float64_and_cast_once(kind: type) -> None:
    model = build(*BRANCHES, opset=22)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
    exact = onnx.ModelProto()
    exact.CopyFrom(model)
    for tensor in exact.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    for value in (*exact.graph.input, *exact.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    fused, report = fuse_onnx(model)
    assert kinds(fused) == ["Conv"], report.refusals
    whole, _ = fuse_onnx(exact)
    for got, wanted in zip(fused.graph.initializer, whole.graph.initializer, strict=True):
        assert got.data_type == helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        assert np.array_equal(numpy_helper.to_array(got), numpy_helper.to_array(wanted).astype(kind))
    feeds = {"x": image(model.graph.input[0]).astype(np.float64)}
    wanted, got = (onnx.reference.ReferenceEvaluator(m).run(None, feeds)[0] for m in (exact, whole))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_a_local_function_stays_and_what_feeds_it_is_fused() -> None:
    model = build(*BRANCHES[:3], ("Add", "q r", "t"), ("Twice", "t", "y"))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[-1].domain = "mine"
    doubled = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], doubled, [helper.make_opsetid("", 17)]))
    fused, _ = fuse_onnx(model)
    assert kinds(fused) == ["Conv", "Twice"]
    assert fused.functions == model.functions
    assert_same(model, fused)


def test_a_loop_and_what_it_captures_stay() -> None:
    model = build(*BRANCHES[:2], ("Add", "q x", "y"), outputs="y")
    truth, count, size = TensorProto.BOOL, TensorProto.INT64, (1, 4, 8, 8)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["sum", "p"], ["more"])],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", count, ()), ("go", truth, ()), ("sum", 1, size))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("on", truth, ()), ("more", 1, size))],
    )
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(3, np.int64), "times"),
            numpy_helper.from_array(np.array(True), "yes"),
        ]
    )
    model.graph.node.append(helper.make_node("Loop", ["times", "yes", "q"], ["z"], "loop", body=body))
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, size))
    fused, _ = fuse_onnx(model)
    assert {"p", "y", "z"} <= {name for node in fused.graph.node for name in node.output}
    assert_same(model, fused)


def test_several_inputs_and_outputs() -> None:
    model = build(
        *BRANCHES,
        ("Conv", "x2 w3", "a"),
        ("Conv", "x2 w1", "b"),
        ("Add", "a b", "z"),
        ("Relu", "z", "u"),
        inputs="x x2",
        outputs="y z u",
    )
    fused, _ = fuse_onnx(model)
    assert kinds(fused) == ["Conv", "Conv", "Relu"]
    assert_same(model, fused)


def test_an_initialiser_that_is_an_output_or_an_input_stays() -> None:
    model = build(*BRANCHES)
    model.graph.output.append(helper.make_tensor_value_info("w1", FLOAT, SHAPES["w1"]))
    fused, _ = fuse_onnx(model)
    assert kinds(fused) == ["Conv"]
    assert_same(model, fused)
    model.graph.input.append(helper.make_tensor_value_info("w3", FLOAT, SHAPES["w3"]))
    fused, report = fuse_onnx(model)
    assert kinds(fused) == kinds(model)
    assert any("input of the graph" in refusal.why for refusal in report.refusals)


@pytest.mark.parametrize("name", ["", "same"])
def test_nodes_without_names_or_with_one_name(name: str) -> None:
    model = build(*BRANCHES[:3], ("Add", "q r", "t"), ("Relu", "t", "y"))
    for node in model.graph.node:
        node.name = name
    fused, report = fuse_onnx(model)
    assert kinds(fused) == ["Conv", "Relu"]
    assert report.layers[0].before.convolutions >= 2
    assert_same(model, fused, in_reference)


def test_a_tensor_called_as_one_on_the_way_to_another_keeps_its_own_label_and_size() -> None:
    """`y.part0` is what fusing would call the first convolution of a sum that makes `y`."""
    calls = (("Conv", "x w3", "p"), ("BatchNormalization", "p g s m v", "y.part0"), ("Relu", "y.part0", "a"))
    model = build(*calls, ("Conv", "a w3", "q"), ("BatchNormalization", "q g s m v", "b"), ("Add", "b x", "y"))
    fused, report = fuse_onnx(model)
    named = {layer.tensor: layer.name for layer in report.layers}
    assert named.keys() == {"y.part0", "y"}
    assert len({*named.values()}) == 2
    assert [found.where for found in report.agreement.blocks] == [named["y.part0"], named["y"]]
    assert report.after.flops == report.before.flops == 2 * 2 * 64 * 4 * 4 * 9
    assert_same(model, fused)


def test_sparse_weights_are_left_in_words() -> None:
    values, places = np.array([1, 2, 3], np.float32), np.array([0, 5, 10], np.int64)
    for is_node in (False, True):
        model = build(*BRANCHES)
        kept = [t for t in model.graph.initializer if t.name != "w1"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        name = "" if is_node else "w1"
        held = helper.make_sparse_tensor(
            numpy_helper.from_array(values, name), numpy_helper.from_array(places, name and "places"), SHAPES["w1"]
        )
        if is_node:
            model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], "w1", sparse_value=held))
        else:
            model.graph.sparse_initializer.append(held)
        fused, report = fuse_onnx(model)
        assert any("sparse" in refusal.why for refusal in report.refusals)
        assert_same(model, fused)


@pytest.mark.newer
def test_sides_without_anything_give_words_or_a_model() -> None:
    model = build(*BRANCHES, size=(0, 4, 8, 8))
    fused, _ = fuse_onnx(model)
    assert kinds(fused) == ["Conv"]
    assert_same(model, fused)
    fuse_onnx(build(*BRANCHES, size=(1, 4, 0, 8)))
    model = build(("Conv", "x w1", "p"), ("Conv", "p nothing", "y"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 0
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 4, 1, 1), np.float32), "nothing"))
    fused, report = fuse_onnx(model)
    assert kinds(fused) == ["Conv", "Conv"]
    assert "at least 1" in report.refusals[0].why


@pytest.mark.parametrize("kind", ["Conv", "Add", "Mul", "BatchNormalization", "twice"])
def test_a_long_chain_is_one_convolution(kind: str) -> None:
    """A tensor added to itself doubles the number of its parts; deep graphs outgrow recursion."""
    rest = {"Conv": "w1", "Add": "shift", "Mul": "shift", "BatchNormalization": "g s m v", "twice": ""}[kind]
    calls = [("Conv", "x w1", "t0")]
    for i in range(100 if kind == "twice" else 200):
        other = rest or f"t{i}"
        calls.append((kind if rest else "Add", f"t{i} {other}", f"t{i + 1}"))
    model = build(*calls, outputs=f"t{len(calls) - 1}")
    for tensor in model.graph.initializer:  # factors near 1, matrices that mix and do not grow
        value = numpy_helper.to_array(tensor)
        value = value / value.sum(1, keepdims=True) if value.shape == SHAPES["w1"] else 1 + 0.001 * value
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    fused, report = fuse_onnx(model)
    assert kinds(fused) == ["Conv"], report.refusals
    (wanted,), (got,) = in_runtime(model), in_runtime(fused)  # the long chain in float32 is the less exact one
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_model_above_two_gigabytes(tmp_path: Path) -> None:
    """Weights of 2.3 GB in files of zeros that take no room on the disk."""
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < 8 * 2**30:
        pytest.skip("less than 8 GiB of free memory")
    model = build(*BRANCHES, outputs="y")
    side = 17_000
    for name in ("large", "larger"):
        tensor = TensorProto(name=name, data_type=FLOAT, dims=[side, side], data_location=TensorProto.EXTERNAL)
        entries = {"location": f"{name}.bin", "offset": "0", "length": str(4 * side**2)}
        tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items())
        model.graph.initializer.append(tensor)
        with (tmp_path / f"{name}.bin").open("wb") as file:
            file.truncate(4 * side**2)
    model.graph.input.append(helper.make_tensor_value_info("u", FLOAT, [1, side]))
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, [1, side]))
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["u", "large"], ["a"], "first"),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("MatMul", ["b", "larger"], ["z"], "second"),
        ]
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    fused, _ = fuse_onnx(tmp_path / "model.onnx")
    assert kinds(fused) == ["Conv", "MatMul", "Relu", "MatMul"]
    assert sum(len(t.raw_data) for t in fused.graph.initializer) > 2**31
    del fused
    unchanged = build(("Conv", "x w3", "t"), ("Relu", "t", "y"))
    for kept in (model.graph.initializer[-2], model.graph.initializer[-1]):
        unchanged.graph.initializer.append(kept)
    unchanged.graph.input.append(model.graph.input[-1])
    unchanged.graph.output.append(model.graph.output[-1])
    unchanged.graph.node.extend(model.graph.node[-3:])
    (tmp_path / "model.onnx").write_bytes(unchanged.SerializeToString())
    same, report = fuse_onnx(tmp_path / "model.onnx")
    assert not report.layers
    assert kinds(same) == kinds(unchanged)


@pytest.mark.parametrize("rank", [4, None], ids=["of four sides", "of any rank"])
@pytest.mark.parametrize("between", [(), (("Relu", "shaped", "used"),)], ids=["read at once", "behind an activation"])
def test_a_weight_tells_how_many_channels_it_reads(rank: int | None, between: tuple[tuple[str, str, str], ...]) -> None:
    """Whatever a graph makes that its shape inference cannot follow, a convolution of it reads so many channels."""
    read = between[-1][2] if between else "shaped"
    norm = ("BatchNormalization", "p g s m v", "y")
    model = build(("Reshape", "x size", "shaped"), *between, ("Conv", f"{read} w3", "p"), norm, size=[None] * 4)
    model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [rank]))
    x = np.random.default_rng(1).normal(size=(1, 64, 2, 2)).astype(np.float32)
    _, report = fuse_onnx(model, feeds=[{"x": x, "size": np.array([1, 4, 8, 8])}])
    assert report.after.batch_norms == 0


@pytest.mark.parametrize(
    "calls",
    [
        (("ConvTranspose", "shaped w1", "p"), ("BatchNormalization", "p g s m v", "y")),
        (("BatchNormalization", "shaped g s m v", "p"), ("Conv", "p w1", "y")),
    ],
    ids=["transposed", "statistics"],
)
def test_other_weights_tell_channels_too(calls: tuple[tuple[str, str, str], ...]) -> None:
    model = build(("Reshape", "x size", "shaped"), *calls, size=[None] * 4)
    model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [4]))
    assert fuse_onnx(model, prove=False)[1].after.batch_norms == 0
