"""What a running search holds: task, supernet, optimisers, strategy; one update and one evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from repconv.errors import SearchError

from .config import SearchConfig
from .costs.prices import Prices
from .costs.pricing import price
from .gates.bilevel import buffers_kept, second_order
from .gates.charge import charge
from .processes import Processes
from .strategies import CHARGED, SearchPlan, Strategy, create_strategy
from .strategies.evolution import Breeding
from .strategies.training import GateRule, Training
from .supernet.adaptive import AdaptiveBatch
from .supernet.architecture import Architecture
from .supernet.bank import Batches, EvaluationSettings
from .supernet.evaluate import Evaluation, evaluate
from .supernet.joint_update import backward
from .supernet.layout import memory_format, said_of
from .supernet.supernet import Supernet
from .tasks.data import open_data
from .tasks.network import build_network, set_positions
from .tasks.task import EvaluationBatches, halves, split, training_batches

_KEEP_BYTES = 2e9
"""Validation images up to this size stay in memory as they are fed to the network."""
_SETTLING_BATCH = 128
_SETTLING_POSITIONS = 512
"""Positions a channel of each batch from which a candidate's own statistics are taken."""


@final
class Session:
    """A search's moving parts, as its configuration says; the same configuration makes the same session.

    Raises:
        RepconvError: the data, the network or a setting makes no sense.
    """

    def __init__(
        self,
        config: SearchConfig,
        processes: Processes = Processes(),  # noqa: B008  # frozen
        device: str | None = None,
    ) -> None:
        self.config, self.processes = config, processes
        self.device = chosen_device(device or config.device)
        self.task = open_data(config.data, config.test_data, image_size=config.image_size)
        self.split = split(len(self.task.train), config.validation_share, config.seed, config.train_images)
        self.steps_an_epoch = len(self.split.train) // config.batch
        if not self.steps_an_epoch:
            raise SearchError(f"{len(self.split.train)} images to learn from fill no batch of {config.batch}")
        torch.manual_seed(config.seed)
        model = build_network(
            config.network,
            self.task,
            width=config.width,
            blocks=config.blocks,
            fixed=config.fixed,
            branches=config.branches,
        )
        self.memory_format = memory_format(model, config.network, self.device, wanted=config.channels_last)
        model.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        set_positions(model, config.positions)
        self.supernet = Supernet(model)
        self.initial = self.supernet.gates()
        self.budget = self.supernet.space.budget(config.ratio)
        self.weights = self.supernet.weights()
        self.gates = self.supernet.gate_parameters()
        self.weight_optimiser = torch.optim.SGD(
            self.weights, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.gate_optimiser = torch.optim.Adam(
            self.gates, config.gate_learning_rate, betas=(config.gate_beta_1, config.gate_beta_2)
        )
        self.validation = EvaluationBatches(
            self.task,
            self.task.train,
            self.split.validation,
            batch=evaluation_batch(config.evaluation_batch, self.device),
            keep_bytes=_KEEP_BYTES,
        )
        self.prices: Prices | None = None
        self.evaluation_settings = EvaluationSettings(
            torch.bfloat16 if config.evaluation_dtype == "bfloat16" else torch.float32,
            self.memory_format == torch.channels_last,
            self.device,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise than the settings say."""
        note = said_of(self.memory_format, self.config.network, wanted=self.config.channels_last)
        return () if note is None else (note,)

    @property
    def steps(self) -> int:
        """Updates in the whole search."""
        return self.config.epochs * self.steps_an_epoch

    def priced(self) -> Prices:
        """The prices of the second objective, found now, of a mini-batch as one process has it."""
        config = self.config
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(config.batch, *self.task.input_shape, generator=generator)
        return price(self.supernet, config.objective, images.to(self.device, memory_format=self.memory_format))

    def strategy(self) -> Strategy:
        """The strategy, as the configuration says, with the prices found before."""
        config = self.config
        return create_strategy(
            config.strategy,
            SearchPlan(
                space=self.supernet.space,
                budget=self.budget,
                population=config.population,
                children=round(config.offspring * config.population),
                generations=config.generations,
                initial=self.initial,
                flops=self._flops() if config.strategy in CHARGED else (),
                age=config.age,
                age_unit=config.age_unit,
                age_strength=config.age_strength,
                age_scale=config.age_scale,
                age_limit=config.age_limit,
                age_offset=config.age_offset,
                prices=self.prices,
                cost_strength=config.cost_strength,
                breeding=Breeding(
                    crossover=config.crossover,
                    mutation=config.mutation,
                    flip=config.flip,
                    disturbance=config.disturbance,
                ),
            ),
        )

    def learning_rate(self, step: int) -> float:
        """Of the weights at that update, counted over the whole search."""
        if self.config.schedule == "constant":
            return self.config.learning_rate
        return 0.5 * self.config.learning_rate * (1 + math.cos(math.pi * step / self.steps))

    def batches(
        self, epoch: int, first: int, architectures: int, rule: GateRule = "joint"
    ) -> Generator[tuple[Tensor, Tensor]]:
        """An epoch's training batches from the `first` on, on the device: what this process needs of them.

        That is all, unless processes split the batches, since an update has fewer `architectures` than there are. Where
        gates learn from other images than the weights, these are the weights' half, gone through twice.
        """
        positions = self.split.train if rule == "joint" else halves(self.split.train)[0]
        return self._read(positions, epoch, first, architectures)

    def held_out(
        self, epoch: int, first: int, architectures: int, rule: GateRule
    ) -> AbstractContextManager[Iterator[tuple[Tensor, Tensor] | None]]:
        """For each of `batches` the gates' images, of the other half; None where they learn from the weights' own."""
        if rule == "joint":
            return nullcontext(itertools.repeat(None))
        return closing(self._read(halves(self.split.train)[1], epoch, first, architectures))

    def _read(
        self, positions: Sequence[int], epoch: int, first: int, architectures: int
    ) -> Generator[tuple[Tensor, Tensor]]:
        images = self.processes.duty(architectures, self.config.batch).images
        for x, y in training_batches(
            self.task,
            positions,
            batch=self.config.batch,
            seed=self.config.seed,
            epoch=epoch,
            first=first,
            workers=self.config.workers,
            images=images,
            steps=self.steps_an_epoch,
        ):
            yield x.to(self.device, memory_format=self.memory_format), y.to(self.device)

    def update(
        self,
        x: Tensor,
        y: Tensor,
        architectures: Sequence[Architecture],
        step: int,
        training: Training = Training(),  # noqa: B008  # frozen
        held_out: tuple[Tensor, Tensor] | None = None,
    ) -> AdaptiveBatch:
        """One adaptive batch (equations 6 to 8): the weights by SGD and the gates by Adam, from the same gradients.

        Or, as `training` says, first the gates from what is `held_out`, then the weights; then running statistics are
        those of the weights' images alone. Every process runs a share of the architectures, or one on its share of the
        images, which is what `x` [n, c, h, w] and `y` then hold, and `held_out` likewise; what is returned is of its
        own.

        Raises:
            SearchError: a loss is not finite.
        """
        self.supernet.model.train()
        rate = self.learning_rate(step)
        if held_out is not None:
            with buffers_kept(self.supernet.model):
                self._judge(training.gates, (x, y), held_out, architectures, rate)
            self._move_gates(training)
        batch = self._gradients(x, y, architectures)
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip)
        for group in self.weight_optimiser.param_groups:
            group["lr"] = rate
        self.weight_optimiser.step()
        if held_out is None:
            self._move_gates(training)
        return batch

    def begin_gates(self) -> None:
        """Gates as they were at the start, and nothing in the memory of their optimiser."""
        self.supernet.put_gates(self.initial)
        self.gate_optimiser.state.clear()

    def _judge(
        self,
        rule: GateRule,
        images: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
        architectures: Sequence[Architecture],
        rate: float,
    ) -> None:
        """Leave in `.grad` of the gates their gradient by the images held out from the weights."""
        judge = partial(self._gradients, *held_out, architectures)
        if rule == "first":
            judge()
            return
        second_order(
            learn=partial(self._gradients, *images, architectures),
            judge=judge,
            weights=self.weights,
            gates=self.gates,
            optimiser=self.weight_optimiser,
            rate=rate,
        )

    def _move_gates(self, training: Training) -> None:
        if training.charges:
            charge(self.supernet, training.charges)
        self.gate_optimiser.step()

    def _gradients(self, x: Tensor, y: Tensor, architectures: Sequence[Architecture]) -> AdaptiveBatch:
        """Leave in `.grad` of weights and gates the sum over all processes' sub-networks."""
        duty = self.processes.duty(len(architectures), self.config.batch)

        def loss_of(architecture: Architecture) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                return self.task.loss_of(self.supernet(architecture, x), y)

        losses = [partial(loss_of, architectures[number]) for number in duty.networks]
        return backward(
            self.supernet.model, [*self.weights, *self.gates], losses, self.config.weighting, self.processes, duty
        )

    def _flops(self) -> tuple[float, ...]:
        """Of every slot, on one image."""
        image = torch.zeros(1, *self.task.input_shape, device=self.device).to(memory_format=self.memory_format)
        return price(self.supernet, "flops", image).slots

    def measure(self, architectures: Sequence[Architecture], dtype: torch.dtype | None = None) -> Evaluation:
        """The validation accuracy of each as a single-path network; every process measures a share.

        The times are of this process. dtype: of the networks; None: as the configuration says, float32 for "auto".
        """
        settings = self.evaluation_settings if dtype is None else replace(self.evaluation_settings, dtype=dtype)
        with settling(self.supernet, self.config.positions):
            found = evaluate(
                self.supernet,
                self.processes.share(architectures),
                self.validation,
                settings,
                correct=self.task.correct,
                reestimation=self.settling_images(),
            )
        return replace(found, accuracies=tuple(self.processes.gathered(found.accuracies)))

    def state(self) -> dict[str, Any]:
        """Weights, statistics and optimisers."""
        return {
            "model": self.supernet.model.state_dict(),
            "weight_optimiser": self.weight_optimiser.state_dict(),
            "gate_optimiser": self.gate_optimiser.state_dict(),
        }

    def put_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.supernet.model.load_state_dict(state["model"])
        self.weight_optimiser.load_state_dict(state["weight_optimiser"])
        self.gate_optimiser.load_state_dict(state["gate_optimiser"])

    def settling_images(self) -> Batches:
        """Training images from which every candidate takes its own statistics; none where it takes the supernet's."""
        count = self.config.reestimation_images
        if not count:
            return ()
        chosen = EvaluationBatches(
            self.task, self.task.train, self.split.train[:count], batch=min(_SETTLING_BATCH, count), keep_bytes=0
        )
        return [(x.to(self.device, memory_format=self.memory_format), y) for x, y in chosen]


def evaluation_batch(wanted: int, device: torch.device) -> int:
    """Images measured at a time: what is wanted, or what suits the device, a CPU's caches."""
    return wanted or (64 if device.type == "cpu" else 512)


def chosen_device(name: str) -> torch.device:
    """The device of that name; "auto": a GPU if there is one.

    Raises:
        SearchError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SearchError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def settling(supernet: Supernet, positions: int) -> Iterator[None]:
    """Candidates take their statistics from a sample of positions, every block as one convolution; cf. training."""
    set_positions(supernet.model, _SETTLING_POSITIONS)
    try:
        yield
    finally:
        set_positions(supernet.model, positions)
