"""Operations that round on purpose: what one run decided is replayed in another, and the steps that differ are counted.

Rounding, quantising, comparing and choosing turn a difference of 1e-7 into a whole step. Two right forms of a network
then differ by steps, and all that follows differs, too. So the float64 reference takes what the other run decided; what
is compared is what the decisions were made of, and a decision may be off by one step only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .dispatch import EveryCall

_STEPS = frozenset(("round", "floor", "ceil", "trunc", "frac", "sign", "sgn", "fix"))
_CHOICES = frozenset(
    ("argmax", "argmin", "topk", "sort", "gt", "lt", "ge", "le", "eq", "ne", "bucketize", "searchsorted", "nonzero"),
)
_FAKE = "fake_quantize_per_"


@dataclass(frozen=True)
class Decision:
    """One call: the operation, the floating-point tensors it read, what it gave, and how large a step of it is.

    settings: what else it was told, such as a threshold or an axis, in words.
    step: None where what it gives is a choice, which has no size.
    """

    name: str
    given: tuple[Tensor, ...]
    gave: Any
    settings: str
    step: float | None


def _decision(func: Any, args: Any, kwargs: Any, gave: Any) -> Decision | None:  # noqa: ANN401  # whatever is called
    """The call as a decision, None if it is none."""
    name = str(func).removeprefix("aten.").partition(".")[0].rstrip("_")
    given = tuple(t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point())
    if not given:
        return None
    told = [a for a in _pytree.tree_leaves((args, kwargs)) if not isinstance(a, Tensor | torch.dtype)]
    if name.startswith(_FAKE):
        scale = args[1] if len(args) > 1 else kwargs.get("scale", 1.0)
        return Decision(name, given[:1], gave, str(told), float(torch.as_tensor(scale).max()))
    whole = name == "_to_copy" and isinstance(gave, Tensor) and not gave.is_floating_point() and not gave.is_complex()
    if name in _STEPS or whole:
        return Decision(name, given, gave, str(told), 1.0)
    return Decision(name, given, gave, str(told), None) if name in _CHOICES else None


class Recorded(EveryCall):
    """Inside, decisions are noted, in order, and the types of floating point that numbers are made in."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[Decision] = []
        self.types: set[torch.dtype] = set()

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # of torch
        """Run `func`, and note it if it decides."""
        gave = func(*args, **kwargs)
        found = _decision(func, args, kwargs, gave)
        if found is not None:
            self.decisions.append(found)
        made = (t for t in _pytree.tree_leaves(gave) if isinstance(t, Tensor))
        self.types |= {t.dtype for t in made if t.is_floating_point()}
        return gave


@dataclass(frozen=True)
class Flipped:
    """A decision in both runs: what each was made of, how many values differ of how many, and whether by one step."""

    name: str
    reference: tuple[Tensor, ...]
    run: tuple[Tensor, ...]
    differing: int
    values: int
    by_one_step: bool


class Replayed(EveryCall):
    """Inside, operations give what they gave in another run, as long as the same ones come in the same order."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        super().__init__()
        self._left = list(decisions)
        self._alike = True
        self.flipped: list[Flipped] = []

    @property
    def complete(self) -> bool:
        """Whether both runs made the same decisions, each of the same shapes and settings."""
        return self._alike and not self._left

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # of torch
        """Run `func`, or give what it gave."""
        gave = func(*args, **kwargs)
        mine = _decision(func, args, kwargs, gave)
        if mine is None or not self._alike:
            return gave
        theirs = self._left.pop(0) if self._left else None
        same = theirs is not None and (theirs.name, theirs.settings) == (mine.name, mine.settings)
        if theirs is None or not same or _shapes(theirs.gave) != _shapes(gave):
            self._alike = False
            return gave
        pairs = list(zip(_pytree.tree_leaves(gave), _pytree.tree_leaves(theirs.gave), strict=True))
        tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor)]
        off = [(a.double() - b.double()).abs() for a, b in tensors]
        limit = None if theirs.step is None else 1.001 * theirs.step
        self.flipped.append(
            Flipped(
                mine.name,
                mine.given,
                theirs.given,
                sum(int((o > 0).sum()) for o in off),
                sum(o.numel() for o in off),
                limit is None or all(bool((o <= limit).all()) for o in off),
            )
        )
        back = [b.to(a.dtype) if isinstance(a, Tensor) else b for a, b in pairs]
        return _pytree.tree_unflatten(back, _pytree.tree_structure(gave))


def _shapes(value: Any) -> list[Any]:  # noqa: ANN401  # what an operation gave
    return [t.shape if isinstance(t, Tensor) else None for t in _pytree.tree_leaves(value)]
