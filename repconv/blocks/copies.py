"""Copies of networks, with other modules in the places of some of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from ..errors import GeometryError


def copied(model: nn.Module, instead: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A deep copy of `model`; modules of it that `instead` names, perhaps `model` itself, are what it has for them.

    Nothing that is replaced is copied, and what was shared stays shared.

    Raises:
        GeometryError: it holds something that cannot be copied.
    """
    instead = instead or {}
    if model in instead:
        return instead[model]
    try:
        # Whatever stands in deepcopy's memo counts as copied already.
        result: nn.Module = copy.deepcopy(model, {id(old): new for old, new in instead.items()})
    except (RuntimeError, TypeError) as error:
        line = next(iter(str(error).strip().splitlines()), "")[:160]
        raise GeometryError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {line}); weight norm of the old kind is "
            "one such case: use torch.nn.utils.parametrizations.weight_norm or remove it"
        ) from None
    return result
