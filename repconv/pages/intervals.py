"""Groups of numbers beside each other as SVG: each number a dot, their mean with its interval, on one linear axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .drawing import COLOURS

_WIDTH, _EDGE, _LANE, _FONT = 620, 14, 44, 12
"""Pixels of the picture, of its margins, and of a group."""


@dataclass(frozen=True, kw_only=True)
class NumberGroup:
    """name: in words. values: its numbers, one at least. middle: their mean. interval: None where there is none."""

    name: str
    values: Sequence[float]
    middle: float
    interval: tuple[float, float] | None


def intervals(groups: Sequence[NumberGroup], unit: str) -> str:
    """A lane a group: its name, its numbers as pale dots, and over them the mean with its interval as a bar.

    Where an interval reaches far beyond all numbers, as one of two values does, its bar ends open at the edge.

    Raises:
        ValueError: there is no group.
    """
    if not groups:
        raise ValueError("a picture of intervals needs a group")
    low, high, step = _range(groups)

    def x(value: float) -> float:
        return _EDGE + (min(high, max(low, value)) - low) / (high - low) * (_WIDTH - 2 * _EDGE)

    bottom, ink = _LANE * len(groups) + 6, 'fill="currentColor"'
    box = f'viewBox="0 0 {_WIDTH} {bottom + 36}" font-family="sans-serif" font-size="{_FONT}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="wide" {box}>']
    for number in range(round((high - low) / step) + 1):
        tick = low + number * step
        parts.append(f'<path d="M{x(tick):.1f} 4V{bottom}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle" {ink}>{tick:.6g}</text>')
    for index, group in enumerate(groups):
        colour, top = COLOURS[index % len(COLOURS)], _LANE * index
        y = top + 32
        said = escape(group.name)
        parts.append(f'<text x="{_EDGE}" y="{top + 18}" {ink}>{said}</text>')
        if group.interval is not None:
            parts += _bar([x(end) for end in group.interval], y, colour, group.interval, (low, high))
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{y}" r="4" fill="{colour}" fill-opacity=".5">'
            f"<title>{said}: {value:.6g}</title></circle>"
            for value in group.values
        ]
        parts.append(
            f'<path d="M{x(group.middle):.1f} {y - 8}v16" stroke="{colour}" stroke-width="3">'
            f"<title>{said}: mean {group.middle:.6g}</title></path>"
        )
    parts.append(f'<text x="{_WIDTH / 2}" y="{bottom + 31}" text-anchor="middle" {ink}>{escape(unit)}</text>')
    return "".join([*parts, "</svg>"])


def _bar(
    ends: Sequence[float], y: float, colour: str, interval: tuple[float, float], shown: tuple[float, float]
) -> list[str]:
    """A line between both ends, closed by a stroke where it ends within what is shown."""
    parts = [f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="{colour}" stroke-width="2"/>']
    for end, value in zip(ends, interval, strict=True):
        if shown[0] <= value <= shown[1]:
            parts.append(f'<path d="M{end:.1f} {y - 5}v10" stroke="{colour}" stroke-width="2"/>')
    return parts


def _range(groups: Sequence[NumberGroup]) -> tuple[float, float, float]:
    """Round ends of the axis and the step between its numbers: over all values, and intervals not far beyond."""
    values = [value for group in groups for value in group.values]
    low, high = min(values), max(values)
    room = 2 * (high - low) or max(abs(high), 1.0) * 0.05
    reach = [end for group in groups for end in group.interval or () if low - room <= end <= high + room]
    wide = any(group.interval is not None and not set(group.interval) <= set(reach) for group in groups)
    low, high = min([low, *reach]), max([high, *reach])
    margin = 0.25 * (high - low) if wide else 0.0
    low, high = low - margin, high + margin
    if high == low:
        low, high = low - room, high + room
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * part for part in (1, 2, 5, 10) if power * part >= rough)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step
