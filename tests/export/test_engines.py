"""Engines of TensorRT-RTX, built with no GPU and looked into; of TensorRT, where there is one."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import NoneType

import onnx
import pytest
import torch

from repconv import create_model, save
from repconv.benchmarks.studies.gpu.engines import capability_here
from repconv.benchmarks.studies.gpu.engines import engine as engine_on_gpu
from repconv.errors import BackendError, BuildError, SourceError, VerificationError
from repconv.export import BuildSettings, Data, Span, export, to_tensorrt
from repconv.export.engines import builder
from repconv.export.engines.layers import EngineLayer, convolutions, observed, parse_inspected, parse_log
from repconv.export.runtimes import engine_runtime as runtime
from repconv.export.targets import TARGETS

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
CHECKPOINT = Path(__file__).resolve().parents[2] / "repconv" / "assets" / "irep_resnet_cifar10.pt"
SHEET = CHECKPOINT.with_name("cifar10_test_sheet.npz")
FOR = ("SM86", "SM89")


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Path:
    """The shipped network, fp16, dynamic batch."""
    out = tmp_path_factory.mktemp("engine") / "m.engine"
    settings = BuildSettings(precision="fp16", batch=Span(1, 4, 16), capabilities=FOR)
    to_tensorrt(CHECKPOINT, out, settings, rtx=True)
    return out


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(("precision", "datatype"), [("fp32", "Float"), ("fp16", "Half"), ("int8", "Int8")])
def test_a_fused_engine_is_single_path_and_of_the_precision(precision: str, datatype: str, tmp_path) -> None:
    data = Data(calibrate=str(SHEET), calibration_images=8, images=2) if precision == "int8" else None
    settings = BuildSettings(precision=precision, capabilities=FOR)
    record = to_tensorrt(CHECKPOINT, tmp_path / "m.engine", settings, data, rtx=True)
    assert record.fusion is not None
    assert record.observed["convolutions"] == f"15 {datatype}"
    assert record.observed["precision"] == precision
    layers = [EngineLayer(**layer) for layer in record.details["layers"]]
    own = [layer for layer in layers if layer.kind == "correlation"]
    computed = [[node for node in layer.nodes if re.fullmatch(r"node_conv2d(_\d+)?", node)] for layer in own]
    assert len(own) == record.fusion["convolutions"][1] == 15
    assert all(len(nodes) == 1 for nodes in computed), "one convolution a layer"
    if not torch.cuda.is_available():
        assert (record.status, record.verified) == ("built, not run", False)


@pytest.mark.slow
@needs_rtx
def test_an_unfused_engine_shows_its_branches(tmp_path) -> None:
    torch.manual_seed(0)
    model = create_model("repvgg_resnet18", width=8, blocks=(1,)).eval()
    save(model, tmp_path / "m.pt", input_shape=(3, 16, 16))
    counts = {}
    for fuse in (True, False):
        settings = BuildSettings(capabilities=FOR, fuse=fuse)
        record = to_tensorrt(tmp_path / "m.pt", tmp_path / "m.engine", settings, rtx=True)
        counts[fuse] = int(record.observed["convolutions"].split()[0])
    assert counts == {True: 3, False: 6}, "a block of 3x3, 1x1 and skip is two convolutions more or less"


@pytest.mark.slow
@pytest.mark.exhaustive
@needs_rtx
def test_engines_built_again_are_byte_identical(engine, tmp_path, monkeypatch) -> None:
    """Of an open batch, too, for which TensorRT-RTX 1.7 by itself gives one of two engines, whatever surrounds it."""
    for number, batch in enumerate([Span.of(1), Span.of(1), *3 * [Span(1, 4, 16)]]):
        monkeypatch.setenv("REPCONV_OF_TEST", "x" * 1000 * number)
        monkeypatch.setenv("MALLOC_ARENA_MAX", str(1 + number))
        settings = BuildSettings(precision="fp16", batch=batch, capabilities=FOR)
        record = to_tensorrt(CHECKPOINT, tmp_path / f"{number}.engine", settings, rtx=True)
        if not record.details["addresses_fixed"]:
            pytest.skip("this system does not let a process turn address randomisation off")
    built = [(tmp_path / f"{number}.engine").read_bytes() for number in range(5)]
    assert built[0] == built[1]
    assert built[2] == built[3] == built[4] == engine.read_bytes()


@needs_rtx
def test_the_json_beside_an_engine_says_what_it_is(engine) -> None:
    told = json.loads(runtime.sidecar_of(engine).read_text())
    assert told["schema"] == "repconv.engine/1"
    assert told["capabilities"] == list(FOR)
    assert told["precision"] == told["observed"]["precision"] == "fp16"
    assert told["batch"] == "1:4:16"
    shapes = {t["name"]: (t["dtype"], t["shape"]) for t in told["tensors"]}
    assert shapes == {"input": ("HALF", [-1, 3, 32, 32]), "output": ("HALF", [-1, 10])}
    assert told["source_sha256"]
    assert runtime.check_sidecar(engine)["sha256"] == told["sha256"]


TAMPERED = {
    "another file": ({"sha256": "0" * 64}, "is not the file m.engine.json describes"),
    "another version": ({"version": "1.0.0"}, "was built by tensorrt-rtx 1.0.0, here is"),
    "another schema": ({"schema": "repconv.engine/9"}, "rebuild the engine"),
}


@needs_rtx
@pytest.mark.parametrize("case", TAMPERED)
def test_an_engine_that_does_not_fit_is_refused_with_what_to_rebuild(case: str, engine, tmp_path) -> None:
    change, words = TAMPERED[case]
    copied = tmp_path / "m.engine"
    copied.write_bytes(engine.read_bytes())
    told = json.loads(runtime.sidecar_of(engine).read_text())
    runtime.sidecar_of(copied).write_text(json.dumps({**told, **change}))
    with pytest.raises(SourceError, match=words):
        runtime.check_sidecar(copied)
    runtime.sidecar_of(copied).unlink()
    with pytest.raises(SourceError, match=r"has no m.engine.json beside it"):
        runtime.check_sidecar(copied)


@pytest.mark.slow
@needs_rtx
def test_a_sidecar_that_lacks_something_or_holds_another_type_is_refused_by_the_keys_name(engine, tmp_path) -> None:
    copied = tmp_path / "m.engine"
    copied.write_bytes(engine.read_bytes())
    told = json.loads(runtime.sidecar_of(engine).read_text())
    again = r".*: repconv export SOURCE --to .*tensorrt-rtx -o m\.engine$"

    def refused(content: dict, words: str) -> None:
        runtime.sidecar_of(copied).write_text(json.dumps(content))
        with pytest.raises(SourceError, match=rf"m\.engine\.json{words}{again}"):
            runtime.check_sidecar(copied)

    nullable = {"gpu": {dict, NoneType}, "source_sha256": {str, NoneType}, "not_run": {str, NoneType}}
    for key in told.keys() - {"schema"}:
        refused({k: v for k, v in told.items() if k != key}, f" lacks '{key}' ")
        for other in ("text", 1, 0.5, True, None, [], {}):
            if type(other) not in nullable.get(key, {type(told[key])}):
                refused({**told, key: other}, f": '{key}' should be ")
    refused({**told, "target": "openvino"}, ": 'target' should be tensorrt or tensorrt-rtx, it is 'openvino'")
    refused({**told, "capabilities": [86]}, ": 'capabilities' should be a list of texts")
    for broken in ([], ["input"], [{"name": "input", "dtype": "HALF"}]):
        refused({**told, "tensors": broken}, ": 'tensors' should hold objects of name, dtype and shape")
    runtime.sidecar_of(copied).write_text(json.dumps(told))
    assert runtime.check_sidecar(copied) == told


@needs_rtx
def test_an_engine_for_another_gpu_is_refused(engine, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "gpu_here", lambda: {"name": "H100", "capability": "SM90"})
    with pytest.raises(SourceError, match=r"was built for SM86, SM89, this GPU is SM90; rebuild it: .* --sm SM90"):
        runtime.check_sidecar(engine)


@pytest.mark.slow
@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run it on")
def test_without_a_gpu_an_engine_does_not_run_and_says_so(engine, tmp_path) -> None:
    with pytest.raises(BackendError, match="no GPU that PyTorch sees"):
        runtime.open_engine(engine)
    with pytest.raises(VerificationError, match="built, not run"):
        export(CHECKPOINT, "tensorrt-rtx", tmp_path / "m.engine", require_verified=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_rtx
def test_what_rtx_cannot_build_is_a_build_error_in_words(tmp_path) -> None:
    with pytest.raises(BuildError, match="does not build for SM90, only for SM75"):
        to_tensorrt(CHECKPOINT, tmp_path / "m.engine", BuildSettings(capabilities=("SM90",)), rtx=True)
    with pytest.raises(SourceError, match="does nothing for TensorRT-RTX"):
        to_tensorrt(CHECKPOINT, tmp_path / "m.engine", BuildSettings(timing_cache=tmp_path / "t"), rtx=True)
    odd = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Det", ["x"], ["y"], "det")],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, [1, 3, 4, 4])],
            [onnx.helper.make_tensor_value_info("y", 1, [1, 3])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    settings = BuildSettings(capabilities=FOR)
    with pytest.raises(BuildError, match=r"cannot build the model: .*Det"):
        builder.build_engine(odd, "tensorrt-rtx", settings, (Span.of(4), Span.of(4)))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_tensorrt_that_is_missing_is_said_with_the_line_that_installs_it(tmp_path) -> None:
    with pytest.raises(BackendError, match=r"tensorrt is not installed .*pip install tensorrt"):
        to_tensorrt(CHECKPOINT, tmp_path / "m.engine")


_NO_DRIVER = """
class ILogger:
    class Severity:
        ERROR, INTERNAL_ERROR = 1, 0

def Builder(logger):
    logger.log(1, 'CUDA initialization failure with error: 35')
    raise TypeError('factory function returned nullptr')
"""

CRASHES = {
    "import fails": ("raise ImportError('libnvinfer.so.10: cannot open')", BackendError, "libnvinfer.so.10"),
    "libraries fail": ("raise OSError('libcuda.so.1: no such file')", BackendError, "cannot build here: .*libcuda"),
    "no driver": (_NO_DRIVER, BackendError, "CUDA initialization failure"),
    "crash": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", BuildError, "ended with signal 11"),
    "exit": ("import sys\nsys.exit(3)", BuildError, "exit code 3"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CRASHES)
def test_a_module_that_fails_is_an_answer_and_never_a_crash(case: str, tmp_path, monkeypatch) -> None:
    code, kind, words = CRASHES[case]
    (tmp_path / "tensorrt_of_test.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(TARGETS, "tensorrt", replace(TARGETS["tensorrt"], module="tensorrt_of_test"))
    probed = builder.probe_engines("tensorrt")
    assert probed.problem is not None
    with pytest.raises(kind, match=words):
        to_tensorrt(CHECKPOINT, tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


def test_layers_are_read_from_the_log_and_from_the_inspector() -> None:
    line = (
        "Name: conv_0_myl0_2, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,3,8,8], Datatype: Half, "
        "Format: (NHWC) }], Constants: [ { Name: w, Datatype: Half }], Outputs: [ { Name: y, Datatype: Half }], "
        "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv_0][ONNX Layer: relu_0]"
    )
    (from_log,) = parse_log(["noise", line])
    assert from_log == EngineLayer(
        name="conv_0_myl0_2", kind="correlation", nodes=("conv_0", "relu_0"), reads=("Half",)
    )
    text = json.dumps(
        {
            "Layers": [
                {
                    "Name": "conv_0",
                    "LayerType": "CaskConvolution",
                    "Metadata": "[ONNX Layer: conv_0]\x1e[ONNX Layer: relu_0]",
                    "Inputs": [{"Name": "x", "Format/Datatype": "Channel major FP16 format"}],
                    "Outputs": [],
                }
            ]
        }
    )
    newer = text.replace('"Format/Datatype": "Channel major FP16 format"', '"Format": "NCHW", "DataType": "Half"')
    for said in (text, newer):
        (inspected,) = parse_inspected(said)
        assert (inspected.nodes, inspected.reads) == (from_log.nodes, from_log.reads)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv_0")], "g", [], [])
    )
    assert [c.datatype for c in convolutions(model, [from_log])] == ["Half"]
    assert observed(model, [from_log], "fp16")["convolutions"] == "1 Half"
    with pytest.raises(BuildError, match="asked for fp16, but the engine's convolutions read: 1 Float"):
        observed(model, [replace(from_log, reads=("Float",))], "fp16")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_engines_build_load_run_agree_and_are_timed_on_a_gpu(
    rtx: bool, precision: str, tmp_path, record_property
) -> None:
    target = "tensorrt-rtx" if rtx else "tensorrt"
    try:
        capability_here(target)
    except BackendError as missing:
        pytest.skip(str(missing))
    row = engine_on_gpu(target, precision, tmp_path)
    assert row["observed"]["precision"] == precision
    assert row["accuracy"] > 0.7
    assert rtx or (tmp_path / "timing").stat().st_size > 0
    record_property("median_ms", row["median_ms"])  # in the XML report: one image there and back
    assert row["p95_ms"] >= row["median_ms"] > 0
