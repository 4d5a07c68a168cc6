"""Layers of an int8 model that stay in float: they read what the layers before them computed, not rounded."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from repconv.errors import SourceError

from .layer_errors import KINDS, LayerError

_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


def chosen(asked: int | tuple[str, ...], model: onnx.ModelProto, layers: Sequence[LayerError]) -> tuple[str, ...]:
    """The names of the layers to keep: the first of `layers`, furthest off first, or those named.

    Raises:
        SourceError: a name that no layer has, or as many layers as there are.
    """
    if isinstance(asked, int):
        if asked >= len(layers):
            raise SourceError(f"{asked} layers in float leave none of {len(layers)} in int8; take --precision fp32")
        return tuple(layer.name for layer in layers[:asked])
    names = [node.name for node in model.graph.node if node.op_type in KINDS]
    for name in asked:
        if name not in names:
            raise SourceError(f"no layer {name!r} to keep in float; the layers are {', '.join(names)}")
    return asked


def read_unrounded(model: onnx.ModelProto, kept: Sequence[str]) -> None:
    """Let the layers `kept` of a Q/DQ model, whose weights are float, read what the layers before them gave, unrounded.

    What stands between (ReLU, sums, pooling) computes in float as well; other readers of the same tensors still read
    them rounded. Roundings that nothing reads are removed.
    """
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    left = [node for node in graph.node if node.name in kept]
    seen: set[str] = set()
    while left:
        node = left.pop()
        for index, name in enumerate(node.input):
            node.input[index] = _unrounded(name, made)
            source = made.get(node.input[index])
            if source is not None and source.op_type not in (*KINDS, *_ROUNDING) and source.output[0] not in seen:
                seen.add(source.output[0])
                left.append(source)
    _prune(graph)


def _unrounded(name: str, made: dict[str, onnx.NodeProto]) -> str:
    """What a tensor was before it went through QuantizeLinear and DequantizeLinear; weights have no first."""
    after = made.get(name)
    before = made.get(after.input[0]) if after is not None and after.op_type == "DequantizeLinear" else None
    return before.input[0] if before is not None and before.op_type == "QuantizeLinear" else name


def _prune(graph: onnx.GraphProto) -> None:
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        idle = [n for n in graph.node if n.op_type in _ROUNDING and not read.intersection(n.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    unread = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unread:
        graph.initializer.remove(tensor)
