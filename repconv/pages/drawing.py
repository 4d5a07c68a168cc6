"""Pictures as SVG: a grid of cells, distributions and dots in lanes. They stand alone, or inside a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Cell = tuple[str, str]
"""A colour, and what is said when it is pointed at."""

FIXED_COLOUR, OFF_COLOUR = "#54606c", "#eef0f2"
COLOURS = ("#2f7ebc", "#d1662f", "#3f9b52", "#8a5fb0", "#b0892f", "#5f8ab0")
_CELL, _GAP, _CHARACTER = 22, 3, 6.6
"""Pixels of a cell, between cells, and of a letter at 11 pixels in a fixed-width font."""
_WIDTH, _LANE, _EDGE = 400, 44, 8
"""Pixels of a picture of lanes, which is scaled to the page, of a lane, and of its margins."""
_BINS = 60


def shade(part: float) -> str:
    """A colour from white at 0 to blue at 1."""
    part = min(1.0, max(0.0, part))
    return "#" + "".join(f"{round(255 + (end - 255) * part):02x}" for end in (0x2F, 0x7E, 0xBC))


def grid(rows: Sequence[str], columns: Sequence[str], cell: Callable[[str, str], Cell | None], title: str) -> str:
    """A cell for each row and column that `cell` gives one for; blank elsewhere."""
    left = 12 + _CHARACTER * max(len(row) for row in rows)
    top = 34 + _CHARACTER * max(len(column) for column in columns)
    step = _CELL + _GAP
    width = max(left + step * len(columns) + 12, 24 + _CHARACTER * len(title))
    height = top + step * len(rows) + 10
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="11">',
        f'<rect class="ground" width="100%" height="100%" fill="#ffffff"/><text x="12" y="18">{escape(title)}</text>',
    ]
    for index, column in enumerate(columns):
        x = left + step * index + _CELL / 2 + 4
        parts.append(f'<text transform="translate({x:.1f} {top - 6:.1f}) rotate(-90)">{escape(column)}</text>')
    for number, row in enumerate(rows):
        y = top + step * number
        name = escape(row)
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 15:.1f}" text-anchor="end">{name}</text>')
        for index, column in enumerate(columns):
            found = cell(row, column)
            if found is None:
                continue
            colour, says = found
            mark = ' class="off"' if colour == OFF_COLOUR else ""  # a page may show it in its own colours
            parts.append(
                f'<rect{mark} x="{left + step * index:.1f}" y="{y:.1f}" width="{_CELL}" height="{_CELL}" rx="3" '
                f'fill="{colour}" stroke="#c5ccd3"><title>{name} {escape(column)}: {escape(says)}</title></rect>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from `low` to `high`, across the picture from `left` on."""

    low: float
    high: float
    left: float = _EDGE

    @classmethod
    def over(cls, values: Sequence[float], left: float = _EDGE) -> _Axis:
        """Around positive values."""
        low, high = min(values), max(values)
        # Never less than a few percent, or one value would fill the picture.
        room = max(1.03, (high / low) ** 0.04)
        return cls(low / room, high * room, left)

    def x(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.left + min(1.0, max(0.0, part)) * (_WIDTH - _EDGE - self.left)

    def ticks(self) -> list[float]:
        """Round numbers, three to eight of them where there are as many."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / 7)]
        middle = math.sqrt(self.low * self.high)
        return [float(f"{value:.3g}") for value in (self.low * 1.02, middle, self.high / 1.02)]

    def drawn(self, top: float, bottom: float) -> list[str]:
        """Its lines and numbers."""
        parts = []
        for tick in self.ticks():
            x = self.x(tick)
            parts.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="currentColor" stroke-opacity=".18"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 13}" text-anchor="middle" fill="currentColor">{tick:g}</text>'
            )
        return parts


def distributions(lanes: Sequence[tuple[str, Sequence[float], float]], unit: str) -> str:
    """How often each value came, over one logarithmic axis: a lane of a name, positive values and one that is marked.

    The axis reaches to the 99.5th percentile; what lies beyond is counted at its end.
    """
    ends = [end for _, values, mark in lanes for end in (min(values), _quantile(values, 0.995), mark)]
    axis = _Axis.over(ends)
    bottom = _LANE * len(lanes) + 4
    parts = [_open(bottom + 30), *axis.drawn(4, bottom)]
    for index, (name, values, mark) in enumerate(lanes):
        colour, base = COLOURS[index % len(COLOURS)], _LANE * (index + 1)
        counts = [0] * _BINS
        span = _WIDTH - 2 * _EDGE
        for value in values:
            counts[min(_BINS - 1, int((axis.x(value) - _EDGE) / span * _BINS))] += 1
        step = span / _BINS
        bars = "".join(
            f"M{_EDGE + i * step:.1f} {base}v{-24 * count / max(counts):.1f}h{step - 0.6:.1f}V{base}z"
            for i, count in enumerate(counts)
            if count
        )
        middle = axis.x(mark)
        parts.append(f'<path d="{bars}" fill="{colour}" fill-opacity=".75"/>')
        parts.append(f'<path d="M{middle:.1f} {base - 27}V{base + 2}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{_EDGE}" y="{base - 29}" fill="currentColor">{escape(name)}</text>')
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{bottom + 27}" text-anchor="middle" fill="currentColor">{escape(unit)}</text>'
    )
    return "".join([*parts, "</svg>"])


def dots(rows: Sequence[tuple[str, Sequence[float | None]]], legend: Sequence[str], unit: str) -> str:
    """Positive numbers by row on one logarithmic axis, one colour a column; None and zeros are left out."""
    found = [value for _, values in rows for value in values if value is not None and 0 < value < math.inf]
    if not found:
        return ""
    axis = _Axis.over(found, left=150)
    top, step = 22, 16
    bottom = top + step * len(rows) + 2
    parts = [_open(bottom + 30), *axis.drawn(top, bottom)]
    for index, name in enumerate(legend):
        parts.append(f'<circle cx="{154 + 82 * index}" cy="9" r="4" fill="{COLOURS[index]}"/>')
        parts.append(f'<text x="{162 + 82 * index}" y="13" fill="currentColor">{escape(name)}</text>')
    for number, (name, values) in enumerate(rows):
        y = top + step * number + 10
        shown = name if len(name) <= 22 else f"..{name[-20:]}"
        parts.append(f'<text x="144" y="{y + 4}" text-anchor="end" fill="currentColor">{escape(shown)}</text>')
        parts += [
            f'<circle cx="{axis.x(value):.1f}" cy="{y}" r="4" fill="{COLOURS[column]}" fill-opacity=".85">'
            f"<title>{escape(name)}: {legend[column]} {value:.2e}</title></circle>"
            for column, value in enumerate(values)
            if value is not None and 0 < value < math.inf
        ]
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{bottom + 27}" text-anchor="middle" fill="currentColor">{escape(unit)}</text>'
    )
    return "".join([*parts, "</svg>"])


def _open(height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="wide" viewBox="0 0 {_WIDTH} {height:.0f}" '
        'font-family="sans-serif" font-size="11">'
    )


def _quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
