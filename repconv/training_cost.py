"""Whether a block trains faster branch by branch or as one convolution, from shapes alone.

Costs are in multiply-adds of the forward pass; the backward pass has twice as many either way.
"""

from __future__ import annotations

from collections.abc import Sequence

from .branches import NormedBranch, SeriesBranch
from .geometry import Geometry

MOVE = 16.0
"""Multiply-adds that one number read or written is worth, as in `repconv.graph.cost`."""

PASSES_OF_A_BRANCH = 4.0
"""Passes over a branch's output that its normalisation and sum take beyond the convolution's own."""

PASSES_OF_A_WEIGHT = 4.0
"""Passes over a branch's weight that building one kernel takes."""

START = 100e6
"""Multiply-adds that fit into the time that some hundred small operations for a kernel take, however small it is: a few
milliseconds forwards and backwards."""


def one_convolution_is_cheaper(
    branches: Sequence[NormedBranch], target: Geometry, positions: int, samples: int
) -> bool:
    """Whether to build one kernel, with statistics from `samples` positions, for the block of geometry `target`.

    Few positions and many channels, as in the last layers of a narrow image, make the kernel dearer than what it saves.

    positions: output positions of the batch.
    """
    weights = sum(_weights(branch) for branch in branches)
    branch_by_branch = positions * (weights + MOVE * PASSES_OF_A_BRANCH * target.out_channels * len(branches))
    o, i, kh, kw = target.weight_shape
    single = START + (positions * kh * kw + MOVE * PASSES_OF_A_WEIGHT * kh * kw) * o * i
    single += (samples + MOVE * PASSES_OF_A_WEIGHT) * weights + sum(_composed(branch) for branch in branches)
    return single < branch_by_branch


def _weights(branch: NormedBranch) -> int:
    """Multiply-adds of a position: the numbers in convolutions."""
    return sum(p.numel() for p in branch.parameters() if p.dim() > 1)


def _composed(branch: NormedBranch) -> int:
    """Multiply-adds of writing two convolutions in series as one."""
    if not isinstance(branch, SeriesBranch):
        return 0
    return branch.outer.conv.weight.numel() * branch.inner.conv.weight.shape[1]
