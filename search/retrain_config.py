"""`RetrainConfig`: every setting of a retraining, and presets of the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from repconv.errors import SearchError

from .settings import changed, check_least, check_seed, check_shares, unknown

SCHEMA = "repconv.retrain-config/1"


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Settings by name.

    network: a name of `repconv.list_models()` that is trained as it is, all of its branches from the start; empty
        where an architecture says what to train. width, blocks, fixed, branches: of that network, as in `SearchConfig`.
    data, test_data, image_size, train_images: see `SearchConfig`. validation_share: held out and measured at the end
        where there are no test images.
    supernet: checkpoint of a search whose weights training goes on from; empty: from scratch.
    epochs, batch, learning_rate, momentum, weight_decay, clip: as in `SearchConfig`; the rate falls as a cosine to 0.
        Gates learn with the weights, without decay.
    cutout: side of the square put to the mean, 0 for none. drop_path: chance of a branch to be left out of a mini-batch
        at the end of training; it grows from 0. ema: decay of the average of the weights that is kept, 0 for none.
    grow_epochs: train as DyRep does: from the plain network under the name, whose blocks get the kinds of branches its
        name stands for (of a plain one the authors' six), or `branches`; its structure is adapted after every so many
        epochs, 0: never. grow_blocks: blocks that grow each time. grow_until: adapted until this share of the epochs.
        cut_below: branches are cut whose scale is below this share of the 3x3's, and below their mean; 0: none.
    measure_epochs: epochs after which the network is measured under way, each time so many; 0: at the end alone.
    positions, device, precision, channels_last, workers, seed, checkpoint_steps, evaluation_batch: as there.

    Raises:
        SearchError: a value that makes no sense, with the name of the setting.
    """

    network: str = ""
    width: int = 0
    blocks: tuple[int, ...] = ()
    fixed: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    data: str = ""
    test_data: str = ""
    image_size: int = 0
    train_images: int = 0
    validation_share: float = 0.1
    supernet: str = ""
    epochs: int = 600
    batch: int = 96
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    cutout: int = 16
    drop_path: float = 0.08
    ema: float = 0.0
    grow_epochs: int = 0
    grow_blocks: int = 1
    grow_until: float = 5 / 6
    cut_below: float = 0.1
    measure_epochs: int = 0
    positions: int = 0
    evaluation_batch: int = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    workers: int = 0
    seed: int = 0
    checkpoint_steps: int = 500

    def __post_init__(self) -> None:
        check_least(
            self,
            {
                "width": 0,
                "image_size": 0,
                "train_images": 0,
                "epochs": 1,
                "batch": 2,
                "learning_rate": 0,
                "weight_decay": 0,
                "clip": 0,
                "cutout": 0,
                "grow_epochs": 0,
                "grow_blocks": 1,
                "cut_below": 0,
                "measure_epochs": 0,
                "positions": 0,
                "evaluation_batch": 0,
                "workers": 0,
                "seed": 0,
                "checkpoint_steps": 1,
            },
        )
        check_seed(self.seed)
        check_shares(self, ("momentum", "validation_share", "drop_path", "ema", "grow_until"))


@dataclass(frozen=True, kw_only=True)
class RetrainPreset:
    """Settings, and which of them the paper gives; whether training goes on from a supernet, which the user names."""

    what: str
    config: RetrainConfig
    paper: frozenset[str]
    goes_on: bool = False


RETRAIN_PRESETS: Mapping[str, RetrainPreset] = MappingProxyType({
    "cifar10": RetrainPreset(
        what="the paper's retraining on CIFAR-10: DARTS' with its own rate and drop-path",
        config=RetrainConfig(),
        paper=frozenset(
            {"epochs", "batch", "learning_rate", "momentum", "weight_decay", "clip", "cutout", "drop_path"}
        ),
    ),
    "imagenet": RetrainPreset(
        what="the paper's on ImageNet: the supernet trained further with its structure frozen",
        config=RetrainConfig(
            image_size=224, epochs=120, batch=256, learning_rate=0.1, weight_decay=1e-4, clip=0.0, cutout=0,
            drop_path=0.0, workers=8, precision="bfloat16", evaluation_batch=256,
        ),
        paper=frozenset({"epochs"}),
        goes_on=True,
    ),
    "cifar10-small": RetrainPreset(
        what="thirty epochs with sampled statistics, a few hours on two cores",
        config=RetrainConfig(epochs=30, batch=128, learning_rate=0.1, cutout=8, drop_path=0.04, positions=1024),
        paper=frozenset({"momentum", "weight_decay", "clip"}),
    ),
    "smoke": RetrainPreset(
        what="digits, under a minute",
        config=RetrainConfig(data="digits", epochs=10, batch=64, cutout=2, drop_path=0.04, learning_rate=0.1),
        paper=frozenset(),
    ),
})  # fmt: skip
"""By name."""


def retrain_preset(name: str) -> RetrainPreset:
    """The preset of that name.

    Raises:
        SearchError: there is none.
    """
    if name not in RETRAIN_PRESETS:
        raise SearchError(unknown("preset", name, RETRAIN_PRESETS))
    return RETRAIN_PRESETS[name]


def complete(preset_name: str, settings: Iterable[str]) -> RetrainConfig:
    """The settings of a preset, changed by `key=value` texts.

    Raises:
        SearchError: no such preset, a setting that makes no sense, or one the preset needs and nobody gave.
    """
    preset = retrain_preset(preset_name)
    config = changed(preset.config, settings)
    if not config.data:
        raise SearchError(f"preset {preset_name} needs images: give --data, such as --data cifar10:PATH")
    if preset.goes_on and not config.supernet and not config.network:
        raise SearchError(
            f"preset {preset_name} goes on from the weights of a search: give its supernet, such as "
            "--set supernet=runs/a/supernet.pt; the other presets start from scratch"
        )
    return config
