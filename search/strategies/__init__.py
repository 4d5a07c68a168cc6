"""Search strategies behind one `ask` and `tell`, over the same space, budget and supernet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType

from repconv.errors import SearchError

from .evolving.aging import Aging
from .evolving.cars import Cars
from .evolving.des import Des
from .evolving.random import Random
from .gating.gold import Gold
from .gating.gradient import Gradient
from .gating.pdarts import PDarts
from .protocol import Member, Question, SearchPlan, State, Strategy, state_from_dict
from .training import Training

STRATEGIES: Mapping[str, Callable[[SearchPlan], Strategy]] = MappingProxyType({
    "des": Des, "random": Random, "aging": Aging, "aging-rescored": partial(Aging, rescored=True), "cars": Cars,
    "gradient": Gradient, "darts": partial(Gradient, training=Training(gates="first")),
    "darts-second": partial(Gradient, training=Training(gates="second")), "pdarts": PDarts,
    "repnas": partial(Gradient, training=Training(perturbed=True)), "gold": Gold,
})  # fmt: skip
"""By name."""

COSTED = ("des", "random", "aging", "aging-rescored", "cars")
"""Those that take a second objective: they compare architectures by what each was measured to be worth."""

CHARGED = ("gold",)
"""Those whose gates pay for the FLOPs of their branches."""

__all__ = [
    "CHARGED",
    "COSTED",
    "STRATEGIES",
    "Member",
    "Question",
    "SearchPlan",
    "State",
    "Strategy",
    "create_strategy",
    "state_from_dict",
]


def create_strategy(name: str, plan: SearchPlan) -> Strategy:
    """The strategy of that name.

    Raises:
        SearchError: there is none.
    """
    if name in STRATEGIES:
        return STRATEGIES[name](plan)
    near = get_close_matches(name, STRATEGIES, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise SearchError(f"unknown strategy {name!r}{hint}; they are {', '.join(STRATEGIES)}")
