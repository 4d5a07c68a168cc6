"""The paper's three settings, and two small ones, each value marked as the paper's or ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType

from repconv.errors import SearchError

from .config import SearchConfig


@dataclass(frozen=True)
class Preset:
    """Settings, and which of them the paper gives; the others it leaves open, and they are this project's choice."""

    what: str
    config: SearchConfig
    paper: frozenset[str]

    def origin(self, key: str) -> str:
        """Whose value a setting is: "paper" or "ours"."""
        return "paper" if key in self.paper else "ours"


_PAPER = frozenset({
    "network", "branches", "fixed", "strategy", "ratio", "population", "crossover", "mutation", "disturbance", "age",
    "age_unit", "age_scale", "age_limit", "age_offset", "generation_epochs", "epochs", "architectures", "weighting",
    "learning_rate", "gate_learning_rate", "gate_beta_1", "gate_beta_2",
})  # fmt: skip
"""Of sections 3 and 4.1. The paper follows CARS where it says nothing: warm-up, momentum, weight decay."""

_AS_PUBLISHED = SearchConfig(offspring=1.0, disturbance="range", age_unit="accuracy", reestimation_images=0)
"""What the paper does otherwise than this project found to select (docs/search.md)."""
_CIFAR10 = replace(_AS_PUBLISHED, network="irep_resnet18")
_IMAGENET = replace(
    _AS_PUBLISHED,
    network="irep_resnet50",
    image_size=224,
    branches=("1x3", "3x1", "1x1", "1x1_3x3", "avg", "skip", "1x2_d2", "2x1_d2"),
    ratio=1 / 2,
    epochs=100,
    warmup_epochs=5,
    architectures=1,
    batch=256,
    age_limit=5.0,
    gate_learning_rate=1e-4,
    workers=8,
    precision="bfloat16",
    evaluation_batch=256,
)

PRESETS: Mapping[str, Preset] = MappingProxyType({
    "cifar10-resnet18": Preset("the paper's search of ResNet-18 on CIFAR-10", _CIFAR10, _PAPER),
    "cifar10-vgg16": Preset(
        "the paper's search of VGG-16 on CIFAR-10", replace(_AS_PUBLISHED, network="irep_vgg16"), _PAPER
    ),
    "imagenet-resnet50": Preset(
        "the paper's search of ResNet-50 on ImageNet", _IMAGENET,
        (_PAPER - {"population", "generation_epochs"}) | {"batch", "warmup_epochs"},
    ),
    "cifar10-small": Preset(
        "a ResNet of width 16 and three stages on CIFAR-10, a few hours on two cores",
        SearchConfig(
            network="irep_resnet18", width=16, blocks=(1, 1, 1), population=16, epochs=24, warmup_epochs=4,
            generation_epochs=2, architectures=2, positions=1024, age_limit=5.0, checkpoint_steps=100,
        ),
        frozenset({"strategy", "ratio", "crossover", "mutation", "age", "age_scale", "age_offset", "weighting",
                   "learning_rate", "gate_learning_rate", "gate_beta_1", "gate_beta_2"}),
    ),
    "smoke": Preset(
        "scikit-learn's digits, under two minutes on two cores: does it run?",
        SearchConfig(
            network="irep_resnet18", width=8, blocks=(1, 1), data="digits", population=8, epochs=12, warmup_epochs=3,
            generation_epochs=3, architectures=2, batch=64, validation_share=0.2, checkpoint_steps=20,
        ),
        frozenset(),
    ),
})  # fmt: skip
"""By name."""


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        SearchError: there is none.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = get_close_matches(name, PRESETS, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise SearchError(f"unknown preset {name!r}{hint}; they are {', '.join(PRESETS)}")
