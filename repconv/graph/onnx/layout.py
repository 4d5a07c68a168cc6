"""ONNX operations that move, join, take apart or sum numbers along axes, in the words of `carried`.

Each function gives what its node makes, or raises `StaysError` or `GeometryError`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx

from ..core.reasons import Kind, StaysError
from ..core.terms import grid_term
from ..maps import carried
from ..maps.carried import Carried, Made
from .facts import Facts
from .nodes import attributes
from .operands import Part, constant_of, double, image_of, integer, integers, integers_of


def same(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Identity, and Dropout outside training."""
    if node.op_type == "Dropout":
        if len(node.output) > 1 and node.output[1]:
            raise StaysError(Kind.TRAINING(does="gives the mask that it drops by"))
        if len(node.input) > 2 and node.input[2] and bool(constant_of(facts, node.input[2], "training mode").any()):
            raise StaysError(Kind.TRAINING(does="drops at random"))
    source = facts.tensor(node.input[0])
    return [Part(node.output[0], Made(source.layout, (source.itself,), moves=0))]


def pad(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Pad with zeros around the image; negative amounts crop it."""
    mode = attributes(node).get("mode", b"constant")
    if mode != b"constant":
        raise StaysError(Kind.PADDED_WITH(how=f"in mode {mode.decode() if isinstance(mode, bytes) else mode}"))
    source = image_of(facts, node.input[0])
    rank = len(source.layout.axes)
    if rank < 3:
        raise StaysError
    amounts = integers_of(facts, node, 1) or integers(attributes(node).get("pads"), [])
    filled = len(node.input) > 2 and node.input[2]
    if filled and bool(constant_of(facts, node.input[2], "value").astype(np.float64).any()):
        raise StaysError(Kind.PADDED_WITH(how="with a constant that is not zero"))
    axes = [axis % rank for axis in (integers_of(facts, node, 3) or range(rank))]
    before = dict(zip(axes, amounts[: len(axes)], strict=True))
    after = dict(zip(axes, amounts[len(axes) :], strict=True))
    if any(before.get(a, 0) or after.get(a, 0) for a in (0, 1)):
        raise StaysError(Kind.PADDED_WITH(how="channels or the batch"))
    padding = [sides.get(axis, 0) for sides in (before, after) for axis in range(2, rank)]
    term = grid_term(source.name, source.layout.channels, padding=tuple(padding))
    return [Part(node.output[0], Made(source.layout, (term,)))]


def concat(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Concat of channels."""
    if any(facts.is_constant(n) for n in node.input):
        raise StaysError
    axis = integer(attributes(node).get("axis"), 0)
    return [Part(node.output[0], carried.join([facts.tensor(n) for n in node.input], axis))]


def split(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Split of channels, or of rows or columns."""
    source = facts.tensor(node.input[0])
    known = attributes(node)
    axis = integer(known.get("axis"), 0)
    widths = integers_of(facts, node, 1) or integers(known.get("split"), [])
    if not widths:
        side = source.size[axis]
        if not isinstance(side, int):
            raise StaysError
        size = -(-side // len(node.output))
        widths = [min(size, side - size * i) for i in range(len(node.output))]
    parts, start = [], 0
    for name, width in zip(node.output, widths, strict=True):
        if name:
            parts.append(Part(name, carried.cut(source, axis, start, start + width)))
        start += width
    return parts


def take_slice(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Slice of channels, rows and columns."""
    known = attributes(node)
    source = facts.tensor(node.input[0])
    starts = integers_of(facts, node, 1) or integers(known.get("starts"), [])
    ends = integers_of(facts, node, 2) or integers(known.get("ends"), [])
    axes = integers_of(facts, node, 3) or integers(known.get("axes"), list(range(len(starts))))
    steps = integers_of(facts, node, 4) or [1] * len(starts)
    made = Made(source.layout, (source.itself,), moves=0)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        made = carried.after(source, made, partial(_cut, axis=axis, start=start, end=end, step=step))
    return [Part(node.output[0], made)]


def _cut(tensor: Carried, axis: int, start: int, end: int, step: int) -> Made:
    return carried.cut(tensor, axis, start, end, step)


def transpose(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Transpose."""
    source = facts.tensor(node.input[0])
    backwards = list(range(len(source.layout.axes)))[::-1]
    return [Part(node.output[0], carried.permute(source, integers(attributes(node).get("perm"), backwards)))]


def reshape(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Reshape, Flatten, Squeeze and Unsqueeze."""
    source = facts.tensor(node.input[0])
    if node.op_type in ("Squeeze", "Unsqueeze"):
        axes = integers_of(facts, node, 1) or integers(attributes(node).get("axes"), [])
        if node.op_type == "Unsqueeze":
            return [Part(node.output[0], carried.insert_axes(source, axes))]
        return [Part(node.output[0], carried.drop_axes(source, axes or None))]
    sides = facts.sides.get(node.output[0])
    if sides is None:
        raise StaysError(Kind.OPEN_SIZE(what="the shape it makes, which the graph computes,"))
    return [Part(node.output[0], carried.reshape(source, sides))]


def gather(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Gather of places that are constant; GatherND of such along the first axis."""
    source = facts.tensor(node.input[0])
    index = constant_of(facts, node.input[1], "list of places")
    axis = integer(attributes(node).get("axis"), 0)
    if node.op_type == "GatherND":
        if index.ndim != 2 or index.shape[1] != 1 or integer(attributes(node).get("batch_dims"), 0):
            raise StaysError
        index, axis = index[:, 0], 0
    if index.ndim > 1:
        raise StaysError(Kind.MISFIT(said="the places it takes are no list of numbers"))
    places = [int(place) for place in index.reshape(-1)]
    return [Part(node.output[0], carried.take(source, axis, places, keeps_axis=index.ndim == 1))]


def reduce(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """ReduceSum and ReduceMean."""
    source = facts.tensor(node.input[0])
    known = attributes(node)
    axes = integers_of(facts, node, 1) or integers(known.get("axes"), [])
    if not axes and integer(known.get("noop_with_empty_axes"), 0):
        return [Part(node.output[0], Made(source.layout, (source.itself,), moves=0))]
    axes = axes or list(range(len(source.layout.axes)))
    keep = bool(integer(known.get("keepdims"), 1))
    return [Part(node.output[0], carried.total(source, axes, mean=node.op_type == "ReduceMean", keep=keep))]


def einsum(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Einsum of one tensor and constants."""
    computed = [i for i, name in enumerate(node.input) if not facts.is_constant(name)]
    if len(computed) != 1:
        raise StaysError
    equation = attributes(node)["equation"]
    values = [None if (value := facts.constant(name)) is None else double(value) for name in node.input]
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    return [Part(node.output[0], carried.einsum(facts.tensor(node.input[computed[0]]), text, computed[0], values))]


def expand(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Expand that leaves a tensor as large as it is."""
    source, shape = facts.tensor(node.input[0]), integers_of(facts, node, 1) or []
    sides = facts.sides[source.name]
    if len(shape) > len(sides) or any(s not in (1, side) for s, side in zip(shape[::-1], sides[::-1], strict=False)):
        raise StaysError
    return [Part(node.output[0], Made(source.layout, (source.itself,), moves=0))]
