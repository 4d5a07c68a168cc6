"""Random search: new architectures drawn uniformly, the best kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from ...supernet.supernet import Gates
from ..evolution import best, first_population
from ..protocol import (
    Member,
    Question,
    SearchPlan,
    State,
    Strategy,
    architectures_of,
    asked,
    charged,
    generational,
    measured,
    older,
)


@final
@dataclass(frozen=True)
class Random(Strategy):
    """As many new ones a generation as `des` has children; the kept are trained and measured again with them."""

    plan: SearchPlan

    @property
    def measurements(self) -> int:
        """Of the kept and new ones, every generation."""
        return generational(self.plan)

    def ask(self, state: State, generator: torch.Generator) -> Question:
        """The kept, and new ones."""
        plan = self.plan
        wanted = plan.children if state.members else plan.population
        living = set(architectures_of(state.members))
        # As many more as could turn out to live already.
        drawn = first_population(plan.space, plan.budget, wanted + len(living), generator)
        new = [architecture for architecture in drawn if architecture not in living][:wanted]
        return asked(state, [*older(state.members), *map(Member, new)])

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """The most accurate are kept, less what they cost."""
        members = charged(measured(state, scores), self.plan)
        kept = best([m.score or 0.0 for m in members], self.plan.population)
        return State(gates=gates, generation=state.generation + 1, members=tuple(members[i] for i in kept))
