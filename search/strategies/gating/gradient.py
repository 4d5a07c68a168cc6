"""Gradient search: the whole supernet trains, and the best gates are kept (one-level, DARTS, RepNAS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from ...supernet.architecture import Architecture
from ...supernet.supernet import Gates
from ..protocol import Member, Question, SearchPlan, State, Strategy, measured
from ..training import Training


@final
@dataclass(frozen=True)
class Gradient(Strategy):
    """The whole supernet is trained; the architecture is the `budget` slots with the largest `s(beta) s(alpha)`.

    How it trains tells four strategies apart:

    * As usual: the one-level form.
    * By gates "first" and "second": DARTS (Liu et al., 2019), by its two orders. Weights and gates learn from halves
      of the images, from the warm-up on. Theirs weighs the operations of an edge by a softmax, keeps the best one of
      each and two edges a node; here branches add up, each by its own gate, and the budget is one for the whole net.
    * Perturbed: RepNAS (Zhang et al., 2021), one-level. Each mini-batch trains the budget's best branches of the whole
      net by architecture parameters with the noise of two Gumbel draws; branches left out get no gradient. In theirs a
      branch's output is taken as it is, and its parameter gets the gradient of `s(alpha + noise)` (straight through).
      Here a branch is multiplied with `s(beta) s(alpha)`, as it is folded and retrained, and that is what the gates'
      gradient is of; the noise ranks the logit of this factor, which is theirs where a block has no gate of its own.
    """

    plan: SearchPlan
    training: Training = Training()  # noqa: RUF009  # frozen

    @property
    def measurements(self) -> int:
        """One a generation."""
        return self.plan.generations + 1

    @property
    def warm_up(self) -> Training:
        """By the halves of the images from the start, where there are any, so that neither learns from the other's."""
        return Training() if self.training.gates == "joint" else Training(gates="first")

    def ask(self, state: State, generator: torch.Generator) -> Question:  # noqa: ARG002  # the strategies' signature
        """Train everything, or what is drawn of it; measure what the gates would choose now."""
        (chosen,) = self.outcome(state)
        question = replace(state, asked=(Member(chosen, age=state.generation + 1),))
        return Question(question, (Architecture.full(self.plan.space),), (chosen,), self.training)

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
