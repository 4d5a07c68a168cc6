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

from .dispatch import EveryCall, each, parts

_STEPS = frozenset(("round", "floor", "ceil", "trunc", "frac", "fix", "floor_divide"))
"""Floats a step of 1 apart."""

_JUMPS = frozenset(("sign", "sgn", "heaviside", "threshold", "hardshrink", "histc"))
"""Floats that jump, however far; they are taken whole."""

_UNMOVED = ("_like", "new_", "isnan", "isinf", "isfinite", "isneginf", "isposinf", "_shape_as_tensor", "view")
"""Parts of names of operations that read no value of floats, or none that rounding moves, to make whole numbers."""


@dataclass(kw_only=True)
class DecidedCall:
    """One call: the operation, the floating-point tensors it read, what it gave, and how large a step of it is.

    settings: what else it was told, such as a threshold or an axis, in words.
    step: a number, or one for every value given (it broadcasts); None where it is a choice, which has no size.
    made: the decided ones among the tensors it gave; floats that were chosen, such as a maximum, are none.
    used: whether anything read what was decided; nobody asks a pooling layer where its maxima lay.
    """

    name: str
    given: tuple[Tensor, ...]
    settings: str
    step: Tensor | None
    made: tuple[Tensor, ...]
    used: bool = False


def _name(func: Any) -> str:  # noqa: ANN401  # whatever is called
    name = str(func._schema.name).rpartition("::")[2]  # noqa: SLF001  # which torch offers under no other name
    return name.rstrip("_")


def _step(name: str, args: Any, kwargs: Any) -> Tensor | None:  # noqa: ANN401  # of any operation
    """How far neighbouring results of an operation that gives floats in steps are apart; None if it gives none."""

    def told(index: int, key: str) -> Any:  # noqa: ANN401
        return args[index] if len(args) > index else kwargs[key]

    if name.startswith("fake_quantize_per_"):
        scale = torch.as_tensor(told(1, "scale")).double()
        if scale.dim() == 0 or scale.numel() == 1:
            return scale.reshape(())
        return scale.reshape([-1 if axis == told(3, "axis") else 1 for axis in range(told(0, "self").dim())])
    if name in ("remainder", "fmod"):
        return torch.as_tensor(told(1, "other")).double().abs()
    in_steps = name in _STEPS or (name == "div" and kwargs.get("rounding_mode"))
    return torch.ones((), dtype=torch.float64) if in_steps else None


def _decision(func: Any, args: Any, kwargs: Any, gave: Any) -> DecidedCall | None:  # noqa: ANN401  # whatever is called
    """The call as a decision, None if it is none: it read floats, and gave whole numbers or floats in steps."""
    tensors, name = tuple(t for t in parts(gave) if isinstance(t, Tensor)), _name(func)
    step, jumps = _step(name, args, kwargs), name in _JUMPS
    if not tensors or (step is None and not jumps and all(t.is_floating_point() for t in tensors)):
        return None
    read = parts((args, kwargs))
    given = tuple(t for t in read if isinstance(t, Tensor) and t.is_floating_point())
    if not given:
        return None
    settings = str([a for a in read if not isinstance(a, Tensor | torch.dtype)])
    if step is not None or jumps:
        return DecidedCall(
            name=name, given=given[:1] if "quantize" in name else given, settings=settings, step=step, made=tensors
        )
    made = tuple(t for t in tensors if not t.is_floating_point() and not t.is_complex())
    if not made or any(part in name for part in _UNMOVED):
        return None
    step = torch.ones((), dtype=torch.float64) if name == "_to_copy" or "quantize" in name else None
    return DecidedCall(
        name=name, given=given[:1] if "quantize" in name else given, settings=settings, step=step, made=made
    )


class Recorded(EveryCall):
    """Inside, decisions are noted, in order, and the types of floating point that numbers are made in."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[DecidedCall] = []
        self._makers: dict[int, DecidedCall] = {}
        self.types: set[torch.dtype] = set()

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # of torch
        """Run `func`, and note it if it decides."""
        self.read((args, kwargs))
        before = _kept(func, args, kwargs)
        gave = func(*args, **kwargs)
        found = _decision(func, *before, gave)
        if found is not None:
            self.noted.append(found)
            self._makers.update((id(t), found) for t in found.made)
        made = (t for t in parts(gave) if isinstance(t, Tensor))
        self.types |= {t.dtype for t in made if t.is_floating_point()}
        return gave

    def read(self, values: object) -> None:
        """Take note that these are used."""
        for value in parts(values):
            if id(value) in self._makers:
                self._makers[id(value)].used = True

    @property
    def decided(self) -> bool:
        """Whether any decision mattered: what it gave was used."""
        return any(decision.used for decision in self.noted)


def _kept(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:  # noqa: ANN401
    """The arguments as they are before the call, which may write into some of them."""
    if not func._schema.is_mutable:  # noqa: SLF001  # which torch offers under no other name
        return args, kwargs
    kept: tuple[Any, Any] = each(lambda part: part.clone() if isinstance(part, Tensor) else part, (args, kwargs))
    return kept


@dataclass(frozen=True, kw_only=True)
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

    def __init__(self, decisions: Sequence[DecidedCall]) -> None:
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
        before = _kept(func, args, kwargs)
        gave = func(*args, **kwargs)
        mine = _decision(func, *before, gave)
        if mine is None or not self._alike:
            return gave
        theirs = self._left.pop(0) if self._left else None
        same = theirs is not None and (theirs.name, theirs.settings) == (mine.name, mine.settings)
        if theirs is None or not same or _shapes(theirs.made) != _shapes(mine.made):
            self._alike = False
            return gave
        if not theirs.used:
            return gave
        taken = [_with_their_steps(a, b, theirs.step) for a, b in zip(mine.made, theirs.made, strict=True)]
        self.flipped.append(
            Flipped(
                name=mine.name,
                reference=mine.given,
                run=theirs.given,
                differing=sum(int((steps != 0).sum()) for _, steps in taken),
                values=sum(steps.numel() for _, steps in taken),
                by_one_step=theirs.step is None or all(bool((steps.abs() <= 1).all()) for _, steps in taken),
            )
        )
        if func._schema.is_mutable:  # noqa: SLF001  # what is written into is what others read
            for written, (right, _) in zip(mine.made, taken, strict=True):
                written.copy_(right)
            return gave
        by_id = {id(t): right for t, (right, _) in zip(mine.made, taken, strict=True)}
        return each(lambda part: by_id.get(id(part), part), gave)


def _with_their_steps(mine: Tensor, theirs: Tensor, step: Tensor | None) -> tuple[Tensor, Tensor]:
    """What `mine` is with the decisions of `theirs`, and by how many steps each value moves.

    Between jumps of a known size, such as those of a remainder, the numbers stay `mine`.
    """
    apart = _numbers(theirs) - _numbers(mine)
    if step is None or not mine.is_floating_point():
        return theirs.to(mine.dtype), apart
    steps = torch.nan_to_num(apart / step).round()
    return (mine.double() + steps * step).to(mine.dtype), steps


def _numbers(t: Tensor) -> Tensor:
    """As numbers that may be subtracted; of quantised tensors, how many steps."""
    return (t.int_repr() if t.is_quantized else t).double()


def _shapes(tensors: Sequence[Tensor]) -> list[torch.Size]:
    return [t.shape for t in tensors]
