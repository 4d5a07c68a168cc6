"""A search from beginning to end: what it leaves, that it goes on after anything, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from repconv import BuildError, OutputError, SearchError, load
from repconv.progress import watched
from repconv.search.config import SCHEMA, SearchConfig
from repconv.search.folder import CHECKPOINT, CONFIG, LOCK, METRICS, RESULT, RunFolder
from repconv.search.presets import PRESETS
from repconv.search.reports.found import read_found
from repconv.search.reports.history import measuring_left_s
from repconv.search.reports.report import report
from repconv.search.resuming import Pace, Position, rest_of_epoch
from repconv.search.run import run
from repconv.search.session import Session, chosen_device
from repconv.search.settings import settings_to_dict
from repconv.search.strategies import STRATEGIES, state_from_dict
from repconv.search.strategies.evolution import age_term
from repconv.search.supernet.evaluate import Evaluation

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

TINY = dataclasses.replace(
    PRESETS["smoke"].config,
    width=2,
    blocks=(1,),
    age_unit="accuracy",
    train_images=120,
    population=4,
    epochs=4,
    warmup_epochs=1,
    generation_epochs=1,
    batch=32,
    checkpoint_steps=2,
)


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch) -> None:
    # Importing it takes seconds; one slow test has it.
    monkeypatch.setattr("repconv.search.run._tensorboard", lambda *_: None)


def begun(path: Path, config: SearchConfig = TINY) -> RunFolder:
    return RunFolder.create(path, settings_to_dict(config, SCHEMA), {"machine": "a test"})


def test_a_run_leaves_its_result_populations_metrics_and_supernet(tmp_path) -> None:
    folder, seen = begun(tmp_path / "run"), []
    run(folder, seen.append)
    result = folder.read_json(RESULT)
    assert result["schema"] == "repconv.search/1"
    assert [a["accuracy"] for a in result["architectures"]] == sorted(
        (a["accuracy"] for a in result["architectures"]), reverse=True
    )
    assert len(result["architectures"]) == 4
    assert all(sum(map(len, a["active"].values())) == result["budget"] for a in result["architectures"])
    assert [r["kind"] for r in seen] == ["epoch", *["epoch", "generation"] * 3]
    assert folder.metrics() == json.loads(json.dumps(seen))
    session = Session(TINY)
    for generation in (1, 2, 3):
        state = state_from_dict(folder.read_json(f"populations/{generation:04d}.json"), session.supernet.space)
        assert state.generation == generation
        for member in state.members:
            term = age_term(member.age, scale=0.05, limit=10, offset=0.01)
            assert member.score == pytest.approx(member.accuracy + term)
    found = read_found(folder.path / "best.arch.json")
    assert found.accuracy == result["architectures"][0]["accuracy"]
    # The supernet that is saved is the one that was measured.
    session.supernet.model.load_state_dict(load(folder.path / "supernet.pt").model.state_dict())
    assert session.supernet.gates() == found.gates
    assert session.measure([found.architecture]).accuracies == (found.accuracy,)


@pytest.mark.parametrize(("unit", "notes"), [("accuracy", 1), ("spread", 0)])
def test_that_no_parent_outlives_its_children_is_said_once(tmp_path, monkeypatch, unit, notes) -> None:
    """Accuracies are a point apart, and by equation 14 growing older costs 1.6."""

    def measure(_, architectures, __=None):
        accuracies = tuple(0.8 + 0.0001 * (sum(i for i, on in enumerate(a.mask) if on) % 100) for a in architectures)
        return Evaluation(accuracies=accuracies, fold_s=0.0, reestimate_s=0.0, write_s=0.0, run_s=0.0)

    monkeypatch.setattr(Session, "measure", measure)
    seen: list[dict] = []
    run(begun(tmp_path / "run", dataclasses.replace(TINY, age_unit=unit, epochs=7)), seen.append)
    assert sum(r["kind"] == "note" and "no parent outlived" in r["note"] for r in seen) == notes
    survivors = [(r["survivors"], r["parents"]) for r in seen if r["kind"] == "generation"]
    assert survivors[0] == (0, 0)
    assert all(parents == 4 for _, parents in survivors[1:])
    assert (sum(lived for lived, _ in survivors) > 0) == (unit == "spread")


def rising_until(generation: int):
    """A measurement in which every generation is better than the one before, but none after that one."""
    told = []

    def measure(_, architectures, __=None):
        told.append(len(told))
        best = 0.5 + 0.01 * min(len(told), generation)
        return Evaluation(accuracies=(best,) * len(architectures), fold_s=0, reestimate_s=0, write_s=0, run_s=0)

    return measure


def test_a_search_that_gains_no_more_ends_and_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Session, "measure", rising_until(2))
    folder, seen = begun(tmp_path / "run", dataclasses.replace(TINY, epochs=9, patience=3)), []
    run(folder, seen.append)
    assert sum(r["kind"] == "generation" for r in seen) == 5
    assert any("ends after generation 5 of 8" in r["note"] for r in seen if r["kind"] == "note")
    assert folder.read_json(RESULT)["ended_early"] == 5
    assert "after generation 5 of 8, since 3 brought no better accuracy" in report(folder)


def interrupted_by_a_note(record) -> None:
    if record["kind"] == "note":
        raise KeyboardInterrupt


def test_a_search_that_was_killed_after_its_last_gain_ends_where_it_would_have(tmp_path, monkeypatch) -> None:
    config = dataclasses.replace(TINY, epochs=9, patience=2)
    results = []
    for killed in (False, True):
        monkeypatch.setattr(Session, "measure", rising_until(1))
        folder = begun(tmp_path / str(killed), config)

        if killed:
            with pytest.raises(KeyboardInterrupt):
                run(folder, interrupted_by_a_note)
        run(folder)
        results.append(folder.read_json(RESULT))
    assert results[0] == results[1]
    assert results[0]["ended_early"] == 3


def test_pruning_that_is_over_its_budget_goes_on_without_gain(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Session, "measure", rising_until(1))
    folder = begun(tmp_path / "run", dataclasses.replace(TINY, strategy="gold", epochs=7, patience=1))
    run(folder)
    result = folder.read_json(RESULT)
    assert sum(map(len, result["architectures"][0]["active"].values())) == result["budget"]
    assert result["ended_early"] == 5


@pytest.mark.parametrize(("shuffled", "later"), [(False, torch.bfloat16), (True, torch.float32)])
def test_bfloat16_measures_later_generations_where_it_ranks_the_first_as_float32_does(
    tmp_path, monkeypatch, shuffled, later
) -> None:
    asked: list[torch.dtype | None] = []

    def measure(_, architectures, dtype=None):
        asked.append(dtype)
        sign = -1 if shuffled and dtype == torch.bfloat16 else 1
        accuracies = tuple(0.5 + sign * 1e-4 * sum(i for i, on in enumerate(a.mask) if on) for a in architectures)
        return Evaluation(accuracies=accuracies, fold_s=0.0, reestimate_s=0.0, write_s=0.0, run_s=0.0)

    monkeypatch.setattr(Session, "measure", measure)
    monkeypatch.setattr("repconv.search.supernet.precision.native", lambda _: True)
    folder = begun(tmp_path / "run")
    run(folder)
    assert asked == [torch.float32, torch.bfloat16, later, later, None]  # what is found at last is measured as usual
    first, *others = (r for r in folder.metrics() if r["kind"] == "generation")
    assert abs(first["bfloat16_tau"]) == pytest.approx(1)
    assert not any("bfloat16_tau" in r for r in others)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_on_the_same_space_and_budget(tmp_path, strategy) -> None:
    folder = begun(tmp_path / "run", dataclasses.replace(TINY, strategy=strategy, epochs=3))
    run(folder)
    result = folder.read_json(RESULT)
    assert all(sum(map(len, a["active"].values())) <= result["budget"] for a in result["architectures"])


def test_a_finished_run_is_left_as_it_is(tmp_path) -> None:
    folder = begun(tmp_path / "run", dataclasses.replace(TINY, epochs=2))
    run(folder)
    before = {file: file.stat().st_mtime_ns for file in folder.path.rglob("*")}
    run(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.path.rglob("*")} == before


@pytest.mark.slow
def test_warm_up_draws_fresh_architectures_of_the_budget_and_searching_draws_from_the_population(
    tmp_path, monkeypatch
) -> None:
    drawn: list[tuple[int, tuple]] = []
    update = Session.update

    def watched(self, x, y, architectures, step, *how):
        drawn.append((step, tuple(architectures)))
        return update(self, x, y, architectures, step, *how)

    monkeypatch.setattr(Session, "update", watched)
    folder = begun(tmp_path / "run")
    run(folder)
    steps = [step for step, _ in drawn]
    assert steps == list(range(12))
    assert all(len(a) == len(set(a)) == 2 for _, a in drawn)
    budget = folder.read_json(RESULT)["budget"]
    assert all(a.size == budget for _, several in drawn for a in several)
    first = folder.read_json("populations/0001.json")["members"]
    population = {json.dumps(m["active"]) for m in first}
    trained = {json.dumps({k: list(v) for k, v in a.active.items() if v}) for s, several in drawn[3:6] for a in several}
    assert trained <= population


def test_ratio_one_searches_the_one_architecture_there_is(tmp_path) -> None:
    folder = begun(tmp_path / "run", dataclasses.replace(TINY, ratio=1.0, age_limit=3.0, age_offset=0.01))
    run(folder)
    assert len(folder.read_json(RESULT)["architectures"]) == 1


def test_one_update_moves_weights_by_sgd_and_gates_by_adam_from_the_same_gradients() -> None:
    config = dataclasses.replace(TINY, momentum=0.0, weight_decay=0.0, architectures=1)
    session = Session(config)
    twin = Session(config)
    (x, y), *_ = session.batches(0, 0, 1)
    architecture = session.strategy().ask(_start(session), torch.Generator().manual_seed(0)).train[0]
    twin.task.loss(twin.supernet.model.train() and twin.supernet(architecture, x), y).backward()
    session.update(x, y, [architecture], 0)
    for before, after in zip(twin.weights, session.weights, strict=True):
        moved = torch.zeros_like(before) if before.grad is None else 0.1 * before.grad
        assert torch.allclose(after, before - moved, atol=1e-7)
    for before, after in zip(twin.gates, session.gates, strict=True):
        # Adam's first step has the size of its learning rate.
        expected = 0.0 if before.grad is None else -0.03 * float(before.grad.sign())
        assert float(after.detach() - before.detach()) == pytest.approx(expected, abs=1e-4)


def _start(session: Session):
    from repconv.search.strategies import State

    return State(gates=session.initial)


def test_the_learning_rate_falls_as_a_cosine_over_the_whole_search() -> None:
    session = Session(TINY)
    assert session.learning_rate(0) == 0.1
    assert session.learning_rate(session.steps // 2) == pytest.approx(0.05)
    assert session.learning_rate(session.steps) == pytest.approx(0)


class TestRefusals:
    def test_a_folder_with_a_run(self, tmp_path) -> None:
        begun(tmp_path / "run")
        with pytest.raises(OutputError, match=r"holds a run already; go on with it \(search resume\)"):
            begun(tmp_path / "run")
        with pytest.raises(SearchError, match=r"holds no run: it has no config.json"):
            RunFolder.open(tmp_path)

    def test_a_folder_that_cannot_be_made(self, tmp_path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot make the folder .*: Not a directory"):
            begun(tmp_path / "file" / "run")

    def test_a_damaged_checkpoint(self, tmp_path) -> None:
        folder = begun(tmp_path / "run")
        (folder.path / CHECKPOINT).write_bytes(b"torn")
        with pytest.raises(SearchError, match=r"checkpoint.pt: .*the run cannot go on from it"):
            run(folder)

    def test_a_configuration_that_somebody_broke(self, tmp_path) -> None:
        folder = begun(tmp_path / "run")
        content = {**settings_to_dict(TINY, SCHEMA), "epoch": 1}
        (folder.path / CONFIG).write_text(json.dumps(content))
        with pytest.raises(SearchError, match=r"config.json: unknown setting 'epoch' \(did you mean 'epochs'"):
            run(folder)

    def test_a_batch_that_the_images_do_not_fill(self) -> None:
        with pytest.raises(SearchError, match="96 images to learn from fill no batch of 97"):
            Session(dataclasses.replace(TINY, batch=97))

    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(SearchError, match="device 'tpu'"):
            chosen_device("tpu")
        assert chosen_device("auto").type in ("cpu", "cuda")

    def test_losses_that_are_not_finite(self, tmp_path) -> None:
        folder = begun(tmp_path / "run", dataclasses.replace(TINY, learning_rate=1e30))
        with pytest.raises(SearchError, match=r"loss is not finite .*lower the learning rate"):
            run(folder)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_checkpoint_before_is_intact(tmp_path, monkeypatch) -> None:
    folder = begun(tmp_path / "run")
    written = []
    checkpoint = RunFolder.write_checkpoint

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def counted(self, content) -> None:
        if len(written) == 3:
            monkeypatch.setattr("repconv.files.whole.os.fsync", full)
        checkpoint(self, content)
        written.append((folder.path / CHECKPOINT).read_bytes())

    monkeypatch.setattr(RunFolder, "write_checkpoint", counted)
    with pytest.raises(OutputError, match=r"checkpoint.pt: No space left on device; nothing was written"):
        run(folder)
    assert (folder.path / CHECKPOINT).read_bytes() == written[-1]
    assert [path.name for path in folder.path.glob(".*")] in ([], [".lock"])
    monkeypatch.undo()
    monkeypatch.setattr("repconv.search.run._tensorboard", lambda *_: None)
    run(folder)
    whole = begun(tmp_path / "whole")
    run(whole)
    assert (folder.path / RESULT).read_text() == (whole.path / RESULT).read_text()


def test_a_checkpoint_of_a_gpu_is_read_without_one(tmp_path, monkeypatch) -> None:
    folder = begun(tmp_path / "run")
    monkeypatch.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
    folder.write_checkpoint({"model": {"weight": torch.ones(2)}})
    monkeypatch.undo()
    content = folder.read_checkpoint()
    assert content is not None
    assert content["model"]["weight"].device.type == "cpu"


def test_metrics_that_cannot_be_written_are_an_error(tmp_path) -> None:
    folder = begun(tmp_path / "run")
    (folder.path / METRICS).symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"metrics.jsonl: No space left on device"):
        folder.append_metrics({"kind": "epoch"})


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("each", "strategies"),
    [
        (3, ["des"]),
        (0, [name for name in STRATEGIES if name != "des"]),
        pytest.param(1000, ["des"], marks=pytest.mark.exhaustive),
        pytest.param(5, list(STRATEGIES), marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_killed_at_any_moment_ends_bit_identical(each: int, strategies: list[str], tmp_path) -> None:
    """At updates, evaluations, file writes and metrics lines of small runs, so many of each, or all."""
    script = Path(__file__).with_name("kill_points.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(each), *strategies],
        capture_output=True,
        text=True,
        check=False,
        timeout=900 + 120 * len(strategies),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    every = json.loads((tmp_path / "found.json").read_text())
    assert not [point for point in every if point["differs"]]
    for strategy in strategies:
        found = [point for point in every if point["strategy"] == strategy]
        assert len(found) >= (min(4 * each, 30) or 1)
        assert {point["signal"] for point in found} == {9}
        assert sum(point["at"] == "inside a file write" for point in found) >= min(each, 8)
        assert sum(point["at"] == "inside a metrics line" for point in found) >= min(each, 3)


def test_a_folder_has_one_writer_at_a_time(tmp_path) -> None:
    folder = begun(tmp_path / "run")
    with folder.held():
        before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        with pytest.raises(OutputError, match="under way in another process"):
            run(folder)
        assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    with pytest.raises(ZeroDivisionError), folder.held():
        raise ZeroDivisionError
    with folder.held():
        pass  # whoever held it has ended


def test_where_no_lock_can_be_written_that_is_said(tmp_path) -> None:
    folder = begun(tmp_path / "run")
    (folder.path / LOCK).unlink(missing_ok=True)
    (folder.path / LOCK).mkdir()  # a read-only folder would not stop the superuser
    with pytest.raises(OutputError, match=r"cannot write .*\.lock: Is a directory"):
        run(folder)


def test_a_lock_ends_with_its_process(tmp_path) -> None:
    folder = begun(tmp_path / "run")
    code = (
        "import os, sys; from pathlib import Path; from repconv.search.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).held(): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder.path)], check=False).returncode == 9
    with folder.held():
        pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), BuildError),
        (ConnectionResetError(104, "Connection reset by peer"), BuildError),
        (EOFError(), BuildError),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), RuntimeError),
    ],
    ids=str,
)
def test_a_killed_loading_process_is_told_in_words_and_a_fault_of_the_data_is_not(error, expected) -> None:
    def batches():
        yield torch.zeros(1), torch.zeros(1)
        raise error

    learner = SimpleNamespace(steps_an_epoch=3, config=SimpleNamespace(checkpoint_steps=1, epochs=1))
    kept = []
    nothing = {"tell": lambda _: None, "pace": Pace(lambda: 0.0)}
    with pytest.raises(expected, match="a process that loads images has ended" if expected is BuildError else "Caught"):
        rest_of_epoch(learner, Position(), batches(), update=lambda *_: 1.0, keep=kept.append, **nothing)
    assert kept == [Position(0, 1, 1.0)]


def test_updates_tell_their_epoch_their_seconds_and_what_is_left_with_evaluation() -> None:
    now = iter(range(100))
    learner = SimpleNamespace(
        steps_an_epoch=2,
        config=SimpleNamespace(checkpoint_steps=9, epochs=3),
        learning_rate=lambda _: 0.1,
    )
    pace, seen = Pace(lambda: float(next(now))), []
    with watched(seen.append):
        for epoch, beside in ((0, None), (1, 10.0)):
            batches = (batch for batch in [(torch.zeros(1), torch.zeros(1))] * 2)
            rest_of_epoch(
                learner,
                Position(epoch),
                batches,
                update=lambda *_: 1.0,
                keep=lambda _: None,
                tell=lambda _: None,
                pace=pace,
                beside_s=beside,
            )
    assert [(step.done, step.total, step.left_s, step.without) for step in seen] == [
        (1, 6, 5.0, "evaluation"),
        (2, 6, 4.0, "evaluation"),
        (3, 6, 13.0, ""),
        (4, 6, 12.0, ""),
    ]
    assert seen[2].within == "epoch 2 of 3: 1 of 2, 1 s each"


def test_measuring_that_is_left_takes_what_it_took() -> None:
    record = {"kind": "generation", "measured": 6, "population": 3, "seconds_run": 5.0, "seconds_fold": 1.0}
    assert measuring_left_s([{"kind": "epoch"}], 4) is None
    # Two generations of 6 s, and three of what is found at 1 s each.
    assert measuring_left_s([record, {"kind": "epoch"}, record], 4) == 2 * 6 + 3
