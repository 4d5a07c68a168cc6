"""An ONNX model cut into stretches of nodes, so that whoever computes it holds what one weighs and makes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import onnx

from ..nodes import captured_by

BYTES = 1 << 23
"""Weights of a stretch, as they are stored; those that a single node reads may be more."""

NODES = 32
"""Nodes of a stretch: whoever computes it may hold all that they make at once."""

_Weight = onnx.TensorProto | onnx.SparseTensorProto


@dataclass(frozen=True)
class Stretch:
    """Nodes that follow one another, as a model of its own.

    read: tensors it takes. made: those it makes that are read later or wanted. later: all that are.
    """

    model: onnx.ModelProto
    read: tuple[str, ...]
    made: tuple[str, ...]
    later: Set[str]


def stretches(model: onnx.ModelProto, given: Set[str], names: Sequence[str], most: int = BYTES) -> Iterator[Stretch]:
    """What has to run for `names`, in order; each is put together when it is its turn.

    Args:
        model: its nodes stand in an order in which they can run.
        given: tensors that are handed in; a weight of that name is not taken, and what makes one does not run.
        names: tensors that are wanted.
        most: bytes of weights that a stretch ends with.
    """
    nodes = list(_needed(model, given, names))
    reads = [{*node.input, *captured_by(node)} - {""} for node in nodes]
    weights = {name: weight for name, weight in _weights(model).items() if name not in given}
    sizes = [sum(weights[name].ByteSize() for name in read if name in weights) for read in reads]
    known, later = set(given), [set(names)]
    parts = list(_cut(sizes, most))
    for part in reversed(parts[1:]):
        later.insert(0, later[0].union(*reads[part]))
    for part, wanted in zip(parts, later, strict=True):
        used = sorted(set[str]().union(*reads[part]))
        made = [name for node in nodes[part] for name in node.output if name and name not in given]
        read = tuple(name for name in used if name in known)
        kept = tuple(name for name in made if name in wanted)
        yield Stretch(
            _model(model, nodes[part], read, kept, [weights[n] for n in used if n in weights]), read, kept, wanted
        )
        known.update(made)


def _needed(model: onnx.ModelProto, given: Set[str], names: Sequence[str]) -> list[onnx.NodeProto]:
    wanted = set(names) - given
    found = []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            found.append(node)
            wanted |= {*node.input, *captured_by(node)} - given
    return found[::-1]


def _cut(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Runs of at most `NODES` whole nodes whose sizes together are at most `most`, or a single node's."""
    start = held = 0
    for index, size in enumerate(sizes):
        if index > start and (held + size > most or index == start + NODES):
            yield slice(start, index)
            start = index
            held = 0
        held += size
    if sizes:
        yield slice(start, len(sizes))


def _weights(model: onnx.ModelProto) -> dict[str, _Weight]:
    dense: dict[str, _Weight] = {tensor.name: tensor for tensor in model.graph.initializer}
    return dense | {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}


def _model(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    read: Sequence[str],
    made: Sequence[str],
    weights: Sequence[_Weight],
) -> onnx.ModelProto:
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    result.graph.node.extend(nodes)
    result.graph.input.extend(onnx.ValueInfoProto(name=name) for name in read)
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    for weight in weights:
        if isinstance(weight, onnx.TensorProto):
            result.graph.initializer.append(weight)
        else:
            result.graph.sparse_initializer.append(weight)
    return result
