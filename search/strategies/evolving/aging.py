"""Aging evolution (Real et al., 2019, AmoebaNet): tournaments choose parents, the oldest die."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from ...supernet.architecture import Architecture
from ...supernet.space import SearchSpace
from ...supernet.supernet import Gates
from ..evolution import first_population
from ..protocol import Member, Question, SearchPlan, State, Strategy, architectures_of, asked, charged, measured, older

SHARE = 4
"""A tournament is a quarter of the population, as their 25 of 100; a quarter is also replaced each generation."""


@final
@dataclass(frozen=True)
class Aging(Strategy):
    """Regularised evolution in steps of a quarter of the population, since a generation here is an epoch's training.

    Every child is one mutation of the best of a random sample: an active branch is exchanged for another, so its size
    stays. Nothing is measured twice, as published. With shared weights, which learn on, that favours newborns: an
    older member stays at what it was worth when the weights knew less. So what is found is the best of those that live
    at the end, measured anew; theirs is the best of all that ever lived. `rescored` measures all that live in every
    generation.
    """

    plan: SearchPlan
    rescored: bool = False

    @property
    def measurements(self) -> int:
        """Of the first population, then of children alone, or of all that live and them."""
        plan = self.plan
        again = plan.population if self.rescored else 0
        return 2 * plan.population + (plan.generations - 1) * (again + min(plan.children, _share(plan.population)))

    def ask(self, state: State, generator: torch.Generator) -> Question:
        """New children; all that live are trained."""
        plan = self.plan
        if not state.members:
            new = first_population(plan.space, plan.budget, plan.population, generator)
        else:
            new = self._children(state.members, generator)
        born = tuple(Member(architecture) for architecture in new)
        if self.rescored:
            return asked(state, [*older(state.members), *born])
        return Question(replace(state, asked=born), architectures_of(state.members) + new, new)

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """Children join, as many of the oldest leave."""
        before = () if self.rescored else older(state.members)
        queue = charged([*before, *measured(state, scores)], self.plan)  # the oldest first
        return State(gates=gates, generation=state.generation + 1, members=queue[-self.plan.population :])

    def _children(self, members: Sequence[Member], generator: torch.Generator) -> tuple[Architecture, ...]:
        share = _share(len(members))
        living = set(architectures_of(members))
        children: list[Architecture] = []
        for _ in range(min(share, self.plan.children)):
            for _ in range(self.plan.breeding.attempts):
                sample = torch.randperm(len(members), generator=generator)[:share].tolist()
                winner = max((members[i] for i in sample), key=lambda member: member.score or 0.0)
                child = _exchanged(self.plan.space, winner.architecture, generator)
                if child not in living:
                    living.add(child)
                    children.append(child)
                    break
        return tuple(children)


def _share(members: int) -> int:
    return max(1, members // SHARE)


def _exchanged(space: SearchSpace, architecture: Architecture, generator: torch.Generator) -> Architecture:
    """One random active branch off, one random other on; itself where there is nothing to exchange."""
    on, off = ([i for i, flag in enumerate(architecture.mask) if flag is wanted] for wanted in (True, False))
    if not on or not off:
        return architecture
    gone, come = (group[int(torch.randint(len(group), (), generator=generator))] for group in (on, off))
    return Architecture(space, tuple((flag or i == come) and i != gone for i, flag in enumerate(architecture.mask)))
