"""Files of LiteRT: built from the fused program, run where they ship, in the layout and the sizes asked for."""

from __future__ import annotations

import json
import re
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from repconv.errors import BackendError, BuildError, SourceError
from repconv.export import BuildSettings, Span, export
from repconv.export.artefacts.open import open_artefact
from repconv.export.runtimes.phones import litert_file
from repconv.export.targets import TARGETS

LITERT = "litert"
SIZE = (Span.of(16), Span.of(16))


# What needs no LiteRT


def test_what_it_has_not_is_refused_with_the_way_out() -> None:
    row = TARGETS[LITERT]
    with pytest.raises(SourceError, match="has no bf16; it has fp32, fp16, int8; for bf16 build for onnx"):
        row.check(BuildSettings(precision="bf16"))
    with pytest.raises(SourceError, match="LiteRT keeps float32 inputs and outputs anyway"):
        row.check(BuildSettings(precision="fp16", fp32_io=True))
    with pytest.raises(SourceError, match="channels last is for litert, not onnx"):
        TARGETS["onnx"].check(BuildSettings(channels_last=True))


@pytest.mark.parametrize(
    ("module", "package"), [("litert_torch", "litert-torch"), ("ai_edge_litert.interpreter", "ai-edge-litert")]
)
def test_what_is_missing_is_named_with_the_line_that_installs_it(
    module: str, package: str, checkpoint, tmp_path, run
) -> None:
    missing = f"""import sys, types
for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "litert_torch"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["{module}"] = None"""
    out = tmp_path / "m.tflite"
    code, said = run("export", checkpoint, "--to", LITERT, "-o", out, before=missing)
    assert (code, f"pip install {package}" in said) == (3, True), said
    assert not out.exists()


def test_a_file_is_not_opened_without_the_runtime(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    (tmp_path / "m.tflite").write_bytes(b"")
    with pytest.raises(BackendError, match="LiteRT is not installed; install it with: pip install ai-edge-litert"):
        open_artefact(str(tmp_path / "m.tflite"))


@pytest.mark.parametrize("text", ["", "[]", "3", '{"least": 1}', '{"least": [1], "most": "x", "channels_last": 0}'])
def test_what_others_wrote_in_our_place_is_passed_over(text: str) -> None:
    assert litert_file.About.read(text) is None


# What LiteRT itself does

installed = pytest.mark.edge("litert_torch", "ai_edge_quantizer")


@installed
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.exhaustive)])
def test_a_checkpoint_is_verified_in_one_delegate_of_the_precision(precision: str, checkpoint, tmp_path, run) -> None:
    record = export(checkpoint, LITERT, tmp_path / "m.tflite", BuildSettings(precision=precision))
    assert record.verified
    assert record.runtime.startswith("LiteRT 2.")
    assert record.fusion is not None
    kind = {"fp32": "float32", "fp16": "float16"}[precision]
    assert record.observed == {
        "delegates": "1 XNNPACK", "outside": "nothing", "tensor": "float32 1x3x16x16, channels first",
        "convolutions": f"{record.fusion['convolutions'][1]} {kind}", "transposes": "1",
    }  # fmt: skip
    assert record.onnx_sha256 is None
    again = tmp_path / "again.tflite"
    code, said = run("export", checkpoint, "--to", LITERT, "-o", again, "--precision", precision)
    assert code == 0, said
    assert again.read_bytes() == (tmp_path / "m.tflite").read_bytes(), "the same bytes every time, in any process"
    code, said = run("verify", checkpoint, again)
    assert (code, "run by LiteRT 2." in said) == (0, True), said


@installed
@pytest.mark.parametrize("last", [False, True])
def test_open_sizes_are_one_file_that_is_resized_and_run_at_both_ends(last: bool, theirs, tmp_path) -> None:
    sides = (Span(16, 16, 24), Span(12, 16, 16))
    settings = BuildSettings(batch=Span(1, 2, 8), image=sides, channels_last=last)
    record = export(theirs, LITERT, tmp_path / "m.tflite", settings)
    assert record.verified
    shown = "?x?x?x3, channels last" if last else "?x3x?x?, channels first"
    assert record.observed["tensor"] == f"float32 {shown}"
    found = open_artefact(str(tmp_path / "m.tflite"))
    assert found.inputs[0].shape == (None, 3, None, None)
    for shape in ((8, 3, 24, 16), (3, 3, 20, 12), (1, 3, 16, 16)):
        x = torch.randn(shape)
        torch.testing.assert_close(found.run((x,))[0], theirs(x), rtol=1e-4, atol=1e-5)


@installed
def test_apps_that_know_nothing_of_us_run_either_layout(theirs, tmp_path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    x = torch.randn(1, 3, 16, 16)
    for last in (False, True):
        export(theirs, LITERT, tmp_path / "m.tflite", BuildSettings(image=SIZE, channels_last=last))
        given = (x.movedim(1, -1) if last else x).contiguous().numpy()
        (found,) = Interpreter(str(tmp_path / "m.tflite")).get_signature_runner()(args_0=given).values()
        np.testing.assert_allclose(found, theirs(x).detach(), rtol=1e-4, atol=1e-5)


class Flat(nn.Module):
    """Its batch is a constant in what litert-torch makes of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, ::2].flatten(1).cumsum(1)


@installed
def test_a_file_that_cannot_be_resized_is_refused_with_the_way_out(tmp_path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Flat(), nn.Linear(392, 2)).eval()
    size = (Span.of(16), Span.of(16))
    with pytest.raises(
        BuildError, match=r"the file made for 2x3x16x16 cannot be resized to 1x3x16x16 of the 1:2:4x.*--batch 2"
    ):
        export(network, LITERT, tmp_path / "m.tflite", BuildSettings(image=size, batch=Span(1, 2, 4)))
    record = export(network, LITERT, tmp_path / "m.tflite", BuildSettings(image=size, batch=Span.of(2)))
    assert record.verified


class Cumulative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(-1)


@installed
def test_what_runs_outside_of_xnnpack_is_named(tmp_path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Cumulative(), nn.Conv2d(4, 4, 3)).eval()
    record = export(network, LITERT, tmp_path / "m.tflite", BuildSettings(image=SIZE))
    assert record.observed["delegates"] == "2 XNNPACK"
    assert "CUMSUM" in record.observed["outside"]
    assert "CONV" not in record.observed["outside"]


@installed
def test_damaged_files_and_other_sizes_answer_in_words(tmp_path, monkeypatch, theirs, run) -> None:
    export(theirs, LITERT, tmp_path / "m.tflite", BuildSettings(image=SIZE))
    content = (tmp_path / "m.tflite").read_bytes()
    found = open_artefact(str(tmp_path / "m.tflite"))
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(SourceError, match=r"\w"):
        found.run((torch.randn(1, 4, 16, 16),))
    torch.testing.assert_close(found.run((x,))[0], theirs(x), rtol=1e-4, atol=1e-5)
    bad = tmp_path / "bad.tflite"
    for damaged in (b"", b"no model" * 100, content[: len(content) // 2], content[:8] + bytes(64) + content[72:]):
        bad.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"bad\.tflite: not a file that LiteRT loads: [`\w]"):
            open_artefact(str(bad))
    code, said = run("verify", tmp_path / "m.tflite", bad)
    assert (code, "not a file that LiteRT loads" in said) == (2, True), said
    monkeypatch.setattr(litert_file, "_ATTEMPT", "import os; os.abort()")  # as some damaged files make it do
    with pytest.raises(SourceError, match=r"LiteRT ends on it .* damaged; build it anew"):
        open_artefact(str(tmp_path / "m.tflite"))


def _enormous(model) -> None:
    taken = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    taken.shape = [1 << 15, 3, 1 << 10, 1 << 10]


def _overflowing(model) -> None:
    taken = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    taken.shape = [1 << 30, 1 << 30, 3, 4]


def _nowhere(model) -> None:
    model.subgraphs[0].operators[1].inputs[0] = 1 << 20


def _about_nothing(model) -> None:
    model.metadata[-1].buffer = 1 << 28


@installed
@pytest.mark.parametrize("change", [_enormous, _overflowing, _nowhere, _about_nothing])
def test_files_that_ask_for_what_is_not_there_are_told_in_words_and_soon(change, theirs, tmp_path) -> None:
    from ai_edge_litert.tools import flatbuffer_utils

    path = tmp_path / "m.tflite"
    export(theirs, LITERT, path, BuildSettings(image=SIZE))
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(path.read_bytes()))
    change(model)
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"m\.tflite: not a file that LiteRT loads: \w"):
        open_artefact(str(path))
    assert time.monotonic() - began < 60


@installed
def test_what_the_converter_says_is_not_shown_but_kept_where_it_is_asked_for(checkpoint, tmp_path, run) -> None:
    log = tmp_path / "said.txt"
    code, said = run("export", checkpoint, "--to", LITERT, "-o", tmp_path / "m.tflite", "--log", log)
    assert code == 0, said
    assert "LiteRT-Torch Convert" in log.read_text()
    assert "XNNPACK delegate" in log.read_text(), "what C++ code writes, too"
    assert not re.search(r"LiteRT-Torch Convert|INFO:|WARNING", said)


@installed
def test_bench_times_it_and_doctor_finds_it(small_program, tmp_path, run, doctor) -> None:
    few = {"rounds": 2, "sessions": 1, "seconds": 0.01, "calls": 4, "warmup": 0, "threads": 2, "against": "unfused"}
    options = [word for option, value in few.items() for word in (f"--{option}", value)]
    code, said = run("bench", small_program, "--backend", LITERT, *options, "--json", tmp_path / "b.json")
    assert code == 0, said
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert {row["form"]: row["evidence"]["passed"] for row in rows} == {"unfused": True, "fused": True}
    assert all(row["observed"]["threads"] == "2" for row in rows)
    assert re.search(r"LiteRT works 2\.\S+ CPU \(XNNPACK\)", doctor), doctor
    assert re.search(r"litert-torch works 0\.", doctor), doctor
