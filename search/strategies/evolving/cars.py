"""CARS (Yang et al., 2020): selection by accuracy, size, and how fast accuracy rises (pNSGA-III)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import final

import torch

from ...supernet.architecture import Architecture
from ...supernet.supernet import Gates
from ..evolution import crossover, mutate, pick, random_architecture, to_architecture, to_mask
from ..protocol import (
    Member,
    Question,
    SearchPlan,
    State,
    Strategy,
    architectures_of,
    asked,
    first_question,
    generational,
    measured,
    older,
)
from .fronts import merged


@final
@dataclass(frozen=True)
class Cars(Strategy):
    """Architectures of any size up to the budget; fronts of two sortings live on, merged from the first ones on.

    One sorting is by error and size. The other is by error and how much accuracy rose since the last generation: with
    shared weights small networks learn first, and would push out larger ones that are still learning. A newborn, never
    measured before, is taken to have risen as the living did, by their median. (The code the authors released, in
    huawei-noah/vega, protects larger ones by error and *largest* size instead.) With a second objective its cost
    stands in the place of size.

    A child is a cross of two parents or a mutated parent, a quarter of the time each, or a new draw, as theirs; over
    the budget it loses random branches. Of the fronts that would be too many theirs draws some at random; here, where
    telling draws nothing, those in the emptiest regions live on (crowding distance, Deb et al., 2002). The reference
    points that NSGA-III is named for spread fronts of three and more objectives; each of these sortings has two.
    """

    plan: SearchPlan

    @property
    def measurements(self) -> int:
        """Of the living and their children, every generation."""
        return generational(self.plan)

    def ask(self, state: State, generator: torch.Generator) -> Question:
        """The living and their children."""
        plan = self.plan
        if not state.members:
            return first_question(state, plan, generator)
        living = architectures_of(state.members)
        seen, children = set(living), []
        for _ in range(plan.children):
            for _ in range(plan.breeding.attempts):
                child = self._child(living, generator)
                if child not in seen:
                    seen.add(child)
                    children.append(Member(child))
                    break
        return asked(state, [*older(state.members), *children])

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """The first fronts are kept."""
        members = measured(state, scores)
        sizes = [self.plan.cost(m.architecture) for m in members]
        by_error = [(1 - score, size) for score, size in zip(scores, sizes, strict=True)]
        by_rise = [(1 - score, -rise) for score, rise in zip(scores, rises(state.asked, scores), strict=True)]
        kept = merged([by_error, by_rise], self.plan.population)
        return State(gates=gates, generation=state.generation + 1, members=tuple(members[i] for i in kept))

    def _child(self, living: Sequence[Architecture], generator: torch.Generator) -> Architecture:
        plan = self.plan
        way = int(torch.randint(4, (), generator=generator))
        if way > 1:
            size = 1 + int(torch.randint(plan.budget, (), generator=generator))
            return random_architecture(plan.space, size, generator)
        mask = to_mask(pick(living, generator))
        if way == 1:
            mask = crossover(mask, to_mask(pick(living, generator)), generator)
        else:
            mask = mutate(mask, plan.breeding.flip, generator)
        on = mask.nonzero().flatten()
        surplus = len(on) - plan.budget
        if surplus > 0:
            mask[on[torch.randperm(len(on), generator=generator)[:surplus]]] = False
        return to_architecture(plan.space, mask)


def rises(asked: Sequence[Member], scores: Sequence[float]) -> list[float]:
    """How much the accuracy of each rose since it was last measured; of those that never were, the others' median.

    0 for all where none was.
    """
    known = [None if m.accuracy is None else score - m.accuracy for m, score in zip(asked, scores, strict=True)]
    usual = median([rise for rise in known if rise is not None] or [0.0])
    return [usual if rise is None else rise for rise in known]
