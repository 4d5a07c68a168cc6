"""One subject's turn: calls timed one by one."""

from __future__ import annotations

import gc
from collections.abc import Callable

MOST_SAMPLES = 1_000_000
"""Of one turn: a clock that stands still must not hang it."""


def take_turn(
    call: Callable[[], object], clock: Callable[[Callable[[], object]], float], seconds: float, calls: int
) -> tuple[float, ...]:
    """Seconds of each call, until they add up to `seconds` and there are `calls` of them.

    The first two are not kept: another subject has been using the caches. Garbage is not collected meanwhile.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(2):
            clock(call)
        samples: list[float] = []
        spent = 0.0
        while (spent < seconds or len(samples) < calls) and len(samples) < MOST_SAMPLES:
            samples.append(clock(call))
            spent += samples[-1]
        return tuple(samples)
    finally:
        if collecting:
            gc.enable()
