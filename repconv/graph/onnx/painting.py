"""ONNX operations that put tensors together of windows and constants, as canvases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from ...errors import GeometryError
from ..core.reasons import StaysError
from ..maps import canvas
from ..maps.canvas import Canvas
from ..maps.carried import Carried
from ..maps.layout import permuted
from .evaluator.constants import Array
from .facts import Facts
from .nodes import attributes
from .operands import constant_of, double, integer, integers, integers_of


def _canvas(facts: Facts, name: str) -> Canvas:
    """A tensor, as what it is put together of where that is known."""
    return facts.canvases[name] if name in facts.canvases else canvas.of_tensor(facts.tensor(name))


def _all(facts: Facts, names: Sequence[str], *, broadcasts: bool) -> list[Canvas]:
    """Operands of one operation, constants among them laid out as the tensors are.

    Raises:
        StaysError: all are constants.
    """
    computed = [name for name in names if not facts.is_constant(name)]
    if not computed:
        raise StaysError
    like = _canvas(facts, computed[0]).carried
    return [_operand(facts, name, like, broadcasts=broadcasts) for name in names]


def _operand(facts: Facts, name: str, like: Carried, *, broadcasts: bool) -> Canvas:
    value = facts.constant(name)
    return _canvas(facts, name) if value is None else canvas.of_constant(double(value), like, broadcasts=broadcasts)


def _same_size(facts: Facts, names: Sequence[str]) -> None:
    """Refuse tensors that differ in size; constants are looked at when they are cut like them."""
    if len({_canvas(facts, name).dims for name in names if not facts.is_constant(name)}) > 1:
        raise GeometryError("it adds tensors that may differ in size (broadcasting)")


def _pad(facts: Facts, node: onnx.NodeProto) -> Canvas:
    if attributes(node).get("mode", b"constant") != b"constant":
        raise StaysError
    whole = _canvas(facts, node.input[0])
    rank = len(whole.layout.axes)
    amounts = integers_of(facts, node, 1) or integers(attributes(node).get("pads"), [])
    filled = len(node.input) > 2 and node.input[2]
    number = float(constant_of(facts, node.input[2], "value").reshape(-1)[0]) if filled else 0.0
    axes = [axis % rank for axis in (integers_of(facts, node, 3) or range(rank))]
    sides = [0] * (2 * whole.axes)
    for axis, before, after in zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True):
        if before or after:
            place = canvas.pixel_axis(whole, axis)
            sides[place], sides[whole.axes + place] = before, after
    return canvas.pad(whole, tuple(sides), number)


def _concat(facts: Facts, node: onnx.NodeProto) -> Canvas:
    parts = _all(facts, node.input, broadcasts=False)
    return canvas.join(parts, canvas.pixel_axis(parts[0], integer(attributes(node).get("axis"), 0)))


def _where(facts: Facts, node: onnx.NodeProto) -> Canvas:
    _same_size(facts, node.input[1:])
    mask = double(constant_of(facts, node.input[0], "mask"))
    first, second = _all(facts, node.input[1:], broadcasts=True)
    return canvas.choose(canvas.of_constant(mask, first.carried, broadcasts=True), first, second)


def _arithmetic(facts: Facts, node: onnx.NodeProto) -> Canvas:
    """A tensor times or plus a constant that differs from pixel to pixel."""
    fixed = [facts.is_constant(name) for name in node.input]
    if len(fixed) != 2 or fixed[0] == fixed[1] or (node.op_type == "Sub" and fixed[0]):
        raise StaysError
    _same_size(facts, node.input)
    found = _all(facts, node.input, broadcasts=True)
    whole, constant = found[::-1] if fixed[0] else found
    if node.op_type == "Mul":
        return canvas.multiply(whole, constant)
    return canvas.add(whole, constant, -1.0 if node.op_type == "Sub" else 1.0)


def _scatter(facts: Facts, node: onnx.NodeProto) -> Canvas:
    """ScatterND of a box: rows or columns one after another, or every element of some of them."""
    if attributes(node).get("reduction", b"none") != b"none":
        raise GeometryError("it adds to what it paints over")
    index = constant_of(facts, node.input[1], "list of places")
    base, patch = node.input[0], node.input[2]
    if facts.is_constant(base) and facts.is_constant(patch):
        raise StaysError
    like = _canvas(facts, patch if facts.is_constant(base) else base).carried
    whole, part = (_operand(facts, name, like, broadcasts=False) for name in (base, patch))
    ranges = _box(index.astype(np.int64))
    taken = [
        (canvas.pixel_axis(whole, axis), *r) for axis, r in enumerate(ranges) if r != (0, whole.carried.size[axis])
    ]
    return _painted(whole, part, taken)


def _painted(whole: Canvas, part: Canvas, taken: Sequence[tuple[int, int, int]]) -> Canvas:
    """`whole` with `part` in a range of each of some pixel axes."""
    if not taken:
        raise GeometryError("it paints over everything")
    (axis, start, end), *more = taken
    if more:
        part = _painted(canvas.crop(whole, axis, start, end), part, more)
    return canvas.paint(whole, part, axis, start, end)


def _box(index: Array) -> list[tuple[int, int]]:
    """The range of each axis that places [..., k] of the first k axes name, where these are a whole box in order.

    Raises:
        StaysError: they are something else.
    """
    count = index.shape[-1]
    if index.ndim != count + 1 or not index.size:
        raise GeometryError("the places it paints are no box")
    first = index.reshape(-1, count)[0]
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in index.shape[:-1]), indexing="ij"), -1)
    if not bool((index == grid + first).all()) or bool((first < 0).any()):
        raise GeometryError("the places it paints are no box")
    return [(int(f), int(f) + side) for f, side in zip(first, index.shape[:-1], strict=True)]


def _transpose(facts: Facts, node: onnx.NodeProto) -> Canvas:
    """The same rows and columns on other axes."""
    if node.input[0] not in facts.canvases:
        raise StaysError
    whole = facts.canvases[node.input[0]]
    order = integers(attributes(node).get("perm"), list(range(len(whole.layout.axes)))[::-1])
    layout, table = permuted(whole.layout, order)
    if table != list(range(whole.layout.channels)):
        raise StaysError
    return canvas.laid_out(whole, layout)


def _same(facts: Facts, node: onnx.NodeProto) -> Canvas:
    return _canvas(facts, node.input[0])


PAINTERS: dict[str, Callable[[Facts, onnx.NodeProto], Canvas]] = {
    "Pad": _pad, "Concat": _concat, "Where": _where, "Mul": _arithmetic, "Add": _arithmetic, "Sub": _arithmetic,
    "ScatterND": _scatter, "Transpose": _transpose, "Identity": _same,
}  # fmt: skip
"""What puts together a tensor, by operation."""
