"""The regions of an ONNX graph that fusing wrote anew, each proven as an affine map of the tensors it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ....errors import FusionError
from ....files.edited import copy_of
from ....files.onnx import without_weights
from ....progress import counted
from ....proof.affine import (
    Evaluated,
    Sources,
    Written,
    affine_agreement,
    different,
    norm_parts,
    of_whole,
    reach_of,
    square,
    whole,
)
from ....proof.agreement import Comparison
from ....proof.report import Refusal
from ...maps.extent import fewer_pixels
from ..nodes import attributes, nested
from .float64 import Array, Parts, Repeated
from .repeating import BROADCASTING, repeats

_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.BFLOAT16: torch.bfloat16,
}  # fmt: skip

_OF_IMAGES = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Concat", "Conv", "ConvTranspose", "Div", "Dropout", "Gemm",
    "GlobalAveragePool", "Identity", "Mul", "Neg", "Pad", "Slice", "Split", "Sub", "Sum",
))  # fmt: skip
"""Operations that give a row for each image, channels second."""

_AVERAGES = frozenset(("AveragePool", "GlobalAveragePool", "ReduceMean"))
"""Operations that fusing writes for a pool."""

_UNWEIGHTED = ".unweighted"
"""Behind the name of a source that a sum takes as it is."""

Shapes = Callable[[Sequence[str]], Mapping[str, tuple[int, ...]]]


def prove_regions(
    before: onnx.ModelProto, after: onnx.ModelProto, shapes: Shapes, label: Callable[[str], str] = str
) -> tuple[list[Comparison], list[Refusal]]:
    """Each tensor that `after` makes otherwise than `before`, and what could not be proven that way.

    What `after` does not make otherwise is the same node of the same tensors and weights, so the comparisons carry
    over to the outputs one by one, whatever comes between.

    Args:
        before: the original.
        after: the fused model.
        shapes: the shapes of named tensors that both have.
        label: what a report calls a tensor.
    """
    wanted = anew(before, after)
    known_before, known_after = _computed(before), _computed(after)

    parts = (Parts(before), known_after), (Parts(after), known_before)
    sizes = shapes(list(dict.fromkeys(n for name in wanted for of, known in parts for n in of.read(name, known))))
    found, unmeasured = list(_altered(before, after)), []
    for name in counted(wanted, "regions proved:"):
        (old, read), (new, read_after) = (of.region(name, known) for of, known in parts)
        missing = [n for n in (*read, *read_after) if n not in sizes]
        if missing:
            unmeasured.append(Refusal(label(name), f"the size of {missing[0]}, which it reads, is not known"))
            continue
        try:
            dtype = _dtype_of(new)
            written = Written(_value(new, name), _power(new, name, dtype), _taps(new), reach=_reach(old, new))
            sized: Mapping[str, tuple[int, ...]] = {n: sizes[n] for n in dict.fromkeys((*read, *read_after))}
            right = _reference(old, name)
            rank = min((len(shape) for shape in sized.values()), default=0)
            if _keeps_axes(old, rank) and _keeps_axes(new, rank):
                sized = fewer_pixels(sized, [repeats(part, rank) for part in (old, new)])
            else:
                right, written = of_whole(right), whole(written)
                sized = {n: (1, *shape) for n, shape in sized.items()}
            found.append(affine_agreement(right, written, sized, dtype, label(name)))
        except FusionError as error:
            unmeasured.append(Refusal(label(name), str(error)))
    return found, unmeasured


def _keeps_axes(model: onnx.ModelProto, rank: int) -> bool:
    """True for operations of [n, c, ...] of so many axes or more, for any n, and of constants that broadcast so."""
    computed = {value.name for value in model.graph.input}
    rows = {t.name for t in model.graph.initializer if len(t.dims) < rank or t.dims[0] == 1}
    for node in model.graph.node:
        if node.op_type == "Constant" and all(len(a.t.dims) < rank or a.t.dims[0] == 1 for a in node.attribute):
            rows.update(node.output)
        if computed.isdisjoint(node.input):
            continue
        fixed = [name for name in node.input if name and name not in computed]
        if node.op_type not in _OF_IMAGES or (node.op_type == "Concat" and fixed):
            return False
        if node.op_type in BROADCASTING and any(name not in rows for name in fixed):
            return False
        computed.update(node.output)
    return True


def anew(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """The tensors of `before` that other nodes make in `after`, in its order."""
    old = {name: (node, at) for node in before.graph.node for at, name in enumerate(node.output) if name}
    return [
        name
        for node in after.graph.node
        for at, name in enumerate(node.output)
        if name in old and not _same_node(node, at, *old[name])
    ]


def _computed(model: onnx.ModelProto) -> set[str]:
    """Tensors made of an input's numbers, not of weights or sizes alone."""
    weights = {t.name for t in model.graph.initializer}
    found = {value.name for value in model.graph.input} - weights
    for node in model.graph.node:
        read = {*node.input, *(n for graph in nested(node) for inner in graph.node for n in inner.input)}
        if node.op_type not in ("Shape", "Size") and (not found.isdisjoint(read)):
            found.update(name for name in node.output if name)
    return found


def sizes_on(model: onnx.ModelProto, given: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors for inputs of the given shapes, as far as shape inference finds them."""
    light = without_weights(model)
    del light.graph.value_info[:]
    for value in light.graph.input:
        if value.name in given:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, given[value.name]))
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except (RuntimeError, ValueError):  # of operations it knows not at all, or wrongly
        return dict(given)
    found = dict(given)
    for value in (*light.graph.value_info, *light.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            found[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return found


def _same_node(node: onnx.NodeProto, at: int, other: onnx.NodeProto, position: int) -> bool:
    """The same operation of the same tensors, whatever becomes of its other outputs."""
    return (
        at == position
        and (node.op_type, node.domain) == (other.op_type, other.domain)
        and list(node.input) == list(other.input)
        and {a.name: a for a in node.attribute} == {a.name: a for a in other.attribute}
    )


def _altered(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[Comparison]:
    """Weights that hold other numbers under the same name: no region reads them, so nothing else would show it."""
    weights = {t.name: t for t in before.graph.initializer}
    for tensor in after.graph.initializer:
        if tensor.name in weights and tensor != weights[tensor.name]:
            yield different(tensor.name, "other numbers than the original under the same name")


def _dtype_of(written: onnx.ModelProto) -> torch.dtype:
    """The type of the numbers a region writes."""
    kinds = {t.data_type for t in written.graph.initializer if t.data_type in _DTYPES}
    if len(kinds) > 1:
        raise FusionError("it is written in numbers of several types")
    return _DTYPES[kinds.pop()] if kinds else torch.float64


def _reference(model: onnx.ModelProto, output: str) -> Callable[[Sources], Evaluated]:
    weights = {t.name: t for t in model.graph.initializer}
    passed = dict.fromkeys(
        name
        for node in model.graph.node
        for name in (node.output[:1] if node.op_type == "BatchNormalization" else node.output)
        if name
    )
    norms = [
        n
        for n in model.graph.node
        if n.op_type == "BatchNormalization"
        and weights.keys() >= set(n.input[1:])
        and not attributes(n).get("training_mode", 0)
    ]
    parts = [float(_norm_parts(node, weights).abs().max()) for node in norms]
    evaluated = Repeated(model, [output, *(name for name in passed if name != output)])

    def run(sources: Sources) -> Evaluated:
        found = [v for v in evaluated(_arrays(model, sources)) if v.dtype == np.float64]
        sizes = [max(float(value.max()), -float(value.min())) for value in found if value.size]
        return Evaluated(_tensor(found[0]), max([0.0, *sizes, *parts]))

    return run


def _norm_parts(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> Tensor:
    scale, shift, mean, variance = (_tensor(numpy_helper.to_array(weights[name])) for name in node.input[1:5])
    return norm_parts(scale, shift, mean, variance, float(str(attributes(node).get("epsilon", 1e-5))))


def _value(model: onnx.ModelProto, output: str) -> Callable[[Sources], Tensor]:
    evaluated = Repeated(model, [output])
    return lambda sources: _tensor(evaluated(_arrays(model, sources))[0])


def _power(model: onnx.ModelProto, output: str, dtype: torch.dtype) -> Callable[[Sources], Tensor]:
    """The region with squared weights, without its constants and without what takes a source as it is.

    Raises:
        FusionError: it holds an operation that fusing does not write.
    """
    weights = {t.name: t for t in model.graph.initializer}
    sources = {value.name for value in model.graph.input}
    result = copy_of(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.input[:]
    held: dict[str, onnx.TensorProto] = {}
    numbers: dict[str, Array] = {}

    def squared(name: str) -> str:
        if name not in weights:
            raise FusionError("it multiplies by what is no constant")
        numbers[f"{name}.squared"] = square(_tensor(numpy_helper.to_array(weights[name])), dtype).numpy()
        return f"{name}.squared"

    def added(name: str) -> str:
        if name in weights:
            numbers[f"{name}.nothing"] = np.zeros(tuple(weights[name].dims))
            return f"{name}.nothing"
        return f"{name}{_UNWEIGHTED}" if name in sources else name

    shares: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        if node.op_type in ("Transpose", "Reshape", *_AVERAGES):
            held.update({name: weights[name] for name in node.input[1:]})
            moved = result.graph.node.add()
            moved.CopyFrom(node)
            if node.op_type in _AVERAGES:
                # The mean of N numbers weighs each by 1/N: N times the square of that is another 1/N.
                moved.output[0] = f"{node.output[0]}.mean"
                share = f"{node.output[0]}.share"
                result.graph.node.append(onnx.helper.make_node("Mul", [moved.output[0], share], [node.output[0]]))
                shares[share] = node
            if node.input[0] in sources:
                again = result.graph.node.add()
                again.CopyFrom(node)
                again.input[0], again.output[0] = f"{node.input[0]}{_UNWEIGHTED}", f"{node.output[0]}{_UNWEIGHTED}"
                sources.add(node.output[0])
            continue
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Mul"):
            inputs = [node.input[0], squared(node.input[1])]
        elif node.op_type in ("Add", "Concat", "Identity"):
            inputs = [added(name) for name in node.input]
        else:
            raise FusionError(f"it is written with a {node.op_type}, of which no rounding is known")
        copy = result.graph.node.add()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
    read = {name for node in result.graph.node for name in node.input}
    result.graph.initializer.extend(held.values())
    fed = [name for value in model.graph.input for name in (value.name, f"{value.name}{_UNWEIGHTED}") if name in read]
    wanted = f"{output}{_UNWEIGHTED}" if output in sources else output
    result.graph.input.extend(onnx.ValueInfoProto(name=name) for name in (*fed, *shares, *numbers))
    evaluated = Repeated(result, [wanted])

    def run(given: Sources) -> Tensor:
        unweighted = {f"{name}{_UNWEIGHTED}": torch.zeros_like(value) for name, value in given.items()}
        counts = {name: _averaged(node, given[node.input[0]].shape, weights) for name, node in shares.items()}
        share = {name: torch.tensor(1 / count, dtype=torch.float64) for name, count in counts.items()}
        arrays = {name: value.numpy() for name, value in {**given, **unweighted, **share}.items()} | numbers
        return _tensor(evaluated({value.name: arrays[value.name] for value in result.graph.input})[0])

    return run


def _averaged(node: onnx.NodeProto, shape: Sequence[int], weights: Mapping[str, onnx.TensorProto]) -> int:
    """How many numbers a pool of a tensor of this shape takes the mean of."""
    known = {a.name: a for a in node.attribute}
    if node.op_type == "AveragePool":
        return int(np.prod(known["kernel_shape"].ints))
    if node.op_type == "GlobalAveragePool":
        return math.prod(shape[2:])
    axes = numpy_helper.to_array(weights[node.input[1]]).tolist() if len(node.input) > 1 else known["axes"].ints
    return math.prod(shape[axis] for axis in axes)


def _taps(model: onnx.ModelProto) -> int:
    sizes = [math.prod(tensor.dims[2:]) for tensor in model.graph.initializer if len(tensor.dims) > 2]
    return int(max([1, *sizes]))


def _reach(*models: onnx.ModelProto) -> tuple[int, ...]:
    convolve = ("Conv", "ConvTranspose")
    read = {node.input[1] for model in models for node in model.graph.node if node.op_type in convolve}
    return reach_of([tuple(t.dims[2:]) for model in models for t in model.graph.initializer if t.name in read])


def _arrays(model: onnx.ModelProto, sources: Sources) -> dict[str, Array]:
    """Those of the sources that a region reads."""
    return {value.name: sources[value.name].numpy() for value in model.graph.input}


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.require(value, np.float64, ["C", "W"]))
