"""Reading one node of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper


def nested(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captured(graph: onnx.GraphProto) -> set[str]:
    """Every name that nodes of subgraphs read, wherever it is made."""
    return set().union(*(captured_by(node) for node in graph.node))


def captured_by(node: onnx.NodeProto) -> set[str]:
    """Every name that is read inside a node's subgraphs, wherever it is made."""
    found: set[str] = set()
    pending = list(nested(node))
    while pending:
        sub = pending.pop()
        found.update(value.name for value in sub.output)
        for inner in sub.node:
            found.update(inner.input)
            pending.extend(nested(inner))
    return found


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """A node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def label(node: onnx.NodeProto) -> str:
    """What a report calls a node: its name, or its first output."""
    return node.name or next(iter(node.output), "")
