"""Finished runs beside each other: means and their intervals by setting, paired differences, and rank correlation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

from repconv.errors import SearchError

from ..config import config_from_dict
from ..folder import CONFIG, RESULT, RunFolder
from ..retrain_config import SCHEMA as RETRAINING
from ..retrain_config import RetrainConfig
from ..settings import settings_from_dict
from ..supernet.records import RETRAIN, SEARCH
from .found import found_from_dict

SEED = "seed"
_RESAMPLES = 2000
_MOST_SHOWN = 12
_LESS = " - "
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run came to.

    kind: "search" or "retrain". settings: by name, without seeds; of a retraining also those of the search that found
    the architecture, as `search.NAME`. seed: the seeds by which runs are paired. accuracy: of the best on the
    validation images, or of the retrained network, fused, on the test images. score: of a retrained architecture, its
    validation accuracy in the search; None for a network trained by its name.
    """

    path: str
    kind: str
    settings: Mapping[str, Any]
    seed: tuple[int, ...]
    accuracy: float
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class WithInterval:
    """A value with its 95 % interval, which is None where too few runs give one; count: of runs or seeds."""

    value: float
    interval: tuple[float, float] | None
    count: int


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """What runs of one kind tell.

    groups: of runs alike but for their seed, the accuracies' estimate by what the groups differ in; those of one seed,
    as the best few of one search, count as one, their mean. differences: of two groups over the seeds both have.
    correlation: Kendall's tau-b of score and accuracy over retrained architectures of the same seeds, by group and over
    all, with a bootstrap interval.
    """

    kind: str
    runs: tuple[RunOutcome, ...]
    groups: Mapping[str, WithInterval]
    differences: Mapping[str, WithInterval]
    correlation: Mapping[str, WithInterval]

    @property
    def telling(self) -> Mapping[str, WithInterval]:
        """The differences to show: of more than a dozen those of groups that differ in one setting, if any do."""
        if len(self.differences) <= _MOST_SHOWN:
            return self.differences
        close = {name: found for name, found in self.differences.items() if _is_of_one_setting(name)}
        return close or self.differences

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)


def outcome(folder: RunFolder) -> RunOutcome:
    """What a finished search or retraining came to.

    Raises:
        SearchError: it is under way, or damaged.
    """
    content = folder.read_json(CONFIG)
    if not (folder.path / RESULT).exists():
        raise SearchError(f"{folder.path} is under way: only finished runs are compared; go on with it first")
    name = str(folder.path)
    if isinstance(content, Mapping) and content.get("schema") == RETRAINING:
        given = {key: value for key, value in content.items() if key != "architecture"}
        settings = asdict(settings_from_dict(RetrainConfig, RETRAINING, given, name))
        result = folder.read_json(RESULT, RETRAIN)
        accuracy, score, kind = result["fused_accuracy"], None, "retrain"
        if not settings["network"]:
            found = found_from_dict(content.get("architecture"), f"{name}: its architecture")
            settings |= {f"search.{key}": value for key, value in (found.searched or {}).items()}
            score = found.accuracy
        settings["supernet"] = bool(settings["supernet"])  # every search has its own
    else:
        settings = asdict(config_from_dict(content, name))
        result = folder.read_json(RESULT, SEARCH)
        accuracy, score, kind = max(one["accuracy"] for one in result["architectures"]), None, "search"
    seed = tuple(int(settings.pop(key)) for key in (SEED, f"search.{SEED}") if key in settings)
    return RunOutcome(path=name, kind=kind, settings=settings, seed=seed, accuracy=accuracy, score=score)


def compare(outcomes: Sequence[RunOutcome]) -> RunComparison:
    """Runs of one kind beside each other.

    Raises:
        SearchError: fewer than two, or searches beside retrainings.
    """
    kinds = sorted({one.kind for one in outcomes})
    if len(outcomes) < 2 or len(kinds) != 1:
        raise SearchError(
            f"runs are compared with their like: expected two or more searches or two or more retrainings, each in a "
            f"folder of its own, got {len(outcomes)} of {' and '.join(kinds) or 'none'}"
        )
    groups: dict[str, list[RunOutcome]] = {}
    for one, label in zip(outcomes, labels([one.settings for one in outcomes]), strict=True):
        groups.setdefault(label, []).append(one)
    pairs = itertools.combinations(groups, 2)
    scored = {**groups, **({"all": list(outcomes)} if len(groups) > 1 else {})}
    return RunComparison(
        kind=kinds[0],
        runs=tuple(outcomes),
        groups={label: estimate([*_by_seed(runs).values()]) for label, runs in groups.items()},
        differences={f"{b}{_LESS}{a}": found for a, b in pairs if (found := _paired(groups[a], groups[b])) is not None},
        correlation={label: found for label, runs in scored.items() if (found := correlation(runs)) is not None},
    )


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each the settings in which they are not all alike, `key=value` with spaces between; "alike" where all are.

    What differs reads otherwise: numbers have as many digits as that takes, four or more.
    """
    keys = dict.fromkeys(key for one in settings for key in one)
    digits = {
        key: _digits([one[key] for one in settings if key in one])
        for key in keys
        if len({repr(one.get(key)) for one in settings}) > 1
    }
    return [
        " ".join(f"{key}={_said(one[key], count)}" for key, count in digits.items() if key in one) or "alike"
        for one in settings
    ]


def estimate(values: Sequence[float]) -> WithInterval:
    """Their mean, and its 95 % interval by Student's t."""
    from scipy.stats import t

    middle = mean(values)
    if len(values) < 2:
        return WithInterval(value=middle, interval=None, count=len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return WithInterval(value=middle, interval=(middle - half, middle + half), count=len(values))


def _paired(one: Iterable[RunOutcome], other: Iterable[RunOutcome]) -> WithInterval | None:
    """The estimate of the differences, second less first, over the seeds both groups have once."""
    first, second = (_by_seed(runs) for runs in (one, other))
    both = sorted(first.keys() & second.keys())
    return estimate([second[seed] - first[seed] for seed in both]) if both else None


def _by_seed(runs: Iterable[RunOutcome]) -> dict[tuple[int, ...], float]:
    """The mean accuracy of each seed's runs."""
    found: dict[tuple[int, ...], list[float]] = {}
    for one in runs:
        found.setdefault(one.seed, []).append(one.accuracy)
    return {seed: mean(values) for seed, values in found.items()}


def correlation(runs: Sequence[RunOutcome]) -> WithInterval | None:
    """Kendall's tau-b of scores and accuracies over the pairs of runs of the same seeds, with a bootstrap interval.

    Another seed is another supernet, judged by other images: all of its scores are higher or lower, which says nothing
    of its architectures. None for fewer than four runs that have others of their seeds beside them, or where either is
    all alike.
    """
    seeds: dict[tuple[int, ...], list[tuple[float, float]]] = {}
    for one in runs:
        if one.score is not None:
            seeds.setdefault(one.seed, []).append((one.score, one.accuracy))
    paired = [(number, *pair) for number, pairs in enumerate(seeds.values()) for pair in pairs if len(pairs) > 1]
    if len(paired) < 4:
        return None
    seed, score, accuracy = np.array(paired).T
    together = seed[:, None] == seed
    by_score, by_accuracy = (np.sign(values[:, None] - values) * together for values in (score, accuracy))

    def tau(times: Array) -> Array:
        """Of every run taken so many times, [..., n] -> [...]; not a number where nothing is told apart."""
        agreeing, scored, trained = (
            ((times @ pairs) * times).sum(-1) for pairs in (by_score * by_accuracy, abs(by_score), abs(by_accuracy))
        )
        with np.errstate(invalid="ignore"):
            return np.asarray(agreeing / np.sqrt(scored * trained))

    count = len(paired)
    value = float(tau(np.ones(count)))
    drawn = tau(np.random.default_rng(0).multinomial(count, [1 / count] * count, size=_RESAMPLES).astype(float))
    if math.isnan(value):
        return None
    low, high = np.nanquantile(drawn, (0.025, 0.975))  # nothing is told apart where one run alone was drawn
    return WithInterval(value=value, interval=(float(low), float(high)), count=count)


def _is_of_one_setting(difference: str) -> bool:
    one, _, other = difference.partition(_LESS)
    return len(set(one.split()) ^ set(other.split())) == 2


def _digits(values: Sequence[object]) -> int:
    """The fewest significant digits by which different ones read otherwise."""
    count = len({repr(value) for value in values})
    return next((digits for digits in range(4, 17) if len({_said(value, digits) for value in values}) == count), 17)


def _said(value: object, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def opened(paths: Iterable[str]) -> list[RunOutcome]:
    """The outcomes of the runs in these folders, each once, however often it is named.

    Raises:
        SearchError: see `outcome`.
    """
    folders = {path.resolve(): path for path in map(Path, paths)}
    return [outcome(RunFolder.open(path)) for path in folders.values()]
