"""What something needs, before itself: deep graphs would outgrow recursion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def dependencies_first(start: T, needs: Callable[[T], Iterable[T]]) -> list[T]:
    """All that `start` needs, by way of others too, each after what it needs itself; `start` is last."""
    order: list[T] = []
    seen = {start}
    pending = [(start, iter(needs(start)))]
    while pending:
        one, remaining = pending[-1]
        following = next((each for each in remaining if each not in seen), None)
        if following is None:
            pending.pop()
            order.append(one)
        else:
            seen.add(following)
            pending.append((following, iter(needs(following))))
    return order
