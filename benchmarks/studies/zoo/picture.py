"""Families below each other as bars on one linear axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from repconv.pages.drawing import COLOURS

_WIDTH, _NAME, _LANE, _TOP = 640, 190, 15, 30
"""Pixels of the picture, of names, of a bar with the gap below it, and above the first."""


@dataclass(frozen=True)
class Bar:
    """A family's number, with its interval where it has one; first: of the kind that is drawn in the first colour."""

    name: str
    value: float
    interval: tuple[float, float] | None
    first: bool


def bars(rows: Sequence[Bar], title: str, mark: float) -> str:
    """A bar a row, from zero, the highest first, and a line at `mark`.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("a picture of bars needs a row")
    end: float = max(mark, *(value for bar in rows for value in (bar.value, *(bar.interval or ()))))
    height = _TOP + _LANE * len(rows) + 22

    def x(value: float) -> float:
        return _NAME + value / end * (_WIDTH - _NAME - 50)

    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="12" y="18">{escape(title)}</text>',
    ]
    for place, bar in enumerate(sorted(rows, key=lambda bar: (-bar.value, bar.name))):
        y, name = _TOP + _LANE * place, escape(bar.name)
        parts.append(f'<text x="{_NAME - 6}" y="{y + 10}" text-anchor="end">{name}</text>')
        parts.append(
            f'<rect x="{_NAME}" y="{y}" width="{x(bar.value) - _NAME:.1f}" height="{_LANE - 4}" '
            f'fill="{COLOURS[0 if bar.first else 1]}"><title>{name}: {bar.value:.3f}</title></rect>'
        )
        reach = x(bar.value)
        if bar.interval is not None:
            low, reach = (x(each) for each in bar.interval)
            parts.append(f'<path d="M{low:.1f} {y + 5.5}H{reach:.1f}" stroke="#222"/>')
        parts.append(f'<text x="{max(reach, x(bar.value)) + 4:.1f}" y="{y + 10}">{bar.value:.2f}</text>')
    bottom = _TOP + _LANE * len(rows)
    parts.append(f'<path d="M{x(mark):.1f} {_TOP - 4}V{bottom}" stroke="#888" stroke-dasharray="3 3"/>')
    parts.append(f'<text x="{x(mark):.1f}" y="{bottom + 14}" text-anchor="middle">{mark:g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
