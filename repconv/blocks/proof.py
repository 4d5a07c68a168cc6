"""Proof that fusing changed nothing: each folded block as an affine map, and the whole end to end, against float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from ..algebra.kernels import Kernel
from ..progress import counted
from ..proof.affine import Sources, Written, affine_agreement, different, largest_on_the_way, same_numbers, square
from ..proof.agreement import Agreement, Comparison
from ..proof.end_to_end import prove_whole
from ..proof.float64 import FastGroupedDouble
from ..proof.leaves import Inputs, arguments
from ..proof.report import Proof, Refusal
from .fold import fuse_blocks, outermost_branches, with_kernels

_SOURCE = "x"


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
    return blocks + prove_whole(model, fused, [arguments(x) for x in inputs], exact, proven=blocks.agreement.passed)


def block_by_block(model: nn.Module, fused: nn.Module) -> Iterator[Comparison]:
    """Each folded layer of `fused` against the branches of `model` it was made of; no input is needed for that.

    What else the networks hold has to be the same, number by number, and is only mentioned where it is not.
    """
    convs: dict[int, nn.Conv2d] = {}
    for name, branch in counted(tuple(outermost_branches(model)), "layers proved:"):
        conv = fused.get_submodule(name)
        if isinstance(conv, nn.Conv2d):
            convs[id(branch)] = conv
            yield prove_block(branch, conv, name or "the model")
    # A block that several names share is one convolution under all of them.
    folded = [
        f"{name}." if name else ""
        for name, module in model.named_modules(remove_duplicate=False)
        if id(module) in convs and fused.get_submodule(name) is convs[id(module)]
    ]
    held = model.state_dict()
    for name, tensor in fused.state_dict().items():
        if not name.startswith(tuple(folded)) and not same_numbers(tensor, held.get(name)):
            yield different(name, "other numbers than the original, though no block was folded here")


def prove_block(branch: nn.Module, conv: nn.Conv2d, where: str) -> Comparison:
    """One convolution against what it was made of, on small images of odd sides."""
    reference = copy.deepcopy(branch).double().cpu()
    written = copy.deepcopy(conv).double().cpu()
    dtype = conv.weight.dtype
    squared = square(conv.weight.detach().cpu(), dtype)

    def power(sources: Sources) -> Tensor:
        return functional.conv2d(
            sources[_SOURCE], squared, None, written.stride, written.padding, written.dilation, written.groups
        )

    rows, columns = written.kernel_size
    with FastGroupedDouble():
        return affine_agreement(
            largest_on_the_way(lambda sources: reference(sources[_SOURCE])),
            Written(lambda sources: written(sources[_SOURCE]), power, rows * columns),
            {_SOURCE: (1, written.in_channels, *_sides(conv))},
            dtype,
            where,
        )


def _sides(conv: nn.Conv2d) -> tuple[int, int]:
    """Odd sides of different length, with outputs that see one border, the other, and none."""
    reach = [(k - 1) * d + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    rows, columns = (2 * max(r, s) + 5 for r, s in zip(reach, conv.stride, strict=True))
    return rows, columns + 2
