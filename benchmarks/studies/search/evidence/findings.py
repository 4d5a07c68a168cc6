"""What the kept jobs say: numbers with the seeds behind them, and None where a job is not done."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import kendalltau

from repconv.search.folder import METRICS, RESULT
from repconv.search.reports.compare import WithInterval, estimate

from .job import KEPT, SCORES
from .protocol import FIXED_SIZE, MIXED_SIZES, SEEDS

NONE = "not measured yet"
OfSeed = Callable[[int], float | None]
"""A number of a seed, None where it is not known."""
SIZES = {"one size": FIXED_SIZE, "mixed sizes": MIXED_SIZES}
"""The two sets of drawn architectures."""


def over_seeds(value: OfSeed) -> WithInterval | None:
    """The mean over the seeds there are, and its 95 % interval."""
    found = [number for seed in SEEDS if (number := value(seed)) is not None]
    return estimate(found) if found else None


def difference(one: OfSeed, other: OfSeed) -> WithInterval | None:
    """`one` less `other`, over the seeds both have."""

    def of(seed: int) -> float | None:
        first, second = one(seed), other(seed)
        return None if first is None or second is None else first - second

    return over_seeds(of)


def attainable(agreement: float) -> float:
    """The tau of what an architecture is worth on average with one training of it, if two trainings agree by this tau.

    Of accuracies that are a worth and an independent error, both normal: they correlate by `r = sin(pi tau / 2)` with
    each other (Greiner's relation) and by `sqrt(r)` with the worth. 0 where trainings agree no better than by chance.
    """
    return 2 / math.pi * math.asin(math.sqrt(max(0.0, math.sin(math.pi * agreement / 2))))


def said(value: WithInterval | None, unit: int = 100) -> str:
    """Mean, interval and seeds."""
    if value is None:
        return NONE
    middle = f"{unit * value.value:.2f}"
    if value.interval is None:
        return f"{middle} ({value.count} seed)"
    low, high = (f"{unit * end:.2f}" for end in value.interval)
    return f"{middle} [{low}, {high}] ({value.count})"


@dataclass(frozen=True)
class Findings:
    """Of the jobs kept in a folder."""

    kept: Path = KEPT

    def has(self, job: str) -> bool:
        """Whether a job is done."""
        return (self.kept / job / RESULT).exists()

    def accuracy(self, which: str, seed: int) -> float | None:
        """The test accuracy of a trained network, fused: `drawn-07`, `des-0` or `set-plain`."""
        result = self._json(f"training/{which}-{seed}", RESULT)
        return None if result is None else float(result["fused_accuracy"])

    def accuracies(self, which: str, seed: int) -> dict[int, float]:
        """The test accuracy of a network by epoch, where that was measured."""
        return {r["epoch"]: r["accuracy"] for r in self.metrics(f"training/{which}-{seed}") if "accuracy" in r}

    def top(self, variant: str, count: int) -> OfSeed:
        """The mean test accuracy of the `count` best a search found, when trained; of all it found, where fewer."""

        def of(seed: int) -> float | None:
            result = self._json(f"search/{variant}-{seed}", RESULT)
            there = 0 if result is None else min(count, len(result["architectures"]))
            known = [a for rank in range(there) if (a := self.accuracy(f"{variant}-{rank}", seed)) is not None]
            return mean(known) if there and len(known) == there else None

        return of

    def score(self, variant: str) -> OfSeed:
        """The validation accuracy of the best a search found."""

        def of(seed: int) -> float | None:
            result = self._json(f"search/{variant}-{seed}", RESULT)
            return None if result is None else float(result["architectures"][0]["accuracy"])

        return of

    def over_generations(self, variant: str, what: str) -> OfSeed:
        """The mean over a search's generations that had parents of a number in their lines."""

        def of(seed: int) -> float | None:
            lines = [r for r in self.metrics(f"search/{variant}-{seed}") if r["kind"] == "generation" and r["parents"]]
            return mean(float(r[what]) for r in lines) if lines else None

        return of

    def statistics_share(self, variant: str) -> OfSeed:
        """The share of the time of measuring candidates that their own statistics take."""

        def of(seed: int) -> float | None:
            lines = [r for r in self.metrics(f"search/{variant}-{seed}") if r["kind"] == "generation"]
            took = [sum(float(r[f"seconds_{part}"]) for r in lines) for part in ("reestimate", "fold", "write", "run")]
            return took[0] / sum(took) if lines else None

        return of

    def survivors(self, variant: str) -> OfSeed:
        """The share of parents that live on, over all generations."""
        alive, parents = (self.over_generations(variant, what) for what in ("survivors", "parents"))

        def of(seed: int) -> float | None:
            lived, were = alive(seed), parents(seed)
            return None if lived is None or not were else lived / were

        return of

    def age_of_best(self, variant: str) -> OfSeed:
        """The age, in generations, of the best a search found: 1 is a newborn's."""

        def of(seed: int) -> float | None:
            result = self._json(f"search/{variant}-{seed}", RESULT)
            return None if result is None else float(result["architectures"][0]["age"] or 1)

        return of

    def tau(self, supernet: str, statistics: str, sizes: Sequence[int]) -> OfSeed:
        """Kendall's tau-b of the drawn architectures' scores in a supernet and test accuracy when trained."""

        def of(seed: int) -> float | None:
            scores = self._json(f"search/{supernet}-{seed}", SCORES)
            trained = [self.accuracy(f"drawn-{number:02d}", seed) for number in sizes]
            if scores is None or None in trained:
                return None
            return float(kendalltau([scores[statistics][number] for number in sizes], trained).statistic)

        return of

    def agreement(self, sizes: Sequence[int]) -> tuple[float, int] | None:
        """Tau-b between two seeds' accuracies of the same drawn architectures: the mean over pairs, and their number.

        Pairs of three seeds are not independent, so there is no interval.
        """
        by_seed = [[self.accuracy(f"drawn-{number:02d}", seed) for number in sizes] for seed in SEEDS]
        whole = [found for found in by_seed if None not in found]
        taus = [float(kendalltau(*pair).statistic) for pair in itertools.combinations(whole, 2)]
        return (mean(taus), len(taus)) if taus else None

    def at_last(self, which: str) -> OfSeed:
        """The test accuracy of a trained network."""
        return lambda seed: self.accuracy(which, seed)

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """The lines of a job's metrics, none where it is not done."""
        file = self.kept / name / METRICS
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def environment_of(self, name: str) -> dict[str, Any] | None:
        """What a job was done on."""
        found: dict[str, Any] | None = self._json(name, "environment.json")
        return found

    def _json(self, name: str, file: str) -> Any:  # noqa: ANN401  # of a file
        path = self.kept / name / file
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
