"""The protocol of searches and trainings, and what is read off its finished jobs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau, t

from repconv.benchmarks.paper.searches import searches
from repconv.benchmarks.studies.common import wrapped
from repconv.benchmarks.studies.search.evidence import measure, page
from repconv.benchmarks.studies.search.evidence.findings import Findings, attainable, difference, over_seeds, said
from repconv.benchmarks.studies.search.evidence.job import KEPT
from repconv.benchmarks.studies.search.evidence.protocol import (
    FIXED_SIZE,
    MIXED_SIZES,
    SEEDS,
    SINGLE,
    VARIANTS,
    SearchJob,
    TrainingJob,
    drawn,
    jobs,
)
from repconv.search.folder import RunFolder
from repconv.search.reports.compare import outcome


def test_a_name_is_one_job_and_every_start_is_the_protocols() -> None:
    by_name = {}
    for job in jobs():
        assert by_name.setdefault(job.name, job) == job
    for job in by_name.values():
        if isinstance(job, TrainingJob) and job.search:
            assert isinstance(by_name[job.search], SearchJob)
            assert job.drawn is None or by_name[job.search].scored
    searched = {job.name for job in by_name.values() if isinstance(job, SearchJob)}
    assert searched == {f"search/{variant}-{seed}" for variant in VARIANTS for seed in SEEDS}


def test_searches_of_a_seed_have_equal_updates_and_other_settings() -> None:
    configs = [job.config for job in jobs() if isinstance(job, SearchJob) and job.config.seed == 0]
    assert len({(c.epochs, c.warmup_epochs, c.batch, c.train_images, c.validation_share) for c in configs}) == 1
    assert len({repr(c.provenance) for c in configs}) == len(VARIANTS)


def test_what_is_drawn_has_the_sizes_that_are_said() -> None:
    found = drawn()
    assert len(set(found)) == len(found) == 45
    assert {found[i].size for i in FIXED_SIZE} == {40}
    assert len(MIXED_SIZES) == len(FIXED_SIZE) == 24
    assert sorted({found[i].size for i in MIXED_SIZES}) == [10, 20, 30, 40, 50, 60]


@pytest.fixture
def kept(tmp_path: Path) -> Findings:
    """Two seeds of two searches, what they found trained, and the drawn architectures scored."""

    def write(name: str, **files: object) -> None:
        (tmp_path / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / name / f"{file}.json").write_text(json.dumps(content))

    for seed in (0, 1):
        for name, best in (("des", 0.5), ("random", 0.4)):
            scores = [i / 50 for i in range(45)]
            found = [{"accuracy": best + seed / 100, "age": 3}, {"accuracy": 0.3, "age": 1}]
            write(
                f"search/{name}-{seed}",
                result={"architectures": found},
                scores=dict.fromkeys(("own", "shared"), scores),
            )
            write(f"training/{name}-0-{seed}", result={"fused_accuracy": best + seed / 10})
            write(f"training/{name}-1-{seed}", result={"fused_accuracy": best - 0.1})
        for number in range(45):
            write(f"training/drawn-{number:02d}-{seed}", result={"fused_accuracy": math.sin(number + seed)})
    return Findings(tmp_path)


def test_numbers_are_those_of_the_files(kept: Findings) -> None:
    score = over_seeds(kept.score("des"))
    assert score is not None
    assert (score.value, score.count) == (pytest.approx(0.505), 2)
    half = t.ppf(0.975, 1) * 0.005  # of two values 0.01 apart
    assert score.interval == pytest.approx((0.505 - half, 0.505 + half))
    top = over_seeds(kept.top("des", 3))  # of the two there are
    assert top is not None
    assert top.value == pytest.approx((0.45 + 0.5) / 2)
    gain = difference(kept.top("des", 1), kept.top("random", 1))
    assert gain is not None
    assert gain.value == pytest.approx(0.1)
    assert said(gain) == "10.00 [10.00, 10.00] (2)"
    assert said(over_seeds(kept.age_of_best("des")), 1) == "3.00 [3.00, 3.00] (2)"
    trained = [math.sin(number) for number in FIXED_SIZE]
    assert kept.tau("random", "own", FIXED_SIZE)(0) == pytest.approx(kendalltau(FIXED_SIZE, trained).statistic)
    assert kept.tau("random", "own", FIXED_SIZE)(2) is None
    assert over_seeds(kept.top("cars", 1)) is None
    again = [math.sin(number + 1) for number in FIXED_SIZE]
    assert kept.agreement(FIXED_SIZE) == (pytest.approx(kendalltau(trained, again).statistic), 1)


def test_a_score_that_knows_the_worth_may_reach_more_than_two_trainings_agree() -> None:
    draw = np.random.default_rng(0).normal(size=(3, 4000))
    worth, one, other = draw[0], draw[0] + draw[1], draw[0] + draw[2]
    agreement = kendalltau(one, other).statistic
    assert attainable(agreement) == pytest.approx(kendalltau(worth, one).statistic, abs=0.02)
    assert attainable(agreement) > agreement + 0.1
    assert attainable(1) == pytest.approx(1)
    assert attainable(0) == attainable(-0.1) == 0


def test_the_page_of_a_done_protocol_leaves_nothing_open(tmp_path: Path) -> None:
    """Of every job the least a folder holds: no number is missing, none is no number."""
    for at, job in enumerate({job.name: job for job in jobs()}.values()):
        folder, accuracy = tmp_path / job.name, 0.5 + math.sin(at) / 10
        folder.mkdir(parents=True)
        alone = isinstance(job, SearchJob) and (job.config.strategy in SINGLE or job.config.ratio == 1)
        found = [{"accuracy": accuracy - rank / 100, "age": None} for rank in range(1 if alone else 12)]
        files = {"result": {"fused_accuracy": accuracy, "architectures": found}}
        if isinstance(job, SearchJob) and job.scored:
            files["scores"] = {key: [math.cos(number) for number in range(45)] for key in ("own", "shared")}
        files["environment"] = {"processor": f"P{at % 2}", "versions": {"torch": "2"}}
        for file, content in files.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        lines = [{"kind": "accuracy", "epoch": epoch, "accuracy": accuracy * epoch / 12} for epoch in range(1, 13)]
        took = {f"seconds_{part}": 1.0 for part in ("fold", "reestimate", "write", "run")}
        lines.append({"kind": "generation", "parents": 12, "survivors": at % 12, "mean_age": 1 + accuracy, **took})
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    findings = Findings(tmp_path)
    for text in (page.page(findings), searches(findings)):
        assert "not measured" not in text
        assert "too few" not in text
        assert "nan" not in text
        assert "(2)" not in text
    assert "357 of 357 are done on P0, torch 2; P1, torch 2." in " ".join(page.page(findings).split())


def test_what_is_left_is_named_without_images_and_not_done_without(monkeypatch, capsys) -> None:
    monkeypatch.setattr(measure, "finished", lambda name: name != "training/drawn-07-1")
    monkeypatch.setattr("sys.argv", ["measure.py", "--list"])
    measure.main()
    assert capsys.readouterr().out == "1 of 357 jobs are left\ntraining/drawn-07-1\n"
    monkeypatch.setattr("sys.argv", ["measure.py"])
    with pytest.raises(SystemExit, match="2"):
        measure.main()
    assert "give --train and --test" in capsys.readouterr().err


def test_a_verdict_says_what_is_shown_alone(kept: Findings) -> None:
    gains = {
        "above": difference(kept.top("des", 1), kept.top("random", 1)),
        "below": difference(kept.top("random", 1), kept.top("des", 1)),
        "either": over_seeds(lambda seed: (-1.0, 1.0, None)[seed]),
        "one": over_seeds(lambda seed: (1.0, None, None)[seed]),
        "nothing": None,
    }
    assert page.verdict(gains) == (
        ": better: above; worse: below; no difference shown: either; too few seeds to tell: one; "
        "not measured yet: nothing."
    )


def test_a_page_says_what_is_not_measured(kept: Findings) -> None:
    text = page.page(kept)
    assert "| `des` | 50.50 [44.15, 56.85] (2) |" in text
    assert "| `cars` | not measured yet |" in text
    assert " 102 of 357 are done" in " ".join(text.split())  # two searches, two trainings of each and 45 drawn, by seed


def test_paragraphs_are_wrapped_and_tables_are_not() -> None:
    table = "| a |\n|---|\n| " + "b" * 200 + " |"
    text = wrapped("# Title\n\n" + "word " * 60 + "\n\n" + table)
    assert table in text
    assert max(map(len, text.replace(table, "").splitlines())) <= 120


def test_the_page_is_what_the_kept_jobs_give() -> None:
    findings = Findings()
    assert page.PAGE.read_text(encoding="utf-8") == page.page(findings)
    drawn_ = page.picture(findings)
    assert drawn_ is None or page.PICTURE.read_text(encoding="utf-8") == drawn_


def test_what_is_kept_are_runs_that_the_commands_read() -> None:
    names = {job.name for job in jobs()}
    folders = [folder.parent for folder in KEPT.rglob("result.json")]
    for folder in folders:
        assert folder.relative_to(KEPT).as_posix() in names
        assert 0 <= outcome(RunFolder.open(folder)).accuracy <= 1
