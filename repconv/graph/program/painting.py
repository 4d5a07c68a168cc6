"""ATen operations that put tensors together of windows and constants, as canvases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from ...errors import GeometryError
from ..core.reasons import StaysError
from ..maps import canvas
from ..maps.canvas import Canvas
from ..maps.carried import Carried
from .facts import ProgramFacts


def _given(node: fx.Node, position: int, name: str, default: object = None) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _number(value: object) -> int | None:
    if value is not None and not isinstance(value, int):
        raise GeometryError("where its slice begins or ends is computed by the program")
    return value


def _canvas(facts: ProgramFacts, node: object) -> Canvas:
    """A tensor, as what it is put together of where that is known."""
    if isinstance(node, fx.Node) and node.name in facts.canvases:
        return facts.canvases[node.name]
    return canvas.of_tensor(facts.tensor(node))


def _both(facts: ProgramFacts, operands: Sequence[object], *, broadcasts: bool = True) -> list[Canvas]:
    """Operands of one operation, constants among them laid out as the tensors are.

    Raises:
        StaysError: all are constants.
    """
    computed = [o for o in operands if isinstance(o, fx.Node) and not facts.is_constant(o)]
    if not computed:
        raise StaysError
    like = _canvas(facts, computed[0]).carried
    return [
        _canvas(facts, o) if any(o is c for c in computed) else _constant(facts, o, like, broadcasts=broadcasts)
        for o in operands
    ]


def _constant(facts: ProgramFacts, value: object, like: Carried, *, broadcasts: bool = True) -> Canvas:
    if isinstance(value, (int, float)):
        return canvas.of_constant(torch.tensor(value, dtype=torch.float64), like, broadcasts=True)
    found = facts.constant(value)
    if found is None:
        raise StaysError
    return canvas.of_constant(found, like, broadcasts=broadcasts)


def _same_size(facts: ProgramFacts, node: fx.Node, *operands: object) -> None:
    """Refuse an operation that makes a tensor it reads larger."""
    for operand in operands:
        if isinstance(operand, fx.Node) and not facts.is_constant(operand) and facts.size(operand) != facts.size(node):
            raise GeometryError("it adds tensors that may differ in size (broadcasting)")


def _scatter(facts: ProgramFacts, node: fx.Node) -> Canvas:
    """slice_scatter and select_scatter: a part of a tensor replaced."""
    base, patch, axis = node.args[0], node.args[1], int(str(_given(node, 2, "dim", 0)))
    rank = len(facts.size(node))
    if str(node.target) == "aten.select_scatter.default":
        place = int(str(node.args[3]))
        first, last = place, None if place == -1 else place + 1
        whole = _canvas(facts, base)
        axis = canvas.pixel_axis(whole, axis)
        if isinstance(patch, fx.Node) and patch.name in facts.canvases:
            line = canvas.line(whole, axis, canvas.numbers(facts.canvases[patch.name]))
        else:
            value = facts.constant(patch)
            if value is None:
                raise StaysError
            line = canvas.of_constant(value.unsqueeze(int(str(node.args[2])) % rank), whole.carried, broadcasts=False)
        return canvas.paint(whole, line, axis, first, last)
    if _given(node, 5, "step", 1) != 1:
        raise GeometryError("it paints every other row or column")
    start, end = _number(_given(node, 3, "start")), _number(_given(node, 4, "end"))
    whole, part = _pair(facts, base, patch)
    return canvas.paint(whole, part, canvas.pixel_axis(whole, axis), start, end)


def _pair(facts: ProgramFacts, base: object, patch: object) -> tuple[Canvas, Canvas]:
    """What is painted over and what is painted, one of which may be a constant."""
    fixed = [isinstance(n, fx.Node) and facts.is_constant(n) for n in (base, patch)]
    if all(fixed):
        raise StaysError
    if fixed[0]:
        part = _canvas(facts, patch)
        return _constant(facts, base, part.carried, broadcasts=False), part
    whole = _canvas(facts, base)
    return whole, (_constant(facts, patch, whole.carried, broadcasts=False) if fixed[1] else _canvas(facts, patch))


def _pad(facts: ProgramFacts, node: fx.Node) -> Canvas:
    constant = "constant" in str(node.target)
    mode = "constant" if constant else _given(node, 2, "mode", "constant")
    value = _given(node, 2 if constant else 3, "value", 0) or 0
    sides, whole = node.args[1], _canvas(facts, node.args[0])
    if mode != "constant" or not isinstance(value, (int, float)) or not isinstance(sides, Sequence):
        raise GeometryError("it pads with something other than zeros")
    rank = len(whole.layout.axes)
    amounts = [0] * (2 * whole.axes)
    for index in range(len(sides) // 2):
        before, after = int(str(sides[2 * index])), int(str(sides[2 * index + 1]))
        if before or after:
            axis = canvas.pixel_axis(whole, rank - 1 - index)
            amounts[axis], amounts[whole.axes + axis] = before, after
    return canvas.pad(whole, tuple(amounts), float(value))


def _cat(facts: ProgramFacts, node: fx.Node) -> Canvas:
    parts, axis = node.args[0], int(str(_given(node, 1, "dim", 0)))
    if not isinstance(parts, Sequence):
        raise StaysError
    found = _both(facts, parts, broadcasts=False)
    return canvas.join(found, canvas.pixel_axis(found[0], axis))


def _where(facts: ProgramFacts, node: fx.Node) -> Canvas:
    _same_size(facts, node, *node.args[1:3])
    if not isinstance(node.args[0], fx.Node) or not facts.is_constant(node.args[0]):
        raise StaysError
    first, second = _both(facts, node.args[1:3])
    return canvas.choose(_constant(facts, node.args[0], first.carried), first, second)


def _arithmetic(facts: ProgramFacts, node: fx.Node) -> Canvas:
    """A tensor times or plus a constant that differs from pixel to pixel."""
    name, operands = str(node.target), node.args[:2]
    _same_size(facts, node, *operands)
    fixed = [not isinstance(o, fx.Node) or facts.is_constant(o) for o in operands]
    if fixed[0] == fixed[1] or node.kwargs or (fixed[0] and "sub" in name):
        raise StaysError
    whole, constant = _both(facts, operands) if fixed[1] else _both(facts, operands)[::-1]
    if "mul" in name:
        return canvas.multiply(whole, constant)
    return canvas.add(whole, constant, -1.0 if "sub" in name else 1.0)


def _same(facts: ProgramFacts, node: fx.Node) -> Canvas:
    return _canvas(facts, node.args[0])


PAINTERS: dict[str, Callable[[ProgramFacts, fx.Node], Canvas]] = {
    "aten.slice_scatter.default": _scatter, "aten.select_scatter.default": _scatter,
    "aten.pad.default": _pad, "aten.constant_pad_nd.default": _pad, "aten.cat.default": _cat, "aten.where.self": _where,
    "aten.mul.Tensor": _arithmetic, "aten.add.Tensor": _arithmetic, "aten.sub.Tensor": _arithmetic,
    "aten.clone.default": _same, "aten.alias.default": _same, "aten.detach.default": _same,
}  # fmt: skip
"""What puts together a tensor, by operation."""
