"""GOLD-NAS (Bi et al., 2020): one-level training, from the full supernet down to the budget, gradually."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from ...supernet.architecture import Architecture
from ...supernet.supernet import Gates
from ..protocol import Member, Question, SearchPlan, State, Strategy, architectures_of, measured
from .gradient import best_gates


@final
@dataclass(frozen=True)
class Gold(Strategy):
    """Gradual pruning: after every generation the active branches with the smallest gates go, as many as keep the pace.

    The pace is even and reaches the budget a generation before the end, so that the result is trained as it is. Their
    penalty on FLOPs is the budget here: every branch costs the same.
    """

    plan: SearchPlan

    @property
    def measurements(self) -> int:
        """One a generation."""
        return self.plan.generations + 1

    def ask(self, state: State, generator: torch.Generator) -> Question:  # noqa: ARG002  # the strategies' signature
        """Train and measure what is left."""
        (left,) = self.outcome(state)
        return Question(replace(state, asked=(Member(left, age=state.generation + 1),)), (left,), (left,))

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """Prune down to this generation's size."""
        (member,) = measured(state, scores)
        size = self._size(state.generation + 1)
        if size < member.architecture.size:
            member = Member(best_gates(member.architecture, gates, size), age=member.age)
        return State(gates=gates, generation=state.generation + 1, members=(member,))

    def outcome(self, state: State) -> tuple[Architecture, ...]:
        """What is left."""
        return architectures_of(state.members) or (Architecture.full(self.plan.space),)

    def _size(self, generation: int) -> int:
        """Branches left after that many generations."""
        every, plan = len(self.plan.space.slots), self.plan
        steps = max(1, plan.generations - 1)
        return max(plan.budget, every - math.ceil((every - plan.budget) * generation / steps))
