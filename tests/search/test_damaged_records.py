"""Every value in every JSON of a run, changed to each other type, left out, negative or huge: read, or words."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repconv import RepconvError, SearchError
from repconv.benchmarks.studies.reliability import mutations
from repconv.export.runtimes.engine_runtime import read_sidecar
from repconv.search.config import SCHEMA, SearchConfig
from repconv.search.folder import BEST, CONFIG, ENVIRONMENT, METRICS, POPULATIONS, RESULT, RunFolder
from repconv.search.reports.found import Found, read_found
from repconv.search.reports.report import report
from repconv.search.settings import settings_from_dict, settings_to_dict
from repconv.search.strategies.protocol import Member, State
from repconv.search.supernet.architecture import Architecture, architecture_from_dict, read_json
from repconv.search.supernet.records import POPULATION, RETRAIN, SEARCH, require
from repconv.search.supernet.space import SearchSpace, SpaceBlock
from repconv.search.supernet.supernet import Gates

OTHERS = (None, "x", "", -1, 0, 10**400, 0.5, -1e308, float("nan"), [], [1], [None], {}, {"a": 1}, True)
GONE = object()
POPULATION_FILE = f"{POPULATIONS}/0001.json"


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Every value in it; of a list the first two."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def changed(value: Any, at: tuple, new: object) -> Any:
    if not at:
        return new
    result = inner = copy.deepcopy(value)
    for key in at[:-1]:
        inner = inner[key]
    if new is GONE:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return result


def mutants(value: Any) -> Iterator[tuple[tuple, object, Any]]:
    for at in places(value):
        for new in (*OTHERS, *([GONE] if at else [])):
            yield at, new, changed(value, at, new)


@pytest.fixture
def run(tmp_path):
    """The files of a finished run, of two blocks."""
    space = SearchSpace(tuple(SpaceBlock(name, ("3x3",), ("1x1", "skip")) for name in ("stem", "stages.0")))
    whole, gates = Architecture.full(space), Gates((0.1, 0.2, 0.3, 0.4), (0.5, 0.6))
    folder = RunFolder.create(
        tmp_path / "run", settings_to_dict(SearchConfig(), SCHEMA), {"cores": 2, "versions": {"a": "1"}}
    )
    for epoch in (1, 2):
        folder.append_metrics({"kind": "epoch", "epoch": epoch, "step": 5, "loss": 2.5, "learning_rate": 0.1})
        shares = dict.fromkeys(("best_accuracy", "mean_accuracy", "worst_accuracy"), 0.5)
        counts = {"generation": epoch, "epoch": epoch, "measured": 4, "population": 4}
        folder.append_metrics({"kind": "generation", **counts, **shares, "mean_age": 1.0, "mean_size": 3.0})
    blocks = [{"name": b.name, "fixed": list(b.fixed), "searchable": list(b.searchable)} for b in space.blocks]
    state = State(
        gates=gates, generation=1, members=(Member(whole, age=1, accuracy=0.5, score=0.4),), asked=(Member(whole),)
    )
    folder.write_json(POPULATION_FILE, {"schema": POPULATION, "space": blocks, **state.to_dict()})
    active = {name: list(kinds) for name, kinds in whole.active.items()}
    folder.write_json(RESULT, {"schema": SEARCH, "space": blocks, "gates": {"alpha": gates.alpha, "beta": gates.beta},
                               "architectures": [{"accuracy": 0.5, "age": 1, "active": active}]})  # fmt: skip
    network = {"name": "irep_resnet18", "width": 4, "blocks": [1], "fixed": ["3x3"], "branches": ["1x1", "skip"]}
    found = Found(architecture=whole, network=network, gates=gates, accuracy=0.5)
    folder.write_json(BEST, found.to_dict())
    return folder


def under_way(folder: RunFolder) -> str:
    """The report of the run before it ended."""
    result = folder.path / RESULT
    aside = result.rename(folder.path / "aside")
    try:
        return report(folder)
    finally:
        aside.rename(result)


READERS: dict[str, Callable[[RunFolder], object]] = {
    RESULT: report, ENVIRONMENT: report, METRICS: report, POPULATION_FILE: under_way,
    BEST: lambda folder: (read_found(folder.path / BEST), report(folder)),
    CONFIG: lambda folder: settings_from_dict(SearchConfig, SCHEMA, folder.read_json(CONFIG), CONFIG),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_run_is_read_or_refused_in_words(name, run):
    path, read, ends = run.path / name, READERS[name], Counter()
    text = path.read_text()
    lines = name == METRICS
    read(run)
    for at, new, content in mutants([json.loads(line) for line in text.splitlines()] if lines else json.loads(text)):
        if lines and not (at and isinstance(content, list)):
            continue
        path.write_text("".join(json.dumps(c) + "\n" for c in content) if lines else json.dumps(content))
        try:
            read(run)
            ends["read"] += 1
        except RepconvError:
            ends["words"] += 1
        except Exception as error:
            raise AssertionError(f"{name}: {at} is {new!r}: {type(error).__name__}: {error}") from error
    assert ends["words"] > ends["read"] * (name not in (ENVIRONMENT, METRICS))
    assert ends["words"] > 0


def test_words_say_which_value_it_is(run):
    for name, at, words in (
        (RESULT, ("architectures", 0, "accuracy"), r"architectures\[0\]\.accuracy is 'x', expected a finite number"),
        (POPULATION_FILE, ("members", 0, "active"), r"members\[0\]\.active is 'x', expected an object with names"),
        (BEST, ("gates", "stem", "beta"), r"gates\.stem\.beta is 'x', expected a finite number"),
    ):
        text = (run.path / name).read_text()
        run.write_json(name, changed(json.loads(text), at, "x"))
        with pytest.raises(SearchError, match=rf"{name.replace('.', '[.]')} makes no sense: {words}"):
            READERS[name](run)
        (run.path / name).write_text(text)


def test_the_result_of_a_retraining_is_looked_at_too():
    whole = {"schema": RETRAIN, "measured_on": "test", "images": 10, "accuracy": 0.5, "fused_accuracy": 0.5}
    assert require(whole, RETRAIN, "result.json") is whole
    for key in whole:
        with pytest.raises(SearchError, match=f"result.json makes no sense: {key} is missing"):
            require(changed(whole, (key,), GONE), RETRAIN, "result.json")


@pytest.mark.parametrize("name", ["architecture", "engine's JSON"])
def test_architectures_and_side_records_are_read_or_refused_in_words(name, tmp_path):
    mutations.make(tmp_path, [name])
    path: Path = tmp_path / mutations.FORMATS[name][0]
    engine = path.with_name(path.name.removesuffix(".json"))
    read = (
        (lambda: architecture_from_dict(read_json(path))) if name == "architecture" else (lambda: read_sidecar(engine))
    )
    refused = 0
    for at, new, content in mutants(json.loads(path.read_text())):
        path.write_text(json.dumps(content))
        try:
            read()
        except RepconvError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{at} is {new!r}: {type(error).__name__}: {error}") from error
    assert refused > 100
