"""How far an artefact, run in its own runtime, is from the network it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from repconv.errors import VerificationError
from repconv.files.whole import whole_file
from repconv.proof.agreement import Comparison

from .classes import ClassChange
from .tolerances import Tolerance

Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Probe:
    """One call: what the artefact is given, what the network itself takes, and class numbers where they are known."""

    given: Tensor
    inputs: Tensor
    labels: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What running an artefact showed; errors are relative to the root mean square of the reference's output.

    runtime: what ran it, with its version and device. inputs: what it ran on, in words; images: how many;
    judged: how many of them were compared number by number.
    comparisons: output by output and call by call, the largest difference against its tolerance.
    mean_error, rms_error: over everything, of the output where they are largest.
    top1_agreement: share of images for which the largest output is that of the network; None where outputs are no
    class scores. labelled: how many images have labels; accuracy, accuracy_before: share of these that the artefact and
    the network get right.
    observed: settings read back from the runtime.
    classes: images that changed class, where that is judged: of int8.
    """

    runtime: str
    inputs: str
    images: int
    judged: int
    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]
    mean_error: float
    rms_error: float
    top1_agreement: float | None = None
    accuracy: float | None = None
    accuracy_before: float | None = None
    labelled: int = 0
    observed: dict[str, str] = field(default_factory=dict)
    worst: tuple[Probe, Tensor, Tensor] | None = None
    classes: ClassChange | None = None

    @property
    def finite(self) -> bool:
        """False where the artefact gives NaN or Inf."""
        return all(c.error.finite for c in self.comparisons)

    @property
    def max_error(self) -> float:
        """The largest difference."""
        return max((c.error.to_scale for c in self.comparisons), default=math.inf)

    @property
    def passed(self) -> bool:
        """True if every comparison is within its tolerance, and of int8 no more classes change than may."""
        return self._close and self._complaint is None

    @property
    def _complaint(self) -> str | None:
        return None if self.classes is None else self.classes.complaint

    @property
    def _close(self) -> bool:
        if not self.comparisons or not self.finite or any(c.mismatch for c in self.comparisons):
            return False
        return self.rms_error <= self.tolerance.limit if self._by_rms else all(c.passed for c in self.comparisons)

    @property
    def _by_rms(self) -> bool:
        return self.tolerance.measure == "rms"

    @property
    def verdict(self) -> str:
        """One sentence."""
        said = f"{self.runtime}, on {self.inputs}"
        odd = next((c for c in self.comparisons if c.mismatch or not c.error.finite), None)
        if odd is not None:
            return f"NOT equal in {said}: {odd.found} at {odd.place}"
        top1 = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.1%}"
        numbers = f"max {self.max_error:.1e}, rms {self.rms_error:.1e}, mean {self.mean_error:.1e}"
        errors = f"errors of the output's scale: {numbers}"
        if self._by_rms:
            allowed = f"rms allowed {self.tolerance.limit:.1e} ({self.tolerance.reason})"
        else:
            worst = max(self.comparisons, key=lambda c: c.error.to_scale / c.tolerance)
            allowed = f"max allowed {worst.tolerance:.1e} ({worst.reason})"
        complaint = f"; {self._complaint}" if self._complaint else ""
        silent = next((c.undecided for c in self.comparisons if c.undecided), None)
        if silent is not None:
            return f"cannot tell in {said}: {silent}; {errors}{top1}; a tolerance of your own (--tolerance) decides"
        return f"{'equal' if self.passed else 'NOT equal'} in {said}: {errors}{top1}; {allowed}{complaint}"

    @property
    def short(self) -> str:
        """What counts of an int8 artefact, in a few words."""
        found = [f"rms {self.rms_error:.1e}"]
        if self.top1_agreement is not None:
            found.append(f"top-1 agreement {self.top1_agreement:.1%}")
        if self.accuracy is not None:
            found.append(f"accuracy {self.accuracy:.1%} of {self.accuracy_before:.1%}")
        return ", ".join(found)

    def require(self, what: str, advice: str = "") -> None:
        """Insist that it passed; `advice` is put behind the verdict.

        Raises:
            VerificationError: it did not; the message is the verdict.
        """
        if not self.passed:
            raise VerificationError(f"{what}: {self.verdict}; nothing was written{advice}")

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON; a number that is not finite is None."""
        numbers = {
            "max_error": self.max_error, "mean_error": self.mean_error, "rms_error": self.rms_error,
            "top1_agreement": self.top1_agreement, "accuracy": self.accuracy, "accuracy_before": self.accuracy_before,
        }  # fmt: skip
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "runtime": self.runtime,
            "observed": self.observed,
            "inputs": self.inputs,
            "images": self.images,
            "judged": self.judged,
            "labelled": self.labelled,
            "tolerance": vars(self.tolerance),
            "finite": self.finite,
            "classes": None if self.classes is None else vars(self.classes),
            **{key: None if v is None or not math.isfinite(v) else v for key, v in numbers.items()},
            "calls": [
                {
                    "shape": c.shape,
                    "output": c.path,
                    "error": c.error.to_scale if c.error.finite else None,
                    "own": c.own.to_scale if c.own else None,
                    "tolerance": c.tolerance,
                    "reason": c.reason,
                    "mismatch": c.mismatch,
                }
                for c in self.comparisons
            ],
        }

    def dump(self, path: Path) -> None:
        """Write the call that was furthest off: `given`, `expected`, `got`.

        Raises:
            OutputError: it cannot be written.
        """
        if self.worst is None:
            return
        probe, wanted, got = self.worst
        with whole_file(path) as stream:
            given = probe.given.float() if probe.given.is_floating_point() else probe.given
            np.savez(stream, given=given.numpy(), expected=wanted.numpy(), got=got.float().numpy())
