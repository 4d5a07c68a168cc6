"""Pictures of architectures and of numbers a branch: layers down, kinds of branches across."""

from __future__ import annotations

from collections.abc import Callable

from repconv.pages.drawing import FIXED_COLOUR, OFF_COLOUR, Cell, grid, shade

from ..supernet.architecture import Architecture
from ..supernet.space import SearchSpace, Slot, SpaceBlock

FIXED, ON, OFF = "#", "o", "."
_ON_COLOUR = "#2f7ebc"


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

    def cell(block: SpaceBlock, kind: str) -> Cell | None:
        if kind in block.fixed:
            return FIXED_COLOUR, "fixed"
        if kind not in block.searchable:
            return None
        on = kind in active[block.name]
        return (_ON_COLOUR, "active") if on else (OFF_COLOUR, "left out")

    heading = title or f"{architecture.size} of {len(architecture.space.slots)} branches active"
    return space_grid(architecture.space, cell, heading)


def heat_map(space: SearchSpace, values: dict[Slot, float], title: str, *, low: float = 0.0, high: float = 1.0) -> str:
    """One number a slot as shades from white at `low` to full colour at `high`; fixed branches are grey."""

    def cell(block: SpaceBlock, kind: str) -> Cell | None:
        if kind in block.fixed:
            return FIXED_COLOUR, "fixed"
        slot = Slot(block.name, kind)
        if slot not in values:
            return None
        part = 0.0 if high <= low else (values[slot] - low) / (high - low)
        return shade(part), f"{values[slot]:.3f}"

    return space_grid(space, cell, title)


def space_grid(space: SearchSpace, cell: Callable[[SpaceBlock, str], Cell | None], title: str) -> str:
    """An SVG of a cell for each block and kind that `cell` gives one for; blank elsewhere."""
    blocks = {block.name or "(the model)": block for block in space.blocks}
    return grid(list(blocks), space.kinds, lambda name, kind: cell(blocks[name], kind), title)
