"""DES, the paper's differentiable evolution: children bred from disturbed gates, an age term in the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import pstdev
from typing import final

import torch

from ...supernet.architecture import Architecture
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
        older = [replace(member, age=member.age + 1) for member in state.members]
        return asked(state, [*older, *(Member(child) for child in children)])

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """The best live on by `S = A + phi` (equation 15), less what they cost; nothing lives past the age limit.

        Where that would leave nobody (a space of one architecture, say), all that died are born again.
        """
        plan = self.plan
        members = charged(measured(state, scores), plan)
        spread = pstdev(scores)
        if plan.age:
            members = tuple(self._scored(member, spread) for member in members)
        kept = best([m.score or 0.0 for m in members], plan.population)
        if not kept:
            members = tuple(self._scored(replace(m, age=1), spread) for m in members)
            kept = best([m.score or 0.0 for m in members], plan.population)
        return State(gates=gates, generation=state.generation + 1, members=tuple(members[i] for i in kept))

    def outcome(self, state: State) -> tuple[Architecture, ...]:
        """The population."""
        return architectures_of(state.members)

    def _scored(self, member: Member, spread: float) -> Member:
        plan = self.plan
        if plan.age_unit == "spread":
            share = age_share(member.age, scale=plan.age_scale, limit=plan.age_limit, offset=plan.age_offset)
            term = share if share == -math.inf else plan.age_strength * spread * share
        else:
            term = age_term(member.age, scale=plan.age_scale, limit=plan.age_limit, offset=plan.age_offset)
        return replace(member, score=(member.accuracy or 0.0) + term - plan.charge(member.architecture, spread))
