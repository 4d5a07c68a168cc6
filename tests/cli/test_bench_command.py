"""`repconv bench`: real runtimes, bad use, and faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import repconv
from repconv.benchmarks.harness.backends import choose_backends
from repconv.benchmarks.harness.bench import bench
from repconv.benchmarks.harness.forms import Given, forms_of, open_given, plain_of
from repconv.benchmarks.harness.group import judge
from repconv.benchmarks.harness.player import PlayerLost, Process
from repconv.benchmarks.harness.settings import BenchSettings
from repconv.errors import BackendError, BuildError, OutputError, SourceError
from repconv.export.artefacts.loaded import How, Job
from repconv.files.whole import sha256
from repconv.models.libraries import create_named

SHORT = ("--rounds", "2", "--seconds", "0.02", "--calls", "4", "--warmup", "0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, randomise) -> Path:
    torch.manual_seed(0)
    model = randomise(repconv.create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()
    path = tmp_path_factory.mktemp("bench") / "small.pt"
    repconv.save(model, path, input_shape=(3, 16, 16))
    return path


def run(*arguments, cwd=None) -> tuple[int, str, str]:
    command = [sys.executable, "-c", "from repconv.cli import main; main()", "bench", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_everything_in_one_run(checkpoint, tmp_path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    code, out, err = run(
        checkpoint,
        "--backend",
        "torch,onnxruntime",
        "--backend",
        "openvino",
        "--threads",
        "1",
        *SHORT,
        "--json",
        tmp_path / "b.json",
        "--html",
        tmp_path / "b.html",
        "-o",
        tmp_path / "b.md",
    )
    assert code == 0, err
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["schema"] == "repconv.bench/1"
    rows = content["rows"]
    assert {(r["backend"], r["form"]) for r in rows} == {
        (b, f) for b in ("torch", "onnxruntime", "openvino") for f in ("unfused", "fused", "plain")
    }
    assert all(r["same"] is (None if r["form"] == "plain" else True) for r in rows)
    assert all(r["memory_bytes"] > 0 and r["artefact_bytes"] > 0 and r["load_s"] > 0 for r in rows)
    assert all(len(r["latency"]["rounds"]) == 2 and len(r["latency"]["samples_s"]) >= 4 for r in rows)
    assert len(content["ratios"]) == 6
    assert content["sources"][0]["sha256"] == sha256(checkpoint)
    assert str(tmp_path) not in json.dumps({**content, "sources": []}), "no path of this machine"
    assert "unfused / fused" in out
    assert "Architecture" in (tmp_path / "b.html").read_text()
    assert "| torch | unfused |" in (tmp_path / "b.md").read_text()
    assert "measuring 9 subjects in 2 rounds" in err


@pytest.mark.slow
@pytest.mark.exhaustive
def test_graphs_halves_and_several_sources(checkpoint, tmp_path) -> None:
    """A foreign network, a graph of it, and a batch: what PyTorch cannot run is said, the rest is measured."""
    pytest.importorskip("timm", reason="timm is not installed: pip install timm")
    fused = tmp_path / "small.onnx"
    assert (
        subprocess.run(
            [sys.executable, "-c", "from repconv.cli import main; main()", "fuse", str(checkpoint), "-o", str(fused)],
            check=False,
            capture_output=True,
        ).returncode
        == 0
    )
    code, out, err = run(
        "timm:test_resnet.r160_in1k",
        checkpoint,
        "--backend",
        "onnxruntime",
        "--image",
        "32,32",
        "--batch",
        "2",
        "--precision",
        "fp16,int8",
        *SHORT,
        "--json",
        tmp_path / "b.json",
    )
    assert code == 0, out + err
    assert "no plain form of timm:test_resnet.r160_in1k is known" in err
    assert "int8 is calibrated on noise" in err
    code, out, err = run(fused, "--against", checkpoint, "--backend", "onnxruntime", *SHORT)
    assert code == 0, err
    assert "fused / small.pt" in out
    code, out, err = run(fused, "--backend", "torch", *SHORT)
    assert code == 2
    assert "is an ONNX file, which PyTorch does not run" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "no SOURCE to measure"),
        (("",), 2, "an empty SOURCE"),
        (("gone.pt",), 2, "gone.pt"),
        (("gone.onnx",), 2, "gone.onnx: no such file"),
        (("small.pt", "--backend", "onnxrt"), 2, "did you mean 'onnxruntime'"),
        (("small.pt", "--backend", " , "), 2, "--backend names none"),
        (("small.pt", "--backend", "onnxruntime-tensorrt"), 3, "onnxruntime-gpu"),
        (("small.pt", "--backend", "onnxruntime", "--device", "cuda"), 3, "onnxruntime-gpu"),
        (("small.pt", "--backend", "torch", "--device", "cuda"), 3, "no GPU"),
        (("small.pt", "--backend", "tensorrt"), 3, "pip install tensorrt"),
        (("small.pt", "--backend", "torch", "--precision", "int8"), 2, "torch on cpu has no int8"),
        (("small.pt", "--backend", "torch", "--precision", "fp12"), 2, "precision 'fp12'"),
        (("small.pt", "--backend", "torch", "--rounds", "0"), 2, "0 is not in the range"),
        (("small.pt", "--backend", "torch", "--calls", "0"), 2, "0 is not in the range"),
        (("small.pt", "--backend", "torch", "--seconds", "0"), 2, "expected more than 0"),
        (("small.pt", "--backend", "torch", "--rounds", "7", "--sessions", "2"), 2, "do not divide"),
        (("small.pt", "--batch", "0"), 2, "expected whole numbers from 1 on"),
        (("small.pt", "--batch", "8:1"), 2, "expected whole numbers from 1 on"),
        (("small.pt", "--batch", "1,1", "--backend", "torch"), 2, "named twice"),
        (("small.pt", "--image", "32"), 2, "and the shape given is 32"),
        (("small.pt", "--backend", "torch", "--pin", "4095"), 2, "--pin names core 4095"),
        (("small.pt", "--backend", "torch", "--cuda-graphs"), 2, "everything runs on the CPU"),
        (("small.pt", "small.pt", "--backend", "torch"), 2, "two sources are called small.pt"),
        (("small.pt", "--json", "no/where.json"), 2, "there is no folder"),
        (("small.pt", "--html", "."), 2, "it is a directory"),
        (("small.pt", "--json", "x", "--html", "x"), 2, "named for two outputs"),
        (("small.pt", "-o", "small.pt"), 2, "is the source itself"),
        (("small.pt", "--backend", "torch", "--against", "gone.pt"), 2, "gone.pt"),
    ],
)  # fmt: skip
def test_bad_use_gets_words(checkpoint, monkeypatch, capsys, arguments, code, said) -> None:
    """In this process, since each says so before anything slow."""
    from repconv import cli

    monkeypatch.chdir(checkpoint.parent)
    monkeypatch.setattr(sys, "argv", ["repconv", "bench", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == code
    assert said in capsys.readouterr().err


def test_a_wrong_network_is_noticed(checkpoint) -> None:
    given = open_given(str(checkpoint), None)
    x = torch.randn(1, 3, 16, 16)
    (right,) = given.reference(x)
    assert judge(given, x, [right.float()], "fp32", "a runtime").passed
    assert not judge(given, x, [right.float() * 1.01], "fp32", "a runtime").passed
    assert not judge(given, x, [right.float().fill_(torch.nan)], "fp32", "a runtime").finite
    assert not judge(given, x, [], "fp32", "a runtime").passed


def test_forms_that_are_not_known_are_said(checkpoint, tmp_path) -> None:
    given = open_given(str(checkpoint), None)
    forms, notes = forms_of(given, None, lambda text: open_given(text, None))
    assert [form.name for form in forms] == ["unfused", "fused", "plain"]
    assert notes == []
    fused, _ = repconv.fuse(repconv.load(checkpoint).model)
    repconv.save(fused, tmp_path / "fused.pt", input_shape=(3, 16, 16))
    already = open_given(str(tmp_path / "fused.pt"), None)
    forms, notes = forms_of(already, None, lambda text: open_given(text, None))
    assert [form.name for form in forms] == ["fused", "plain"]
    assert "was fused before it was saved" in notes[0]
    with pytest.raises(SourceError, match="--against FILE"):
        forms_of(already, "unfused", lambda text: open_given(text, None))


def job(checkpoint, tmp_path) -> dict[str, Job]:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    return {"a": Job(file=checkpoint, input=tmp_path / "x.npy", precision="fp32")}


def test_the_plain_form_of_a_network_by_name_has_its_arguments() -> None:
    network = create_named("torch.nn:Conv2d(in_channels=2, out_channels=5, kernel_size=3)")
    network.replaced = {"": None}  # as `expand` notes it
    given = Given(source=None, label="conv", network=network, size=(2, 4, 4), reference=None)
    assert plain_of(given).weight.shape == (5, 2, 3, 3)


@pytest.mark.slow
def test_a_killed_process_is_told_and_not_waited_for(checkpoint, tmp_path) -> None:
    with Process("torch", How(threads=1), job(checkpoint, tmp_path)) as process:
        process.start()
        process.load("a")
        assert len(process.turn("a", 0.001, 3)) >= 3
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(PlayerLost, match=r"signal 9 \(SIGKILL\); .* memory runs out"):
            process.turn("a", 0.001, 3)


@pytest.mark.slow
def test_a_process_that_stops_answering_is_given_up(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("repconv.benchmarks.harness.player.CALLING_S", 0.5)
    with Process("torch", How(threads=1), job(checkpoint, tmp_path)) as process:
        process.start()
        process.load("a")
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(PlayerLost, match="did not answer"):
            process.turn("a", 0.0, 1)


@pytest.mark.slow
def test_a_runtime_that_cannot_be_imported_or_load_is_told(tmp_path, monkeypatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgone.so: no such file')")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    jobs = {"a": Job(file=tmp_path / "bad.onnx", input=tmp_path / "x.npy", precision="fp32")}
    with Process("onnxruntime", How(), jobs) as process:
        process.start()
        with pytest.raises(BuildError, match="onnxruntime: "):
            process.load("a")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Process("onnxruntime", How(), jobs) as process,
        pytest.raises(BackendError, match=r"libgone\.so"),
    ):
        process.start()


def test_temporary_files_that_cannot_be_written_are_told(checkpoint, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(OutputError, match=r"No space left on device.*TMPDIR"):
        bench([str(checkpoint)], BenchSettings(backends=("torch",), rounds=1, sessions=1))


def test_backends_are_found_by_name_and_device() -> None:
    assert [b.name for b in choose_backends(["torch"], "cpu", ["fp32", "fp16"])] == ["torch"]
    with pytest.raises(SourceError, match="runs on the CPU only"):
        choose_backends(["openvino"], "cuda", ["fp32"])
    with pytest.raises(SourceError, match="onnxruntime on cpu has no bf16"):
        choose_backends(["onnxruntime"], "cpu", ["bf16"])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("torch", ()), ("torch", ("--cuda-graphs",)), ("torch", ("--cuda-events",)), ("torch", ("--transfers",)),
        ("torch.compile", ()), ("onnxruntime", ()), ("onnxruntime", ("--cuda-graphs",)), ("onnxruntime-tensorrt", ()),
        ("tensorrt", ()), ("tensorrt", ("--cuda-graphs", "--cuda-events")), ("tensorrt-rtx", ("--transfers",)),
    ],
)  # fmt: skip
def test_a_gpu_is_measured(checkpoint, tmp_path, backend, options) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        choose_backends([backend], "cuda", ["fp32"])
    except BackendError as missing:
        pytest.skip(str(missing))
    code, out, err = run(
        checkpoint, "--backend", backend, "--device", "cuda", *options, *SHORT, "--json", tmp_path / "b.json"
    )
    assert code == 0, out + err
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert all(row["device"] == "cuda" and row["latency"]["median_ms"] > 0 for row in rows)
    assert all(row["same"] for row in rows if row["form"] != "plain")


@pytest.mark.gpu
def test_the_gpu_is_recorded() -> None:
    from repconv.benchmarks.harness.machine.gpu import gpu_state, visible_gpu

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install nvidia-ml-py")
    state = gpu_state(visible_gpu())
    assert state is not None
    assert state.name
    assert state.power_limit_w > 0
    assert state.sm_mhz > 0
