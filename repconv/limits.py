"""How large a thing may be that a file asks for: a file of a few bytes can name a size that no machine has.

What is refused is what nobody's network needs; what a user asks for on a command line is not limited.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod

from .errors import SourceError

LARGEST_INPUT = 2**28
"""Numbers in a declared input that is drawn at random to run a network on: 1 GiB in float32."""

LARGEST_TENSOR = 2**34
"""Numbers in any tensor whose size a graph says: 64 GiB in float32."""
LARGEST_CONSTANT = 2**26
"""Numbers in a tensor that is computed of constants, 256 MB in float32; what is larger stays in the graph."""
LARGEST_SIZE_BITS, MOST_SIZE_TERMS, LONGEST_SIZE = 2**12, 2**12, 2**14
"""Of a size that a program describes by an expression: bits of its number, each symbol taken as 64; terms multiplied
out; letters."""
MOST_CALLED_NODES = 2**16
"""Nodes of an ONNX model's functions, once each call has its own: runtimes replace calls by what they call."""
LARGEST_ATTEMPT = 2**33
"""Bytes that a process may take, beside 8 times the file's own, to load and run a file of a runtime: 8 GiB."""
LONGEST_RUN_S = 600.0
"""Of one call of a model, which a file can ask to be of any length."""
LONGEST_LOOP_S = 20.0
"""The same of a model with a Loop, which may have no end."""

_until: ContextVar[tuple[float, float] | None] = ContextVar("_until", default=None)


class TooLongError(SourceError):
    """A run of a model was ended at its limit of time."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Let `require_time` raise once so many seconds have passed."""
    token = _until.set((time.monotonic() + seconds, seconds))
    try:
        yield
    finally:
        _until.reset(token)


def require_time() -> None:
    """Insist that there is time left.

    Raises:
        TooLongError: there is none.
    """
    until = _until.get()
    if until is not None and time.monotonic() > until[0]:
        raise TooLongError(too_long(until[1]))


def too_long(seconds: float) -> str:
    """What is said of a run that was ended."""
    return f"running it was ended after {seconds:g} s: a Loop in it may never end, or it is too large to be tried here"


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
