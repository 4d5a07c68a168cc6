"""A plan for an ONNX graph, written: convolutions in the places of the nodes they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from ...algebra.kernels import Kernel
from ...errors import FusionError
from ..core.expression import Expression, Term
from ..maps.arrangement import Change, arrange
from ..maps.carried import Carried


@dataclass
class Emission:
    """The nodes and weights that make one tensor."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    convolutions: list[tuple[str, str]] = field(default_factory=list)


class Names:
    """Names that nothing in a model has."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = set(taken)

    def new(self, wanted: str) -> str:
        """`wanted`, with a number behind it if that is taken."""
        name, count = wanted, 1
        while name in self._taken:
            name, count = f"{wanted}_{count}", count + 1
        self._taken.add(name)
        return name


@dataclass
class _Pen:
    """What writing one tensor needs to know."""

    output: str
    where: str
    element_type: int
    names: Names
    result: Emission = field(default_factory=Emission)

    def node(self, kind: str, inputs: list[str], target: str, suffix: str = "", **settings: int | list[int]) -> str:
        """Write a node; what it makes."""
        name = self.names.new(f"{self.where}{suffix}")
        node = helper.make_node(kind, inputs, [target], name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in settings.items())
        self.result.nodes.append(node)
        return target

    def weight(self, wanted: str, value: Tensor) -> str:
        """Write numbers; their name."""
        self.result.weights.append(_tensor(self.names.new(wanted), value, self.element_type))
        return self.result.weights[-1].name

    def change(self, source: str, changes: Sequence[Change], target: str) -> str:
        """Write changes of layout, the last to `target`; what they make."""
        for index, (kind, numbers) in enumerate(changes, start=1):
            made = target if index == len(changes) else self.names.new(f"{target}.{kind}")
            if kind == "permute":
                source = self.node("Transpose", [source], made, "/transpose", perm=list(numbers))
                continue
            shape = numpy_helper.from_array(np.array(numbers, np.int64), self.names.new(f"{target}.shape"))
            self.result.weights.append(shape)
            source = self.node("Reshape", [source, shape.name], made, "/reshape")
        return source


def emit(
    placed: Mapping[str, Carried], output: str, where: str, found: Expression, element_type: int, names: Names
) -> Emission:
    """The nodes that make `output` as `sum_s K_s * s + b`; `placed`: the layouts of tensors.

    Raises:
        FusionError: a number is not finite in the graph's element type.
    """
    pen = _Pen(output, where, element_type, names)
    bias = found.bias.value
    computed = [term for term in found.terms if not term.form.is_diagonal]
    scaled = [term for term in found.terms if term.form.is_diagonal and not term.form.is_identity]
    untouched = [term for term in found.terms if term.form.is_identity]
    loose = bias is not None and not computed
    last = len(found.terms) == 1 and not loose
    parts = []
    for index, term in enumerate([*computed, *scaled, *untouched]):
        target = output if last else names.new(f"{output}.part{index}")
        source = placed[term.source]
        way = arrange(term.form, source, placed[output])
        made = names.new(f"{target}.inner") if way.after else target
        if term.form.is_identity:
            parts.append(pen.change(term.source, way.after, target))
            continue
        read = pen.change(term.source, way.before, names.new(f"{target}.outer")) if way.before else term.source
        if index >= len(computed):
            shape = source.layout.widths if len(source.layout.axes) < 3 else _without_leading_ones(source.layout.widths)
            factor = pen.weight(f"{target}.scale", term.kernel.weight.reshape(shape))
            pen.node("Mul", [read, factor], made, "/scale")
        elif way.pixels is None:
            _matrix(pen, read, term, bias if index == 0 else None, made, len(source.layout.axes))
        else:
            _convolution(pen, read, term, bias if index == 0 else None, made, way.pixels)
        parts.append(pen.change(made, way.after, target))
    if loose and bias is not None:
        parts.append(pen.weight(f"{output}.bias", bias.reshape(_without_leading_ones(placed[output].layout.widths))))
    total = parts[0]
    for index, other in enumerate(parts[1:], start=2):
        target = output if index == len(parts) else names.new(f"{output}.sum{index}")
        total = pen.node("Add", [total, other], target, f"/add{index}")
    if total != output:
        pen.node("Identity", [total], output)
    return pen.result


def _without_leading_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts as `shape` does."""
    found = tuple(shape)
    while len(found) > 1 and found[0] == 1:
        found = found[1:]
    return found


def _matrix(pen: _Pen, source: str, term: Term, bias: Tensor | None, target: str, rank: int) -> None:
    """A matrix times the last axis, as Gemm where that takes the tensor."""
    matrix = term.kernel.regroup(1).weight[:, :, 0, 0]
    if rank == 2:
        inputs = [source, pen.weight(f"{target}.weight", matrix)]
        if bias is not None:
            inputs.append(pen.weight(f"{target}.bias", bias))
        pen.node("Gemm", inputs, target, transB=1)
        return
    weight = pen.weight(f"{target}.weight", matrix.T)
    product = target if bias is None else pen.names.new(f"{target}.product")
    pen.node("MatMul", [source, weight], product)
    if bias is not None:
        pen.node("Add", [product, pen.weight(f"{target}.bias", bias)], target, "/bias")


def _convolution(pen: _Pen, source: str, term: Term, bias: Tensor | None, target: str, pixels: int) -> None:
    kernel, rows, columns = written(term)
    taps = kernel.weight[:, :, ::rows, ::columns]
    weight = pen.weight(f"{target}.weight", taps if pixels == 2 else taps[..., 0])
    inputs = [source, weight]
    if bias is not None:
        inputs.append(pen.weight(f"{target}.bias", bias))
    pads = [*kernel.padding[:2][:pixels], *kernel.padding[2:][:pixels]]
    pen.node(
        "Conv",
        inputs,
        target,
        group=kernel.groups,
        strides=list(kernel.stride)[:pixels],
        pads=pads,
        dilations=[rows, columns][:pixels],
        kernel_shape=list(taps.shape[2:])[:pixels],
    )
    pen.result.convolutions.append((pen.result.nodes[-1].name, term.form.without_cropping().label))


def written(term: Term) -> tuple[Kernel, int, int]:
    """A term's numbers with padding of at least 0, and the dilation its zeros allow; the weight still holds them."""
    rows, columns = term.form.without_cropping().dilation
    return term.uncropped(), rows, columns


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
    graph: onnx.GraphProto, weights: Sequence[onnx.TensorProto], read_before: set[str], captured: set[str]
) -> None:
    """Drop nodes that something read before and nothing reads now, and add the `weights` of which that is not true."""
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
    graph.initializer.extend(
        t for t in weights if readers[t.name] > 0 or t.name in outputs or t.name not in read_before
    )
