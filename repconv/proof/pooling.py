"""End to end as a test of stated power: errors of several calls together, and more calls while the matter is open.

A network that amplifies rounding does so along a few directions, so that the error of one call is as good as one normal
number, of the candidate as of the original. Over p calls the ratio of their mean squares then follows Fisher's F
distribution with (p, p) degrees of freedom, whatever the amplification. A candidate is refused only where the ratio is
above four times the quantile that a right one exceeds once in 10,000 at each look, of which there are at most 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from .agreement import Comparison

F_QUANTILES = (
    40528472.79, 9999.0, 659.34, 171.87, 76.91, 44.91, 30.48, 22.71, 18.0, 14.9, 12.73, 11.14, 9.94, 8.99, 8.23, 7.61,
)  # fmt: skip
"""The 1 - 1e-4 quantiles of F(p, p) for p = 1 to 16 (scipy.stats.f.ppf, 1.17.1)."""

MOST_CALLS = len(F_QUANTILES)
FACTOR = 2.0
"""How many times the original's error a right candidate's may be in the mean: it rounds other numbers."""

Given = TypeVar("Given")


def compare_calls(
    compare: Callable[[Given], Sequence[Comparison]], inputs: Sequence[Given], *, seed: int = 0
) -> tuple[Comparison, ...]:
    """Every comparison of the calls on `inputs`, and on more of their kind while the verdict is open; judged together.

    Args:
        compare: of one call.
        inputs: tensors or arrays, nested as you like, one a call.
        seed: of what is drawn besides.
    """
    found: list[Comparison] = []
    for given in inputs:
        found += compare(given)
    generator = np.random.default_rng(seed)
    calls = len(inputs)
    while inputs and calls < MOST_CALLS and any(_is_open(group) for group in _groups(found)):
        found += compare(_alike(inputs[calls % len(inputs)], generator))
        calls += 1
    return pooled(found)


def pooled(found: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same comparisons; those of an output that exceed their own limits are judged over all calls together."""
    together: dict[int, Comparison] = {}
    for group in _groups(found):
        got, limit = _mean_errors(group)
        if all(c.passed for c in group) or len(group) < 2:
            continue
        reason = (
            f"over {len(group)} calls: {got:.1e} in the mean, up to {limit:.1e} allowed by the unfused model's own "
            f"error (F test, 1e-4)"
        )
        together.update({id(c): replace(c, pooled=(got, limit), reason=reason) for c in group if not c.passed})
    return tuple(together.get(id(c), c) for c in found)


def _groups(found: Sequence[Comparison]) -> Iterator[list[Comparison]]:
    """Comparisons of one output whose errors tell something, each beside the original's own."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in found:
        if c.own is not None and c.own.finite and c.error.finite and c.mismatch is None and c.undecided is None:
            groups.setdefault((c.path, c.dtype), []).append(c)
    yield from groups.values()


def _mean_errors(group: Sequence[Comparison]) -> tuple[float, float]:
    """The root of the mean square error of all calls, and what of it is allowed."""
    got = math.sqrt(sum(c.error.rms**2 for c in group) / len(group))
    excuses = [excuse.rms**2 for c in group for excuse in (c.own, c.stored) if excuse is not None]
    own = math.sqrt(sum(excuses) / len(group))
    limit = FACTOR * math.sqrt(F_QUANTILES[min(len(group), MOST_CALLS) - 1]) * own
    return got, max(min(limit, group[0].ceiling), min(c.tolerance for c in group))


def _is_open(group: Sequence[Comparison]) -> bool:
    """Whether a call is off on its own, and all of them are not too far off together."""
    got, limit = _mean_errors(group)
    return len(group) < MOST_CALLS and not all(c.passed for c in group) and got <= limit


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
