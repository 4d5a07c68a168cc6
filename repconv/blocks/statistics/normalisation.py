"""Batch normalisations between convolutions: what they are given, where their statistics come from, how they fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...algebra.geometry import Pair
from ...algebra.kernels import Kernel, batch_norm_affine
from ...errors import FusionError, GeometryError


@dataclass(frozen=True)
class Before:
    """What a batch normalisation is given, as a map of the outermost branch's input.

    kernel: a convolution whose dilation is not written out: its taps are `rate` pixels apart.
    pooled: whether it reads each pixel's 3x3 average, of zeros outside the image, instead of the input itself. Such a
        kernel is a single tap.
    """

    kernel: Kernel
    rate: Pair = (1, 1)
    pooled: bool = False

    def through(self, weight: Tensor) -> Before:
        """The same with an equal weight, whose gradient goes another way; as it is if nothing is learned by it."""
        old = self.kernel
        if not old.weight.requires_grad:
            return self
        return Before(Kernel(weight, old.bias, old.stride, old.padding, old.groups), self.rate, self.pooled)

    def whole(self) -> Kernel:
        """The same as one convolution of the input."""
        if not self.pooled:
            return self.kernel.dilate(self.rate)
        kernel = self.kernel
        taps = (kernel.weight / 9).expand(-1, -1, 3, 3)
        return Kernel(taps, kernel.bias, kernel.stride, (1, 1, 1, 1), kernel.groups)


class NormMoments(NamedTuple):
    """Mean and variance of what b normalisations are given, and what that is.

    mean, variance: of as many channels each, [b, c].
    given: the same, for the normalisations to be folded into; where kernels are learned by way of their moments, too,
        those of `moments.moments`.
    """

    mean: Tensor
    variance: Tensor
    given: Sequence[Before]


Statistics = Callable[[Sequence[nn.BatchNorm2d], Sequence[Before]], NormMoments]
"""Where the mean and variance of batch normalisations come from: of each, and of what each is given."""


def running_statistics(norms: Sequence[nn.BatchNorm2d], given: Sequence[Before]) -> NormMoments:
    """The running means and variances: what evaluation uses.

    Raises:
        FusionError: a layer normalises by batch statistics (training mode, or it keeps no running ones).
    """
    means, variances = [], []
    for norm in norms:
        if norm.running_mean is None or norm.running_var is None:
            raise FusionError(
                "a batch normalisation with track_running_stats=False normalises by each batch and is no fixed "
                "convolution; train with running statistics, or re-estimate them, before fusing"
            )
        if norm.training:
            raise FusionError(
                "a batch normalisation in training mode normalises by each batch and is no fixed convolution; "
                "call model.eval() first"
            )
        means.append(norm.running_mean)
        variances.append(norm.running_var)
    return NormMoments(torch.stack(means), torch.stack(variances), given)


def norm_affine(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`norm` with this mean and variance as `y * scale + shift`, [c] each, in `dtype`."""
    mean, variance = mean.to(dtype), variance.to(dtype)
    weight, bias = (None if p is None else p.to(dtype) for p in (norm.weight, norm.bias))
    return batch_norm_affine(mean, variance, weight, bias, norm.eps)


def norms_affine(norms: Sequence[nn.BatchNorm2d], moments: NormMoments, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`norm_affine` of normalisations of as many channels each, stacked [b, c]; few operations, for training."""
    mean, variance = moments.mean.to(dtype), moments.variance.to(dtype)
    units = mean.new_ones(mean.shape[1]), mean.new_zeros(mean.shape[1])
    weight = torch.stack([units[0] if norm.weight is None else norm.weight for norm in norms]).to(dtype)
    bias = torch.stack([units[1] if norm.bias is None else norm.bias for norm in norms]).to(dtype)
    eps = {norm.eps for norm in norms}
    added = eps.pop() if len(eps) == 1 else mean.new_tensor([[norm.eps] for norm in norms])
    return batch_norm_affine(mean, variance, weight, bias, added)


def fold_norm(before: Before, norm: nn.BatchNorm2d, statistics: Statistics) -> Before:
    """`before` followed by `norm`, in the kernel's dtype."""
    (mean,), (variance,), (before,) = statistics([norm], [before])
    scale, shift = norm_affine(norm, mean, variance, before.kernel.weight.dtype)
    return Before(before.kernel.scale(scale).shift(shift), before.rate, before.pooled)


def update_running_statistics(norms: Sequence[nn.BatchNorm2d], mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics of `norms` towards a batch's means and biased variances, over `count` values each.

    Does what `BatchNorm2d` does in training: momentum None is a cumulative average, the variance is unbiased.

    Raises:
        GeometryError: one value a channel has no variance to learn from.
    """
    if count < 2:
        raise GeometryError(f"batch statistics need more than one value a channel in training, got {count}")
    with torch.no_grad():
        unbiased = variance * (count / (count - 1))
        for norm, its_mean, its_variance in zip(norms, mean.unbind(), unbiased.unbind(), strict=True):
            if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
                continue
            norm.num_batches_tracked.add_(1)
            momentum: float | Tensor | None = norm.momentum
            if momentum is None:
                momentum = 1 / norm.num_batches_tracked.to(norm.running_mean.dtype)
            norm.running_mean.lerp_(its_mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_(its_variance.to(norm.running_var.dtype), momentum)
