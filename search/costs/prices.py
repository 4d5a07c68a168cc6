"""`Prices`: what an architecture costs as a sum over its branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from repconv.errors import SearchError

from ..supernet.architecture import Architecture
from ..supernet.records import PRICED
from ..supernet.space import SearchSpace

Objective = Literal["none", "branches", "flops", "latency"]
UNITS: Mapping[str, str] = {"branches": "branches", "flops": "FLOPs an image", "latency": "seconds a batch"}
"""Of the prices, by objective."""


@dataclass(frozen=True, kw_only=True)
class Prices:
    """fixed: of all that is always there; slots: of each searchable branch, in the order of the space's slots.

    objective: what they are of, with the unit of `UNITS`.
    """

    objective: str
    fixed: float
    slots: tuple[float, ...]

    def cost(self, architecture: Architecture) -> float:
        """Of an architecture, in the prices' unit."""
        return self.fixed + sum(price for price, on in zip(self.slots, architecture.mask, strict=True) if on)

    def share(self, architecture: Architecture) -> float:
        """Its cost as a share of that of the network with every branch."""
        full = self.fixed + sum(self.slots)
        return self.cost(architecture) / full if full else 0.0

    def to_dict(self, space: SearchSpace) -> dict[str, Any]:
        """Plain containers, prices by block and branch."""
        slots: dict[str, dict[str, float]] = {}
        for slot, price in zip(space.slots, self.slots, strict=True):
            slots.setdefault(slot.block, {})[slot.branch] = price
        unit = UNITS[self.objective]
        return {"schema": PRICED, "objective": self.objective, "unit": unit, "fixed": self.fixed, "slots": slots}

    @classmethod
    def of_record(cls, content: Mapping[str, Any], space: SearchSpace, where: str) -> Prices:
        """What `to_dict` made; `where` says of which file.

        Raises:
            SearchError: it is of another space.
        """
        try:
            slots = tuple(float(content["slots"][slot.block][slot.branch]) for slot in space.slots)
        except KeyError as error:
            raise SearchError(f"{where} has no price of {error}, a branch of the network") from None
        return cls(objective=content["objective"], fixed=float(content["fixed"]), slots=slots)
