"""ONNX models changed in copies: the one given stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same again."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def showing(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy that gives the named tensors besides its outputs."""
    shown = copy_of(model)
    kept = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in kept)
    return shown


def bodies_of(
    within: onnx.ModelProto | onnx.GraphProto | onnx.FunctionProto,
) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Whatever holds nodes: a graph or a function (of a model, each), and the graphs in attributes, at any depth."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = (
        [within.graph, *within.functions] if isinstance(within, onnx.ModelProto) else [within]
    )
    while pending:
        body = pending.pop()
        yield body
        for attribute in (a for node in body.node for a in node.attribute):
            pending.extend((*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs))


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are no initialisers: before IR version 4 weights are inputs, too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def put(tensor: onnx.TensorProto, numbers: NDArray[np.generic]) -> None:
    """Give a tensor other numbers, of the array's type; it keeps its name."""
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
