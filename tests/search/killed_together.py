"""A search of two processes, one of which may kill itself, or that goes on after that.

    torchrun --nproc-per-node 2 tests/search/killed_together.py FOLDER RANK EVENT
    python tests/search/killed_together.py FOLDER OTHER

With EVENT 0 nobody is killed, and each process writes FOLDER.RANK.json: its moments, of which EVENT counts one. The
second form prints what differs between two finished runs.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from kill_points import CONFIG, Events, equal, left, watch

from repconv.search.config import SCHEMA
from repconv.search.folder import CONFIG as CONFIG_FILE
from repconv.search.folder import RunFolder
from repconv.search.processes import joined
from repconv.search.run import run
from repconv.search.settings import settings_to_dict


def main(folder: Path, rank: int, event: int) -> None:
    """Start the run or go on with it, to its end or to the event."""
    torch.set_num_threads(1)
    with joined("cpu") as (processes, _):
        if processes.first and not (folder / CONFIG_FILE).exists():
            RunFolder.create(folder, settings_to_dict(dataclasses.replace(CONFIG, device="cpu"), SCHEMA), {})
        processes.gathered([0])  # the folder is there
        events = Events(event if processes.rank == rank else 0)
        watch(events)
        run(RunFolder.open(folder))
        if not event:
            folder.with_name(f"{folder.name}.{processes.rank}.json").write_text(json.dumps(events.names))


def differences(one: Path, other: Path) -> list[str]:
    """What two runs left that is not the same, bit for bit."""
    first, second = left(one), left(other)
    return [key for key, value in first.items() if not equal(value, second[key])]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps(differences(Path(sys.argv[1]), Path(sys.argv[2]))))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
