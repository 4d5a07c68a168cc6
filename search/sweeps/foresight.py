"""What a sweep would take: a search and a retraining of every group, timed on two updates here and now."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..reports.estimate import estimate, second_update_s
from ..reports.found import Found
from ..retraining.trainer import Trainer
from ..session import Session
from ..strategies.evolution import random_architecture
from .plan import Kind, RetrainRun, SweepPlan


@dataclass(frozen=True, kw_only=True)
class GroupEstimate:
    """Runs of one kind that differ in their seed alone, or in which of the best they train; seconds of one of them."""

    kind: Kind
    group: str
    runs: int
    seconds: float

    @property
    def all_s(self) -> float:
        """Seconds of all, one after the other."""
        return self.runs * self.seconds


def foresee(plan: SweepPlan, clock: Callable[[], float] = time.perf_counter) -> tuple[GroupEstimate, ...]:
    """Every group's searches, and then its retrainings.

    Images that are measured at the end of a retraining, and checkpoints, are not in it.

    Raises:
        RepconvError: the data, the network or a setting makes no sense.
    """
    found = []
    for group in dict.fromkeys(one.group for one in plan.runs):
        searches = [one for one in plan.searches if one.group == group]
        retrainings = [one for one in plan.retrainings if one.group == group]
        session = Session(searches[0].config)
        seconds = estimate(session, clock).seconds
        found.append(GroupEstimate(kind="search", group=group, runs=len(searches), seconds=seconds))
        if retrainings:
            seconds = _retraining_s(retrainings[0], session, clock)
            found.append(GroupEstimate(kind="retrain", group=group, runs=len(retrainings), seconds=seconds))
    return tuple(found)


def _retraining_s(one: RetrainRun, session: Session, clock: Callable[[], float]) -> float:
    """Of an architecture of the budget's size, the second of two updates timed."""
    generator = torch.Generator().manual_seed(one.config.seed)
    found = Found(
        architecture=random_architecture(session.supernet.space, session.budget, generator),
        network=session.config.network_settings,
        gates=session.initial,
        accuracy=0.0,
    )
    # The supernet of a search is not there yet; its weights take no time.
    config = dataclasses.replace(one.config, supernet="")
    trainer = Trainer(found=found, config=config, own_code=session.config.network)
    return second_update_s(trainer.batches(0, 0), trainer.update, clock) * config.epochs * trainer.steps_an_epoch
