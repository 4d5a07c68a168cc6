"""Proof that fusing changed nothing: block by block and end to end, against float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .agreement import Agreement, Comparison, comparisons
from .fusion import fuse_blocks, outermost_branches


def probes(input_shape: Sequence[int], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Random inputs to compare networks on, for images of `input_shape` (c, h, w).

    One image of that size, and two of odd sides at most 67 pixels long, since borders and strides go wrong there.
    """
    channels, height, width = input_shape
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, channels, height, width), (2, channels, min(height, 64) // 2 * 2 + 1, min(width, 64) // 2 * 2 + 3))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def verify(model: nn.Module, fused: nn.Module, inputs: Sequence[Tensor]) -> Agreement:
    """How far `fused`, made from `model` by `fuse_blocks`, is from it on `inputs`, each [n, c, h, w].

    Blocks are fed the activations they really get. End to end, float64 forms of both are compared, then the model in
    its own dtype and the fused one against the float64 reference.
    """
    reference = copy.deepcopy(model).double()
    exact, _ = fuse_blocks(reference)
    end_to_end: list[Comparison] = []
    for x in inputs:
        end_to_end += comparisons(reference, exact, x.double(), where=f"end to end, {_shape(x)}, float64")
        end_to_end += comparisons(reference, fused, x, original=model, where=f"end to end, {_shape(x)}")
    return Agreement(tuple(block_by_block(model, fused, inputs[-1])), tuple(end_to_end))


def block_by_block(model: nn.Module, fused: nn.Module, x: Tensor) -> Iterator[Comparison]:
    """Each folded layer of `fused` against the branches it was made of, on the activations `model` feeds it."""
    seen: dict[str, Tensor] = {}
    folded = {
        name: branch for name, branch in outermost_branches(model) if isinstance(fused.get_submodule(name), nn.Conv2d)
    }
    # The activations come from the fused network, which has one tensor a layer to show.
    handles = [
        fused.get_submodule(name).register_forward_pre_hook(lambda _m, inputs, n=name: seen.update({n: inputs[0]}))
        for name in folded
    ]
    try:
        with torch.no_grad():
            fused(x)
    finally:
        for handle in handles:
            handle.remove()
    for name, branch in folded.items():
        if name in seen:
            reference = copy.deepcopy(branch).double()
            yield from comparisons(
                reference, fused.get_submodule(name), seen[name], original=branch, where=name or "the model"
            )


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape))


def count_flops(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Floating-point operations, two a multiply-add, of convolutions and linear layers on one image (c, h, w)."""
    shapes_only = copy.deepcopy(model).to("meta")
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
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
