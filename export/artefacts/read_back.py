"""What was read back of a file that was built: how many of its layers are stored or computed in which type."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from repconv.errors import BuildError

FLOATS = {"fp32": "float32", "fp16": "float16"}
"""What tensors are stored in, by precision."""


def counted(kinds: Mapping[str, int]) -> str:
    """How many of each kind, in words."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def require_type(kinds: Mapping[str, int], wanted: str, *, what: str, who: str, besides: Collection[str] = ()) -> None:
    """Insist that layers came out in the type that was asked for.

    Args:
        kinds: of layers, each beginning with its type.
        wanted: the type.
        what: they are, and who has them, in words.
        who: as said.
        besides: types that may be there, too.

    Raises:
        BuildError: one is of another type.
    """
    if {kind.partition(" ")[0] for kind in kinds} - {wanted, *besides}:
        raise BuildError(f"asked for {wanted} {what}, {who} has {counted(kinds)}")
