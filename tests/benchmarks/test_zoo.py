"""The zoo: its families exist, its rows say what fusing reports, and its page is what the rows give."""

from __future__ import annotations

import copy
import json
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from repconv import fuse
from repconv.benchmarks.studies.common import read_result
from repconv.benchmarks.studies.graph.reasons import of_onnx, why_norms_stay
from repconv.benchmarks.studies.zoo.families import (
    FAMILIES,
    MULTI_BRANCH,
    TIMM,
    WITHOUT_CONVOLUTIONS,
    Member,
    members,
    modules_of_timm,
)
from repconv.benchmarks.studies.zoo.findings import KINDS, by_kind, findings, is_done, reasons, speed_up
from repconv.benchmarks.studies.zoo.measuring import COUNTED, FORMS, as_onnx, measured
from repconv.benchmarks.studies.zoo.page import PAGE, PICTURE, files, page, picture
from repconv.benchmarks.studies.zoo.subjects import Convolutional, Subject, subject, unsettle
from repconv.benchmarks.studies.zoo.zoo import CPU_LIMIT_S, SCHEMA, in_a_process, left, row, timing
from repconv.graph import fuse_onnx
from repconv.graph.core.reasons import Kind

TINY = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = (self.norms[0](self.one(x)) + self.norms[1](self.other(x))).relu()
        return {"logits": self.head((x * x.sigmoid()).mean((2, 3)))}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a network of two branches with a head, of the user's own code."""
    (tmp_path / "zoo_tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    yield "zoo_tiny:Tiny"
    sys.modules.pop("zoo_tiny", None)


def test_every_family_has_a_network_that_its_library_knows() -> None:
    timm, models = pytest.importorskip("timm"), pytest.importorskip("torchvision.models")
    assert len(FAMILIES["timm"]) > 90
    assert [entry for entry in FAMILIES["timm"].values() if not timm.is_model(entry)] == []
    assert set(FAMILIES["torchvision"].values()) <= set(models.list_models())
    names = [member.name for member in members()]
    assert len(set(names)) == len(names)
    assert set(MULTI_BRANCH) <= {member.family for member in members()}
    assert [member.family in MULTI_BRANCH for member in members()].index(False) == len(MULTI_BRANCH)


def test_no_module_of_timm_is_forgotten() -> None:
    timm = pytest.importorskip("timm")
    if timm.__version__ != TIMM:
        pytest.skip(f"the zoo was put together from timm {TIMM}")
    there = modules_of_timm()
    here = {there[entry] for entry in FAMILIES["timm"].values()}
    assert here | WITHOUT_CONVOLUTIONS == set(there.values())
    assert not here & WITHOUT_CONVOLUTIONS


def test_a_row_has_the_counts_that_fusing_reports(tiny: str) -> None:
    parts = dict(measured(tiny, 12))
    one = subject(tiny, 12)
    _, report = fuse(one.model, one.x)
    _, of_file = fuse_onnx(as_onnx(one)[0])
    assert set(parts) == {"source", *FORMS}
    assert parts["source"]["input"] == [1, 3, 12, 12]
    for form, told in (("program", report), ("onnx", of_file)):
        part = parts[form]
        for when, size in (("before", told.before), ("after", told.after)):
            assert set(part[when]) == set(COUNTED)
            assert (part[when]["convolutions"], part[when]["batch_norms"]) == (size.convolutions, size.batch_norms)
        assert part["before"] | {"convolutions": 2, "batch_norms": 0, "adds": 0} == part["after"]
        assert (part["before"]["convolutions"], part["before"]["batch_norms"], part["before"]["adds"]) == (3, 3, 1)
        assert (part["after"]["linears"], part["after"]["muls"], part["layers"]) == (1, 1, len(told.layers))
        assert sum(part["reasons"].values()) == len(told.refusals)
        assert part["prove"]["passed"]
        assert part["prove"]["cpu_s"] >= 0 <= part["fuse"]["peak_mb"]
        assert part["error"] < 1e-5
    assert findings({"network": tiny, "family": "tiny", **parts}) == []


def test_a_network_that_nothing_takes_is_told_apart_from_a_crash_of_fusing(tiny: str) -> None:
    file = Path("zoo_tiny.py")
    file.write_text(TINY.replace("x = self.norm(", "x = x if x.sum().item() > 0 else -x\n        x = self.norm("))
    parts = dict(measured(tiny, 12))
    assert parts["program"]["failure"]["step"] == "export"
    assert [kind for kind, _ in findings({"network": tiny, **parts})] == ["not exported"]


def test_nothing_stays_trivial() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        network[2].weight.zero_()
        network[0].bias.zero_()
    weight = network[0].weight.clone()
    unsettle(network)
    assert all((parameter != parameter.flatten()[0]).any() for parameter in network.parameters())
    assert torch.equal(network[0].weight, weight)
    gammas = network[1].weight.detach()
    assert 0.5 <= float(gammas.min()) <= float(gammas.max()) <= 1.5


def test_a_detector_is_what_runs_on_a_whole_image() -> None:
    pytest.importorskip("torchvision")
    one = subject("torchvision:ssdlite320_mobilenet_v3_large", 64)
    assert isinstance(one.model, Convolutional)
    with torch.no_grad():
        assert [t.dim() for t in one.model(one.x)] == [3, 3]


def _row(network: str = "timm:a", family: str = "a", **more: Any) -> dict[str, Any]:  # parts of a row
    counts = dict.fromkeys(COUNTED, 2)
    part = {
        "export": {"cpu_s": 1.0, "peak_mb": 1.0}, "fuse": {"cpu_s": 1.0, "peak_mb": 2.0},
        "before": counts, "after": counts | {"batch_norms": 0}, "layers": 2, "reasons": {"product": 3},
        "unexplained": 0,
        "prove": {"cpu_s": 1.0, "peak_mb": 3.0, "passed": True, "verdict": "equal", "comparisons": 3, "unmeasured": []},
        "own_error": 1e-6, "error": 1e-6,
    }  # fmt: skip
    source = {"parameters": 10, "input": [1, 3, 8, 8], "finite": True, "reference": "float64", "own_error": 1e-6}
    environment = {"processor": "a processor", "versions": {"torch": "2", "onnxruntime": "1"}}
    found = {"network": network, "family": family, "source": source, "program": part, "onnx": part}
    return copy.deepcopy({**found, "seconds": 1.0, "environment": environment}) | more


def _timed(ratio: float) -> dict[str, Any]:
    return {"ratio": ratio, "interval_95": [ratio - 0.01, ratio + 0.01]}


def _with(form: str, **more: Any) -> dict[str, Any]:  # fields of a part
    found = _row()
    return found | {form: found[form] | more}


FAILED = _row()["onnx"]["prove"] | {"passed": False, "verdict": "NOT equal"}


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (_with("onnx", error=1e-2, prove=FAILED), "wrong"),
        (_with("onnx", error=1e-2), "wrong"),
        (_with("program", error=float("nan")), "wrong"),
        (_with("program", prove=FAILED), "false alarm"),
        (_with("onnx", failure={"step": "fuse", "kind": "IndexError", "said": "x"}), "crashed"),
        (_with("onnx", failure={"step": "prove", "kind": "FusionError", "said": "x"}), "refused"),
        (_with("onnx", failure={"step": "export", "kind": "RuntimeError", "said": "x"}), "not exported"),
        (_row(stopped="time"), "stopped"),
        (_with("onnx", failure={"step": "prove", "kind": "MemoryError", "said": ""}), "stopped"),
        (_with("onnx", after=dict.fromkeys(COUNTED, 3) | {"batch_norms": 0}), "more"),
        (_with("program", after=dict.fromkeys(COUNTED, 1)), "norm left"),
        (_with("onnx", unexplained=1), "no reason"),
        (_with("onnx", fuse={"cpu_s": 15.5, "peak_mb": 1}), "slow"),
        (_row(latency=_timed(1.05)), "slower"),
        (_row(source=_row()["source"] | {"finite": False}), "own error"),
    ],
)
def test_what_is_not_right_is_told(found: dict[str, Any], kind: str) -> None:
    assert {each for each, _ in findings(found)} == {kind}
    assert by_kind([found, _row()])[kind] == [("timm:a", dict(findings(found))[kind])]


def test_what_is_right_is_not() -> None:
    assert findings(_row(latency=_timed(1.025))) == []
    assert set(by_kind([_row()])) == set(KINDS)


def test_a_linear_layer_written_as_a_convolution_is_none_more() -> None:
    turned = dict.fromkeys(COUNTED, 0) | {"convolutions": 7, "linears": 1}
    found = _with("onnx", before=turned, after=turned | {"convolutions": 8, "linears": 0})
    assert findings(found) == []
    assert findings(_with("onnx", before=turned, after=turned | {"convolutions": 8})) == [
        ("more", "onnx: products 8 to 9")
    ]


def test_norms_that_stay_are_told_with_what_for() -> None:
    network = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
    model, _ = as_onnx(Subject(network.eval(), torch.randn(1, 4, 8, 8)))
    fused, report = fuse_onnx(model, prove=False)
    stays = why_norms_stay(of_onnx(model, fused, report), report.refusals)
    assert stays == {"no reason": 1}, "nothing beside it is affine"
    found = _with("onnx", after=dict.fromkeys(COUNTED, 1), norms_stay={"read elsewhere": 2, "no reason": 1})
    assert findings(found)[0][1].endswith(": 2 (read elsewhere), 1 (nothing affine beside it)")


def test_reasons_and_speed_are_of_all_rows() -> None:
    rows = [_row(latency=_timed(0.5)), _row("timm:b", "b", latency=_timed(2.0)), _row("timm:c", "c")]
    rows[1]["onnx"]["reasons"] = {"product": 5, "pixels": 9}
    assert reasons(rows, "onnx") == [("product", 11, 3, "timm:b"), ("pixels", 9, 1, "timm:b")]
    assert speed_up(rows) == pytest.approx(1)
    assert speed_up(rows[2:]) is None


def _content(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, "command": "python benchmarks/studies/zoo/zoo.py", "rows": list(rows)}


def test_the_page_says_what_the_rows_say() -> None:
    failed = {"failure": {"step": "export", "kind": "RuntimeError", "said": "no"}}
    broken = _row("timm:b", "b", program=failed, onnx=failed)
    text = page(_content(_row(), broken))
    assert f"1 of {len(members())} are done; {len(members()) - 2} are still to be done" in " ".join(text.split())
    assert "Latency is not measured yet" in text
    assert "| a | `timm:a` | 2 | 2 | 2 -> 0 |" in text
    assert "| timm:b | not exported | program: export: RuntimeError: no |" in text
    assert f"| product | 3 | 1 | `timm:a` | {Kind.PRODUCT.folds_if} |" in text
    assert not is_done(broken)
    drawn = picture(_content(_row(), broken))
    assert "after over before" in drawn
    assert drawn.count("<title>") == 1


def test_the_picture_is_of_speed_where_anything_is_timed() -> None:
    content = _content(_row(latency=_timed(0.5)), _row("timm:b", "repvgg", latency=_timed(0.8)), _row("timm:c", "c"))
    drawn = picture(content)
    assert [name in drawn for name in ("<title>a: 2.000", "<title>repvgg: 1.250", "<title>c: ")] == [True, True, False]
    text = page(content)
    assert "takes 1.25 times as long unfused as fused" in " ".join(text.split())
    assert "| 0.500 [0.490, 0.510] |" in text


def test_the_committed_page_is_what_the_committed_rows_give() -> None:
    content = read_result(PAGE.parent.parent / "benchmarks" / "results" / "zoo.json", SCHEMA)
    assert content is not None
    written = files(content)
    assert {file: file.read_bytes() for file in (PAGE, PICTURE)} == written
    assert {found["network"] for found in content["rows"]} <= {member.name for member in members()}


def test_what_is_left_is_what_has_no_row() -> None:
    asked = Namespace(only="^timm:", again=False, latency=False)
    first, second = (member for member in members()[:2])
    rows = {first.name: _row(first.name, first.family), second.name: _row(second.name, second.family)}
    names = [member.name for member in left(asked, rows)]
    assert first.name not in names
    assert len(names) == len(FAMILIES["timm"]) - 2
    rows[first.name]["latency"] = _timed(1.0)
    asked.latency = True
    assert left(asked, rows) == [second]
    rows[second.name]["onnx"]["layers"] = 0
    assert left(asked, rows) == []


def test_a_timing_that_is_stopped_says_nothing_of_fusing() -> None:
    assert timing("timm:a", lambda *_: iter([("latency", _timed(1.0))])) == {"latency": _timed(1.0)}
    found = _row() | timing("timm:a", lambda *_: iter([("stopped", "too long")]))
    assert found["untimed"] == "too long"
    assert findings(found) == []


def test_parts_of_a_network_that_is_stopped_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    for signum, said in (
        (signal.SIGXCPU, f"more than {CPU_LIMIT_S} s"),
        (signal.SIGSEGV, f"signal {signal.SIGSEGV:d}"),
    ):
        script.write_text(
            f"print('{json.dumps({'source': {'a': 1}})}', flush=True)\nimport os; os.kill(os.getpid(), {signum:d})"
        )
        monkeypatch.setattr("repconv.benchmarks.studies.zoo.zoo.__file__", str(script))
        found = row(Member("timm", "a", "b"), in_a_process)
        assert found["source"] == {"a": 1}
        assert found["stopped"].startswith(said)
        assert (found["network"], found["family"]) == ("timm:b", "a")
