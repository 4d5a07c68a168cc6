"""Processes on one machine or many that share the runs of a sweep: each run is done by one, all know how it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from repconv.errors import SearchError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_PARTING_S = 60.0
"""As long the process that may hold the others' store waits for them at the end."""


@final
class Crew:
    """This process among those that a launcher started, or alone.

    They meet in the store of `torchrun` or `accelerate launch` and never wait for each other, so that one run may take
    days. A claim lasts as long as its launch; what was cut short, the next launch goes on with.

    Args:
        store: of the launch, None for one alone.
        rank: the number of this process.
        count: how many they are.
    """

    def __init__(self, store: Store | None = None, rank: int = 0, count: int = 1) -> None:
        self._store, self.rank, self.count = store, rank, count
        self._told: dict[str, str] = {}

    @property
    def first(self) -> bool:
        """Whether this one plans, shows progress, and writes what came of it."""
        return self.rank == 0

    def meet(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait until the first has planned the sweep; where that was refused, the launcher ends all."""
        if self.first:
            self.tell("the plan", "")
        while self.told("the plan") is None:
            sleep(0.1)

    def takes(self, name: str) -> bool:
        """Whether this process does the run of that name: so for the first that asks alone, and once."""
        if self._store is None:
            return name not in self._told
        return bool(self._store.add(f"taken/{name}", 1) == 1)

    def tell(self, name: str, how: str) -> None:
        """Tell all how something ended, in words; empty for well."""
        if self._store is None:
            self._told[name] = how
        else:
            self._store.set(f"told/{name}", f".{how}")  # a value is never empty

    def told(self, name: str) -> str | None:
        """What was told of it, None for nothing yet."""
        if self._store is None:
            return self._told.get(name)
        if not self._store.check([f"told/{name}"]):
            return None
        return str(self._store.get(f"told/{name}").decode())[1:]

    def part(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Leave. The first waits for the others, who may read the store in its process."""
        if self._store is None:
            return
        gone, waited = self._store.add("gone", 1), 0.0
        while self.first and gone < self.count and waited < _PARTING_S:
            sleep(0.1)
            gone, waited = self._store.add("gone", 0), waited + 0.1


def launched() -> Crew:
    """The processes the launcher started.

    Raises:
        SearchError: they do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Crew()
    # Not every build of torch has them.
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, count = next(rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise SearchError(f"the processes cannot meet ({error}); start them with torchrun") from error
    return Crew(PrefixStore("repconv.sweep", store), rank, count)
