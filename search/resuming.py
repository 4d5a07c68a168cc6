"""Training that may be killed at any moment and goes on: epochs of updates between checkpoints, and what those hold."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from repconv.errors import BuildError, SearchError
from repconv.progress import tell_progress

from .config import SearchConfig
from .folder import RunFolder
from .processes import Processes
from .retrain_config import RetrainConfig

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Position:
    """About to do update `step` of `epoch`; `losses` is the sum of this epoch's so far."""

    epoch: int = 0
    step: int = 0
    losses: float = 0.0


class Learner(Protocol):
    """What trains, in one of several processes perhaps."""

    processes: Processes
    device: torch.device
    steps_an_epoch: int

    @property
    def config(self) -> SearchConfig | RetrainConfig:
        """Its settings."""

    def learning_rate(self, step: int) -> float:
        """At that update, counted over all epochs."""


@dataclass
class Pace:
    """How fast this process trains: seconds between updates over all of its epochs, not what is done between those."""

    clock: Callable[[], float]
    updates: int = 0
    seconds: float = 0.0
    _since: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """The next update begins."""
        self._since = self.clock()

    def count(self) -> float:
        """One is done; what one takes."""
        now = self.clock()
        self.updates, self.seconds, self._since = self.updates + 1, self.seconds + now - self._since, now
        return self.seconds / self.updates


def rest_of_epoch(
    learner: Learner,
    at: Position,
    batches: Generator[tuple[Tensor, Tensor]],
    *,
    update: Callable[[Tensor, Tensor, int], float],
    keep: Callable[[Position], None],
    tell: Report,
    pace: Pace,
    beside_s: float | None = 0.0,
) -> None:
    """Do what is left of an epoch, writing checkpoints on the way, not at its end.

    batches: from `at` on. update: of a number counted over all epochs, gives its loss. tell: is shown its metrics.
    beside_s: seconds that evaluating will take in the rest of the run, None where that is not known yet.

    Raises:
        BuildError: a process that loads images was killed.
    """
    start, first = pace.clock(), at.step
    steps, every, epochs = learner.steps_an_epoch, learner.config.checkpoint_steps, learner.config.epochs
    pace.begin()
    with loaders_lost_in_words(), closing(batches):
        for x, y in batches:
            loss = update(x, y, at.epoch * steps + at.step)
            at = replace(at, step=at.step + 1, losses=at.losses + loss)
            each, done = pace.count(), at.epoch * steps + at.step
            tell_progress(
                "updates",
                done,
                epochs * steps,
                within=f"epoch {at.epoch + 1} of {epochs}: {at.step:,} of {steps:,}, {each:.2g} s each",
                left_s=each * (epochs * steps - done) + (beside_s or 0.0),
                without="evaluation" if beside_s is None else "",
            )
            if at.step % every == 0 and at.step < steps:
                keep(at)
    done = (at.epoch + 1) * steps
    tell(
        {
            "kind": "epoch",
            "epoch": at.epoch + 1,
            "step": done,
            "loss": at.losses / steps,
            "learning_rate": learner.learning_rate(done - 1),
            "seconds_a_step": (pace.clock() - start) / max(1, at.step - first),
        }
    )


@contextmanager
def loaders_lost_in_words() -> Iterator[None]:
    """What is raised where a loading process has ended: by torch wherever the program is, and by what reads from it.

    Raises:
        BuildError: instead.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
            raise
        raise BuildError(
            f"a process that loads images has ended ({str(error).strip()}); fewer workers take less memory"
        ) from error


def keep(folder: RunFolder, learner: Learner, at: Position, content: Mapping[str, Any]) -> None:
    """Write a checkpoint of `content`, its `format` included; every process has to ask, the first one writes."""
    mine = {
        "rng": torch.get_rng_state(),
        "cuda_rng": [torch.cuda.get_rng_state(learner.device)] if learner.device.type == "cuda" else [],
    }
    first, *others = learner.processes.gathered([mine])
    if learner.processes.first:
        random = {**first, "rng_of_others": others}
        folder.write_checkpoint({**content, **vars(at), **random, "metrics_bytes": folder.metrics_bytes()})


def kept(folder: RunFolder, learner: Learner, form: str) -> tuple[Position, dict[str, Any]] | None:
    """What the last checkpoint holds, torch's own generators set as they were; None before the first.

    What was written after it is undone. The generators of more processes than there were begin as earlier ones.

    Raises:
        SearchError: it is damaged, or not of format `form`.
    """
    content = folder.read_checkpoint()
    if learner.processes.first:
        folder.go_back(0 if content is None else content["metrics_bytes"])
    learner.processes.gathered([None])  # nobody goes on before all have read it, as the first will soon write the next
    if content is None:
        return None
    if content.get("format") != form:
        raise SearchError(f"the checkpoint is of {content.get('format')!r}, this repconv reads {form}")
    every = [content, *content.get("rng_of_others", [])]
    mine = every[learner.processes.rank % len(every)]
    torch.set_rng_state(mine["rng"])
    if mine["cuda_rng"] and learner.device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda_rng"][0], learner.device)
    return Position(content["epoch"], content["step"], content["losses"]), content
