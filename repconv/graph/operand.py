"""A constant operand of an elementwise operation as one number a channel, whatever shape it is written in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .not_affine import NotAffineError


def channelwise(value: Tensor, size: Sequence[object], axis: int = 1) -> Tensor:
    """`value`, which broadcasts against a tensor of `size` with its channels at `axis`, as [c] in float64.

    size: a number for each side that is fixed, anything else for one that is open. A constant written out for every
        image and pixel counts if it is one number a channel all the same.

    Raises:
        NotAffineError: it makes the tensor larger, or differs from pixel to pixel or image to image.
    """
    value = value.detach().cpu().to(torch.float64)
    shape, channels = list(value.shape), size[axis]
    if not isinstance(channels, int) or (len(shape) > len(size)):
        raise NotAffineError(f"its constant of shape {shape} has more axes than the tensor, which has {len(size)}")
    aligned = value.reshape((1,) * (len(size) - len(shape)) + tuple(shape))
    if any(mine not in (1, theirs) for mine, theirs in zip(aligned.shape, size, strict=True)):
        raise NotAffineError(
            f"its constant of shape {shape} is not one number a channel: there are {channels} channels, and the other "
            "sides must be 1 or those of the tensor"
        )
    vector = aligned.movedim(axis, 0).flatten(1)
    if not bool((vector == vector[:, :1]).all()):
        raise NotAffineError(
            f"its constant of shape {shape} is not one number a channel: it differs from pixel to pixel or image to "
            "image"
        )
    return vector[:, 0].expand(channels)
