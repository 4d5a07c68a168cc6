"""An ONNX model cut into stretches of nodes, so that whoever computes it holds what one weighs and makes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import onnx

from ..nodes import captured_by

NUMBERS = 1 << 21
"""Of the weights of a stretch; those that a single node reads may be more."""

NODES = 32
"""Nodes of a stretch: whoever computes it may hold all that they make at once."""


@dataclass(frozen=True)
class Stretch:
    """Nodes that follow one another, as a model of its own, but for its weights.

    weights: those it takes, which are the whole model's own; sparse ones it holds itself. read: tensors it takes.
    made: those it makes that are read later or wanted. later: all that are.
    """

    model: onnx.ModelProto
    weights: tuple[onnx.TensorProto, ...]
    read: tuple[str, ...]
    made: tuple[str, ...]
    later: Set[str]


def stretches(model: onnx.ModelProto, given: Set[str], names: Sequence[str]) -> Iterator[Stretch]:
    """What has to run for `names`, in order; each is put together when it is its turn.

    Args:
        model: its nodes stand in an order in which they can run.
        given: tensors that are handed in; a weight of that name is not taken, and what makes one does not run.
        names: tensors that are wanted.
    """
    nodes = list(_needed(model, given, names))
    reads = [{*node.input, *captured_by(node)} - {""} for node in nodes]
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in given}
    numbers = {name: math.prod(weight.dims) for name, weight in weights.items()}
    known, later = set(given), [set(names)]
    parts = list(_cut([sum(numbers.get(name, 0) for name in read) for read in reads]))
    for part in reversed(parts[1:]):
        later.insert(0, later[0].union(*reads[part]))
    for part, wanted in zip(parts, later, strict=True):
        used = sorted(set[str]().union(*reads[part]))
        made = [name for node in nodes[part] for name in node.output if name and name not in given]
        read = tuple(name for name in used if name in known)
        kept = tuple(name for name in made if name in wanted)
        held = tuple(weights[name] for name in used if name in weights)
        yield Stretch(_model(model, nodes[part], read, kept, used), held, read, kept, wanted)
        known.update(made)


def _needed(model: onnx.ModelProto, given: Set[str], names: Sequence[str]) -> list[onnx.NodeProto]:
    wanted = set(names) - given
    found = []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            found.append(node)
            wanted |= {*node.input, *captured_by(node)} - given
    return found[::-1]


def _cut(sizes: Sequence[int]) -> Iterator[slice]:
    """Runs of at most `NODES` whole nodes whose sizes together are at most `NUMBERS`, or a single node's."""
    start = held = 0
    for index, size in enumerate(sizes):
        if index > start and (held + size > NUMBERS or index == start + NODES):
            yield slice(start, index)
            start = index
            held = 0
        held += size
    if sizes:
        yield slice(start, len(sizes))


def _model(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    read: Sequence[str],
    made: Sequence[str],
    used: Sequence[str],
) -> onnx.ModelProto:
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    result.graph.node.extend(nodes)
    result.graph.input.extend(onnx.ValueInfoProto(name=name) for name in read)
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    result.graph.sparse_initializer.extend(t for t in model.graph.sparse_initializer if t.values.name in used)
    return result
