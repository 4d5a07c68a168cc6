"""What `make gpu` does, without a GPU: pieces that fail or overrun, what a processor can run, the JSON and the page."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from repconv.benchmarks.harness.results import BenchResult, Compared, Key, Row
from repconv.benchmarks.harness.settings import BenchSettings
from repconv.benchmarks.harness.turns.timing import LatencyReport, Ratio
from repconv.benchmarks.studies.common import ROOT, command_of, read_result
from repconv.benchmarks.studies.gpu import device as gpu_device
from repconv.benchmarks.studies.gpu import latency as gpu_latency
from repconv.benchmarks.studies.gpu import learning, on_gpu
from repconv.benchmarks.studies.gpu.accuracy import accuracy
from repconv.benchmarks.studies.gpu.device import counted_tests, described, lacking
from repconv.benchmarks.studies.gpu.engines import engine
from repconv.benchmarks.studies.gpu.evaluating import evaluation
from repconv.benchmarks.studies.gpu.learning import agreement, training
from repconv.benchmarks.studies.gpu.on_gpu import PIECES, TOTAL_S, main
from repconv.benchmarks.studies.gpu.page import MARK, NOT_YET, SCHEMA, TABLES, measured
from repconv.benchmarks.studies.gpu.running import Outcome, Piece, do_all, in_a_process
from repconv.errors import BackendError, VerificationError

SCRIPT = """
import subprocess, sys, time
from repconv.benchmarks.studies.gpu.running import Piece, tell
from repconv.errors import BackendError

def good(device):
    print("a library says something")
    yield {"on": device}
    yield {"on": device}

def missing(device):
    yield {"on": device}
    raise BackendError("tensorrt is not installed; pip install tensorrt")

def wrong(device):
    yield {"on": device}
    raise ValueError("two things differ\\nand more")

def slow(device):
    yield {"on": device}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(sys.argv[0] + ".pid", "w").write(str(child.pid))
    child.wait()

def crash(device):
    yield {"on": device}
    import os; os.kill(os.getpid(), 11)

name = sys.argv[sys.argv.index("--one") + 1]
tell(Piece(name, "", 1, globals()[name]), sys.argv[sys.argv.index("--device") + 1])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script of pieces that end in every way."""
    path = tmp_path / "pieces_of_test.py"
    path.write_text(SCRIPT)
    return path


def _none(_: str) -> Iterator[Mapping[str, object]]:
    return iter(())


@pytest.mark.slow
def test_a_piece_that_does_not_end_well_is_told_and_keeps_its_rows(script: Path) -> None:
    run = in_a_process(str(script))
    names = ("good", "missing", "wrong", "crash")
    found = {name: run(Piece(name, "", 60, _none), "cpu", 60) for name in names}
    found["slow"] = run(Piece("slow", "", 60, _none), "cpu", 5)
    assert {name: (outcome.state, len(outcome.rows)) for name, outcome in found.items()} == {
        "good": ("done", 2), "missing": ("missing", 1), "wrong": ("failed", 1), "crash": ("failed", 1),
        "slow": ("overran", 1),
    }  # fmt: skip
    assert found["good"].said is None
    assert found["missing"].said == "tensorrt is not installed; pip install tensorrt"
    assert found["wrong"].said == "ValueError: two things differ"
    assert "SIGSEGV" in str(found["crash"].said)
    assert found["slow"].said == "more than 5 s"
    left = Path(f"/proc/{Path(f'{script}.pid').read_text()}/stat")
    until = time.monotonic() + 10  # it was told to end; a busy machine takes its time
    while _runs(left) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(left), "what a piece started ends with it"


def _runs(stat: Path) -> bool:
    try:
        return stat.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_piece_gets_more_than_is_left() -> None:
    now, given = [0.0], []

    def run(piece: Piece, _: str, limit_s: float) -> Outcome:
        given.append((piece.name, limit_s))
        now[0] += min(limit_s, 50)
        return Outcome(piece=piece.name, state="done")

    pieces = [Piece(name, "", limit, _none) for name, limit in (("a", 10), ("b", 60), ("c", 60), ("d", 60))]
    found = list(do_all(pieces, "cpu", 100, run, lambda: now[0]))
    assert given == [("a", 10), ("b", 60), ("c", 40)]
    assert [outcome.state for outcome in found] == ["done", "done", "done", "not begun"]
    assert "100 s" in str(found[-1].said)


def test_the_pieces_that_tell_most_fit_into_nine_minutes() -> None:
    first = list(PIECES.values())[: list(PIECES).index("latency-onnxruntime")]
    assert sum(piece.limit_s for piece in first) <= TOTAL_S <= 530
    assert {"engines-tensorrt", "latency-tensorrt", "accuracy", "training", "evaluation"} <= {p.name for p in first}


@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [(None, False, "built without CUDA"), ("13.0", False, "no NVIDIA driver"), ("13.0", True, "sees no GPU")],
)
def test_what_is_missing_is_one_sentence(monkeypatch, cuda, driver, said) -> None:
    def load(_: str) -> None:
        if not driver:
            raise OSError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(gpu_device, "ctypes", SimpleNamespace(CDLL=load))
    found = str(lacking())
    assert said in found
    assert "\n" not in found
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert lacking() is None


@pytest.fixture
def start(monkeypatch, tmp_path, capsys):
    """`main` with those arguments, whose files lie in `tmp_path`; returns exit code and what was said."""
    for name in ("RESULT", "PART", "PAGE"):
        monkeypatch.setattr(on_gpu, name, tmp_path / name)
    (tmp_path / "PAGE").write_text(f"# A\n\n<!-- {MARK}: start -->\n\nold\n\n<!-- {MARK}: end -->\n\nafter\n")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["on_gpu.py", *arguments])
        code = main()
        return code, "".join(capsys.readouterr())

    return call


def test_without_a_gpu_nothing_is_written(start, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(on_gpu, "lacking", lambda: "there is none")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, said = start()
    assert code == 3
    assert said == "make gpu needs an NVIDIA GPU: there is none\n"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def _rows() -> dict[str, tuple[dict[str, object], ...]]:
    """Rows as the pieces give them on a GPU, by piece."""
    interval = {"value": 2.5, "interval_95": [2.25, 2.75], "half_width": 0.1}
    timed = {
        "network": "n", "backend": "torch", "recorded": False, "precision": "fp16", "same": {"fused": True},
        "median_ms": {"unfused": 2.0, "fused": 0.5, "plain": 0.25}, "failures": {}, "observed": {}, "warnings": [],
        "ratios": {"unfused / fused": interval, "fused / plain": interval}, "seconds": 3.0,
    }  # fmt: skip
    return {
        "device": (
            {
                "device": "cuda", "name": "GPU of test", "capability": "SM90", "cuda": "13.0", "torch": "2",
                "state": None,
            },
        ),
        "engines-tensorrt": (
            {
                "target": "tensorrt", "precision": "fp16", "runtime": "r", "capability": "SM90", "bytes": 1_500_000,
                "observed": {"convolutions": "15 Half"}, "export_s": 9.0, "images": 200, "max_error": 1e-3,
                "rms_error": 2e-4, "top1_agreement": 0.995, "accuracy": 0.83, "accuracy_before": 0.835,
                "median_ms": 0.125, "p95_ms": 0.2,
            },
        ),
        "latency-torch": (timed, timed | {"failures": {"plain": "out | of\nmemory"}, "recorded": True}),
    }  # fmt: skip


def test_a_run_writes_the_json_and_the_page_from_it(start, monkeypatch, tmp_path) -> None:
    known = _rows()

    def run(piece: Piece, device: str, limit_s: float) -> Outcome:
        assert device == "cuda"
        if piece.name == "tests":
            return Outcome(piece=piece.name, state="overran", said="more than 9 s", limit_s=limit_s)
        return Outcome(piece=piece.name, state="done", rows=known.get(piece.name, ()), limit_s=limit_s)

    monkeypatch.setattr(on_gpu, "lacking", lambda: None)
    monkeypatch.setattr(on_gpu, "in_a_process", lambda _: run)
    code, said = start()
    assert code == 1, "a piece overran"
    assert "tests: overran, 0 rows, 0 s: more than 9 s" in said
    content = json.loads((tmp_path / "RESULT").read_text())
    assert not (tmp_path / "PART").exists()
    assert content["schema"] == SCHEMA
    assert command_of(content) == "python benchmarks/studies/gpu/on_gpu.py"
    assert [piece["piece"] for piece in content["pieces"]] == list(PIECES)
    page = (tmp_path / "PAGE").read_text()
    assert page.startswith("# A\n")
    assert page.endswith("\nafter\n")
    assert f"\n\n{measured(content)}\n\n" in page
    for shown in (
        "On GPU of test, SM90, CUDA 13.0, torch 2: 12 of 13 pieces done",
        "| tests | pytest -m gpu | overran | 0 | more than 9 s |",
        "| tensorrt | fp16 | 15 Half | 1.5 | 1e-03 | 2e-04 | 99.5 % | 83.5 % | 83.0 % of 200 | 0.125 |",
        "| n | fp16 | torch | 2.000 | 0.500 | 0.250 | 2.50 [2.25, 2.75] | 2.50 [2.25, 2.75] |",
        "| n | fp16 | torch, CUDA graphs | 2.000 | 0.500 | out \\| of memory | 2.50",
    ):
        assert shown in page
    start("--only", "device")
    assert json.loads((tmp_path / "PART").read_text())["pieces"][0]["piece"] == "device"
    assert json.loads((tmp_path / "RESULT").read_text()) == content, "a part leaves the whole alone"


def test_the_json_holds_what_the_formats_say(start, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(on_gpu, "in_a_process", lambda _: lambda piece, *_: Outcome(piece=piece.name, state="done"))
    code, _ = start("--device", "cpu")
    content = json.loads((tmp_path / "PART").read_text())
    assert code == 0
    assert [piece["piece"] for piece in content["pieces"]] == [name for name, piece in PIECES.items() if piece.on_cpu]
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    line = next(line for line in formats.splitlines() if line.startswith(f"| `{SCHEMA}`"))
    told = set(re.findall(r"`([a-z0-9_]+)`", line))
    assert {*content, *content["pieces"][0]} - {"schema"} <= told


def test_every_kind_of_piece_that_gives_rows_has_a_table() -> None:
    kinds = {name.split("-")[0] for name in PIECES}
    assert kinds - {"device", "tests"} == {table.pieces for table in TABLES}
    assert all(len(table.heading) > 2 for table in TABLES)


def test_the_page_is_what_the_committed_result_gives() -> None:
    content = read_result(ROOT / "benchmarks" / "results" / "gpu.json", SCHEMA)
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert f"<!-- {MARK}: start -->\n\n{measured(content)}\n\n<!-- {MARK}: end -->" in page
    assert content is not None or NOT_YET in page


def _shown(kind: str, rows: list[Mapping[str, object]]) -> None:
    """The page can show those rows: no cell is missing."""
    (table,) = (table for table in TABLES if table.pieces == kind)
    assert rows
    assert all(len(table.cells(row)) == len(table.heading) for row in rows)
    json.dumps(rows)


def test_a_processor_is_as_accurate_as_itself() -> None:
    rows = list(accuracy("cpu"))
    _shown("accuracy", rows)
    assert {row["form"] for row in rows} == {"unfused", "fused"}
    assert all(row["top1_agreement"] == 1 and row["rms_error"] < 1e-6 for row in rows)
    assert next(described("cpu"))["device"] == "cpu"


def test_one_convolution_trains_as_its_branches_or_that_is_told(monkeypatch) -> None:
    _shown("agreement", list(agreement("cpu")))
    monkeypatch.setattr(learning, "ALLOWED", 0.0)
    with pytest.raises(VerificationError, match="one convolution on cpu: the gradient of"):
        list(agreement("cpu"))


def test_training_steps_are_taken_and_compared() -> None:
    rows = list(training("cpu"))
    _shown("training", rows)
    assert set(rows[0]["median_ms"]) == {"plain", "branch by branch", "sampled"}


def test_candidates_are_evaluated_as_the_processor_does() -> None:
    rows = list(evaluation("cpu"))
    _shown("evaluation", rows)
    assert [row["most_images_apart"] for row in rows] == [0]


@pytest.mark.parametrize("differs", [False, True])
def test_latency_is_what_the_harness_found_and_a_form_that_differs_is_told(monkeypatch, differs) -> None:
    asked = []

    def bench(sources: list[str], settings: BenchSettings) -> BenchResult:
        asked.append((sources, settings))
        keys = [Key(source="n", form=form, backend="torch", batch=1, precision="fp32") for form in ("unfused", "fused")]
        evidence = SimpleNamespace(passed=not differs)
        rows = [
            Row(key=key, device="cpu", latency=LatencyReport("", (ms, ms)), artefact_bytes=1, evidence=evidence)
            for key, ms in zip(keys, (0.004, 0.001), strict=True)
        ]
        ratios = (Compared(over=keys[0], under=keys[1], ratio=Ratio(4.0, 3.0, 5.0), warning=None),)
        return BenchResult(sources=(), settings=settings, rows=tuple(rows), compared=ratios, environment={})

    monkeypatch.setattr(gpu_latency, "bench", bench)
    found = gpu_latency.latency("torch", "cpu")
    row = next(found)
    _shown("latency", [row])
    assert row["median_ms"] == {"unfused": 4.0, "fused": 1.0}
    assert row["ratios"]["unfused / fused"]["interval_95"] == [3.0, 5.0]
    assert [(Path(sources[0]).name, settings.device) for sources, settings in asked] == [
        ("irep_resnet_cifar10.pt", "cpu")
    ]
    if differs:
        with pytest.raises(VerificationError, match="n, unfused, torch, batch 1, fp32 is not what its source gives"):
            next(found)
    else:
        assert list(found) == []


def test_an_engine_of_what_is_not_there_is_missing(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="tensorrt"):
        engine("tensorrt", "fp16", tmp_path)


def test_what_pytest_reports_is_counted() -> None:
    report = """<testsuites><testsuite>
        <testcase name="a"/><testcase name="b"><failure message="no"/></testcase>
        <testcase name="c"><skipped message="no CUDA device"/></testcase>
        <testcase name="d"><skipped message="no CUDA device"/></testcase><testcase name="e"><error/></testcase>
    </testsuite></testsuites>"""
    assert counted_tests(report) == {"passed": 1, "failed": ["b", "e"], "skipped": {"no CUDA device": 2}}
