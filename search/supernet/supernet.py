"""A network with blocks as a supernet: run at an architecture, its gates, the sub-network of one architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from repconv.blocks.block import BranchSet, RepBlock
from repconv.blocks.copies import copied
from repconv.errors import SearchError

from .architecture import Architecture
from .space import SearchSpace


@dataclass(frozen=True)
class Gates:
    """The gates before their logistic function: `alpha` one a slot, `beta` one a block (0 where it has no gate)."""

    alpha: tuple[float, ...]
    beta: tuple[float, ...]

    @classmethod
    def of_record(cls, content: Mapping[str, Sequence[float]], space: SearchSpace, where: str) -> Gates:
        """The gates of `space` as a run's files hold them, `alpha` and `beta`.

        Raises:
            SearchError: they are of another space; `where` says whose.
        """
        gates = cls(tuple(content["alpha"]), tuple(content["beta"]))
        if (len(gates.alpha), len(gates.beta)) != (len(space.slots), len(space.blocks)):
            raise SearchError(
                f"{where} has gates of {len(gates.alpha)} branches in {len(gates.beta)} blocks, expected "
                f"{len(space.slots)} in {len(space.blocks)}"
            )
        return gates

    def factors(self, space: SearchSpace) -> list[float]:
        """`s(beta) s(alpha)` of every slot of `space`, s the logistic: what each branch's output is multiplied with."""
        alpha, beta = (torch.tensor(values, dtype=torch.float64).sigmoid() for values in (self.alpha, self.beta))
        found: list[float] = (alpha * beta[torch.tensor(space.owners)]).tolist()
        return found


@final
class Supernet:
    """Any module that holds `RepBlock`s; the module is used as it is, and no architecture is left inside it.

    Raises:
        SearchError: see `SearchSpace.of`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.space = SearchSpace.of(model)
        self.blocks = {block.name: _block(model, block.name) for block in self.space.blocks}

    def __call__(self, architecture: Architecture, *inputs: Any) -> Any:  # noqa: ANN401  # the network's own
        """What the network makes of `inputs` with only the branches of `architecture`.

        Branches left out are not computed, and their parameters get no gradient (`None`). One call at a time: the
        blocks are told by hooks that live as long as the call.

        Raises:
            SearchError: the architecture is of another network.
        """
        active = architecture.on(self.space).active
        with ExitStack() as hooks:
            for name, block in self.blocks.items():
                handle = block.register_forward_pre_hook(_tell(active[name]), with_kwargs=True)
                hooks.callback(handle.remove)
            return self.model(*inputs)

    def gates(self) -> Gates:
        """The gates as they are now."""
        alpha = [self.blocks[slot.block].alpha[slot.branch] for slot in self.space.slots]
        beta = [block.beta for block in self.blocks.values()]
        return Gates(
            tuple(float(a.detach()) for a in alpha), tuple(0.0 if b is None else float(b.detach()) for b in beta)
        )

    def put_gates(self, gates: Gates) -> None:
        """Set the gates.

        Raises:
            SearchError: not one alpha a slot and one beta a block.
        """
        if len(gates.alpha) != len(self.space.slots) or len(gates.beta) != len(self.space.blocks):
            raise SearchError(
                f"expected {len(self.space.slots)} alphas and {len(self.space.blocks)} betas, "
                f"got {len(gates.alpha)} and {len(gates.beta)}"
            )
        with torch.no_grad():
            for slot, value in zip(self.space.slots, gates.alpha, strict=True):
                self.blocks[slot.block].alpha[slot.branch].fill_(value)
            for block, value in zip(self.blocks.values(), gates.beta, strict=True):
                if block.beta is not None:
                    block.beta.fill_(value)

    def gate_parameters(self) -> list[nn.Parameter]:
        """Every alpha and beta."""
        found: list[nn.Parameter] = []
        for block in self.blocks.values():
            found += list(block.alpha.values())
            found += [] if block.beta is None else [block.beta]
        return found

    def weights(self) -> list[nn.Parameter]:
        """Every parameter that is no gate."""
        gates = {id(parameter) for parameter in self.gate_parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in gates]


def subnetwork(model: nn.Module, architecture: Architecture) -> nn.Module:
    """A copy of `model` whose blocks hold only the branches of `architecture`, gates and statistics included.

    Raises:
        SearchError: the architecture is of another network.
    """
    supernet = Supernet(model)
    active = architecture.on(supernet.space).active
    return copied(model, {block: _reduced(block, active[name]) for name, block in supernet.blocks.items()})


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode, and afterwards every module in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _tell(active: tuple[str, ...]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    return lambda _module, inputs, keywords: (inputs, {**keywords, "active": active})


def _block(model: nn.Module, name: str) -> RepBlock:
    block = model.get_submodule(name)
    assert isinstance(block, RepBlock)  # noqa: S101  # SearchSpace.of found it there
    return block


def _reduced(block: RepBlock, active: tuple[str, ...]) -> RepBlock:
    """A copy of `block` with the searchable branches `active` alone."""
    reduced = copy.deepcopy(block)
    for name in block.branch_set.searchable:
        if name not in active:
            del reduced.branches[name]
            del reduced.alpha[name]
    reduced.branch_set = BranchSet(block.branch_set.fixed, block.chosen(active))
    if not active:
        reduced.beta = None
    return reduced
