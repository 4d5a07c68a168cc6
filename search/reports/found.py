"""`Found`: an architecture with what retraining needs beside it, as one `repconv.arch/1` file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repconv.errors import SearchError

from ..supernet.architecture import Architecture, architecture_from_dict, read_json
from ..supernet.records import FOUND, require
from ..supernet.space import SearchSpace
from ..supernet.supernet import Gates


@dataclass(frozen=True, kw_only=True)
class Found:
    """network: the arguments of `build_network`; gates: as the search left them; accuracy: on the validation split.

    searched: the settings of the search that found it, None where that is not known.
    """

    architecture: Architecture
    network: Mapping[str, Any]
    gates: Gates
    accuracy: float
    searched: Mapping[str, Any] | None = None

    def on(self, space: SearchSpace) -> Found:
        """The same over `space`, which may list its blocks and branches in another order.

        Raises:
            SearchError: the spaces differ.
        """
        mine = self.architecture.space
        alpha = dict(zip(mine.slots, self.gates.alpha, strict=True))
        beta = dict(zip((block.name for block in mine.blocks), self.gates.beta, strict=True))
        architecture = self.architecture.on(space)
        gates = Gates(tuple(alpha[slot] for slot in space.slots), tuple(beta[block.name] for block in space.blocks))
        return replace(self, architecture=architecture, gates=gates)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; gates by names, as the branches."""
        space = self.architecture.space
        alphas: dict[str, dict[str, float]] = {block.name: {} for block in space.blocks}
        for slot, value in zip(space.slots, self.gates.alpha, strict=True):
            alphas[slot.block][slot.branch] = value
        gates = {
            block.name: {"beta": beta, "alpha": alphas[block.name]}
            for block, beta in zip(space.blocks, self.gates.beta, strict=True)
        }
        return {
            **self.architecture.to_dict(),
            "network": dict(self.network),
            "gates": gates,
            "validation_accuracy": self.accuracy,
            **({} if self.searched is None else {"search": dict(self.searched)}),
        }


def read_found(path: str | Path) -> Found:
    """The file a search wrote.

    Raises:
        SearchError: it cannot be read, or lacks the network or the gates.
    """
    return found_from_dict(read_json(path), str(path))


def found_from_dict(content: Any, where: str) -> Found:  # noqa: ANN401  # of a file
    """What `Found.to_dict` made.

    Raises:
        SearchError: it lacks the network or the gates, or contradicts itself.
    """
    architecture = architecture_from_dict(content, where)
    space = architecture.space
    require(content, FOUND, where)
    try:
        gates = content["gates"]
        alpha = tuple(float(gates[slot.block]["alpha"][slot.branch]) for slot in space.slots)
        beta = tuple(float(gates[block.name]["beta"]) for block in space.blocks)
        return Found(
            architecture=architecture,
            network=content["network"],
            gates=Gates(alpha, beta),
            accuracy=float(content["validation_accuracy"]),
            searched=content.get("search"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SearchError(
            f"{where} holds an architecture but not what a search adds ({type(error).__name__}: {error}); retraining "
            "needs its network and gates"
        ) from error
