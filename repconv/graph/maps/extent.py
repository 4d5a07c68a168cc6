"""How few pixels tell as much as all of them, of maps that do the same at every pixel but those near a border."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PIXELS = 64
"""Outputs of a channel away from borders, at least; where there are fewer, all of them."""


@dataclass(frozen=True)
class Repeats:
    """Of a map that does the same at every pixel, but near borders.

    step: pixels by which its sources move where its output moves by whole pixels, and by which an image may be shorter.
    margin: pixels of its sources that may differ near a border, or more than do.
    """

    step: int = 1
    margin: int = 0

    def then(self, stride: int = 1, reach: int = 0) -> Repeats:
        """What follows takes every `stride`-th pixel, and reads `reach` of them, padding counted."""
        return Repeats(self.step * stride, self.margin + self.step * reach)


def of_channels(sides: Sequence[int], rank: int) -> bool:
    """Whether a constant of these sides is the same at every pixel of what has so many axes."""
    return len(sides) <= rank and set(sides[-(rank - 2) :]) <= {1}


def fewer_pixels(
    shapes: Mapping[str, tuple[int, ...]], maps: Sequence[Repeats | None]
) -> Mapping[str, tuple[int, ...]]:
    """The sizes of the smallest sources that show all that `maps` do, at every kind of border.

    Args:
        shapes: [n, c, ...] of the sources, by name.
        maps: what is to be shown; None of one that may do something else at every pixel.
    """
    known = [each for each in maps if each is not None]
    images = {shape[2:] for shape in shapes.values()}
    if len(known) < len(maps) or len(images) != 1 or not (image := images.pop()):
        return shapes
    step, margin = math.lcm(*(each.step for each in known)), max(each.margin for each in known)
    least = step * math.ceil(PIXELS ** (1 / len(image))) + 2 * margin
    sides = [side - max(0, side - least) // step * step for side in image]
    return {name: (*shape[:2], *sides) for name, shape in shapes.items()}
