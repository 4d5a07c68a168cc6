"""What a node's attributes and operands are, read for the affine steps: sizes, constants, windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from ..geometry import Pair, Sides
from .expression import Term
from .not_affine import NotAffineError
from .onnx_facts import Array, Facts, attributes
from .operand import channelwise
from .sizes import Dims
from .step import Offset


@dataclass(frozen=True)
class Part:
    """One output of a node before its cost is known."""

    output: str
    terms: tuple[Term, ...]
    offset: Offset | None = None
    moves: int = 1


def shown(dims: Dims) -> str:
    """A size the way a report writes it, open sides in terms of what they come from."""
    return "x".join(str(d) if isinstance(d, int) else f"({d[0]}{d[2] + 1:+d})/{d[1]}" for d in dims)


def dims_of(facts: Facts, name: str) -> Dims:
    """A tensor's size; its channels are known."""
    dims = facts.dims.get(name)
    if dims is None or not isinstance(dims[1], int) or dims[1] < 1:
        raise NotAffineError
    return dims


def channels_of(facts: Facts, name: str) -> int:
    """How many channels a tensor has."""
    channels = dims_of(facts, name)[1]
    if not isinstance(channels, int):
        raise NotAffineError
    return channels


def double(array: Array) -> Tensor:
    """A constant in float64."""
    return torch.from_numpy(np.array(array, dtype=np.float64))


def constant_of(facts: Facts, name: str, what: str) -> Array:
    """A constant a node needs.

    Raises:
        NotAffineError: it is a graph input, or computed.
    """
    value = facts.constant(name)
    if value is None:
        if name in facts.inputs:
            raise NotAffineError(f"its {what} {name!r} is an input of the graph, so it may change from run to run")
        if name in facts.sparse:
            raise NotAffineError(f"its {what} {name!r} is stored as a sparse tensor")
        raise NotAffineError(f"its {what} {name!r} is computed by the graph, not a constant")
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


def window(facts: Facts, node: onnx.NodeProto, size: Pair) -> tuple[Pair, Sides]:
    """Stride and padding of a Conv or pool whose window, dilation included, is `size`."""
    known = attributes(node)
    rows, columns = integers(known.get("strides"), [1, 1])
    auto = known.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else str(auto)
    if auto in ("NOTSET", ""):
        top, left, bottom, right = integers(known.get("pads"), [0, 0, 0, 0])
        return (rows, columns), (top, left, bottom, right)
    if auto == "VALID":
        return (rows, columns), (0, 0, 0, 0)
    sides = []
    for side, k, s in zip(dims_of(facts, node.input[0])[2:], size, (rows, columns), strict=True):
        if s == 1:
            total = k - 1
        elif isinstance(side, int):
            total = max((-(-side // s) - 1) * s + k - side, 0)
        else:
            raise NotAffineError(f"auto_pad={auto} with a stride pads by what depends on the open input size")
        sides.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    (top, bottom), (left, right) = sides
    return (rows, columns), (top, left, bottom, right)


def by_channel(facts: Facts, value: Array, name: str) -> Tensor:
    """A constant operand of the tensor `name` as one number a channel, [c]; see `channelwise`."""
    return channelwise(double(value), dims_of(facts, name)[: facts.rank(name)])
