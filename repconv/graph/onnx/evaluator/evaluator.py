"""onnx's reference evaluator, with operations of our own where it is wrong, slow, or knows an opset not at all.

`tests/graph/test_onnx_double.py` holds every operation to onnxruntime at every opset that changes it. Of those that
convolutional networks are exported with, onnx 1.23 evaluates wrongly: BatchNormalization below opset 14 (it mixes the
batch's statistics in), LRN, Softmax, LogSoftmax and Hardmax below 13 (one axis instead of all behind), LpNormalization
of p 1, MaxPool's SAME_LOWER and storage order, Resize of align_corners and of opset 10, RoiAlign below 16; and not at
all: transposed convolutions of groups or output shapes, pads that crop, Upsample, DequantizeLinear below 19.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ....limits import require_time
from .call import Array, Call
from .convolution import convolution, transposed_convolution
from .elementary import dequantise, einsum, erf, quantise_on_the_run
from .normalising import batch_norm, hardmax, local_response, log_softmax, lp_norm, mean_variance_norm, softmax
from .pooling import average_pool, global_lp_pool, lp_pool, max_pool
from .resizing import pad, resize, upsample

Operation = Callable[[Call], tuple[Array, ...] | None]
"""None: onnx's own evaluation does."""


OPERATIONS: dict[str, Operation] = {
    "AveragePool": average_pool, "BatchNormalization": batch_norm, "Conv": convolution,
    "ConvTranspose": transposed_convolution, "DequantizeLinear": dequantise, "Erf": erf,
    "DynamicQuantizeLinear": quantise_on_the_run, "Einsum": einsum, "GlobalLpPool": global_lp_pool, "Hardmax": hardmax,
    "LRN": local_response, "LogSoftmax": log_softmax, "LpNormalization": lp_norm, "LpPool": lp_pool,
    "MaxPool": max_pool, "MeanVarianceNormalization": mean_variance_norm, "Pad": pad, "Resize": resize,
    "Softmax": softmax, "Upsample": upsample,
}  # fmt: skip
"""Operations of the default domain that are evaluated here."""


class Evaluator(ReferenceEvaluator):
    """Evaluates a model; inside functions and branches, too. Between nodes it looks whether there is time left."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # onnx's signature
        super().__init__(*arguments, **named)
        self.rt_nodes_ = _InTime(self.rt_nodes_)

    def release(self) -> None:
        """Let go of weights and nodes. They refer to one another, so that they would stay until a full collection."""
        vars(self).clear()

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:  # noqa: ANN401  # onnx's signature
        if node.domain != "":
            return super()._load_impl(node, input_types)
        opset = self.opsets[""]
        own = OPERATIONS.get(node.op_type)
        if own is None:
            spelled = _respelled(node, opset)
            loaded = super()._load_impl(spelled, input_types)
            return loaded if spelled is node else lambda _, parameters: loaded(spelled, parameters)
        return partial(_Own, own, opset, super()._load_impl)


class _InTime(list[Any]):
    """Nodes, each handed out only while there is time left."""

    def __iter__(self) -> Iterator[Any]:
        for node in super().__iter__():
            require_time()
            yield node


class _Own(OpRun):
    """One node, evaluated by a function of a `Call`."""

    op_schema = None  # no defaults of an opset that is not the model's

    def __init__(
        self,
        operation: Operation,
        opset: int,
        load: Callable[[onnx.NodeProto], Any],
        node: onnx.NodeProto,
        parameters: Any,  # noqa: ANN401  # onnx's own
    ) -> None:
        super().__init__(node, parameters)
        self.operation, self.opset, self.load = operation, opset, load

    def _run(self, *inputs: Array | None, **attributes: Any) -> tuple[Array, ...]:  # noqa: ANN401  # of any kind
        asked = sum(1 for name in self.onnx_node.output if name)
        narrow = next((x.dtype for x in inputs if x is not None and x.dtype.name == "bfloat16"), None)
        given = inputs if narrow is None else tuple(_wider(x) for x in inputs)
        found = self.operation(Call(self.opset, given, attributes, asked))
        if narrow is not None and found is not None:
            found = tuple(x.astype(narrow) if x.dtype == np.float32 else x for x in found)
        if found is None:
            found = self.load(self.onnx_node)(self.onnx_node, self.run_params).run(*inputs)
        return found


def _wider(value: Array | None) -> Array | None:
    """bfloat16, which neither numpy's nor PyTorch's arithmetic takes from here, as float32."""
    return value.astype(np.float32) if value is not None and value.dtype.name == "bfloat16" else value


def _respelled(node: onnx.NodeProto, opset: int) -> onnx.NodeProto:
    """The node in words that onnx's implementation, which is of the last opset, understands as the model's opset."""
    known = {a.name: a for a in node.attribute}
    changed: dict[str, str] = {}
    if node.op_type == "GridSample" and opset < 20:
        mode = helper.get_attribute_value(known["mode"]).decode() if "mode" in known else "bilinear"
        changed["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    if node.op_type == "RoiAlign" and opset < 16:
        changed["coordinate_transformation_mode"] = "output_half_pixel"
    if not changed:
        return node
    result = onnx.NodeProto()
    result.CopyFrom(node)
    kept = [a for a in node.attribute if a.name not in changed]
    del result.attribute[:]
    result.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in changed.items())])
    return result
