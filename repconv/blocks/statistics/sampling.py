"""Batch statistics of a branch without its output: from its kernel and a sample of positions.

Batch normalisation needs each branch's mean and variance only. The mean is linear in the input, so it is taken of all
positions; the variance at a sample of output positions. That leaves one convolution to run for the whole block in
training, whatever its number of branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...algebra.geometry import Pair, pair
from ...errors import GeometryError
from .moments import moments
from .normalisation import Before, NormMoments, Statistics, running_statistics, update_running_statistics
from .windows import positions, windows


@dataclass(frozen=True)
class Sampling:
    """How many output positions a channel the batch variances of a block are taken from.

    A layer takes `share` of its positions, but at most `positions` and at least `least` (and never more than there
    are): deep layers have few positions and many channels, so that is where each one costs most. With every position
    this equals the branch-by-branch form in outputs, gradients and running statistics.

    positions: at most this many a channel; None takes every position, whatever the share.
    share: of the layer's positions, above 0 and up to 1.
    least: at least this many a channel.

    Raises:
        GeometryError: a number that is out of range.
    """

    positions: int | None = 256
    share: float = 1 / 32
    least: int = 64

    def __post_init__(self) -> None:
        if (self.positions is not None and self.positions < 1) or self.least < 1 or not 0 < self.share <= 1:
            raise GeometryError(f"sampling takes at least one position, and a share of them in (0, 1]; got {self}")

    def count(self, total: int) -> int:
        """How many of a layer's `total` positions are taken."""
        if self.positions is None:
            return total
        return min(total, self.positions, max(self.least, int(total * self.share)))

    def of(self, x: Tensor, stride: Pair) -> Statistics:
        """The statistics of branches applied to x [n, i, h, w]; running statistics are updated as they are asked for.

        Branches read 3x3 windows `stride` pixels apart; what stands before a first of two normalisations reads single
        pixels. A normalisation in evaluation mode (frozen) keeps to its running statistics, as in the branch-by-branch
        form.
        """
        samples: dict[Pair, Tensor] = {}

        def sample(step: Pair, dtype: torch.dtype) -> Tensor:
            if step not in samples:
                count = self.count(positions(x, step))
                samples[step] = windows(x, stride=step, reach=int(step == stride), count=count, dtype=dtype)
            return samples[step]

        def statistics(norms: Sequence[nn.BatchNorm2d], given: Sequence[Before]) -> NormMoments:
            kept = [j for j, norm in enumerate(norms) if not norm.training and norm.running_mean is not None]
            asked = [j for j in range(len(norms)) if j not in kept]
            if not asked:
                return running_statistics(norms, given)
            step, dtype = pair(given[0].kernel.stride), given[0].kernel.weight.dtype
            measured = moments(sample(step, dtype), [given[j] for j in asked])
            update_running_statistics([norms[j] for j in asked], measured.mean, measured.variance, positions(x, step))
            if not kept:
                return measured
            running = running_statistics([norms[j] for j in kept], [given[j] for j in kept])
            order = [*asked, *kept]
            back = sorted(range(len(order)), key=order.__getitem__)
            both = [*measured.given, *running.given]
            return NormMoments(
                torch.cat([measured.mean, running.mean.to(dtype)])[back],
                torch.cat([measured.variance, running.variance.to(dtype)])[back],
                [both[j] for j in back],
            )

        return statistics
