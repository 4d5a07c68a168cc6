"""`SearchConfig`: every setting of a search run, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from repconv.errors import SearchError

from .costs.prices import Objective
from .retrain_config import SCHEMA as RETRAINING
from .settings import check_least, check_seed, check_shares, settings_from_dict, settings_to_dict, unknown
from .strategies import COSTED, STRATEGIES
from .strategies.evolution import Disturbance, check_age
from .strategies.protocol import AgeUnit
from .supernet.adaptive import Weighting

SCHEMA = "repconv.search-config/2"
FORMER = "repconv.search-config/1"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings by name. The order groups them: network, data, strategy, training, evaluation, machine.

    network: a name of `repconv.list_models()`, or any SOURCE of the command line. width, blocks: of our own networks,
        0 and empty for the name's own. fixed, branches: kinds of branches, empty for the network's own (of a plain
        one: `3x3`, and the paper's other nine).
    data, test_data, image_size: see `repconv.search.tasks.data.open_data`. train_images: how many to use, 0 for all.
        validation_share: of them, held out by seed to judge architectures.
    strategy: how to search. ratio: the budget, as a share of all searchable branches. population: that live on.
        offspring: children a generation, in populations (the paper's t). crossover, mutation: chances; flip: of each
        slot. disturbance: of the gates that rank a child's slots (see `disturbed_factors`). age: whether scores have
        the age term; age_scale, age_limit, age_offset: its eta, a and mu. age_unit: "accuracy" takes it as equation 14
        says; "spread" in units of how far the accuracies of a generation are apart, a life costing age_strength
        standard deviations.
    objective: what architectures shall save of the multi-branch network beside being accurate: "branches", "flops" or
        "latency" of its forward pass. cost_strength: standard deviations of a generation's accuracies that the network
        with every branch costs; for `cars` the cost is the second objective, whatever the strength.
    epochs: in all, warm-up included. warmup_epochs: of fresh random architectures. generation_epochs: of training a
        generation. patience: the search ends after so many generations without a better best accuracy; 0: never before
        its epochs.
    architectures: sub-networks a mini-batch (the paper's B). weighting: of their gradients.
    batch, learning_rate, momentum, weight_decay, clip: of the weights (SGD; clip: largest gradient norm, 0 for any).
    schedule: of their learning rate. gate_learning_rate, gate_beta_1, gate_beta_2: of the gates (Adam).
    positions: batch statistics from about this many positions a channel (training a block as one convolution); 0:
        branch by branch.
    evaluation_batch, evaluation_dtype: how candidates are measured; a batch of 0 is one that suits the device: 64 on a
        CPU, whose caches hold no more, else 512; a dtype of "auto" is bfloat16 where the device multiplies it itself
        and ranks the first generation as float32 does (see `precision`).
    reestimation_images: training images from which each candidate's batch statistics are taken anew, 0: those of the
        supernet, which are of other masks, too.
    device: "auto", "cpu", "cuda" ... precision: of training. channels_last: memory format of both, where it
        is safe (see `supernet.layout`). workers: processes that load images. seed: of everything. checkpoint_steps:
        updates between checkpoints.

    Raises:
        SearchError: a value that makes no sense, with the name of the setting.
    """

    network: str = "irep_resnet18"
    width: int = 0
    blocks: tuple[int, ...] = ()
    fixed: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    data: str = ""
    test_data: str = ""
    image_size: int = 0
    train_images: int = 0
    validation_share: float = 0.1
    strategy: str = "des"
    ratio: float = 2 / 3
    population: int = 128
    offspring: float = 2.0
    crossover: float = 0.5
    mutation: float = 0.5
    flip: float = 0.05
    disturbance: Disturbance = "spread"
    age: bool = True
    age_unit: AgeUnit = "spread"
    age_strength: float = 1.0
    age_scale: float = 0.05
    age_limit: float = 10.0
    age_offset: float = 0.01
    objective: Objective = "none"
    cost_strength: float = 1.0
    epochs: int = 500
    warmup_epochs: int = 50
    generation_epochs: int = 10
    patience: int = 0
    architectures: int = 5
    weighting: Weighting = "softmax"
    batch: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    gate_learning_rate: float = 0.03
    gate_beta_1: float = 0.5
    gate_beta_2: float = 0.999
    positions: int = 0
    evaluation_batch: int = 0
    evaluation_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    reestimation_images: int = 256
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    workers: int = 0
    seed: int = 0
    checkpoint_steps: int = 200

    def __post_init__(self) -> None:
        check_least(self, _LEAST)
        check_seed(self.seed)
        check_shares(self, ("momentum", "gate_beta_1", "gate_beta_2", "validation_share"))
        for name in ("crossover", "mutation", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise SearchError(f"{name} is a chance from 0 to 1, got {getattr(self, name)}")
        if not 0 < self.ratio <= 1:
            raise SearchError(f"ratio is above 0 and at most 1, got {self.ratio}")
        if self.strategy not in STRATEGIES:
            raise SearchError(unknown("strategy", self.strategy, STRATEGIES))
        if self.objective != "none" and self.strategy not in COSTED:
            raise SearchError(
                f"objective={self.objective} is for strategies that score architectures, {', '.join(COSTED)}; "
                f"{self.strategy} follows the gates alone: leave it out"
            )
        if self.epochs <= self.warmup_epochs:
            raise SearchError(
                f"epochs count the warm-up: {self.epochs} with warmup_epochs={self.warmup_epochs} leave none to search"
            )
        if self.age:
            check_age(scale=self.age_scale, limit=self.age_limit, offset=self.age_offset)

    @property
    def network_settings(self) -> dict[str, Any]:
        """What `build_network` needs of it, as JSON holds it."""
        return {
            "name": self.network,
            "width": self.width,
            "blocks": list(self.blocks),
            "fixed": list(self.fixed),
            "branches": list(self.branches),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """What an architecture says of the search that found it: the settings that decide what is found."""
        elsewhere = ("data", "test_data", "device", "workers", "channels_last", "checkpoint_steps")
        return {key: value for key, value in settings_to_dict(self, SCHEMA).items() if key not in elsewhere}

    @property
    def generations(self) -> int:
        """How often the strategy is told; the last generation may be shorter."""
        return -(-(self.epochs - self.warmup_epochs) // self.generation_epochs)


def config_from_dict(content: object, where: str = "the configuration") -> SearchConfig:
    """The configuration in a file; one of the former schema means what it did.

    Raises:
        SearchError: see `settings_from_dict`.
    """
    if isinstance(content, Mapping) and content.get("schema") == RETRAINING:
        raise SearchError(f"{where} is of a retraining; a search was expected")
    if isinstance(content, Mapping) and content.get("schema") == FORMER:
        content = {**_FORMERLY, **content, "schema": SCHEMA}
    return settings_from_dict(SearchConfig, SCHEMA, content, where)


_FORMERLY: Mapping[str, object] = {
    "offspring": 1.0, "disturbance": "range", "age_unit": "accuracy", "evaluation_batch": 512,
    "evaluation_dtype": "float32", "reestimation_images": 0,
}  # fmt: skip
_LEAST: Mapping[str, float] = {
    "width": 0, "image_size": 0, "train_images": 0, "population": 1, "offspring": 0, "epochs": 1, "warmup_epochs": 0,
    "generation_epochs": 1, "patience": 0, "architectures": 1, "batch": 2, "learning_rate": 0, "weight_decay": 0,
    "clip": 0, "gate_learning_rate": 0, "positions": 0, "evaluation_batch": 0, "reestimation_images": 0, "workers": 0,
    "seed": 0, "checkpoint_steps": 1, "age_strength": 0, "cost_strength": 0,
}  # fmt: skip
