"""Numbers with which a block computes what the convolution it replaces did, and each of its branches can be trained.

The usual trick, new branches that start at zero, would leave their weights without gradient. So every new branch starts
at a tenth of the block's own scale, and the `3x3` branch is given the kernel that makes up for all of them:

    K_3x3 = K_before - sum_o gate_o * K_o          folded kernels, computed in float64

No factor of this sum is zero, so every weight and every gate has a gradient, where the network itself passes one on.
(In training mode batch normalisation all but takes the gradient from what it divides out: the one weight a channel of a
depthwise 1x1, the inner scale of `avg`, the bias of a convolution.) Batch normalisations of new branches start with the
statistics their inputs have: measured on example inputs, else derived from the replaced convolution's own weights and
statistics. The `3x3` branch's normalisation is written anew around the kernel: weights keep the norm they had in each
channel and the scale takes the rest, so that a channel whose scale was 0 can be trained, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..algebra.kernels import Kernel, combine
from ..blocks.block import RepBlock
from ..blocks.branches import ConvBranch, NormedBranch, conv_kernel
from ..blocks.statistics.normalisation import Before, NormMoments, Statistics, norm_affine
from ..errors import GeometryError

NEW_BRANCH_SCALE = 0.1
"""Of a new branch's output against that of the convolution it joins: small, so that the kernel that makes up for nine
of them stays near the one before; large enough to train."""

Moments = Callable[[Kernel], tuple[Tensor, Tensor]]
"""Mean and variance, [o] each, of what a kernel makes of a block's input."""


@torch.no_grad()
def moments_of(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, x: Tensor | None) -> Moments:
    """What kernels make of the input of `conv`: of x [n, i, h, w] if there is enough of it, else as far as known.

    Without x every pixel of every channel is taken for independent, with one mean and one variance that fit the
    statistics `norm` has learnt (0 and 1 where there is none).
    """
    if x is not None and x.dim() == 4 and x.numel() // x.shape[1] >= 16:
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))

        def measured(kernel: Kernel) -> tuple[Tensor, Tensor]:
            y = kernel.to(dtype=wide.dtype)(wide)
            variance, average = torch.var_mean(y, (0, 2, 3), correction=0)
            return average.double(), variance.double()

        return measured
    mean = variance = None
    if norm is not None and norm.running_mean is not None and norm.running_var is not None:
        kernel = conv_kernel(conv, torch.float64)
        sums, shift = kernel.weight.sum((1, 2, 3)), norm.running_mean.double() - kernel.bias
        mean = float((sums * shift).sum() / sums.square().sum())
        variance = float(norm.running_var.double().sum() / kernel.weight.square().sum())
    m = mean if mean is not None and math.isfinite(mean) else 0.0
    v = variance if variance is not None and math.isfinite(variance) and variance > 0 else 1.0
    return lambda k: (k.weight.sum((1, 2, 3)) * m + k.bias, k.weight.square().sum((1, 2, 3)) * v)


@torch.no_grad()
def settle(block: RepBlock, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, moments: Moments, *, preserve: bool) -> None:
    """Give the `3x3` branch the numbers with which the block computes what `conv` and `norm` did.

    The other branches count only if the function is to be preserved. Where there is nothing to make up for, the branch
    keeps the numbers it took over, to the bit.
    """
    own = dict(block.branches).get("3x3")
    others = [name for name in block.branches if name != "3x3"] if preserve else []
    if not isinstance(own, ConvBranch) or (norm is not None and not others):
        return
    target = conv_kernel(conv, torch.float64)
    scale, spread = torch.ones_like(target.bias), moments(target)[1].sqrt()
    if norm is not None:
        if norm.running_mean is None or norm.running_var is None:
            raise GeometryError("its batch normalisation keeps no running statistics, so there is nothing to preserve")
        scale, shift = norm_affine(norm, norm.running_mean, norm.running_var, torch.float64)
        target = (target * scale).shift(shift)
        spread = scale * norm.running_var.double().sqrt()
    size = float(spread.square().mean().sqrt())
    size = NEW_BRANCH_SCALE * (size if math.isfinite(size) and size > 0 else 1.0)
    parts, factors = [target], [torch.ones_like(scale[0])]
    for name in others:
        branch = block.branches[name]
        if isinstance(branch, NormedBranch):
            parts.append(begin(branch, size, moments, target))
            factors.append(-block.gate(name) if name in block.branch_set.searchable else -factors[0])
    rewrite(own, combine(parts, factors), scale, moments, learned=norm is not None)


@torch.no_grad()
def begin(branch: NormedBranch, size: float, moments: Moments, beside: Kernel) -> Kernel:
    """Give a new branch an output of deviation `size` a channel, by the scale of its last normalisation; its kernel.

    Its normalisations get the statistics that `moments` tells. Channels whose kernel would outweigh that of `beside`,
    the convolution it joins, get smaller ones.
    """
    branch.norm.weight.fill_(size)
    statistics = _recorded(moments)
    kernel = branch.kernel(statistics)
    return branch.kernel(statistics) if _tame(branch, kernel, beside) else kernel


def _tame(branch: NormedBranch, kernel: Kernel, target: Kernel) -> bool:
    """Make channels of a new branch smaller whose kernel outweighs that of the convolution; whether there are any.

    That is so where its output hardly varies on the inputs it was measured on, by which batch normalisation divides.
    Such a kernel would be made up for by one as large, and their difference lose the digits that it is larger by.
    """
    ours, theirs = (k.weight.flatten(1).norm(dim=1) for k in (kernel, target))
    most = theirs.square().mean().sqrt()
    if not 0 < most < ours.max():
        return False
    branch.norm.weight.mul_((most / ours.clamp_min(most)).to(branch.norm.weight.dtype))
    return True


def _recorded(moments: Moments) -> Statistics:
    """Running statistics as `moments` has them, written to each batch normalisation as it is asked for."""

    def statistics(norms: Sequence[nn.BatchNorm2d], given: Sequence[Before]) -> NormMoments:
        found = [_record(norm, *moments(before.whole())) for norm, before in zip(norms, given, strict=True)]
        mean, variance = (torch.stack(each) for each in zip(*found, strict=True))
        return NormMoments(mean, variance, given)

    return statistics


def _record(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Write running statistics, if `norm` keeps any; returns what it now has."""
    if norm.running_mean is None or norm.running_var is None:
        return mean, variance
    norm.running_mean.copy_(mean)
    # A channel that hardly varies must not be blown up to the size of the others.
    norm.running_var.copy_(variance.clamp_min(max(1e-3 * float(variance.mean()), norm.eps)))
    return norm.running_mean, norm.running_var


@torch.no_grad()
def rewrite(branch: ConvBranch, wanted: Kernel, scale: Tensor, moments: Moments, *, learned: bool) -> None:
    """Make `branch` fold to `wanted`, scale * weight being near it; `learned` if its statistics mean something."""
    before = conv_kernel(branch.conv, torch.float64)
    norms, sizes = (weight.flatten(1).norm(dim=1) for weight in (before.weight, wanted.weight))
    # Weights keep the norm they had in each channel; a channel that is to be zero keeps them with scale zero.
    factor = torch.where(norms > 0, sizes / norms, sizes) * torch.where(scale < 0, -1.0, 1.0)
    kept = factor[:, None, None, None] == 0
    weight = torch.where(kept, before.weight, wanted.weight / torch.where(kept, 1.0, factor[:, None, None, None]))
    branch.conv.weight.copy_(weight)
    after = conv_kernel(branch.conv, torch.float64)
    mean, variance = moments(after)
    norm = branch.bn
    if learned and norm.running_mean is not None and norm.running_var is not None:
        old_mean, old_variance = moments(before)
        ratio = variance / old_variance
        mean = norm.running_mean.double() + mean - old_mean
        variance = torch.where(ratio.isfinite(), norm.running_var.double() * ratio, variance)
    stored_mean, stored_variance = _record(norm, mean, variance)
    norm.weight.copy_(factor * (stored_variance.double() + norm.eps).sqrt())
    norm.bias.copy_(wanted.bias - factor * (after.bias - stored_mean.double()))
