"""Run a search in forked processes that kill themselves, and compare what they leave with an undisturbed run.

    python tests/search/kill_points.py FOLDER COUNT STRATEGY...

COUNT of each kind of moment of a run of each strategy, spread over it; 0 is one moment of all. Writes
FOLDER/found.json: for each where it was, the signal the run ended by, and what differed.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from repconv.files import whole as files
from repconv.search.config import SCHEMA
from repconv.search.folder import CHECKPOINT, METRICS, RunFolder
from repconv.search.presets import PRESETS
from repconv.search.run import run
from repconv.search.session import Session
from repconv.search.settings import settings_to_dict

CONFIG = replace(
    PRESETS["smoke"].config,
    width=2,
    blocks=(1,),
    train_images=120,
    population=3,
    epochs=3,
    warmup_epochs=1,
    generation_epochs=1,
    batch=32,
    positions=300,
    checkpoint_steps=2,
)


class Events:
    """Counts moments of a run; at the one chosen, the process is gone."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.count, self.names = fatal, 0, []

    def __call__(self, name: str, before_death: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.fatal:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)


def watch(events: Events) -> None:
    """Events before and after every update and evaluation, within file writes, and in the middle of a metrics line."""
    update, measure, fsync, append = Session.update, Session.measure, os.fsync, RunFolder.append_metrics

    def watched_update(self: Session, *arguments: Any) -> Any:
        events("before an update")
        found = update(self, *arguments)
        events("after an update")
        return found

    def watched_measure(self: Session, *arguments: Any) -> Any:
        found = measure(self, *arguments)
        events("after measuring")
        return found

    def watched_fsync(descriptor: int) -> None:
        events("inside a file write")
        fsync(descriptor)

    def watched_append(self: RunFolder, record: Any) -> None:
        def half() -> None:
            with (self.path / METRICS).open("ab") as stream:
                stream.write(json.dumps(record).encode()[:20])

        events("inside a metrics line", half)
        append(self, record)

    Session.update, Session.measure = watched_update, watched_measure
    RunFolder.append_metrics = watched_append
    files.os.fsync = watched_fsync


def in_a_process(work: Callable[[], None]) -> int:
    """The signal `work` ended by, 0 for none, in a process of its own."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:  # noqa: BLE001  # a fork must not return into its parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return 0


def left(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that is to be the same, bit for bit."""
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    del checkpoint["metrics_bytes"]  # times have more or fewer digits
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    texts = [*folder.glob("*.json"), *folder.glob("populations/*"), folder / "best.svg"]
    return {
        "checkpoint": checkpoint,
        "metrics": [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines],
        "files": {file.name: file.read_text() for file in texts},
        "supernet": torch.load(folder / "supernet.pt", weights_only=True),
        "leftovers": [file.name for file in folder.glob(".*")],
    }


def equal(one: Any, other: Any) -> bool:
    """Tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def spread(names: list[str], count: int) -> list[int]:
    """Moments, numbered from 1: of each name at most `count`, from its first to its last, or the one between.

    With a count of 0, the one between all of them.
    """
    if not count:
        return [1 + len(names) // 2]
    chosen = []
    for name in dict.fromkeys(names):
        all_of_it = [number for number, other in enumerate(names, start=1) if other == name]
        last, most = len(all_of_it) - 1, min(count, len(all_of_it))
        if most == 1:
            chosen.append(all_of_it[last // 2])
            continue
        chosen += [all_of_it[round(index * last / max(most - 1, 1))] for index in range(most)]
    return sorted(chosen)


def begin(folder: Path, strategy: str) -> RunFolder:
    """A new run's folder."""
    return RunFolder.create(folder, settings_to_dict(replace(CONFIG, strategy=strategy), SCHEMA), {})


def main(base: Path, count: int, strategies: list[str]) -> None:
    """What happens to runs of each strategy, in one file."""
    torch.set_num_threads(1)
    for name in ("sklearn.datasets", "torchvision.transforms.v2", "torch.utils.tensorboard"):
        importlib.import_module(name)  # once, before the forks
    found = [point for strategy in strategies for point in killed(base / strategy, count, strategy)]
    (base / "found.json").write_text(json.dumps(found))


def killed(base: Path, count: int, strategy: str) -> list[dict[str, Any]]:
    """The undisturbed run, then one run for each kill point, each with one kill and one resumption."""
    base.mkdir()

    def counted() -> None:
        events = Events(0)
        watch(events)
        run(begin(base / "whole", strategy))
        (base / "events.json").write_text(json.dumps(events.names))

    in_a_process(counted)
    names = json.loads((base / "events.json").read_text())
    expected = left(base / "whole")
    found = []
    for point in spread(names, count):
        folder = base / str(point)

        def doomed(folder: Path = folder, point: int = point) -> None:
            watch(Events(point))
            run(begin(folder, strategy))

        ended = in_a_process(doomed)
        in_a_process(
            lambda folder=folder: (
                run(RunFolder.open(folder)) if (folder / "config.json").exists() else run(begin(folder, strategy))
            )
        )
        after = left(folder)
        differs = [key for key, value in expected.items() if not equal(value, after[key])]
        found.append(
            {"strategy": strategy, "event": point, "at": names[point - 1], "signal": ended, "differs": differs}
        )
        shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
