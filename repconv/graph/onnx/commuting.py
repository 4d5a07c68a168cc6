"""The same graph in other words, whose plan may be cheaper.

Activations between changes of layout stand on the other side of those. A pointwise operation f and a permutation T of
axes commute, `f(x) = T'(f(T(x)))`. Graphs that keep their channels last (converted from TensorFlow) transpose around
every convolution, so between two stand two transposes that only the activation keeps apart. Written with the activation
of [n, c, pixels], they are next to each other, and both may be left out. It is the same graph, and what is proven of
regions is proven of it.

What scales or shifts each channel of tensors that were joined (MixNet normalises several convolutions at once) does so
to each tensor before they are joined, where it may be a part of what makes the tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...files.edited import copy_of
from ..core.step import Step
from ..maps.arrangement import to_image
from .evaluator.constants import Array
from .facts import Facts
from .nodes import attributes, captured, label
from .writer import Names

POINTWISE = frozenset((
    "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign", "Tanh",
    "Clip", "Gelu", "Erf", "Mish", "Swish", "Abs", "Exp", "Sqrt", "Mul", "Add", "Sub", "Div", "Max", "Min",
))  # fmt: skip
"""Operations on each number by itself, or on those at one place of tensors of one size."""


def commuted(facts: Facts, steps: Sequence[Step], names: Names) -> onnx.ModelProto | None:
    """The graph with activations of [n, c, pixels] where a transpose to that reads them; None if there is none.

    Args:
        facts: of the graph, its tensors placed.
        steps: its affine operations.
        names: that are free.
    """
    graph = facts.model.graph
    affine = {step.output for step in steps}
    turned = {node.output[0]: order for node in graph.node if (order := _order(facts, node, affine)) is not None}
    wanted = _reaching(graph, turned, affine)
    if not wanted:
        return None
    result = copy_of(facts.model)
    del result.graph.node[:]
    outputs = {value.name for value in graph.output}
    read = {name for node in graph.node if node.output[0] not in wanted for name in node.input} | outputs
    now: dict[str, str] = {}  # the tensor that is one of [n, c, pixels], by the author's

    def turn(name: str, order: Sequence[int]) -> str:
        if name not in now:
            now[name] = names.new(f"{name}/plain")
            where = names.new(f"{name}/transpose")
            result.graph.node.append(helper.make_node("Transpose", [name], [now[name]], where, perm=list(order)))
        return now[name]

    for node in graph.node:
        if node.output[0] not in wanted:
            result.graph.node.append(node)
            continue
        (name,), order = node.output, turned[node.output[0]]
        inputs = [n if not n or facts.is_constant(n) else turn(n, order) for n in node.input]
        moved = result.graph.node.add()
        moved.CopyFrom(node)
        del moved.input[:]
        moved.input.extend(inputs)
        now[name] = moved.output[0] = names.new(f"{name}/plain")
        if name in read:
            back = [order.index(axis) for axis in range(len(order))]
            where = names.new(f"{name}/transpose")
            result.graph.node.append(helper.make_node("Transpose", [now[name]], [name], where, perm=back))
    return result


def _order(facts: Facts, node: onnx.NodeProto, affine: set[str]) -> tuple[int, ...] | None:
    """What permutation takes the tensors of a pointwise operation to [n, c, pixels]; None where there is no need."""
    if node.op_type not in POINTWISE or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    computed = [name for name in node.input if name and not facts.is_constant(name)]
    constants = [facts.constant(name) for name in node.input if name and facts.is_constant(name)]
    if node.output[0] in affine or not computed or any(value is None or value.size != 1 for value in constants):
        return None
    return to_image([facts.placed.get(name) for name in computed])


def _reaching(graph: onnx.GraphProto, turned: dict[str, tuple[int, ...]], affine: set[str]) -> set[str]:
    """Those of the pointwise operations, by what they make, which a transpose reads, by way of them or affine ones."""
    reaching: set[str] = set()
    for node in reversed(graph.node):
        if (node.op_type == "Transpose" and node.output[0] in affine) or (
            not reaching.isdisjoint(node.output) and any(name in turned or name in affine for name in node.output)
        ):
            reaching.update(node.input)
    return reaching & turned.keys()


def seen_from(before: onnx.ModelProto, after: onnx.ModelProto, given: onnx.ModelProto | None) -> onnx.ModelProto:
    """`given`, which is `before` with its activations elsewhere, if `after` has them there; else `before`."""
    if given is None:
        return before
    own = {name for node in before.graph.node for name in node.output}
    there = {name for node in given.graph.node if node.op_type != "Transpose" for name in node.output} - own
    return given if any(name in there for node in after.graph.node for name in node.output) else before


_BY_CHANNEL = frozenset(("BatchNormalization", "Mul", "Div", "Add", "Sub"))
"""Operations that, with constants, do the same to each number of a channel, whatever is in the others."""


def distributed(facts: Facts, steps: Sequence[Step], names: Names) -> onnx.ModelProto | None:
    """The graph in which what scales or shifts joined channels does so before they are joined; None if there is none.

    Only where nothing else reads what is joined, and each part is computed, not moved. Arguments as of `commuted`.
    """
    graph = facts.model.graph
    affine = {step.output: step for step in steps}
    reads = Counter(name for node in graph.node for name in node.input)
    reads.update((*captured(graph), *(value.name for value in graph.output)))
    joins: dict[str, onnx.NodeProto] = {}  # what joins the parts of a tensor, by the tensor
    for node in graph.node:
        if _joins(facts, node, affine, reads):
            joins[node.output[0]] = node
        elif (name := _mapped(facts, node, joins)) and node.output[0] in affine and reads[name] == 1:
            joins[node.output[0]] = joins[name]
    moved = {node.output[0]: node for node in graph.node if node.op_type != "Concat" and node.output[0] in joins}
    if not moved:
        return None
    behind = {_mapped(facts, node, joins) for node in moved.values()}
    result = copy_of(facts.model)
    del result.graph.node[:]
    parts: dict[str, list[str]] = {}
    for node in graph.node:
        made = node.output[0] if node.output else ""
        if made in moved:
            parts[made] = _on_parts(facts, node, joins[made], parts, names, result.graph)
            if made not in behind:
                named = names.new(label(joins[made]))
                axis = _axis(facts, joins[made])
                result.graph.node.append(helper.make_node("Concat", parts[made], [made], named, axis=axis))
        elif made in behind:
            parts[made] = [*node.input]
        else:
            result.graph.node.append(node)
    kept = [value for value in result.graph.value_info if value.name not in behind]
    del result.graph.value_info[:]
    result.graph.value_info.extend(kept)
    return result


def _on_parts(
    facts: Facts,
    node: onnx.NodeProto,
    join: onnx.NodeProto,
    parts: Mapping[str, Sequence[str]],
    names: Names,
    graph: onnx.GraphProto,
) -> list[str]:
    """Write to `graph` what a node does to each of the parts of what it reads; returns what that makes."""
    (source,) = (name for name in node.input if name in parts)
    operands = [name for name in dict.fromkeys(node.input) if name not in (source, "")]
    axis = _axis(facts, join)
    widths = (int(str(facts.sides[part][axis])) for part in join.input)
    found: list[str] = []
    for part, (start, end) in zip(parts[source], pairwise(accumulate(widths, initial=0)), strict=True):
        now = {source: part}
        for operand in operands:
            value = _part(facts, node, operand, axis, start, end)
            if value is not None:
                now[operand] = names.new(f"{operand}/part")
                graph.initializer.append(numpy_helper.from_array(value, now[operand]))
        found.append(names.new(f"{node.output[0]}/part"))
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = names.new(label(node))
        copy.input[:] = [now.get(name, name) for name in node.input]
        copy.output[:] = found[-1:]
    return found


def _axis(facts: Facts, join: onnx.NodeProto) -> int:
    """The axis a Concat joins."""
    axis = attributes(join).get("axis", 0)
    return int(axis) % len(facts.sides[join.output[0]]) if isinstance(axis, int) else 0


def _joins(facts: Facts, node: onnx.NodeProto, affine: Mapping[str, Step], reads: Mapping[str, int]) -> bool:
    """Whether a node joins channels of tensors that are computed for it alone."""
    if node.op_type != "Concat" or node.domain not in ("", "ai.onnx") or node.output[0] not in facts.sides:
        return False
    axis = _axis(facts, node)
    known = all(axis < len(sides := facts.sides.get(name, ())) and isinstance(sides[axis], int) for name in node.input)
    alone = all(name in affine and not affine[name].only_moves and reads[name] == 1 for name in node.input)
    return axis > 0 and known and alone and len(node.input) > 1 and node.output[0] in affine


def _mapped(facts: Facts, node: onnx.NodeProto, joins: Mapping[str, onnx.NodeProto]) -> str | None:
    """The joined tensor that a node scales or shifts by constants which can be cut as it is; None if it does not."""
    found = [name for name in node.input if name in joins]
    if node.op_type not in _BY_CHANNEL or node.domain not in ("", "ai.onnx") or len(found) != 1:
        return None
    (name,), axis = found, _axis(facts, joins[found[0]])
    operands = {*node.input} - {name, ""}
    if not all(_is_stored(facts, operand) for operand in operands) or len(node.output) != 1:
        return None
    if node.op_type == "BatchNormalization":
        return name if axis == 1 else None
    return name if facts.sides.get(node.output[0]) == facts.sides[name] else None


def _is_stored(facts: Facts, name: str) -> bool:
    """Whether a tensor is a constant of the graph that nothing computes."""
    return name in facts.initializers or (name in facts.makers and facts.makers[name].op_type == "Constant")


def _part(facts: Facts, node: onnx.NodeProto, operand: str, axis: int, start: int, end: int) -> Array | None:
    """The numbers of an operand for some of the channels of `axis`; None where they are the same for all."""
    value = facts.constant(operand)
    if value is None:
        return None
    value = value.astype(helper.tensor_dtype_to_np_dtype(facts.types[operand]), copy=False)
    if node.op_type == "BatchNormalization":
        return value[start:end]
    place = axis - len(facts.sides[node.output[0]]) + value.ndim
    return None if place < 0 or value.shape[place] == 1 else np.take(value, range(start, end), place)
