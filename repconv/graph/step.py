"""One affine operation of a graph, whichever kind of graph it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .cost import Cost
from .expression import Term

Offset = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """One affine node output: `output = sum of terms + offset`.

    where: the node's name, for reports. offset: gives the constant, [o] in float64, and the sum of its parts'
    magnitudes; None for zero. cost: of the node as it stands. kind: what the node is, such as "Conv".
    """

    output: str
    where: str
    kind: str
    terms: tuple[Term, ...]
    cost: Cost
    offset: Offset | None = None
    rounding: float = 2**-23

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors it reads."""
        return tuple(dict.fromkeys(term.source for term in self.terms))
