"""Training one network to a checkpoint and its fused form.

It is what a search found, from scratch or on from its supernet, or a network by its name.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from repconv.fusing import fuse_modules
from repconv.sources.checkpoint import save

from .folder import RESULT, RunFolder
from .processes import joined
from .reports.found import Found
from .resuming import Pace, Position, Report, keep, loaders_lost_in_words, rest_of_epoch
from .retrain_config import RetrainConfig
from .retraining.trainer import Trainer
from .supernet.records import ACCURACY

RETRAINED, FUSED = "retrained.pt", "retrained.fused.pt"


def retrain(
    folder: RunFolder,
    found: Found | None,
    config: RetrainConfig,
    report: Report = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
    *,
    own_code: str | None = None,
) -> None:
    """Train `found`, or the network `config` names, in `folder` to its end.

    Goes on from its last checkpoint if there is one. Ends with a checkpoint, its fused form, and the accuracy of both.
    Several processes, started by `torchrun` or `accelerate launch`, split every mini-batch, each normalises by the
    statistics of its own images (see `joint_update.backward`), and the first one writes.

    Args:
        folder: of this retraining.
        found: the architecture; None for the network of the settings.
        config: the settings.
        report: is shown every line of the metrics as it is written, and notes, as of a search.
        clock: seconds.
        own_code: as of `starting_network`.

    Raises:
        SourceError, GeometryError: as `starting_network`.
        SearchError: a setting makes no sense, or the loss is not finite.
        OutputError: a file cannot be written; the last checkpoint is intact.
        BuildError: a process that loads images was killed; likewise.
        VerificationError: the fused form differs from the trained network; only the last checkpoint is written.
    """
    if (folder.path / RESULT).exists():
        return
    with joined(config.device) as (processes, device), folder.held() if processes.first else nullcontext():
        _retrain(
            folder,
            Trainer(found=found, config=config, processes=processes, device=device, own_code=own_code),
            report,
            clock,
        )


def _retrain(folder: RunFolder, trainer: Trainer, report: Report, clock: Callable[[], float]) -> None:
    config, first = trainer.config, trainer.processes.first

    def save_at(at: Position) -> None:
        keep(folder, trainer, at, trainer.state())

    def tell(record: Mapping[str, Any]) -> None:
        if first:
            folder.append_metrics(record)
            report(record)

    at = trainer.restore(folder)
    if first:
        for note in trainer.notes:
            report({"kind": "note", "note": note})
    pace = Pace(clock)
    with loaders_lost_in_words():
        while at.epoch < config.epochs:
            batches = trainer.batches(at.epoch, at.step)
            rest_of_epoch(trainer, at, batches, update=trainer.update, keep=save_at, tell=tell, pace=pace)
            at = Position(at.epoch + 1)
            if first and config.measure_epochs and at.epoch % config.measure_epochs == 0:
                tell(_measured(trainer, at.epoch))
            if trainer.adapts_after(at.epoch):
                tell(trainer.adapt(at.epoch))
            save_at(at)
    if first:
        _finish(folder, trainer)


def _measured(trainer: Trainer, epoch: int) -> dict[str, Any]:
    """What the metrics say of the network after `epoch` epochs."""
    (value,) = trainer.measure(trainer.result())
    return {
        "kind": ACCURACY,
        "epoch": epoch,
        "step": epoch * trainer.steps_an_epoch,
        "measured_on": trainer.measured_on,
        "images": len(trainer.judged.positions),
        "accuracy": value,
    }


def _finish(folder: RunFolder, trainer: Trainer) -> None:
    model, task, found = trainer.result().eval(), trainer.task, trainer.found
    fused, _ = fuse_modules(model)  # VerificationError, and nothing is written, where it differs
    multi, single = trainer.measure(model, fused)
    for net, name, value in ((model, RETRAINED, multi), (fused, FUSED, single)):
        save(
            net,
            folder.path / name,
            class_names=task.class_names,
            normalization=task.normalization,
            input_shape=task.input_shape,
            metrics={f"{trainer.measured_on}_accuracy": value},
        )
    folder.write_json(
        RESULT,
        {
            "schema": "repconv.retrain/1",
            "measured_on": trainer.measured_on,
            "images": len(trainer.judged.positions),
            "accuracy": multi,
            "fused_accuracy": single,
            "search_validation_accuracy": None if found is None else found.accuracy,
            "active_branches": trainer.gated_branches,
            "blocks": trainer.blocks,
            "settings": dataclasses.asdict(trainer.config),
        },
    )
