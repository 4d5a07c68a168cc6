"""ONNX models evaluated in float64, which runtimes do not do for convolutions: the reference everything is held to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
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
from .stretches import Stretch, stretches

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
    with _said():
        return _run(
            model, feeds, names, _released(map(_ready, stretches(model, feeds.keys(), names))), longest_run(model)
        )


class Repeated:
    """The named tensors of a small model, evaluated again and again: what is put together for that is kept.

    Args and errors as of `evaluate`.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str]) -> None:
        self._model, self._names, self._longest_s = model, names, longest_run(model)
        self._ready: dict[frozenset[str], list[_Ready]] = {}

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        """What they are of `feeds`."""
        given = frozenset(feeds)
        with _said():
            if given not in self._ready:
                self._ready[given] = list(map(_ready, stretches(self._model, given, self._names)))
            return _run(self._model, feeds, self._names, self._ready[given], self._longest_s)


@dataclass(frozen=True)
class _Ready:
    """A stretch that can be run, and its weights."""

    stretch: Stretch
    evaluator: Evaluator
    weights: Mapping[str, Array]


def _ready(stretch: Stretch) -> _Ready:
    _widen_model(stretch.model)
    weights = {tensor.name: _double(numpy_helper.to_array(tensor)) for tensor in stretch.weights}
    return _Ready(stretch, Evaluator(stretch.model), weights)


def _released(parts: Iterable[_Ready]) -> Iterator[_Ready]:
    """Each of them, and its memory given back before the next."""
    for part in parts:
        yield part
        large = sum(value.nbytes for value in part.weights.values()) > LARGE
        part.evaluator.release()
        del part
        if large:
            return_freed()


def _run(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    names: Sequence[str],
    parts: Iterable[_Ready],
    seconds: float,
) -> list[Array]:
    known: dict[str, Any] = {name: _double(value) for name, value in feeds.items()}
    with at_most(seconds):
        for part in parts:
            stretch = part.stretch
            read = {name: known[name] for name in stretch.read}
            found = part.evaluator.run(list(stretch.made), {**read, **part.weights})
            known |= zip(stretch.made, found, strict=True)
            known = {name: value for name, value in known.items() if name in stretch.later}
            del part
    held = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in names}
    return [np.asarray(known[name] if name in known else _double(numpy_helper.to_array(held[name]))) for name in names]


@contextlib.contextmanager
def _said() -> Iterator[None]:
    try:
        yield
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
    return value.astype(np.float64, copy=False) if kind.kind == "f" or kind.name == "bfloat16" else value


class Parts:
    """A model's nodes and weights by name, to take parts out of it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._nodes = list(model.graph.node)
        self._makers = {name: place for place, node in enumerate(self._nodes) for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}

    def read(self, output: str, known: Set[str]) -> list[str]:
        """Those of `known` tensors, and inputs, that what makes `output` reads."""
        return self._reached(output, known)[1]

    def region(self, output: str, known: Set[str]) -> tuple[onnx.ModelProto, list[str]]:
        """The part that makes `output` of tensors in `known`, as a model of its own, and those it reads."""
        needed, read, weights = self._reached(output, known)
        graph = helper.make_graph(
            [self._nodes[place] for place in sorted(needed)],
            "region",
            [onnx.ValueInfoProto(name=name) for name in read],
            [onnx.ValueInfoProto(name=output)],
            [self._weights[name] for name in weights],
        )
        model = self._model
        result: onnx.ModelProto = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
        result.ir_version = model.ir_version
        return result, read

    def _reached(self, output: str, known: Set[str]) -> tuple[set[int], list[str], list[str]]:
        """The places of nodes, the tensors they read, and their weights."""
        needed: set[int] = set()
        read: dict[str, None] = {}
        weights: dict[str, None] = {}
        pending = [output]
        while pending:
            name = pending.pop()
            place = self._makers.get(name)
            if name in self._weights:
                weights[name] = None
            elif place is None or (name in known and name != output):
                read[name] = None
            elif place not in needed:
                needed.add(place)
                node = self._nodes[place]
                captured = [n for graph in nested(node) for inner in graph.node for n in inner.input]
                pending.extend(n for n in (*node.input, *captured) if n)
        return needed, list(read), list(weights)
