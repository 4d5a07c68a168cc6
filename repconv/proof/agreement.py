"""How far two forms of a network are apart, as values: differences, comparisons, and the verdict over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import VerificationError


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an output is from its reference.

    max_absolute: largest absolute difference.
    to_scale: that, over the root mean square of the reference.
    to_channel: largest difference over the standard deviation of its own channel (axis 1 of maps; vectors count as
        one channel). Channels that vary less than a thousandth of the whole count as varying by that much.
    rms: root mean square difference over the root mean square of the reference.
    """

    max_absolute: float
    to_scale: float
    to_channel: float
    rms: float = 0.0

    @property
    def finite(self) -> bool:
        """False as soon as the output holds NaN or Inf."""
        return math.isfinite(self.max_absolute)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One output of a candidate against a reference's: `where`, on inputs of `shape`; `tolerance` on `error.to_scale`.

    own: the original's error in the candidate's dtype, where the original is not the reference itself.
    path: of this output among several, such as `out.boxes` or `[0]`; empty for a lone tensor.
    mismatch: in words, why there is nothing to subtract: an output only one side has, other shapes, other types.
    undecided: in words, why the numbers say nothing: the original's own error is above the `ceiling` of its type.
    stored: what the candidate's numbers, as they are stored, make in float64: the error of rounding them alone, looked
        at only where one that is larger than allowed has to be explained.
    pooled: where several calls are judged together (`pooling`), their error in the mean and what of it is allowed.
    """

    where: str
    shape: tuple[int, ...]
    dtype: str
    error: Difference
    own: Difference | None
    tolerance: float
    reason: str
    path: str = ""
    mismatch: str | None = None
    undecided: str | None = None
    pooled: tuple[float, float] | None = None
    ceiling: float = math.inf
    stored: Difference | None = None

    @property
    def passed(self) -> bool:
        """True if the error is finite and within the tolerance, alone or together with other calls."""
        if self.mismatch is not None or self.undecided is not None or not self.error.finite:
            return False
        return self.error.to_scale <= self.tolerance or (self.pooled is not None and self.pooled[0] <= self.pooled[1])

    @property
    def place(self) -> str:
        """Where, and which output."""
        return f"{self.where}, {self.path}" if self.path else self.where

    @property
    def found(self) -> str:
        """The error, or why there is none, in words."""
        return self.mismatch or (f"{self.error.to_scale:.1e}" if self.error.finite else "NaN or Inf")


@dataclass(frozen=True)
class Agreement:
    """Comparisons block by block and end to end.

    partial: whether blocks are left out that could not be measured, so that the others cannot carry the verdict alone.
    """

    blocks: tuple[Comparison, ...] = ()
    end_to_end: tuple[Comparison, ...] = ()
    partial: bool = False

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All of them."""
        return self.blocks + self.end_to_end

    @property
    def passed(self) -> bool:
        """True if there is anything to compare and every comparison passed.

        Comparisons end to end that say nothing do not count where all blocks are proven: all else is the same in both
        networks, so that equal blocks make equal networks.
        """
        counted = [c for c in self.comparisons if not (self._carried and c.undecided)]
        return bool(counted) and all(c.passed for c in counted)

    @property
    def _carried(self) -> bool:
        """Whether blocks alone can carry the verdict."""
        return bool(self.blocks) and not self.partial

    @property
    def undecided(self) -> Comparison | None:
        """The comparison that says least: of those end to end that say nothing, the one of the largest own error."""
        silent = [c for c in self.end_to_end if c.undecided]
        return max(silent, key=lambda c: c.own.to_scale if c.own else math.inf, default=None)

    @property
    def worst_block(self) -> Comparison | None:
        """The block nearest to, or furthest over, its tolerance."""
        return nearest_limit(self.blocks)

    @property
    def worst_end_to_end(self) -> Comparison | None:
        """The end-to-end comparison nearest to, or furthest over, its tolerance."""
        return nearest_limit(self.end_to_end)

    @property
    def verdict(self) -> str:
        """One sentence: equal within which tolerance and why, or where not."""
        if not self.comparisons:
            return "nothing was compared"
        failed = [c for c in self.comparisons if not c.passed and not c.undecided]
        silent = self.undecided
        said = "" if silent is None else f"; end to end says nothing: {silent.undecided}"
        if not failed and silent is not None and not self._carried:
            return f"cannot tell{said.replace('; end to end says nothing', '')}"
        if not failed:
            decided = [c for c in self.comparisons if not c.undecided]
            worst = nearest_limit(decided)
            assert worst is not None  # noqa: S101  # where there are silent ones, there are blocks
            carried = f"{said}, so that the {len(self.blocks)} blocks carry the verdict" if said else ""
            return (
                f"equal: all {len(decided)} comparisons within tolerance, the nearest to it {worst.place} "
                f"at {worst.error.to_scale:.1e} of {worst.tolerance:.1e} ({worst.reason}){carried}"
            )
        worst = nearest_limit(failed)
        assert worst is not None  # noqa: S101
        allowed = "" if worst.mismatch else f", tolerance {worst.tolerance:.1e} ({worst.reason})"
        return (
            f"NOT equal: {len(failed)} of {len(self.comparisons)} comparisons failed, the worst {worst.place} "
            f"with {worst.found}{allowed}"
        )

    def require(self, what: str) -> None:
        """Insist that `what` was compared and passed.

        Raises:
            VerificationError: it did not; the message is the verdict.
        """
        if not self.passed:
            raise VerificationError(f"{what}: {self.verdict}; nothing was written")

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON, which knows no infinity: None stands for it. The verdict is included."""
        return {"passed": self.passed, "verdict": self.verdict, **_finite(asdict(self))}


def _finite(value: Any) -> Any:  # noqa: ANN401  # plain containers of any nesting
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nearest_limit(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The one nearest to, or furthest over, its tolerance."""

    def share(c: Comparison) -> float:
        """How much of the tolerance is used up."""
        return (
            math.inf
            if not c.error.finite
            else 0.0
            if c.passed and not c.tolerance
            else relative(c.error.to_scale, c.tolerance)
        )

    return max(comparisons, key=share, default=None)


def relative(error: float, scale: float) -> float:
    """`error` over `scale`; 0 of nothing, infinite of something where there is no scale."""
    if error == 0:
        return 0.0
    return error / scale if scale else math.inf
