"""How a generation's mini-batches train: which sub-networks one draws, and how gates learn from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..supernet.architecture import Architecture
from ..supernet.supernet import Gates

GateRule = Literal["joint", "first", "second"]
"""`joint`: gates learn from what the weights learn from. `first`, `second`: the weights learn from one half of the
training images and the gates from the other (DARTS), to the first or second order."""


@dataclass(frozen=True)
class Dropped:
    """Slots left out of a mini-batch, each with a chance that goes from `first` to `last` within a generation.

    It falls by as large a part with every update. Nothing is scaled up for it.
    """

    slots: tuple[int, ...]
    first: float
    last: float

    def chance(self, share: float) -> float:
        """When `share` of the generation's updates are done."""
        return self.first * (self.last / self.first) ** share if self.first else 0.0

    def of(self, architecture: Architecture, share: float, generator: torch.Generator) -> Architecture:
        """What is left of it in one mini-batch."""
        gone = torch.rand(len(self.slots), generator=generator, dtype=torch.float64) < self.chance(share)
        off = {slot for slot, is_gone in zip(self.slots, gone.tolist(), strict=True) if is_gone}
        return Architecture(architecture.space, tuple(on and i not in off for i, on in enumerate(architecture.mask)))


@dataclass(frozen=True, kw_only=True)
class Training:
    """How mini-batches train, beside which architectures are asked for.

    gates: how they learn. charges: what is added to the gates' loss for every slot, times `s(beta) s(alpha)`; none if
    empty. dropped: slots a mini-batch may leave out. perturbed: a mini-batch draws the budget's best slots of the one
    architecture asked for by gates with logistic noise (see `perturbed_best`), else it takes architectures as they
    are. afresh: gates, and what their optimiser remembers, begin anew with this generation.
    """

    gates: GateRule = "joint"
    charges: tuple[float, ...] = ()
    dropped: Dropped | None = None
    perturbed: bool = False
    afresh: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return dataclasses.asdict(self)

    def drawn(
        self,
        choices: Sequence[Architecture],
        count: int,
        *,
        gates: Callable[[], Gates],
        budget: int,
        share: float,
        generator: torch.Generator,
    ) -> list[Architecture]:
        """The sub-networks of one mini-batch, at most `count`.

        Args:
            choices: what the strategy asked to train.
            count: at most as many as `choices`.
            gates: as they are now, where they are needed.
            budget: active branches, where they are drawn.
            share: of the generation's updates that are done.
            generator: of every draw.
        """
        if self.perturbed:
            chosen = [perturbed_best(choices[0], gates(), budget, generator)]
        else:
            chosen = [choices[i] for i in torch.randperm(len(choices), generator=generator)[:count].tolist()]
        return chosen if self.dropped is None else [self.dropped.of(one, share, generator) for one in chosen]


def training_from_dict(content: Mapping[str, Any]) -> Training:
    """The one `Training.to_dict` was made of."""
    dropped = content["dropped"]
    values = {
        **content,
        "charges": tuple(content["charges"]),
        "dropped": dropped and Dropped(tuple(dropped["slots"]), dropped["first"], dropped["last"]),
    }
    return Training(**values)


def perturbed_best(within: Architecture, gates: Gates, budget: int, generator: torch.Generator) -> Architecture:
    """The `budget` active slots of `within` that rank first by the logit of `s(beta) s(alpha)` plus logistic noise.

    The noise is the difference of two Gumbel draws, so a slot's chance to be above 0 is `s(beta) s(alpha)` itself.
    """
    factors = torch.tensor(gates.factors(within.space), dtype=torch.float64)
    ranks = factors.logit() + torch.rand(len(factors), generator=generator, dtype=torch.float64).logit()
    ranks[~torch.tensor(within.mask)] = -torch.inf
    mask = torch.zeros(len(factors), dtype=torch.bool)
    mask[ranks.argsort(descending=True, stable=True)[: min(budget, within.size)]] = True
    return Architecture(within.space, tuple(mask.tolist()))
