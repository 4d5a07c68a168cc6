"""Which branches of a block train faster by themselves and which as one convolution, from shapes alone.

Costs are in multiply-adds of the forward pass; the backward pass has twice as many either way.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..algebra.geometry import Geometry
from .branches import NormedBranch, SeriesBranch

MOVE = 16.0
"""Multiply-adds that one number read or written is worth, as in `repconv.graph.core.cost`."""

PASSES_OF_A_BRANCH = 4.0
"""Passes over a branch's output that its normalisation and sum take beyond the convolution's own."""

PASSES_OF_A_WEIGHT = 4.0
"""Passes over a branch's weight that building one kernel takes."""

START = 100e6
"""Multiply-adds that fit into the time that some hundred small operations for a kernel take, however small it is: a few
milliseconds forwards and backwards."""


def cheaper_joined(
    branches: Mapping[str, NormedBranch], target: Geometry, positions: int, samples: int
) -> tuple[str, ...]:
    """The branches that train faster as parts of one convolution of geometry `target`, in their order; maybe none.

    Few positions and many channels, as in the last layers of a narrow image, make a kernel dearer than what it saves:
    first that of two convolutions in series, then that of the others.

    Args:
        branches: by name.
        target: of the convolution they would be.
        positions: output positions of the batch.
        samples: from how many of them statistics would be taken.
    """
    a_position = MOVE * PASSES_OF_A_BRANCH * target.out_channels
    saved = {}
    for name, branch in branches.items():
        weights = _weights(branch)
        alone = positions * (weights + a_position)
        saved[name] = alone - (samples + MOVE * PASSES_OF_A_WEIGHT) * weights - _composed(branch)
    gaining = tuple(name for name, gain in saved.items() if gain > 0)
    o, i, kh, kw = target.weight_shape
    one = START + (positions + MOVE * PASSES_OF_A_WEIGHT) * o * i * kh * kw
    return gaining if sum(saved[name] for name in gaining) > one else ()


def _weights(branch: NormedBranch) -> int:
    """Multiply-adds of a position: the numbers in convolutions."""
    return sum(p.numel() for p in branch.parameters() if p.dim() > 1)


def _composed(branch: NormedBranch) -> int:
    """Multiply-adds of writing two convolutions in series as one."""
    if not isinstance(branch, SeriesBranch):
        return 0
    return branch.outer.conv.weight.numel() * branch.inner.conv.weight.shape[1]
