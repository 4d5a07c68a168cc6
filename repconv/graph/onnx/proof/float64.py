"""ONNX models evaluated in float64, which runtimes do not do for convolutions: the reference everything is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ....errors import FusionError, first_line
from ....files.edited import put
from ....files.onnx import LARGE, longest_run, return_freed
from ....limits import at_most
from ..evaluator.evaluator import Evaluator
from ..nodes import nested
from .stretches import stretches

Array = NDArray[np.generic]

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16))

_TYPES = frozenset(("to", "dtype", "output_dtype"))
"""Attributes that name the type of what a node makes."""


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
    """The named tensors of `model`, every floating-point number of it in float64.

    Args:
        model: what runs of it is what `names` need.
        feeds: its inputs by name, and any other tensors, which are then not computed.
        names: outputs, or any other tensors.

    Raises:
        FusionError: the reference evaluator knows an operation of the model not at all, or not in float64.
    """
    known: dict[str, Any] = {name: _double(value) for name, value in feeds.items()}
    try:
        with at_most(longest_run(model)):
            for stretch in stretches(model, known.keys(), names):
                _widen_model(stretch.model)
                evaluator = Evaluator(stretch.model)
                found = evaluator.run(list(stretch.made), {name: known[name] for name in stretch.read})
                evaluator.release()
                if stretch.model.ByteSize() > LARGE:
                    return_freed()
                known |= zip(stretch.made, found, strict=True)
                known = {name: value for name, value in known.items() if name in stretch.later}
        held = {tensor.name: tensor for tensor in model.graph.initializer}
        return [
            np.asarray(known[name] if name in known else _double(numpy_helper.to_array(held[name]))) for name in names
        ]
    except Exception as error:  # each operation is somebody else's code
        raise FusionError(f"it cannot be evaluated in float64 ({first_line(error)})") from error


def _widen_model(model: onnx.ModelProto) -> None:
    """Make floating-point weights, constants, casts and outputs of a model float64."""
    for imported in (model, *model.functions):
        for entry in imported.opset_import:
            entry.domain = _plain(entry.domain)
    for function in model.functions:
        for node in function.node:
            _widen_node(node)
    _widen(model.graph)


def _plain(domain: str) -> str:
    """The default domain has two spellings, of which the evaluator knows one."""
    return "" if domain == "ai.onnx" else domain


def _widen(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        _widen_node(node)


def _widen_node(node: onnx.NodeProto) -> None:
    node.domain = _plain(node.domain)
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _widen_tensor(attribute.t)
        if attribute.name in _TYPES and attribute.i in _FLOATS:
            attribute.i = TensorProto.DOUBLE
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = np.asarray(helper.get_attribute_value(attribute), dtype=np.float64)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
    for graph in nested(node):
        _widen(graph)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        put(tensor, _double(numpy_helper.to_array(tensor)))


def _double(value: Array) -> Array:
    kind = value.dtype
    return value.astype(np.float64) if kind.kind == "f" or kind.name == "bfloat16" else value


def region(model: onnx.ModelProto, output: str, known: set[str]) -> tuple[onnx.ModelProto, list[str]]:
    """The part of `model` that makes `output` of tensors in `known`, as a model of its own, and those it reads."""
    makers = {name: node for node in model.graph.node for name in node.output if name}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    needed: dict[str, onnx.NodeProto] = {}
    read: dict[str, None] = {}
    weights: dict[str, onnx.TensorProto] = {}
    pending = [output]
    while pending:
        name = pending.pop()
        node = makers.get(name)
        if name in initializers:
            weights[name] = initializers[name]
        elif node is None or (name in known and name != output):
            read[name] = None
        elif name not in needed:
            needed.update(dict.fromkeys(node.output, node))
            captured = [n for graph in nested(node) for inner in graph.node for n in inner.input]
            pending.extend(n for n in (*node.input, *captured) if n)
    inside = {id(node) for node in needed.values()}
    graph = helper.make_graph(
        [node for node in model.graph.node if id(node) in inside],
        "region",
        [onnx.ValueInfoProto(name=name) for name in read],
        [onnx.ValueInfoProto(name=output)],
        list(weights.values()),
    )
    result: onnx.ModelProto = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    result.ir_version = model.ir_version
    return result, list(read)
