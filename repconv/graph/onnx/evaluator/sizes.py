"""Sizes that follow from numbers which a graph computes of other sizes.

Inference of a whole graph follows such numbers through a few kinds of operations only. What it leaves open is looked at
here node by node, with every number that is known by then. Of a batch that is left open, the number is nobody's, but it
is the same wherever it comes from the same place, and all others are known beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import helper, numpy_helper

from ...core.dims import Dim, amount, over, symbol
from ..nodes import attributes, nested
from .constants import Array, Constants, looked_up, places

_MOST = 64
"""Numbers in an operand that tells a size: a few for each axis."""


def complete(
    model: onnx.ModelProto, sides: MutableMapping[str, tuple[Dim, ...]], types: Mapping[str, int], constants: Constants
) -> None:
    """Put into `sides` what nodes say of their results by numbers that are computed, and what follows from that."""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    look = _Look(sides, constants, {name: node for node in model.graph.node for name in node.output})
    grown: set[str] = set()
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or any(True for _ in nested(node)):
            continue
        if all(_is_closed(sides.get(name)) for name in node.output if name):
            continue
        numbers = {name: value for name in node.input if name and (value := look.constant(name)) is not None}
        if node.op_type == "Reshape":
            found: Mapping[str, Sequence[Dim | None]] = {node.output[0]: look.reshaped(node)}
        elif grown.isdisjoint(node.input) and not any(map(look.is_computed, numbers)):
            continue
        else:
            found = _inferred(node, opset, look, types, numbers)
        for name, made in found.items():
            known = sides.get(name)
            if not made or (known is not None and len(known) != len(made)):
                continue
            pairs = zip(known or [symbol(f"{name}#{axis}") for axis in range(len(made))], made, strict=True)
            merged = tuple(mine if isinstance(mine, int) or theirs is None else theirs for mine, theirs in pairs)
            if merged != known:
                sides[name] = merged
                grown.add(name)


def _is_closed(sides: tuple[Dim, ...] | None) -> bool:
    return sides is not None and all(isinstance(side, int) for side in sides)


@dataclass(frozen=True)
class _Look:
    """What is known of one graph's numbers so far."""

    sides: Mapping[str, tuple[Dim, ...]]
    constants: Constants
    makers: Mapping[str, onnx.NodeProto]

    def constant(self, name: str) -> Array | None:
        """An operand of a few numbers that are the same in every run; a weight is not even read."""
        if prod(side for side in self.size(name) or () if isinstance(side, int)) > _MOST:
            return None
        value = self.constants.as_run(name)
        return value if value is not None and value.size <= _MOST else None

    def size(self, name: str) -> tuple[Dim, ...] | None:
        """The sides of a tensor, or of what the graph holds; None if not even their number is known."""
        held = self.constants.stored.get(name)
        return self.sides.get(name) if held is None else tuple(held.dims)

    def is_computed(self, name: str) -> bool:
        """Whether a node makes it of something."""
        return name in self.makers and self.makers[name].op_type != "Constant"

    def numbers(self, name: str, steps: int = _MOST) -> list[Dim] | None:
        """A number, or a list of them, that is computed of sizes, each as far as it is known; None if it is neither.

        steps: how far back it is followed.
        """
        value = self.constant(name)
        if value is not None:
            return value.reshape(-1).tolist() if value.ndim < 2 and value.dtype.kind in "iu" else None
        node = self.makers.get(name) if steps else None
        kind = node.op_type if node is not None and node.domain in ("", "ai.onnx") else ""
        if node is not None and kind == "Shape":
            found = looked_up(node, self.sides)
            return None if found is None else list(found)
        if node is not None and kind == "Concat":
            parts = [self.numbers(n, steps - 1) for n in node.input]
            return None if None in parts else [number for part in parts for number in part or ()]
        if node is not None and kind in ("Squeeze", "Unsqueeze", "Cast", "Identity"):
            return self.numbers(node.input[0], steps - 1)
        if node is not None and kind in ("Gather", "Slice"):
            given = self.numbers(node.input[0], steps - 1)
            where = None if given is None else places(kind, len(given), [self.constant(n) for n in node.input[1:]])
            if given is not None and where is not None:
                return [given[place] for place in where.reshape(-1).tolist()]
        # A side of an input may be called as a tensor is.
        return [symbol(f"the number {name}")] if self.sides.get(name) in ((), (1,)) else None

    def reshaped(self, node: onnx.NodeProto) -> list[Dim]:
        """The sides of what a Reshape makes; none if their number is not known."""
        (source, shape), made = node.input[:2], node.output[0]
        wanted, known = self.numbers(shape), self.sides.get(source)
        if wanted is None or (known is None and 0 in wanted):
            return []
        if known is not None and not attributes(node).get("allowzero", 0):
            if any(side == 0 and axis >= len(known) for axis, side in enumerate(wanted)):
                return []
            wanted = [known[axis] if side == 0 else side for axis, side in enumerate(wanted)]
        if -1 in wanted:
            place = wanted.index(-1)
            rest = _rest(known, [*wanted[:place], *wanted[place + 1 :]]) if known is not None else None
            wanted[place] = symbol(f"{made}#{place}") if rest is None else rest
        return wanted


def _rest(whole: Sequence[Dim], others: Sequence[Dim]) -> Dim | None:
    """What the one side is that is left beside others; None where that is no single one."""
    match over(amount(whole), amount(others)):
        case (int(number), ()) | (1, (number,)):
            return number
    return None


def _inferred(
    node: onnx.NodeProto,
    opset: int,
    look: _Look,
    types: Mapping[str, int],
    numbers: Mapping[str, Array],
) -> dict[str, list[Dim | None]]:
    """The sides of what a node makes, as far as inference of this node alone tells them."""
    given = {name: _type(types.get(name, 0), look.size(name)) for name in node.input if name}
    data = {name: numpy_helper.from_array(value) for name, value in numbers.items()}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        found = onnx.shape_inference.infer_node_outputs(schema, node, given, data)
    except (
        onnx.defs.SchemaError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
        RuntimeError,
    ):
        return {}  # what is wrong with the node is said by whoever reads it
    return {
        name: [
            d.dim_value if d.HasField("dim_value") else symbol(d.dim_param) if d.dim_param else None
            for d in made.tensor_type.shape.dim
        ]
        for name, made in found.items()
        if made.tensor_type.HasField("shape")
    }


def _type(kind: int, sides: tuple[Dim, ...] | None) -> onnx.TypeProto:
    if kind == onnx.TensorProto.BFLOAT16:  # which many operations take in theory only; a size has no precision
        kind = onnx.TensorProto.FLOAT
    return helper.make_tensor_type_proto(kind, None if sides is None else [_dimension(side) for side in sides])


def _dimension(side: Dim) -> int | str | None:
    """A side as a type says it: a number, or the name of one that is open, if that alone is it."""
    if isinstance(side, int):
        return side
    return side[0] if side == symbol(side[0]) else None
