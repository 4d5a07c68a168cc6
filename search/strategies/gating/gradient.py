"""Gradient search: the whole supernet trains, the best gates are kept; on one level, or on two as DARTS does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from ...supernet.architecture import Architecture
from ...supernet.supernet import Gates
from ..protocol import Member, Question, SearchPlan, State, Strategy, measured
from ..training import GateRule, Training


@final
@dataclass(frozen=True)
class Gradient(Strategy):
    """The whole supernet is trained; the architecture is the `budget` slots with the largest `s(beta) s(alpha)`.

    By rule "joint" it is the one-level form. "first" and "second" are DARTS (Liu et al., 2019), by its two orders:
    weights and gates learn from halves of the images, from the warm-up on. Theirs weighs the operations of an edge by
    a softmax, keeps the best one of each and two edges a node; here branches add up, each by its own gate, and the
    budget is one for the whole net.
    """

    plan: SearchPlan
    rule: GateRule = "joint"

    @property
    def measurements(self) -> int:
        """One a generation."""
        return self.plan.generations + 1

    @property
    def warm_up(self) -> Training:
        """By the halves of the images from the start, so that no gate learns from what the weights know."""
        return Training() if self.rule == "joint" else Training(gates="first")

    def ask(self, state: State, generator: torch.Generator) -> Question:  # noqa: ARG002  # the strategies' signature
        """Train everything; measure what the gates would choose now."""
        (chosen,) = self.outcome(state)
        question = replace(state, asked=(Member(chosen, age=state.generation + 1),))
        return Question(question, (Architecture.full(self.plan.space),), (chosen,), Training(gates=self.rule))

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """Remember the gates."""
        return State(gates=gates, generation=state.generation + 1, members=measured(state, scores))

    def outcome(self, state: State) -> tuple[Architecture, ...]:
        """What the gates choose; among equal ones the earlier slots."""
        return (best_gates(Architecture.full(self.plan.space), state.gates, self.plan.budget),)


def best_gates(within: Architecture, gates: Gates, count: int) -> Architecture:
    """The `count` active slots of `within` with the largest `s(beta) s(alpha)`; among equal ones the earlier ones."""
    factors = gates.factors(within.space)
    active = [i for i, on in enumerate(within.mask) if on]
    chosen = set(sorted(active, key=lambda i: -factors[i])[:count])
    return Architecture(within.space, tuple(i in chosen for i in range(len(factors))))
