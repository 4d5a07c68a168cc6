"""`SearchSpace`: which branches of which blocks of a network a search may switch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from repconv.blocks.block import RepBlock
from repconv.errors import SearchError


class Slot(NamedTuple):
    """One searchable branch: the name of its block in the network, and its kind."""

    block: str
    branch: str


@dataclass(frozen=True)
class SpaceBlock:
    """One block: its module name, the kinds always there, and those a search may switch."""

    name: str
    fixed: tuple[str, ...]
    searchable: tuple[str, ...]


@dataclass(frozen=True)
class SearchSpace:
    """The blocks of a network, in the network's order; hashable, without weights.

    Raises:
        SearchError: no searchable branch, a name twice, or a block without fixed branches, which an architecture could
            leave empty.
    """

    blocks: tuple[SpaceBlock, ...]

    def __post_init__(self) -> None:
        names = [block.name for block in self.blocks]
        if len(set(names)) < len(names):
            raise SearchError(f"a search space names each block once, got {', '.join(names)}")
        for block in self.blocks:
            kinds = block.fixed + block.searchable
            if len(set(kinds)) < len(kinds):
                raise SearchError(f"{block.name}: each branch is named once, got {', '.join(kinds)}")
            if not block.fixed:
                raise SearchError(
                    f"{block.name or 'the model'} has no fixed branch, so an architecture could leave nothing of it; "
                    "expand the network with one, such as fixed=['3x3']"
                )
        if not self.slots:
            raise SearchError("there is nothing to search: no block has searchable branches")

    @classmethod
    def of(cls, model: nn.Module) -> SearchSpace:
        """The space of a network that holds `RepBlock`s, whoever wrote it; a shared block counts once.

        Raises:
            SearchError: it has no blocks, none with searchable branches, or one without fixed branches.
        """
        blocks = tuple(
            SpaceBlock(name, module.branch_set.fixed, module.branch_set.searchable)
            for name, module in model.named_modules()
            if isinstance(module, RepBlock)
        )
        if not blocks:
            raise SearchError(
                f"{type(model).__name__} holds no blocks to search; make its 3x3 convolutions blocks with "
                "repconv.expand(model, branches=[...])"
            )
        return cls(blocks)

    @classmethod
    def of_records(cls, blocks: Iterable[Mapping[str, Any]]) -> SearchSpace:
        """The space of blocks as a run's files hold them: `name`, `fixed`, `searchable`."""
        return cls(tuple(SpaceBlock(b["name"], tuple(b["fixed"]), tuple(b["searchable"])) for b in blocks))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every searchable branch, block after block: the order of masks."""
        return tuple(Slot(block.name, branch) for block in self.blocks for branch in block.searchable)

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """For each slot the position of its block in `blocks`."""
        return tuple(i for i, block in enumerate(self.blocks) for _ in block.searchable)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Every kind of branch in the space, fixed ones first, as they first appear."""
        fixed = [kind for block in self.blocks for kind in block.fixed]
        searchable = [kind for block in self.blocks for kind in block.searchable]
        return tuple(dict.fromkeys(fixed + searchable))

    def budget(self, ratio: float) -> int:
        """`C = round(ratio * N)` active branches (equation 8's `|M| <= C`), halves to even.

        Raises:
            SearchError: a ratio outside (0, 1], or one that leaves no branch.
        """
        if not 0 < ratio <= 1:
            raise SearchError(f"the ratio of active branches is above 0 and at most 1, got {ratio}")
        active = round(ratio * len(self.slots))
        if active < 1:
            raise SearchError(f"a ratio of {ratio} leaves none of {len(self.slots)} branches; take a larger one")
        return active

    def block(self, name: str) -> SpaceBlock:
        """The block of that name.

        Raises:
            SearchError: there is none.
        """
        for block in self.blocks:
            if block.name == name:
                return block
        near = get_close_matches(name, [block.name for block in self.blocks], 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise SearchError(f"the search space has no block {name!r}{hint}")

    def mask(self, active: Mapping[str, Sequence[str]]) -> tuple[bool, ...]:
        """The mask in which exactly the named branches are active; blocks left out have none.

        Raises:
            SearchError: a block or branch the space does not have.
        """
        for name, kinds in active.items():
            known = self.block(name).searchable
            unknown = [kind for kind in kinds if kind not in known]
            if unknown:
                raise SearchError(
                    f"{name} has no searchable branch {unknown[0]!r}; it has {', '.join(known) or 'none'}"
                )
        return tuple(slot.branch in active.get(slot.block, ()) for slot in self.slots)
