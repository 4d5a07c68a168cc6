"""What a node's attributes and operands are, read for the affine steps: sizes, constants, windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from ...algebra.geometry import Axes, Sides
from ..core.dims import Dim
from ..core.ordering import dependencies_first
from ..core.reasons import AN_INPUT, COMPUTED, Kind, StaysError
from ..maps.carried import Carried, Made, spread
from ..planning.operands import Held
from .evaluator.constants import Array
from .facts import FLOATS, Facts
from .nodes import attributes


@dataclass(frozen=True)
class Part:
    """One output of a node, and what it is."""

    output: str
    made: Made


def shown(dims: Sequence[Dim]) -> str:
    """A size the way a report writes it, open sides in terms of what they come from."""
    return "x".join(str(d) if isinstance(d, int) else f"({d[0]}{d[2] + 1:+d})/{d[1]}" for d in dims)


def image_of(facts: Facts, name: str) -> Carried:
    """A tensor [n, c, pixels].

    Raises:
        StaysError: its axes are something else.
    """
    tensor = facts.tensor(name)
    if not tensor.is_plain:
        raise StaysError(Kind.LAYOUT(what="its input is laid out"))
    return tensor


def double(array: Array) -> Tensor:
    """A constant in float64."""
    return torch.from_numpy(np.array(array, dtype=np.float64))


def constant_of(facts: Facts, name: str, what: str) -> Array:
    """A constant a node needs.

    Raises:
        StaysError: it is a graph input, or computed.
    """
    value = facts.constant(name)
    if value is None:
        if name in facts.inputs:
            raise StaysError(Kind.VARYING(what=what, how=AN_INPUT))
        if name in facts.sparse:
            raise StaysError(Kind.SPARSE(what=what, name=name))
        raise StaysError(Kind.VARYING(what=what, how=COMPUTED))
    return value


def integers_of(facts: Facts, node: onnx.NodeProto, position: int) -> list[int] | None:
    """A constant integer input, None where it is left out."""
    if len(node.input) <= position or not node.input[position]:
        return None
    return [int(v) for v in constant_of(facts, node.input[position], "argument").reshape(-1)]


def integers(value: object, default: list[int]) -> list[int]:
    """An attribute of several numbers."""
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else default


def integer(value: object, default: int) -> int:
    """An attribute of one number."""
    return value if isinstance(value, int) else default


def window(facts: Facts, node: onnx.NodeProto, size: Axes) -> tuple[Axes, Sides]:
    """Stride and padding of a Conv or pool whose window, dilation included, is `size`."""
    known = attributes(node)
    stride = by_axis(known.get("strides"), 1, len(size))
    auto = known.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else str(auto)
    if auto in ("NOTSET", ""):
        return stride, by_axis(known.get("pads"), 0, 2 * len(size))
    if auto == "VALID":
        return stride, (0,) * (2 * len(size))
    less, more = [], []
    for side, k, s in zip(facts.tensor(node.input[0]).sides(len(size)), size, stride, strict=True):
        if s == 1:
            total = k - 1
        elif isinstance(side, int):
            total = max((-(-side // s) - 1) * s + k - side, 0)
        else:
            raise StaysError(Kind.OPEN_SIZE(what=f"by how much it pads (auto_pad={auto} with a stride)"))
        less.append(total // 2)
        more.append(total - total // 2)
    return stride, (*less, *more) if auto == "SAME_UPPER" else (*more, *less)


def by_axis(value: object, default: int, count: int) -> Axes:
    """An attribute of so many numbers, `default` where none is given.

    Raises:
        StaysError: it has another number of them.
    """
    found = tuple(integers(value, [default] * count))
    if len(found) != count:
        raise StaysError(Kind.MISFIT(said=f"it has {len(found)} numbers where its input has {count} axes or sides"))
    return found


def by_channel(facts: Facts, value: Array, name: str) -> Tensor:
    """A constant operand of the tensor `name` as one number a channel, [c]; see `spread`."""
    return spread(double(value), facts.tensor(name))


_MOVES = frozenset(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "CastLike"))
"""Operations that lay out anew, or cast."""


def factors(facts: Facts, names: Iterable[str]) -> list[str]:
    """Those of some tensors that are constants of floating-point numbers."""
    kinds = (0, *FLOATS)
    return [name for name in names if name and facts.is_constant(name) and facts.types.get(name, 0) in kinds]


def not_quantised(facts: Facts, node: onnx.NodeProto) -> None:
    """Refuse constants that a graph stores as quantised integers.

    Raises:
        StaysError: it reads one.
    """
    for name in factors(facts, node.input):
        makers = [facts.makers.get(each) for each in dependencies_first(name, partial(_computed_of, facts))]
        if any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
            raise StaysError(Kind.QUANTISED(name=name))


def held(facts: Facts, name: str) -> Held:
    """A constant of the graph, and what it is computed of."""
    maker = facts.makers.get(name) if name not in facts.initializers else None
    sides: Sequence[object] = facts.initializers[name].dims if maker is None else facts.sides.get(name, ("?",))
    known = [side for side in sides if isinstance(side, int)]
    value = facts.as_run(name) if len(known) < len(sides) or name not in facts.types else None
    numbers = prod(known) if value is None else value.size
    kind = facts.types.get(name, 0)
    width = helper.tensor_dtype_to_np_dtype(kind).itemsize if kind else 0 if value is None else value.itemsize
    return Held(numbers, width, _computed_of(facts, name), maker is not None and maker.op_type in _MOVES)


def _computed_of(facts: Facts, name: str) -> tuple[str, ...]:
    """The constants that the node of a constant reads."""
    maker = facts.makers.get(name) if name not in facts.initializers else None
    return tuple(n for n in dict.fromkeys(maker.input if maker else ()) if n and facts.is_constant(n))
