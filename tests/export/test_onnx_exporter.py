"""ONNX files: of the opset asked for, single-path, checked, and equal to the unfused network in onnxruntime."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from repconv import BuildError, create_model, fuse
from repconv.export.onnx.exporter import OPSETS, onnx_function, to_onnx, verify_onnx


@pytest.fixture(scope="module")
def pair(randomise):
    torch.manual_seed(0)
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()
    return model, fuse(model)[0]


SLOW_EXPORTS = [(18, True), (19, False), (24, True), (26, False)]  # through the newer exporter, seconds each


@pytest.mark.parametrize(
    ("opset", "dynamic_batch"),
    [(13, False), (17, True), *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW_EXPORTS)],
)
def test_what_was_asked_is_what_was_written(opset, dynamic_batch, pair):
    model, fused = pair
    x = torch.randn(1, 3, 8, 8)
    proto = to_onnx(fused, x, opset=opset, dynamic_batch=dynamic_batch, metadata={"key": "value"})
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import if not o.domain] == [("", opset)]
    assert [i.name for i in proto.graph.input] == ["input"]
    assert [o.name for o in proto.graph.output] == ["output"]
    assert {p.key: p.value for p in proto.metadata_props} == {"key": "value"}
    convolutions = sum(isinstance(m, nn.Conv2d) for m in fused.modules())
    assert sum(n.op_type == "Conv" for n in proto.graph.node) == convolutions
    assert not any(n.op_type == "BatchNormalization" for n in proto.graph.node)
    content = proto.SerializeToString()
    inputs = [x, torch.randn(3, 3, 8, 8)] if dynamic_batch else [x]
    agreement = verify_onnx(content, model, inputs)
    assert agreement.passed, agreement.verdict
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    assert isinstance(batch, str) == dynamic_batch
    if not dynamic_batch:
        assert batch == 1


def test_a_fused_network_and_its_plain_one_export_to_identical_graphs():
    plain = create_model("resnet18", width=4, blocks=(1, 1)).eval()
    multi = create_model("irep_resnet18", width=4, blocks=(1, 1)).eval()
    graphs = []
    for model in (plain, multi):
        proto = to_onnx(fuse(model)[0], torch.zeros(1, 3, 8, 8), opset=17)
        graphs.append([(n.op_type, [a.SerializeToString() for a in n.attribute]) for n in proto.graph.node])
    assert graphs[0] == graphs[1]


def test_repeated_exports_give_identical_bytes(pair):
    _, fused = pair
    x = torch.zeros(1, 3, 8, 8)
    assert to_onnx(fused, x, opset=17).SerializeToString() == to_onnx(fused, x, opset=17).SerializeToString()


def test_a_wrong_file_is_caught_by_verification(pair):
    model, fused = pair
    proto = to_onnx(fused, torch.zeros(1, 3, 8, 8), opset=17)
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.1 * np.abs(values).max()
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    assert not verify_onnx(proto.SerializeToString(), model, [torch.randn(1, 3, 8, 8)]).passed


def test_opsets_out_of_range_are_refused(pair):
    for opset in (OPSETS.start - 1, OPSETS.stop):
        with pytest.raises(BuildError, match=f"opset {opset} is not supported; choose 13 to 26"):
            to_onnx(pair[1], torch.zeros(1, 3, 8, 8), opset=opset)


def test_bytes_onnxruntime_cannot_load_are_refused_in_words():
    with pytest.raises(BuildError, match="cannot load the model"):
        onnx_function(b"not a model")


def test_no_note_of_the_machine_is_left_in_the_file(pair):
    content = to_onnx(pair[1], torch.zeros(1, 3, 8, 8), opset=17).SerializeToString()
    assert b"site-packages" not in content
    assert json.dumps(str(onnx.__file__)).encode() not in content
