"""`repconv search` and `repconv retrain` as a user runs them."""

from __future__ import annotations

import json
import re
import sys

import pytest

from repconv.cli import main

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

SMALL = ("width=2", "blocks=1", "train_images=200", "population=3", "epochs=2", "warmup_epochs=1", "batch=32")


@pytest.fixture
def run(command_line, monkeypatch):
    """Run the command line; returns exit code, standard output and standard error."""
    monkeypatch.setattr("repconv.search.run._tensorboard", lambda *_: None)
    return command_line


def settings(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


@pytest.mark.slow
def test_search_retrain_fuse_and_onnx_from_the_command_line(run, tmp_path) -> None:
    code, out, err = run("search", "run", "-o", "a", *settings(*SMALL), "--json", "a.json")
    assert code == 0, err
    assert "generation 1: 3 measured" in err
    assert "best of 3: validation accuracy" in out
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == "repconv.search-run/1"
    environment = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert environment["preset"] == "smoke"
    assert "torch" in environment["versions"]
    line = ("retrain", "a/best.arch.json", "-o", "b", *settings("epochs=1", "train_images=200"), "--json", "b.json")
    code, out, err = run(*line)
    assert code == 0, err
    assert "test accuracy on 360 images: " in out
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["schema"] == "repconv.retrain/1"
    assert len(report["outputs"]) == 2
    assert run(*line)[0] == 0, "the same line goes on, here with nothing left to do"
    code, _, err = run("retrain", "a/best.arch.json", "-o", "b", *settings("epochs=2"))
    assert (code, "holds a run with other settings" in err) == (2, True)
    code, out, err = run("fuse", "b/retrained.pt", "-o", "c.onnx")
    assert code == 0, err
    assert "onnxruntime equal" in out
    assert run("verify", "b/retrained.pt", "c.onnx")[0] == 0


def test_a_network_is_trained_by_its_name_from_the_command_line(run, tmp_path) -> None:
    small = settings("width=2", "blocks=1", "train_images=100", "batch=32", "epochs=2", "measure_epochs=2")
    code, out, err = run("retrain", "acnet_resnet18", "-o", "a", *small, "--json", "a.json")
    assert code == 0, err
    assert err.count("test accuracy") == err.count("epoch 2: test accuracy") == 1
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["source"] == {"name": "acnet_resnet18"}
    assert report["result"]["blocks"]["stem"] == ["3x3", "1x3", "3x1"]
    assert "architecture" not in json.loads((tmp_path / "a" / "config.json").read_text())
    code, _, err = run("retrain", "resnet18", "-o", "b", *small)
    assert code == 0, err
    code, out, err = run("search", "compare", "a", "b")
    assert code == 0, err
    assert "network=acnet_resnet18" in out


def test_a_dry_run_writes_nothing_and_tells_what_would_be(run, tmp_path) -> None:
    code, out, err = run("search", "run", "--dry-run", "--no-age", *settings(*SMALL), "--json", "e.json")
    assert code == 0, err
    for text in ("population           3", "yours", "searchable branches", "about 0 h", "GiB of memory"):
        assert text in out
    assert [file.name for file in tmp_path.iterdir()] == ["e.json"]
    written = json.loads((tmp_path / "e.json").read_text())
    assert written["config"]["age"] is False
    assert written["estimate"]["updates"] == 10
    assert written["estimate"]["evaluations"] == 6


def test_wrong_use_is_told_in_words(run) -> None:
    for arguments, says in (
        (("search", "run", "--preset", "smok"), "did you mean 'smoke'"),
        (("search", "run"), "a run needs a folder"),
        (("search", "run", "-o", "x", "--preset", "cifar10-small"), "give --data"),
        (("search", "run", "-o", "x", "--set", "popultion=3"), "did you mean 'population'"),
        (("search", "run", "-o", "x", "--data", "imagefolder:none"), "no such folder or zip"),
        (("search", "resume", "none"), "holds no run"),
        (("retrain", "none.json", "-o", "x"), "cannot read none.json"),
        (("retrain", "resnet18", "--top", "2", "-o", "x"), "resnet18 is one network"),
        (("retrain", "repvgg_resnet81", "-o", "x"), "did you mean the network 'repvgg_resnet18'"),
    ):
        code, _, err = run(*arguments)
        assert code == 2, arguments
        assert says in err
        assert "Traceback" not in err


def test_an_interrupted_search_is_resumed_from_the_command_line(run, tmp_path, monkeypatch) -> None:
    from repconv.search.session import Session

    update = Session.update

    def stops(self, x, y, architectures, step):
        if step == 7:
            raise KeyboardInterrupt
        return update(self, x, y, architectures, step)

    monkeypatch.setattr(Session, "update", stops)
    with monkeypatch.context() as inner:
        inner.setattr(sys, "argv", ["repconv", "search", "run", "-o", "a", *settings(*SMALL, "checkpoint_steps=2")])
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            main()
    monkeypatch.setattr(Session, "update", update)
    assert not (tmp_path / "a" / "result.json").exists()
    code, _, err = run("search", "resume", "a")
    assert code == 0, err
    assert "epoch 2 of" in err
    assert len(re.findall(r"epoch 1 of \d+: loss", err)) == 1  # before it was interrupted
