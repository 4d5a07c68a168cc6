"""P-DARTS (Chen et al., 2019): DARTS in stages, each with fewer candidates, and skip connections held back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import final

import torch

from ...supernet.architecture import Architecture
from ...supernet.supernet import Gates
from ..protocol import Member, Question, SearchPlan, State, Strategy, measured
from ..training import Dropped, Training
from .gradient import best_gates

STAGES = 3
DROPS = (0.0, 0.4, 0.7)
"""The chance of a skip connection to be left out of a mini-batch as each stage begins, theirs on CIFAR-10."""
DECAY = 3.0
"""By its end a stage's chance has fallen to exp(-DECAY) of it, as theirs by 0.2 an epoch in 15."""
SKIPS = 1 / 4
"""The share of blocks with a searchable skip connection that may have one in the result; theirs 2 of 8 operations."""


@final
@dataclass(frozen=True)
class PDarts(Strategy):
    """Gates learn to the first order of DARTS and begin every stage anew; at its end every block loses candidates.

    The stages share out the generations evenly. After each but the last one a block keeps the share of its searchable
    branches that lies evenly between all and the budget's ratio, rounded up, by its gates; after the last one the
    budget's best of the whole net are kept, with at most `SKIPS` of the skip connections, or as many as the budget
    needs.

    Theirs also builds a deeper network for each stage and trains its weights anew, at first alone. Here the depth is
    the network's, so nothing stands for that; weights go on, since updates are as many for all, and what trains them
    before the gates is the warm-up. Theirs drops outputs of skip connections number by number, here the whole branch
    is left out of a mini-batch.
    """

    plan: SearchPlan

    @property
    def measurements(self) -> int:
        """One a generation."""
        return self.plan.generations + 1

    @property
    def warm_up(self) -> Training:
        """By the halves of the images from the start."""
        return Training(gates="first")

    def ask(self, state: State, generator: torch.Generator) -> Question:  # noqa: ARG002  # the strategies' signature
        """Train all candidates; measure what the gates would choose now."""
        (chosen,) = self.outcome(state)
        stage, first, length = self._stage(state.generation)
        left = self._left(state)
        skips = tuple(i for i in self._skips if left.mask[i])
        begins, ends = ((state.generation + more - first) / length for more in (0, 1))
        chances = [DROPS[stage] * math.exp(-DECAY * share) for share in (begins, ends)]
        training = Training(
            gates="first",
            dropped=Dropped(skips, chances[0], chances[1]) if skips and chances[0] else None,
            afresh=state.generation == first,
        )
        asked = (Member(chosen, age=state.generation + 1),)
        return Question(replace(state, asked=asked), (left,), (chosen,), training)

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """Remember the gates; cut candidates at the end of a stage."""
        stage, first, length = self._stage(state.generation)
        left = self._left(state)
        if state.generation + 1 == first + length:
            left = self._cut(left, gates, stage + 1)
        memory = tuple(map(float, left.mask))
        return State(gates=gates, generation=state.generation + 1, members=measured(state, scores), memory=memory)

    def outcome(self, state: State) -> tuple[Architecture, ...]:
        """What the gates choose among the candidates."""
        return (self._chosen(self._left(state), state.gates),)

    @property
    def _stages(self) -> int:
        return min(STAGES, self.plan.generations)

    @property
    def _skips(self) -> list[int]:
        return [i for i, slot in enumerate(self.plan.space.slots) if slot.branch == "skip"]

    def _stage(self, generation: int) -> tuple[int, int, int]:
        """The stage a generation is in, its first generation, and how many it has."""
        starts = [-(-number * self.plan.generations // self._stages) for number in range(self._stages + 1)]
        stage = max(number for number in range(self._stages) if starts[number] <= generation)
        return stage, starts[stage], starts[stage + 1] - starts[stage]

    def _left(self, state: State) -> Architecture:
        """The candidates."""
        if not state.memory:
            return Architecture.full(self.plan.space)
        return Architecture(self.plan.space, tuple(map(bool, state.memory)))

    def _cut(self, left: Architecture, gates: Gates, done: int) -> Architecture:
        """The candidates after so many stages."""
        plan = self.plan
        if done == self._stages:
            return self._chosen(left, gates)
        share = 1 - (1 - Fraction(plan.budget, len(plan.space.slots))) * Fraction(done, self._stages)
        kept = [False] * len(plan.space.slots)
        for number, block in enumerate(plan.space.blocks):
            within = [on and owner == number for on, owner in zip(left.mask, plan.space.owners, strict=True)]
            best = best_gates(Architecture(plan.space, tuple(within)), gates, math.ceil(share * len(block.searchable)))
            kept = [a or b for a, b in zip(kept, best.mask, strict=True)]
        return Architecture(plan.space, tuple(kept))

    def _chosen(self, left: Architecture, gates: Gates) -> Architecture:
        """The budget's best candidates, with few skip connections."""
        skips, budget = set(self._skips), self.plan.budget
        others = sum(on and i not in skips for i, on in enumerate(left.mask))
        most = max(math.ceil(SKIPS * len(skips)), budget - others)
        only = Architecture(left.space, tuple(on and i in skips for i, on in enumerate(left.mask)))
        few = best_gates(only, gates, most)
        allowed = tuple(on and (few.mask[i] or i not in skips) for i, on in enumerate(left.mask))
        return best_gates(Architecture(left.space, allowed), gates, budget)
