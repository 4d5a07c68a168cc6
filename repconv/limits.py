"""How large a thing may be that a file asks for: a file of a few bytes can name a size that no machine has.

What is refused is what nobody's network needs; what a user asks for on a command line is not limited.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .errors import SourceError

LARGEST_INPUT = 2**28
"""Numbers in a declared input that is drawn at random to run a network on: 1 GiB in float32."""


def require_drawable(shape: Sequence[int], what: str) -> None:
    """Insist that an input of this shape can be made.

    Raises:
        SourceError: a side is negative or 0, or there are more numbers than `LARGEST_INPUT`.
    """
    said = "x".join(map(str, shape))
    if any(side < 1 for side in shape):
        raise SourceError(f"{what} is declared as {said}: every side has to be at least 1")
    if prod(shape) > LARGEST_INPUT:
        raise SourceError(
            f"{what} is declared as {said}, {prod(shape) * 4 / 2**30:,.0f} GiB in float32, too large to be tried; "
            f"declare at most {LARGEST_INPUT:,} numbers, or leave the side open and give --input-shape"
        )
