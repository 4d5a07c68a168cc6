"""In which numbers candidates are measured: bfloat16 where the processor has it and ranks them as float32 does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .session import Session
from .strategies.protocol import State
from .supernet.architecture import Architecture
from .supernet.evaluate import Evaluation

LEAST_TAU = 0.95
"""Kendall's rank correlation of both from which on bfloat16 is taken."""
TAU = "bfloat16_tau"
"""Under which a generation's record holds it."""


def measured(
    session: Session, architectures: Sequence[Architecture], state: State, records: Sequence[Mapping[str, Any]]
) -> tuple[Evaluation, float | None]:
    """The accuracies of a generation, and where both kinds of numbers were tried their rank correlation.

    With `evaluation_dtype=auto` the first generation is measured in float32 and, where bfloat16 is native, in that too;
    later ones as that said.

    Args:
        session: whose supernet it is.
        architectures: to measure.
        state: before it.
        records: of the run so far, its first generation's among them.
    """
    if session.config.evaluation_dtype != "auto":
        return session.measure(architectures), None
    if state.generation:
        half = session.processes.decided(_agreed(records))
        return session.measure(architectures, torch.bfloat16 if half else torch.float32), None
    found = session.measure(architectures)
    if not native(session.device):
        return found, None
    tau = rank_correlation(found.accuracies, session.measure(architectures, torch.bfloat16).accuracies)
    return found, tau


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


def _agreed(records: Sequence[Mapping[str, Any]]) -> bool:
    return any(float(record.get(TAU, 0)) >= LEAST_TAU for record in records)
