"""Pictures of architectures and of numbers a branch: layers down, kinds of branches across."""

from __future__ import annotations

from collections.abc import Callable
from xml.sax.saxutils import escape

from .architecture import Architecture
from .space import SearchSpace, Slot, SpaceBlock

FIXED, ON, OFF = "#", "o", "."
_FIXED_COLOUR, _ON_COLOUR, _OFF_COLOUR = "#54606c", "#2f7ebc", "#eef0f2"
_CELL, _GAP, _CHARACTER = 22, 3, 6.6
"""Pixels of a cell, between cells, and of a letter at 11 pixels in a fixed-width font."""


def terminal(architecture: Architecture) -> str:
    """Rows of blocks, columns of kinds: `#` fixed, `o` active, `.` left out, blank where a kind does not fit."""
    space, active = architecture.space, architecture.active
    kinds = space.kinds
    name_width = max(len(block.name or "(the model)") for block in space.blocks)
    lines = [" ".join([" " * name_width, *kinds, "active"])]
    for block in space.blocks:
        marks = []
        for kind in kinds:
            mark = " "
            if kind in block.fixed:
                mark = FIXED
            elif kind in block.searchable:
                mark = ON if kind in active[block.name] else OFF
            marks.append(mark.center(len(kind)))
        count = f"{len(active[block.name])}/{len(block.searchable)}".rjust(len("active"))
        lines.append(" ".join([(block.name or "(the model)").ljust(name_width), *marks, count]))
    lines.append(
        f"{architecture.size} of {len(space.slots)} branches active; {FIXED} fixed, {ON} active, {OFF} left out"
    )
    return "\n".join(line.rstrip() for line in lines)


def svg(architecture: Architecture, title: str = "") -> str:
    """The same picture as a standalone SVG document."""
    active = architecture.active

    def cell(block: SpaceBlock, kind: str) -> tuple[str, str] | None:
        if kind in block.fixed:
            return _FIXED_COLOUR, "fixed"
        if kind not in block.searchable:
            return None
        on = kind in active[block.name]
        return (_ON_COLOUR, "active") if on else (_OFF_COLOUR, "left out")

    heading = title or f"{architecture.size} of {len(architecture.space.slots)} branches active"
    return grid(architecture.space, cell, heading)


def heat_map(space: SearchSpace, values: dict[Slot, float], title: str, *, low: float = 0.0, high: float = 1.0) -> str:
    """One number a slot as shades from white at `low` to full colour at `high`; fixed branches are grey."""

    def cell(block: SpaceBlock, kind: str) -> tuple[str, str] | None:
        if kind in block.fixed:
            return _FIXED_COLOUR, "fixed"
        slot = Slot(block.name, kind)
        if slot not in values:
            return None
        part = 0.0 if high <= low else min(1.0, max(0.0, (values[slot] - low) / (high - low)))
        colour = "".join(f"{round(255 + (end - 255) * part):02x}" for end in (0x2F, 0x7E, 0xBC))
        return f"#{colour}", f"{values[slot]:.3f}"

    return grid(space, cell, title)


def grid(space: SearchSpace, cell: Callable[[SpaceBlock, str], tuple[str, str] | None], title: str) -> str:
    """An SVG of one cell a block and kind: `cell` gives its colour and what it says when pointed at, None for none."""
    kinds = space.kinds
    left = 12 + _CHARACTER * max(len(block.name or "(the model)") for block in space.blocks)
    top = 34 + _CHARACTER * max(len(kind) for kind in kinds)
    step = _CELL + _GAP
    width = max(left + step * len(kinds) + 12, 24 + _CHARACTER * len(title))
    height = top + step * len(space.blocks) + 10
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="11">',
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="12" y="18">{escape(title)}</text>',
    ]
    for column, kind in enumerate(kinds):
        x = left + step * column + _CELL / 2 + 4
        parts.append(f'<text transform="translate({x:.1f} {top - 6:.1f}) rotate(-90)">{escape(kind)}</text>')
    for row, block in enumerate(space.blocks):
        y = top + step * row
        name = escape(block.name or "(the model)")
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 15:.1f}" text-anchor="end">{name}</text>')
        for column, kind in enumerate(kinds):
            found = cell(block, kind)
            if found is None:
                continue
            colour, says = found
            parts.append(
                f'<rect x="{left + step * column:.1f}" y="{y:.1f}" width="{_CELL}" height="{_CELL}" rx="3" '
                f'fill="{colour}" stroke="#c5ccd3"><title>{name} {escape(kind)}: {escape(says)}</title></rect>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"
