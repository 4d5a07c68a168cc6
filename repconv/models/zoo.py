"""Networks by name: a plain base, and the same base expanded with a set of branches.

A name is a base (`resnet18`) or a set and a base (`irep_resnet18`): every multi-branch network is `expand` of a plain
one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from torch import nn

from ..blocks.block import BranchSet
from ..errors import GeometryError
from ..expansion.expand import expand
from .libraries import create_named
from .resnet import ResNet
from .spec import ModelSpec
from .vgg import VGG

BASES: Mapping[str, Mapping[str, object]] = MappingProxyType({
    "vgg16": {"blocks": (2, 2, 3, 3, 3), "num_classes": 10},
    "resnet18": {"unit": "basic", "blocks": (2, 2, 2, 2), "stem": "cifar", "num_classes": 10},
    "resnet34": {"unit": "basic", "blocks": (3, 4, 6, 3), "stem": "imagenet", "num_classes": 1000},
    "resnet50": {"unit": "bottleneck", "blocks": (3, 4, 6, 3), "stem": "imagenet", "num_classes": 1000},
})  # fmt: skip
"""Plain networks and their defaults: the data set the paper trains each on (ResNet-34: as ResNet-50)."""

SETS: Mapping[str, BranchSet] = MappingProxyType({
    "irep": BranchSet(("3x3",), ("1x3", "3x1", "1x1", "1x1_3x3", "avg", "skip", "1x2_d2", "2x1_d2", "2x2_d2")),
    "repvgg": BranchSet(("3x3", "1x1", "skip")),
    "acnet": BranchSet(("3x3", "1x3", "3x1")),
    "dbb": BranchSet(("3x3", "1x1", "1x1_3x3", "avg")),
})  # fmt: skip
"""Sets of branches. `irep` is the paper's ten kinds, whatever others `BRANCHES` has; on a VGG, `skip` is fixed as well.

The others are all fixed.
"""


def list_models() -> list[str]:
    """Every name `create_model` knows."""
    return [*BASES, *(f"{prefix}_{base}" for prefix in SETS for base in BASES)]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    width: int | None = None,
    blocks: Sequence[int] | None = None,
    stem: Literal["imagenet", "cifar"] | None = None,
    in_channels: int | None = None,
    fixed: Iterable[str] | None = None,
    branches: Iterable[str] | None = None,
) -> nn.Module:
    """A network of `list_models()` with fresh weights, in training mode; None means the name's own default.

    Args:
        name: a base (`resnet18`, plain) or a set of branches and a base (`irep_resnet18`).
        num_classes: logits.
        width: channels of the first stage (64).
        blocks: residual units (ResNet) or convolutions (VGG) a stage, of any number of stages.
        stem: "imagenet" or "cifar", ResNets only.
        in_channels: channels of the image (3).
        fixed: kinds of branches without a gate, instead of the set's.
        branches: searchable kinds of branches, instead of the set's.

    Raises:
        GeometryError: an unknown name, or an argument the network does not have.
    """
    given = {
        "num_classes": num_classes, "width": width, "stem": stem, "in_channels": in_channels,
        "blocks": tuple(blocks) if isinstance(blocks, Iterable) else blocks,
    }  # fmt: skip
    base, branch_set = resolve(name)
    arguments = {**BASES[base], **{key: value for key, value in given.items() if value is not None}}
    model = create_plain(ModelSpec(name, arguments))
    if branch_set is None and fixed is None and branches is None:
        return model
    default = branch_set or BranchSet(("3x3",))
    return expand(
        model,
        fixed=default.fixed if fixed is None else fixed,
        branches=default.searchable if branches is None else branches,
    )


def create_plain(spec: ModelSpec) -> nn.Module:
    """The network of `spec` as it was before any expanding, of new weights; it keeps `spec` as `model.spec`.

    Raises:
        GeometryError: an unknown name, or an argument the network does not have.
        SourceError, BackendError: as `create_named`, for a network of another package.
    """
    if ":" in spec.name:
        return create_named(spec.name, arguments=spec.arguments)
    base, _ = resolve(spec.name)
    family = VGG if base.startswith("vgg") else ResNet
    _check(spec, inspect.signature(family).parameters)
    model = family(**spec.arguments)  # type: ignore[arg-type]  # checked just above
    model.spec = spec  # type: ignore[assignment]  # nn.Module types attributes as tensors or modules
    return model


def _check(spec: ModelSpec, known: Mapping[str, object]) -> None:
    """Raise unless every argument of `spec` is one of the network's and a whole number where one is meant."""
    unknown = set(spec.arguments) - set(known)
    if unknown:
        raise GeometryError(
            f"{spec.name} has no argument {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(set(known) - {'unit'}))}"
        )
    for key in ("num_classes", "width", "in_channels"):
        value = spec.arguments.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise GeometryError(f"{spec.name}: {key} is a whole number of at least 1, got {value!r}")
    blocks = spec.arguments["blocks"]
    if not isinstance(blocks, Sequence) or not blocks or not all(isinstance(n, int) and n > 0 for n in blocks):
        raise GeometryError(f"{spec.name}: blocks are whole numbers of at least 1, one a stage, got {blocks!r}")
    if len(blocks) > 10 or sum(blocks) > 1000:
        raise GeometryError(f"{spec.name}: at most 10 stages and 1000 blocks in all, got {blocks!r}")


def resolve(name: str) -> tuple[str, BranchSet | None]:
    """The base of a model name and the set of branches it is expanded with, None for a plain network.

    Raises:
        GeometryError: no such name.
    """
    if name not in list_models():
        near = get_close_matches(name, list_models(), 1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise GeometryError(f"unknown model {name!r}{hint}; the names are {', '.join(list_models())}")
    prefix, _, base = name.rpartition("_")
    if not prefix:
        return base, None
    if prefix == "irep" and base == "vgg16":
        searchable = tuple(kind for kind in SETS["irep"].searchable if kind != "skip")
        return base, BranchSet(("3x3", "skip"), searchable)
    return base, SETS[prefix]
