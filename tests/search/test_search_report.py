"""The report of a run, finished or under way."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from repconv import SearchError
from repconv.search.config import SCHEMA
from repconv.search.folder import RESULT, RunFolder
from repconv.search.presets import PRESETS
from repconv.search.reports.chart import chart
from repconv.search.reports.compare import RunOutcome
from repconv.search.reports.measured import times
from repconv.search.reports.report import report
from repconv.search.run import run
from repconv.search.settings import settings_to_dict
from repconv.search.supernet.precision import TAU

SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    config = replace(
        PRESETS["smoke"].config,
        width=2,
        blocks=(1,),
        train_images=120,
        population=3,
        epochs=4,
        warmup_epochs=1,
        generation_epochs=1,
        architectures=1,
        batch=32,
    )
    folder = RunFolder.create(
        tmp_path_factory.mktemp("runs") / "a", settings_to_dict(config, SCHEMA), {"machine": "<a test>"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repconv.search.run._tensorboard", lambda *_: None)
        run(folder)
    return folder


def test_a_finished_runs_report_shows_what_was_asked_for(finished) -> None:
    text = report(finished)
    for part in ("Convergence", "Population", "age in generations", "Gates by layer and kind", "Best architectures"):
        assert part in text
    assert "&lt;a test&gt;" in text
    assert "://" not in SVG.sub("", text), "it needs nothing from outside"
    pictures = SVG.findall(text)
    assert len(pictures) == 8
    for picture in pictures:
        ElementTree.fromstring(picture)  # noqa: S314  # our own output
    accuracies = [a["accuracy"] for a in finished.read_json(RESULT)["architectures"]]
    assert all(f"<td>{a:.4f}</td>" in text for a in accuracies)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_fetches_nothing_and_finds_no_fault(finished, look, tmp_path, width) -> None:
    (tmp_path / "report.html").write_text(report(finished), encoding="utf-8")
    seen = look(tmp_path / "report.html", width)
    assert seen.fetched == ()
    assert seen.errors == ()
    assert seen.overflow <= 0
    assert seen.pictures == 8


def test_a_run_under_way_is_reported_as_far_as_it_got(finished, tmp_path) -> None:
    folder = RunFolder(tmp_path / "b")
    (folder.path / "populations").mkdir(parents=True)
    for name in ("config.json", "environment.json"):
        folder.write_text(name, (finished.path / name).read_text())
    assert "<b>Under way:</b> 0 of 4 epochs" in report(folder)
    for record in finished.metrics()[:3]:
        folder.append_metrics(record)
    folder.write_text("populations/0001.json", (finished.path / "populations" / "0001.json").read_text())
    text = report(folder)
    assert "2 of 4 epochs" in text
    assert "Gates by layer and kind" in text
    assert "Best architectures" not in text


def test_a_chart_places_points_in_proportion_and_leaves_out_what_is_not_finite() -> None:
    picture = chart("a & b", "x", [("one", [(0, 0.0), (5, 1.0), (10, 2.0), (3, float("nan"))])])
    root = ElementTree.fromstring(picture)  # noqa: S314  # our own output
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(circles) == 3
    assert circles[1][0] == pytest.approx((circles[0][0] + circles[2][0]) / 2, abs=0.1)
    assert circles[1][1] == pytest.approx((circles[0][1] + circles[2][1]) / 2, abs=0.1)
    assert circles[0][1] > circles[2][1]
    assert "no numbers yet" in chart("t", "x", [("one", [])])
    ElementTree.fromstring(chart("flat", "x", [("one", [(1, 0.5)])]))  # noqa: S314  # our own output


def test_an_axis_of_shares_ends_at_0_and_1_and_pictures_fit_the_page() -> None:
    for value, ends in ((1.0, (">0.5<", ">1<")), (0.0, (">0<", ">0.5<"))):
        picture = chart("accuracy", "generation", [("best", [(1, value), (2, value)])], within=(0.0, 1.0))
        assert all(end in picture for end in ends)
        assert ">1.5<" not in picture
        assert "viewBox=" in picture


def test_pages_shrink_pictures_and_give_them_their_colours(finished) -> None:
    text = report(finished)
    assert "svg{display:block;max-width:100%;height:auto}" in text
    assert "figure svg text:not([fill]){fill:currentColor}" in text
    assert text.count("<svg") == text.count("viewBox=")
    assert 'class="ground"' in text


def test_times_are_those_of_the_metrics() -> None:
    epochs = [
        {"epoch": epoch, "step": 10 * epoch, "seconds_a_step": float(epoch)} for epoch in (1, 2, 3, 4)
    ]  # after a warm-up of two: 30 s and 40 s
    measuring = {"seconds_fold": 1.0, "seconds_reestimate": 2.0, "seconds_write": 3.0, "seconds_run": 4.0}
    generations = [{"generation": g, "epoch": 2 + g, TAU: 0.97, **measuring} for g in (1, 2)]
    (drawn,) = times(epochs, generations, 2)
    assert re.findall(r">(40|2)</text>", drawn), "from statistics of 2 s to training of 40 s"
    for name in ("training", "statistics", "kernels", "images"):
        assert f">{name}</text>" in drawn
    assert "tau of 0.97" in drawn


def test_scores_stand_beside_accuracies_when_trained(finished) -> None:
    runs = [
        RunOutcome(path=str(i), kind="retrain", settings={}, seed=(0, 0), accuracy=accuracy, score=score)
        for i, (score, accuracy) in enumerate([(0.5, 0.80), (0.6, 0.81), (0.7, 0.83), (0.8, 0.82)])
    ]
    text = report(finished, runs)
    assert "Scores, and accuracies when trained" in text
    assert "tau of 0.67" in text
    assert "there are fewer" in report(finished, runs[:2])
    searched = replace(runs[0], kind="search", score=None)
    with pytest.raises(SearchError, match="0 is a search: it has no score to set beside its accuracy"):
        report(finished, [searched, *runs])
