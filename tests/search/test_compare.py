"""Finished runs beside each other: what the numbers are, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repconv import SearchError, create_model
from repconv.search.config import SCHEMA, SearchConfig
from repconv.search.folder import CONFIG, METRICS, POPULATIONS, RESULT, RunFolder
from repconv.search.reports.candidates import read_candidates
from repconv.search.reports.compare import compare, estimate, labels, opened
from repconv.search.reports.found import Found
from repconv.search.retrain_config import SCHEMA as RETRAINING
from repconv.search.retrain_config import RetrainConfig
from repconv.search.settings import settings_to_dict
from repconv.search.strategies.evolution import first_population
from repconv.search.supernet.space import SearchSpace
from repconv.search.supernet.supernet import Gates

kendalltau = pytest.importorskip("scipy.stats", reason="scipy is not installed").kendalltau
SMALL = SearchConfig(network="irep_resnet18", width=2, blocks=(1,), data="digits")
SPACE = SearchSpace.of(create_model("irep_resnet18", width=2, blocks=(1,), in_channels=1))
GATES = Gates((0.0,) * len(SPACE.slots), (0.0,) * len(SPACE.blocks))


def architectures(count: int, seed: int = 0):
    import torch

    return first_population(SPACE, SPACE.budget(0.5), count, torch.Generator().manual_seed(seed))


def searched(path: Path, accuracies: list[float], **changes: object) -> Path:
    """A finished search's folder, with these accuracies."""
    config = dataclasses.replace(SMALL, **changes)
    folder = RunFolder.create(path, settings_to_dict(config, SCHEMA), {})
    space = [dataclasses.asdict(block) for block in SPACE.blocks]
    found = [{"accuracy": a, "age": 1, "active": m.active} for a, m in zip(accuracies, architectures(9), strict=False)]
    gates = {"alpha": list(GATES.alpha), "beta": list(GATES.beta)}
    folder.write_json(RESULT, {"schema": "repconv.search/1", "space": space, "gates": gates, "architectures": found})
    members = [{**one, "score": None} for one in found]
    state = {"generation": 1, "gates": gates, "members": members, "asked": []}
    folder.write_json(f"{POPULATIONS}/0001.json", {"schema": "repconv.population/1", "space": space, **state})
    return path


def retrained(path: Path, score: float, accuracy: float, *, strategy: str, seed: int) -> Path:
    config = dataclasses.replace(SMALL, strategy=strategy, seed=seed)
    found = Found(
        architecture=architectures(1, seed)[0], network=config.network_settings, gates=GATES, accuracy=score,
        searched=config.provenance,
    )  # fmt: skip
    settings = settings_to_dict(RetrainConfig(data="digits"), RETRAINING)
    folder = RunFolder.create(path, {**settings, "architecture": found.to_dict()}, {})
    result = {"measured_on": "test", "images": 10, "accuracy": accuracy, "fused_accuracy": accuracy}
    folder.write_json(RESULT, {"schema": "repconv.retrain/1", **result})
    return path


def test_groups_differ_in_settings_and_are_paired_by_seed(tmp_path) -> None:
    runs = [
        searched(tmp_path / f"{strategy}{seed}", [0.1, best], strategy=strategy, seed=seed)
        for strategy, values in (("des", (0.70, 0.74, 0.72)), ("random", (0.69, 0.71, 0.70)))
        for seed, best in enumerate(values)
    ]
    found = compare(opened(map(str, runs)))
    assert list(found.groups) == ["strategy=des", "strategy=random"]
    assert found.groups["strategy=des"].value == pytest.approx(0.72)
    half = 4.302652729749462 * 0.02 / math.sqrt(3)  # Student's t of two degrees of freedom
    assert found.groups["strategy=des"].interval == pytest.approx((0.72 - half, 0.72 + half))
    (name,) = found.differences
    assert name == "strategy=random - strategy=des"
    assert found.differences[name].value == pytest.approx(-0.02)
    assert found.differences[name].count == 3
    assert not found.correlation


def test_rank_correlation_of_score_and_retrained_accuracy(tmp_path) -> None:
    scores = {"des": [(0.5, 0.80), (0.6, 0.81), (0.7, 0.83), (0.8, 0.82)], "random": [(0.5, 0.79), (0.6, 0.78)]}
    runs = [
        retrained(tmp_path / f"{strategy}{i}", score, accuracy, strategy=strategy, seed=0)
        for strategy, pairs in scores.items()
        for i, (score, accuracy) in enumerate(pairs)
    ]
    found = compare(opened(map(str, runs)))
    assert list(found.groups) == ["search.strategy=des", "search.strategy=random"]
    assert found.correlation["search.strategy=des"].value == pytest.approx(4 / 6)  # five pairs agree, one does not
    assert set(found.correlation) == {"search.strategy=des", "all"}  # two are too few
    low, high = found.correlation["all"].interval
    assert -1 <= low <= found.correlation["all"].value <= high <= 1
    together = [pair for pairs in scores.values() for pair in pairs]
    assert found.correlation["all"].value == pytest.approx(kendalltau(*zip(*together, strict=True)).statistic)


def test_scores_are_ranked_within_a_seed(tmp_path) -> None:
    """The second seed's supernet scores all higher, and its images are harder to learn from."""
    runs = [
        retrained(
            tmp_path / f"{seed}-{i}", 0.5 + i / 100 + seed / 5, 0.8 + i / 100 - seed / 5, strategy="des", seed=seed
        )
        for seed in (0, 1)
        for i in range(3)
    ]
    alone = retrained(tmp_path / "alone", 0.9, 0.1, strategy="des", seed=2)  # beside which there is no other
    found = compare(opened([*map(str, runs), str(alone)])).correlation["alike"]
    assert (found.value, found.interval, found.count) == (pytest.approx(1), pytest.approx((1, 1)), 6)
    pairs = [(math.sin(i), math.cos(i)) for i in range(12)]
    several = [retrained(tmp_path / f"a{i}", *pair, strategy="des", seed=i % 2) for i, pair in enumerate(pairs)]
    found = compare(opened(map(str, several))).correlation["alike"]
    # As many pairs in both seeds, none of equal values: the mean of theirs.
    taus = [kendalltau(*zip(*pairs[seed::2], strict=True)).statistic for seed in (0, 1)]
    assert found.value == pytest.approx(sum(taus) / 2)
    low, high = found.interval
    assert low < found.value < high


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.floats(-1, 1))
def test_an_interval_moves_with_its_values(values: list[float], by: float) -> None:
    here, there = estimate(values), estimate([value + by for value in values])
    assert there.value == pytest.approx(here.value + by, abs=1e-9)
    assert there.interval == pytest.approx((here.interval[0] + by, here.interval[1] + by), abs=1e-9)
    assert estimate(values[:1]).interval is None


def test_labels_name_what_differs_alone() -> None:
    assert labels([{"a": 1, "b": 0.5, "c": (1, 2)}, {"a": 1, "b": 0.25, "c": (1,)}]) == ["b=0.5 c=1,2", "b=0.25 c=1"]
    assert labels([{"a": 1}, {"a": 1}]) == ["alike", "alike"]


def test_numbers_that_differ_late_are_two_groups(tmp_path) -> None:
    assert labels([{"a": 2 / 3}, {"a": 0.66666}, {"a": 0.5}]) == ["a=0.66667", "a=0.66666", "a=0.5"]
    runs = [searched(tmp_path / str(ratio), [ratio], ratio=ratio) for ratio in (2 / 3, 0.66666)]
    assert [group.count for group in compare(opened(map(str, runs))).groups.values()] == [1, 1]


def test_a_run_counts_once_however_often_it_is_named(tmp_path, monkeypatch) -> None:
    runs = [retrained(tmp_path / f"r{i}", i / 9, i / 8, strategy="des", seed=i) for i in range(3)]
    monkeypatch.chdir(tmp_path)
    again = [*map(str, runs), "r0", "./r1", "r2/../r2"]
    assert compare(opened(again)).groups == compare(opened(map(str, runs))).groups
    assert not compare(opened(again)).correlation  # of four
    with pytest.raises(SearchError, match="each in a folder of its own, got 1 of retrain"):
        compare(opened(["r0", "r0/"]))


def test_what_cannot_be_compared_is_refused(tmp_path) -> None:
    one = searched(tmp_path / "one", [0.5])
    with pytest.raises(
        SearchError,
        match="two or more searches or two or more retrainings, each in a folder of its own, got 1 of search",
    ):
        compare(opened([str(one)]))
    other = retrained(tmp_path / "other", 0.5, 0.6, strategy="des", seed=0)
    with pytest.raises(SearchError, match="got 2 of retrain and search"):
        compare(opened([str(one), str(other)]))
    RunFolder.create(tmp_path / "begun", settings_to_dict(SMALL, SCHEMA), {})
    with pytest.raises(SearchError, match=r"begun is under way: only finished runs are compared"):
        opened([str(tmp_path / "begun")])
    with pytest.raises(SearchError, match="holds no run"):
        opened([str(tmp_path)])


def test_the_command_shows_it_and_writes_it(command_line, tmp_path) -> None:
    runs = [str(searched(tmp_path / f"r{i}", [0.5 + i / 100], ratio=i / 8, seed=i % 2)) for i in range(1, 5)]
    code, out, err = command_line("search", "compare", *runs, "--json", str(tmp_path / "c.json"))
    assert code == 0, err
    assert "ratio=0.125" in out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["schema"] == "repconv.search-compare/1"
    assert content["groups"]["ratio=0.5"]["value"] == pytest.approx(0.54)


class TestCandidates:
    def test_the_best_of_a_result_a_population_or_a_folder(self, tmp_path) -> None:
        run = searched(tmp_path / "run", [0.2, 0.9, 0.5], seed=3)
        for source in (run, run / RESULT, run / POPULATIONS / "0001.json"):
            found = read_candidates(source, 2)
            assert [one.accuracy for one in found] == [0.9, 0.5]
            assert found[0].architecture == architectures(9)[1]
            assert found[0].network == SMALL.network_settings
            assert found[0].searched["seed"] == 3
            assert "data" not in found[0].searched

    def test_what_is_refused(self, tmp_path) -> None:
        run = searched(tmp_path / "run", [0.2, 0.9])
        with pytest.raises(SearchError, match="holds 2 architectures, and 3 were asked for"):
            read_candidates(run, 3)
        with pytest.raises(SearchError, match=r"is of schema .*search-config/2.*; expected repconv.arch/1"):
            read_candidates(run / CONFIG)
        (tmp_path / POPULATIONS).mkdir()
        (tmp_path / RESULT).write_text((run / RESULT).read_text())
        with pytest.raises(SearchError, match="names no network"):
            read_candidates(tmp_path / RESULT)
        with pytest.raises(SearchError, match="cannot read"):
            read_candidates(run / METRICS)
        with pytest.raises(SearchError, match="holds no run"):
            read_candidates(tmp_path / POPULATIONS)

    def test_a_run_under_way_is_named_with_what_it_has(self, tmp_path) -> None:
        run = searched(tmp_path / "run", [0.2, 0.9])
        (run / RESULT).unlink()
        with pytest.raises(SearchError, match=r"run is under way: .*search resume\), or name .*populations/0001.json"):
            read_candidates(run)
        assert read_candidates(run / POPULATIONS / "0001.json")[0].accuracy == 0.9


@pytest.mark.slow
def test_the_best_two_of_a_search_are_retrained_into_folders_of_their_own(command_line, tmp_path, monkeypatch) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    monkeypatch.chdir(tmp_path)
    searched(tmp_path / "run", [0.2, 0.9, 0.5])
    short = ("--set", "epochs=1", "--set", "train_images=100", "--json", "top.json")
    code, _, err = command_line("retrain", "run", "--top", "2", "-o", "top", *short)
    assert code == 0, err
    content = json.loads(Path("top.json").read_text())
    assert [one["run"] for one in content["runs"]] == ["top/1", "top/2"]
    code, out, err = command_line("search", "compare", "top/1", "top/2")
    assert code == 0, err
    assert "alike" in out
