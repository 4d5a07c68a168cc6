"""Programs of ExecuTorch: built from the fused program, run where they ship, and its silent faults told."""

from __future__ import annotations

import gc
import json
import re
import sys

import pytest
import torch
from torch import nn

from repconv import load
from repconv.errors import BackendError, BuildError, SourceError, VerificationError
from repconv.export import BuildSettings, Span, export
from repconv.export.artefacts.open import open_artefact
from repconv.export.artefacts.runtime import build
from repconv.export.program.exporter import sized, to_program
from repconv.export.program.peaks import program_peaks
from repconv.export.runtimes.phones import executorch_program
from repconv.export.targets import TARGETS
from repconv.fusing import fuse_network

EXECUTORCH = "executorch"
SIZE = (Span.of(16), Span.of(16))


# What needs no ExecuTorch


def test_a_program_has_the_sizes_asked_for_after_its_graph_was_rewritten(theirs) -> None:
    sizes = [Span(2, 4, 40), Span.of(3), Span(16, 16, 24), Span.of(16)]
    program, report = to_program(theirs, sizes)
    assert report is not None
    assert (report.before.convolutions, report.after.convolutions) == (3, 2)
    ranges = {(int(found.lower), int(found.upper)) for found in program.range_constraints.values()}
    assert ranges == {(2, 40), (16, 24)}
    x = torch.randn(7, 3, 20, 16)
    torch.testing.assert_close(program.module()(x), theirs(x), rtol=1e-4, atol=1e-5)
    unfused, none = to_program(theirs, [Span.of(1), *sizes[1:]], fuse=False)
    assert none is None
    assert sum("conv2d" in str(node.target) for node in unfused.graph.nodes) == 3


def test_a_size_the_code_depends_on_is_named() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3, 16, 16)

    class Tall(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.shape[2] if x.shape[2] == 16 else x

    with pytest.raises(BuildError, match="cannot trace it with an input of 1:2:4x3x16x16"):
        sized(Fixed().eval(), [Span(1, 2, 4), Span.of(3), *SIZE])
    with pytest.raises(BuildError, match="the height cannot stay open"):
        sized(Tall().eval(), [Span.of(1), Span.of(3), Span(8, 8, 16), Span.of(16)])


def test_peaks_of_a_program_are_those_of_its_tensors(theirs) -> None:
    program, _ = to_program(theirs, [Span.of(1), Span.of(3), *SIZE])
    x = torch.randn(1, 3, 16, 16)
    found = program_peaks(program, [0 * x, 1000 * x, x])
    stem = theirs.stem(1000 * x).detach()
    assert float(stem.abs().max()) == pytest.approx(max(p.peak for p in found if p.node.startswith("conv")), rel=0.5)
    first = next(p for p in found if p.node)
    assert first.peak == pytest.approx(float(stem.abs().max()), rel=1e-6)
    assert {p.tensor for p in found if not p.node} >= {"stem.weight", "head.bias"}


def test_what_it_has_not_is_refused_with_the_way_out() -> None:
    row = TARGETS[EXECUTORCH]
    with pytest.raises(SourceError, match="has no bf16; it has fp32, fp16, int8; for bf16 build for onnx, openvino"):
        row.check(BuildSettings(precision="bf16"))
    with pytest.raises(SourceError, match="an opset is for ONNX models"):
        row.check(BuildSettings(opset=18))


def test_an_onnx_model_is_no_program(checkpoint, tmp_path) -> None:
    export(checkpoint, "onnx", tmp_path / "m.onnx", BuildSettings(image=SIZE))
    with pytest.raises(SourceError, match=r"m\.onnx is an ONNX model.*give the network or the \.pt2.* for onnx, openv"):
        export(tmp_path / "m.onnx", EXECUTORCH, tmp_path / "m.pte")


def test_without_executorch_the_line_that_installs_it(checkpoint, tmp_path, monkeypatch, run) -> None:
    missing = 'import sys; sys.modules["executorch.runtime"] = None'
    code, said = run("export", checkpoint, "--to", EXECUTORCH, "-o", tmp_path / "m.pte", before=missing)
    assert (code, "ExecuTorch is not installed; install it with: pip install executorch" in said) == (3, True), said
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    (tmp_path / "m.pte").write_bytes(b"")
    with pytest.raises(BackendError, match="pip install executorch"):
        open_artefact(str(tmp_path / "m.pte"))


# What ExecuTorch itself does

installed = pytest.mark.edge("executorch")


@installed
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.exhaustive)])
def test_a_checkpoint_is_verified_in_one_delegate_of_the_precision(precision: str, checkpoint, tmp_path, run) -> None:
    record = export(checkpoint, EXECUTORCH, tmp_path / "m.pte", BuildSettings(precision=precision))
    assert record.verified
    assert record.runtime.startswith("ExecuTorch 1.")
    assert record.fusion is not None
    kind = {"fp32": "float32", "fp16": "float16"}[precision]
    assert record.observed == {
        "delegates": "1 XnnpackBackend", "outside": "nothing", "tensor": f"{kind} 1x3x16x16",
        "convolutions": f"{record.fusion['convolutions'][1]} {kind} in XNNPACK",
    }  # fmt: skip
    assert record.onnx_sha256 is None
    again = export(checkpoint, EXECUTORCH, tmp_path / "again.pte", BuildSettings(precision=precision))
    assert again.outputs[-1]["sha256"] == record.outputs[-1]["sha256"], "the same bytes every time"
    code, said = run("verify", checkpoint, tmp_path / "m.pte")
    assert (code, "run by ExecuTorch 1." in said) == (0, True), said


@installed
def test_open_sizes_hold_what_was_asked_and_run_at_both_ends(checkpoint, tmp_path, run) -> None:
    sides = (Span(16, 16, 24), Span(16, 16, 24))
    settings = BuildSettings(precision="fp16", batch=Span(1, 2, 20), image=sides, fp32_io=True)
    record = export(checkpoint, EXECUTORCH, tmp_path / "m.pte", settings)
    assert record.verified
    assert record.observed["tensor"] == "float32 20x3x24x24"
    assert "_to_dim_order_copy" in record.observed["outside"], "who casts is told"
    found = open_artefact(str(tmp_path / "m.pte"))
    assert found.inputs[0].shape == (None, 3, None, None)
    assert found.inputs[0].dtype == torch.float16, "errors are judged by what it computes in"
    code, said = run("verify", checkpoint, tmp_path / "m.pte")
    assert code == 0, said


@installed
def test_a_batch_that_shrinks_is_refused_with_the_way_out(checkpoint) -> None:
    """Traced with a batch of 2, ExecuTorch keeps 15 of 64 and says nothing; a larger one fails where it ships."""
    batch = ({0: torch.export.Dim("batch", min=1, max=64)},)
    small, _ = fuse_network(load(checkpoint).model, [torch.zeros(2, 3, 16, 16)], batch, prove=False)
    with pytest.raises(BuildError, match=r"at most 15x3x16x16 where 1:2:64x3x16x16 was .* give one size: --batch 2"):
        build(small, EXECUTORCH, BuildSettings(batch=Span(1, 2, 64)), SIZE, None)


@installed
def test_more_than_one_delegate_is_told_with_what_runs_outside(tmp_path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Cumulative(), nn.Conv2d(4, 4, 3)).eval()
    record = export(network, EXECUTORCH, tmp_path / "m.pte", BuildSettings(image=SIZE))
    assert record.observed["delegates"] == "2 XnnpackBackend"
    assert record.observed["outside"] == "aten::cumsum.out"


class Cumulative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(-1)


@installed
def test_memory_in_another_order_is_brought_into_the_one_it_reads(tmp_path, theirs) -> None:
    export(theirs, EXECUTORCH, tmp_path / "m.pte", BuildSettings(image=SIZE))
    found = open_artefact(str(tmp_path / "m.pte"))
    x = torch.randn(1, 3, 16, 16)
    wanted = theirs(x)
    for given in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(found.run((given,))[0], wanted, rtol=1e-4, atol=1e-5)


@installed
def test_a_program_outlives_whatever_else_is_let_go(tmp_path, theirs) -> None:
    """A method alone does not keep its program, and reads what is written over it."""
    export(theirs, EXECUTORCH, tmp_path / "m.pte", BuildSettings(image=SIZE))
    run, x = open_artefact(str(tmp_path / "m.pte")).run, torch.randn(1, 3, 16, 16)
    wanted = run((x,))[0].clone()
    gc.collect()
    held = [bytes(1 << 20) for _ in range(64)]
    assert torch.equal(run((x,))[0], wanted), len(held)


@installed
def test_damaged_files_and_other_sizes_answer_in_words(tmp_path, monkeypatch, theirs, run) -> None:
    export(theirs, EXECUTORCH, tmp_path / "m.pte", BuildSettings(image=SIZE))
    content = (tmp_path / "m.pte").read_bytes()
    found = open_artefact(str(tmp_path / "m.pte"))
    with pytest.raises(SourceError, match="resize a static tensor"):
        found.run((torch.randn(2, 3, 16, 16),))
    bad = tmp_path / "bad.pte"
    for damaged in (b"", b"no program" * 100, content[: len(content) // 2], content[:8] + bytes(64) + content[72:]):
        bad.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"bad\.pte: not a program that ExecuTorch loads: \w"):
            open_artefact(str(bad))
    code, said = run("verify", tmp_path / "m.pte", bad)
    assert (code, "not a program that ExecuTorch loads" in said) == (2, True), said
    monkeypatch.setattr(executorch_program, "_ATTEMPT", "import os; os.abort()")  # as some damaged files make it do
    with pytest.raises(SourceError, match=r"ExecuTorch ends on it .* damaged; build it anew"):
        open_artefact(str(tmp_path / "m.pte"))


@installed
def test_half_precision_that_overflows_is_named_before_it_is_built(tmp_path, theirs) -> None:
    network = theirs
    with torch.no_grad():
        network.stem.weight.mul_(1e5)
    with pytest.raises(VerificationError, match=r"fp16 ends at 65504 and cannot hold .* conv2d"):
        export(network, EXECUTORCH, tmp_path / "m.pte", BuildSettings(precision="fp16", image=SIZE))


@installed
def test_bench_times_it_and_doctor_finds_it(small_program, tmp_path, run, doctor) -> None:
    few = {"rounds": 2, "sessions": 1, "seconds": 0.01, "calls": 4, "warmup": 0, "threads": 1, "against": "unfused"}
    options = [word for option, value in few.items() for word in (f"--{option}", value)]
    code, said = run("bench", small_program, "--backend", EXECUTORCH, *options, "--json", tmp_path / "b.json")
    assert code == 0, said
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert {row["form"]: row["evidence"]["passed"] for row in rows} == {"unfused": True, "fused": True}
    assert all(row["observed"]["threads"] == "1" for row in rows)
    assert re.search(r"ExecuTorch works 1\.\S+ .*XnnpackBackend", doctor), doctor
