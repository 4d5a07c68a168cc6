"""Gradient search (RepNAS; DARTS in a space of parallel branches): train all branches, keep those of the best gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from ..supernet.architecture import Architecture
from ..supernet.space import SearchSpace
from ..supernet.supernet import Gates
from .protocol import Member, Question, SearchPlan, State, measured


@final
@dataclass(frozen=True)
class Gradient:
    """The whole supernet is trained; the architecture is the `budget` slots with the largest `s(beta) s(alpha)`."""

    plan: SearchPlan

    @property
    def measurements(self) -> int:
        """One a generation."""
        return self.plan.generations + 1

    def ask(self, state: State, generator: torch.Generator) -> Question:  # noqa: ARG002  # the strategies' signature
        """Train everything; measure what the gates would choose now."""
        (chosen,) = self.outcome(state)
        question = replace(state, asked=(Member(chosen, age=state.generation + 1),))
        return Question(question, (Architecture.full(self.plan.space),), (chosen,))

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """Remember the gates."""
        return State(gates=gates, generation=state.generation + 1, members=measured(state, scores))

    def outcome(self, state: State) -> tuple[Architecture, ...]:
        """What the gates choose; among equal ones the earlier slots."""
        factors = gate_factors(self.plan.space, state.gates)
        chosen = set(sorted(range(len(factors)), key=lambda i: -factors[i])[: self.plan.budget])
        return (Architecture(self.plan.space, tuple(i in chosen for i in range(len(factors)))),)


def gate_factors(space: SearchSpace, gates: Gates) -> list[float]:
    """`s(beta) s(alpha)` of every slot, s the logistic: what each branch's output is multiplied with."""
    alpha, beta = (torch.tensor(values, dtype=torch.float64).sigmoid() for values in (gates.alpha, gates.beta))
    factors: list[float] = (alpha * beta[torch.tensor(space.owners)]).tolist()
    return factors
