"""What every runtime of phones is held to, whatever its file is: proved, whole, repeatable, and said in words."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import onnx
import pytest
import torch

from repconv.errors import BackendError, SourceError, VerificationError
from repconv.export import BuildSettings, Span, export
from repconv.export.artefacts.open import open_artefact
from repconv.export.subject import open_subject
from repconv.export.targets import TARGETS
from repconv.files.record import installed
from repconv.files.whole import sha256

FEW = ["--rounds=2", "--sessions=1", "--seconds=0.01", "--calls=4", "--warmup=0", "--threads=1", "--against=unfused"]
WEIGHTS = {"ncnn": {"fp32": "{0} float32 Convolution, 1 float32 InnerProduct",
                    "fp16": "{0} float16 Convolution, 1 float16 InnerProduct"},
           "mnn": {"fp32": "{1} float32 Convolution", "fp16": "{1} float16 Convolution"},
           "coreml": {"fp32": "{0} float32 conv, 1 float32 linear",
                      "fp16": "{0} float16 conv, 1 float16 linear"}}  # fmt: skip
"""What `weights` of the record says: of so many convolutions, and of one more, since MNN makes one of the linear."""
MERGED = {"ncnn": ("weights", "2 float32 Convolution, 1 float32 InnerProduct"),
          "mnn": ("weights", "3 float32 Convolution"), "coreml": ("weights", "2 float32 conv, 1 float32 linear"),
          "litert": ("convolutions", "2 float32"), "executorch": ("convolutions", "2 float32 in XNNPACK")}  # fmt: skip
"""What the record says of a network of others with two convolutions left of three."""
PACKAGES = {"ncnn": ("ncnn", "pnnx"), "coreml": ("coremltools",), "mnn": ("MNN",),
            "litert": ("ai_edge_litert", "litert_torch"), "executorch": ("executorch",)}  # fmt: skip
"""What the tests of a target take, as they are imported."""
RUNS = {"ncnn": "ncnn {}", "mnn": "MNN {}", "coreml": "PyTorch by rules in float64 (read back by coremltools {}",
        "litert": "LiteRT {}", "executorch": "ExecuTorch {}"}  # fmt: skip
"""What computes an artefact here."""


def each(*values: str) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.edge(*PACKAGES[name])) for name in values]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", each(*WEIGHTS))
def test_it_is_proved_read_back_and_built_again_alike(name: str, precision: str, checkpoint, tmp_path) -> None:
    row, records = TARGETS[name], []
    for stem in ("m", "again"):
        out = tmp_path / f"{stem}{row.suffix}"
        records.append(export(checkpoint, name, out, BuildSettings(precision=precision)))
    first, again = records
    shown = first.evidence or first.stand_in
    assert shown is not None
    assert shown.passed
    assert shown.runtime.startswith(RUNS[name].format(installed(row.packages[0])))
    assert first.fusion is not None
    count = first.fusion["convolutions"][1]
    assert first.observed["weights"] == WEIGHTS[name][precision].format(count, count + 1)
    assert [Path(str(output["path"])) for output in first.outputs] == row.files(tmp_path / f"m{row.suffix}")
    assert [output["sha256"] for output in first.outputs] == [output["sha256"] for output in again.outputs]


@pytest.mark.parametrize("name", each(*MERGED))
def test_networks_of_others_and_programs_merge_in_the_graph(name: str, theirs, tmp_path) -> None:
    key, said = MERGED[name]
    suffix = TARGETS[name].suffix
    record = export(theirs, name, tmp_path / f"m{suffix}", BuildSettings(image=(Span.of(16), Span.of(16))))
    assert record.observed[key] == said
    program = torch.export.export(theirs, (torch.randn(1, 3, 16, 16),), strict=False)
    torch.export.save(program, tmp_path / "m.pt2")
    record = export(tmp_path / "m.pt2", name, tmp_path / f"p{suffix}")
    shown = record.evidence or record.stand_in
    assert shown is not None
    assert shown.passed
    assert record.observed[key] == said


@pytest.mark.parametrize("name", each(*MERGED))
def test_a_wrong_weight_is_caught(name: str, checkpoint, tmp_path, monkeypatch) -> None:
    """A fault between the fold and the file: one weight of the fused network is off by a tenth."""

    def off(*arguments: object, **more: object):
        subject = open_subject(*arguments, **more)  # type: ignore[arg-type]  # handed on
        if isinstance(subject.model, onnx.ModelProto):
            weight = next(tensor for tensor in subject.model.graph.initializer if len(tensor.dims) == 4)
            numbers = onnx.numpy_helper.to_array(weight).copy()
            numbers.flat[0] += 0.1
            weight.CopyFrom(onnx.numpy_helper.from_array(numbers, weight.name))
        else:
            with torch.no_grad():
                next(t for key, t in subject.model.state_dict.items() if key.endswith("weight")).view(-1)[0] += 0.1
        return subject

    monkeypatch.setattr("repconv.export.exporting.open_subject", off)
    out = tmp_path / f"m{TARGETS[name].suffix}"
    with pytest.raises(VerificationError, match=f"NOT equal in {re.escape(RUNS[name].partition(chr(123))[0])}"):
        export(checkpoint, name, out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", each(*WEIGHTS))
def test_a_written_file_is_compared_timed_and_looked_for(name: str, checkpoint, tmp_path, command_line, doctor) -> None:
    row = TARGETS[name]
    out = tmp_path / f"m{row.suffix}"
    export(checkpoint, name, out, BuildSettings(precision="fp16"))
    before = [sha256(file) for file in row.files(out)]  # a folder's of all that is in it
    code, *both = command_line("verify", checkpoint, out)
    said = " ".join(" ".join(both).split())
    assert (code, f"run by {RUNS[name].format(installed(row.packages[0]))}" in said) == (0, True), said
    assert [sha256(file) for file in row.files(out)] == before
    assert f"{row.title} works {installed(row.packages[0])}" in doctor
    for timed in row.timed:
        code, _, said = command_line("bench", checkpoint, "--backend", timed.name, *FEW, "--json", tmp_path / "b.json")
        assert code == 0, said
        rows = json.loads((tmp_path / "b.json").read_text())["rows"]
        assert {row["form"]: row["evidence"]["passed"] for row in rows} == {"unfused": True, "fused": True}
        assert all(row["observed"]["threads"] == "1" for row in rows)


@pytest.mark.parametrize("name", WEIGHTS)
def test_without_the_runtime_the_line_that_installs_it(
    name: str, checkpoint, tmp_path, monkeypatch, command_line
) -> None:
    row = TARGETS[name]
    monkeypatch.setitem(sys.modules, row.module, None)
    out = tmp_path / f"m{row.suffix}"
    code, _, said = command_line("export", checkpoint, "--to", name, "-o", out)
    line = f"{row.title} is not installed; install it with: pip install {row.packages[0]}"
    assert (code, line in " ".join(said.split())) == (3, True), said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("m.")]
    for file in row.files(out):
        file.mkdir() if row.folder else file.write_bytes(b"")
    with pytest.raises(BackendError, match=f"pip install {row.packages[0]}"):
        open_artefact(str(out))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_precision_it_has_not_is_refused_with_who_has_it(name: str) -> None:
    with pytest.raises(
        SourceError, match=rf"{name} has no int8; it has fp32, fp16.*; for int8 build for onnx, openvino"
    ):
        TARGETS[name].check(BuildSettings(precision="int8"))
