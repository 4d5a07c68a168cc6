"""One affine operation of a graph, whichever kind of graph it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from .constant import Constant
from .cost import Cost
from .expression import Term
from .stock import Stored

Offset = Callable[[], Constant]


@dataclass(frozen=True)
class Step:
    """One affine node output: `output = sum of terms + offset`.

    where: the node's name, for reports. offset: gives the constant, None for zero. cost: of the node as it stands.
    kind: what the node is, such as "Conv". rounding: the most by which a cast to the tensor's type changes a number,
    relative to it. border: what the padding of its one term holds, None for zeros. needs: tensors besides that the node
    as it stands reads, by way of others that nothing else reads.
    """

    output: str
    where: str
    kind: str
    terms: tuple[Term, ...]
    cost: Cost
    offset: Offset | None = None
    rounding: float = 2**-24
    border: Constant | None = None
    needs: tuple[str, ...] = ()

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """The weights that its node as it stands multiplies by."""
        return tuple((term.key, term.form.weights) for term in self.terms if isinstance(term.key, str))

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The tensors of its terms, and those it needs besides as it stands."""
        return tuple(dict.fromkeys((*self.inputs, *self.needs)))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The tensors it reads."""
        return tuple(dict.fromkeys(term.source for term in self.terms))
