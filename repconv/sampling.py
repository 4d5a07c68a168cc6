"""Batch statistics of a branch without its output: from its kernel and a sample of positions.

Batch normalisation needs each branch's mean and variance only. Taking them at a sample of output positions leaves one
convolution to run for the whole block in training, whatever its number of branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .branches import Statistics, running_statistics, update_running_statistics
from .geometry import Pair
from .kernels import Kernel


@dataclass(frozen=True)
class Sampling:
    """How many output positions a channel the batch statistics of a block are taken from.

    positions: about this many values a channel, on a regular grid with a random offset over randomly drawn images, so
    that borders appear as often as they occur. None takes every position, which equals the branch-by-branch form.
    """

    positions: int | None = 2048

    def of(self, x: Tensor) -> Statistics:
        """The statistics of branches applied to x [n, i, h, w]; running statistics are updated as they are asked for.

        Branches read within one pixel of their output's position, as those of a 3x3 block do. A normalisation in
        evaluation mode (frozen) keeps to its running statistics, as in the branch-by-branch form.
        """
        outputs = self._outputs(x)

        def statistics(norm: nn.BatchNorm2d, before: Kernel) -> tuple[Tensor, Tensor]:
            if not norm.training and norm.running_mean is not None:
                return running_statistics(norm, before)
            return _moments(norm, outputs(before))

        return statistics

    def _outputs(self, x: Tensor) -> Callable[[Kernel], Tensor]:
        """What a kernel makes of x at the positions taken, [o, values]."""
        n, _, height, width = x.shape
        if self.positions is None or self.positions >= n * height * width:
            return lambda kernel: kernel(x.to(kernel.weight.dtype)).transpose(0, 1).flatten(1)
        # Half of the thinning in space, half over images: neighbouring pixels are alike, so are those of one image.
        step = max(1, min(height, width, int((n * height * width / self.positions) ** 0.25)))
        images = max(1, min(n, self.positions * step * step // (height * width)))
        chosen = x[torch.randperm(n, device=x.device)[:images]] if images < n else x
        padded = functional.pad(chosen, (1, 1, 1, 1)).transpose(0, 1)
        offset = torch.randint(step, (2,)).tolist()
        windows: dict[Pair, Tensor] = {}

        def window(stride: Pair) -> Tensor:
            """The 3x3 neighbourhoods of the sampled positions, [3, 3, i, values]."""
            if stride not in windows:
                (top, left), (down, right) = (tuple(o * s for o, s in zip(offset, stride, strict=True)), stride)
                stop = [(size + s - 1) // s * s for size, s in zip((height, width), stride, strict=True)]
                # A block strided by 2 may have fewer rows than the grid's offset: fall back to the first.
                top, left = (0 if o >= size else o for o, size in zip((top, left), (height, width), strict=True))
                taps = [
                    padded[:, :, top + r : stop[0] + r : down * step, left + c : stop[1] + c : right * step]
                    for r in range(3) for c in range(3)
                ]  # fmt: skip
                windows[stride] = torch.stack([t.flatten(1) for t in taps]).unflatten(0, (3, 3))
            return windows[stride]

        def outputs(kernel: Kernel) -> Tensor:
            o, i, kh, kw = kernel.weight.shape
            top, left = 1 - kernel.padding[0], 1 - kernel.padding[1]
            taps = window(kernel.stride)[top : top + kh, left : left + kw].to(kernel.weight.dtype)
            groups = kernel.groups
            # [g, i/g kh kw, values], in the order of the weight's own axes.
            inputs = taps.unflatten(2, (groups, i)).movedim((2, 3), (0, 1)).reshape(groups, i * kh * kw, -1)
            y = torch.matmul(kernel.weight.reshape(groups, o // groups, -1), inputs).reshape(o, -1)
            return y + kernel.bias[:, None]

        return outputs


def _moments(norm: nn.BatchNorm2d, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of y [c, values]; moves the running statistics of `norm`."""
    variance, mean = torch.var_mean(y, 1, correction=0)
    update_running_statistics(norm, mean, variance, y.shape[1])
    return mean, variance
