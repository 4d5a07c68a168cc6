"""The weights a file stores, each once, whoever reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
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


class Stock:
    """Weights and how often each is read: of one that several read, only the last reader's end takes it away.

    Per-channel numbers, such as a bias or what a normalisation holds, are not counted.
    """

    def __init__(self, read: Iterable[Stored], staying: Iterable[Hashable] = ()) -> None:
        """`read`: once for each reader. `staying`: what is stored whatever is chosen."""
        self._readers = Counter(read)
        self._staying = frozenset(staying)

    def is_shared(self, weights: Iterable[Stored]) -> bool:
        """True if one of the weights is read more than once."""
        return any(self._readers[weight] > 1 or weight[0] in self._staying for weight in weights)

    def added(self, before: Iterable[Stored], after: Iterable[Stored]) -> int:
        """How many numbers more are stored where readers of `before` read `after` instead; fewer are negative."""
        change = Counter(after)
        change.subtract(before)
        more = 0
        for (key, numbers), count in change.items():
            had = self._readers[key, numbers]
            if key not in self._staying:
                more += numbers * ((had + count > 0) - (had > 0))
        return more

    def exchange(self, before: Iterable[Stored], after: Iterable[Stored]) -> None:
        """Have the readers of `before` read `after` instead."""
        self._readers.subtract(before)
        self._readers.update(after)


def store_less(choice: Choice, stock: Stock, most: int) -> list[Stored]:
    """Fold elsewhere what may be folded in several places at one price, while that leaves less to store.

    A scale between two convolutions goes into either: into the one whose weight nothing else reads, then. Returns what
    the region takes, once for each reader.

    stock: of the graph, which has the region as it stands; as it is chosen afterwards. most: the effort after which no
        more is tried.
    """
    as_it_stood = [weight for step in choice.steps for weight in step.stored]
    shares = stock.is_shared(as_it_stood)
    stock.exchange(as_it_stood, choice.stored(choice.by_output))
    if not choice.virtual or not shares:
        return choice.stored(choice.by_output)
    pairs = [(name, step.output) for step in choice.steps for name in step.inputs if name in choice.by_output]
    free = set(choice.free)
    found = True
    while found:  # every swap leaves less to store, so it ends
        found = False
        for pair in pairs:
            if free.issuperset(pair) and len(choice.virtual.intersection(pair)) == 1 and choice.effort <= most:
                found |= _swap(choice, set(pair), stock)
    return choice.stored(choice.by_output)


def _swap(choice: Choice, pair: set[str], stock: Stock) -> bool:
    """Write the virtual one of a pair and hide the other, if that costs no more and less is stored. Returns whether."""
    around = choice.affected([*pair])
    cost, stored = choice.cost(around), choice.stored(around)
    undo = choice.change(choice.virtual & pair, pair - choice.virtual)
    try:
        change, weights = choice.cost(around) - cost, choice.stored(around)
    except InexactError:
        undo()
        return False
    dearer = change.price() > 1e-9 * cost.price() or change.multiply_adds > 0 or change.convolutions > 0
    if dearer or stock.added(stored, weights) >= 0:
        undo()
        return False
    stock.exchange(stored, weights)
    return True
