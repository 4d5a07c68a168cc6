"""What it costs to compute constant operands each time a graph runs: weights that are products, scaled or joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.cost import Cost
from ..core.ordering import dependencies_first
from ..core.step import Step


@dataclass(frozen=True)
class Held:
    """A constant tensor of a graph: how many numbers, and the bytes of each.

    of: the constants its node computes it of; none where it is stored. moves: True if its node only lays out anew what
        it reads, or casts it.
    """

    numbers: int
    width: int
    of: tuple[str, ...] = ()
    moves: bool = False

    @property
    def bytes(self) -> int:
        """All that it takes."""
        return self.numbers * self.width


def with_operands(
    steps: Iterable[Step],
    operands: Mapping[str, Iterable[str]],
    held: Callable[[str], Held],
    staying: Iterable[str] = (),
) -> list[Step]:
    """The steps, and in each one's cost what is computed for it alone, in numbers moved.

    Nothing is counted for a step that multiplies by, or adds, what is stored in fewer bytes of a narrower type, such as
    quantised weights: it stays as its author has it.

    Args:
        steps: of a graph.
        operands: by a step's output the constants of floating-point numbers that its node reads.
        held: what a constant is.
        staying: the constants that what is no step reads: they are computed whatever is written.
    """
    known: dict[str, Held] = {}

    def look(name: str) -> Held:
        if name not in known:
            known[name] = held(name)
        return known[name]

    def below(names: Iterable[str]) -> list[str]:
        """Constants and all they are computed of."""
        return list(dict.fromkeys(each for name in names for each in dependencies_first(name, lambda n: look(n).of)))

    stay = set(below(staying))

    def priced(step: Step) -> Step:
        taken = [*operands[step.output]] if step.computes and step.border is None else []
        if any(_is_narrow([look(each) for each in below([name])]) for name in taken):
            return step
        computed = [look(name) for name in below(taken) if name not in stay]
        moved = sum(_moved(each, look) for each in computed if each.of and not each.moves)
        return replace(step, cost=step.cost + Cost(0.0, moved), computes_operands=True) if moved else step

    return [priced(step) for step in steps]


def _is_narrow(parts: Sequence[Held]) -> bool:
    """True if the last of `parts`, which is computed of the others, takes more bytes than those that are stored."""
    stored, whole = [each for each in parts if not each.of], parts[-1]
    narrow = any(each.width < whole.width for each in stored)
    return narrow and sum(each.bytes for each in stored) < whole.bytes


def _moved(node: Held, look: Callable[[str], Held]) -> int:
    return node.numbers + sum(look(name).numbers for name in node.of)
