"""Models that ask for more than there is, or are none: said in words before anything is computed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from repconv import FusionError, SourceError
from repconv.export.artefacts.artefact import artefact_of
from repconv.export.comparing.compare import inputs_for
from repconv.export.onnx.summary import summarise_onnx
from repconv.files.onnx import complaint, longest_run, model_session, read_onnx, run_session
from repconv.graph import foresee_onnx, fuse_onnx
from repconv.graph.onnx.facts import Facts
from repconv.graph.onnx.proof.float64 import evaluate
from repconv.graph.planning import plan
from repconv.limits import LONGEST_LOOP_S, LONGEST_RUN_S, TooLongError, at_most
from repconv.sources.source import Source

Change = Callable[[onnx.ModelProto], None]


def number(name: str, value: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value), name)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)


def model(
    nodes: list[onnx.NodeProto], held: list[onnx.TensorProto], size: tuple[int, ...] = (1, 3, 8, 8)
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, size)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def branches(size: tuple[int, ...] = (1, 3, 8, 8), **attributes: object) -> onnx.ModelProto:
    """A 3x3 convolution beside a 1x1."""
    nodes = [
        helper.make_node("Conv", ["x", "w3"], ["a"], **{"pads": [1] * 4, **attributes}),
        helper.make_node("Conv", ["x", "w1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return model(nodes, [weight("w3", 3, 3, 3, 3), weight("w1", 3, 3, 1, 1)], size)


def input_type(kind: int) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.elem_type = kind

    return change


NONE: dict[str, tuple[Change, str]] = {
    "no outputs": (lambda m: m.graph.ClearField("output"), "no outputs"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "no nodes"),
    "input of an unknown type": (input_type(99), "x is of element type 99, which onnx"),
    "negative type": (input_type(-3), "x is of element type -3"),
    "weight of an unknown type": (lambda m: setattr(m.graph.initializer[0], "data_type", 77), "w3 is of element type"),
    "cyclic": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "topologically sorted"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_model_is_said(name, tmp_path):
    change, words = NONE[name]
    proto = branches()
    change(proto)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(SourceError, match=words):
        read_onnx(tmp_path / "m.onnx")
    with pytest.raises(FusionError, match=words):
        fuse_onnx(proto)


@pytest.mark.parametrize("place", ["NODE", "PRODUCER", "KEY", "VALUE", "y"])
def test_names_that_are_no_text_are_said(place):
    proto = branches()
    proto.graph.node[0].name, proto.producer_name = "NODE", "PRODUCER"
    helper.set_model_props(proto, {"KEY": "VALUE"})
    known = proto.SerializeToString()
    old = place.encode() if len(place) > 1 else b"\n\x01y"
    content = known.replace(old, old[:-1] + b"\xff")
    assert content != known
    read = onnx.ModelProto()
    read.ParseFromString(content)
    assert "is no UTF-8 text" in complaint(read)


def test_an_output_need_not_declare_its_shape():
    proto = branches()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    result, report = fuse_onnx(proto)
    assert len(report.layers) == 1
    assert not result.graph.output[0].type.tensor_type.HasField("shape")


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"group": 7}, "group 7, a weight of 3x3x3x3 and reads 3 channels"),
        ({"group": 0}, "group 0"),
        ({"pads": [10**9] * 4}, "a would be 1x3x2000000006x2000000006, more numbers than any machine holds"),
    ],
)
def test_a_convolution_that_no_runtime_runs_is_said(attributes, words):
    with pytest.raises(FusionError, match=words):
        foresee_onnx(branches(**attributes))


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_a_bias_of_another_shape_stays_in_words(kind):
    """As torch's newer exporter writes it of every 3-D convolution without one: [channels, 2], which nothing runs."""
    nodes = [
        helper.make_node("Conv", ["x", "w3"], ["a"], pads=[1] * 4),
        helper.make_node(kind, ["a", "w1", "wide"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    wide = number("wide", np.zeros((3, 2), np.float32))
    fused, report = fuse_onnx(model(nodes, [weight("w3", 3, 3, 3, 3), weight("w1", 3, 3, 1, 1), wide]), prove=False)
    assert [node.op_type for node in fused.graph.node] == ["Conv", kind, "Conv", "Add"]
    assert any("a bias of shape [3, 2] for 3 channels" in refusal.why for refusal in report.refusals)


def test_axes_in_an_order_of_axes_that_are_not_there_stay_in_words():
    """As torch's older exporter writes of `movedim` twice."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 49, 2, 3]),
        helper.make_node("Conv", ["b", "w1"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0]),
        helper.make_node("Conv", ["d", "w1"], ["y"]),
    ]
    proto = model(nodes, [weight("w1", 3, 3, 1, 1)])
    assert list(fuse_onnx(proto, prove=False)[0].graph.node) == list(proto.graph.node)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(("shape", "groups"), [((), 1), ((3,), 1), ((3, 3, 1, 1), 0), ((3, 3, 1, 1), -3)])
def test_a_weight_that_is_no_kernel_stays_and_groups_that_are_none_are_refused(kind, shape, groups):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node(kind, ["a", "w"], ["b"], group=groups),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    proto = model(nodes, [number("w", np.ones(shape, np.float32))])
    if groups < 1:
        with pytest.raises(FusionError, match=f"the convolution b has group {groups}, a weight of 3x3x1x1"):
            fuse_onnx(proto, prove=False)
        return
    assert list(fuse_onnx(proto, prove=False)[0].graph.node) == list(proto.graph.node)


@pytest.mark.parametrize("size", [(-4, 3, 8, 8), (1, 3, -8, 8), (1, 3, 0, 8), (1, 3, 2**14, 2**14)])
def test_an_input_that_cannot_be_made_is_said(size):
    artefact = artefact_of(Source(name="m.onnx", path=None, sha256=None, held=branches(size)))
    with pytest.raises(SourceError, match="the input x is declared as"):
        inputs_for(artefact, artefact)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.STRING, TensorProto.INT4])
def test_types_that_no_array_shares_are_named_and_fuse(kind):
    proto = branches()
    proto.graph.node[0].input[0] = proto.graph.node[1].input[0] = "f"
    proto.graph.node.insert(0, helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT))
    input_type(kind)(proto)
    assert summarise_onnx(proto).inputs[0].startswith("x: ")
    with pytest.raises(SourceError, match=r"input x is (bfloat16|float8|string|int4).*, which no array holds"):
        _ = Source(name="m.onnx", path=None, sha256=None, held=proto).inputs
    if kind == TensorProto.BFLOAT16:
        _, report = fuse_onnx(proto)
        assert len(report.layers) == 1
        assert any("onnxruntime" in refusal.why for refusal in report.unmeasured)


def mean_of(*made: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes that make `c`, a constant, and add its mean to the input."""
    return [
        *made,
        helper.make_node("ReduceMean", ["c"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]


ONES = helper.make_tensor("one", TensorProto.FLOAT, [1], [1])
TOO_MUCH = {
    "filled": (mean_of(helper.make_node("ConstantOfShape", ["s"], ["c"], value=ONES)), {"s": [2**33]}),
    "range": (
        mean_of(
            helper.make_node("Range", ["a", "b", "d"], ["r"]),
            helper.make_node("Cast", ["r"], ["c"], to=TensorProto.FLOAT),
        ),
        {"a": 0, "b": 10**10, "d": 1},
    ),
    "product": (
        mean_of(
            helper.make_node("ConstantOfShape", ["s"], ["o"], value=ONES), helper.make_node("MatMul", ["o", "o"], ["c"])
        ),
        {"s": [4096, 4096]},
    ),
    "convolution": (
        mean_of(
            helper.make_node("ConstantOfShape", ["s"], ["o"], value=ONES),
            helper.make_node("Conv", ["o", "w"], ["c"], pads=[1] * 4),
        ),
        {"s": [1, 64, 1024, 1024]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_constant_too_large_to_compute_is_left_to_the_runtime(name):
    nodes, numbers = TOO_MUCH[name]
    held = [number(key, np.array(value, np.int64)) for key, value in numbers.items()]
    facts = Facts(model(nodes, [*held, weight("w", 64, 64, 3, 3)]))
    assert not facts.is_constant("c")


def test_all_constants_together_have_one_budget(monkeypatch):
    monkeypatch.setattr("repconv.graph.onnx.evaluator.constants.ALL_CONSTANTS", 100_000)
    nodes = [helper.make_node("ConstantOfShape", ["s"], [f"c{i}"], value=ONES) for i in range(9)]
    facts = Facts(model([*nodes, *mean_of(helper.make_node("Sum", [f"c{i}" for i in range(9)], ["c"]))],
                        [number("s", np.array([10_000], np.int64))]))  # fmt: skip
    assert [facts.is_constant(f"c{i}") for i in range(9)] == [True] * 3 + [False] * 6


def endless() -> onnx.ModelProto:
    """A Loop whose condition stays true."""
    true = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    image = [1, 3, 8, 8]
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            true,
            helper.make_tensor_value_info("v", TensorProto.FLOAT, image),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, image),
        ],
    )
    return model([helper.make_node("Loop", ["", "t", "x"], ["y"], body=body)], [number("t", True)])


def test_a_loop_without_an_end_is_ended():
    proto, x = endless(), np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(TooLongError, match=r"ended after 0\.2 s: a Loop"):
        run_session(model_session(proto, "m"), ["y"], {"x": x}, 0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repconv.files.onnx.LONGEST_LOOP_S", 0.2)
        with pytest.raises(FusionError, match=r"ended after 0\.2 s"):
            evaluate(proto, {"x": x}, ["y"])


def in_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its nodes in a function, which it calls."""
    nodes = [helper.make_node("Constant", [], ["t"], value=proto.graph.initializer[0]), *proto.graph.node]
    proto.functions.append(helper.make_function("own", "F", ["x"], ["y"], nodes, proto.opset_import))
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.append(helper.make_node("F", ["x"], ["y"], domain="own"))
    proto.opset_import.add(domain="own", version=1)
    return proto


def in_branch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its nodes in both branches of an If."""
    (loop,) = proto.graph.node
    loop.output[0] = "inner"
    branch = helper.make_graph(
        [loop], "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 3, 8, 8])]
    )
    del proto.graph.node[:]
    proto.graph.node.append(helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch))
    return proto


@pytest.mark.parametrize("put", [in_function, in_branch, lambda proto: in_function(in_branch(proto))])
def test_a_loop_without_an_end_is_ended_wherever_it_is(put, monkeypatch):
    proto, x = put(endless()), np.zeros((1, 3, 8, 8), np.float32)
    assert complaint(proto) == ""
    assert longest_run(proto) == LONGEST_LOOP_S
    assert longest_run(branches()) == LONGEST_RUN_S
    monkeypatch.setattr("repconv.files.onnx.LONGEST_LOOP_S", 0.2)
    with pytest.raises(TooLongError, match=r"ended after 0\.2 s: a Loop"):
        run_session(model_session(proto, "m"), ["y"], {"x": x}, longest_run(proto))
    with pytest.raises(FusionError, match=r"ended after 0\.2 s"):
        evaluate(proto, {"x": x}, ["y"])


def doubling(levels: int) -> onnx.ModelProto:
    """A call of a function that calls another twice, and so on: 2 ** levels nodes in all."""
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]

    def function(level: int) -> onnx.FunctionProto:
        inner = [
            helper.make_node(f"F{level - 1}", ["x"], ["h"], domain="mine"),
            helper.make_node(f"F{level - 1}", ["h"], ["y"], domain="mine"),
        ]
        return helper.make_function(
            "mine", f"F{level}", ["x"], ["y"], inner if level else [helper.make_node("Relu", ["x"], ["y"])], sets
        )

    result = model([helper.make_node(f"F{levels}", ["x"], ["y"], domain="mine")], [])
    result.functions.extend(map(function, range(levels + 1)))
    result.opset_import.append(sets[1])
    return result


def test_functions_that_call_functions_are_counted_before_they_are_run(tmp_path):
    assert complaint(doubling(8)) == ""
    onnx.save(doubling(60), str(tmp_path / "m.onnx"))
    with pytest.raises(SourceError, match="call one another so often that it has more than 65,536 nodes"):
        read_onnx(tmp_path / "m.onnx")


def test_a_signal_ends_a_run_at_once():
    session = model_session(endless(), "m")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever ran in this process before
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_session(session, ["y"], {"x": np.zeros((1, 3, 8, 8), np.float32)}, 20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 10


def test_a_function_that_calls_itself_is_ended():
    proto = in_function(branches())
    proto.functions[0].node.add(op_type="F", domain="own", input=["y"], output=["z"])
    proto.functions[0].output[0] = "z"
    proto.functions[0].opset_import.add(domain="own", version=1)
    with pytest.raises((SourceError, FusionError)):
        fuse_onnx(proto)


def test_what_is_within_its_time_is_not_ended():
    with at_most(100):
        evaluate(branches(), {"x": np.zeros((1, 3, 8, 8), np.float32)}, ["y"])


def test_a_long_chain_is_planned_within_a_budget_and_says_so(monkeypatch):
    def kinds(count):
        names = ["x", *(f"t{i}" for i in range(1, count)), "y"]
        nodes = [helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[1] * 4) for i in range(count)]
        found = foresee_onnx(model(nodes, [weight(f"w{i}", 3, 3, 3, 3) for i in range(count)])).refusals
        return {(refusal.kind, "a region of 40 steps" in refusal.why) for refusal in found}

    assert kinds(40) == {("padding between", False)}
    monkeypatch.setattr(plan, "PATIENCE", 20)
    monkeypatch.setattr(plan, "PATIENCE_A_STEP", 0)
    assert ("too large to try", True) in kinds(40)
    assert kinds(3) == {("padding between", False)}


def test_pads_of_a_window_with_wide_dilations_take_no_memory():
    proto = branches(dilations=[3000] * 2, pads=[3000] * 4)
    x = np.ones((1, 3, 8, 8), np.float32)
    (found,) = evaluate(proto, {"x": x}, ["y"])
    given = {t.name: torch.from_numpy(numpy_helper.to_array(t).astype(np.float64)) for t in proto.graph.initializer}
    wanted = torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8).double(), given["w3"][..., 1:2, 1:2] + given["w1"])
    torch.testing.assert_close(torch.from_numpy(np.array(found)), wanted)
