"""ATen operations that move, join, take apart or sum numbers along axes, in the words of `carried`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ..core.reasons import COMPUTED, Kind, StaysError
from ..maps import carried
from ..maps.carried import Carried, Made
from .facts import SPLITS, ProgramFacts


def _given(node: fx.Node, position: int, name: str, default: object = None) -> Any:  # noqa: ANN401  # a call's argument
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _known(*values: object) -> None:
    """Refuse what the program computes where a number is needed."""
    for value in values:
        if isinstance(value, fx.Node) or (
            isinstance(value, (list, tuple)) and any(isinstance(v, fx.Node) for v in value)
        ):
            raise StaysError(Kind.OPEN_SIZE(what="where its slice begins or ends, which the graph computes,"))


def _permute(facts: ProgramFacts, node: fx.Node) -> Made:
    tensor = facts.tensor(node.args[0])
    order = list(range(len(tensor.layout.axes)))
    if str(node.target) == "aten.permute.default":
        order = list(_given(node, 1, "dims"))
    else:
        first, second = (int(str(axis)) for axis in (node.args[1:3] if len(node.args) == 3 else (0, 1)))
        order[first], order[second] = order[second], order[first]
    return carried.permute(tensor, order)


def _reshape(facts: ProgramFacts, node: fx.Node) -> Made:
    tensor = facts.tensor(node.args[0])
    if str(node.target) == "aten.unsqueeze.default":
        return carried.insert_axes(tensor, [int(str(node.args[1]))])
    if str(node.target).startswith("aten.squeeze."):
        axes = _given(node, 1, "dim")
        return carried.drop_axes(tensor, [axes] if isinstance(axes, int) else axes)
    sides = [side if isinstance(side, int) else carried.open_side(side) for side in facts.size(node)]
    return carried.reshape(tensor, sides)


def _expand(facts: ProgramFacts, node: fx.Node) -> Made:
    tensor = facts.tensor(node.args[0])
    if facts.size(node) != facts.size(_node(node.args[0])):
        raise StaysError
    return Made(tensor.layout, (tensor.itself,), moves=0)


def _node(value: object) -> fx.Node:
    if not isinstance(value, fx.Node):
        raise StaysError
    return value


def _cat(facts: ProgramFacts, node: fx.Node) -> Made:
    parts, axis = node.args[0], _given(node, 1, "dim", 0)
    if not isinstance(parts, Sequence) or not isinstance(axis, int) or any(facts.is_constant(_node(p)) for p in parts):
        raise StaysError
    tensors = [facts.tensor(part) for part in parts]
    if str(node.target) == "aten.stack.default":
        axis %= len(tensors[0].layout.axes) + 1
        tensors = [_with_axis(tensor, axis) for tensor in tensors]
    return carried.join(tensors, axis)


def _with_axis(tensor: Carried, axis: int) -> Carried:
    return Carried(tensor.name, carried.insert_axes(tensor, [axis]).layout, tensor.dims)


def _slice(facts: ProgramFacts, node: fx.Node) -> Made:
    axis, start = _given(node, 1, "dim", 0), _given(node, 2, "start")
    end, step = _given(node, 3, "end"), _given(node, 4, "step", 1)
    _known(axis, start, end, step)
    return carried.cut(facts.tensor(node.args[0]), axis, start, end, step)


def _select(facts: ProgramFacts, node: fx.Node) -> Made:
    tensor, axis, place = facts.tensor(node.args[0]), node.args[1], node.args[2]
    _known(axis, place)
    return carried.take(tensor, int(str(axis)), [int(str(place))], keeps_axis=False)


def _index(facts: ProgramFacts, node: fx.Node) -> Made:
    """Places of one axis, in an order: index with one constant list, or index_select."""
    tensor = facts.tensor(node.args[0])
    if str(node.target) == "aten.index_select.default":
        axis, index = node.args[1], facts.constant(node.args[2])
    else:
        lists = [(i, n) for i, n in enumerate(_given(node, 1, "indices")) if n is not None]
        if len(lists) != 1:
            raise StaysError(Kind.PIXELS(does="it takes places of several axes at once"))
        axis, index = lists[0][0], facts.constant(lists[0][1])
    if index is None:
        raise StaysError(Kind.VARYING(what="list of places", how=COMPUTED))
    if index.dim() != 1 or index.dtype is torch.bool:
        raise StaysError(Kind.MISFIT(said="the places it takes are no list of numbers"))
    return carried.take(tensor, int(str(axis)), index.tolist())


def _flip(facts: ProgramFacts, node: fx.Node) -> Made:
    tensor, axes = facts.tensor(node.args[0]), node.args[1]
    if not isinstance(axes, Sequence) or len(axes) != 1:
        raise StaysError
    axis = int(str(axes[0]))
    return carried.on_channels(tensor, axis, lambda table: table.flip(axis))


def _split(facts: ProgramFacts, node: fx.Node) -> Made:
    """One element of what a split, chunk or unbind gives."""
    whole, position = _node(node.args[0]), int(str(node.args[1]))
    source = _node(whole.args[0])
    tensor = facts.tensor(source)
    if str(whole.target) == "aten.unbind.int":
        return carried.take(tensor, _given(whole, 1, "dim", 0), [position], keeps_axis=False)
    sizes, axis = whole.args[1], _given(whole, 2, "dim", 0)
    _known(sizes, axis)
    if isinstance(sizes, int):
        side = facts.size(source)[axis]
        if "chunk" in str(whole.target):
            if not isinstance(side, int):
                raise StaysError(Kind.OPEN_SIZE(what="how large its chunks are"))
            sizes = -(-side // sizes)
        start, end = position * sizes, (position + 1) * sizes
    else:
        widths = [w for w in sizes if isinstance(w, int)] if isinstance(sizes, Sequence) else []
        if len(widths) <= position or not isinstance(sizes, Sequence) or len(widths) < len(sizes):
            raise StaysError
        start, end = sum(widths[:position]), sum(widths[: position + 1])
    return carried.cut(tensor, axis, start, end)


def _total(facts: ProgramFacts, node: fx.Node) -> Made:
    axes, keep = _given(node, 1, "dim"), bool(_given(node, 2, "keepdim", False))
    tensor = facts.tensor(node.args[0])
    if not axes:
        axes = range(len(tensor.layout.axes))
    axes = [axes] if isinstance(axes, int) else list(axes)
    return carried.total(tensor, axes, mean="mean" in str(node.target), keep=keep)


def _einsum(facts: ProgramFacts, node: fx.Node) -> Made:
    equation, operands = node.args[0], node.args[1]
    if not isinstance(equation, str) or not isinstance(operands, Sequence):
        raise StaysError
    computed = [i for i, operand in enumerate(operands) if not facts.is_constant(_node(operand))]
    if len(computed) != 1:
        raise StaysError
    constants = [facts.constant(operand) for operand in operands]
    return carried.einsum(facts.tensor(operands[computed[0]]), equation, computed[0], constants)


def _matmul(facts: ProgramFacts, node: fx.Node) -> Made:
    """A constant matrix times the last axis from the right, or times the last but one from the left."""
    first, second = node.args[:2]
    left, right = facts.constant(first), facts.constant(second)
    if (left is None) == (right is None):
        raise StaysError(Kind.PRODUCT(does="multiplies"))
    tensor = facts.tensor(second if right is None else first)
    return carried.matmul(tensor, left, right)


_Reader = Callable[[ProgramFacts, fx.Node], Made]
MOVES: dict[str, _Reader] = {
    **dict.fromkeys(("aten.permute.default", "aten.transpose.int", "aten.t.default"), _permute),
    **dict.fromkeys((
        "aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.unsqueeze.default",
        "aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", "aten.flatten.using_ints",
        "aten.unflatten.int", "aten.reshape_as.default", "aten.view_as.default",
    ), _reshape),
    "aten.expand.default": _expand, "aten.cat.default": _cat, "aten.stack.default": _cat,
    "aten.slice.Tensor": _slice, "aten.select.int": _select, "aten.index.Tensor": _index,
    "aten.index_select.default": _index, "aten.flip.default": _flip, "aten.sum.dim_IntList": _total,
    "aten.mean.dim": _total, "aten.einsum.default": _einsum, "aten.matmul.default": _matmul, "aten.mm.default": _matmul,
    **dict.fromkeys(SPLITS, _split),
}  # fmt: skip
"""The reader of each operation, by name."""
