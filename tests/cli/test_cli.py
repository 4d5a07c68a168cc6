"""The command line: what it writes, what it prints, and how it says no."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner

import repconv.cli
from repconv import create_model, load, save
from repconv.files.whole import sha256, whole_file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, randomise):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("source") / "m.pt"
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()
    save(model, path, class_names=tuple("abcdefghij"), input_shape=(3, 16, 16), metrics={"top1": 0.5})
    return path


@pytest.fixture
def run(command_line):
    """Run the command line in an empty folder; returns exit code, standard output and standard error."""
    return command_line


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_fuse_writes_a_verified_checkpoint(suffix, run, checkpoint, tmp_path):
    code, out, _ = run("fuse", checkpoint, "-o", f"f{suffix}", "--json", "r.json")
    assert code == 0
    for words in ("multi-branch blocks", "convolutions", "parameters", "FLOPs", "equal: all", f"wrote f{suffix}"):
        assert words in out
    fused, source = load(tmp_path / f"f{suffix}"), load(checkpoint)
    assert fused.fused
    assert (fused.class_names, fused.input_shape, dict(fused.metrics)) == (
        source.class_names,
        source.input_shape,
        dict(source.metrics),
    )
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(fused.model(x), source.model(x), rtol=1e-3, atol=1e-3)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == "repconv.fuse/1"
    assert report["source"]["sha256"] == sha256(checkpoint)
    assert report["output"]["sha256"] == sha256(tmp_path / f"f{suffix}")
    assert report["output"]["verified"] is True
    assert report["report"]["agreement"]["passed"] is True
    assert report["report"]["after"]["batch_norms"] == 0


def test_fuse_writes_a_verified_onnx_file(run, checkpoint, tmp_path):
    code, out, _ = run("fuse", checkpoint, "-o", "f.onnx", "--opset", "17", "--dynamic-batch", "--json", "r.json")
    assert code == 0
    assert "in onnxruntime equal" in out
    proto = onnx.load(tmp_path / "f.onnx")
    metadata = {p.key: p.value for p in proto.metadata_props}
    assert metadata["repconv.source_sha256"] == sha256(checkpoint)
    assert json.loads(metadata["class_names"]) == list("abcdefghij")
    assert json.loads(metadata["repconv.fusion"])["convolutions"][1] == sum(
        n.op_type == "Conv" for n in proto.graph.node
    )
    assert proto.opset_import[0].version == json.loads((tmp_path / "r.json").read_text())["output"]["opset"] == 17


def test_the_output_has_a_default_beside_the_source(run, checkpoint):
    code, out, _ = run("fuse", checkpoint)
    written = checkpoint.with_name("m.fused.pt")
    assert code == 0
    assert str(written) in out
    assert load(written).fused


def test_a_fused_source_is_a_no_op_and_said(run, checkpoint, tmp_path):
    run("fuse", checkpoint, "-o", "f.pt")
    code, _, err = run("fuse", "f.pt", "-o", "again.pt", "--strict")
    assert code == 0
    assert "already fused" in err
    assert (tmp_path / "f.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()


def test_a_result_that_differs_is_not_written(run, checkpoint, tmp_path, monkeypatch):
    import repconv.blocks.fold as fusion

    honest = fusion.cast_like

    def wrong(branch, kernel):
        conv = honest(branch, kernel)
        with torch.no_grad():
            conv.weight[0, 0] += 0.1
        return conv

    monkeypatch.setattr(fusion, "cast_like", wrong)
    code, out, err = run("fuse", checkpoint, "-o", "f.pt", "--json", "r.json")
    assert code == 1
    assert "NOT equal" in err
    assert "nothing was written" in err
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())


MISUSES = {
    "no such file": (("fuse", "none.pt", "-o", "f.pt"), "none.pt: no such file"),
    "directory": (("fuse", ".", "-o", "f.pt"), "is a directory"),
    "other suffix in": (("fuse", "README.md", "-o", "f.pt"), "no such file"),
    "other suffix out": (
        ("fuse", "SOURCE", "-o", "f.exe"),
        ".safetensors, .onnx, .pt2, got '.exe'",
    ),
    "suffix that is read only": (("fuse", "SOURCE", "-o", "f.tar"), ".safetensors, .onnx, .pt2, got '.tar'"),
    "no folder": (("fuse", "SOURCE", "-o", "none/f.pt"), "there is no folder none; make it first"),
    "itself": (("fuse", "SOURCE", "-o", "SOURCE"), "is the source itself"),
    "opset": (("fuse", "SOURCE", "-o", "f.onnx", "--opset", "40"), "40 is not in the range 13<=x<=26"),
    "shape": (("fuse", "SOURCE", "-o", "f.pt", "--input-shape", "a,b"), "is no shape of an input, like 3,224,224"),
    "command": (("fuze", "SOURCE"), "No such command 'fuze'"),
    "unwritable json": (("fuse", "SOURCE", "-o", "f.pt", "--json", "none/r.json"), "there is no folder none"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_exit_2_in_words_and_leaves_nothing(name, run, checkpoint, tmp_path):
    arguments, words = MISUSES[name]
    before = sha256(checkpoint)
    code, out, err = run(*(str(checkpoint) if a == "SOURCE" else a for a in arguments))
    assert code == 2
    assert words in err.replace("\n", " ")
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())
    assert sha256(checkpoint) == before


def test_a_record_that_finds_no_room_takes_nothing_back_that_was_written(run, checkpoint, tmp_path, monkeypatch):
    @contextmanager
    def full(path: str, **stands: str) -> Iterator[None]:
        with whole_file(path, **stands):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    monkeypatch.setattr("repconv.cli.shared.record.whole_file", full)
    code, _, err = run("fuse", checkpoint, "-o", "f.pt", "--json", "r.json")
    assert code == 2
    assert "r.json" in err
    assert "what else the command wrote is whole" in err
    assert load(tmp_path / "f.pt").fused
    assert [path.name for path in tmp_path.iterdir()] == ["f.pt"]


def test_an_image_shape_is_asked_for_only_when_unknown(run, tmp_path):
    save(create_model("resnet18", width=4, blocks=(1,)).eval(), tmp_path / "m.pt")
    code, _, err = run("fuse", "m.pt", "-o", "f.pt")
    assert (code, "--input-shape 3,224,224" in err) == (2, True)
    assert run("fuse", "m.pt", "-o", "f.pt", "--input-shape", "1x3x8x8")[0] == 0


def test_every_command_has_help_with_an_example():
    runner = CliRunner()
    assert "Example: repconv" in runner.invoke(repconv.cli._repconv, ["--help"]).output
    for name in repconv.cli._COMMANDS:
        result = runner.invoke(repconv.cli._repconv, [name, "--help"])
        assert result.exit_code == 0
        assert f"Example: repconv {name}" in result.output, name


def test_help_starts_without_torch():
    code = "import sys, repconv.cli; print([m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(os.sep))
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.exhaustive  # `make demo` runs it before
def test_the_demo_runs_and_proves_what_it_says(run, tmp_path):
    code, out, err = run("demo", "--json", "demo.json")
    assert code == 0, err
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["images"] == 200
    assert len(set(record["right"].values())) == 1
    assert record["right"]["before"] >= 150
    assert record["report"]["agreement"]["passed"]
    assert load(tmp_path / "repconv-demo" / "fused.pt").fused
    assert "Architecture" in (tmp_path / "repconv-demo" / "report.html").read_text(encoding="utf-8")
    assert all(row["same"] for row in record["bench"]["rows"])
    onnx.checker.check_model(str(tmp_path / "repconv-demo" / "fused.onnx"))
    assert "repconv fuse checkpoint.pt" in out
