"""In which numbers candidates are measured: bfloat16 where the processor has it and ranks them as float32 does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from .architecture import Architecture
from .evaluate import Evaluation

LEAST_TAU = 0.95
"""Kendall's rank correlation of both from which on bfloat16 is taken."""
TAU = "bfloat16_tau"
"""Under which a generation's record holds it."""


class Measure(Protocol):
    """The accuracies of architectures, in numbers of that type; None: as is usual."""

    def __call__(self, architectures: Sequence[Architecture], dtype: torch.dtype | None = None) -> Evaluation:
        """Of each."""


def measured_alike(
    measure: Measure, architectures: Sequence[Architecture], device: torch.device, *, first: bool, half: bool
) -> tuple[Evaluation, float | None]:
    """The accuracies of a generation, and where both kinds of numbers were tried their rank correlation.

    Args:
        measure: how.
        architectures: to measure.
        device: where it computes.
        first: whether it is the first generation, measured in float32 and, where bfloat16 is native, in that, too.
        half: of a later one, whether that agreed.
    """
    if not first:
        return measure(architectures, torch.bfloat16 if half else torch.float32), None
    found = measure(architectures, torch.float32)
    if not native(device):
        return found, None
    return found, rank_correlation(found.accuracies, measure(architectures, torch.bfloat16).accuracies)


def agreed(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the records of a run hold a rank correlation that is high enough."""
    return any(float(record.get(TAU, 0)) >= LEAST_TAU for record in records)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b (Kendall, 1945), which allows for equal values; 0 where either is all alike, or too short."""
    from scipy.stats import kendalltau

    found = float(kendalltau(one, other).statistic) if len(one) > 1 else math.nan
    return 0.0 if math.isnan(found) else found


def native(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself, so that it is faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # a name of newer versions
    return device.type == "cpu" and known is not None and bool(known())
