"""Doing one job of the protocol, in a process of its own, in a folder where the images lie."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from repconv import load
from repconv.files.whole import write_whole
from repconv.search.config import SCHEMA as SEARCH_CONFIG
from repconv.search.config import SearchConfig, config_from_dict
from repconv.search.folder import BEST, CONFIG, ENVIRONMENT, METRICS, RESULT, SUPERNET, RunFolder
from repconv.search.reports.candidates import read_candidates
from repconv.search.reports.found import Found
from repconv.search.retrain import retrain
from repconv.search.retrain_config import SCHEMA as TRAINING_CONFIG
from repconv.search.retrain_config import RetrainConfig
from repconv.search.run import run
from repconv.search.session import Session, settling
from repconv.search.settings import settings_to_dict
from repconv.search.supernet.evaluate import evaluate
from repconv.search.supernet.supernet import Supernet

from ....environment import environment
from ...common import RESULTS
from .protocol import Job, SearchJob, TrainingJob, drawn, start

KEPT = RESULTS / "evidence"
"""Where the files of finished jobs stay, a folder each, as a run's."""
SCORES = "scores.json"
_FILES = (CONFIG, ENVIRONMENT, METRICS, RESULT, BEST, SCORES)


def finished(name: str) -> bool:
    """Whether a job's files are kept already."""
    return (KEPT / name / RESULT).exists()


def ready(job: Job) -> bool:
    """Whether what it starts from is there."""
    return isinstance(job, SearchJob) or not job.search or finished(job.search)


def do(job: Job, at: Path) -> str:
    """Do it, on from where it was, in the folder of its name below `at`, which holds the images; returns its name."""
    torch.set_num_threads(1)
    os.chdir(at)
    folder = Path(job.name)
    if isinstance(job, SearchJob):
        _search(job, folder)
    else:
        _train(job, folder)
    _keep(folder, KEPT / job.name)
    shutil.rmtree(folder)
    return job.name


def _search(job: SearchJob, folder: Path) -> None:
    settings, usual = (settings_to_dict(config, SEARCH_CONFIG) for config in (job.config, SearchConfig()))
    run(RunFolder.create_or_resume(folder, settings, environment(), usual))
    if job.scored:
        write_whole({folder / SCORES: json.dumps(_scores(folder)).encode()})


def _train(job: TrainingJob, folder: Path) -> None:
    found = _found(job) if job.search else None
    architecture = {} if found is None else {"architecture": found.to_dict()}
    config = {**settings_to_dict(job.config, TRAINING_CONFIG), **architecture}
    usual = settings_to_dict(RetrainConfig(), TRAINING_CONFIG)
    retrain(RunFolder.create_or_resume(folder, config, environment(), usual), found, job.config)


def _found(job: TrainingJob) -> Found:
    """The architecture to train, with its score; a drawn one with fresh gates."""
    there = KEPT / job.search
    if job.rank is not None:
        # Fewer were found than asked for where the space has one architecture.
        count = len(json.loads((there / RESULT).read_text(encoding="utf-8"))["architectures"])
        return read_candidates(there, min(job.rank + 1, count))[-1]
    scores = json.loads((there / SCORES).read_text(encoding="utf-8"))
    config = config_from_dict(json.loads((there / CONFIG).read_text(encoding="utf-8")))
    number = job.drawn or 0
    return Found(
        architecture=drawn()[number],
        network=config.network_settings,
        gates=start(),
        accuracy=scores["own"][number],
        searched=config.provenance,
    )


def _scores(folder: Path) -> dict[str, object]:
    """The accuracies of what is drawn with the supernet's statistics, and with each one's own."""
    config = config_from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    session = Session(config)
    session.supernet = Supernet(load(folder / SUPERNET).model)
    found = {}
    with settling(session.supernet, config.positions):
        for name, images in {"shared": (), "own": session.settling_images()}.items():
            found[name] = evaluate(
                session.supernet, drawn(), session.validation, session.evaluation_settings, reestimation=images
            ).accuracies
    return {"schema": "repconv.evidence-scores/1", **found}


def _keep(folder: Path, where: Path) -> None:
    """A run's files without its weights, JSON without spaces; all of them or none."""
    where.mkdir(parents=True, exist_ok=True)
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES if (folder / name).exists()}
    write_whole(
        {
            where / name: (text if name == METRICS else json.dumps(json.loads(text)) + "\n").encode()
            for name, text in texts.items()
        }
    )
