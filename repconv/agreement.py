"""How far two forms of a network are apart, and whether that is rounding or a mistake.

Random deep networks amplify rounding, so a bare end-to-end difference proves little. Every comparison here has a
float64 reference, and beside the candidate's error stands the error the original makes in the same dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .errors import VerificationError

Function = Callable[[Tensor], Tensor]

FLOORS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Errors that are always accepted, relative to the output's scale: 1e-5 is about 80 float32 roundings; half precisions
get 8 roundings, being used for storage and not for sums; float64 leaves room for what depth amplifies."""

OWN_ERROR_FACTOR = 2.0
"""A candidate may be at most this many times as far from the reference as the original is in the same dtype."""


@dataclass(frozen=True)
class Difference:
    """How far an output is from its reference.

    max_absolute: largest absolute difference.
    to_scale: that, over the root mean square of the reference.
    to_channel: largest difference over the standard deviation of its own channel (axis 1 of maps; vectors count as
        one channel). Channels that vary less than a thousandth of the whole count as varying by that much.
    """

    max_absolute: float
    to_scale: float
    to_channel: float

    @property
    def finite(self) -> bool:
        """False as soon as the output holds NaN or Inf."""
        return math.isfinite(self.max_absolute)


@dataclass(frozen=True)
class Comparison:
    """One candidate against one reference: `where`, on inputs of `shape`, and the `tolerance` on `error.to_scale`.

    `own` is the original's error in the candidate's dtype, where the original is not the reference itself.
    """

    where: str
    shape: tuple[int, ...]
    dtype: str
    error: Difference
    own: Difference | None
    tolerance: float
    reason: str

    @property
    def passed(self) -> bool:
        """True if the error is finite and within the tolerance."""
        return self.error.finite and self.error.to_scale <= self.tolerance


@dataclass(frozen=True)
class Agreement:
    """Comparisons block by block and end to end."""

    blocks: tuple[Comparison, ...] = ()
    end_to_end: tuple[Comparison, ...] = ()

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All of them."""
        return self.blocks + self.end_to_end

    @property
    def passed(self) -> bool:
        """True if there is anything to compare and every comparison passed."""
        return bool(self.comparisons) and all(c.passed for c in self.comparisons)

    @property
    def worst_block(self) -> Comparison | None:
        """The block nearest to, or furthest over, its tolerance."""
        return _worst(self.blocks)

    @property
    def worst_end_to_end(self) -> Comparison | None:
        """The end-to-end comparison nearest to, or furthest over, its tolerance."""
        return _worst(self.end_to_end)

    @property
    def verdict(self) -> str:
        """One sentence: equal within which tolerance and why, or where not."""
        if not self.comparisons:
            return "nothing was compared"
        failed = [c for c in self.comparisons if not c.passed]
        if not failed:
            worst = _worst(self.comparisons)
            assert worst is not None  # noqa: S101  # comparisons is not empty
            return (
                f"equal: all {len(self.comparisons)} comparisons within tolerance, the nearest to it {worst.where} "
                f"at {worst.error.to_scale:.1e} of {worst.tolerance:.1e} ({worst.reason})"
            )
        worst = _worst(failed)
        assert worst is not None  # noqa: S101
        found = f"{worst.error.to_scale:.1e}" if worst.error.finite else "NaN or Inf"
        return (
            f"NOT equal: {len(failed)} of {len(self.comparisons)} comparisons failed, the worst {worst.where} "
            f"with {found}, tolerance {worst.tolerance:.1e} ({worst.reason})"
        )

    def require(self, what: str) -> None:
        """Insist that `what` was compared and passed.

        Raises:
            VerificationError: it did not; the message is the verdict.
        """
        if not self.passed:
            raise VerificationError(f"{what}: {self.verdict}; nothing was written")

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON, verdict included."""
        return {"passed": self.passed, "verdict": self.verdict, **asdict(self)}


def _worst(comparisons: Sequence[Comparison]) -> Comparison | None:
    return max(
        comparisons,
        key=lambda c: c.error.to_scale / c.tolerance if c.error.finite else math.inf,
        default=None,
    )


def difference(reference: Tensor, candidate: Tensor) -> Difference:
    """How far `candidate` is from `reference`, both [n, c, ...] of one shape, computed in float64.

    NaN and Inf in either give an infinite difference.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"outputs differ in shape: {tuple(reference.shape)} against {tuple(candidate.shape)}")
    wanted, got = reference.detach().double(), candidate.detach().double().to(reference.device)
    error = (got - wanted).abs()
    if not bool(torch.isfinite(error).all()):
        return Difference(math.inf, math.inf, math.inf)
    channels, errors = (t.transpose(0, 1).flatten(1) if t.dim() > 2 else t.reshape(1, -1) for t in (wanted, error))
    spread = channels.std(1, correction=0).clamp_min(1e-3 * float(channels.std(correction=0)))
    by_channel = errors.amax(1)
    return Difference(
        float(error.max()),
        _ratio(float(error.max()), float(wanted.square().mean().sqrt())),
        max(_ratio(float(e), float(s)) for e, s in zip(by_channel, spread, strict=True)),
    )


def _ratio(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale else math.inf


def compare(
    reference: Function,
    candidate: Function,
    inputs: Tensor,
    *,
    original: Function | None = None,
    where: str = "end to end",
) -> Comparison:
    """Run `candidate` on `inputs` and `reference` on the same inputs in float64, and judge the difference.

    Args:
        reference: the function to agree with, given float64 inputs.
        candidate: the function in question, given `inputs` as they are.
        inputs: [n, c, h, w]; their dtype sets the tolerance.
        original: what the candidate was made from, in the inputs' dtype: it shows, and excuses, rounding that was
            there before.
        where: a label for the result.

    Raises:
        ValueError: outputs of different shapes.
    """
    with torch.no_grad():
        wanted = reference(inputs.double())
        error = difference(wanted, candidate(inputs))
        own = None if original is None else difference(wanted, original(inputs))
    tolerance, reason = _tolerance(inputs.dtype, own)
    dtype = str(inputs.dtype).removeprefix("torch.")
    return Comparison(where, tuple(inputs.shape), dtype, error, own, tolerance, reason)


def _tolerance(dtype: torch.dtype, own: Difference | None) -> tuple[float, str]:
    """What is accepted, relative to the output's scale, and why."""
    floor = FLOORS[dtype]
    if own is None or not own.finite or OWN_ERROR_FACTOR * own.to_scale <= floor:
        return floor, f"the floor for {str(dtype).removeprefix('torch.')}"
    return OWN_ERROR_FACTOR * own.to_scale, f"{OWN_ERROR_FACTOR:g} x the unfused model's own error"
