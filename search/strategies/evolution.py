"""Differentiable evolution: the equations of the paper's sections 3.3 and 3.4 as pure functions of values.

Masks are boolean tensors [N], factors float64 tensors [N], both in the order of a space's slots. Every draw comes from
the generator given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from repconv.errors import SearchError

from ..supernet.architecture import Architecture
from ..supernet.space import SearchSpace
from ..supernet.supernet import Gates

FLOOR = 1e-6
"""The least a disturbed factor may be: a negative one would turn the ranking inside its block round."""


Disturbance = Literal["spread", "range"]
"""How far gates are disturbed: as far as they are spread, or as equations (11) and (12) say."""


@dataclass(frozen=True, kw_only=True)
class Breeding:
    """How children come about (De-IReps, section 4.1): chances of crossing, of mutating, and of each slot to flip."""

    crossover: float = 0.5
    mutation: float = 0.5
    flip: float = 0.05
    attempts: int = 20
    """Draws for one child before its place stays empty, so that an exhausted space ends the search for new ones."""
    disturbance: Disturbance = "spread"
    """Of the gates, before they rank the slots: see `disturbed_factors`."""


def age_term(age: float, *, scale: float, limit: float, offset: float) -> float:
    """Equation (14), `scale * (1 / (age - limit - offset) - log_limit(age))` for 1 <= age < limit, else -inf.

    Args:
        age: generations survived, starting at 1 (the paper's E).
        scale: eta.
        limit: a, from which on nothing lives.
        offset: mu, which sets how steeply the term falls near the limit.

    Raises:
        SearchError: an age below 1.
    """
    if age < 1:
        raise SearchError(f"an age counts generations from 1 on, got {age}")
    if age >= limit:
        return -math.inf
    return scale * (1 / (age - limit - offset) - math.log(age) / math.log(limit))


def age_share(age: float, *, scale: float, limit: float, offset: float) -> float:
    """Equation (14) in units of its own fall over a life, from 0 at age 1 to -1 at the last whole age that lives.

    Arguments and errors as `age_term`. Where nothing lives beyond age 1 it is 0 there.
    """

    def term(at: float) -> float:
        return age_term(at, scale=scale, limit=limit, offset=offset)

    if age >= limit:
        return -math.inf
    last = math.ceil(limit) - 1
    return (term(age) - term(1)) / (term(1) - term(last)) if last > 1 else 0.0


def check_age(*, scale: float, limit: float, offset: float) -> None:
    """Refuse what the paper's equation (14) was not made for.

    Raises:
        SearchError: limit <= 1, scale outside (0, 1) or offset outside (0, scale / (1 - scale)).
    """
    if not limit > 1:
        raise SearchError(f"the age limit a is above 1, got {limit}: from it on nothing lives, and ages start at 1")
    if not 0 < scale < 1:
        raise SearchError(f"the age scale eta is above 0 and below 1, got {scale}")
    if not 0 < offset < scale / (1 - scale):
        raise SearchError(
            f"the age offset mu is above 0 and below eta / (1 - eta) = {scale / (1 - scale):.4g}, got {offset}"
        )


def disturbance_range(values: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Equations (11) and (12): from `s(initial) - max s(values)` to `s(initial) - min s(values)`, s the logistic.

    values: [n], before the logistic function, over the whole net; initial: [m], of those to be disturbed.
    """
    now, start = values.sigmoid(), initial.sigmoid()
    return start - now.max(), start - now.min()


def disturbed_factors(
    space: SearchSpace,
    gates: Gates,
    initial: Gates,
    generator: torch.Generator,
    floor: float = FLOOR,
    disturbance: Disturbance = "range",
) -> Tensor:
    """What equation (13) ranks, [N]: of every slot the product of its disturbed alpha and its block's disturbed beta.

    "range", the paper's: `(s(beta) + u_beta) * (s(alpha) + u_alpha)`, `u_alpha` drawn for every slot, `u_beta` for
    every block, from the ranges of equations (11) and (12); each of the two factors is at least `floor`. One gate far
    from the others widens the range of all, and then most factors are at the floor, where chance ranks them.

    "spread": `s(beta + v_beta) * s(alpha + v_alpha)`, v uniform around 0 with the standard deviation of the gates
    themselves, so that signal and chance stay as large as each other, wherever the gates lie.
    """
    owners = torch.tensor(space.owners)
    alpha, alpha_start = (torch.tensor(g.alpha, dtype=torch.float64) for g in (gates, initial))
    beta, beta_start = (torch.tensor(g.beta, dtype=torch.float64) for g in (gates, initial))
    # Blocks without searchable branches have no gate, so they take no part in the largest and smallest.
    gated = beta[owners.unique()]
    if disturbance == "spread":
        operations = (alpha + _as_spread(alpha, alpha, generator)).sigmoid()
        return (beta + _as_spread(gated, beta, generator)).sigmoid()[owners] * operations
    low, high = disturbance_range(alpha, alpha_start)
    operations = alpha.sigmoid() + low + (high - low) * _uniform(len(alpha), generator)
    low, high = disturbance_range(gated, beta_start)
    blocks = beta.sigmoid() + low + (high - low) * _uniform(len(beta), generator)
    return blocks.clamp(min=floor)[owners] * operations.clamp(min=floor)


def _as_spread(values: Tensor, disturbed: Tensor, generator: torch.Generator) -> Tensor:
    """For each of `disturbed` a uniform draw around 0 whose standard deviation is that of `values`."""
    most = math.sqrt(3) * values.std(unbiased=False)
    return most * (2 * _uniform(len(disturbed), generator) - 1)


def ranking(factors: Tensor, generator: torch.Generator) -> Tensor:
    """The slots from the largest factor to the smallest, [N]; equal ones in random order."""
    shuffled = torch.randperm(len(factors), generator=generator)
    return shuffled[factors[shuffled].argsort(descending=True, stable=True)]


def keep_best(factors: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """Equation (13): the mask [N] of the `budget` slots of the whole net that rank first."""
    mask = torch.zeros(len(factors), dtype=torch.bool)
    mask[ranking(factors, generator)[:budget]] = True
    return mask


def crossover(first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """Every slot from either mask, with equal chances."""
    return torch.where(_uniform(len(first), generator) < 0.5, first, second)


def mutate(mask: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Every slot flipped with chance `rate`."""
    return mask ^ (_uniform(len(mask), generator) < rate)


def repair(mask: Tensor, factors: Tensor, budget: int, generator: torch.Generator) -> Tensor:
    """The mask with exactly `budget` slots: the worst ranked active ones go, or the best ranked others come."""
    order = ranking(factors, generator)
    mask, excess = mask.clone(), int(mask.sum()) - budget
    if excess > 0:
        mask[order[mask[order]][-excess:]] = False
    elif excess < 0:
        mask[order[~mask[order]][:-excess]] = True
    return mask


def random_architecture(space: SearchSpace, budget: int, generator: torch.Generator) -> Architecture:
    """Drawn uniformly among those with `budget` active branches."""
    mask = torch.zeros(len(space.slots), dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=generator)[:budget]] = True
    return to_architecture(space, mask)


def first_population(
    space: SearchSpace, budget: int, count: int, generator: torch.Generator
) -> tuple[Architecture, ...]:
    """`count` distinct architectures of size `budget`, drawn uniformly; all there are where there are fewer."""
    slots = len(space.slots)
    if math.comb(slots, budget) <= 2 * count:
        # Few: list them all and shuffle, since drawing until the last one turns up takes long.
        every = list(itertools.combinations(range(slots), budget))
        chosen = [set(every[i]) for i in torch.randperm(len(every), generator=generator)[:count].tolist()]
        return tuple(Architecture(space, tuple(i in on for i in range(slots))) for on in chosen)
    # More than half of all draws are new, so this ends.
    found: dict[Architecture, None] = {}
    while len(found) < count:
        found[random_architecture(space, budget, generator)] = None
    return tuple(found)


def breed(
    parents: Sequence[Architecture],
    count: int,
    budget: int,
    gates: Gates,
    initial: Gates,
    generator: torch.Generator,
    breeding: Breeding = Breeding(),  # frozen
) -> tuple[Architecture, ...]:
    """Up to `count` children, none equal to a parent or to each other (equations 11 to 13, then the usual operators).

    Each is drawn by disturbed gates, then perhaps crossed with a random parent, perhaps mutated, and repaired to the
    budget by its own ranking.
    """
    space = parents[0].space
    living = set(parents)
    children: list[Architecture] = []
    # As many as there are: an exhausted space would cost every attempt of every child.
    for _ in range(min(count, math.comb(len(space.slots), budget) - sum(a.size == budget for a in living))):
        for _ in range(breeding.attempts):
            factors = disturbed_factors(space, gates, initial, generator, disturbance=breeding.disturbance)
            mask = keep_best(factors, budget, generator)
            if _chance(breeding.crossover, generator):
                mask = crossover(mask, to_mask(pick(parents, generator)), generator)
            if _chance(breeding.mutation, generator):
                mask = mutate(mask, breeding.flip, generator)
            child = to_architecture(space, repair(mask, factors, budget, generator))
            if child not in living:
                living.add(child)
                children.append(child)
                break
    return tuple(children)


def pick(choices: Sequence[Architecture], generator: torch.Generator) -> Architecture:
    """One of them, with equal chances."""
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def to_mask(architecture: Architecture) -> Tensor:
    """Its mask as a boolean tensor [N]."""
    return torch.tensor(architecture.mask, dtype=torch.bool)


def to_architecture(space: SearchSpace, mask: Tensor) -> Architecture:
    """The architecture of a boolean tensor [N]."""
    return Architecture(space, tuple(mask.tolist()))


def best(scores: Sequence[float], count: int, prefer: Collection[int] = ()) -> list[int]:
    """Positions of the `count` highest scores, highest first, never one of minus infinity.

    Among equal scores those in `prefer` come first, then the earlier ones.
    """
    living = [i for i, score in enumerate(scores) if score != -math.inf]
    return sorted(living, key=lambda i: (-scores[i], i not in prefer, i))[:count]


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(_uniform(1, generator)) < probability
