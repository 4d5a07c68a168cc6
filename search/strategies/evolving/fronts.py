"""Sorting by two objectives, both the smaller the better: fronts, and how empty it is around a point of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

Point = tuple[float, float]


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """Positions of points in fronts: no point of a front is dominated by one of its own or a later front.

    A point dominates another if it is nowhere larger and somewhere smaller.
    """
    left = list(range(len(points)))
    found = []
    while left:
        front = [i for i in left if not any(_dominates(points[j], points[i]) for j in left)]
        found.append(front)
        left = [i for i in left if i not in front]
    return found


def crowding(points: Sequence[Point]) -> list[float]:
    """For each point the sides of the box its neighbours span, relative to the front's; infinite at the ends."""
    distance = [0.0] * len(points)
    for axis in range(2):
        order = sorted(range(len(points)), key=lambda i: points[i][axis])
        span = points[order[-1]][axis] - points[order[0]][axis]
        distance[order[0]] = distance[order[-1]] = math.inf
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            distance[here] += (points[after][axis] - points[before][axis]) / span if span else 0.0
    return distance


def merged(lists: Sequence[Sequence[Point]], count: int) -> list[int]:
    """Positions of `count` of the points that every one of `lists` has two objectives of; all where there are fewer.

    The first fronts of all lists together, then the second ones, and so on (pNSGA-III, Yang et al., 2020). Of those
    that would be too many the ones in the emptiest regions of a list, then the earlier ones.
    """
    kept: dict[int, None] = {}
    for stage in zip_longest(*map(fronts, lists), fillvalue=[]):
        new: dict[int, float] = {}
        for points, front in zip(lists, stage, strict=True):
            if front:
                for i, distance in zip(front, crowding([points[i] for i in front]), strict=True):
                    new[i] = max(distance, new.get(i, 0.0))
        chosen = sorted(i for i in new if i not in kept)
        if len(kept) + len(chosen) > count:
            chosen = sorted(chosen, key=lambda i: (-new[i], i))[: count - len(kept)]
        kept |= dict.fromkeys(chosen)
    return list(kept)


def _dominates(one: Point, other: Point) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]
