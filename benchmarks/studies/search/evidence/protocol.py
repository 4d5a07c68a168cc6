"""The protocol: which searches and trainings there are, each by a name, in the order in which they are worth having.

All of a ResNet of width 8 with three units on CIFAR-10. A search sees 10,000 images to learn from and 5,000 others to
judge by; a training sees 10,000 and is measured on 5,000 test images. Seeds differ in images, weights and draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from repconv import create_model
from repconv.search.config import SearchConfig
from repconv.search.retrain_config import RetrainConfig
from repconv.search.settings import changed
from repconv.search.strategies.evolution import first_population
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.supernet import Gates, Supernet

SEEDS = (0, 1, 2)
TRAIN, TEST = "imagefolder:cifar10-train.zip", "imagefolder:cifar10-test.zip"

SEARCH = SearchConfig(
    network="irep_resnet18", width=8, blocks=(1, 1, 1), data=TRAIN, train_images=15_000, validation_share=1 / 3,
    population=12, epochs=10, warmup_epochs=2, generation_epochs=1, architectures=2, positions=256,
    evaluation_dtype="float32", checkpoint_steps=78,
)  # fmt: skip
TRAINING = RetrainConfig(
    data=TRAIN, test_data=TEST, train_images=10_000, epochs=6, batch=128, learning_rate=0.1, weight_decay=1e-4,
    cutout=0, drop_path=0, positions=256, checkpoint_steps=78,
)  # fmt: skip

POPULATIONS = ("des", "random", "aging", "aging-rescored", "cars")
SINGLE = ("gradient", "darts", "darts-second", "pdarts", "repnas", "gold")
STRATEGIES = (*POPULATIONS, *SINGLE)
"""Compared with each other, at equal updates: those that find a population, and those that find one architecture."""
RATIOS: Mapping[str, float] = {"1-6": 1 / 6, "1-3": 1 / 3, "1-2": 1 / 2, "5-6": 5 / 6, "1": 1.0}
"""Of the paper's Table 4, but for 2/3, which is usual."""
AGES: Mapping[str, tuple[str, ...]] = {
    "no-age": ("age=false",),
    "age-published": ("offspring=1", "disturbance=range", "age_unit=accuracy"),
    "age-half": ("age_strength=0.5",),
    "age-double": ("age_strength=2",),
    "one-child": ("offspring=1",),
}
"""What of age and children is otherwise than usual."""
VARIANTS: Mapping[str, tuple[str, ...]] = {
    **{name: (f"strategy={name}",) for name in STRATEGIES},
    **AGES,
    **{f"ratio-{name}": (f"ratio={value}",) for name, value in RATIOS.items()},
}
"""Searches, by what of them is otherwise than usual."""
SCORED = ("random", "des")
"""Whose supernets score the drawn architectures."""
FIGURE_4 = 10
"""How many of each of Figure 4's two populations are trained; three of a strategy, the best of other searches."""

SETS_TRAINING = replace(TRAINING, width=8, blocks=(1, 1, 1), epochs=12, measure_epochs=1)
SETS: Mapping[str, tuple[str, ...]] = {
    "plain": ("network=resnet18", "positions=0"),
    "RepVGG": ("network=repvgg_resnet18",),
    "ACNet": ("network=acnet_resnet18",),
    "DBB": ("network=dbb_resnet18",),
    "all ten": ("network=irep_resnet18",),
    "DyRep": ("network=irep_resnet18", "grow_epochs=1"),
}
"""Sets of branches, trained as they are, and DyRep's, which grow out of all ten kinds."""


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """A search, and whether its supernet scores what is drawn."""

    name: str
    config: SearchConfig
    scored: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training from scratch: of what a search found, of a drawn architecture, or of a set of branches.

    rank: of what was found, from 0 on. drawn: the number of what was drawn.
    search: the search that found it, or whose supernet scored it; empty for a set of branches.
    """

    name: str
    config: RetrainConfig
    search: str = ""
    rank: int | None = None
    drawn: int | None = None


Job = SearchJob | TrainingJob


def jobs() -> Iterator[Job]:
    """All of them; some twice, where two questions ask for them."""
    yield from (of_set(name, seed) for seed in SEEDS for name in SETS)
    for seed in SEEDS:
        yield from (searching(name, seed) for name in ("des", "random", "no-age", "age-published"))
    for name in STRATEGIES:
        ranks = range(3) if name in POPULATIONS else range(1)
        for seed in SEEDS:
            yield searching(name, seed)
            yield from (training(name, seed, rank=rank) for rank in ranks)
    for seed in SEEDS:
        yield from (training("random", seed, drawn=number) for number in range(len(drawn())))
    for name in VARIANTS:
        for seed in SEEDS:
            yield searching(name, seed)
            yield training(name, seed, rank=0)
    for name in ("des", "no-age"):
        yield from (training(name, seed, rank=rank) for seed in SEEDS for rank in range(FIGURE_4))


def searching(variant: str, seed: int) -> SearchJob:
    """A search of that variant."""
    config = replace(changed(SEARCH, VARIANTS[variant]), seed=seed)
    return SearchJob(name=f"search/{variant}-{seed}", config=config, scored=variant in SCORED)


def training(variant: str, seed: int, *, rank: int | None = None, drawn: int | None = None) -> TrainingJob:
    """The training of what that search found, or scored."""
    which = f"drawn-{drawn:02d}" if rank is None else f"{variant}-{rank}"
    return TrainingJob(
        name=f"training/{which}-{seed}",
        config=replace(TRAINING, seed=seed),
        search=f"search/{variant}-{seed}",
        rank=rank,
        drawn=drawn,
    )


def of_set(name: str, seed: int) -> TrainingJob:
    """The training of a set of branches."""
    config = replace(changed(SETS_TRAINING, SETS[name]), seed=seed)
    return TrainingJob(name=f"training/{set_name(name)}-{seed}", config=config)


def of_ratio(ratio: str) -> str:
    """The variant that is searched with this share of the branches, `2/3` or so."""
    name = ratio.replace("/", "-")
    return f"ratio-{name}" if name in RATIOS else "des"


def set_name(name: str) -> str:
    """What a set of branches is called among files."""
    return f"set-{name.replace(' ', '-')}"


def drawn() -> tuple[Architecture, ...]:
    """24 architectures of the usual budget, then 21 of others; with three of the first, 24 of mixed sizes."""
    space = Supernet(_network()).space
    generator = torch.Generator().manual_seed(0)
    found = list(first_population(space, space.budget(2 / 3), 24, generator))
    for ratio in (1 / 6, 1 / 3, 1 / 2, 5 / 6):
        found += first_population(space, space.budget(ratio), 5, generator)
    return (*found, Architecture.full(space))


FIXED_SIZE, MIXED_SIZES = range(24), (0, 1, 2, *range(24, 45))
"""Numbers of drawn architectures."""


def start() -> Gates:
    """The gates of a fresh network."""
    return Supernet(_network()).gates()


def _network() -> torch.nn.Module:
    return create_model(SEARCH.network, num_classes=10, width=SEARCH.width, blocks=SEARCH.blocks)
