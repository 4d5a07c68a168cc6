"""Updates of a retraining by one or several processes, which split each mini-batch; writes what they leave.

    torchrun --nproc-per-node 2 tests/search/retrain_together.py FOLDER PROCESSES

With one process (no torchrun) it is the reference, which normalises the parts that PROCESSES would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from two_processes import Split

from repconv import create_model
from repconv.search.processes import joined
from repconv.search.reports.found import Found
from repconv.search.retrain_config import RetrainConfig
from repconv.search.retraining.trainer import Trainer
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.space import SearchSpace
from repconv.search.supernet.supernet import Gates

NETWORK = {"name": "irep_resnet18", "width": 2, "blocks": [1], "fixed": [], "branches": []}
CONFIG = RetrainConfig(
    data="digits", train_images=100, epochs=2, batch=31, cutout=2, drop_path=0.5, learning_rate=0.1, device="cpu"
)


def main(folder: Path, of: int) -> None:
    """An epoch in float64."""
    torch.set_num_threads(1)
    space = SearchSpace.of(create_model("irep_resnet18", width=2, blocks=(1,), in_channels=1))
    slots = len(space.slots)
    architecture = Architecture(space, tuple(i % 3 > 0 for i in range(slots)))
    found = Found(
        architecture=architecture,
        network=NETWORK,
        gates=Gates(tuple(i / 10 for i in range(slots)), (0.1, 0.2, 0.3)),
        accuracy=0.5,
    )
    with joined("cpu") as (processes, device):
        if processes.first:
            (folder / "found.arch.json").write_text(json.dumps(found.to_dict()))
        trainer = Trainer(found=found, config=CONFIG, processes=processes, device=device)
        trainer.model.double()
        assert trainer.supernet is not None
        if processes.count == 1:
            trainer.supernet = Split(trainer.supernet, 1, of)  # type: ignore[assignment]
        losses = [trainer.update(x.double(), y, step) for step, (x, y) in enumerate(trainer.batches(0, 0))]
        content = {"state": trainer.model.state_dict(), "losses": losses}
        torch.save(content, folder / f"retrain-{processes.count}-{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
