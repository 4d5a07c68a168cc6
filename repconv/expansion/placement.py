"""Blocks in the places of convolutions: the modules, before anybody gives them trained numbers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..blocks.block import BranchSet, RepBlock
from ..blocks.branches import ConvBranch
from ..blocks.copies import copied
from ..errors import GeometryError
from .tracing import is_norm_act


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A block and what it stands for: enough to put another such block into the plain network.

    norm: name of the batch normalisation module whose work the block took over, None where the convolution was alone or
        a `ConvBranch`. own_bias, bias: whether the convolution of the `3x3` branch, and those of the others, have one.
    eps, momentum: of all its batch normalisations.
    """

    branches: BranchSet
    norm: str | None = None
    own_bias: bool = False
    bias: bool = False
    eps: float = 1e-5
    momentum: float | None = 0.1


def placement_of(block: RepBlock, norm: str | None) -> Placement:
    """The placement of a block in a network; the block does not know what `norm` it took over.

    Raises:
        GeometryError: its batch normalisations differ in eps or momentum.
    """
    own = dict(block.branches).get("3x3")
    others = [m for name, b in block.branches.items() if name != "3x3" for m in b.modules() if isinstance(m, nn.Conv2d)]
    norms = {(m.eps, m.momentum) for m in block.modules() if isinstance(m, nn.BatchNorm2d)}
    if len(norms) > 1:
        raise GeometryError(f"its batch normalisations differ in eps or momentum: {sorted(norms, key=str)}")
    ((eps, momentum),) = norms or {(1e-5, 0.1)}
    own_bias = isinstance(own, ConvBranch) and own.conv.bias is not None
    return Placement(
        branches=block.branch_set,
        norm=norm,
        own_bias=own_bias,
        bias=any(c.bias is not None for c in others),
        eps=eps,
        momentum=momentum,
    )


def new_block(conv: nn.Conv2d, placement: Placement) -> RepBlock:
    """A block of `placement` that fits the place of `conv`, on its device, in its dtype, memory format and mode.

    Raises:
        GeometryError: a branch does not fit.
    """
    block = RepBlock(
        conv.in_channels,
        conv.out_channels,
        stride=(conv.stride[0], conv.stride[1]),
        groups=conv.groups,
        bias=placement.bias,
        fixed=placement.branches.fixed,
        branches=placement.branches.searchable,
    )
    own = dict(block.branches).get("3x3")
    if isinstance(own, ConvBranch) and placement.own_bias != placement.bias:
        own.conv.bias = nn.Parameter(torch.zeros(conv.out_channels)) if placement.own_bias else None
    block.to(device=conv.weight.device, dtype=conv.weight.dtype)
    if conv.weight.is_contiguous(memory_format=torch.channels_last) and not conv.weight.is_contiguous():
        block.to(memory_format=torch.channels_last)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = placement.eps, placement.momentum
    return block.train(conv.training)


def take_over(block: RepBlock, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
    """Make copies of `conv`, and of `norm` if there is one, the block's `3x3` branch, if it has that."""
    own = dict(block.branches).get("3x3")
    if norm is not None:
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(norm.training)
    if isinstance(own, ConvBranch):
        own.conv = copy.deepcopy(conv)
        if norm is None:
            own.conv.bias = None  # the normalisation's own bias takes it over
        else:
            own.bn = _plain(norm)


def _plain(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A copy of `norm` without the activation it may come with, its scale and shift parameters if they were not."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    if norm.running_var is not None:
        plain.to(norm.running_var)
    if norm.affine:
        plain.weight, plain.bias = copy.deepcopy(norm.weight), copy.deepcopy(norm.bias)
    plain.track_running_stats = norm.track_running_stats
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(plain, name, copy.deepcopy(getattr(norm, name)))
    return plain.train(norm.training)


def place(model: nn.Module, placements: Mapping[str, Placement]) -> nn.Module:
    """A copy of `model` with new blocks in the places of the named convolutions (`Conv2d` or `ConvBranch`).

    Raises:
        GeometryError: no convolution there, no batch normalisation where one is named, or a branch that does not fit.
    """
    blocks = {}
    for name, placement in placements.items():
        conv, _ = parts_at(model, name, placement.norm)
        try:
            blocks[name] = new_block(conv, placement)
        except GeometryError as error:
            raise GeometryError(f"{name}: {error}") from None
    return with_modules(model, blocks, {name: placement.norm for name, placement in placements.items()})


def parts_at(model: nn.Module, name: str, norm: str | None) -> tuple[nn.Conv2d, nn.BatchNorm2d | None]:
    """The convolution called `name` and the batch normalisation a block in its place takes over.

    Raises:
        GeometryError: there is none.
    """
    module = _at(model, name)
    if isinstance(module, ConvBranch):
        return module.conv, module.bn
    if not isinstance(module, nn.Conv2d):
        raise GeometryError(f"{name}: expected a Conv2d or ConvBranch to expand, got {type(module).__name__}")
    follower = None if norm is None else _at(model, norm)
    if not isinstance(follower, nn.BatchNorm2d | None):
        raise GeometryError(f"{norm}: expected a BatchNorm2d after {name}, got {type(follower).__name__}")
    return module, follower


def _at(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise GeometryError(f"{type(model).__name__} has no module {name}") from None


def with_modules(model: nn.Module, blocks: Mapping[str, nn.Module], norms: Mapping[str, str | None]) -> nn.Module:
    """A copy of `model` with `blocks` in its convolutions' places, by name, without the `norms` they took over.

    The copy notes what was replaced as `model.replaced`: the batch normalisation, or None, by the convolution's name.
    """
    instead: dict[nn.Module, nn.Module] = {}
    for name, block in blocks.items():
        instead[_at(model, name)] = block
        norm = norms[name]
        if norm is not None:
            instead[_at(model, norm)] = _leftover(_at(model, norm))
    result = copied(model, instead)
    # A network that was fused and is expanded again had its batch normalisations taken over before.
    before = replaced(model)
    result.replaced = {**before, **{n: norms[n] or before.get(n) for n in blocks}}  # type: ignore[assignment]
    return result


def replaced(model: nn.Module) -> dict[str, str | None]:
    """The convolutions of `model` that `expand` replaced, by name, with the batch normalisations they took along."""
    return dict(getattr(model, "replaced", {}))


def _leftover(norm: nn.Module) -> nn.Module:
    """What stays of a batch normalisation module that a block took over."""
    if not is_norm_act(norm):
        return nn.Identity().train(norm.training)
    rest = {name: copy.deepcopy(module) for name, module in norm.named_children()}  # drop, then act
    return nn.Sequential(OrderedDict(rest)).train(norm.training)
