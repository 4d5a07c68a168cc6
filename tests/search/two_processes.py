"""One of several processes that do an update of a search, then a whole one; writes what it has.

    torchrun --nproc-per-node 2 tests/search/two_processes.py FOLDER ARCHITECTURES WEIGHTING PROCESSES STRATEGY

With one process (no torchrun) it is the reference of an update by as many as PROCESSES.
"""

from __future__ import annotations

import copy
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from repconv.search.config import SCHEMA
from repconv.search.folder import RunFolder
from repconv.search.presets import PRESETS
from repconv.search.processes import joined, shares
from repconv.search.run import run
from repconv.search.session import Session
from repconv.search.settings import settings_to_dict
from repconv.search.strategies import State
from repconv.search.strategies.evolution import random_architecture
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.supernet import Supernet


class Split:
    """A supernet that runs each mini-batch as teams of processes do, in one process.

    Each part is normalised by its own statistics; the running ones become the mean of what each part alone would have
    left, weighted by images.
    """

    def __init__(self, supernet: Supernet, architectures: int, processes: int) -> None:
        self.supernet, self.model, self.space = supernet, supernet.model, supernet.space
        self.teams = itertools.cycle(shares(processes, architectures))

    def __call__(self, architecture: Architecture, x: Tensor) -> Tensor:
        """What the parts give, together."""
        start = copy.deepcopy(self.model.state_dict())
        outputs, ends = [], []
        for part in shares(len(x), len(next(self.teams))):
            self._put(start)
            outputs.append(self.supernet(architecture, x[part.start : part.stop]))
            ends.append({name: value.clone() * (len(part) / len(x)) for name, value in self._statistics().items()})
        self._put({name: sum(end[name] for end in ends) for name in ends[0]})
        return torch.cat(outputs)

    def _statistics(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.named_buffers() if "running" in name}

    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in self.model.named_buffers():
            if name in values:
                value.data.copy_(values[name])  # autograd keeps them, though it takes the batch's in training


def main(folder: Path, architectures: int, weighting: str, of: int, strategy: str) -> None:
    """Three updates with given architectures, one evaluation; then a run."""
    torch.set_num_threads(1)
    config = replace(
        PRESETS["smoke"].config,
        width=2,
        blocks=(1,),
        train_images=150,
        population=4,
        epochs=3,
        warmup_epochs=1,
        generation_epochs=1,
        batch=31,
        architectures=architectures,
        weighting=weighting,
        strategy=strategy,
        ratio=0.3,
        device="cpu",
    )
    with joined("cpu") as (processes, device):
        session = Session(config, processes, device)
        training = session.strategy().ask(State(gates=session.initial), torch.Generator()).training
        session.supernet.model.double()
        if processes.count == 1 and of > architectures:
            session.supernet = Split(session.supernet, architectures, of)  # type: ignore[assignment]
        generator = torch.Generator().manual_seed(4)
        space = session.supernet.space
        with session.held_out(0, 0, architectures, training.gates) as held_out:
            for step, (x, y) in enumerate(session.batches(0, 0, architectures, training.gates)):
                drawn = [random_architecture(space, session.budget, generator) for _ in range(architectures)]
                apart = next(held_out)
                session.update(x.double(), y, drawn, step, training, apart and (apart[0].double(), apart[1]))
        gradients = {n: p.grad is not None for n, p in session.supernet.model.named_parameters()}
        torch.save(
            {"state": session.supernet.model.state_dict(), "gradients": gradients, "rank": processes.rank},
            folder / f"update-{processes.count}-{processes.rank}.pt",
        )
        session.supernet.model.float()
        if isinstance(session.supernet, Split):
            session.supernet = session.supernet.supernet
        accuracies = session.measure([random_architecture(space, 4, generator) for _ in range(5)]).accuracies
        torch.save(accuracies, folder / f"accuracies-{processes.count}-{processes.rank}.pt")
        name = f"run-{processes.count}"
        if processes.first:
            RunFolder.create(folder / name, settings_to_dict(config, SCHEMA), {})
        processes.gathered([0])  # the folder is there
        run(RunFolder.open(folder / name))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
