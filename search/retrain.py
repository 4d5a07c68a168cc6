"""Training a searched architecture: from scratch, or on from its supernet, to a checkpoint and its fused form."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from repconv.errors import SearchError
from repconv.fusing import fuse_modules
from repconv.models.libraries import check_asked
from repconv.sources.checkpoint import load, save
from repconv.sources.source import open_source

from .folder import RESULT, RunFolder
from .processes import Processes, joined
from .reports.found import Found
from .resuming import Pace, Position, Report, keep, kept, loaders_lost_in_words, rest_of_epoch
from .retrain_config import RetrainConfig
from .session import chosen_device, evaluation_batch
from .supernet.architecture import Architecture
from .supernet.bank import EvaluationSettings
from .supernet.evaluate import accuracy
from .supernet.joint_update import backward
from .supernet.layout import memory_format, said_of
from .supernet.supernet import Supernet, evaluating, subnetwork
from .tasks.data import open_data
from .tasks.network import build_network, is_own_network, set_positions
from .tasks.task import EvaluationBatches, Split, Task, split, training_batches

FORMAT = "repconv.retrain-checkpoint/1"
RETRAINED, FUSED = "retrained.pt", "retrained.fused.pt"
_KEEP_BYTES = 2e9


@final
@dataclass(frozen=True)
class Cutout:
    """A square of `side` pixels of a normalised image [c, h, w] put to 0, its middle anywhere (DeVries, 2017)."""

    side: int

    def __call__(self, image: Tensor) -> Tensor:
        """The image with the square; drawn from torch's generator."""
        height, width = image.shape[1:]
        row, column = (int(torch.randint(size, ())) for size in (height, width))
        half = self.side // 2
        top, left = max(0, row - half), max(0, column - half)
        cut = image.clone()
        cut[:, top : max(0, row - half + self.side), left : max(0, column - half + self.side)] = 0
        return cut


def searched_network(found: Found, task: Task, supernet: str = "", *, own_code: str | None = None) -> nn.Module:
    """The network of a found architecture: fresh, its gates as searched, or with the weights of its supernet.

    Args:
        found: the architecture.
        task: what the network is to learn.
        supernet: a checkpoint, or empty.
        own_code: for a network made by `package.module:factory`, that name again: what a file names is not run without
            being asked for.

    Raises:
        SearchError: the architecture is not of the network its file names.
        SourceError: its file names code that `own_code` does not.
    """
    known = {"name", "width", "blocks", "fixed", "branches"}
    if set(found.network) != known:
        raise SearchError(f"the architecture's network is described by {', '.join(sorted(known))}; got {found.network}")
    name = str(found.network["name"])
    if is_own_network(name):
        check_asked(name, () if own_code is None else (own_code,), "--network", "the architecture's network")
    if supernet:
        opened = load(supernet, own_code=own_code) if own_code else open_source(supernet).checkpoint
        model = opened.model.train()
    else:
        network = found.network
        model = build_network(
            name,
            task,
            width=network["width"],
            blocks=network["blocks"],
            fixed=network["fixed"],
            branches=network["branches"],
        )
        here = Supernet(model)
        here.put_gates(found.on(here.space).gates)
    return subnetwork(model, found.architecture)


def retrain(
    folder: RunFolder,
    found: Found,
    config: RetrainConfig,
    report: Report = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
    *,
    own_code: str | None = None,
) -> None:
    """Train `found` in `folder` to its end, on from its last checkpoint if there is one.

    Ends with a checkpoint, its fused form, and the accuracy of both. Several processes, started by `torchrun` or
    `accelerate launch`, split every mini-batch, each normalises by the statistics of its own images (see
    `joint_update.backward`), and the first one writes.

    Args:
        folder: of this retraining.
        found: the architecture.
        config: the settings.
        report: is shown every line of the metrics as it is written, and notes, as of a search.
        clock: seconds.
        own_code: as of `searched_network`.

    Raises:
        SourceError: as `searched_network`.
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
            save_at(at)
    if first:
        _finish(folder, trainer)


@final
class Trainer:
    """The moving parts of a retraining, as its configuration says."""

    def __init__(
        self,
        found: Found,
        config: RetrainConfig,
        *,
        processes: Processes = Processes(),  # noqa: B008  # frozen
        device: str | None = None,
        own_code: str | None = None,
    ) -> None:
        self.config, self.found, self.processes = config, found, processes
        self.duty = processes.duty(1, config.batch)
        self.device = chosen_device(device or config.device)
        self.task = open_data(config.data, config.test_data, image_size=config.image_size)
        self.split = self._split()
        self.steps_an_epoch = len(self.split.train) // config.batch
        if not self.steps_an_epoch:
            raise SearchError(f"{len(self.split.train)} images to learn from fill no batch of {config.batch}")
        torch.manual_seed(config.seed)
        model = searched_network(found, self.task, config.supernet, own_code=own_code)
        name = str(found.network["name"])
        self.memory_format = memory_format(model, name, self.device, wanted=config.channels_last)
        model.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        set_positions(model, config.positions)
        self.model = model
        # An architecture may have left no branch at all; then there is nothing to drop.
        self.supernet = Supernet(model) if found.architecture.size else None
        gates = [] if self.supernet is None else self.supernet.gate_parameters()
        weights = list(model.parameters()) if self.supernet is None else self.supernet.weights()
        self.optimiser = torch.optim.SGD(
            [{"params": weights, "weight_decay": config.weight_decay}, {"params": gates, "weight_decay": 0.0}],
            config.learning_rate,
            momentum=config.momentum,
        )
        self.average = None
        if config.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        self.generator = torch.Generator().manual_seed(config.seed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise than the settings say."""
        note = said_of(self.memory_format, str(self.found.network["name"]), wanted=self.config.channels_last)
        return () if note is None else (note,)

    def batches(self, epoch: int, first: int) -> Generator[tuple[Tensor, Tensor]]:
        """An epoch's training batches from the `first` on, on the device: this process's images of them."""
        for x, y in training_batches(
            self.task,
            self.split.train,
            batch=self.config.batch,
            seed=self.config.seed,
            epoch=epoch,
            first=first,
            workers=self.config.workers,
            also=Cutout(self.config.cutout) if self.config.cutout else None,
            images=self.duty.images,
        ):
            yield x.to(self.device, memory_format=self.memory_format), y.to(self.device)

    def learning_rate(self, step: int) -> float:
        """At that update, counted over all epochs."""
        done = step / (self.config.epochs * self.steps_an_epoch)
        return 0.5 * self.config.learning_rate * (1 + math.cos(math.pi * done))

    def update(self, x: Tensor, y: Tensor, step: int) -> float:
        """One mini-batch, of which `x` [n, c, h, w] and `y` are this process's images; returns its loss.

        Raises:
            SearchError: it is not finite.
        """
        self.model.train()

        def loss() -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                return self.task.loss(self._forward(x, step), y)

        parameters = list(self.model.parameters())
        (value,) = backward(self.model, parameters, [loss], "uniform", self.processes, self.duty).losses
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    def result(self) -> nn.Module:
        """The network to keep, in evaluation: the average where there is one."""
        return (self.model if self.average is None else self.average.module).eval()

    def judged(self) -> EvaluationBatches:
        """The images the result is measured on: the test images, or those held out where there are none."""
        if self.task.test is not None:
            images, positions = self.task.test, tuple(range(len(self.task.test)))
        else:
            images, positions = self.task.train, self.split.validation
        return EvaluationBatches(
            self.task,
            images,
            positions,
            batch=evaluation_batch(self.config.evaluation_batch, self.device),
            keep_bytes=_KEEP_BYTES,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "generator": self.generator.get_state(),
        }

    def restore(self, folder: RunFolder) -> Position:
        """Take up the folder's last checkpoint; returns where it is.

        Raises:
            SearchError: it is damaged or of something else.
        """
        found = kept(folder, self, FORMAT)
        if found is None:
            return Position()
        at, content = found
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.generator.set_state(content["generator"])
        return at

    def _split(self) -> Split:
        """Everything to learn from where there are test images."""
        config, count = self.config, len(self.task.train)
        if self.task.test is not None:
            used = min(config.train_images, count) if config.train_images else count
            order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))[:used]
            return Split(tuple(order.tolist()), ())
        return split(count, config.validation_share, config.seed, config.train_images)

    def _forward(self, x: Tensor, step: int) -> Any:  # noqa: ANN401  # the network's own
        """The network's output, some branches dropped; the chance grows over the run, as in DARTS."""
        chance = self.config.drop_path * step / (self.config.epochs * self.steps_an_epoch)
        if self.supernet is None or not self.config.drop_path:
            return self.model(x)
        slots = len(self.supernet.space.slots)
        kept = torch.rand(slots, generator=self.generator) >= chance
        return self.supernet(Architecture(self.supernet.space, tuple(kept.tolist())), x)


def measure_both(
    model: nn.Module,
    fused: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]] | EvaluationBatches,
    settings: EvaluationSettings,
    task: Task,
) -> tuple[float, float]:
    """The accuracy of the multi-branch network and of its fused form."""
    with evaluating(model):
        first, second = (accuracy(net, batches, settings, task.correct) for net in (model, fused))
    return first, second


def _finish(folder: RunFolder, trainer: Trainer) -> None:
    model, task, config = trainer.result(), trainer.task, trainer.config
    fused, _ = fuse_modules(model)  # VerificationError, and nothing is written, where it differs
    settings = EvaluationSettings(channels_last=trainer.memory_format == torch.channels_last, device=trainer.device)
    multi, single = measure_both(model, fused, trainer.judged(), settings, task)
    images = "test" if task.test is not None else "validation"
    for net, name, value in ((model, RETRAINED, multi), (fused, FUSED, single)):
        save(
            net,
            folder.path / name,
            class_names=task.class_names,
            normalization=task.normalization,
            input_shape=task.input_shape,
            metrics={f"{images}_accuracy": value},
        )
    folder.write_json(
        RESULT,
        {
            "schema": "repconv.retrain/1",
            "measured_on": images,
            "images": len(task.test or trainer.split.validation),
            "accuracy": multi,
            "fused_accuracy": single,
            "search_validation_accuracy": trainer.found.accuracy,
            "active_branches": trainer.found.architecture.size,
            "settings": dataclasses.asdict(config),
        },
    )
