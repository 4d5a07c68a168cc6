"""The weights a file stores, each once, whoever reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

Stored = tuple[Hashable, int]
"""A weight: what tells its numbers from others, see `Addend.key`, and how many there are."""


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
