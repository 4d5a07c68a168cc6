"""A whole network against what it was made of, wherever that runs in float64; formats prove their parts themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .agreement import Agreement, Comparison
from .comparing import comparisons
from .decisions import Recorded
from .float64 import float64_reference
from .leaves import Function, cast, leaves
from .pooling import compare_calls
from .report import Proof, Refusal


def prove_whole(
    original: nn.Module,
    candidate: Function,
    inputs: Sequence[tuple[Any, ...]],
    exact: Function | None = None,
    *,
    proven: bool = False,
) -> Proof:
    """How far `candidate` is from `original` in float64, every output of it; the original's own error stands beside.

    A network that does not run in float64, whatever it makes widened (`float64`), is the reference as it is, and
    `unmeasured` says so.

    Args:
        original: the network to agree with, unchanged.
        candidate: what was made of it.
        inputs: positional arguments, one call's each.
        exact: the candidate in float64, which is compared by itself: the algebra without its rounding.
        proven: as of `compare_calls`.
    """
    reference = float64_reference(original)
    exactly = None if exact is None else float64_reference(exact)
    stored = float64_reference(candidate) if isinstance(candidate, nn.Module) else None
    unmeasured: list[Refusal] = []

    def compare(given: tuple[Any, ...]) -> list[Comparison]:
        where = f"end to end, {' and '.join('x'.join(map(str, t.shape)) for _, t in leaves(given))}"
        try:
            with Recorded() as seen:
                wanted = reference(*given)
            seen.read(wanted)
        except Exception as error:  # noqa: BLE001  # it is the user's own code
            first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            said = f"the network does not run in float64 ({first}); compared with itself in its own precision instead"
            unmeasured.append(Refusal(where, said))
            return list(comparisons(original, candidate, given, where=where, reference_dtype=None))
        # Where the network rounds on purpose, the reference runs again, with what the candidate decided.
        right = reference if seen.decided else _gives(wanted)
        found: list[Comparison] = []
        if exactly is not None:
            widened = cast(given, torch.float64)
            found += comparisons(right, exactly, widened, where=f"{where}, float64")
        found += comparisons(
            right, candidate, given, original=original, where=where, asked=reference.asked, stored=stored
        )
        return found

    found = compare_calls(compare, inputs, proven=proven)
    if reference.rounded:
        said = f"PyTorch has no float64 for {', '.join(sorted(reference.rounded))}; the reference rounds there, too"
        unmeasured.append(Refusal("end to end", said))
    return Proof(Agreement(end_to_end=found), tuple(unmeasured))


def _gives(value: object) -> Function:
    """The function that gives `value`, whatever it is asked: the reference runs once."""
    return lambda *_: value
