"""Whether a part of an ONNX graph does the same at every pixel, so that a smaller image shows all of it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from ...maps.extent import Repeats, of_channels
from ..nodes import attributes

_CHANNEL_BY_CHANNEL = frozenset(("BatchNormalization", "Dropout", "Identity", "Neg"))
BROADCASTING = frozenset(("Add", "Div", "Mul", "Sub", "Sum"))
"""Operations on numbers at one place of tensors and constants."""
_WINDOWED = frozenset(("AveragePool", "Conv", "ConvTranspose"))


def repeats(model: onnx.ModelProto, rank: int) -> Repeats | None:
    """How its nodes repeat from pixel to pixel of sources of that rank; None where one may not.

    Args:
        model: a region, which takes and gives [n, c, ...].
        rank: of everything it computes.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    stored = [node for node in model.graph.node if node.op_type == "Constant"]
    weights |= {node.output[0]: a.t for node in stored for a in node.attribute if a.name == "value"}
    computed = {value.name for value in model.graph.input}
    found = Repeats()
    for node in model.graph.node:
        if not computed.isdisjoint(node.input):
            fixed = {name: weights.get(name) for name in node.input if name not in computed}
            if (after := _then(found, node, fixed, rank)) is None:
                return None
            found = after
            computed.update(node.output)
    return found


def _then(
    before: Repeats, node: onnx.NodeProto, fixed: Mapping[str, onnx.TensorProto | None], rank: int
) -> Repeats | None:
    """What a node adds; fixed: those of its inputs that are no source's, as far as they are stored."""
    kind, told = node.op_type, attributes(node)
    if kind in _CHANNEL_BY_CHANNEL:
        return before
    if kind in BROADCASTING:
        return before if all(t is not None and of_channels(t.dims, rank) for t in fixed.values()) else None
    if kind in ("Concat", "Split"):
        by_channel = told.get("axis", 0) in (1, 1 - rank)
        return before if by_channel and not (kind == "Concat" and fixed) else None
    if kind == "Slice":
        axes = told.get("axes") if len(node.input) < 4 else _numbers(fixed.get(node.input[3]))
        return before if axes in ([1], [1 - rank]) else None
    if kind == "Pad":
        pads = told.get("pads") if len(node.input) < 2 else _numbers(fixed.get(node.input[1]))
        return None if pads is None else before.then(reach=_most(pads))
    if kind not in _WINDOWED or "output_shape" in told:
        return None
    weight = None if kind == "AveragePool" else fixed.get(node.input[1])
    window = list(weight.dims[2:]) if weight is not None else told.get("kernel_shape")
    if not window:
        return None
    reach = _most(window) * _most(told.get("dilations", [1])) + _most(told.get("pads", [0]))
    return before.then(1 if kind == "ConvTranspose" else _most(told.get("strides", [1])), reach)


def _most(numbers: object) -> int:
    return max((abs(int(number)) for number in numbers), default=1)  # type: ignore[attr-defined]  # of an attribute


def _numbers(tensor: onnx.TensorProto | None) -> list[int] | None:
    return None if tensor is None else [int(number) for number in numpy_helper.to_array(tensor).flat]
