"""One run of a sweep, in its folder, to its end; and how far runs are, read off their folders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from repconv.errors import SearchError

from ..config import SCHEMA as SEARCHING
from ..config import SearchConfig
from ..folder import RESULT, RunFolder
from ..reports.candidates import read_candidates
from ..reports.history import measuring_s
from ..resuming import Report
from ..retrain import retrain
from ..retrain_config import SCHEMA as RETRAINING
from ..retrain_config import RetrainConfig
from ..run import run as search
from ..settings import settings_to_dict
from ..supernet.records import SEARCH
from .plan import Kind, RetrainRun, SearchRun, SweepRun

State = Literal["waiting", "under way", "finished", "left out"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a run is: the share of its epochs, and the seconds that training and measuring took.

    A retraining is left out where its search found fewer architectures than that.
    """

    state: State
    share: float = 0.0
    seconds: float = 0.0


def carry_out(root: Path, one: SweepRun, environment: Mapping[str, Any], report_to: Callable[[int], Report]) -> None:
    """Do a run of the sweep in `root`, or go on with it, to its end; a finished one is left as it is.

    environment: for its folder. report_to: makes what is shown the lines of the metrics, of so many epochs.

    Raises:
        RepconvError: as `repconv.search.run.run` and `repconv.search.retrain.retrain` have it, or the folder holds a
            run of other settings.
    """
    path, report = root / one.name, report_to(one.config.epochs)
    if isinstance(one, SearchRun):
        config = one.config
        settings, usual = (settings_to_dict(each, SEARCHING) for each in (config, SearchConfig()))
        with RunFolder.starting(path, settings, environment, usual, resume=True) as folder:
            search(folder, report, own_code=[config.data, config.network])
        return
    if not finished(root, one.of):
        raise SearchError(f"{one.name} retrains what {one.of.name} finds, which is not finished; do that first")
    found, training = read_candidates(root / one.of.name, one.rank)[-1], _here(root, one.config)
    wanted = {**settings_to_dict(training, RETRAINING), "architecture": found.to_dict()}
    usual = settings_to_dict(RetrainConfig(), RETRAINING)
    with RunFolder.starting(path, wanted, environment, usual, resume=True) as folder:
        retrain(folder, found, training, report, own_code=one.of.config.network)


def _here(root: Path, config: RetrainConfig) -> RetrainConfig:
    """With the supernet of a search of the sweep as a path."""
    own = root / config.supernet
    return dataclasses.replace(config, supernet=str(own)) if config.supernet and own.exists() else config


def finished(root: Path, one: SweepRun) -> bool:
    """Whether it came to its end."""
    return (root / one.name / RESULT).exists()


def found_fewer(root: Path, one: SweepRun) -> bool:
    """Whether it is a retraining of more architectures than its search found."""
    return isinstance(one, RetrainRun) and finished(root, one.of) and _count_found(root / one.of.name) < one.rank


@cache
def _count_found(search: Path) -> float:
    """Of a finished search, which finds no more; of a damaged one without end, for whoever reads it to say why."""
    try:
        return len(RunFolder(search).read_json(RESULT, SEARCH)["architectures"])
    except SearchError:
        return math.inf


def standing(root: Path, one: SweepRun) -> Standing:
    """How far a run is; one whose metrics are damaged got nowhere, and says so itself when it goes on."""
    folder = RunFolder(root / one.name)
    if found_fewer(root, one):
        return Standing(state="left out")
    try:
        records = folder.metrics()
    except SearchError:
        records = []
    epochs = [record for record in records if record["kind"] == "epoch"]
    steps = epochs[0]["step"] / epochs[0]["epoch"] if epochs else 0
    seconds = sum(record["seconds_a_step"] * steps for record in epochs)
    seconds += sum(measuring_s(record) for record in records if record["kind"] == "generation")
    if finished(root, one):
        return Standing(state="finished", share=1.0, seconds=seconds)
    share = len(epochs) / one.config.epochs
    return Standing(state="under way" if folder.path.exists() else "waiting", share=share, seconds=seconds)


def seconds_left(runs: Sequence[SweepRun], standings: Sequence[Standing], at_once: int) -> float | None:
    """Until all are done, so many at once, as long as those of their kind took that got somewhere.

    A run takes its seconds over its share; one without any takes the mean of its group's, else of its kind's. Kinds of
    which none got anywhere are not in it. None where no kind did.
    """
    whole: dict[tuple[Kind, str | None], list[float]] = {}
    for one, there in zip(runs, standings, strict=True):
        if there.share and there.seconds:
            for group in (one.group, None):
                whole.setdefault((one.kind, group), []).append(there.seconds / there.share)
    left = []
    for one, there in zip(runs, standings, strict=True):
        known = whole.get((one.kind, one.group)) or whole.get((one.kind, None))
        if there.state in ("waiting", "under way") and known is not None:
            of_its_own = there.seconds / there.share if there.share and there.seconds else mean(known)
            left.append(of_its_own * (1 - there.share))
    if not whole:
        return None
    return max(sum(left) / max(1, at_once), max(left, default=0.0))
