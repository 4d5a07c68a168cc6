"""CARS (Yang et al., 2020): shared weights, and selection by non-dominated sorting of error and size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from ..supernet.architecture import Architecture
from ..supernet.supernet import Gates
from .evolution import crossover, mutate, pick, random_architecture, to_architecture, to_mask
from .protocol import (
    Member,
    Question,
    SearchPlan,
    State,
    architectures_of,
    asked,
    first_question,
    generational,
    measured,
)


@final
@dataclass(frozen=True)
class Cars:
    """Architectures of any size up to the budget; a front of accuracy against active branches lives on.

    A child is a cross of two parents, a mutated parent or a new draw, a third of the time each; over the budget it
    loses random branches. Fronts are kept whole from the best on; of the last one, those in the emptiest regions
    (crowding distance, Deb et al., 2002).
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
        return asked(state, [*state.members, *children])

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """The best fronts are kept."""
        members = measured(state, scores)
        points = [(1 - (m.accuracy or 0.0), float(m.architecture.size)) for m in members]
        kept: list[int] = []
        for front in fronts(points):
            room = self.plan.population - len(kept)
            if len(front) > room:
                distance = crowding([points[i] for i in front])
                front = [i for _, i in sorted(zip(distance, front, strict=True), key=lambda d: (-d[0], d[1]))][:room]  # noqa: PLW2901
            kept += front
        return State(gates=gates, generation=state.generation + 1, members=tuple(members[i] for i in kept))

    def outcome(self, state: State) -> tuple[Architecture, ...]:
        """The front."""
        return architectures_of(state.members)

    def _child(self, living: Sequence[Architecture], generator: torch.Generator) -> Architecture:
        plan = self.plan
        way = int(torch.randint(3, (), generator=generator))
        if way == 0:
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


def fronts(points: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Positions of points in fronts: no point of a front is dominated by one of its own or a later front.

    A point dominates another if it is nowhere larger and somewhere smaller.
    """
    left = list(range(len(points)))
    found = []
    while left:
        front = [i for i in left if not any(_dominates(points[j], points[i]) for j in left)]
        found.append(front)
        left = [i for i in left if i not in front]
    return found


def crowding(points: Sequence[tuple[float, float]]) -> list[float]:
    """For each point the sides of the box its neighbours span, relative to the front's; infinite at the ends."""
    distance = [0.0] * len(points)
    for axis in range(2):
        order = sorted(range(len(points)), key=lambda i: points[i][axis])
        span = points[order[-1]][axis] - points[order[0]][axis]
        distance[order[0]] = distance[order[-1]] = math.inf
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            distance[here] += (points[after][axis] - points[before][axis]) / span if span else 0.0
    return distance


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]
