"""Half precision ONNX: every float32 tensor of a model retyped, the model strongly typed.

What an operation's schema takes decides: a node whose inputs may be of the half type runs in it; one that may not (the
scales of Resize, say) keeps float32, with casts around. Convolutions and matrix products that would stay float32 are
refused, or the file would not be what it says. onnxruntime's own converter knows float16 only and clips what
overflows without a word.

Folded weights come here in float32, cast once from float64. What they become is what torch's own cast from float64 to
half precision gives, bit for bit: that goes through float32, too. A cast without that step, such as NumPy's to float16,
differs where the float64 value is within a float32 rounding of the middle of two neighbours, and there is no worse a
choice by more than 2^-13 (fp16) or 2^-16 (bf16) of their distance.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repconv.errors import BuildError
from repconv.files.edited import copy_of, put

KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_WORDS: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}
_MUST = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operations the precision is asked for."""


def to_half(model: onnx.ModelProto, precision: str, *, fp32_io: bool = False) -> onnx.ModelProto:
    """`model`, float32, in `precision` `fp16` or `bf16`; weights are rounded once, to nearest.

    Args:
        model: with weights as initialisers.
        precision: `fp16` or `bf16`.
        fp32_io: keep inputs and outputs float32, with casts.

    Raises:
        BuildError: a convolution or matrix product cannot run in it at the model's opset, a weight is beyond its
            range, or the model holds subgraphs.
    """
    kind = KINDS[precision]
    converted = copy_of(model)
    graph = converted.graph
    versions = {entry.domain or "ai.onnx": entry.version for entry in converted.opset_import}
    floats = _float_tensors(converted)
    keeps = {id(node) for node in graph.node if not _takes(node, kind, versions, floats)}
    _refuse(precision, [node for node in graph.node if id(node) in keeps], versions["ai.onnx"])
    # Positions of inputs that are float32 whatever the node's type, such as the scales of Resize.
    single = {
        name
        for node in graph.node
        for name, fixed in zip(node.input, _fixed(node, versions), strict=False)
        if fixed and name in floats
    }
    weights = {tensor.name for tensor in graph.initializer}
    kept_single = {name for name in single if name in weights}
    computed = single - kept_single
    if computed:
        raise BuildError(
            f"{precision}: {sorted(computed)[0]} is computed and must be float32; {precision} cannot hold it"
        )
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept_single:
            tensor.CopyFrom(_rounded(tensor, kind, precision))
    io = {v.name for v in (*graph.input, *graph.output) if v.name in floats} if fp32_io else set()
    renamed = {name: f"{name}_{precision}" for name in io}
    nodes = [_cast(v.name, renamed[v.name], kind) for v in graph.input if v.name in io and v.name not in weights]
    for node in graph.node:
        nodes += _retyped(node, kind, id(node) in keeps, floats, kept_single, renamed)
    for value in graph.output:
        if value.name in io:
            nodes.append(_cast(renamed[value.name], value.name, TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.name in floats and value.name not in io:
            value.type.tensor_type.elem_type = kind
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(converted)
    try:
        onnx.checker.check_model(inferred, full_check=True)
    except Exception as error:  # the checker raises several types
        raise BuildError(f"{precision}: the converted model is not valid: {str(error).splitlines()[0]}") from error
    return inferred


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of `to_half` that computes in float32 and rounds every tensor to the half type where it is stored.

    For runtimes without kernels of the type: it is what onnxruntime does with float16 on CPUs, and gives at least the
    error that hardware with sums in float32 makes. Inputs and outputs are float32.
    """
    half = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    made = copy_of(model)
    graph = made.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output, *graph.input)}
    types |= {t.name: t.data_type for t in graph.initializer}
    for tensor in graph.initializer:
        if tensor.data_type in half:
            put(tensor, numpy_helper.to_array(tensor).astype(np.float32))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in half:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in half:
                put(attribute.t, numpy_helper.to_array(attribute.t).astype(np.float32))
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in half:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) in half:
                node.output[index] = f"{name}/unrounded"
                nodes.append(_cast(node.output[index], f"{name}/rounded", types[name]))
                nodes.append(_cast(f"{name}/rounded", name, TensorProto.FLOAT))
    again = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(again)
    del graph.value_info[:]
    return made


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 tensors.

    Raises:
        BuildError: the type of a tensor cannot be inferred, or there are subgraphs.
    """
    if any(
        a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for n in model.graph.node for a in n.attribute
    ):
        raise BuildError("models with subgraphs (If, Loop, Scan) are not converted to half precision")
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    types |= {t.name: t.data_type for t in graph.initializer}
    for node in graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise BuildError(f"the type of {name} ({node.op_type}) cannot be inferred, so it cannot be converted")
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def _schema(node: onnx.NodeProto, versions: dict[str, int]) -> onnx.defs.OpSchema:
    domain = node.domain or "ai.onnx"
    try:
        return onnx.defs.get_schema(node.op_type, versions.get(domain, 1), "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError as error:
        raise BuildError(f"{node.op_type} of {domain} is not an ONNX operation; it cannot be converted") from error


def _formals(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> Iterator[tuple[str, str]]:
    """Actual tensor and formal type of every input and output; the last formal one may repeat."""
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            if name:
                yield name, formals[min(index, len(formals) - 1)].type_str


def _takes(node: onnx.NodeProto, kind: int, versions: dict[str, int], floats: set[str]) -> bool:
    """Whether a node can run in the half type: of every type that is not float32 by definition."""
    if node.op_type in ("Cast", "Constant", "QuantizeLinear", "DequantizeLinear"):
        return True
    schema = _schema(node, versions)
    allowed = {t.type_param_str: t.allowed_type_strs for t in schema.type_constraints}
    return all(
        _WORDS[kind] in allowed.get(formal, ())
        for name, formal in _formals(node, schema)
        if name in floats and formal in allowed
    )


def _fixed(node: onnx.NodeProto, versions: dict[str, int]) -> list[bool]:
    """For every input whether it is float32 whatever the others are."""
    schema = _schema(node, versions)
    formals = [f.type_str for f in schema.inputs]
    return [formals[min(i, len(formals) - 1)] == "tensor(float)" for i in range(len(node.input))] if formals else []


def _refuse(precision: str, nodes: list[onnx.NodeProto], opset: int) -> None:
    stuck = sorted({node.op_type for node in nodes if node.op_type in _MUST})
    if stuck:
        raise BuildError(f"{' and '.join(stuck)} cannot be {precision} at opset {opset}; export at opset 22 or above")


def _rounded(tensor: TensorProto, kind: int, precision: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(helper.tensor_dtype_to_np_dtype(kind))
    if not np.isfinite(half.astype(np.float32)).all():
        peak = float(np.abs(values).max())
        raise BuildError(f"{tensor.name} holds {peak:.3g}, which {precision} cannot; use fp32 or bf16")
    found: TensorProto = numpy_helper.from_array(half, tensor.name)
    return found


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    node: onnx.NodeProto = helper.make_node("Cast", [source], [target], f"{target}/Cast", to=kind)
    return node


def _retyped(
    node: onnx.NodeProto, kind: int, stays: bool, floats: set[str], single: set[str], renamed: dict[str, str]
) -> list[onnx.NodeProto]:
    """A node in the half type, or in float32 with casts around it."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = kind
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT and not stays:
            attribute.t.CopyFrom(_rounded(attribute.t, kind, "half precision"))
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            names[index] = renamed.get(name, name)
    floating = floats | set(renamed.values())
    if not stays:
        return [node]
    before, after = [], []
    for index, name in enumerate(node.input):
        if name in floating and name not in single:
            node.input[index] = f"{node.output[0]}/{index}_fp32"
            before.append(_cast(name, node.input[index], TensorProto.FLOAT))
    for index, name in enumerate(node.output):
        if name in floating:
            node.output[index] = f"{name}/fp32"
            after.append(_cast(node.output[index], name, kind))
    return [*before, node, *after]
