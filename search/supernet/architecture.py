"""`Architecture`: a frozen mask over a search space, by names in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from repconv.errors import SearchError

from .space import SearchSpace, SpaceBlock

SCHEMA = "repconv.arch/1"


@dataclass(frozen=True)
class Architecture:
    """Which searchable branches are active: one flag a slot of `space`, in its order.

    It is given to a supernet and never left inside it.

    Raises:
        SearchError: another number of flags than slots.
    """

    space: SearchSpace
    mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.mask) != len(self.space.slots):
            raise SearchError(f"a mask has one flag a slot: expected {len(self.space.slots)}, got {len(self.mask)}")

    @classmethod
    def full(cls, space: SearchSpace) -> Architecture:
        """Every branch active."""
        return cls(space, (True,) * len(space.slots))

    @property
    def size(self) -> int:
        """Active branches."""
        return sum(self.mask)

    @cached_property
    def active(self) -> Mapping[str, tuple[str, ...]]:
        """The active branches of every block, by its name."""
        found: dict[str, list[str]] = {block.name: [] for block in self.space.blocks}
        for slot, on in zip(self.space.slots, self.mask, strict=True):
            if on:
                found[slot.block].append(slot.branch)
        return {name: tuple(kinds) for name, kinds in found.items()}

    def on(self, space: SearchSpace) -> Architecture:
        """The same architecture over `space`, which may list its blocks and branches in another order.

        Raises:
            SearchError: the spaces differ, named with the first difference.
        """
        if space == self.space:
            return self
        mine, theirs = ({block.name: block for block in s.blocks} for s in (self.space, space))
        for name in dict.fromkeys([*mine, *theirs]):
            if name not in mine or name not in theirs:
                where = "the network" if name not in theirs else "the architecture"
                raise SearchError(f"the architecture is of another network: {where} has no block {name!r}")
            for what in ("fixed", "searchable"):
                here, there = (set(getattr(blocks[name], what)) for blocks in (mine, theirs))
                if here != there:
                    raise SearchError(
                        f"the architecture is of another network: {name} has the {what} branches "
                        f"{', '.join(sorted(there)) or 'none'}, the architecture {', '.join(sorted(here)) or 'none'}"
                    )
        return Architecture(space, space.mask(self.active))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, by names: schema `repconv.arch/1`."""
        active = self.active
        blocks = {
            block.name: {
                "fixed": list(block.fixed),
                "searchable": list(block.searchable),
                "active": list(active[block.name]),
            }
            for block in self.space.blocks
        }
        return {"schema": SCHEMA, "blocks": blocks}


def architecture_from_dict(content: Any, where: str = "the architecture") -> Architecture:  # noqa: ANN401  # of a file
    """The architecture in what `Architecture.to_dict` made; other keys are left to their readers.

    Raises:
        SearchError: not of this schema, or it contradicts itself.
    """
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise SearchError(f"{where} is not of schema {SCHEMA}, got {found!r}; write one with repconv search run")
    try:
        blocks = content["blocks"]
        space = SearchSpace(
            tuple(
                SpaceBlock(str(name), _names(block["fixed"]), _names(block["searchable"]))
                for name, block in blocks.items()
            )
        )
        return Architecture(space, space.mask({name: _names(block["active"]) for name, block in blocks.items()}))
    except (KeyError, TypeError, AttributeError) as error:
        raise SearchError(f"{where} makes no sense: {type(error).__name__}: {error}") from error
    except SearchError as error:
        raise SearchError(f"{where}: {error}") from None


def _names(values: Any) -> tuple[str, ...]:  # noqa: ANN401  # of a file
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"expected a list of branch names, got {values!r}")
    return tuple(values)


def read_json(path: str | Path) -> Any:  # noqa: ANN401  # whatever the file holds
    """What a JSON file holds.

    Raises:
        SearchError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SearchError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except (ValueError, RecursionError) as error:
        raise SearchError(f"{path} is no JSON: {error}") from error
