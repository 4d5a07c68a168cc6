"""Looking at, or standing in for, every operation that PyTorch runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

_SINGLE = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format))
"""Types of what is no tree."""


def each(change: Callable[[Any], Any], value: Any) -> Any:  # noqa: ANN401  # what torch hands over
    """`value` with every part changed, as torch's own trees have it; most are a row of tensors, which is faster so."""
    kind = type(value)
    if kind in _SINGLE or isinstance(value, Tensor):
        return change(value)
    if kind is tuple or kind is list:
        return kind([each(change, part) for part in value])
    if kind is dict:
        return {key: each(change, part) for key, part in value.items()}
    return _pytree.tree_map(change, value)


def parts(value: Any) -> list[Any]:  # noqa: ANN401  # as above
    """Every part of `value`, in a row."""
    kind = type(value)
    if kind in _SINGLE or isinstance(value, Tensor):
        return [value]
    if kind is tuple or kind is list:
        return [part for inner in value for part in parts(inner)]
    return _pytree.tree_leaves(value)


class EveryCall(TorchDispatchMode):
    """Inside, `call` runs in place of every operation; what torch hands over has no types of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # whatever torch dispatches
        types: Any,  # noqa: ANN401  # torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """What `call` gives."""
        return self.call(func, args, kwargs or {})

    @abstractmethod
    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # as above
        """Run `func`, or what stands for it."""
