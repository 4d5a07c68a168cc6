"""Activations between changes of layout, as the same graph has them on the other side of those.

A pointwise operation f and a permutation T of axes commute, `f(x) = T'(f(T(x)))`. Graphs that keep their channels last
(converted from TensorFlow) transpose around every convolution, so between two stand two transposes that only the
activation keeps apart. Written with the activation of [n, c, pixels], they are next to each other, and the plan of that
graph may leave both out. It is the same graph, and what is proven of regions is proven of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from ...files.edited import copy_of
from ..core.step import Step
from ..maps.arrangement import to_image
from .facts import Facts
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
