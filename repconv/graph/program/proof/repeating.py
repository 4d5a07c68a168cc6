"""Whether a part of a program does the same at every pixel, so that a smaller image shows all of it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from ...maps.extent import Repeats, of_channels
from ..facts import CONVOLVE, NORMS, PADDED, SPREAD, argument

_CHANNEL_BY_CHANNEL = frozenset(("aten.clone.default", "aten.neg.default", str(operator.getitem), *NORMS))
BROADCASTING = frozenset(("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor"))
_PADS = frozenset(("aten.constant_pad_nd.default", "aten.pad.default"))
_POOLS = frozenset(("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default"))
_CONVOLVE = frozenset((*map(str, CONVOLVE.values()), *PADDED))
_SPREAD = frozenset(map(str, SPREAD.values()))


def repeats(nodes: Sequence[fx.Node], ends: Mapping[fx.Node, str], rank: int) -> Repeats | None:
    """How they repeat from pixel to pixel of tensors of that rank, read at `ends`; None where one may not."""
    computed = set(ends)
    found = Repeats()
    for node in nodes:
        if not computed.isdisjoint(node.all_input_nodes):
            fixed = [n for n in node.all_input_nodes if n not in computed]
            if (after := _then(found, node, fixed, rank)) is None:
                return None
            found = after
            computed.add(node)
    return found


def _then(before: Repeats, node: fx.Node, fixed: Sequence[fx.Node], rank: int) -> Repeats | None:
    """What a node adds; fixed: those of what it reads that are no source's."""
    kind = str(node.target)
    if kind in _CHANNEL_BY_CHANNEL:
        return before
    if kind in BROADCASTING:
        shapes = [shape_of(n) for n in fixed]
        return before if all(shape is not None and of_channels(shape, rank) for shape in shapes) else None
    if kind == "aten.cat.default":
        return before if argument(node, 1, "dim", 0) in (1, 1 - rank) and not fixed else None
    if kind == "aten.slice.Tensor":
        return before if argument(node, 1, "dim", 0) in (1, 1 - rank) else None
    if kind in _PADS:
        return before.then(reach=_most(node.args[1]))
    if kind in _POOLS:
        window = node.args[1]
        stride = argument(node, 2, "stride", None) or window
        return before.then(_most(stride), _most(window) + _most(argument(node, 3, "padding", 0)))
    if kind not in _CONVOLVE | _SPREAD or not (shape := shape_of(node.args[1])):
        return None
    dilation = argument(node, 7 if kind in _SPREAD else 5, "dilation", 1)
    padding = argument(node, 4, "padding", 0)
    window = _most(shape[2:]) * _most(dilation)
    reach = window + (window if isinstance(padding, str) else _most(padding))
    return before.then(1 if kind in _SPREAD else _most(argument(node, 3, "stride", 1)), reach)


def shape_of(node: object) -> tuple[int, ...] | None:
    """The sides of a constant, as far as they are known."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _most(numbers: Any) -> int:  # noqa: ANN401  # an argument of fx
    return max(map(abs, numbers), default=1) if isinstance(numbers, list | tuple) else abs(int(numbers))
