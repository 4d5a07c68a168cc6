"""DES, the paper's differentiable evolution: children bred from disturbed gates, an age term in the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import pstdev
from typing import final

import torch

from ...supernet.supernet import Gates
from ..evolution import age_share, age_term, best, breed
from ..protocol import (
    Member,
    Question,
    SearchPlan,
    State,
    Strategy,
    architectures_of,
    asked,
    charged,
    first_question,
    generational,
    measured,
    older,
)


@final
@dataclass(frozen=True)
class Des(Strategy):
    """De-IReps, algorithm 1. Parents and children are trained and measured together, every generation anew."""

    plan: SearchPlan

    @property
    def measurements(self) -> int:
        """Of the living and their children, every generation."""
        return generational(self.plan)

    def ask(self, state: State, generator: torch.Generator) -> Question:
        """The living and their children; at first a uniform draw."""
        plan = self.plan
        if not state.members:
            return first_question(state, plan, generator)
        parents = architectures_of(state.members)
        children = breed(parents, plan.children, plan.budget, state.gates, plan.initial, generator, plan.breeding)
        return asked(state, [*older(state.members), *(Member(child) for child in children)])

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """The best live on by `S = A + phi` (equation 15), less what they cost; nothing lives past the age limit.

        Where that would leave nobody (a space of one architecture, say), all that died are born again.
        """
        plan = self.plan
        worth = charged(measured(state, scores), plan)
        members = self._aged(worth, pstdev(scores)) if plan.age else worth
        kept = best([m.score or 0.0 for m in members], plan.population)
        if not kept:
            members = self._aged([replace(m, age=1) for m in worth], pstdev(scores))
            kept = best([m.score or 0.0 for m in members], plan.population)
        return State(gates=gates, generation=state.generation + 1, members=tuple(members[i] for i in kept))

    def _aged(self, members: Sequence[Member], spread: float) -> tuple[Member, ...]:
        """With the age term in their scores."""
        return tuple(replace(m, score=(m.score or 0.0) + self._term(m.age, spread)) for m in members)

    def _term(self, age: int, spread: float) -> float:
        plan = self.plan
        if plan.age_unit == "accuracy":
            return age_term(age, scale=plan.age_scale, limit=plan.age_limit, offset=plan.age_offset)
        share = age_share(age, scale=plan.age_scale, limit=plan.age_limit, offset=plan.age_offset)
        return share if share == -math.inf else plan.age_strength * spread * share
