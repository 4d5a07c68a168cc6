"""Whether onnxruntime's 8-bit kernels cut sums off on this processor."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repconv.files.onnx import model_session

from ..targets import TARGETS

_DEPTH = 64
"""Products a sum has: more than any kernel adds one at a time."""


@cache
def sums_saturate() -> bool:
    """Whether a sum of products of uint8 and int8 is not what it is: so on x86 without VNNI, by onnxruntime's default.

    Two products, each up to 255 x 127, are added in 16 bits there. Found out by computing one such sum.
    """
    weight = np.full((_DEPTH, 8), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, _DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    (found,) = model_session(model, "a sum of products").run(["y"], {"x": np.full((1, _DEPTH), 255, np.uint8)})
    return bool((found != 255 * 127 * _DEPTH).any())


def saturates_here(target: str) -> bool:
    """Whether int8 artefacts of a target are run by such kernels: those that can be told to do with 7 bits."""
    return "reduce_range" in TARGETS[target].options and sums_saturate()
