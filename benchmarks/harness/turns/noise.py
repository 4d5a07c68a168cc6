"""What of a series of times says that it should not be trusted, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from .timing import LatencyReport, Ratio

SPREAD = 0.05
"""Standard deviation of rounds' medians over their mean from which a series is called unsteady."""
DRIFT = 0.03
"""Difference of the medians of both halves that is told, where it is more than chance."""
TAIL = 2.0
"""The 99th percentile over the median from which single calls are said to have been held up."""
HALF_WIDTH = 0.03
"""Half of a ratio's interval, relative, from which more than the ratio is told: which side of 1 it is on, if that."""
TOO_NOISY, ABOVE, BELOW = "too noisy to tell", "surely above 1", "surely below 1"
KINDS = ("unsteady", "drift", "held up", TOO_NOISY, ABOVE, BELOW)
"""How warnings begin."""


def series_warnings(report: LatencyReport) -> list[str]:
    """What is odd about one subject's samples; empty for a quiet series."""
    rounds = report.round_medians_s
    found = []
    spread = float(np.std(rounds) / np.mean(rounds))
    if spread > SPREAD:
        found.append(f"unsteady: rounds differ by {spread:.0%} (standard deviation of their medians)")
    moved = drift(rounds)
    if moved is not None and abs(moved) > DRIFT:
        found.append(f"drift: the second half is {abs(moved):.0%} {'slower' if moved > 0 else 'faster'} than the first")
    if report.p99_ms > TAIL * report.median_ms:
        found.append(f"held up: one call in a hundred takes {report.p99_ms / report.median_ms:.1f} times the median")
    return found


def drift(values: Sequence[float]) -> float | None:
    """By how much the second half's median is more than the first's, relative; None if that may be chance.

    It may be chance within three standard errors of the difference of two medians, 1.25 sigma / sqrt(n) each, sigma
    from the median absolute deviation.
    """
    half = len(values) // 2
    if half < 3:
        return None
    parts = [np.array(values[:half]), np.array(values[-half:])]
    first, second = (float(np.median(part)) for part in parts)
    errors = [1.2533 * 1.4826 * float(np.median(np.abs(p - np.median(p)))) / math.sqrt(half) for p in parts]
    if abs(second - first) <= 3 * math.hypot(*errors):
        return None
    return second / first - 1


def ratio_warning(name: str, found: Ratio) -> str | None:
    """Whether a ratio can be told to a few percent; one whose interval is wide may yet be surely not 1."""
    if found.half_width <= HALF_WIDTH:
        return None
    return (
        f"{name}: {ratio_verdict(found)}, not to {HALF_WIDTH:.0%}: {found.low:.3f} to {found.high:.3f}; measure longer "
        "(--seconds, --rounds) or on a quieter machine"
    )


def ratio_verdict(found: Ratio) -> str:
    """What a ratio tells in words: nothing to add where its interval is narrow."""
    if found.half_width <= HALF_WIDTH:
        return ""
    return ABOVE if found.low > 1 else BELOW if found.high < 1 else TOO_NOISY


def gathered(warnings: Sequence[str]) -> list[str]:
    """Warnings of a kind as one: the worst of them, and how many there are."""
    kinds: dict[str, list[str]] = {}
    for said in warnings:
        kind = next((k for k in KINDS if f": {k}" in said), said)
        kinds.setdefault(kind, []).append(said)
    found = []
    for alike in kinds.values():
        worst = max(alike, key=_size)
        found.append(worst + (f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else ""))
    return found


def _size(said: str) -> float:
    """The last share or multiple a warning tells."""
    numbers = re.findall(r"(\d+(?:\.\d+)?)(?:%| times)", said)
    return float(numbers[-1]) if numbers else 0.0
