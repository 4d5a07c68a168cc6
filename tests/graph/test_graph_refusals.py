"""What cannot be fused exactly is left and said in words, beside what is so close to it that it can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from repconv import RepconvError
from repconv.graph import fuse_onnx

C = 4


def weights(seed: int = 0, dtype: type = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made = {
        "w3": (C, C, 3, 3), "w3b": (C, C, 3, 3), "w1": (C, C, 1, 1), "w1b": (C, C, 1, 1), "dw": (C, 1, 3, 3), "b": (C,),
        "g": (C,), "s": (C,), "m": (C,), "row": (1, 1, 1, 8), "one": (1, 1, 1, 1), "pixel": (1, C, 8, 8),
        "channel": (1, C, 1, 1),
    }  # fmt: skip
    found = {name: random.uniform(-1, 1, shape).astype(dtype) for name, shape in made.items()}
    found["v"] = random.uniform(0.5, 2, C).astype(dtype)
    found["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    found["true"], found["half"] = np.array(True), np.array(0.5, np.float32)
    return found


@dataclass
class Text:
    """A graph in lines `output = Op(inputs) attribute=value`."""

    lines: list[str]
    size: list[object] = field(default_factory=lambda: [1, C, 8, 8])
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("y",)

    def model(self, opset: int = 17) -> onnx.ModelProto:
        held = weights()
        nodes = []
        for line in self.lines:
            output, call = line.split(" = ")
            kind, rest = call.split("(")
            arguments, options = rest.split(")")
            attributes = {k: eval(v) for k, v in (o.split("=") for o in options.split())}  # noqa: S307
            nodes.append(
                helper.make_node(
                    kind,
                    [a.strip() for a in arguments.split(",")],
                    [o.strip() for o in output.split(",")],
                    output,
                    **attributes,
                )
            )
        read = {name for node in nodes for name in node.input}
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.size)]
        inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, held[n].shape) for n in self.inputs]
        graph = helper.make_graph(
            nodes,
            "text",
            inputs,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in self.outputs],
            [numpy_helper.from_array(v, n) for n, v in held.items() if n in read],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        helper.set_model_props(model, {"author": "someone"})
        return model


PAD = "pads=[1,1,1,1]"
CASES: dict[str, tuple[Text, Text, str]] = {
    "average pooling that does not count padding": (
        Text([
            f"p = AveragePool(x) kernel_shape=[3,3] {PAD} count_include_pad=1", f"q = Conv(x,w3) {PAD}", "y = Add(p,q)",
        ]),
        Text([f"p = AveragePool(x) kernel_shape=[3,3] {PAD}", f"q = Conv(x,w3) {PAD}", "y = Add(p,q)"]),
        "without counting padded pixels",
    ),
    "a bias, then padding": (
        Text([f"p = Conv(x,w1) {PAD}", "q = Conv(p,dw) group=4", f"r = Conv(x,w3) {PAD}", "y = Add(q,r)"]),
        Text(["p = Conv(x,w1,b)", f"q = Conv(p,w3b) {PAD}", f"r = Conv(x,w3) {PAD}", "y = Add(q,r)"]),
        "has a bias and is padded with zeros",
    ),
    "a non-linearity between": (
        Text(["p = Conv(x,w1)", f"q = Conv(p,w3b) {PAD}", f"r = Conv(x,w3) {PAD}", "y = Add(q,r)"]),
        Text(["p = Conv(x,w1)", "a = Relu(p)", f"q = Conv(a,w3b) {PAD}", f"r = Conv(x,w3) {PAD}", "y = Add(q,r)"]),
        "",
    ),
    "statistics of each batch": (
        Text([f"p = Conv(x,w3) {PAD}", "y = BatchNormalization(p,g,s,m,v)"]),
        Text([f"p = Conv(x,w3) {PAD}", "y, om, ov = BatchNormalization(p,g,s,m,v) training_mode=1"]),
        "training mode",
    ),
    "an addition that broadcasts": (
        Text([f"p = Conv(x,w3) {PAD}", "q = Conv(x,w1)", "y = Add(p,q)"]),
        Text([f"p = Conv(x,w3) {PAD}", "g1 = Conv(x,pool8)", "y = Add(p,g1)"]),
        "broadcasting",
    ),
    "a constant for each pixel": (
        Text([f"p = Conv(x,w3) {PAD}", "y = Add(p,channel)"]),
        Text([f"p = Conv(x,w3) {PAD}", "y = Add(p,pixel)"]),
        "not one number a channel",
    ),
    "a constant for each column": (
        Text([f"p = Conv(x,w3) {PAD}", "y = Mul(p,one)"]),
        Text([f"p = Conv(x,w3) {PAD}", "y = Mul(p,row)"]),
        "not one number a channel",
    ),
    "a weight that is an input": (
        Text([f"p = Conv(x,w3) {PAD}", "q = Conv(x,w1)", "y = Add(p,q)"]),
        Text([f"p = Conv(x,w3) {PAD}", "q = Conv(x,w1)", "y = Add(p,q)"], inputs=("w3",)),
        "an input of the graph",
    ),
    "padding by reflection": (
        Text(["p = Pad(x,pads)", "q = Conv(p,w3)", "r = Conv(x,w1)", "y = Add(q,r)"]),
        Text(["p = Pad(x,pads) mode='reflect'", "q = Conv(p,w3)", "r = Conv(x,w1)", "y = Add(q,r)"]),
        "in mode reflect",
    ),
    "padding with ones": (
        Text(["p = Pad(x,pads)", "q = Conv(p,w3)", "r = Conv(x,w1)", "y = Add(q,r)"]),
        Text(["p = Pad(x,pads,b0)", "q = Conv(p,w3)", "r = Conv(x,w1)", "y = Add(q,r)"]),
        "not zero",
    ),
    "dropout in training": (
        Text(["p = Conv(x,w1)", "d = Dropout(p)", "y = BatchNormalization(d,g,s,m,v)"]),
        Text(["p = Conv(x,w1)", "d = Dropout(p,half,true)", "y = BatchNormalization(d,g,s,m,v)"]),
        "training mode",
    ),
    "auto_pad with an open size": (
        Text(["p = Conv(x,w3) auto_pad='SAME_UPPER' strides=[2,2]", "y = BatchNormalization(p,g,s,m,v)"]),
        Text(["p = Conv(x,w3) auto_pad='SAME_UPPER' strides=[2,2]", "y = BatchNormalization(p,g,s,m,v)"],
             size=[1, C, "h", "w"]),
        "depends on the open input size",
    ),
}  # fmt: skip


def prepared(text: Text) -> onnx.ModelProto:
    model = text.model()
    extra = {"pool8": np.ones((C, C, 8, 8), np.float32) / 64, "b0": np.array(1, np.float32)}
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in extra.items() if n in read)
    return model


def run(model: onnx.ModelProto, seed: int = 0) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(seed)
    feeds = {
        i.name: random.standard_normal([d if isinstance(d, int) else 9 for d in i.shape]).astype(np.float32)
        for i in session.get_inputs()
    }
    return session.run(None, feeds)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for wanted, got in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(initial=1))


@pytest.mark.parametrize("name", CASES)
def test_one_fused_beside_one_refused(name: str) -> None:
    good, bad, why = CASES[name]
    model = prepared(good)
    fused, report = fuse_onnx(model)
    assert [n.op_type for n in fused.graph.node] == ["Conv"], report.refusals
    assert_same(model, fused)
    model = prepared(bad)
    fused, report = fuse_onnx(model)
    assert len(fused.graph.node) > 1
    if "train" not in why:
        assert_same(model, fused)
    assert any(why in refusal.why for refusal in report.refusals) or not why, report.refusals


def test_a_convolution_with_a_second_user_is_written() -> None:
    model = Text([f"p = Conv(x,w3) {PAD}", "q = Conv(x,w1)", "y = Add(p,q)", "z = Relu(p)"], outputs=("y", "z")).model()
    fused, _ = fuse_onnx(model)
    assert_same(model, fused)
    assert {"y", "z"} <= {name for node in fused.graph.node for name in node.output}
    model = Text([f"p = Conv(x,w3) {PAD}", "y = BatchNormalization(p,g,s,m,v)"], outputs=("y", "p")).model()
    fused, _ = fuse_onnx(model)
    assert_same(model, fused)


def test_a_weight_shared_by_two_nodes_keeps_its_numbers() -> None:
    lines = ["p = Conv(x,w1)", "q = BatchNormalization(p,g,s,m,v)", "a = Relu(q)", "c = Conv(a,w1)", "y = Relu(c)"]
    model = Text(lines).model()
    fused, _ = fuse_onnx(model)
    assert_same(model, fused)
    held = {t.name: t for t in fused.graph.initializer}
    assert np.array_equal(numpy_helper.to_array(held["w1"]), weights()["w1"])


def test_strides_that_differ_stay_apart() -> None:
    lines = ["p = Conv(x,w1) strides=[2,2]", "q = Conv(x,w1b) strides=[7,7] pads=[6,6,8,8]", "y = Add(p,q)"]
    model = Text(lines).model()
    fused, report = fuse_onnx(model)
    assert [n.op_type for n in fused.graph.node] == ["Conv", "Conv", "Add"], report
    assert ["cannot be added" in r.why and "strides differ" in r.why for r in report.refusals] == [True]
    assert_same(model, fused)


def test_branches_that_stay_for_their_price_say_so_once() -> None:
    """32 channels through 2 and back beside the input itself: one convolution would do fourteen times the work."""
    for width, is_fused in ((2, False), (32, True)):
        held = {"down": (width, 32, 3, 3), "up": (32, width, 1, 1), "side": (32, 1, 1, 1)}
        random = np.random.default_rng(0)
        nodes = [
            helper.make_node("Conv", ["x", "down"], ["narrow"], "narrow", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["narrow", "up"], ["wide"], "wide"),
            helper.make_node("Conv", ["x", "side"], ["scaled"], "scaled", group=32),
            helper.make_node("Add", ["wide", "scaled"], ["inner"], "inner"),
            helper.make_node("Add", ["inner", "x"], ["y"], "outer"),
        ]
        sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 32, 16, 16]) for n in "xy"]
        weights = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in held.items()]
        model = helper.make_model(
            helper.make_graph(nodes, "narrow", sides[:1], sides[1:], weights),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        fused, report = fuse_onnx(model)
        assert_same(model, fused)
        assert ([n.op_type for n in fused.graph.node] == ["Conv"]) == is_fused, report.refusals
        if not is_fused:
            (refusal,) = report.refusals
            assert refusal.where == "outer"
            assert refusal.why.startswith("not cheaper: 2 convolutions with 163,840 multiply-adds and")
            assert "1 convolution with 2,359,296 multiply-adds" in refusal.why


def test_sums_of_different_tensors_are_no_branches() -> None:
    """A residual network's addition and shortcut have nothing to join."""
    lines = ["p = Conv(x,w3)", "a = Relu(p)", "q = Conv(a,w1)", "r = Conv(x,w3b)", "y = Add(q,r)"]
    fused, report = fuse_onnx(Text(lines).model())
    assert [n.op_type for n in fused.graph.node] == ["Conv", "Relu", "Conv", "Conv", "Add"]
    assert [(r.where, r.kind, r.beside) for r in report.refusals] == [("y", "different tensors", ("r", "q"))]


def test_a_subgraph_and_what_it_captures_stay() -> None:
    model = Text([f"p = Conv(x,w3) {PAD}", "q = BatchNormalization(p,g,s,m,v)", "y = Add(q,x)"]).model()
    branch = [
        helper.make_graph(
            [helper.make_node(kind, ["p"], [f"out_{kind}"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"out_{kind}", TensorProto.FLOAT, [1, C, 8, 8])],
        )
        for kind in ("Relu", "Neg")
    ]
    model.graph.node.append(helper.make_node("If", ["true"], ["z"], then_branch=branch[0], else_branch=branch[1]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, C, 8, 8]))
    fused, _ = fuse_onnx(model)
    assert_same(model, fused)
    assert any(n.op_type == "If" for n in fused.graph.node)


def test_names_metadata_and_opset_are_kept() -> None:
    model = CASES["statistics of each batch"][0].model(opset=15)
    fused, _ = fuse_onnx(model)
    assert [p.value for p in fused.metadata_props] == ["someone"]
    assert fused.opset_import == model.opset_import
    assert (fused.graph.input, fused.graph.output) == (model.graph.input, model.graph.output)
    assert fused.graph.name == "text"


def test_a_number_that_does_not_fit_half_precision_is_refused() -> None:
    model = CASES["statistics of each batch"][0].model()
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(np.float16)
        if tensor.name in ("g", "w3"):
            value = np.full_like(value, 3e4)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    fused, report = fuse_onnx(model)
    assert fused.SerializeToString() == model.SerializeToString()
    assert any("not finite in float16" in refusal.why for refusal in report.refusals)


def test_external_data_is_read(tmp_path: Path) -> None:
    model = CASES["statistics of each batch"][0].model()
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    fused, _ = fuse_onnx(path)
    assert_same(CASES["statistics of each batch"][0].model(), fused)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(RepconvError, match="external data"):
        fuse_onnx(path)


@pytest.mark.parametrize("build", [lambda b: b[:0], lambda b: b[: len(b) // 2], lambda b: b"not a model " * len(b)])
def test_broken_files_are_refused_in_words(build: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build(CASES["statistics of each batch"][0].model().SerializeToString()))
    with pytest.raises(RepconvError, match=r"ONNX|model"):
        fuse_onnx(path)


def test_damaged_files_give_words_or_a_model(tmp_path: Path) -> None:
    """Three hundred files with a few bytes changed or the end cut off."""
    content = CASES["a bias, then padding"][0].model().SerializeToString()
    random = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for position in random.integers(0, len(content), random.integers(1, 6)):
            damaged[position] = int(random.integers(256))
        path.write_bytes(bytes(damaged[: random.integers(len(content) // 2, len(content) + 1)]))
        try:
            fuse_onnx(path)
        except RepconvError:
            refused += 1
    assert refused > 30


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RepconvError, match=r"nothing\.onnx"):
        fuse_onnx(tmp_path / "nothing.onnx")
