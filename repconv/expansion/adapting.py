"""Branches that join a block or leave it while it is trained, and nothing changes of what it computes in evaluation.

What a branch adds is taken off the kernel of the block's `3x3` branch, and what one gave that leaves is added to it, in
float64 and through that branch's own batch normalisation (see `initialise`). Modules and parameters that stay are the
very ones, so an optimiser keeps what it knows of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..algebra.kernels import combine
from ..blocks.block import BranchSet, RepBlock
from ..blocks.branches import ConvBranch, NormedBranch
from ..blocks.statistics.normalisation import norm_affine
from ..errors import GeometryError
from .initialise import Moments, begin, moments_of, rewrite
from .placement import new_block, placement_of

OWN = "3x3"


@torch.no_grad()
def new_branches(block: RepBlock, kinds: Iterable[str], x: Tensor, share: float) -> dict[str, NormedBranch]:
    """Branches that may `join` the block, of weights drawn from torch's generator.

    Args:
        block: in evaluation mode, with a fixed `3x3` branch; not changed.
        kinds: that fit it.
        x: its input [n, i, h, w], by which the branches' statistics are measured.
        share: of their outputs' deviation, as a share of that of the `3x3` branch.

    Raises:
        GeometryError: no fixed `3x3` branch, or a kind that does not fit.
    """
    own = _own(block)
    target, moments = own.kernel(), moments_of(own.conv, own.bn, x)
    size = share * float(own.bn.weight.double().square().mean().sqrt())
    found = _fresh(block, kinds)
    for branch in found.values():
        begin(branch, size, moments, target)
    return found


@torch.no_grad()
def join(block: RepBlock, branches: Mapping[str, NormedBranch], x: Tensor) -> None:
    """Make them fixed branches of the block, after those it has; `block` and `x` as of `new_branches`.

    Raises:
        GeometryError: no fixed `3x3` branch, or the block has such a branch already.
    """
    held = [name for name in branches if name in block.branches]
    if held:
        raise GeometryError(f"the block has a branch {', '.join(held)} already")
    _move(_own(block), branches.values(), x, -1.0)
    block.branches.update(branches)
    block.branch_set = BranchSet((*block.branch_set.fixed, *branches), block.branch_set.searchable)


@torch.no_grad()
def leave(block: RepBlock, kinds: Sequence[str], x: Tensor) -> None:
    """Take fixed branches off the block, its `3x3` branch taking over what they gave; `x` as of `new_branches`.

    Raises:
        GeometryError: no fixed `3x3` branch, or one of the `kinds` is none of the other fixed branches.
    """
    own, others = _own(block), [name for name in block.branch_set.fixed if name != OWN]
    unknown = [name for name in kinds if name not in others]
    if unknown:
        raise GeometryError(f"{unknown[0]} cannot leave the block: expected one of {', '.join(others) or 'none'}")
    going = [branch for name in kinds if isinstance(branch := block.branches[name], NormedBranch)]
    _move(own, going, x, 1.0)
    put_kinds(block, [name for name in block.branch_set.fixed if name not in kinds])


def put_kinds(block: RepBlock, kinds: Sequence[str]) -> None:
    """Give the block just these fixed branches in this order: those it has, and untrained ones, whatever it computes.

    Raises:
        GeometryError: a kind that does not fit.
    """
    held = dict(block.branches.items())
    new = _fresh(block, [kind for kind in kinds if kind not in held])
    searchable = block.branch_set.searchable
    for name in held:
        del block.branches[name]
    block.branches.update({name: held.get(name) or new[name] for name in (*kinds, *searchable)})
    block.branch_set = BranchSet(tuple(kinds), searchable)


def _own(block: RepBlock) -> ConvBranch:
    own = dict(block.branches).get(OWN)
    if not isinstance(own, ConvBranch) or OWN not in block.branch_set.fixed:
        fixed = ", ".join(block.branch_set.fixed) or "none"
        raise GeometryError(f"a block changes around its fixed {OWN} branch; its fixed branches are {fixed}")
    return own


def _fresh(block: RepBlock, kinds: Iterable[str]) -> dict[str, NormedBranch]:
    """Untrained branches for the block, on its device, in its dtype, memory format and mode."""
    wanted = tuple(kinds)
    if not wanted:
        return {}
    own = _own(block)
    placement = replace(placement_of(block, None), branches=BranchSet(wanted))
    made = new_block(own.conv, placement).train(block.training)
    return {name: branch for name, branch in made.branches.items() if isinstance(branch, NormedBranch)}


def _move(own: ConvBranch, branches: Iterable[NormedBranch], x: Tensor, sign: float) -> None:
    """Add the branches' kernels, times `sign`, to the `3x3` branch's."""
    moments: Moments = moments_of(own.conv, own.bn, x)
    parts = [own.kernel(), *(branch.kernel() for branch in branches)]
    one = torch.ones((), dtype=torch.float64, device=x.device)
    running = own.bn.running_mean, own.bn.running_var
    if running[0] is None or running[1] is None:
        raise GeometryError("its batch normalisation keeps no running statistics, so there is nothing to preserve")
    scale, _ = norm_affine(own.bn, running[0], running[1], torch.float64)
    rewrite(own, combine(parts, [one, *[sign * one] * (len(parts) - 1)]), scale, moments, learned=True)
