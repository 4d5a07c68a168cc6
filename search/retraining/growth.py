"""DyRep: which blocks get branches while a network is trained, and which branches are cut (Huang et al., CVPR 2022).

Training starts from the plain network. Now and then the blocks whose convolutions have mattered most get branches, and
branches whose scale has stayed small are cut, the network computing the same before and after (`expansion.adapting`).

Two things are otherwise than as published. A convolution's saliency is summed over |weight * gradient| (SNIP, one of
the authors' choices): their usual sum without the absolute value is 0 before a batch normalisation, whose output does
not depend on the size of a filter's weights. And a block gets the kinds that it lacks instead of a second block inside.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any, final

import torch
from torch import Tensor, nn

from repconv.blocks.block import BranchSet, RepBlock
from repconv.blocks.branches import ConvBranch, NormedBranch
from repconv.errors import SearchError
from repconv.expansion.adapting import OWN, join, leave, new_branches, put_kinds
from repconv.models.zoo import resolve

from ..supernet.supernet import evaluating

KINDS = ("1x1", "1x1_3x3", "avg", "1x3", "3x1", "skip")
"""What the authors' blocks get; of a network whose name says no other."""
NEW_SHARE = 0.01
"""Of a new branch's scale against that of the 3x3 branch, as theirs; so it has to grow to be kept."""
LEAST_APART = 0.02
"""Standard deviation of the branches' scales in a block below which they are alike and none is cut, as theirs."""


def kinds_to_grow(network: str, branches: Sequence[str] = ()) -> tuple[str, ...]:
    """The kinds that blocks of a network may get beside their 3x3: `branches`, or what the network's name stands for.

    Raises:
        GeometryError: an unknown name.
    """
    own = resolve(network)[1]
    usual = KINDS if own is None else (*own.fixed, *own.searchable)
    return tuple(kind for kind in tuple(branches) or usual if kind != OWN)


@dataclass(frozen=True)
class Change:
    """What one adaptation does: kinds of branches by the name of their block, those that join and those that leave."""

    grown: Mapping[str, tuple[str, ...]]
    cut: Mapping[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)


def most_salient(
    saliency: Mapping[str, float], lacking: Mapping[str, Sequence[str]], count: int
) -> dict[str, tuple[str, ...]]:
    """The `count` blocks of highest saliency among those that lack something, and what; of equal ones the first."""
    asking = [name for name in saliency if lacking[name]]
    return {name: tuple(lacking[name]) for name in sorted(asking, key=lambda name: -saliency[name])[:count]}


def weak(scales: Mapping[str, float], below: float) -> tuple[str, ...]:
    """The branches to cut of a block: under its mean and under `below`, where they are apart at all.

    scales: the mean absolute scale of each branch's last normalisation, over that of the 3x3 branch, which is not among
    them.
    """
    values = list(scales.values())
    if len(values) < 2 or stdev(values) <= LEAST_APART:
        return ()
    return tuple(name for name, value in scales.items() if value < min(mean(values), below))


@final
class Growth:
    """The saliency of a network's blocks since they were last adapted, and their adapting.

    Args:
        model: whose blocks have a fixed `3x3`, in training.
        kinds: that its blocks may get, where they fit.

    Raises:
        SearchError: it holds no blocks, none of the kinds fits one, or a kind comes twice.
        GeometryError: an unknown kind.
    """

    def __init__(self, model: nn.Module, kinds: Sequence[str]) -> None:
        self.model = model
        self.names = [name for name, module in model.named_modules() if isinstance(module, RepBlock)]
        if not self.names:
            raise SearchError(f"{type(model).__name__} has no 3x3 convolution that could grow branches")
        wanted = BranchSet(tuple(map(sys.intern, kinds)))
        self.kinds = {name: wanted.fitting(block_of(model, name).geometry).fixed for name in self.names}
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise SearchError(f"a block has a branch of a kind at most once: {', '.join(twice)} comes twice")
        if not any(self.kinds.values()):
            raise SearchError(
                f"no block can get a branch: expected kinds that fit beside its {OWN}, got {kinds or 'none'}"
            )
        device = next(model.parameters()).device
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self.updates = 0

    @torch.no_grad()
    def note(self) -> None:
        """Add what the gradients of an update say: of each block the sum of |weight * gradient| of its 3x3."""
        weights = [_own(block_of(self.model, name)).conv.weight for name in self.names]
        found = [weight.sum() * 0 if weight.grad is None else (weight * weight.grad).abs().sum() for weight in weights]
        self.sums += torch.stack(found).double()
        self.updates += 1

    def saliency(self) -> dict[str, float]:
        """Of each block, the mean over the updates since the last adaptation."""
        return dict(zip(self.names, (self.sums / max(1, self.updates)).tolist(), strict=True))

    def change(self, blocks: int, cut_below: float) -> Change:
        """What is to be done now: `blocks` blocks grow, in the others branches below `cut_below` are cut."""
        held = {name: block_of(self.model, name) for name in self.names}
        lacking = {n: [kind for kind in self.kinds[n] if kind not in block.branches] for n, block in held.items()}
        grown = most_salient(self.saliency(), lacking, blocks)
        cut = {n: weak(_scales(block), cut_below) for n, block in held.items() if n not in grown}
        return Change(grown, {name: kinds for name, kinds in cut.items() if kinds})

    def forget(self) -> None:
        """Begin to note anew."""
        self.sums.zero_()
        self.updates = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: the saliency, and the branches of every block."""
        blocks = {name: list(block_of(self.model, name).branch_set.fixed) for name in self.names}
        return {"sums": self.sums, "updates": self.updates, "blocks": blocks}

    def put_state(self, state: Mapping[str, Any]) -> None:
        """What `state` gave; new branches have any numbers."""
        self.sums.copy_(state["sums"])
        self.updates = state["updates"]


def put_structure(model: nn.Module, blocks: Mapping[str, Sequence[str]]) -> None:
    """Give each block just these branches, new ones of any numbers; torch's generator goes on as if nothing was."""
    with torch.random.fork_rng(devices=[]):
        for name, kinds in blocks.items():
            # The very texts that were there before, as files of equal networks hold the same bytes then.
            put_kinds(block_of(model, name), tuple(map(sys.intern, kinds)))


@torch.no_grad()
def apply_change(models: Sequence[nn.Module], change: Change, images: Tensor, seed: int) -> None:
    """Adapt the first of `models`, and the others, its averages, likewise: new branches are the same in all of them.

    Every one computes in evaluation what it did.

    Args:
        models: of the same blocks, on one device.
        change: what to do.
        images: [n, c, h, w], as the network gets them; by what blocks make of them, statistics are measured.
        seed: of new weights. Torch's own generator goes on as if nothing had been.
    """
    made: dict[str, dict[str, NormedBranch]] = {}
    for model in models:
        with evaluating(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            seen = _inputs(model, (*change.grown, *change.cut), images)
            for name, kinds in change.grown.items():
                block, x = block_of(model, name), seen[name]
                if name in made:
                    join(block, {kind: copy.deepcopy(branch).eval() for kind, branch in made[name].items()}, x)
                else:
                    made[name] = new_branches(block, kinds, x, NEW_SHARE)
                    join(block, made[name], x)
            for name, kinds in change.cut.items():
                leave(block_of(model, name), kinds, seen[name])
        for name in change.grown:
            block = block_of(model, name)
            block.train(block.training)


def _inputs(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """What the named modules are given when the network is run on the images."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0].detach()})
        )
        for name in names
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _scales(block: RepBlock) -> dict[str, float]:
    """The mean absolute scale of each fixed branch but the 3x3, over that of the 3x3."""
    found = {name: _scale(block.branches[name]) for name in block.branch_set.fixed}
    own = found.pop(OWN)
    return {name: value / own if own else float("inf") for name, value in found.items()}


def _scale(branch: nn.Module) -> float:
    assert isinstance(branch, NormedBranch)  # noqa: S101  # ModuleDict forgets what it holds
    return float(branch.norm.weight.detach().double().abs().mean())


def block_of(model: nn.Module, name: str) -> RepBlock:
    """The block of that name."""
    block = model.get_submodule(name)
    assert isinstance(block, RepBlock)  # noqa: S101  # named where it was found
    return block


def _own(block: RepBlock) -> ConvBranch:
    own = block.branches[OWN]
    assert isinstance(own, ConvBranch)  # noqa: S101  # of that kind
    return own
