"""The report of a benchmark: complete, self-contained, and sound in a browser at the width of a phone."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

from repconv import create_model, fuse
from repconv.benchmarks.harness.bench import _compared
from repconv.benchmarks.harness.machine.machine import Others
from repconv.benchmarks.harness.page import bench_report
from repconv.benchmarks.harness.results import BenchResult, Key, Measured, Row
from repconv.benchmarks.harness.settings import BenchSettings
from repconv.benchmarks.harness.turns.timing import LatencyReport
from repconv.blocks.inspection import inspect
from repconv.blocks.probing import probes
from repconv.blocks.proof import prove_blocks
from repconv.cli.shared.bench_text import differing, findings, markdown, tables
from repconv.export.proof.evidence import Evidence
from repconv.export.proof.tolerances import tolerance_for
from repconv.pages.drawing import distributions, dots
from repconv.proof.agreement import Comparison, Difference

SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)
SETTINGS = BenchSettings(backends=("torch", "onnxruntime"), rounds=6, sessions=3)


def evidence(error: float) -> Evidence:
    seen = Comparison(
        where="1x3x8x8",
        shape=(1, 3, 8, 8),
        dtype="float32",
        error=Difference(max_absolute=error, to_scale=error, to_channel=error),
        own=None,
        tolerance=1e-5,
        reason="the floor",
    )
    return Evidence(
        runtime="a runtime",
        inputs="noise",
        images=1,
        judged=1,
        tolerance=tolerance_for("fp32"),
        comparisons=(seen,),
        mean_error=error,
        rms_error=error,
    )


def result_of(error: float = 1e-7, failure: str | None = None) -> BenchResult:
    """A small network measured by a made-up clock."""
    torch.manual_seed(0)
    network = create_model("irep_resnet18", width=4, blocks=(1, 1)).eval()
    fused, report = fuse(network)
    report = report.with_agreement(prove_blocks(network, fused, probes((3, 8, 8))).agreement)
    generator = np.random.default_rng(0)
    rows = []
    for backend in SETTINGS.backends:
        for form, median in (("unfused", 0.010), ("fused", 0.001), ("plain", 0.001)):
            samples = tuple(map(float, median * np.exp(generator.normal(0, 0.01, 60))))
            lost = failure if backend == "onnxruntime" else None
            key = Key(source="<a & b>.pt", form=form, backend=backend, batch=1, precision="fp32")
            rows.append(
                Row(
                    key=key,
                    device="cpu",
                    latency=None if lost else LatencyReport(key.name, samples, (10,) * 6),
                    artefact_bytes=1000,
                    memory_bytes=2_000_000,
                    load_s=0.1,
                    evidence=None if form == "plain" or lost else evidence(error if form == "fused" else 1e-7),
                    observed={"threads": "2"},
                    warnings=(),
                    failure=lost,
                )
            )
    source = Measured(
        label="<a & b>.pt",
        name="x/<a & b>.pt",
        size=(3, 8, 8),
        bytes=1000,
        sha256="0" * 64,
        report=report,
        inspection=inspect(network),
    )
    return BenchResult(
        sources=(source,),
        settings=SETTINGS,
        rows=tuple(rows),
        compared=tuple(_compared(rows, SETTINGS)),
        environment={"processor": "a <processor>", "cores": 2, "versions": {"torch": "1"}},
        others=Others(0.2, 0.0, 0.0),
        warnings=Others(0.2, 0.0, 0.0).warnings,
        notes=("a note",),
        seconds=3.0,
    )


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return result_of()


def test_the_page_holds_everything_and_asks_for_nothing(result) -> None:
    text = bench_report(result)
    for part in (
        "What was fused",
        "Architecture",
        "Error by block",
        "Latency",
        "Compared",
        "Settings asked for",
        "Machine",
        "Settings observed",
        "unfused / fused",
        "fused / plain",
        "other load",
        "a note",
        "same network",
        "1x1_3x3",
    ):
        assert part in text, part
    assert "&lt;a &amp; b&gt;" in text
    assert "<a & b>" not in text
    assert "://" not in SVG.sub("", text)
    assert "<script" not in text
    pictures = SVG.findall(text)
    assert len(pictures) == 4, "a distribution a backend, errors, and the architecture"
    for picture in pictures:
        ElementTree.fromstring(picture)  # noqa: S314  # our own output


def test_a_mismatch_and_a_failure_are_said_everywhere() -> None:
    found = result_of(error=1e-2, failure="its process was ended by signal 9 (SIGKILL)")
    assert [row.key.backend for row in found.differing] == ["torch"]
    for text in (bench_report(found), tables(found), "\n".join(differing(found)), markdown(found, "repconv bench")):
        assert "NO" in text or "differs" in text
    assert "SIGKILL" in bench_report(found)
    assert "failed" in tables(found)
    nan = result_of(error=float("inf"))
    assert "NaN or Inf" in tables(nan)
    assert json.dumps(nan.to_dict(), allow_nan=False)


def test_names_are_no_html_in_markdown() -> None:
    text = markdown(result_of(), "repconv bench `a`.pt")
    assert "<" not in text
    assert "&lt;a &amp; b&gt;.pt" in text
    assert text.startswith("``repconv bench `a`.pt``")


def test_the_tables_state_ratios_with_intervals(result) -> None:
    text = tables(result)
    line = next(line for line in text.splitlines() if "unfused / fused" in line and "torch" in line)
    ratio = next(c.ratio for c in result.compared if c.name == "unfused / fused")
    assert f"{ratio.value:.2f}" in line
    assert f"{ratio.low:.2f} to {ratio.high:.2f}" in line
    assert "other load" in findings(result)
    assert text.count("yes, 1e-07") == 4
    assert "| torch | fused |" in markdown(result, "repconv bench a.pt")


def test_the_json_has_what_was_asked_for_and_every_sample(result) -> None:
    content = json.loads(json.dumps(result.to_dict()))
    assert content["settings"]["rounds"] == 6
    assert content["sources"][0]["sha256"] == "0" * 64
    assert all(len(row["latency"]["samples_s"]) == 60 for row in content["rows"])
    assert {r["name"] for r in content["ratios"]} == {"unfused / fused", "fused / plain"}


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_fetches_nothing_and_finds_no_fault(result, look, tmp_path, width, dark) -> None:
    (tmp_path / "report.html").write_text(bench_report(result), encoding="utf-8")
    seen = look(tmp_path / "report.html", width, dark=dark)
    assert seen.fetched == ()
    assert seen.errors == ()
    assert seen.overflow <= 0
    assert (seen.pictures, seen.tables) == (4, 8)


@pytest.mark.slow
def test_the_browser_would_notice(look, tmp_path) -> None:
    """A page that fetches, fails and is too wide."""
    (tmp_path / "bad.html").write_text(
        '<div style="width:900px">wide</div><img src="gone.png"><script>undefined.x</script>', encoding="utf-8"
    )
    seen = look(tmp_path / "bad.html", 360)
    assert any(url.endswith("gone.png") for url in seen.fetched)
    assert seen.errors
    assert seen.overflow > 0


def test_pictures_place_values_in_proportion() -> None:
    root = ElementTree.fromstring(distributions([("a", [1.0] * 99 + [1e9], 1.0), ("b & c", [10.0], 10.0)], "ms"))  # noqa: S314
    text = " ".join(t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "b & c" in text
    assert dots([("x", (None, 0.0))], ("a", "b"), "u") == ""
    root = ElementTree.fromstring(dots([("x", (1e-7, 1e-6)), ("y", (1e-5, None))], ("a", "b"), "u"))  # noqa: S314
    drawn = [c for c in root.iter("{http://www.w3.org/2000/svg}circle") if c.find("{*}title") is not None]
    xs = [float(c.get("cx")) for c in drawn]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
