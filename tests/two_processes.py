"""One of several processes that do an update of a search, then a whole one; writes what it has.

    torchrun --nproc-per-node 2 tests/two_processes.py FOLDER ARCHITECTURES WEIGHTING

With one process (no torchrun) it is the reference.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from repconv.search.config import SCHEMA, SearchConfig
from repconv.search.evolution import random_architecture
from repconv.search.folder import RunFolder
from repconv.search.processes import joined
from repconv.search.run import run
from repconv.search.session import Session
from repconv.search.settings import settings_to_dict


def main(folder: Path, architectures: int, weighting: str) -> None:
    """Three updates with given architectures, one evaluation; then a run."""
    torch.set_num_threads(1)
    config = SearchConfig(
        network="irep_resnet18", width=2, blocks=(1,), data="digits", train_images=150, validation_share=0.2,
        population=4, epochs=3, warmup_epochs=1, generation_epochs=1, batch=32, architectures=architectures,
        weighting=weighting, ratio=0.3, device="cpu",
    )  # fmt: skip
    with joined("cpu") as (processes, device):
        session = Session(config, processes, device)
        session.supernet.model.double()
        generator = torch.Generator().manual_seed(4)
        space = session.supernet.space
        for step, (x, y) in enumerate(session.batches(0, 0)):
            drawn = [random_architecture(space, session.budget, generator) for _ in range(architectures)]
            session.update(x.double(), y, drawn, step)
        gradients = {n: p.grad is not None for n, p in session.supernet.model.named_parameters()}
        torch.save(
            {"state": session.supernet.model.state_dict(), "gradients": gradients, "rank": processes.rank},
            folder / f"update-{processes.count}-{processes.rank}.pt",
        )
        session.supernet.model.float()
        accuracies = session.measure([random_architecture(space, 4, generator) for _ in range(5)]).accuracies
        torch.save(accuracies, folder / f"accuracies-{processes.count}-{processes.rank}.pt")
        name = f"run-{processes.count}"
        if processes.first:
            RunFolder.create(folder / name, settings_to_dict(config, SCHEMA), {})
        processes.gathered([0])  # the folder is there
        run(RunFolder.open(folder / name))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
