"""What a running retraining holds: task, network, optimiser, average; one update, one measurement."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import ExitStack
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from repconv.blocks.block import RepBlock
from repconv.errors import SearchError

from ..folder import RunFolder
from ..processes import Processes
from ..reports.found import Found
from ..resuming import Position, kept
from ..retrain_config import RetrainConfig
from ..session import chosen_device, evaluation_batch
from ..supernet.architecture import Architecture
from ..supernet.bank import EvaluationSettings
from ..supernet.evaluate import accuracy
from ..supernet.joint_update import backward
from ..supernet.layout import memory_format, said_of
from ..supernet.records import GROWTH
from ..supernet.supernet import Supernet, evaluating
from ..tasks.data import open_data
from ..tasks.network import set_positions
from ..tasks.task import EvaluationBatches, Split, split, training_batches
from .cutout import Cutout
from .growth import Growth, apply_change, block_of, kinds_to_grow, put_structure
from .start import starting_network

FORMAT = "repconv.retrain-checkpoint/1"
_KEEP_BYTES = 2e9
_ADAPTING_IMAGES = 128
"""Training images by which statistics of new branches are measured."""


@final
class Trainer:
    """The moving parts of a retraining, as its configuration says; `found` is None for a network by its name."""

    def __init__(
        self,
        found: Found | None,
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
        model = starting_network(found, config, self.task, own_code)
        self.name = config.network if found is None else str(found.network["name"])
        self.memory_format = memory_format(model, self.name, self.device, wanted=config.channels_last)
        model.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        set_positions(model, config.positions)
        self.model = model
        # Where no branch has a gate there is nothing to drop.
        self.supernet = Supernet(model) if self.gated_branches else None
        gates = [] if self.supernet is None else self.supernet.gate_parameters()
        weights = list(model.parameters()) if self.supernet is None else self.supernet.weights()
        self.growth = Growth(model, kinds_to_grow(config.network, config.branches)) if config.grow_epochs else None
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
        note = said_of(self.memory_format, self.name, wanted=self.config.channels_last)
        dropped = None
        if self.config.drop_path and self.supernet is None:
            dropped = f"drop_path leaves out branches with gates, and {self.name} has none here: nothing is dropped"
        never = None
        if self.growth is not None and not any(map(self.adapts_after, range(1, self.config.epochs))):
            never = (
                f"grow_epochs={self.config.grow_epochs} with grow_until={self.config.grow_until:.3g} adapts nothing in "
                f"{self.config.epochs} epochs: the plain network is trained"
            )
        return tuple(said for said in (note, dropped, never) if said is not None)

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """The branches of every block, by its name: fixed ones first."""
        blocks = ((name, module) for name, module in self.model.named_modules() if isinstance(module, RepBlock))
        return {name: (*block.branch_set.fixed, *block.branch_set.searchable) for name, block in blocks}

    @property
    def gated_branches(self) -> int:
        """Branches that have a gate, in all blocks."""
        blocks = (module for module in self.model.modules() if isinstance(module, RepBlock))
        return sum(len(block.branch_set.searchable) for block in blocks)

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
                return self.task.loss_of(self._forward(x, step), y)

        parameters = list(self.model.parameters())
        (value,) = backward(self.model, parameters, [loss], "uniform", self.processes, self.duty).losses
        if self.growth is not None:
            self.growth.note()
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    def adapts_after(self, epochs: int) -> bool:
        """Whether the structure is adapted when that many epochs are done: never after the last."""
        config = self.config
        if self.growth is None or epochs % config.grow_epochs:
            return False
        return epochs < config.epochs and epochs <= config.grow_until * config.epochs

    def adapt(self, epochs: int) -> dict[str, Any]:
        """Let blocks grow and cut branches, as the first process decides; what the metrics say of it.

        The network computes in evaluation what it did, and so does the average. The optimiser keeps what it knows of
        the parameters that stay.
        """
        growth, config = self.growth, self.config
        assert growth is not None  # noqa: S101  # as `adapts_after` said
        told = self.processes.decided((growth.change(config.grow_blocks, config.cut_below), growth.saliency()))
        change, saliency = told
        growth.forget()
        models = [self.model, *([] if self.average is None else [self.average.module])]
        count = min(_ADAPTING_IMAGES, len(self.split.train))
        chosen = EvaluationBatches(self.task, self.task.train, self.split.train[:count], batch=count, keep_bytes=0)
        ((images, _),) = chosen
        images = images.to(self.device, memory_format=self.memory_format)
        apply_change(models, change, images, seed=(config.seed + epochs) % 2**63)
        for name in (*change.grown, *change.cut):
            for block in (block_of(model, name) for model in models):
                state = {key: value.cpu() for key, value in block.state_dict().items()}
                block.load_state_dict(self.processes.decided(state))  # devices may round otherwise
        self._follow_structure()
        return {
            "kind": GROWTH,
            "epoch": epochs,
            "step": epochs * self.steps_an_epoch,
            "grown": change.grown,
            "cut": change.cut,
            "saliency": saliency,
            "branches": sum(map(len, self.blocks.values())),
        }

    def _follow_structure(self) -> None:
        """Train the parameters that the network has now, in its order, and forget those it had."""
        weights = list(self.model.parameters())
        self.optimiser.param_groups[0]["params"] = weights
        for gone in set(self.optimiser.state) - set(weights):
            del self.optimiser.state[gone]

    def result(self) -> nn.Module:
        """The network to keep: the average where there is one."""
        return self.model if self.average is None else self.average.module

    @cached_property
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

    @property
    def measured_on(self) -> str:
        """What `judged` is: `test` or `validation`."""
        return "validation" if self.task.test is None else "test"

    def measure(self, *networks: nn.Module) -> tuple[float, ...]:
        """The accuracy of each on the judged images, in evaluation; afterwards they are in the mode they were in."""
        settings = EvaluationSettings(channels_last=self.memory_format == torch.channels_last, device=self.device)
        with ExitStack() as modes:
            for network in networks:
                modes.enter_context(evaluating(network))
            return tuple(accuracy(network, self.judged, settings, self.task.correct) for network in networks)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "generator": self.generator.get_state(),
            "growth": None if self.growth is None else self.growth.state(),
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
        if self.growth is not None:
            self.growth.put_state(content["growth"])
            for model in (self.model, *([] if self.average is None else [self.average.module])):
                put_structure(model, content["growth"]["blocks"])
            self._follow_structure()
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
