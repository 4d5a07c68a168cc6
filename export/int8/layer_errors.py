"""How far an int8 model's layers are off: with all that came before them, and each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from repconv.files.edited import copy_of, showing
from repconv.files.onnx import model_session

Batch = NDArray[np.generic]

KINDS = ("Conv", "Gemm", "MatMul")
"""Operations that are layers: those with weights."""


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """A layer's output in the int8 model beside the float one's, on the same images: rms error over rms.

    error: with the errors of all layers before it. alone: of the layer by itself, its inputs taken from the float model
    and then rounded to int8; this tells which layers are to blame.
    """

    name: str
    kind: str
    tensor: str
    error: float
    alone: float


def layer_errors(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Batch]) -> list[LayerError]:
    """The layers that are int8 in `after`, those furthest off by themselves first.

    Tensors and nodes keep their names when others are put around them, so the same name is the same layer.
    """
    later = {node.name: node for node in after.graph.node if node.op_type in KINDS}
    # A ReLU that an unsigned quantiser absorbs takes the layer's own output with it; such layers cannot be compared.
    made = {name for node in after.graph.node for name in node.output}
    layers = [
        node
        for node in before.graph.node
        if node.op_type in KINDS and node.output[0] in made and _is_int8(later.get(node.name), after)
    ]
    if not layers:
        return []
    names = [node.output[0] for node in layers]
    wanted = _tensors(before, names, feeds)
    # The output of a layer that ends the graph is renamed, and its quantised value has the name.
    got = _tensors(after, names, feeds)
    joined, alone = _alone(before, after, [later[node.name] for node in layers])
    own = _tensors(joined, alone, feeds)
    errors = [
        LayerError(name=node.name, kind=node.op_type, tensor=node.output[0], error=_off(a, b), alone=_off(a, c))
        for node, a, b, c in zip(layers, wanted, got, own, strict=True)
    ]
    return sorted(errors, key=lambda layer: -layer.alone)


def _off(wanted: Batch, got: Batch) -> float:
    size = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64))))
    off = float(np.sqrt(np.mean(np.square(wanted.astype(np.float64) - got.astype(np.float64)))))
    return off / size if size else 0.0


def _is_int8(node: onnx.NodeProto | None, model: onnx.ModelProto) -> bool:
    if node is None:
        return False
    made = {name: other for other in model.graph.node for name in other.output}
    return node.input[1] in made and made[node.input[1]].op_type == "DequantizeLinear"


def _alone(
    before: onnx.ModelProto, after: onnx.ModelProto, layers: Sequence[onnx.NodeProto]
) -> tuple[onnx.ModelProto, list[str]]:
    """The float model, and hanging from its tensors each int8 layer with the roundings before it; their outputs."""
    joined = copy_of(before)
    known = {name for node in before.graph.node for name in node.output}
    known |= {value.name for value in before.graph.input} | {tensor.name for tensor in before.graph.initializer}
    made = {name: node for node in after.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in after.graph.initializer}

    def pulled(name: str) -> str:
        """The name of a tensor of `after` in `joined`, with what computes it."""
        if not name or name in known:
            return name
        if name in weights:
            joined.graph.initializer.append(weights[name])
            known.add(name)
            return name
        return added(made[name])

    def added(node: onnx.NodeProto) -> str:
        prefixed = f"alone/{node.output[0]}"
        if prefixed not in known:
            inputs = [pulled(name) for name in node.input]
            hung = joined.graph.node.add()
            hung.CopyFrom(node)
            hung.name, hung.input[:], hung.output[:] = f"alone/{node.name}", inputs, [prefixed]
            known.add(prefixed)
        return prefixed

    return joined, [added(node) for node in layers]


def _tensors(model: onnx.ModelProto, names: Sequence[str], feeds: dict[str, Batch]) -> list[Batch]:
    """Their values, whatever the processor: which layers are to blame does not depend on whose kernels saturate."""
    session = model_session(showing(model, names), "the model", exact_integers=True)
    return list(session.run(list(names), feeds))
