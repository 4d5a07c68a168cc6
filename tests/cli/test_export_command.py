"""`repconv export` and `repconv doctor`: one command an artefact, and every refusal in words without a file."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from repconv import create_model, save
from repconv.errors import OutputError
from repconv.export.targets import TARGETS
from repconv.files.whole import sha256, write_whole
from repconv.sources.checkpoint import Normalization


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A small checkpoint, images good and bad, and ONNX files."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    model = create_model("irep_resnet18", width=4, blocks=(1,)).eval()
    norm = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    save(model, folder / "m.pt", input_shape=(3, 8, 8), normalization=norm)
    save(model, folder / "bare.pt", input_shape=(3, 8, 8))
    rng = np.random.default_rng(0)
    np.savez(folder / "i.npz", images=rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    np.savez(folder / "odd.npz", images=rng.integers(0, 256, (12, 9, 8, 3), dtype=np.uint8))
    np.savez(folder / "none.npz", pictures=np.zeros(3))
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    (folder / "empty").mkdir()
    (folder / "unreadable" / "cat").mkdir(parents=True)
    (folder / "unreadable" / "cat" / "one.jpg").write_bytes(b"no image")
    (folder / "broken.zip").write_bytes(b"no zip")
    node = helper.make_node("Det", ["x"], ["y"], "det")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "det.onnx")
    (folder / "hot_of_test.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def network():\n"
        "    torch.manual_seed(0)\n"
        "    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()\n"
        "    nn.init.uniform_(model[0].weight, 1e5, 2e5)\n"
        "    return model\n"
    )
    return folder


@pytest.fixture
def run(command_line, tmp_path, sources):
    """Run the command line in a folder with the sources; returns exit code, standard output and standard error."""
    for entry in sources.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    return command_line


def test_one_command_from_checkpoint_to_a_verified_file(run, tmp_path, sources) -> None:
    code, out, err = run(
        "export",
        "m.pt",
        "--to",
        "onnx",
        "-o",
        "m.onnx",
        "--precision",
        "int8",
        "--calibrate",
        "i.npz",
        "--preprocess",
        "--uint8",
        "--batch",
        "1:2:4",
        "--reduce-range",
        "--json",
        "r.json",
    )
    assert code == 0, err
    for words in ("verified", "worst layers", "top-1 agreement", "wrote m.onnx"):
        assert words in out
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["schema"] == "repconv.export/1"
    assert record["verified"] is True
    assert record["source"]["sha256"] == sha256(sources / "m.pt")
    assert record["outputs"][-1]["sha256"] == sha256(tmp_path / "m.onnx")
    assert record["settings"]["batch"] == "1:2:4"
    assert record["details"]["preprocessing_folded"] == ["scale"]
    assert record["versions"]["onnxruntime"]
    assert record["evidence"]["inputs"].startswith("6 images of i.npz")


M = ("m.pt", "--to", "onnx", "-o", "out.onnx")
HOT = ("hot_of_test:network", "--image", "8,8", *M[1:])
INT8 = (*M, "--precision", "int8")
RTX = ("--to", "tensorrt-rtx", "-o", "out.engine")
REFUSED = {
    "precision": ((*M, "--precision", "fp8"), 2, "'fp8' is not one of"),
    "target": (("m.pt", "--to", "tflite", "-o", "o.tflite"), 2, "'tflite' is not one of"),
    "batch reversed": ((*M, "--batch", "32:8:1"), 2, "32:8:1 is no range: expected MIN:OPT:MAX"),
    "batch zero": ((*M, "--batch", "0"), 2, "is no range"),
    "image": ((*M, "--image", "8,8,8,8,8,8"), 2, "expected H,W"),
    "opset below": ((*M, "--opset", "12"), 2, "13<=x<=26"),
    "opset above": ((*M, "--opset", "27"), 2, "13<=x<=26"),
    "opset of bf16": ((*M, "--precision", "bf16", "--opset", "18"), 2, "need ONNX opset 22"),
    "no calibration": (INT8, 2, "int8 needs images like those the network will see: --calibrate"),
    "calibration of fp32": ((*M, "--calibrate", "i.npz"), 2, "calibration is for int8, not fp32"),
    "empty folder": ((*INT8, "--calibrate", "imagefolder:empty"), 2, "empty holds no images"),
    "no folder": ((*INT8, "--calibrate", "imagefolder:gone"), 2, "gone: no such folder or zip file of images"),
    "unreadable image": ((*INT8, "--calibrate", "imagefolder:unreadable"), 2, "cat/one.jpg is no readable image"),
    "broken zip": ((*INT8, "--calibrate", "imagefolder:broken.zip"), 2, "neither a folder nor a readable zip"),
    "broken npz": ((*INT8, "--calibrate", "broken.npz"), 2, "not a readable .npz file"),
    "no images in npz": ((*INT8, "--calibrate", "none.npz"), 2, "expected an array `images`, found pictures"),
    "images of another size": ((*INT8, "--calibrate", "odd.npz"), 2, "uint8 n x 8 x 8 x 3"),
    "other calibration": ((*INT8, "--calibrate", "i.tar"), 2, "images come from imagefolder:FOLDER"),
    "too few images": ((*INT8, "--calibrate", "i.npz", "--batch", "50"), 2, "fewer than one batch of 50"),
    "suffix": (("m.pt", "--to", "openvino", "-o", "out.onnx"), 2, "ends in .xml, got '.onnx'"),
    "no folder to write to": (("m.pt", "--to", "onnx", "-o", "gone/out.onnx"), 2, "there is no folder gone"),
    "no folder to dump to": ((*M, "--dump-on-failure", "gone/d.npz"), 2, "there is no folder gone"),
    "source gone": (("gone.pt", "--to", "onnx", "-o", "out.onnx"), 2, "gone.pt: no such file"),
    "source itself": (("det.onnx", "--to", "onnx", "-o", "det.onnx"), 2, "is the source itself"),
    "no size": (("hot_of_test:network", "--to", "onnx", "-o", "out.onnx"), 2, "give one: --input-shape 3,224,224"),
    "sm of onnx": ((*M, "--sm", "SM86"), 2, "--sm is for tensorrt-rtx"),
    "no capability": (("m.pt", *RTX, "--sm", "ampere"), 2, "'ampere' is no compute capability"),
    "json of the engine": (("m.pt", *RTX, "--json", "out.engine.json"), 2, "named for two outputs"),
    "idle option": ((*M, "--equalise"), 2, "--equalise is for int8, not fp32"),
    "idle layers": ((*M, "--keep-float", "1"), 2, "--keep-float is for int8, not fp32"),
    "layer gone": ((*INT8, "--calibrate", "i.npz", "--keep-float", "gone"), 2, "no layer 'gone' to keep in float"),
    "idle preprocessing": ((*M, "--uint8"), 2, "--preprocess"),
    "nothing to normalise by": (("bare.pt", *M[1:], "--preprocess"), 2, "records no normalisation; give it: --mean"),
    "mean alone": ((*M, "--preprocess", "--mean", "0.5"), 2, "--mean and --std go together"),
    "channels": ((*M, "--preprocess", "--mean", "0.5", "--std", "0.5"), 2, "of 1 channels"),
    "io": ((*M, "--fp32-io"), 2, "float32 anyway"),
    "timing cache": ((*M, "--timing-cache", "t"), 2, "a timing cache is for tensorrt, not onnx"),
    "overflow": ((*HOT, "--precision", "fp16"), 1, "fp16 ends at 65504 and cannot hold"),
    "tolerance": ((*M, "--tolerance", "1e-12"), 1, "NOT equal in onnxruntime"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_answered_in_words_and_leaves_nothing(case: str, run, tmp_path) -> None:
    arguments, expected, words = REFUSED[case]
    if any("imagefolder:" in argument for argument in arguments):
        pytest.importorskip("PIL", reason="pillow is not installed")
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out, err = run("export", *arguments)
    assert (code, words in " ".join(err.split())) == (expected, True), err
    assert "Traceback" not in out + err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == before


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_missing_backend_is_exit_code_3_with_the_line_that_installs_it(run, tmp_path) -> None:
    code, _, err = run("export", "m.pt", "--to", "tensorrt", "-o", "out.engine")
    assert code == 3, err
    assert "pip install tensorrt" in err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "nncf", "PIL"])
def test_a_missing_package_is_exit_code_3(name: str, run, tmp_path, monkeypatch) -> None:
    if name == "nncf":
        pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    arguments = {
        "openvino": ("m.pt", "--to", "openvino", "-o", "out.xml"),
        "nncf": ("m.pt", "--to", "openvino", "-o", "out.xml", "--precision", "int8", "--calibrate", "i.npz"),
        "PIL": (*INT8, "--calibrate", "imagefolder:unreadable"),
    }[name]
    code, _, err = run("export", *arguments)
    assert code == 3, err
    assert "install it with: pip install" in err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_an_operation_a_backend_does_not_know_is_exit_code_4(run, tmp_path) -> None:
    code, _, err = run("export", "det.onnx", *RTX)
    assert code == 4, err
    assert "tensorrt-rtx cannot build the model: Det det" in err
    code, _, err = run("export", "m.pt", *RTX, "--sm", "SM90")
    assert code == 4, err
    assert "it does not build for SM90" in err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run it on")
def test_what_cannot_be_run_here_is_written_and_never_reads_as_verified(run, tmp_path) -> None:
    code, out, err = run("export", "m.pt", *RTX, "--sm", "SM86", "--json", "r.json")
    assert code == 0, err
    assert "built, not run" in out
    assert "verified" not in out
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["status"], record["verified"], record["evidence"]) == ("built, not run", False, None)
    (tmp_path / "out.engine").unlink()
    (tmp_path / "out.engine.json").unlink()
    code, _, err = run("export", "m.pt", *RTX, "--sm", "SM86", "--require-verified")
    assert code == 1, err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(sources, tmp_path) -> None:
    """The file size limit stands for the disk: the write fails half-way, with what the system says."""
    (tmp_path / "m.pt").write_bytes((sources / "m.pt").read_bytes())
    (tmp_path / "out.onnx").write_bytes(b"old")
    done = subprocess.run(
        [Path(sys.executable).with_name("repconv"), "export", "m.pt", "--to", "onnx", "-o", "out.onnx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write out.onnx: File too large; nothing was written" in done.stderr
    assert (tmp_path / "out.onnx").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pt", "out.onnx"]


def test_files_that_belong_together_are_all_written_or_none(tmp_path) -> None:
    (tmp_path / "b").mkdir()
    for order in (("a", "b"), ("b", "a")):
        with pytest.raises(OutputError, match="it is a directory"):
            write_whole({tmp_path / name: b"new" for name in order})
        assert [p.name for p in tmp_path.iterdir()] == ["b"]
    write_whole({tmp_path / "a": b"one", tmp_path / "c": b"two"})
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "c").read_bytes()) == (b"one", b"two")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="pillow is not installed")
def test_image_folders_and_zips_give_the_same_images_and_labels(tmp_path) -> None:
    import zipfile

    from PIL import Image

    from repconv.export.inputs.images import read_images

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "images"))
    norm = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    names = ("bird", "dog", "cat")
    found = [
        read_images(f"imagefolder:{tmp_path / form}", (3, 8, 8), norm, limit=6, class_names=names)
        for form in ("images", "images.zip")
    ]
    for one in found:
        assert one.inputs.shape == (6, 3, 8, 8)
        assert one.labels is not None
        assert set(one.labels.tolist()) == {1, 2}
        assert one.pixels is not None
        torch.testing.assert_close(one.inputs, one.pixels.float() / 127.5 - 1)
    torch.testing.assert_close(found[0].inputs, found[1].inputs)


@pytest.mark.slow
def test_doctor_names_every_backend_and_what_would_mend_it(run, tmp_path) -> None:
    code, out, err = run("doctor", "--json", "d.json")
    assert code == 0, err
    told = {b["name"]: b for b in json.loads((tmp_path / "d.json").read_text())["backends"]}
    besides = {"NNCF", "litert-torch", "ai-edge-quantizer", "pnnx", "Pillow"}
    assert set(told) == {"PyTorch", *(target.title for target in TARGETS.values()), *besides}
    assert told["PyTorch"]["works"]
    assert told["onnxruntime"]["works"]
    for name, backend in told.items():
        assert name in out
        assert backend["works"] == (backend["remedy"] is None)
        if backend["remedy"]:
            assert f"{name}: {backend['remedy']}" in out


def test_a_network_of_linear_layers_only_is_exported_too(tmp_path) -> None:
    from repconv.export import BuildSettings, Span, to_onnx

    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    record = to_onnx(network, tmp_path / "m.onnx", BuildSettings(image=(Span.of(4), Span.of(4))))
    assert record.verified
