"""A plan for an ONNX graph, written: convolutions in the places of the nodes they stand for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from ...errors import FusionError
from ..maps.arrangement import Change
from ..planning.dialect import Dialect
from ..planning.emission import Add, Average, Convolution, Emission, Layer, Matrix, Move, Operand, Same, Scale, Shift
from .nodes import captured

DIALECT = Dialect(pads_unevenly=True)


@dataclass
class Nodes:
    """The nodes and weights that make one tensor; of those that are layers the names, and their weights', in order."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    multiplied: list[str] = field(default_factory=list)


class Names:
    """Names that nothing in a model has.

    instead: those that stand for a name which was taken, and that.
    """

    def __init__(self, taken: set[str]) -> None:
        self._taken = set(taken)
        self.instead: dict[str, str] = {}

    def new(self, wanted: str) -> str:
        """`wanted`, with a number behind it if that is taken."""
        name, count = wanted, 1
        while name in self._taken:
            name, count = f"{wanted}_{count}", count + 1
        self._taken.add(name)
        if name != wanted:
            self.instead[name] = wanted
        return name


def taken(model: onnx.ModelProto) -> set[str]:
    """The names in a model."""
    graph = model.graph
    found = {t.name for t in graph.initializer} | {v.name for v in (*graph.input, *graph.output)} | captured(graph)
    for node in graph.node:
        found.update(node.input, node.output, (node.name,))
    return found


@dataclass
class _Pen:
    """What writing one tensor needs to know."""

    where: str
    element_type: int
    names: Names
    opset: int
    bias: Tensor | None
    result: Nodes = field(default_factory=Nodes)

    def node(
        self, kind: str, inputs: Sequence[str], target: str, suffix: str = "", **settings: int | list[int]
    ) -> None:
        """Write a node."""
        name = self.names.new(f"{self.where}{suffix}")
        node = helper.make_node(kind, inputs, [target], name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in settings.items())
        self.result.nodes.append(node)

    def weight(self, wanted: str, value: Tensor) -> str:
        """Write numbers; their name."""
        self.result.weights.append(_tensor(self.names.new(wanted), value, self.element_type))
        return self.result.weights[-1].name

    def biased(self, layer: Layer, target: str) -> list[str]:
        """The name of the bias, if the layer has one."""
        return [self.weight(f"{target}.bias", self.bias)] if layer.biased and self.bias is not None else []

    def move(self, source: str, change: Change, target: str) -> None:
        """Write a change of layout."""
        kind, numbers = change
        if kind == "permute":
            self.node("Transpose", [source], target, "/transpose", perm=list(numbers))
            return
        shape = numpy_helper.from_array(np.array(numbers, np.int64), self.names.new(f"{target}.shape"))
        self.result.weights.append(shape)
        self.node("Reshape", [source, shape.name], target, "/reshape")

    def matrix(self, source: str, layer: Matrix, target: str) -> None:
        """A matrix times the last axis, as Gemm where that takes the tensor."""
        if layer.flat:
            inputs = [source, self.weight(f"{target}.weight", layer.weight), *self.biased(layer, target)]
            self.node("Gemm", inputs, target, transB=1)
        else:
            inputs = [source, self.weight(f"{target}.weight", layer.weight.T)]
            bias = self.biased(layer, target)
            product = self.names.new(f"{target}.product") if bias else target
            self.node("MatMul", inputs, product)
            if bias:
                self.node("Add", [product, *bias], target, "/bias")

    def average(self, source: str, layer: Average, target: str) -> None:
        """The mean of windows, or of all pixels."""
        if layer.pool.size:
            windows = {"kernel_shape": list(layer.pool.size), "strides": list(layer.pool.stride)}
            self.node("AveragePool", [source], target, "/pool", **windows)
        elif layer.is_image:
            self.node("GlobalAveragePool", [source], target, "/pool")
        elif self.opset < 18:
            self.node("ReduceMean", [source], target, "/pool", axes=list(layer.axes), keepdims=int(layer.keeps))
        else:
            axes = numpy_helper.from_array(np.array(layer.axes, np.int64), self.names.new(f"{target}.axes"))
            self.result.weights.append(axes)
            self.node("ReduceMean", [source, axes.name], target, "/pool", keepdims=int(layer.keeps))

    def convolution(self, source: str, layer: Convolution, target: str) -> None:
        """A convolution, or a transposed one."""
        weight = layer.weight
        inputs = [source, self.weight(f"{target}.weight", weight), *self.biased(layer, target)]
        settings = {"dilations": layer.dilation, "kernel_shape": list(weight.shape[2:]), "strides": layer.stride}
        group = layer.form.geometry.groups
        if layer.is_transposed:
            crop, more = layer.crop
            if any(more):
                settings["output_padding"] = more
            self.node("ConvTranspose", inputs, target, "", group=group, pads=[*crop, *crop], **settings)
        else:
            self.node("Conv", inputs, target, "", group=group, pads=[*layer.padding[0], *layer.padding[1]], **settings)


def emit(output: str, where: str, written: Emission, *, element_type: int, names: Names, opset: int) -> Nodes:
    """The nodes that make `output`.

    Raises:
        FusionError: a number is not finite in the graph's element type.
    """
    pen = _Pen(where, element_type, names, opset, written.bias.value)
    operations = written.settled()
    made: list[str] = []

    def read(place: Operand) -> str:
        return made[place] if isinstance(place, int) else place

    for index, operation in enumerate(operations):
        last = index == len(operations) - 1
        target = output if last else names.new(f"{output}.part{index}")
        held = len(pen.result.weights)
        match operation:
            case Convolution(source=source):
                pen.convolution(read(source), operation, target)
            case Matrix(source=source):
                pen.matrix(read(source), operation, target)
            case Scale(source=source, widths=widths):
                shape = widths if len(widths) < 3 else _without_leading_ones(widths)
                factors = pen.weight(f"{target}.scale", operation.factors.reshape(shape))
                pen.node("Mul", [read(source), factors], target, "/scale")
            case Move(source=source, change=change):
                pen.move(read(source), change, target)
            case Average(source=source):
                pen.average(read(source), operation, target)
            case Add(source=source, other=other):
                pen.node("Add", [read(source), read(other)], target, "/add")
            case Shift(source=source, widths=widths) if pen.bias is not None:
                shift = pen.weight(f"{output}.bias", pen.bias.reshape(_without_leading_ones(widths)))
                pen.node("Add", [read(source), shift], target, "/add")
            case Same(source=source):
                pen.node("Identity", [read(source)], target)
            case _:
                raise TypeError(f"{operation} is not written anew")
        if isinstance(operation, Layer):
            pen.result.layers.append(pen.result.nodes[-1].name)
            pen.result.multiplied.append(pen.result.weights[held].name)
        made.append(target)
    return pen.result


def _without_leading_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts as `shape` does."""
    found = tuple(shape)
    while len(found) > 1 and found[0] == 1:
        found = found[1:]
    return found


def _tensor(name: str, value: Tensor, element_type: int) -> onnx.TensorProto:
    """Numbers cast once.

    Raises:
        FusionError: one is not finite in that type.
    """
    with np.errstate(over="ignore"):
        cast = value.numpy().astype(helper.tensor_dtype_to_np_dtype(element_type), order="C")
    if cast.size and not (np.isfinite(cast.min()) and np.isfinite(cast.max())):
        kind = onnx.TensorProto.DataType.Name(element_type).lower()
        raise FusionError(f"a folded number is not finite in {kind}")
    tensor: onnx.TensorProto = numpy_helper.from_array(cast, name)
    return tensor


def without_unread(
    graph: onnx.GraphProto,
    stored: Sequence[onnx.TensorProto],
    written: Sequence[onnx.TensorProto],
    read_before: set[str],
    captured: set[str],
) -> dict[str, str]:
    """Drop nodes that something read before and nothing reads now, and add the weights of which that is not true.

    stored: those of the original, which keep their names. written: those written for this graph, of which no two hold
        the same numbers afterwards, nor numbers that stay stored. What is given back says of those that hold the
        numbers of another which that is.
    """
    outputs = {value.name for value in graph.output} | captured
    readers = Counter(name for node in graph.node for name in set(node.input))
    kept = []
    # Backwards, every reader of a node's outputs has been decided before the node itself.
    for node in reversed(graph.node):
        made = [name for name in node.output if name]
        unread = any(name in read_before for name in made) and not any(readers[n] or n in outputs for n in made)
        if unread and node.op_type not in ("If", "Loop", "Scan"):
            readers.subtract(set(node.input))
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        copies = onnx.GraphProto()
        copies.node.extend(reversed(kept))
        del graph.node[:]
        graph.node.extend(copies.node)
    stay = [t for t in stored if readers[t.name] > 0 or t.name in outputs or t.name not in read_before]
    new, instead = _stored_once(stay, [t for t in written if readers[t.name] > 0], {v.name for v in graph.input})
    graph.initializer.extend([*stay, *new])
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in instead:
                node.input[position] = instead[name]
    return instead


def _stored_once(
    stay: Sequence[onnx.TensorProto], written: Sequence[onnx.TensorProto], inputs: set[str]
) -> tuple[list[onnx.TensorProto], dict[str, str]]:
    """Those of `written` whose numbers nothing holds yet, and of each other one the name of what holds them.

    inputs: names of the graph's inputs; what is stored for one of them may be overridden.
    """
    held: dict[_Identity, str] = {}
    fixed = [tensor for tensor in stay if tensor.name not in inputs]
    alike, ours = (Counter(map(_kind, tensors)) for tensors in ((*fixed, *written), written))
    for tensor in fixed:
        if ours[_kind(tensor)]:
            held.setdefault(_identity(tensor), tensor.name)
    new: list[onnx.TensorProto] = []
    instead: dict[str, str] = {}
    for tensor in written:
        alone = alike[_kind(tensor)] == 1
        name = tensor.name if alone else held.setdefault(_identity(tensor), tensor.name)
        if name == tensor.name:
            new.append(tensor)
        else:
            instead[tensor.name] = name
    return new, instead


_Kind = tuple[int, tuple[int, ...]]
_Identity = tuple[_Kind, bytes]


def _kind(tensor: onnx.TensorProto) -> _Kind:
    """Type and shape."""
    return tensor.data_type, tuple(tensor.dims)


def _identity(tensor: onnx.TensorProto) -> _Identity:
    """Alike for tensors of the same type, shape and bytes."""
    return _kind(tensor), hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).digest()
