"""Proof that fusing changed nothing: block by block and end to end, against float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..algebra.kernels import Kernel
from ..proof.agreement import Agreement
from ..proof.end_to_end import prove_whole
from ..proof.leaves import Inputs, arguments
from ..proof.report import Proof, Refusal
from .fold import fuse_blocks, with_kernels
from .proof import block_by_block


def probes(input_shape: Sequence[int], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Random inputs to compare networks on, for images of `input_shape` (c, h, w).

    One image of that size, and two of odd sides at most 67 pixels long, since borders and strides go wrong there.
    """
    channels, height, width = input_shape
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, channels, height, width), (2, channels, min(height, 64) // 2 * 2 + 1, min(width, 64) // 2 * 2 + 3))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def prove_blocks(
    model: nn.Module, fused: nn.Module, inputs: Sequence[Inputs] = (), kernels: Mapping[str, Kernel] | None = None
) -> Proof:
    """How far `fused`, made from `model` by `fuse_blocks`, is from it, block by block and end to end.

    Blocks are proven as affine maps, whatever they read. End to end, float64 forms of both are compared, then the model
    in its own dtype and the fused one against the float64 reference; without inputs nothing is.

    Args:
        model: the original, in evaluation mode.
        fused: the result.
        inputs: one call's each, a tensor [n, c, h, w] or a tuple of positional arguments.
        kernels: what the layers of `fused` were cast from, by name; None: they are folded again.
    """
    if not inputs:
        said = "the network's input is not known; pass an example: repconv.fuse(model, x)"
        return Proof(Agreement(tuple(block_by_block(model, fused))), (Refusal("end to end", said),))
    wide = copy.deepcopy(model).double()
    exact = fuse_blocks(wide)[0] if kernels is None else with_kernels(wide, kernels)
    del wide
    blocks = Proof(Agreement(tuple(block_by_block(model, fused))))
    return blocks + prove_whole(model, fused, [arguments(x) for x in inputs], exact)


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
