"""Mean and variance of what several convolutions make of the same sample of windows.

Written as one function with its own backward pass: some ten small products for each block and step, which would
otherwise cost more in bookkeeping than in arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .normalisation import Before, NormMoments


def moments(windows: Tensor, given: Sequence[Before]) -> NormMoments:
    """Mean and biased variance of what each of `given` makes of a block's input.

    What is returned as `given` has the same weights, but theirs is a gradient that comes back through here, to be added
    to in place: one as large as they are, instead of two and their sum. So nothing else may hold that gradient, as is
    so behind a scale or `combine` with factors.

    Args:
        windows: [1 + s, k, k, i], as `windows.windows` gives them: their mean over all positions, and sampled ones
            less that mean.
        given: of equal groups and channels.
    """
    reads = tuple(_Taps.of(before, windows.shape[1]) for before in given)
    weights = [before.kernel.weight for before in given]
    mean, variance, *weights = _Moments.apply(reads, given[0].kernel.groups, windows, *weights)
    biases = torch.stack([before.kernel.bias for before in given])
    return NormMoments(mean + biases, variance, [old.through(new) for old, new in zip(given, weights, strict=True)])


class _Taps(NamedTuple):
    """Which taps of a window a kernel reads: first, last and rate by axis; or the average of all of them."""

    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    pooled: bool

    @classmethod
    def of(cls, before: Before, size: int) -> _Taps:
        """For windows of `size` pixels a side."""
        reach, kernel = size // 2, before.kernel
        rows, columns = (
            (reach - pad, reach - pad + (k - 1) * rate + 1, rate)
            for k, pad, rate in zip(kernel.weight.shape[2:], kernel.padding[:2], before.rate, strict=True)
        )
        return cls(rows, columns, before.pooled)

    def view(self, windows: Tensor) -> Tensor:
        """The taps, [1 + s, kh, kw, i]."""
        return windows[:, slice(*self.rows), slice(*self.columns)]

    def take(self, windows: Tensor, groups: int) -> Tensor:
        """What is read, by group, [g, 1 + s, taps * i/g]."""
        taps = windows.mean((1, 2), keepdim=True) if self.pooled else self.view(windows)
        by_group: Tensor = taps.unflatten(-1, (groups, -1))
        return by_group.permute(3, 0, 1, 2, 4).flatten(2)

    def give(self, gradient: Tensor, windows: Tensor) -> None:
        """Add the gradient of what was taken to that of the windows."""
        taps = windows if self.pooled else self.view(windows)
        size = (1, 1) if self.pooled else taps.shape[1:3]
        by_tap = gradient.unflatten(2, (*size, -1)).permute(1, 2, 3, 0, 4).flatten(3)
        taps.add_(by_tap, alpha=1 / (taps.shape[1] * taps.shape[2]) if self.pooled else 1)


class _Moments(torch.autograd.Function):
    """Mean and variance [b, o] of b convolutions, weights [o, i/g, kh, kw], of windows [1 + s, k, k, i]; the weights.

    With y = w x over the sampled windows less their mean, the variance is the mean of y y, and its gradient 2 y / s.
    That of the weights is written over the one that comes in.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch's own
        reads: tuple[_Taps, ...],
        groups: int,
        windows: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        taken = {read: read.take(windows, groups) for read in dict.fromkeys(reads)}
        outputs = [taken[read] @ _by_group(weight, groups).mT for read, weight in zip(reads, weights, strict=True)]
        ctx.reads, ctx.groups = reads, groups
        ctx.save_for_backward(windows, *weights, *outputs)
        mean = torch.stack([y[:, 0].flatten() for y in outputs])
        deviation = torch.stack([torch.linalg.vector_norm(y[:, 1:], dim=1).flatten() for y in outputs])
        return mean, deviation.square_().div_(len(windows) - 1), *weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        of_mean: Tensor,
        of_variance: Tensor,
        *of_same: Tensor,
    ) -> tuple[Tensor | None, ...]:
        reads, groups, windows = ctx.reads, ctx.groups, ctx.saved_tensors[0]
        weights, outputs = ctx.saved_tensors[1 : 1 + len(reads)], ctx.saved_tensors[1 + len(reads) :]
        factors = of_variance * (2 / (len(windows) - 1))
        of_windows = torch.zeros_like(windows)
        of_weights: list[Tensor | None] = [None] * len(reads)
        for read in dict.fromkeys(reads):
            taken = read.take(windows, groups)
            of_taken = None
            for j, (other, weight, y) in enumerate(zip(reads, weights, outputs, strict=True)):
                if other != read:
                    continue
                of_y = y * factors[j].view(groups, 1, -1)
                of_y[:, 0] = of_mean[j].view(groups, -1)
                if ctx.needs_input_grad[3 + j]:
                    by_group = _by_group(of_same[j], groups).baddbmm_(of_y.mT, taken)
                    of_weights[j] = by_group.view(weight.shape[0], *weight.shape[2:], -1).movedim(-1, 1)
                if ctx.needs_input_grad[2]:
                    part = of_y @ _by_group(weight, groups)
                    of_taken = part if of_taken is None else of_taken.add_(part)
            if of_taken is not None:
                read.give(of_taken, of_windows)
        return None, None, of_windows if ctx.needs_input_grad[2] else None, *of_weights


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """[o, i/g, kh, kw] as matrices [g, o/g, taps * i/g]; nothing is copied if it is channels last."""
    return weight.movedim(1, -1).reshape(groups, weight.shape[0] // groups, -1)
