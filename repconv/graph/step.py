"""One affine operation of a graph, whichever kind of graph it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .constant import Constant
from .cost import Cost
from .expression import Term

Offset = Callable[[], Constant]


@dataclass(frozen=True)
class Step:
    """One affine node output: `output = sum of terms + offset`.

    where: the node's name, for reports. offset: gives the constant, None for zero. cost: of the node as it stands.
    kind: what the node is, such as "Conv". rounding: the most by which a cast to the tensor's type changes a number,
    relative to it.
    """

    output: str
    where: str
    kind: str
    terms: tuple[Term, ...]
    cost: Cost
    offset: Offset | None = None
    rounding: float = 2**-24

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors it reads."""
        return tuple(dict.fromkeys(term.source for term in self.terms))
