"""Lines and points over two axes, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from repconv.pages.drawing import COLOURS

Line = tuple[str, Sequence[tuple[float, float]]]
"""A name and points (x, y)."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 500, 240, 62, 92, 34, 26


def chart(
    title: str,
    across: str,
    lines: Sequence[Line],
    within: tuple[float, float] = (-math.inf, math.inf),
    *,
    joined: bool = True,
) -> str:
    """Lines over a common axis as SVG; values that are not finite are left out.

    within: what the values can be, beyond which their axis does not reach. joined: whether points of a line are.
    """
    kept = [(name, [(x, y) for x, y in points if math.isfinite(y)]) for name, points in lines]
    xs, ys = ([p[axis] for _, points in kept for p in points] for axis in (0, 1))
    if not xs:
        return f"<p>{escape(title)}: no numbers yet</p>"
    (low_x, high_x), (low_y, high_y) = _range(xs), _range(ys, *within)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - low_y) / (high_y - low_y) * (_HEIGHT - _BOTTOM - _TOP),
        )

    ink = 'fill="currentColor"'
    left, bottom = place(low_x, low_y)
    right, top = place(high_x, high_y)
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<text x="{left}" y="16" {ink}>{escape(title)}</text>',
        f'<path d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}" fill="none" stroke="#888"/>',
    ]
    parts += [
        f'<text x="{left - 6:.1f}" y="{place(low_x, y)[1] + 4:.1f}" text-anchor="end" {ink}>{y:.4g}</text>'
        for y in (low_y, high_y)
    ]
    parts += [
        f'<text x="{place(x, low_y)[0]:.1f}" y="{bottom + 15:.1f}" text-anchor="middle" {ink}>{x:.4g}</text>'
        for x in (low_x, high_x)
    ]
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 28:.1f}" text-anchor="middle" {ink}>{escape(across)}</text>')
    for i, (name, points) in enumerate(kept):
        colour = COLOURS[i % len(COLOURS)]
        spots = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        if joined:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in spots]
        parts.append(f'<text x="{right + 12:.1f}" y="{top + 16 * i + 8:.1f}" fill="{colour}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _range(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    """The smallest and largest, apart even if they are the same, but not beyond what there is."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (max(least, low - 0.5), min(most, high + 0.5))
