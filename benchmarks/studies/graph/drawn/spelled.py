"""Borders of a tensor and sums of three, each spelled as some author spells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # as everybody calls it


def _at(axis: int, part: slice[Any, Any, Any]) -> tuple[slice[Any, Any, Any], ...]:
    return (*(slice(None),) * axis, part)


def by_slices(y: Tensor, edge: Tensor) -> Tensor:
    """Zeros around, and each side of the frame assigned."""
    y = F.pad(y, (1, 1) * (y.dim() - 2))
    for axis in range(2, y.dim()):
        y[_at(axis, slice(0, 1))] = edge
        y[_at(axis, slice(-1, None))] = edge
    return y


def _by_copy(y: Tensor, edge: Tensor) -> Tensor:
    out = edge.expand(y.shape[0], -1, *(side + 2 for side in y.shape[2:])).clone()
    inner: tuple[Any, ...] = (..., *(slice(1, -1),) * (y.dim() - 2))
    out[inner] = y
    return out


def _by_cat(y: Tensor, edge: Tensor) -> Tensor:
    for axis in range(2, y.dim()):
        row = edge.expand(*y.shape[:axis], 1, *y.shape[axis + 1 :])
        y = torch.cat([row, y, row], axis)
    return y


def _by_mask(y: Tensor, edge: Tensor) -> Tensor:
    inside = F.pad(torch.ones_like(y[:, :1]), (1, 1) * (y.dim() - 2))
    return F.pad(y, (1, 1) * (y.dim() - 2)) * inside + edge * (1 - inside)


def _by_where(y: Tensor, edge: Tensor) -> Tensor:
    inside = F.pad(torch.ones_like(y[:, :1]), (1, 1) * (y.dim() - 2)) > 0
    return torch.where(inside, F.pad(y, (1, 1) * (y.dim() - 2)), edge)


def _by_shift(y: Tensor, edge: Tensor) -> Tensor:
    return F.pad(y - edge, (1, 1) * (y.dim() - 2)) + edge


BORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "slices": by_slices, "copy": _by_copy, "cat": _by_cat, "mask": _by_mask, "where": _by_where, "shift": _by_shift,
}  # fmt: skip
"""A tensor [n, c, pixels] with a frame of one pixel, of one number a channel."""


def _zipped(gates: Any, y: list[Tensor]) -> Tensor:  # noqa: ANN401  # a tensor or several
    return sum((gate * each for gate, each in zip(gates, y, strict=True)), torch.zeros(()))


def _weights(s: Any, y: list[Tensor]) -> Tensor:  # noqa: ANN401  # a piece
    found: Tensor = s.g.softmax(0).view(-1, *(1,) * y[0].dim())
    return found


SUMS: dict[str, Callable[[Any, list[Tensor]], Tensor]] = {
    "plus": lambda _, y: y[0] + y[1] + y[2],
    "minus": lambda _, y: torch.sub(y[0], y[1], alpha=2) - y[2],
    "stack": lambda _, y: torch.stack(y).sum(0),
    "mean": lambda _, y: torch.stack(y, 1).mean(1),
    "cat on a new axis": lambda _, y: torch.cat([t[:, None] for t in y], 1).sum(1),
    "cat and view": lambda _, y: torch.cat(y, 1).view(y[0].shape[0], 3, *y[0].shape[1:]).sum(1),
    "einsum": lambda s, y: torch.einsum("k,knc...->nc...", s.g, torch.stack(y)),
    "einsum by channel": lambda s, y: torch.einsum("kc,knc...->nc...", s.by_channel, torch.stack(y)),
    "weighed stack": lambda s, y: (torch.stack(y) * _weights(s, y)).sum(0),
    "row": lambda s, y: (s.g.softmax(0) @ torch.stack(y).flatten(1)).view_as(y[0]),
    "zip": lambda s, y: _zipped(s.g.softmax(0), y),
    "unbind": lambda s, y: _zipped(s.g.sigmoid().unbind(), y),
    "split": lambda s, y: _zipped(s.g.split(1), y),
    "select": lambda s, y: _zipped([s.g[i] for i in range(3)], y),
    "one hot": lambda s, y: _zipped([s.hot[i] for i in range(3)], y),
    "whole stack": lambda _, y: torch.stack([y[0], y[1], y[0]]).sum(0) - y[2],
    "chunk": lambda _, y: sum(torch.cat(y, 1).chunk(3, 1), torch.zeros(())),
}
"""Of three tensors of one size, with the gates of a piece."""
