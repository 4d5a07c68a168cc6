"""How far long work is: told where it is done, and shown by whoever watches. Nobody watches unless asked to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Tally:
    """So much is done of so much: `what` in the plural, as `updates`.

    within: where in it, in words. left_s: seconds left, where whoever tells knows them better than by how fast it goes;
    without: what is not in them.
    """

    what: str
    done: int
    total: int
    _: KW_ONLY
    within: str = ""
    left_s: float | None = None
    without: str = ""


Watch = Callable[[Tally], None]
_watching: ContextVar[Watch | None] = ContextVar("_watching", default=None)


@contextmanager
def watched(by: Watch) -> Iterator[None]:
    """Have `by` told of every step meanwhile."""
    before = _watching.set(by)
    try:
        yield
    finally:
        _watching.reset(before)


def tell_progress(
    what: str, done: int, total: int, *, within: str = "", left_s: float | None = None, without: str = ""
) -> None:
    """Tell whoever watches, as `Tally` says."""
    watch = _watching.get()
    if watch is not None:
        watch(Tally(what, done, total, within=within, left_s=left_s, without=without))


def counted(items: Collection[T], what: str) -> Iterator[T]:
    """`items`, telling after each how many of them are done."""
    tell_progress(what, 0, len(items))
    for number, item in enumerate(items, 1):
        yield item
        tell_progress(what, number, len(items))
