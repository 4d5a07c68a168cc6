"""End to end as a test of stated power: errors of several calls together, and more calls while the matter is open.

A network that amplifies rounding does so along a few directions, so that the error of one call is as good as one normal
number, of the candidate as of the original. Over p calls the ratio of their mean squares then follows Fisher's F
distribution with (p, p) degrees of freedom, whatever the amplification. A candidate is refused only where the ratio is
above four times the quantile that a right one exceeds once in 150,000; of the at most 15 looks together that is once in
10,000 for a candidate whose true error is twice the original's, and less for a better one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from .agreement import Comparison

F_QUANTILES = (
    9118906527.02, 149999.0, 4016.34, 669.49, 230.01, 112.97, 67.91, 46.26, 34.24, 26.85, 21.95, 18.52, 16.02, 14.11,
    12.63, 11.45,
)  # fmt: skip
"""The 1 - 1e-4 / 15 quantiles of F(p, p) for p = 1 to 16 (scipy.stats.f.isf, 1.17.1)."""

MOST_CALLS = len(F_QUANTILES)
FACTOR = 2.0
"""How many times the original's error a right candidate's may be in the mean: it rounds other numbers."""

MOST_SECONDS = 120.0
"""After so many seconds no further call begins: one call of a network that takes minutes is not repeated 16 times."""

Given = TypeVar("Given")


def compare_calls(
    compare: Callable[[Given], Sequence[Comparison]], inputs: Sequence[Given], *, proven: bool = False, seed: int = 0
) -> tuple[Comparison, ...]:
    """Every comparison of the calls on `inputs`, and on more of their kind while the verdict is open; judged together.

    Args:
        compare: of one call.
        inputs: tensors or arrays, nested as you like, one a call.
        proven: all that differs between the two is proven by itself, so that none is refused before the last call:
            what rounding turns over now and then (an attention of near ties) does so in the original, too, sooner or
            later, and then the outputs say nothing.
        seed: of what is drawn besides.
    """
    started = time.monotonic()
    found: list[Comparison] = []
    for given in inputs:
        found += compare(given)
    generator = np.random.default_rng(seed)
    calls = len(inputs)
    while inputs and calls < MOST_CALLS and _is_open(found, proven=proven):
        if time.monotonic() - started > MOST_SECONDS:
            return pooled(found, f", no more being made after {MOST_SECONDS:g} s")
        found += compare(_alike(inputs[calls % len(inputs)], generator))
        calls += 1
    return pooled(found)


def pooled(found: Sequence[Comparison], said: str = "") -> tuple[Comparison, ...]:
    """The same comparisons; those of an output that exceed their own limits are judged over all calls together.

    `said` of these calls goes into the reasons. An output of which a call says nothing says nothing in others either:
    the original is off as far there.
    """
    together: dict[int, Comparison] = {}
    silent = _silent(found)
    for group in _groups(found):
        if why := silent.get(_output(group[0])):
            together.update({id(c): replace(c, undecided=f"in another call, {why}") for c in group if not c.passed})
            continue
        got, limit = _mean_errors(group)
        if all(c.passed for c in group) or len(group) < 2:
            continue
        reason = (
            f"over {len(group)} calls{said}: {got:.1e} in the mean, up to {limit:.1e} allowed by the unfused model's "
            "own error (F test, 1e-4 over all looks)"
        )
        together.update({id(c): replace(c, pooled=(got, limit), reason=reason) for c in group if not c.passed})
    return tuple(together.get(id(c), c) for c in found)


def _output(found: Comparison) -> tuple[str, str]:
    """Which output it is of."""
    return found.path, found.dtype


def _silent(found: Sequence[Comparison]) -> dict[tuple[str, str], str]:
    """The outputs of which a call says nothing, and why."""
    return {_output(c): c.undecided for c in found if c.undecided}


def _groups(found: Sequence[Comparison]) -> Iterator[list[Comparison]]:
    """Comparisons of one output whose errors tell something, each beside the original's own."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in found:
        if c.own is not None and c.own.finite and c.error.finite and c.mismatch is None and c.undecided is None:
            groups.setdefault(_output(c), []).append(c)
    yield from groups.values()


def _mean_errors(group: Sequence[Comparison]) -> tuple[float, float]:
    """The root of the mean square error of all calls, and what of it is allowed."""
    got = math.sqrt(sum(c.error.rms**2 for c in group) / len(group))
    excuses = [excuse.rms**2 for c in group for excuse in (c.own, c.stored) if excuse is not None]
    own = math.sqrt(sum(excuses) / len(group))
    limit = FACTOR * math.sqrt(F_QUANTILES[min(len(group), MOST_CALLS) - 1]) * own
    return got, max(min(limit, group[0].ceiling), min(c.tolerance for c in group))


def _is_open(found: Sequence[Comparison], *, proven: bool) -> bool:
    """Whether a call is off on its own, and all of its output are not too far off together, or it might still say so.

    Of an output that says nothing, no call will say more.
    """
    silent = _silent(found)
    for group in _groups(found):
        got, limit = _mean_errors(group)
        if _output(group[0]) not in silent and not all(c.passed for c in group) and (proven or got <= limit):
            return True
    return False


def _alike(given: Given, generator: np.random.Generator) -> Given:
    """Random numbers of the same types and shapes; whole numbers are those given, in another order."""

    def draw(value: Any) -> Any:  # noqa: ANN401  # a leaf of the inputs
        if isinstance(value, Tensor):
            if value.is_floating_point():
                return torch.from_numpy(generator.standard_normal(tuple(value.shape))).to(value)
            order = torch.from_numpy(generator.permutation(value.numel()))
            return value.reshape(-1)[order.to(value.device)].reshape(value.shape)
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "f" or value.dtype.name == "bfloat16":
                return np.asarray(generator.standard_normal(value.shape)).astype(value.dtype)
            return generator.permutation(value.reshape(-1)).reshape(value.shape)
        return value

    drawn: Given = _pytree.tree_map(draw, given)
    return drawn
