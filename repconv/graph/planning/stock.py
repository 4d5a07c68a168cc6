"""The weights a file stores, each once, whoever reads it; and folding where that leaves fewer of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass

from ..core.step import Stored
from .choice import Choice, InexactError


@dataclass(frozen=True)
class Shared:
    """A weight that several nodes read; stays: True if one of them stays as it is."""

    name: str
    numbers: int
    readers: int
    stays: bool


def shared(read: Iterable[Stored], besides: Iterable[str], staying: Iterable[Hashable]) -> tuple[Shared, ...]:
    """The weights that several nodes read.

    read: once for each step that reads it. besides: names, once for each other reader, with which they stay.
    staying: what the steps read that stay as they are.
    """
    others, kept = Counter(besides), set(staying)
    found = ((str(name), numbers, count + others[str(name)]) for (name, numbers), count in Counter(read).items())
    return tuple(
        Shared(name, numbers, count, name in kept or others[name] > 0) for name, numbers, count in found if count > 1
    )


class Stock:
    """Weights and how often each is read: of one that several read, only the last reader's end takes it away.

    Per-channel numbers, such as a bias or what a normalisation holds, are not counted.
    """

    def __init__(self, read: Iterable[Stored], besides: Iterable[str] = ()) -> None:
        """`read`: once for each reader. `besides`: what is stored whatever is chosen."""
        self._readers = Counter(read)
        self._besides = frozenset(besides)

    def shares(self, read: Collection[Stored]) -> bool:
        """True if one of these is read by another of them, or by what is in stock."""
        return len(set(read)) < len(read) or any(map(self._holds, read))

    def added(self, read: Iterable[Stored]) -> int:
        """How many numbers more are stored where these are read, too."""
        return sum(weight[1] for weight in set(read) if not self._holds(weight))

    def add(self, read: Iterable[Stored]) -> None:
        """Have these read, too."""
        self._readers.update(read)

    def remove(self, read: Iterable[Stored]) -> None:
        """Have these read no longer."""
        self._readers.subtract(read)

    def _holds(self, weight: Stored) -> bool:
        return self._readers[weight] > 0 or weight[0] in self._besides


def store_less(choice: Choice, stock: Stock, most: int) -> None:
    """Fold elsewhere what may be folded in several places at one price, while that leaves less to store.

    A scale between two convolutions goes into either: into the one whose weight nothing else reads, then.

    stock: of all that is no part of the choice. most: the effort after which nothing else is tried.
    """
    pairs = [(name, step.output) for step in choice.steps for name in step.inputs if name in choice.by_output]
    pairs = [pair for pair in pairs if not any(name in choice.fixed for name in pair)]
    found = True
    while found:  # every swap leaves less to store, so it ends
        found = False
        for pair in pairs:
            if len(choice.virtual.intersection(pair)) == 1 and choice.effort <= most:
                found |= _swap(choice, set(pair), stock)


def _swap(choice: Choice, pair: set[str], stock: Stock) -> bool:
    """Write the virtual one of a pair and hide the other, if that costs no more and less is stored. Returns whether."""
    around = choice.affected([*pair])
    cost, numbers = choice.cost(around), stock.added(choice.stored())
    undo = choice.change(choice.virtual & pair, pair - choice.virtual)
    try:
        change, fewer = choice.cost(around) - cost, stock.added(choice.stored()) < numbers
    except InexactError:
        undo()
        return False
    dearer = change.price() > 1e-9 * cost.price() or change.multiply_adds > 0 or change.convolutions > 0
    if dearer or not fewer:
        undo()
        return False
    return True
