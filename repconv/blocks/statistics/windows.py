"""What a block's kernels read at sampled output positions, and the exact mean of it over all positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...algebra.geometry import Pair


def positions(x: Tensor, stride: Pair) -> int:
    """How many positions `stride` pixels apart the images x [n, i, h, w] have in all."""
    n, _, height, width = x.shape
    return n * -(-height // stride[0]) * -(-width // stride[1])


def windows(x: Tensor, *, stride: Pair, reach: int, count: int, dtype: torch.dtype) -> Tensor:
    """The mean of the neighbourhoods of all positions, and those of sampled positions less that mean.

    Positions are drawn one from each of `count` equal runs of all of them, so that images and parts of images are
    represented alike and borders as often as they occur; with as many runs as positions every one is taken.

    Args:
        x: [n, i, h, w], zero outside.
        stride: of the positions.
        reach: pixels around a position that belong to it: 1 for 3x3, 0 for the pixel alone.
        count: how many to draw, at most the number of positions.
        dtype: of what is returned.

    Returns:
        [1 + count, k, k, i], with k = 2 reach + 1; the mean is the first.
    """
    n, _, height, width = x.shape
    rows, columns = (_reading(side, step, reach, x) for side, step in zip((height, width), stride, strict=True))
    down, right = rows.shape[1], columns.shape[1]
    total = n * down * right
    # Whole numbers, so that no rounding leaves a position out when all are taken.
    position = (torch.arange(count, device=x.device) * total + torch.randint(total, (count,), device=x.device)) // count
    image, row, column = position // (down * right), position // right % down, position % right
    # [count, k, k]: where in an image, -1 outside.
    r, c = rows[:, row].T[:, :, None], columns[:, column].T[:, None, :]
    pixel = (image[:, None, None] * height + r.clamp(0)) * width + c.clamp(0)
    inside = ((r >= 0) & (c >= 0)).to(dtype)
    shares = (_shares(rows, height, dtype), _shares(columns, width, dtype))
    read: Tensor = _Read.apply(x, pixel, inside, *shares)
    return read


def _reading(side: int, step: int, reach: int, x: Tensor) -> Tensor:
    """Which pixel of a side each tap reads at each position, [k, positions]; -1 outside the image."""
    taps = torch.arange(-reach, reach + 1, device=x.device)
    read = torch.arange(0, side, step, device=x.device) + taps[:, None]
    return torch.where((read >= 0) & (read < side), read, -1)


def _shares(reading: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """How much of a tap's mean over the positions is that of each pixel, [k, side]."""
    pixels = torch.arange(side, device=reading.device)
    return (reading[:, :, None] == pixels).to(dtype).mean(1)


class _Read(torch.autograd.Function):
    """The weighted mean of an image batch, and pixels of it less that mean.

    One function, so that the gradient is made as one tensor as large as the images instead of two to be added.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  # torch's own
        x: Tensor,
        pixel: Tensor,
        inside: Tensor,
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(pixel, inside, rows, columns)
        ctx.images = x.shape, x.dtype
        images = x.permute(0, 2, 3, 1)  # summed in this order: ten times faster, if x is channels last
        flat = images.reshape(-1, x.shape[1])
        read = inside.new_empty((1 + len(pixel), *pixel.shape[1:], x.shape[1]))
        mean = torch.einsum("rh,hwi,cw->rci", rows, images.mean(0, dtype=inside.dtype), columns)
        read[0] = mean
        values = flat.index_select(0, pixel.flatten()).unflatten(0, pixel.shape)
        torch.mul(values, inside[..., None], out=read[1:]).sub_(mean)
        return read

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        pixel, inside, rows, columns = ctx.saved_tensors
        (n, i, height, width), dtype = ctx.images
        of_mean = gradient[0] - gradient[1:].sum(0)
        spread = torch.einsum("rh,rci,cw->hwi", rows, of_mean / n, columns).to(dtype)
        flat = spread.expand(n, -1, -1, -1).clone(memory_format=torch.contiguous_format).view(-1, i)
        added = (gradient[1:] * inside[..., None]).reshape(-1, i).to(dtype)
        flat.index_add_(0, pixel.flatten(), added)
        return flat.view(n, height, width, i).permute(0, 3, 1, 2), None, None, None, None
