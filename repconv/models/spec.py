"""What a network of this package is called and was made with: enough to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ModelSpec:
    """A name from `list_models()` and the resolved arguments of its plain network, all plain JSON values."""

    name: str
    arguments: Mapping[str, object]


def is_foreign(model: nn.Module) -> bool:
    """Whether there may be more to fold than this package's blocks: true of every network that it did not make."""
    spec = getattr(model, "spec", None)
    return not isinstance(spec, ModelSpec) or ":" in spec.name
