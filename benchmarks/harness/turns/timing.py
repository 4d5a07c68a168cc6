"""Latency of callables, measured side by side.

Machines drift, so subjects take turns (A B A B ...), every sample is kept, and what is reported of a pair is the
ratio of their medians with a bootstrap interval over rounds: samples of one round share whatever befell it, rounds do
not.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LatencyReport:
    """One subject's samples, in seconds, in the order they were taken.

    rounds: how many samples each round holds; empty: one each.

    Raises:
        ValueError: the rounds hold another number of samples than there are, or one holds none.
    """

    name: str
    samples_s: tuple[float, ...]
    rounds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rounds and (sum(self.rounds) != len(self.samples_s) or min(self.rounds) < 1):
            raise ValueError(f"rounds of {self.rounds} samples do not make up {len(self.samples_s)}")

    @property
    def by_round(self) -> tuple[tuple[float, ...], ...]:
        """The samples of each round."""
        ends = list(itertools.accumulate(self.rounds or (1,) * len(self.samples_s), initial=0))
        return tuple(self.samples_s[start:end] for start, end in itertools.pairwise(ends))

    @property
    def round_medians_s(self) -> tuple[float, ...]:
        """The median of each round, in seconds."""
        return tuple(float(np.median(samples)) for samples in self.by_round)

    @property
    def median_ms(self) -> float:
        """Median over rounds of their medians, in milliseconds."""
        return 1e3 * float(np.median(self.round_medians_s))

    @property
    def mean_ms(self) -> float:
        """Mean of all samples, in milliseconds."""
        return 1e3 * float(np.mean(self.samples_s))

    @property
    def p90_ms(self) -> float:
        """90th percentile of all samples, in milliseconds."""
        return self._percentile_ms(90)

    @property
    def p95_ms(self) -> float:
        """95th percentile of all samples, in milliseconds."""
        return self._percentile_ms(95)

    @property
    def p99_ms(self) -> float:
        """99th percentile of all samples, in milliseconds."""
        return self._percentile_ms(99)

    def _percentile_ms(self, percent: float) -> float:
        return 1e3 * float(np.percentile(self.samples_s, percent))

    @property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation of all samples over their mean."""
        return float(np.std(self.samples_s) / np.mean(self.samples_s))

    def throughput(self, batch: int) -> float:
        """Images a second at the median, for `batch` images a call."""
        return 1e3 * batch / self.median_ms

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "name": self.name,
            "median_ms": self.median_ms,
            "mean_ms": self.mean_ms,
            "p90_ms": self.p90_ms,
            "p95_ms": self.p95_ms,
            "p99_ms": self.p99_ms,
            "cv": self.cv,
            "rounds": list(self.rounds),
            "samples_s": list(self.samples_s),
        }


def time_in_turns(
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

    @property
    def half_width(self) -> float:
        """Half of the interval, relative to the ratio."""
        return (self.high - self.low) / 2 / self.value

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {"value": self.value, "interval_95": [self.low, self.high], "half_width": self.half_width}


def ratio(
    numerator: LatencyReport, denominator: LatencyReport, *, sessions: int = 1, draws: int = 2000, seed: int = 0
) -> Ratio:
    """The ratio of two subjects measured in the same rounds; rounds are resampled together.

    With several `sessions` of equally many rounds, in each of which the subjects were loaded anew, sessions are drawn
    first and rounds inside them, since rounds of a session share where its weights came to lie in memory. One session
    fewer is drawn than there are (Rao and Wu, Resampling inference with complex survey data, 1988): as many would make
    the interval of few sessions too narrow.

    Raises:
        ValueError: the subjects were not measured in the same rounds, or the rounds do not divide into the sessions.
    """
    a, b = np.array(numerator.round_medians_s), np.array(denominator.round_medians_s)
    if len(a) != len(b):
        raise ValueError("a ratio needs two subjects measured in the same rounds")
    if sessions < 1 or len(a) % sessions:
        raise ValueError(f"{len(a)} rounds do not divide into {sessions} sessions")
    pick = _resampled(len(a), sessions, draws, np.random.default_rng(seed))
    drawn = np.median(a[pick], 1) / np.median(b[pick], 1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


def _resampled(rounds: int, sessions: int, draws: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices of rounds, [draws, n]."""
    inside = rounds // sessions
    if sessions == 1:
        return generator.integers(rounds, size=(draws, rounds))
    chosen = generator.integers(sessions, size=(draws, sessions - 1, 1))
    return (chosen * inside + generator.integers(inside, size=(draws, sessions - 1, inside))).reshape(draws, -1)
