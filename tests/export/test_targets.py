"""The table of targets: a row and a file are all it takes, and nobody else knows a target by its name."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import requires
from importlib.util import resolve_name
from pathlib import Path

import pytest
import torch

from repconv import create_model, save
from repconv.errors import BackendError, SourceError
from repconv.export.artefacts.runtime import Runtime, runtime_of
from repconv.export.settings import BuildSettings
from repconv.export.targets import TARGETS, having, of_suffix, timed_as
from repconv.files.whole import sha256
from repconv.sources.source import READERS

ROOT = Path(__file__).resolve().parents[2]
KNOW = {
    "export/targets.py": "the rows",
    "export/exporting.py": "`to_openvino` and `to_tensorrt`, public functions of these names",
    "export/__init__.py": "the same",
}
"""Who may spell a target, besides the files of the targets."""

ROW = """
from repconv.export.targets import TARGETS, Target, Timed

TARGETS["tiny"] = Target(
    name="tiny", title="Tiny", suffix=".tiny", file="tiny_of_test", packages=("onnxruntime",), module="onnxruntime",
    beside=(".tiny.txt",), folder=True, precisions=("fp32",), float_io=True,
    timed=(Timed(name="tiny-runtime", precisions={"cpu": ("fp32",)}),),
)
"""
FILE = '''
"""A format of a folder: `graph/network` is an ONNX model, `about.json` says how precise it is."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from repconv.export.artefacts.artefact import opaque_artefact
from repconv.export.artefacts.built import Built, Lowered
from repconv.export.artefacts.loaded import Loaded, nothing
from repconv.export.artefacts.runtime import Runtime, tried
from repconv.sources.source import Input


def run_of(content):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    wrong = float(os.environ.get("TINY_IS_OFF_BY", "0"))
    return lambda x: [torch.from_numpy(y) + wrong for y in session.run(None, {name: x.numpy()})]


def build(target, network, settings, spans, calibration):
    content = network.SerializeToString()
    about = json.dumps({"precision": settings.precision}).encode()
    files = {f"{target.suffix}/graph/network": content, f"{target.suffix}/about.json": about}
    return Lowered.of(network, Built(files, run_of(content), f"{target.title} 1, CPU", observed={"precision": "fp32"}))


def opened(text, path):
    run = run_of((path / "graph" / "network").read_bytes())
    return opaque_artefact(text, path, "Tiny 1", run, torch.float32, Input("x", torch.float32, (1, 3, 8, 8)))


def load(backend, job, how):
    run, x = run_of((job.file / "graph" / "network").read_bytes()), torch.from_numpy(np.load(job.input))
    return Loaded(lambda: run(x), nothing, lambda: [y.numpy() for y in run(x)], {"asked": backend})


def look(target):
    return (tried(target.title, target.packages[0], "runs tiny folders", lambda: ("CPU",)),)


def beside(target, made, built):
    return {".tiny.txt": f"{made.file} of {made.source}".encode()}


RUNTIME = Runtime(build=build, open=opened, look=look, load=load, beside=beside)
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The command line in a folder with a checkpoint, where one row and one file more are all that is new."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny_of_test.py").write_text(FILE)
    (folder / "sitecustomize.py").write_text(ROW)
    torch.manual_seed(0)
    save(create_model("irep_resnet18", width=4, blocks=(1,)).eval(), folder / "m.pt", input_shape=(3, 8, 8))

    def run(*arguments: str, **more: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from repconv.cli import main; main()", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), **more},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return folder, run


@pytest.mark.slow
def test_a_row_and_a_file_are_a_target_of_every_command(tiny) -> None:
    folder, run = tiny
    export = ("export", "m.pt", "--to", "tiny", "-o", "m.tiny")
    for _ in range(2):  # the second time in place of the first
        code, said = run(*export, "--json", "r.json")
        assert (code, "equal in Tiny 1, CPU" in said) == (0, True), said
    record = json.loads((folder / "r.json").read_text())
    assert record["verified"] is True
    assert record["observed"] == {"precision": "fp32"}
    assert [output["path"] for output in record["outputs"]] == ["m.tiny.txt", "m.tiny"]
    assert record["outputs"][-1]["sha256"] == sha256(folder / "m.tiny")
    held = [path for path in (folder / "m.tiny").rglob("*") if path.is_file()]
    assert record["outputs"][-1]["bytes"] == sum(path.stat().st_size for path in held)
    assert (folder / "m.tiny.txt").read_text() == "m.tiny of m.pt"
    before = sha256(folder / "m.tiny")
    code, said = run(*export, TINY_IS_OFF_BY="1")
    assert (code, "NOT equal in Tiny 1, CPU" in said) == (1, True), said
    assert sha256(folder / "m.tiny") == before, "what disagrees is not written"
    assert not [path for path in folder.iterdir() if path.name.startswith(".m.tiny")]
    code, said = run(*export, "--precision", "fp16")
    assert (code, "tiny has no fp16; it has fp32" in said) == (2, True), said
    code, said = run(*export, "--json", "m.tiny.txt")
    assert (code, "named for two outputs" in said) == (2, True), said
    code, said = run("verify", "m.pt", "m.tiny")
    assert (code, "run by Tiny 1" in said) == (0, True), said
    code, said = run("verify", "m.pt", "m.tiny", TINY_IS_OFF_BY="1")
    assert (code, "DIFFERS" in said) == (1, True), said
    code, said = run("doctor")
    assert (code, "runs tiny folders" in said) == (0, True), said


@pytest.mark.slow
def test_its_artefacts_are_timed_in_a_process_of_their_own(tiny) -> None:
    folder, run = tiny
    bench = ("bench", "m.pt", "--backend", "tiny-runtime", "--against", "unfused", "--json", "b.json")
    code, said = run(*bench, "--rounds", "2", "--sessions", "1", "--seconds", "0.01", "--calls", "4", "--warmup", "0")
    assert code == 0, said
    rows = json.loads((folder / "b.json").read_text())["rows"]
    assert {row["form"] for row in rows} == {"unfused", "fused"}
    assert all(row["observed"] == {"precision": "fp32", "asked": "tiny-runtime"} for row in rows)
    assert all(row["evidence"]["passed"] for row in rows)


def spelled(tree: ast.Module, words: set[str]) -> list[str]:
    """Words that stand in a module as texts by themselves, and modules of targets that it imports."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in words]
    homes = {target.file.rpartition(".")[2] for target in TARGETS.values()}
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    files = [
        n.module for n in imported if n.module.split(".")[-2:-1] == ["runtimes"] and n.module.split(".")[-1] in homes
    ]
    return [*texts, *files]


def test_nobody_else_spells_a_target() -> None:
    """`onnx` is a format as well, of sources and of what targets are made of, so its name is everywhere."""
    own = [target for target in TARGETS.values() if target.suffix not in READERS]
    words = {word for t in own for word in (t.name, t.suffix, t.title, t.install, *t.beside)} - set(READERS)
    found = []
    for top in ("repconv", "export", "search", "benchmarks/harness"):
        for path in sorted((ROOT / top).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            if where in KNOW or where.startswith(("export/runtimes/", "export/engines/")):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{where}: {word}" for word in spelled(tree, words)]
    assert not found, "\n".join(["read the table instead:", *found])


def test_a_spelling_is_seen() -> None:
    text = 'from ..runtimes.openvino import build\nif target == "tensorrt":\n    pass\n'
    assert spelled(ast.parse(text), {"tensorrt"}) == ["tensorrt", "runtimes.openvino"]


@pytest.mark.parametrize("name", TARGETS)
def test_every_row_is_whole(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name
    assert isinstance(runtime_of(target), Runtime)
    assert resolve_name(target.file, "repconv.export").startswith("repconv.export.runtimes.")
    asked = " ".join(requires("repconv") or ())
    assert all(package in asked for package in target.packages), "an extra of setup.cfg installs it"
    assert of_suffix(target.suffix) is not None
    assert target.files(Path("out") / f"m{target.suffix}") == [
        Path("out") / f"m{suffix}" for suffix in (*target.beside, target.suffix)
    ]
    assert f"--to {name}" in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    bench = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    for timed in target.timed:
        assert timed_as(timed.name) is target
        assert f"`{timed.name}`" in bench


def test_settings_a_target_has_not_are_refused_with_who_has_them(tmp_path: Path) -> None:
    cached = BuildSettings(timing_cache=tmp_path / "t")
    TARGETS["tensorrt"].check(cached)
    with pytest.raises(SourceError, match="a timing cache is for tensorrt, not openvino"):
        TARGETS["openvino"].check(cached)
    with pytest.raises(SourceError, match="does nothing for TensorRT-RTX"):
        TARGETS["tensorrt-rtx"].check(cached)
    with pytest.raises(SourceError, match="OpenVINO keeps float32 inputs and outputs anyway"):
        TARGETS["openvino"].check(BuildSettings(precision="fp16", fp32_io=True))
    assert having("capabilities") == "tensorrt-rtx"


def test_a_missing_runtime_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match="OpenVINO is not installed; install it with: pip install openvino"):
        TARGETS["openvino"].imported()
