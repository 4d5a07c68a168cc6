"""What every strategy is given, asks for, is told and remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from statistics import pstdev
from typing import Any, Literal, NamedTuple, Protocol

import torch

from repconv.errors import SearchError

from ..costs.prices import Prices
from ..supernet.architecture import Architecture
from ..supernet.records import STATE, require
from ..supernet.space import SearchSpace
from ..supernet.supernet import Gates
from .evolution import Breeding, check_age, first_population
from .training import Training

AgeUnit = Literal["spread", "accuracy"]


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The settings of a search, the same for every strategy; each uses those it has a use for.

    budget: active branches an architecture. population: architectures that live on. children: new ones a generation.
    generations: how often the strategy is told. initial: the gates before any training. flops: of every slot,
    none if they are not known. age_scale, age_limit,
    age_offset: eta, a and mu of equation (14), unused without `age`; age_unit: whether that is taken as it is, in
    accuracy, or in units of the spread of what is measured, a life costing `age_strength` standard deviations.
    prices: of the second objective, None where there is none; cost_strength: standard deviations of what is measured
    that the network with every branch costs.

    Raises:
        SearchError: a number that makes no sense.
    """

    space: SearchSpace
    budget: int
    population: int
    children: int
    generations: int
    initial: Gates
    flops: tuple[float, ...] = ()
    age: bool = True
    age_scale: float = 0.05
    age_limit: float = 10.0
    age_offset: float = 0.01
    age_unit: AgeUnit = "spread"
    age_strength: float = 1.0
    breeding: Breeding = Breeding()  # noqa: RUF009  # frozen
    prices: Prices | None = None
    cost_strength: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.budget <= len(self.space.slots):
            raise SearchError(f"the budget is 1 to {len(self.space.slots)} branches, got {self.budget}")
        for name, least in (("population", 1), ("children", 0), ("generations", 1)):
            if getattr(self, name) < least:
                raise SearchError(f"{name} is at least {least}, got {getattr(self, name)}")
        for name in ("crossover", "mutation", "flip"):
            if not 0 <= getattr(self.breeding, name) <= 1:
                raise SearchError(f"{name} is a chance from 0 to 1, got {getattr(self.breeding, name)}")
        if self.age:
            check_age(scale=self.age_scale, limit=self.age_limit, offset=self.age_offset)

    def cost(self, architecture: Architecture) -> float:
        """What it costs: its size, or by the prices of the second objective."""
        return float(architecture.size) if self.prices is None else self.prices.cost(architecture)

    def charge(self, architecture: Architecture, spread: float) -> float:
        """What its cost takes from its score, `spread` being the standard deviation of accuracies; 0 without prices."""
        return 0.0 if self.prices is None else self.cost_strength * spread * self.prices.share(architecture)


@dataclass(frozen=True)
class Member:
    """A living architecture: generations survived, from 1 on; accuracy and score when last measured, None before."""

    architecture: Architecture
    _: KW_ONLY
    age: int = 1
    accuracy: float | None = None
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """All a strategy remembers. generation: how often it was told; asked: whose scores it waits for.

    memory: numbers of its own; what they are, the strategy says.
    """

    gates: Gates
    generation: int = 0
    members: tuple[Member, ...] = ()
    asked: tuple[Member, ...] = ()
    memory: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, architectures by names."""
        return {
            "generation": self.generation,
            "gates": {"alpha": list(self.gates.alpha), "beta": list(self.gates.beta)},
            "members": [_member_to_dict(member) for member in self.members],
            "asked": [_member_to_dict(member) for member in self.asked],
            **({"memory": list(self.memory)} if self.memory else {}),
        }


class Question(NamedTuple):
    """What a strategy wants done: mini-batches train architectures drawn from `train`, then `measure` is scored.

    training: how they do.
    """

    state: State
    train: tuple[Architecture, ...]
    measure: tuple[Architecture, ...]
    training: Training = Training()


class Strategy(Protocol):
    """A search strategy: pure functions from one state to the next."""

    @property
    def measurements(self) -> int:
        """Candidates measured in the whole search, at most; its outcome, measured again at the end, included."""

    @property
    def warm_up(self) -> Training:
        """How the warm-up trains its fresh random architectures: jointly, unless a strategy says otherwise."""
        return Training()

    def ask(self, state: State, generator: torch.Generator) -> Question:
        """What to train and measure in this generation."""

    def tell(self, state: State, scores: Sequence[float], gates: Gates) -> State:
        """The state after `scores`, the accuracies of what was to be measured, in its order, and the gates now."""

    def outcome(self, state: State) -> tuple[Architecture, ...]:
        """What the search found so far, in no order that matters: all that live, unless a strategy says otherwise."""
        return architectures_of(state.members)


def measured(state: State, scores: Sequence[float]) -> tuple[Member, ...]:
    """The members asked for, with their accuracies.

    Raises:
        SearchError: another number of scores than asked for.
    """
    if len(scores) != len(state.asked):
        raise SearchError(f"{len(state.asked)} scores were asked for, got {len(scores)}")
    return tuple(replace(m, accuracy=a, score=a) for m, a in zip(state.asked, scores, strict=True))


def charged(members: Sequence[Member], plan: SearchPlan) -> tuple[Member, ...]:
    """Measured members whose scores are their accuracies less what their architectures cost."""
    accuracies = [member.accuracy or 0.0 for member in members]
    spread = pstdev(accuracies)
    return tuple(
        replace(member, score=accuracy - plan.charge(member.architecture, spread))
        for member, accuracy in zip(members, accuracies, strict=True)
    )


def first_question(state: State, plan: SearchPlan, generator: torch.Generator) -> Question:
    """The usual first one: a population drawn uniformly among architectures of the budget's size."""
    start = first_population(plan.space, plan.budget, plan.population, generator)
    return asked(state, [Member(architecture) for architecture in start])


def generational(plan: SearchPlan) -> int:
    """The measurements of a first population, then of those that live and their children, then of those that live."""
    return 2 * plan.population + (plan.generations - 1) * (plan.population + plan.children)


def asked(state: State, members: Sequence[Member]) -> Question:
    """The usual question: train and measure the same members."""
    architectures = tuple(member.architecture for member in members)
    return Question(replace(state, asked=tuple(members)), architectures, architectures)


def older(members: Sequence[Member]) -> tuple[Member, ...]:
    """A generation older."""
    return tuple(replace(member, age=member.age + 1) for member in members)


def architectures_of(members: Sequence[Member]) -> tuple[Architecture, ...]:
    """Theirs, in order."""
    return tuple(member.architecture for member in members)


def state_from_dict(content: Mapping[str, Any], space: SearchSpace) -> State:
    """The state in what `State.to_dict` made.

    Raises:
        SearchError: it makes no sense, or is of another space.
    """
    require(content, STATE, "the population")
    return State(
        gates=Gates.of_record(content["gates"], space, "the population"),
        generation=content["generation"],
        members=tuple(_member_from_dict(member, space) for member in content["members"]),
        asked=tuple(_member_from_dict(member, space) for member in content["asked"]),
        memory=tuple(content.get("memory", ())),
    )


def _member_to_dict(member: Member) -> dict[str, Any]:
    active = {name: list(kinds) for name, kinds in member.architecture.active.items() if kinds}
    return {"age": member.age, "accuracy": member.accuracy, "score": member.score, "active": active}


def _member_from_dict(content: Mapping[str, Any], space: SearchSpace) -> Member:
    architecture = Architecture(space, space.mask(content["active"]))
    return Member(architecture, age=content["age"], accuracy=content["accuracy"], score=content["score"])
