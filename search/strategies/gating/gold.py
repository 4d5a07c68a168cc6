"""GOLD-NAS (Bi et al., 2020): one level, a charge on resources, from the full supernet down to the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from ...supernet.architecture import Architecture
from ...supernet.supernet import Gates
from ..protocol import Member, Question, SearchPlan, State, Strategy, architectures_of, measured
from ..training import Training
from .gradient import best_gates

WEIGHT = 0.1
"""Of the resource term at first (lambda)."""
RAISE = 2.0
"""Times which the weight is taken after a generation in which too few gates fell."""
FALLEN = 0.1
"""A branch whose factor is below this part of where it began is pruned."""


@final
@dataclass(frozen=True)
class Gold(Strategy):
    """Gates pay for what their branches cost; after every generation those that fell are pruned.

    The gates' loss has the term `lambda * sum_i c_i s(beta) s(alpha_i)`; the weights' has not. c_i is the share of slot
    i in the FLOPs of all slots, averaged with its share in their number, so that a branch without convolutions
    pays, too (theirs balances the two by mu). Where fewer gates fell than an even pace asks for, lambda is doubled and
    the smallest gates go with them, so the budget is reached a generation before the end, and the result is trained as
    it is, uncharged. Theirs has no such pace: it raises lambda until enough is pruned, however long that takes.
    """

    plan: SearchPlan

    @property
    def measurements(self) -> int:
        """One a generation."""
        return self.plan.generations + 1

    def ask(self, state: State, generator: torch.Generator) -> Question:  # noqa: ARG002  # the strategies' signature
        """Train and measure what is left."""
        (left,) = self.outcome(state)
        charges = () if left.size <= self.plan.budget else tuple(_weight(state) * c for c in shares(self.plan))
        asked = (Member(left, age=state.generation + 1),)
        return Question(replace(state, asked=asked), (left,), (left,), Training(charges=charges))

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """Prune what fell, and down to this generation's size."""
        plan, generation = self.plan, state.generation + 1
        (member,) = measured(state, scores)
        now, began = gates.factors(plan.space), plan.initial.factors(plan.space)
        standing = sum(now[i] >= FALLEN * began[i] for i, on in enumerate(member.architecture.mask) if on)
        size = self._size(generation)
        weight = _weight(state) * (RAISE if standing > size else 1.0)
        kept = max(plan.budget, min(standing, size))
        if kept < member.architecture.size:
            member = Member(best_gates(member.architecture, gates, kept), age=member.age)
        return State(gates=gates, generation=generation, members=(member,), memory=(weight,))

    def outcome(self, state: State) -> tuple[Architecture, ...]:
        """What is left."""
        return architectures_of(state.members) or (Architecture.full(self.plan.space),)

    def _size(self, generation: int) -> int:
        """Branches left after that many generations, at most."""
        every, plan = len(self.plan.space.slots), self.plan
        steps = max(1, plan.generations - 1)
        return max(plan.budget, every - math.ceil((every - plan.budget) * generation / steps))


def shares(plan: SearchPlan) -> list[float]:
    """Of every slot the mean of its share in the FLOPs of all and of its share in all slots; they add up to 1."""
    even = 1 / len(plan.space.slots)
    total = sum(plan.flops)
    return [(even + own / total) / 2 for own in plan.flops] if total else [even] * len(plan.space.slots)


def _weight(state: State) -> float:
    return state.memory[0] if state.memory else WEIGHT
