"""What a search would take: counted from its configuration, timed on two updates."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..session import Session, settling
from ..strategies import State
from ..strategies.evolution import random_architecture
from ..supernet.evaluate import evaluate


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Counts of the whole search; seconds measured here and now; the most memory a process held, in bytes."""

    slots: int
    budget: int
    updates: int
    generations: int
    evaluations: int
    seconds_an_update: float
    seconds_a_candidate: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Training and evaluating; reading images is in it, writing checkpoints is not."""
        return self.updates * self.seconds_an_update + self.evaluations * self.seconds_a_candidate


def estimate(session: Session, clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Two updates with what the strategy asks for first, the second one timed, and one candidate on a validation batch.

    The session is spent: its weights have moved.
    """
    config, generator = session.config, torch.Generator().manual_seed(session.config.seed)
    space = session.supernet.space
    strategy = session.strategy()
    question = strategy.ask(State(gates=session.initial), generator)
    count, training = min(config.architectures, len(question.train)), question.training
    with session.held_out(0, 0, count, training.gates) as held_out:

        def update(x: Tensor, y: Tensor, step: int) -> None:
            asked = training.drawn(
                question.train,
                count,
                gates=session.supernet.gates,
                budget=session.budget,
                share=0.0,
                generator=generator,
            )
            session.update(x, y, asked, step, training, next(held_out))

        seconds = second_update_s(session.batches(0, 0, count, training.gates), update, clock)
    first = next(iter(session.validation))
    share = len(session.split.validation) / len(first[1])
    candidates = [random_architecture(space, session.budget, generator) for _ in range(2)]
    with settling(session.supernet, config.positions):
        # The first pays for warming up; what folding costs is shared by a whole population.
        _, found = [
            evaluate(
                session.supernet,
                candidates,
                [first],
                session.evaluation_settings,
                correct=session.task.correct,
                reestimation=session.settling_images(),
            )
            for _ in range(2)
        ]
    alone = found.reestimate_s + found.write_s + share * found.run_s
    each = alone / len(candidates) + found.fold_s / config.population
    return Estimate(
        slots=len(space.slots),
        budget=session.budget,
        updates=session.steps,
        generations=config.generations,
        evaluations=strategy.measurements,
        seconds_an_update=seconds,
        seconds_a_candidate=each,
        peak_bytes=_peak(),
    )


def second_update_s(
    batches: Iterable[tuple[Tensor, Tensor]],
    update: Callable[[Tensor, Tensor, int], object],
    clock: Callable[[], float],
) -> float:
    """Seconds of the second of two updates, reading its images included; of the first where there is one."""
    started, seconds = clock(), 0.0
    for step, (x, y) in enumerate(itertools.islice(batches, 2)):
        update(x, y, step)
        seconds, started = clock() - started, clock()
    return seconds


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
