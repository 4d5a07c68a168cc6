"""A retraining that grows, by one or several processes or killed under way; writes what each process holds.

    torchrun --nproc-per-node 2 tests/search/grow_together.py FOLDER SETTINGS FATAL

SETTINGS: a file of them, as a run's configuration. FATAL: after how many updates the process kills itself; -1: never.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from repconv.search.folder import CONFIG, RunFolder
from repconv.search.processes import joined
from repconv.search.retrain import retrain
from repconv.search.retrain_config import SCHEMA, RetrainConfig
from repconv.search.retraining.trainer import Trainer
from repconv.search.settings import settings_from_dict


def main(folder: Path, settings: Path, fatal: int) -> None:
    """Begin it in `folder`, or go on with it there."""
    torch.set_num_threads(1)
    config = settings_from_dict(RetrainConfig, SCHEMA, json.loads(settings.read_text()))
    update, done = Trainer.update, 0
    held: list[Trainer] = []

    def watched(self: Trainer, *arguments: Any) -> float:
        nonlocal done
        if done == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        held[:] = [self]
        return update(self, *arguments)

    Trainer.update = watched  # type: ignore[method-assign]
    with joined("cpu") as (processes, _):
        if processes.first and not (folder / CONFIG).exists():
            RunFolder.create(folder, {}, {})
        processes.gathered([None])
        retrain(RunFolder(folder), None, config)
        if held:
            torch.save(held[0].model.state_dict(), folder / f"state-{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
