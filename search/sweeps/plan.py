"""What a sweep does: every combination of the settings that vary, each with every seed, and what of it is retrained."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from repconv.errors import SearchError

from ..config import SearchConfig
from ..folder import SUPERNET
from ..presets import preset
from ..retrain_config import RetrainConfig, complete, retrain_preset
from ..retraining.start import check_for_architecture
from ..settings import changed, given
from ..supernet.records import SWEEP, require

SEARCHES, RETRAININGS = "searches", "retrained"
"""The folders that the runs are in, each a folder of its own."""

Kind = Literal["search", "retrain"]

_SEED = "seed"
_MOST = 100_000
"""Runs, lest a file or a slip of the hand asks for more than can be listed."""
_LONGEST, _LONGEST_VALUE = 150, 40
"""Letters of a folder's name, and of a value in it."""


@dataclass(frozen=True, kw_only=True)
class SearchRun:
    """One search of a sweep.

    name: its folder below the sweep's, as `searches/strategy=des,seed=0`. group: the same without seed and kind, of
    runs alike but for their seed.
    """

    name: str
    group: str
    config: SearchConfig
    kind: ClassVar[Kind] = "search"


@dataclass(frozen=True, kw_only=True)
class RetrainRun:
    """One retraining of a sweep.

    name, group: as of its search. of, rank: which search's architecture it trains, 1 for the best.
    """

    name: str
    group: str
    config: RetrainConfig
    of: SearchRun
    rank: int
    kind: ClassVar[Kind] = "retrain"


SweepRun = SearchRun | RetrainRun


@dataclass(frozen=True, kw_only=True)
class RetrainingPlan:
    """preset, settings: of retrainings, as `repconv retrain` takes them. top: how many of a search's best, or fewer."""

    preset: str
    settings: Mapping[str, str]
    top: int


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a command line says, and the runs that follow from it.

    preset, settings: of all searches, values as they are written. vary: the values of each setting that varies. seeds:
    how many, from the settings' own on. retrain: None for searches alone.

    Raises:
        SearchError: a setting makes no sense, is named twice, or two combinations are one.
    """

    preset: str
    settings: Mapping[str, str]
    vary: Mapping[str, Sequence[str]]
    seeds: int = 1
    retrain: RetrainingPlan | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise SearchError(f"a sweep has at least one seed, got {self.seeds}")
        if _SEED in self.vary:
            raise SearchError("seeds are not varied but counted: --seeds 3, from --set seed=... on")
        twice = [key for key in self.vary if key in self.settings]
        if twice:
            raise SearchError(f"{', '.join(twice)}: varied and set; leave one of them out")
        one_way = {key: values for key, values in self.vary.items() if not values}
        if one_way:
            raise SearchError(f"{', '.join(one_way)} varies over no value; name some, such as --vary ratio=1/3,2/3")
        count = math.prod([self.seeds, 1 + len(self._ranks()), *map(len, self.vary.values())])
        if count > _MOST:
            raise SearchError(f"that is a sweep of {count:,} runs, and one has {_MOST:,} at most")
        if self.retrain is not None and _SEED in self.retrain.settings:
            raise SearchError(
                "what is retrained has the seed of its search; leave seed= out of the retraining's settings"
            )
        alike: dict[SearchConfig, str] = {}
        for run in self.searches:
            if run.config in alike:
                raise SearchError(f"{alike[run.config]} and {run.name} are one search; leave one of their values out")
            alike[run.config] = run.name

    @cached_property
    def searches(self) -> tuple[SearchRun, ...]:
        """Seed by seed, so that groups can be compared before all is done."""
        base = changed(preset(self.preset).config, _lines(self.settings))
        ways = [tuple(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]
        configs = [changed(base, _lines(dict(way))) for way in ways]
        if any(not config.data for config in configs):
            raise SearchError(f"preset {self.preset} needs images: give --data, such as --data cifar10:PATH")
        groups = _named(ways)
        return tuple(
            SearchRun(
                name=f"{SEARCHES}/{group}{',' * bool(group)}seed={seed}",
                group=group,
                config=dataclasses.replace(config, seed=seed),
            )
            for seed in range(base.seed, base.seed + self.seeds)
            for group, config in zip(groups, configs, strict=True)
        )

    @cached_property
    def retrainings(self) -> tuple[RetrainRun, ...]:
        """Of every search, as many as are asked for; one may find fewer."""
        asked = self.retrain
        if asked is None:
            return ()
        return tuple(_retraining(asked, search, rank) for search in self.searches for rank in self._ranks())

    @property
    def runs(self) -> tuple[SweepRun, ...]:
        """All, in the order they are begun."""
        return (*self.searches, *self.retrainings)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, with their schema."""
        return {
            "schema": SWEEP,
            "preset": self.preset,
            "settings": dict(sorted(self.settings.items())),
            "vary": {key: list(values) for key, values in self.vary.items()},
            "seeds": self.seeds,
            "retrain": None if self.retrain is None else dataclasses.asdict(self.retrain),
            "searches": [run.name for run in self.searches],
            "retrainings": [run.name for run in self.retrainings],
        }

    def _ranks(self) -> range:
        return range(1, 1 + (self.retrain.top if self.retrain is not None else 0))


def _retraining(asked: RetrainingPlan, search: SearchRun, rank: int) -> RetrainRun:
    """Of its search's images, and on from its supernet where the preset goes on; settings may say otherwise."""
    found = search.config
    same = {key: str(value) for key in ("data", "test_data", "image_size") if (value := getattr(found, key))}
    if retrain_preset(asked.preset).goes_on:
        same["supernet"] = f"{search.name}/{SUPERNET}"
    config = complete(asked.preset, _lines({**same, **asked.settings, _SEED: str(found.seed)}))
    check_for_architecture(config)
    return RetrainRun(
        name=f"{search.name.replace(SEARCHES, RETRAININGS, 1)}/{rank}",
        group=search.group,
        config=config,
        of=search,
        rank=rank,
    )


def plan_from_dict(content: Any, where: str) -> SweepPlan:  # noqa: ANN401  # of a file
    """What `SweepPlan.to_dict` made.

    Raises:
        SearchError: it is otherwise, or a setting makes no sense any more.
    """
    require(content, SWEEP, where)
    asked = content["retrain"]
    return SweepPlan(
        preset=content["preset"],
        settings=content["settings"],
        vary={key: tuple(values) for key, values in content["vary"].items()},
        seeds=content["seeds"],
        retrain=None if asked is None else RetrainingPlan(**{key: asked[key] for key in ("preset", "settings", "top")}),
    )


def varied(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Values by setting of `key=value,value` texts; `;` stands between values that hold commas.

    Raises:
        SearchError: one is no `key=value`, or a setting comes twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        ((key, values),) = given([text]).items()
        if key in found:
            raise SearchError(f"{key} varies twice; name all its values at once: --vary {key}=...,...")
        parts = values.split(";" if ";" in values else ",")
        found[key] = tuple(part.strip() for part in parts if part.strip())
    return found


def _lines(settings: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def _named(ways: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """A name for each combination that every file system takes; a number where two would be one."""
    names: list[str] = []
    for number, way in enumerate(ways, 1):
        parts = [f"{key}={re.sub('[^A-Za-z0-9.+-]+', '-', value)[-_LONGEST_VALUE:]}" for key, value in way]
        name = ",".join(parts)
        if len(name) > _LONGEST or name in names:
            name = f"{name[:_LONGEST]},{number}"
        names.append(name)
    return names
