"""A plan for an ONNX graph, written: convolutions in the places of the nodes they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from ..errors import FusionError
from ..kernels import Kernel
from .expression import Expression, Term


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


def emit(
    output: str, where: str, found: Expression, element_type: int, names: Names, *, flat: bool = False
) -> Emission:
    """The nodes that make `output` as `sum_s K_s * s + b`; `flat` if tensors are [n, c] and convolutions Gemm.

    Raises:
        FusionError: a number is not finite in the graph's element type.
    """
    result = Emission()
    bias = found.bias.value
    shape = (-1,) if flat else (-1, 1, 1)
    computed = [term for term in found.terms if not term.form.is_diagonal]
    scaled = [term for term in found.terms if term.form.is_diagonal and not term.form.is_identity]
    parts = []
    loose = bias is not None and not computed
    last = len(found.terms) == 1 and not loose
    for index, term in enumerate([*computed, *scaled]):
        target = output if last else names.new(f"{output}.part{index}")
        if index >= len(computed):
            factor = _tensor(names.new(f"{target}.scale"), term.kernel.weight.reshape(shape), element_type)
            result.weights.append(factor)
            name = names.new(f"{where}/scale")
            result.nodes.append(helper.make_node("Mul", [term.source, factor.name], [target], name))
        elif flat:
            _gemm(result, term, bias if index == 0 else None, target, where, element_type, names)
        else:
            _convolution(result, term, bias if index == 0 else None, target, where, element_type, names)
        parts.append(target)
    parts += [term.source for term in found.terms if term.form.is_identity]
    if loose and bias is not None:
        shift = _tensor(names.new(f"{output}.bias"), bias.reshape(shape), element_type)
        result.weights.append(shift)
        parts.append(shift.name)
    total = parts[0]
    for index, other in enumerate(parts[1:], start=2):
        target = output if index == len(parts) else names.new(f"{output}.sum{index}")
        result.nodes.append(helper.make_node("Add", [total, other], [target], names.new(f"{where}/add{index}")))
        total = target
    if total != output:
        result.nodes.append(helper.make_node("Identity", [total], [output], names.new(where)))
    return result


def _gemm(
    result: Emission, term: Term, bias: Tensor | None, target: str, where: str, element_type: int, names: Names
) -> None:
    weight = _tensor(names.new(f"{target}.weight"), term.kernel.regroup(1).weight[:, :, 0, 0], element_type)
    inputs = [term.source, weight.name]
    result.weights.append(weight)
    if bias is not None:
        result.weights.append(_tensor(names.new(f"{target}.bias"), bias, element_type))
        inputs.append(result.weights[-1].name)
    result.nodes.append(helper.make_node("Gemm", inputs, [target], names.new(where), transB=1))


def _convolution(
    result: Emission, term: Term, bias: Tensor | None, target: str, where: str, element_type: int, names: Names
) -> None:
    kernel, rows, columns = written(term)
    weight = _tensor(names.new(f"{target}.weight"), kernel.weight[:, :, ::rows, ::columns], element_type)
    inputs = [term.source, weight.name]
    result.weights.append(weight)
    if bias is not None:
        result.weights.append(_tensor(names.new(f"{target}.bias"), bias, element_type))
        inputs.append(result.weights[-1].name)
    name = names.new(where)
    result.nodes.append(helper.make_node(
        "Conv", inputs, [target], name, group=kernel.groups, strides=list(kernel.stride), pads=list(kernel.padding),
        dilations=[rows, columns], kernel_shape=list(weight.dims[2:]),
    ))  # fmt: skip
    result.convolutions.append((name, term.form.without_cropping().label))


def written(term: Term) -> tuple[Kernel, int, int]:
    """A term's numbers with padding of at least 0, and the dilation its zeros allow; the weight still holds them."""
    form, kernel = term.form.without_cropping(), term.kernel
    if form != term.form:
        kernel = kernel.enlarge(form.geometry.size, form.geometry.padding)
    rows, columns = form.dilation
    return kernel, rows, columns


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
