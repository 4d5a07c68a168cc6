"""Two processes search as one: the same update, the same statistics, the same decisions."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from repconv import SearchError
from repconv.search.processes import Processes

Launcher = Callable[[int], list[str]]
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


@pytest.mark.parametrize(("count", "networks"), [(1, 1), (2, 5), (2, 1), (3, 2), (8, 3), (4, 4)])
def test_duties_cover_every_network_on_every_image_once(count: int, networks: int) -> None:
    duties = [Processes(rank, count).duty(networks, 32) for rank in range(count)]
    done = [(n, i) for duty in duties for n in duty.networks for i in duty.images]
    assert sorted(done) == [(n, i) for n in range(networks) for i in range(32)]
    for network in range(networks):
        assert sum(duty.part for duty in duties if network in duty.networks) == pytest.approx(1)
    assert {duty.split for duty in duties} == {networks < count}
    assert len({duty.first for duty in duties}) == 1
    assert [duty.team for duty in duties if duties.index(duty) in duty.first] == list(range(len(duties[0].first)))


def test_processes_without_an_image_are_refused() -> None:
    with pytest.raises(SearchError, match="a mini-batch of 3 images leaves some of the 4 processes that share it"):
        Processes(0, 8).duty(2, 3)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", free_port()]


def accelerate(processes: int) -> list[str]:
    return [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines",
        "1",
        "--num_processes",
        str(processes),
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        free_port(),
    ]


def launch(
    folder: Path, processes: int, script: Path, *arguments: object, by: Launcher = torchrun, killed: bool = False
) -> str:
    """What `script` prints, alone or started by a launcher."""
    start = [sys.executable, "-W", "ignore", *(by(processes) if processes > 1 else [])]
    log = folder / "log"
    with log.open("w") as stream:
        child = subprocess.Popen(
            [*start, str(script), *map(str, arguments)],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            code = child.wait(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # the launcher's workers with it
            child.wait()
            code = -1
    assert (code == 0) != killed, log.read_text()[-3000:]
    return log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "architectures", "weighting", "strategy"),
    [
        (2, 5, "softmax", "des"),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (
                (2, 1, "softmax", "darts-second"),
                (3, 2, "literal", "des"),
                (2, 2, "uniform", "des"),
                (2, 1, "softmax", "des"),
                (2, 1, "softmax", "darts"),
            )
        ),
    ],
)
def test_an_update_of_several_processes_is_that_of_one(
    tmp_path, count: int, architectures: int, weighting: str, strategy: str
) -> None:
    """With fewer architectures than processes, of one that normalises the same parts of each mini-batch."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for processes in (1, count):
        launch(tmp_path, processes, SCRIPT, tmp_path, architectures, weighting, count, strategy)
    alone = torch.load(tmp_path / "update-1-0.pt")
    ranks = [torch.load(tmp_path / f"update-{count}-{rank}.pt") for rank in range(count)]
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
    assert all(torch.equal(ranks[0]["state"][n], other["state"][n]) for other in ranks for n in alone["state"])
    scores = [torch.load(tmp_path / f"accuracies-{count}-{rank}.pt") for rank in range(count)]
    assert all(torch.load(tmp_path / "accuracies-1-0.pt") == score for score in scores)
    results = [json.loads((tmp_path / f"run-{n}" / "result.json").read_text()) for n in (1, count)]
    assert len(results[0]["architectures"]) == len(results[1]["architectures"])
    first = [json.loads((tmp_path / f"run-{n}" / "populations" / "0001.json").read_text()) for n in (1, count)]
    drawn = [{json.dumps(m["active"]) for m in one["members"]} for one in first]
    assert drawn[0] == drawn[1], "one decides for both what it would have decided alone"
    assert len((tmp_path / f"run-{count}" / "metrics.jsonl").read_text().splitlines()) == 5


@pytest.mark.slow
@pytest.mark.exhaustive
def test_accelerate_launch_is_the_run_of_torchrun(tmp_path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    settings = ("width=2", "blocks=1", "train_images=200", "population=3", "epochs=2", "warmup_epochs=1", "batch=32")
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = Path(sys.executable).with_name("repconv")
    results = []
    for by in (torchrun, accelerate):
        folder = tmp_path / by.__name__
        printed = launch(tmp_path, 2, command, "search", "run", "-o", folder, *arguments, by=by)
        assert printed.count("best of 3: validation accuracy") == 1
        assert printed.count("epoch 2 of 2: loss") == 1
        checkpoint = torch.load(folder / "checkpoint.pt")
        assert len(checkpoint["rng_of_others"]) == 1, "two processes took part"
        results.append(((folder / "result.json").read_text(), checkpoint["model"]))
    (one, first), (other, second) = results
    assert one == other
    assert all(torch.equal(first[name], second[name]) for name in first)
    launch(tmp_path, 2, command, "search", "resume", tmp_path / "torchrun")


@pytest.mark.slow
def test_a_retraining_of_two_processes_is_that_of_one(tmp_path) -> None:
    """One that normalises the same halves of each mini-batch."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for processes in (1, 2):
        launch(tmp_path, processes, SCRIPT.with_name("retrain_together.py"), tmp_path, 2)
    alone, *ranks = (torch.load(tmp_path / f"retrain-{n}-{rank}.pt") for n, rank in ((1, 0), (2, 0), (2, 1)))
    for both in ranks:
        assert both["losses"] == pytest.approx(alone["losses"], rel=1e-9)
        for name, value in alone["state"].items():
            scale = max(1.0, float(value.abs().max()))
            assert float((both["state"][name] - value).abs().max()) <= 1e-6 * scale, name
            assert torch.equal(ranks[0]["state"][name], both["state"][name]), name
    command = Path(sys.executable).with_name("repconv")
    settings = ("epochs=1", "batch=31", "train_images=100", "cutout=2")
    arguments = [part for setting in settings for part in ("--set", setting)]
    line = ("retrain", tmp_path / "found.arch.json", "-o", tmp_path / "run", *arguments)
    for _ in range(2):  # the second finds it finished
        assert launch(tmp_path, 2, command, *line).count("test accuracy on 360 images") == 1
    assert (tmp_path / "run" / "retrained.fused.pt").exists()


@pytest.mark.slow
def test_a_retraining_of_two_processes_grows_alike_in_both(tmp_path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    settings = tmp_path / "settings.json"
    changes = {"network": "resnet18", "width": 2, "blocks": [1], "data": "digits", "train_images": 128, "epochs": 4}
    grow = {"grow_epochs": 1, "grow_blocks": 2, "cut_below": 0.5, "ema": 0.8, "batch": 32, "drop_path": 0.0}
    settings.write_text(json.dumps({"schema": "repconv.retrain-config/1", "device": "cpu", **changes, **grow}))
    launch(tmp_path, 2, SCRIPT.with_name("grow_together.py"), tmp_path / "run", settings, -1)
    first, second = (torch.load(tmp_path / "run" / f"state-{rank}.pt") for rank in (0, 1))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(".branches.1x3." in name for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "moment"),
    [pytest.param(0, "inside a file write", marks=pytest.mark.exhaustive), (1, "after an update")],
)
def test_a_run_of_two_processes_one_of_which_is_killed_ends_bit_identical(rank: int, moment: str, tmp_path) -> None:
    """The first process killed while it writes, or the second one after an update, then both go on."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    script = SCRIPT.with_name("killed_together.py")
    launch(tmp_path, 2, script, tmp_path / "whole", -1, 0)
    names = json.loads((tmp_path / f"whole.{rank}.json").read_text())
    event = 1 + names.index(moment, len(names) // 2)
    folder = tmp_path / "killed"
    launch(tmp_path, 2, script, folder, rank, event, killed=True)
    assert not (folder / "result.json").exists()
    assert (folder / "checkpoint.pt").exists()
    launch(tmp_path, 2, script, folder, -1, 0)
    assert json.loads(launch(tmp_path, 1, script, tmp_path / "whole", folder)) == []
