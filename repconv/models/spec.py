"""What a network of this package is called and was made with: enough to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """A name from `list_models()` and the resolved arguments of its plain network, all plain JSON values."""

    name: str
    arguments: Mapping[str, object]
