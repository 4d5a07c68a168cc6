"""Reading one node of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from ...files.edited import bodies_of


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
    for body in (inner for graph in nested(node) for inner in bodies_of(graph)):
        if isinstance(body, onnx.GraphProto):
            found.update(value.name for value in body.output)
        found.update(name for inner in body.node for name in inner.input)
    return found


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """A node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def label(node: onnx.NodeProto) -> str:
    """What a report calls a node: its name, or its first output."""
    return node.name or next(iter(node.output), "")
