"""`expand`: the 3x3 convolutions of a plain network become blocks of branches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .block import BranchSet, RepBlock
from .branches import ConvBranch, conv_kernel
from .errors import GeometryError
from .geometry import Geometry


def expand(model: nn.Module, *, branches: Iterable[str] = (), fixed: Iterable[str] = ("3x3",)) -> nn.Module:
    """A copy of `model` in which every 3x3 convolution and its batch normalisation is a `RepBlock`.

    The block's `3x3` branch takes over the convolution and batch normalisation it replaces; other branches start
    fresh. Kinds that do not fit a convolution (`skip` where it changes the shape) are left out there. The input is
    not changed.

    Args:
        model: a network whose convolutions are `ConvBranch` modules, such as those of `create_model`.
        branches: searchable kinds (names in `BRANCHES`), each with a gate.
        fixed: kinds without a gate.

    Raises:
        GeometryError: an unknown kind, or nothing to replace.
    """
    wanted = BranchSet.of(fixed, branches)
    targets = replaceable(model)
    if not targets:
        raise GeometryError(
            f"nothing to expand: {type(model).__name__} holds no ConvBranch with a 3x3 convolution, padding 1 and "
            "dilation 1"
        )
    return with_blocks(model, {name: wanted.fitting(geometry) for name, geometry in targets.items()})


def replaceable(model: nn.Module) -> dict[str, Geometry]:
    """The 3x3 convolutions `expand` would replace, by module name."""
    found: dict[str, Geometry] = {}
    inside = {id(child) for block in model.modules() if isinstance(block, RepBlock) for child in block.modules()}
    for name, module in model.named_modules():
        if not isinstance(module, ConvBranch) or id(module) in inside or module.conv.padding_mode != "zeros":
            continue
        geometry = conv_kernel(module.conv, module.conv.weight.dtype).geometry
        # A dilated 2x2 covers 3x3 pixels, too, but is no 3x3.
        if module.conv.kernel_size == (3, 3) and geometry.size == (3, 3) and geometry.padding == (1, 1, 1, 1):
            found[name] = geometry
    return found


def with_blocks(model: nn.Module, sets: Mapping[str, BranchSet]) -> nn.Module:
    """A copy of `model` in which each named `ConvBranch` is a `RepBlock` of that set of branches."""
    memo: dict[int, object] = {}
    for name, branch_set in sets.items():
        plain = model.get_submodule(name)
        if not isinstance(plain, ConvBranch):
            raise GeometryError(f"{name}: expected a ConvBranch to expand, got {type(plain).__name__}")
        try:
            memo[id(plain)] = _block(plain, branch_set)
        except GeometryError as error:
            raise GeometryError(f"{name}: {error}") from None
    # Whatever stands in deepcopy's memo counts as copied already, so blocks take the place of what they replace,
    # shared modules stay shared, and nothing replaced is copied.
    expanded: nn.Module = memo[id(model)] if id(model) in memo else copy.deepcopy(model, memo)  # type: ignore[assignment]
    return expanded


def _block(plain: ConvBranch, branch_set: BranchSet) -> RepBlock:
    """A block for `plain`, on its device, in its dtype and mode."""
    conv = plain.conv
    block = RepBlock(
        conv.in_channels, conv.out_channels,
        stride=(conv.stride[0], conv.stride[1]), groups=conv.groups, bias=conv.bias is not None,
        fixed=branch_set.fixed, branches=branch_set.searchable,
    )  # fmt: skip
    block.to(device=conv.weight.device, dtype=conv.weight.dtype)
    if conv.weight.is_contiguous(memory_format=torch.channels_last) and not conv.weight.is_contiguous():
        block.to(memory_format=torch.channels_last)
    block.train(plain.training)
    if "3x3" in block.branches:
        block.branches["3x3"] = copy.deepcopy(plain)
    return block
