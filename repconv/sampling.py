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

from .errors import GeometryError
from .geometry import Pair
from .normalisation import Before, Moments, Statistics, running_statistics, update_running_statistics
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

    positions: int | None = 1024
    share: float = 1 / 16
    least: int = 128

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
        samples: dict[Pair, Sample] = {}

        def sample(step: Pair, dtype: torch.dtype) -> Sample:
            if step not in samples:
                count = self.count(positions(x, step))
                samples[step] = Sample(windows(x, stride=step, reach=int(step == stride), count=count, dtype=dtype))
            return samples[step]

        def statistics(norms: Sequence[nn.BatchNorm2d], given: Sequence[Before]) -> Moments:
            frozen = [not norm.training and norm.running_mean is not None for norm in norms]
            asked = [before for before, kept in zip(given, frozen, strict=True) if not kept]
            kernel = given[0].kernel
            measured = list(sample(kernel.stride, kernel.weight.dtype).moments(asked)) if asked else []
            found: list[tuple[Tensor, Tensor]] = []
            for norm, before, kept in zip(norms, given, frozen, strict=True):
                if kept:
                    found += running_statistics([norm], [before])
                else:
                    found.append(measured.pop(0))
                    update_running_statistics(norm, *found[-1], positions(x, kernel.stride))
            return found

        return statistics


class Sample:
    """Windows of a block's input: their mean over all positions, and sampled ones less that mean, [1 + s, k, k, i]."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._read: dict[object, Tensor] = {}

    def moments(self, given: Sequence[Before]) -> Moments:
        """Mean and biased variance of what each of `given` makes of the input; all have equal groups and channels."""
        groups, samples = given[0].kernel.groups, len(self.values) - 1
        reads = [self._taps(before) for before in given]
        weights = [
            before.kernel.weight.movedim(1, -1).reshape(groups, -1, r.shape[1])
            for before, r in zip(given, reads, strict=True)
        ]
        biases = torch.stack([before.kernel.bias for before in given])
        if covariance_is_cheaper(samples, [w.shape for w in weights]):
            mean = torch.stack([(w @ r[:, :, :1]).flatten() for w, r in zip(weights, reads, strict=True)])
            spread = [r[:, :, 1:] @ r[:, :, 1:].mT / samples for r in reads]
            variance = torch.stack([((w @ c) * w).sum(-1).flatten() for w, c in zip(weights, spread, strict=True)])
        else:
            made = torch.stack([torch.matmul(w, r).flatten(0, 1) for w, r in zip(weights, reads, strict=True)])
            first, rest = made.split([1, samples], 2)
            mean, variance = first.squeeze(2), rest.square().mean(2)
        return list(zip((mean + biases).unbind(), variance.unbind(), strict=True))

    def _taps(self, before: Before) -> Tensor:
        """What a kernel reads, group by group, [g, taps * i/g, 1 + s]."""
        kernel = before.kernel
        key = (kernel.weight.shape[2:], kernel.padding, before.rate, before.pooled, kernel.groups)
        if key not in self._read:
            if before.pooled:
                read = self.values.mean((1, 2), keepdim=True)
            else:
                reach = self.values.shape[1] // 2
                rows, columns = (
                    slice(reach - pad, reach - pad + (k - 1) * rate + 1, rate)
                    for k, pad, rate in zip(kernel.weight.shape[2:], kernel.padding[:2], before.rate, strict=True)
                )
                read = self.values[:, rows, columns]
            grouped = read.unflatten(-1, (kernel.groups, -1)).permute(3, 1, 2, 4, 0)
            self._read[key] = grouped.flatten(1, 3)
        return self._read[key]


def covariance_is_cheaper(samples: int, weights: Sequence[Sequence[int]]) -> bool:
    """Whether what is read should be multiplied with itself before weights [g, o/g, k], not with each weight.

    Multiply-adds a group: s k² + o k² against s k o. So it is where a few channels become many, as in a stem.
    """
    return sum(k * k * (samples + o) for _, o, k in weights) < sum(k * o * samples for _, o, k in weights)
