"""What is asked of a network before it is compared: its dtype, its flops, and random images to run it on."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def probes(input_shape: Sequence[int], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Random inputs to compare networks on, for images of `input_shape` (c, h, w).

    One image of that size, and two of odd sides at most 67 pixels long, since borders and strides go wrong there.
    """
    channels, height, width = input_shape
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, channels, height, width), (2, channels, min(height, 64) // 2 * 2 + 1, min(width, 64) // 2 * 2 + 3))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def count_flops(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Floating-point operations, two a multiply-add, of convolutions and linear layers on one image (c, h, w)."""
    held = [*model.parameters(), *model.buffers()]
    shapes_only = copy.deepcopy(model, {id(t): t.detach().to("meta") for t in held})  # no weight is copied
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            shapes_only(torch.empty(1, *input_shape, device="meta"))
    except (NotImplementedError, RuntimeError):
        # Some networks look at numbers, of buffers they keep on another device, say; then it is run.
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=dtype_of(model)))
    return int(counter.get_total_flops())


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the model's floating-point parameters, of the first where they differ."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
