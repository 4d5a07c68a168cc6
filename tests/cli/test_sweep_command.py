"""`repconv search sweep` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repconv.search.folder import CHECKPOINT, RESULT

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("scipy.stats", reason="scipy is not installed")

SMALL = ("width=2", "blocks=1", "train_images=200", "population=2", "epochs=2", "warmup_epochs=1", "batch=32")
LINE = [sys.executable, "-P", "-c", "from repconv.cli import main; main()"]
RATES = ["searches/learning_rate=0.1,seed=0", "searches/learning_rate=1e30,seed=0"]


def settings(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


def sweep(*others: str, epochs: int = 2) -> list[str]:
    return ["search", "sweep", *settings(*SMALL, f"epochs={epochs}"), "-o", "s", *others]


def around() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def called(*line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=folder, env=around(), capture_output=True, text=True, check=False, timeout=600)


def test_wrong_use_is_told_in_words_and_leaves_nothing(command_line, tmp_path) -> None:
    for arguments, says in (
        (sweep("--vary", "seed=1,2"), "seeds are not varied but counted"),
        (sweep("--top", "2"), "name their preset"),
        (sweep("--vary", "ratio=1/2,3"), "ratio is above 0"),
        (sweep("--retrain", "imagnet"), "did you mean 'imagenet'"),
        (sweep("--only", "searches/seed=1"), "did you mean 'searches/seed=0'"),
        (["search", "sweep"], "a sweep needs a folder"),
    ):
        code, _, err = command_line(*arguments)
        assert code == 2, arguments
        assert says in err
        assert "Traceback" not in err
    assert not any(tmp_path.iterdir())


def test_a_dry_run_lists_the_runs_and_their_time(command_line, tmp_path) -> None:
    line = sweep("--vary", "ratio=1/3,2/3", "--retrain", "smoke", "--dry-run", "--json", "e.json")
    code, out, err = command_line(*line)
    assert code == 0, err
    assert "searches/ratio=1-3,seed=0" in out
    assert "retrained/ratio=2-3,seed=0/1" in out
    assert "4 runs, about" in out
    assert [file.name for file in tmp_path.iterdir()] == ["e.json"]
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["schema"] == "repconv.sweep-estimate/1"
    assert [row["kind"] for row in content["groups"]] == ["search", "retrain"] * 2
    assert content["seconds"] == pytest.approx(sum(row["runs"] * row["seconds"] for row in content["groups"]))
    assert all(row["seconds"] > 0 for row in content["groups"])


def test_one_run_alone_and_the_page_of_what_there_is(command_line, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("repconv.search.run._tensorboard", lambda *_: None)
    code, _, err = command_line(*sweep("--seeds", "2", "--only", "searches/seed=1"))
    assert code == 0, err
    assert "generation 1:" in err
    assert (tmp_path / "s/searches/seed=1" / RESULT).exists()
    assert not (tmp_path / "s/searches/seed=0").exists()
    assert json.loads((tmp_path / "s/searches/seed=1/environment.json").read_text())["preset"] == "smoke"
    code, out, err = command_line("search", "report", "s")
    assert code == 0, err
    assert "wrote s/sweep.html" in out
    assert "2 runs, 1 finished, 1 waiting" in (tmp_path / "s/sweep.html").read_text()
    code, _, err = command_line(*sweep("--seeds", "3"))
    assert (code, "seeds is 2 there and 3 here" in err) == (2, True)
    assert "go on" not in err


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_one_failing_run_stops_no_other(command_line, tmp_path) -> None:
    retrained = ["--retrain", "smoke", "--retrain-set", "epochs=1", "--retrain-set", "train_images=100", "--top", "2"]
    line = sweep("--vary", "learning_rate=0.1,1e30", "--processes", "2", *retrained, epochs=8)
    process = subprocess.Popen([*LINE, *line], cwd=tmp_path, env=around(), stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "s" / RATES[0] / CHECKPOINT
    for _ in range(1200):
        if checkpoint.exists():
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    time.sleep(2)
    before = checkpoint.read_bytes()
    time.sleep(2)
    assert checkpoint.read_bytes() == before, "its runs have ended with it"
    assert not (tmp_path / "s" / RATES[0] / RESULT).exists()

    done = called(*LINE, *line, "--json", "r.json", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"{RATES[0]}: goes on" in done.stderr
    assert f"failed: {RATES[1]}: " in done.stdout
    assert "not finite" in done.stdout
    content = json.loads((tmp_path / "r.json").read_text())
    written = json.loads((tmp_path / "s/sweep-result.json").read_text())
    assert content["schema"] == "repconv.sweep-result/1"
    assert content["runs"] == written["runs"]
    assert [run["state"] for run in content["runs"]] == ["finished", "failed", "finished", "finished", *["waiting"] * 2]
    assert "accuracy when retrained" in done.stdout
    assert "Traceback" not in done.stderr

    code, _, err = command_line("search", "run", *settings(*SMALL, "epochs=8"), "-o", "alone")
    assert code == 0, err
    for name in (RESULT, "best.arch.json", "populations/0003.json"):
        assert (tmp_path / "alone" / name).read_text() == (tmp_path / "s" / RATES[0] / name).read_text()
    mended = called(*LINE, *sweep("--vary", "learning_rate=0.1,1e30", "--processes", "2", epochs=8), folder=tmp_path)
    assert mended.returncode == 2
    assert "another plan (retrain is" in mended.stderr


@pytest.mark.slow
def test_ctrl_c_ends_all_that_was_begun(tmp_path) -> None:
    minded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # shells switch it off for jobs
    process = subprocess.Popen(
        [*LINE[:-1], f"{minded}; {LINE[-1]}", *sweep("--seeds", "2", "--processes", "2", epochs=200)],
        cwd=tmp_path, env=around(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    checkpoints = [tmp_path / "s/searches" / f"seed={seed}" / CHECKPOINT for seed in range(2)]
    for _ in range(1200):
        if all(checkpoint.exists() for checkpoint in checkpoints):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on where it was with: the same line again" in err
    assert "Traceback" not in err
    for log in (tmp_path / "s/logs").rglob("*.log"):
        assert "ended by SIGTERM" in log.read_text()
    before = [checkpoint.read_bytes() for checkpoint in checkpoints]
    time.sleep(2)
    assert before == [checkpoint.read_bytes() for checkpoint in checkpoints]


@pytest.mark.slow
def test_processes_of_torchrun_share_the_runs(tmp_path) -> None:
    (tmp_path / "main.py").write_text("from repconv.cli import main\n\nif __name__ == '__main__':\n    main()\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "main.py"]
    done = called(*launcher, *sweep("--seeds", "2", "--retrain", "smoke", "--retrain-set", "epochs=1"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 runs, 4 finished") == 1
    assert done.stderr.count(": begun") == 4
    runs = json.loads((tmp_path / "s/sweep-result.json").read_text())["runs"]
    assert [run["state"] for run in runs] == ["finished"] * 4
