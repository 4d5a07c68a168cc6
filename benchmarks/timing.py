"""Latency of callables, measured side by side.

Machines drift, so subjects take turns (A B A B ...), every sample is kept, and what is reported of a pair is the
ratio of their medians with a bootstrap interval over rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LatencyReport:
    """One subject's samples, in seconds, in the order they were taken."""

    name: str
    samples_s: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median, in milliseconds."""
        return 1e3 * float(np.median(self.samples_s))

    @property
    def p95_ms(self) -> float:
        """95th percentile, in milliseconds."""
        return 1e3 * float(np.percentile(self.samples_s, 95))

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "name": self.name, "median_ms": self.median_ms, "p95_ms": self.p95_ms, "samples_s": list(self.samples_s),
        }  # fmt: skip


def measure(
    subjects: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 3,
    per_round: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, LatencyReport]:
    """Time each subject once a round, in turns; a sample is the mean of `per_round` calls in a row.

    With `clock=time.process_time` seconds are those the process computed, whoever else was on the machine.

    Raises:
        ValueError: no subjects, or fewer than one round or call.
    """
    if not subjects or rounds < 1 or per_round < 1:
        raise ValueError(f"need subjects, rounds and calls to time; got {len(subjects)}, {rounds} and {per_round}")
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for run in subjects.values():
        for _ in range(warmup):
            run()
    for _ in range(rounds):
        for name, run in subjects.items():
            start = clock()
            for _ in range(per_round):
                run()
            samples[name].append((clock() - start) / per_round)
    return {name: LatencyReport(name, tuple(values)) for name, values in samples.items()}


def calls_lasting(run: Callable[[], object], seconds: float) -> int:
    """How many calls of `run` in a row take about `seconds`, at least one: short samples are mostly noise."""
    run()
    start = time.perf_counter()
    for _ in range(3):
        run()
    return max(1, round(3 * seconds / (time.perf_counter() - start)))


@dataclass(frozen=True)
class Ratio:
    """Median of one subject over the median of another, and a 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def ratio(numerator: LatencyReport, denominator: LatencyReport, *, draws: int = 2000, seed: int = 0) -> Ratio:
    """The ratio of two subjects measured in the same rounds; rounds are resampled together.

    Raises:
        ValueError: the subjects were not measured in the same rounds.
    """
    if len(numerator.samples_s) != len(denominator.samples_s):
        raise ValueError("a ratio needs two subjects measured in the same rounds")
    a, b = np.array(numerator.samples_s), np.array(denominator.samples_s)
    pick = np.random.default_rng(seed).integers(len(a), size=(draws, len(a)))
    drawn = np.median(a[pick], 1) / np.median(b[pick], 1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))
