"""From a network to artefacts, each run in its own runtime; what disagrees is never written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from repconv import create_model, fuse, save
from repconv.errors import BuildError, FusionError, SourceError, VerificationError
from repconv.export import BuildSettings, Data, Preprocessing, Quantization, Span, export, to_onnx, to_openvino
from repconv.export.int8.quantize import quantize_onnx
from repconv.export.measuring import compare_with_source, probe_calls
from repconv.export.onnx.exporter import onnx_function
from repconv.export.runtimes import onnx as runtime
from repconv.export.subject import open_subject
from repconv.files.whole import sha256
from repconv.sources.checkpoint import Normalization

CLASSES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, randomise) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("source") / "m.pt"
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()
    save(
        model,
        path,
        class_names=CLASSES,
        input_shape=(3, 16, 16),
        normalization=Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
    )
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("images") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (48, 16, 16, 3), dtype=np.uint8), labels=rng.integers(0, 10, 48))
    return str(path)


def weights(path: Path) -> set[int]:
    return {t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) > 1}


ONNX = {
    "fp32": ({}, onnx.TensorProto.FLOAT),
    "fp16": ({"batch": Span(1, 2, 4)}, onnx.TensorProto.FLOAT16),
    "int8": ({"batch": Span.of(4)}, onnx.TensorProto.INT8),
}


@pytest.mark.newer
@pytest.mark.parametrize("precision", ONNX)
def test_onnx_of_every_precision_is_verified_in_onnxruntime(precision: str, checkpoint, images, tmp_path) -> None:
    more, kind = ONNX[precision]
    data = Data(calibrate=images, images=16) if precision == "int8" else Data(evaluate=images, images=16)
    settings = BuildSettings(precision=precision, **more)
    record = to_onnx(checkpoint, tmp_path / "m.onnx", settings, data)
    assert record.verified
    assert record.status == "verified"
    assert record.evidence is not None
    assert record.evidence.runtime.startswith("onnxruntime")
    assert record.evidence.top1_agreement is not None
    assert record.evidence.top1_agreement > 0.8
    assert record.evidence.accuracy_before is not None
    assert weights(tmp_path / "m.onnx") == {kind}
    assert record.outputs[-1]["sha256"] == sha256(tmp_path / "m.onnx")
    assert record.source["sha256"] == sha256(checkpoint)
    told = json.loads(json.dumps(record.to_dict()))
    assert told["settings"]["precision"] == precision
    assert told["evidence"]["tolerance"]["reason"]
    assert told["evidence"]["labelled"] == 16, "the noise at the ends of a range has no labels"
    before, after = told["fusion"]["convolutions"]
    assert before > after
    if precision == "int8":
        layers = told["details"]["quantization"]["layers"]
        assert [layer["alone"] for layer in layers] == sorted((la["alone"] for la in layers), reverse=True)
        assert len(layers) == after + 1, "every convolution and the linear layer"


@pytest.mark.slow
def test_ends_of_ranges_are_run_too(checkpoint, tmp_path) -> None:
    settings = BuildSettings(batch=Span(1, 2, 5), image=(Span(8, 16, 20), Span(8, 16, 24)))
    record = to_onnx(checkpoint, tmp_path / "m.onnx", settings)
    assert record.evidence is not None
    shapes = {c.shape for c in record.evidence.comparisons}
    assert shapes == {(2, 3, 16, 16), (1, 3, 8, 8), (5, 3, 20, 24)}


@pytest.mark.slow
def test_pixels_go_in_where_preprocessing_is_inside(checkpoint, images, tmp_path) -> None:
    pre = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), uint8=True, bgr=True)
    record = to_onnx(checkpoint, tmp_path / "m.onnx", BuildSettings(preprocessing=pre), Data(evaluate=images, images=4))
    assert record.verified
    assert record.details["preprocessing_folded"] == ["scale", "order"]
    value = onnx.load(tmp_path / "m.onnx").graph.input[0]
    assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.fixture(scope="module")
def multi(checkpoint, tmp_path_factory) -> Path:
    """The same network exported with its branches, the batch open."""
    out = tmp_path_factory.mktemp("multi") / "multi.onnx"
    record = to_onnx(checkpoint, out, BuildSettings(fuse=False, batch=Span(1, 2, 4)))
    assert record.fusion is None
    return out


@pytest.mark.slow
def test_without_fusing_the_branches_stay(multi) -> None:
    assert sum(node.op_type == "Conv" for node in onnx.load(multi).graph.node) > 20


@pytest.mark.slow
def test_an_onnx_file_of_anybody_is_fused_and_exported(multi, tmp_path) -> None:
    record = to_onnx(multi, tmp_path / "m.onnx", BuildSettings(batch=Span.of(2)))
    assert record.verified
    assert record.fusion is not None
    before, after = record.fusion["convolutions"]
    assert before > 3 * after
    dims = [d.dim_value for d in onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim]
    assert dims == [2, 3, 16, 16]
    with pytest.raises(SourceError, match="which it keeps; leave out opset 17"):
        to_onnx(multi, tmp_path / "n.onnx", BuildSettings(opset=17))
    with pytest.raises(SourceError, match=r"fixed input of 2x3x16x16: a batch of 2, not 1; give --batch 2"):
        to_onnx(tmp_path / "m.onnx", tmp_path / "n.onnx", BuildSettings())


def test_a_module_in_training_mode_is_refused(tmp_path) -> None:
    with pytest.raises(FusionError, match=r"call model.eval\(\) first"):
        to_onnx(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "m.onnx", BuildSettings(image=(Span.of(8), Span.of(8))))


@pytest.mark.slow
def test_a_wrong_artefact_is_not_written_and_its_worst_call_is_dumped(checkpoint, tmp_path, monkeypatch) -> None:
    whole = runtime.loaded

    def damaged(model, precision):
        weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
        values = numpy_helper.to_array(weight).copy()
        values[0] += 0.5 * np.abs(values).max()
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        return whole(model, precision)

    monkeypatch.setattr(runtime, "loaded", damaged)
    out, dump = tmp_path / "m.onnx", tmp_path / "worst.npz"
    with pytest.raises(VerificationError, match="NOT equal in onnxruntime"):
        export(checkpoint, "onnx", out, dump_on_failure=dump)
    assert not out.exists()
    with np.load(dump) as held:
        assert held["given"].shape == (1, 3, 16, 16)
        assert np.abs(held["expected"] - held["got"]).max() > 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_passes(value: float, checkpoint) -> None:
    settings = BuildSettings(tolerance=1e9)
    subject = open_subject(checkpoint, settings)
    wrong = compare_with_source(
        subject,
        lambda x: (torch.full((len(x), 10), value),),
        probe_calls(subject, settings, None),
        settings,
        runtime="none",
        origin="noise",
    )
    assert not wrong.passed
    assert not wrong.finite
    assert json.loads(json.dumps(wrong.to_dict()))["max_error"] is None


def test_fp16_that_overflows_names_the_tensor(tmp_path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    with torch.no_grad():
        network[0].weight.mul_(1e5)
    settings = BuildSettings(precision="fp16", image=(Span.of(8), Span.of(8)))
    with pytest.raises(VerificationError, match=r"fp16 ends at 65504 and cannot hold .*reaches"):
        to_onnx(network, tmp_path / "m.onnx", settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_equalisation_mends_one_scale_a_tensor(symmetric: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    with torch.no_grad():
        network[0].weight.mul_(10 ** torch.linspace(-2, 1, 16)[:, None, None, None])
        network[2].weight.div_(10 ** torch.linspace(-2, 1, 16)[None, :, None, None])
    subject = open_subject(network, BuildSettings(image=(Span.of(12), Span.of(12))))
    calibration = [torch.randn(1, 3, 12, 12) for _ in range(8)]
    wanted = torch.cat([subject.reference(x)[0] for x in calibration])
    errors = {}
    for per_channel in (True, False):
        for equalised in (True, False):
            asked = Quantization(per_channel, equalised)
            done = quantize_onnx(subject.model, calibration, asked, symmetric=symmetric, int32_bias=True)
            run = onnx_function(done.model.SerializeToString(), exact_integers=True)
            got = torch.cat([run(x) for x in calibration])
            errors[per_channel, equalised] = float((got - wanted).norm() / wanted.norm())
            assert done.equalised == int(equalised)
            scales = {t.name: tuple(t.dims) for t in done.model.graph.initializer if t.name.endswith("weight_scale")}
            assert set(scales.values()) == ({(16,), (4,)} if per_channel else {()})
    assert errors[False, True] < 0.3 * errors[False, False]
    assert errors[True, True] < 0.3 * errors[True, False], "activations have one scale a tensor in any case"


OPENVINO = {"fp32": ("f32", {}), "fp16": ("f16", {"batch": Span(1, 2, 4)}), "int8": ("f32", {"batch": Span.of(4)})}


@pytest.mark.slow
@pytest.mark.parametrize("precision", OPENVINO)
def test_openvino_is_verified_with_the_precision_said(precision: str, checkpoint, images, tmp_path) -> None:
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    if precision == "int8":
        pytest.importorskip("nncf", reason="nncf is not installed")
    hint, more = OPENVINO[precision]
    data = Data(calibrate=images, images=16) if precision == "int8" else None
    record = to_openvino(checkpoint, tmp_path / "m.xml", BuildSettings(precision=precision, **more), data)
    assert record.verified
    assert record.observed["asked_precision"] == hint
    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    expected = {"f16": "float16" if "FP16" in able else "float32", "f32": "float32"}[hint]
    assert np.dtype(expected) == np.dtype({"f32": "float32", "f16": "float16"}[record.observed["inference_precision"]])
    assert [Path(str(o["path"])).suffix for o in record.outputs] == [".bin", ".xml"]
    again = ov.Core().read_model(str(tmp_path / "m.xml"))
    assert again.get_rt_info(["repconv", "inference_precision"]).astype(str) == hint
    stored = {c.get_element_type().get_type_name() for c in again.get_ops() if c.get_type_name() == "Constant"}
    assert {"fp32": "f32", "fp16": "f16", "int8": "i8"}[precision] in stored


@pytest.mark.slow
def test_bf16_onnx_is_run_by_openvino_since_onnxruntime_cannot(checkpoint, tmp_path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    record = to_onnx(checkpoint, tmp_path / "m.onnx", BuildSettings(precision="bf16"))
    assert record.verified
    assert "OpenVINO" in record.runtime
    assert weights(tmp_path / "m.onnx") == {onnx.TensorProto.BFLOAT16}


@pytest.mark.slow
def test_bf16_onnx_without_openvino_is_built_not_run(checkpoint, tmp_path, monkeypatch) -> None:
    from repconv.errors import BackendError

    def missing(*_):
        raise BackendError("OpenVINO is not installed")

    monkeypatch.setattr("repconv.export.runtimes.openvino.compile_openvino", missing)
    settings = BuildSettings(precision="bf16")
    with pytest.raises(VerificationError, match="built, not run"):
        export(checkpoint, "onnx", tmp_path / "m.onnx", settings, require_verified=True)
    assert not list(tmp_path.iterdir())
    record = export(checkpoint, "onnx", tmp_path / "m.onnx", settings)
    assert (record.status, record.verified) == ("built, not run", False)


@pytest.mark.slow
def test_an_image_size_the_code_depends_on_cannot_stay_open(tmp_path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(len(x), 3 * 64).relu()

    settings = BuildSettings(image=(Span(8, 8, 16), Span.of(8)))
    with pytest.raises((BuildError, SourceError), match="cannot"):
        to_onnx(Fixed().eval(), tmp_path / "m.onnx", settings)


@pytest.mark.slow
def test_a_program_is_exported_at_the_size_it_was_saved_with(tmp_path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    torch.export.save(torch.export.export(network, (torch.randn(2, 3, 8, 8),)), tmp_path / "m.pt2")
    record = to_onnx(tmp_path / "m.pt2", tmp_path / "m.onnx", BuildSettings(batch=Span.of(2)))
    assert record.verified
    assert record.input_shape == "2x3x8x8"
    with pytest.raises((BuildError, SourceError)):
        to_onnx(tmp_path / "m.pt2", tmp_path / "n.onnx", BuildSettings(batch=Span.of(3)))
    assert not (tmp_path / "n.onnx").exists()


def test_a_float64_network_is_folded_before_it_is_cast_once(tmp_path, randomise) -> None:
    torch.manual_seed(0)
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():  # digits that float32 has not
            parameter.mul_(1 + 1e-9 * torch.rand_like(parameter))
    to_onnx(model, tmp_path / "m.onnx", BuildSettings(image=(Span.of(16), Span.of(16))))
    written = {t.tobytes() for t in map(numpy_helper.to_array, onnx.load(tmp_path / "m.onnx").graph.initializer)}
    fused, _ = fuse(model, prove=False)
    folded = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert folded
    for conv in folded:
        assert conv.weight.detach().float().numpy().tobytes() in written
        assert conv.bias.detach().float().numpy().tobytes() in written
