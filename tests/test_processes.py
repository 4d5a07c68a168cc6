"""Two processes search as one: the same update, the same statistics, the same decisions."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from repconv import SearchError
from repconv.search.config import SearchConfig
from repconv.search.processes import Processes
from repconv.search.session import Session

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.parametrize(("count", "items"), [(2, 5), (2, 4), (3, 2), (4, 11), (1, 3)])
def test_shares_are_neighbours_and_of_nearly_one_size(count: int, items: int) -> None:
    shares = [list(Processes(rank, count).share(range(items))) for rank in range(count)]
    assert [i for share in shares for i in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_alone_decides_and_gathers_for_itself() -> None:
    alone = Processes()
    assert alone.first
    assert alone.decided("a") == "a"
    assert alone.gathered([1, 2]) == [1, 2]


def test_fewer_architectures_than_processes_are_refused() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    config = SearchConfig(data="digits", architectures=1)
    with pytest.raises(SearchError, match="leave some of 2 processes without work"):
        Session(config, Processes(0, 2))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(folder: Path, processes: int, script: Path, *arguments: object) -> str:
    """What `script` prints, alone or started by torchrun."""
    start = [sys.executable, "-W", "ignore"]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", free_port()]
    log = folder / "log"
    with log.open("w") as stream:
        child = subprocess.Popen(
            [*start, str(script), *map(str, arguments)], stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # the launcher's workers with it
            child.wait()
            code = -1
    assert code == 0, log.read_text()[-3000:]
    return log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("architectures", "weighting"), [(5, "softmax"), (2, "uniform"), (4, "literal")])
def test_an_update_of_two_processes_is_that_of_one(tmp_path, architectures: int, weighting: str) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for processes in (1, 2):
        launch(tmp_path, processes, SCRIPT, tmp_path, architectures, weighting)
    alone = torch.load(tmp_path / "update-1-0.pt")
    ranks = [torch.load(tmp_path / f"update-2-{rank}.pt") for rank in (0, 1)]
    assert not all(alone["gradients"].values()), "some branches are in none of the architectures"
    statistics = 0
    for both in ranks:
        assert both["gradients"] == alone["gradients"]
        for name, value in alone["state"].items():
            if value.is_floating_point():
                scale = max(1.0, float(value.abs().max()))
                assert float((both["state"][name] - value).abs().max()) <= 1e-6 * scale, name
                statistics += "running" in name
            else:
                assert torch.equal(both["state"][name], value), name
    assert statistics > 50
    assert all(torch.equal(ranks[0]["state"][n], ranks[1]["state"][n]) for n in alone["state"])
    scores = [torch.load(tmp_path / name) for name in ("accuracies-1-0.pt", "accuracies-2-0.pt", "accuracies-2-1.pt")]
    assert scores[0] == scores[1] == scores[2]
    results = [json.loads((tmp_path / f"run-{n}" / "result.json").read_text()) for n in (1, 2)]
    assert len(results[0]["architectures"]) == len(results[1]["architectures"])
    first = [json.loads((tmp_path / f"run-{n}" / "populations" / "0001.json").read_text()) for n in (1, 2)]
    drawn = [{json.dumps(m["active"]) for m in one["members"]} for one in first]
    assert drawn[0] == drawn[1], "one decides for both what it would have decided alone"
    assert len((tmp_path / "run-2" / "metrics.jsonl").read_text().splitlines()) == 5


@pytest.mark.slow
def test_the_command_line_under_torchrun_is_one_run(tmp_path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    settings = ("width=2", "blocks=1", "train_images=200", "population=3", "epochs=2", "warmup_epochs=1", "batch=32")
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = Path(sys.executable).with_name("repconv")
    printed = launch(tmp_path, 2, command, "search", "run", "-o", tmp_path / "run", *arguments)
    assert printed.count("best of 3: validation accuracy") == 1
    assert printed.count("epoch 2:") == 1
    assert (tmp_path / "run" / "result.json").exists()
    launch(tmp_path, 2, command, "search", "resume", tmp_path / "run")
