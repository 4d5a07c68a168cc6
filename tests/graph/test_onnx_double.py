"""ONNX operations evaluated in float64: what onnxruntime gives, at every opset, to float32's rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch.nn import functional

from repconv import FusionError
from repconv.files.onnx import model_session
from repconv.graph.onnx.evaluator.call import Call
from repconv.graph.onnx.evaluator.normalising import batch_norm
from repconv.graph.onnx.proof.float64 import evaluate

Array = NDArray[Any]
LAST = 25


@dataclass(frozen=True)
class Row:
    """One use of an operation, right for opsets `first` to `last`.

    given: its inputs, None where one is left out; those named in `fed` are inputs of the model, the others weights.
    outputs: how many are asked for.
    """

    op: str
    given: tuple[Array | None, ...]
    first: int = 7
    last: int = LAST
    fed: tuple[int, ...] = (0,)
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)

    def opsets(self) -> Iterator[int]:
        """Those at which the operation's definition changes, and both ends."""
        changes = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == self.op}
        yield from sorted({self.first, self.last, *(v for v in changes if self.first <= v <= self.last)})

    def model(self, opset: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The model at an opset, and its feeds."""
        names = ["" if a is None else f"i{k}" for k, a in enumerate(self.given)]
        node = helper.make_node(self.op, names, [f"o{k}" for k in range(self.outputs)], **self.attributes)
        feeds = {f"i{k}": a for k, a in enumerate(self.given) if k in self.fed and a is not None}
        weights = [
            numpy_helper.from_array(a, f"i{k}") for k, a in enumerate(self.given) if a is not None and k not in self.fed
        ]
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = helper.make_graph([node], "row", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        return model, feeds


_random = np.random.default_rng(0)


def r(*shape: int) -> Array:
    """Standard normal."""
    return _random.normal(size=shape).astype(np.float32)


def f(*values: float) -> Array:
    """Numbers in a row."""
    return np.array(values, np.float32)


def one(value: float) -> Array:
    """A scalar."""
    return np.array(value, np.float32)


def i(*values: int) -> Array:
    """Integers in a row."""
    return np.array(values, np.int64)


X = r(2, 4, 9, 7)
POSITIVE = np.abs(X) + np.float32(0.1)
REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
_NORM = (r(4), r(4), r(4), np.abs(r(4)) + np.float32(0.3))


def _row(
    op: str,
    *given: Array | None,
    first: int = 7,
    last: int = LAST,
    fed: tuple[int, ...] = (0,),
    outputs: int = 1,
    **attributes: Any,
) -> Row:
    return Row(op, given, first, last, fed, outputs, attributes)


ROWS: dict[str, Row] = {
    # Convolutions.
    "conv": _row("Conv", X, r(6, 4, 3, 3), r(6), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "conv, no bias, shape unsaid": _row("Conv", X, r(6, 4, 3, 2)),
    "conv, uneven": _row("Conv", X, r(6, 4, 3, 2), r(6), pads=[2, 0, 1, 3], strides=[2, 1], dilations=[1, 2]),
    "conv, groups": _row("Conv", X, r(8, 2, 3, 3), r(8), group=2, pads=[1, 1, 1, 1], strides=[2, 2]),
    "conv, depthwise": _row("Conv", X, r(4, 1, 5, 5), group=4, pads=[2, 2, 2, 2]),
    "conv, same upper": _row("Conv", X, r(6, 4, 4, 3), auto_pad="SAME_UPPER", strides=[2, 3]),
    "conv, same lower": _row("Conv", X, r(6, 4, 4, 2), auto_pad="SAME_LOWER", strides=[2, 1]),
    "conv, valid": _row("Conv", X, r(6, 4, 3, 3), auto_pad="VALID", strides=[2, 2]),
    "conv, 1-D": _row("Conv", r(2, 4, 9), r(6, 2, 3), r(6), group=2, pads=[2, 1], dilations=[2]),
    "conv, 3-D": _row("Conv", r(1, 4, 5, 6, 4), r(6, 4, 3, 2, 3), r(6), pads=[1, 0, 1, 1, 1, 0], strides=[1, 2, 1]),
    "transposed": _row("ConvTranspose", X, r(4, 6, 3, 3), r(6), strides=[2, 2], pads=[1, 0, 0, 1]),
    "transposed, padded output": _row(
        "ConvTranspose", X, r(4, 3, 3, 2), r(6), group=2, strides=[2, 3], output_padding=[1, 2], pads=[1, 1, 1, 0]
    ),
    "transposed, dilated": _row("ConvTranspose", X, r(4, 6, 3, 3), dilations=[2, 1], strides=[1, 2]),
    "transposed, output shape": _row("ConvTranspose", X, r(4, 6, 3, 3), strides=[2, 2], output_shape=[18, 14]),
    "transposed, output shape, same": _row(
        "ConvTranspose", X, r(4, 6, 3, 3), strides=[2, 2], output_shape=[18, 14], auto_pad="SAME_UPPER"
    ),
    "transposed, same lower": _row("ConvTranspose", X, r(4, 6, 4, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    "transposed, same upper": _row("ConvTranspose", X, r(4, 6, 4, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    "transposed, 1-D": _row("ConvTranspose", r(2, 4, 5), r(4, 3, 4), strides=[2], pads=[1, 1]),
    "transposed, 3-D": _row("ConvTranspose", r(1, 2, 3, 4, 3), r(2, 3, 2, 3, 2), strides=[2, 1, 2]),
    "deformable": _row("DeformConv", r(1, 2, 5, 5), r(3, 2, 3, 3), r(1, 18, 5, 5), r(3), first=19, pads=[1, 1, 1, 1]),
    # Normalisation.
    "norm": _row("BatchNormalization", X, *_NORM),
    "norm, eps and momentum": _row("BatchNormalization", X, *_NORM, epsilon=1e-2, momentum=0.5),
    "norm, not spatial": _row(
        "BatchNormalization",
        r(2, 3, 2, 4),
        r(3, 2, 4),
        r(3, 2, 4),
        r(3, 2, 4),
        np.abs(r(3, 2, 4)) + np.float32(0.3),
        spatial=0,
        last=8,
    ),
    "norm, of vectors": _row("BatchNormalization", r(5, 4), *_NORM),
    "norm, 3-D": _row("BatchNormalization", r(2, 4, 3, 2, 3), *_NORM),
    "norm, training mode": _row("BatchNormalization", X, *_NORM, training_mode=1, first=14, momentum=0.3, outputs=3),
    "norm, training mode, of vectors": _row(
        "BatchNormalization", X[:, :, 0, 0], *_NORM, training_mode=1, first=14, outputs=3
    ),
    "norm, training mode 0": _row("BatchNormalization", X, *_NORM, training_mode=0, first=14),
    "instance norm": _row("InstanceNormalization", X, r(4), r(4), epsilon=1e-3),
    "layer norm": _row("LayerNormalization", X, r(7), r(7), first=17, axis=-1, epsilon=1e-3),
    "layer norm, 2 axes": _row("LayerNormalization", X, r(9, 7), first=17, axis=2),
    "group norm of groups": _row("GroupNormalization", X, r(2), r(2), first=18, last=20, num_groups=2),
    "group norm": _row("GroupNormalization", X, r(4), r(4), first=21, num_groups=2, epsilon=1e-3),
    "rms norm": _row("RMSNormalization", X, r(7), first=23),
    "mean and variance": _row("MeanVarianceNormalization", X, first=9),
    "lp norm": _row("LpNormalization", X, axis=1, p=2),
    "lp norm, 1": _row("LpNormalization", X, axis=-1, p=1),
    "lrn": _row("LRN", r(2, 7, 3, 4), size=3, alpha=0.5, beta=0.6, bias=1.5),
    # Pooling.
    "max": _row("MaxPool", X, kernel_shape=[3, 2], strides=[2, 1]),
    "max, padded": _row("MaxPool", X - 9, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]),
    "max, ceil": _row("MaxPool", X, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, first=10),
    "max, ceil, padded": _row("MaxPool", X, kernel_shape=[3, 3], strides=[2, 3], pads=[1] * 4, ceil_mode=1, first=10),
    "max, dilated": _row("MaxPool", X, kernel_shape=[3, 2], dilations=[2, 3], first=10),
    "max, same upper": _row("MaxPool", X, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "max, same lower": _row("MaxPool", X, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    "max, valid": _row("MaxPool", X, kernel_shape=[2, 3], strides=[2, 2], auto_pad="VALID"),
    "max, where": _row("MaxPool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1], outputs=2, first=8),
    "max, where, by columns": _row("MaxPool", X, kernel_shape=[3, 3], outputs=2, storage_order=1, first=8),
    "max, 1-D": _row("MaxPool", r(2, 3, 8), kernel_shape=[3], strides=[2], pads=[1, 1]),
    "max, 3-D": _row("MaxPool", r(1, 2, 5, 6, 4), kernel_shape=[2, 3, 2], strides=[1, 2, 2]),
    "average": _row("AveragePool", X, kernel_shape=[3, 2], strides=[2, 1]),
    "average, padded": _row("AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]),
    "average, counting": _row(
        "AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1], count_include_pad=1
    ),
    "average, ceil": _row("AveragePool", X, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, first=10),
    "average, ceil, padded": _row(
        "AveragePool", X, kernel_shape=[3, 3], strides=[2, 3], pads=[1] * 4, ceil_mode=1, first=10
    ),
    "average, ceil, counting": _row(
        "AveragePool", X, kernel_shape=[3, 3], strides=[2, 3], pads=[1] * 4, ceil_mode=1, count_include_pad=1, first=19
    ),
    "average, dilated": _row("AveragePool", X, kernel_shape=[3, 2], dilations=[2, 3], pads=[1] * 4, first=19),
    "average, same upper": _row("AveragePool", X, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "average, same lower": _row("AveragePool", X, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    "average, valid": _row("AveragePool", X, kernel_shape=[2, 3], strides=[2, 2], auto_pad="VALID"),
    "average, 1-D": _row("AveragePool", r(2, 3, 8), kernel_shape=[3], strides=[2], pads=[1, 1]),
    "average, 3-D": _row("AveragePool", r(1, 2, 5, 6, 4), kernel_shape=[2, 3, 2], strides=[1, 2, 2]),
    "lp pool": _row("LpPool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, p=2),
    "lp pool, 3": _row("LpPool", POSITIVE, kernel_shape=[2, 3], strides=[1, 2], p=3),
    "global average": _row("GlobalAveragePool", X),
    "global max": _row("GlobalMaxPool", X),
    "global lp": _row("GlobalLpPool", X, last=21, p=2),
    "max unpool": _row(
        "MaxUnpool", r(1, 1, 2, 2), i(0, 3, 8, 14).reshape(1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2], first=9
    ),
    # Sizes.
    "upsample, 7": _row("Upsample", X, first=7, last=8, scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"),
    "upsample, 7, linear": _row("Upsample", X, first=7, last=8, scales=[1.0, 1.0, 2.0, 2.0], mode="linear"),
    "upsample, 9": _row("Upsample", X, f(1, 1, 2, 2), first=9, last=9, mode="nearest"),
    "upsample, 9, uneven": _row("Upsample", X, f(1, 1, 1.5, 2.3), first=9, last=9, mode="nearest"),
    "upsample, 9, linear": _row("Upsample", X, f(1, 1, 2, 2.5), first=9, last=9, mode="linear"),
    "resize, 10": _row("Resize", X, f(1, 1, 2, 2), first=10, last=10, mode="nearest"),
    "resize, 10, down": _row("Resize", X, f(1, 1, 0.6, 0.5), first=10, last=10, mode="nearest"),
    "resize, 10, linear": _row("Resize", X, f(1, 1, 2, 1.5), first=10, last=10, mode="linear"),
    **{
        f"resize, {mode}, {how}, {near or 'plain'}": _row(
            "Resize",
            X,
            f(),
            f(1, 1, 1.7, 2.5),
            first=11,
            mode=mode,
            coordinate_transformation_mode=how,
            **({"nearest_mode": near} if near else {}),
        )
        for mode, nears in (
            ("nearest", ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
            ("linear", ("",)),
            ("cubic", ("",)),
        )
        for how in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for near in nears
    },
    "resize, down": _row("Resize", X, f(), f(1, 1, 0.6, 0.4), first=11, mode="linear"),
    "resize, to sizes": _row("Resize", X, None, None, i(2, 4, 14, 10), first=13, mode="linear"),
    "resize, to sizes, nearest": _row(
        "Resize",
        X,
        None,
        None,
        i(2, 4, 13, 11),
        first=13,
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "resize, one pixel": _row(
        "Resize",
        X,
        None,
        None,
        i(2, 4, 1, 1),
        first=13,
        mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel",
    ),
    "resize, cubic, outside": _row(
        "Resize", X, f(), f(1, 1, 1.5, 2), first=11, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1
    ),
    "resize, axes": _row("Resize", X, None, f(2, 1.5), first=18, mode="linear", axes=[2, 3]),
    "resize, antialias": _row("Resize", X, None, f(1, 1, 0.5, 0.6), first=18, mode="linear", antialias=1),
    "resize, aspect": _row(
        "Resize",
        X,
        None,
        None,
        i(14, 20),
        first=18,
        mode="linear",
        axes=[2, 3],
        keep_aspect_ratio_policy="not_larger",
    ),
    "resize, crop": _row(
        "Resize",
        X,
        f(0, 0, 0.2, 0.3, 1, 1, 0.9, 1.2),
        None,
        i(2, 4, 6, 5),
        first=13,
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=2.5,
    ),
    "grid sample": _row(
        "GridSample", X, np.clip(r(2, 5, 4, 2) / 2, -1.2, 1.2), first=16, last=19, mode="bilinear", align_corners=1
    ),
    "grid sample, 20": _row("GridSample", X, r(2, 5, 4, 2) / 2, first=20, mode="linear", padding_mode="border"),
    "roi align": _row(
        "RoiAlign",
        X,
        f(0.5, 0.7, 5.2, 6.1, 1.0, 1.0, 4.0, 4.0).reshape(2, 4),
        i(0, 1),
        output_height=3,
        output_width=2,
        sampling_ratio=2,
        first=16,
        last=21,
        coordinate_transformation_mode="half_pixel",
    ),
    "roi align, 10": _row(
        "RoiAlign",
        X,
        f(0.5, 0.7, 5.2, 6.1, 1.0, 1.0, 4.0, 4.0).reshape(2, 4),
        i(0, 1),
        output_height=3,
        output_width=2,
        sampling_ratio=2,
        first=10,
        last=15,
    ),
    "pad, 7": _row("Pad", X, first=7, last=10, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=1.5),
    "pad, 7, reflect": _row("Pad", X, first=7, last=10, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="reflect"),
    "pad, 7, crop": _row("Pad", X, first=7, last=10, pads=[0, 0, -1, 2, 0, 0, 3, -2]),
    "pad": _row("Pad", X, i(0, 0, 1, 2, 0, 0, 3, 0), one(-2.5), first=11),
    "pad, zeros": _row("Pad", X, i(0, 1, 1, 2, 0, 0, 3, 0), first=11),
    "pad, crop": _row("Pad", X, i(0, 0, -1, 2, 0, 0, 3, -2), first=11),
    "pad, reflect": _row("Pad", X, i(0, 0, 1, 2, 0, 0, 3, 0), first=11, mode="reflect"),
    "pad, edge": _row("Pad", X, i(0, 0, 1, 2, 0, 0, 3, 0), first=11, mode="edge"),
    "pad, wrap": _row("Pad", X, i(0, 0, 1, 2, 0, 0, 3, 0), first=19, mode="wrap"),
    "pad, axes": _row("Pad", X, i(1, 2, 3, 0), one(0.5), i(3, 2), first=18),
    "pad, axes, from behind": _row("Pad", X, i(1, 2), None, i(-1), first=18, mode="edge"),
    # Matrix products.
    "gemm": _row("Gemm", r(3, 5), r(5, 4), r(4), alpha=0.5, beta=2.0),
    "gemm, transposed": _row("Gemm", r(5, 3), r(4, 5), r(3, 4), transA=1, transB=1),
    "gemm, no bias": _row("Gemm", r(3, 5), r(5, 4), first=11),
    "matmul": _row("MatMul", r(2, 3, 5), r(5, 4)),
    "matmul, batches": _row("MatMul", r(2, 1, 3, 5), r(6, 5, 4)),
    "einsum": _row("Einsum", r(2, 3, 5), r(2, 4, 5), equation="bij,bkj->bik", first=12),
    # Activations.
    **{
        f"softmax family: {op}, {'plain' if axis is None else axis}, {end}": _row(
            op, r(2, 3, 4, 5), first=start, last=end, **({} if axis is None else {"axis": axis})
        )
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for axis in (None, 0, 1, 2, 3, -1, -2)
        for start, end in ((11 if axis is not None and axis < 0 else 7, 12), (13, LAST))
    },
    "softmax of vectors": _row("Softmax", r(3, 5), axis=1),
    "clip, 6": _row("Clip", X, first=6, last=10, min=-0.5, max=0.7),
    "clip, 6, low": _row("Clip", X, first=6, last=10, min=-0.5),
    "clip": _row("Clip", X, one(-0.5), one(0.7), first=11),
    "clip, high": _row("Clip", X, None, one(0.7), first=11),
    "clip, low": _row("Clip", X, one(0.1), first=11),
    **{
        op: _row(op, X, first=first)
        for op, first in {
            "Relu": 6,
            "Sigmoid": 6,
            "Tanh": 6,
            "Softplus": 7,
            "Softsign": 7,
            "HardSwish": 14,
            "Mish": 18,
            "Gelu": 20,
            "Erf": 9,
            "Exp": 6,
            "Abs": 6,
            "Neg": 6,
            "Identity": 7,
            "Floor": 6,
            "Ceil": 6,
            "Sin": 7,
            "Cos": 7,
            "Sign": 9,
            "Round": 11,
            "Atan": 7,
            "Sinh": 9,
        }.items()
    },
    **{op: _row(op, POSITIVE, first=6) for op in ("Sqrt", "Log", "Reciprocal")},
    "gelu, tanh": _row("Gelu", X, first=20, approximate="tanh"),
    "hard sigmoid": _row("HardSigmoid", X, first=6),
    "hard sigmoid, named": _row("HardSigmoid", X, first=6, alpha=1 / 6, beta=0.5),
    "leaky": _row("LeakyRelu", X, first=6, alpha=0.2),
    "leaky, plain": _row("LeakyRelu", X, first=6),
    "elu": _row("Elu", X, first=6, alpha=0.5),
    "elu, plain": _row("Elu", X, first=6),
    "selu": _row("Selu", X, first=6),
    "celu": _row("Celu", X, first=12, alpha=0.5),
    "thresholded": _row("ThresholdedRelu", X, first=10, alpha=0.3),
    "shrink": _row("Shrink", X, first=9, lambd=0.3, bias=0.1),
    "prelu": _row("PRelu", X, r(4, 1, 1)),
    "prelu, one": _row("PRelu", X, r(1)),
    "dropout": _row("Dropout", X, first=7),
    "dropout, ratio": _row("Dropout", X, first=7, last=11, ratio=0.7),
    "dropout, masked": _row("Dropout", X, first=12, outputs=2),
    "dropout, given": _row("Dropout", X, one(0.7), np.array(False), first=12),
    # Arithmetic.
    **{op: _row(op, X, np.abs(r(4, 1, 1)) + np.float32(0.5), fed=(0, 1)) for op in ("Add", "Sub", "Mul", "Div")},
    **{op: _row(op, X, r(4, 1, 1), r(7), first=8, fed=(0, 1)) for op in ("Max", "Min", "Sum", "Mean")},
    "pow": _row("Pow", POSITIVE, one(1.7)),
    "pow, square": _row("Pow", X, one(2)),
    "mod": _row("Mod", X, one(0.7), first=10, fmod=1),
    "where": _row("Where", X > 0, X, r(7), first=9, fed=(0, 1)),
    "greater": _row("Greater", X, one(0.3)),
    "equal": _row("Equal", i(1, 2, 3), i(1, 0, 3)),
    "cumulative": _row("CumSum", X, np.array(2, np.int64), first=11, reverse=1),
    "cast, up": _row("Cast", i(1, 2, 3), first=9, to=1),
    "cast, down": _row("Cast", 3 * X, first=9, to=7),
    # Reductions.
    **{
        f"{op}, {said}": _row(op, POSITIVE, first=7, last=12 if op == "ReduceSum" else 17, **attributes)
        for op in REDUCTIONS
        for said, attributes in {"all": {}, "axes": {"axes": [2, 3]}, "one": {"axes": [1], "keepdims": 0}}.items()
    },
    **{
        f"{op}, {said}, given": _row(op, POSITIVE, *given, first=13 if op == "ReduceSum" else 18, **attributes)
        for op in REDUCTIONS
        for said, given, attributes in (
            ("all", (), {}),
            ("axes", (i(2, -1),), {}),
            ("one", (i(1),), {"keepdims": 0}),
            ("nothing", (i(),), {"noop_with_empty_axes": 1}),
        )
    },
    "argmax": _row("ArgMax", X, axis=1),
    "argmax, flat": _row("ArgMax", X, axis=2, keepdims=0),
    "argmax, last": _row("ArgMax", np.round(X), axis=1, select_last_index=1, first=12),
    "top k, 7": _row("TopK", X, first=7, last=9, k=3, axis=1, outputs=2),
    "top k": _row("TopK", X, i(3), first=10, axis=2, outputs=2),
    "top k, smallest": _row("TopK", X, i(3), first=11, axis=-1, outputs=2, largest=0),
    # Shapes.
    "slice, 7": _row("Slice", X, first=7, last=9, starts=[1, -5], ends=[3, 1000], axes=[1, 2]),
    "slice": _row("Slice", X, i(1, -5), i(3, 1000), i(1, 2), first=10),
    "slice, backwards": _row("Slice", X, i(-1, 0), i(-(2**62), 9), i(3, 2), i(-2, 3), first=10),
    "split, 7": _row("Split", X, first=7, last=12, axis=1, split=[1, 3], outputs=2),
    "split, 7, even": _row("Split", X, first=7, last=12, axis=1, outputs=2),
    "split": _row("Split", X, i(1, 3), first=13, axis=1, outputs=2),
    "split, even": _row("Split", X, first=13, last=17, axis=1, outputs=2),
    "split, in number": _row("Split", X, first=18, axis=2, num_outputs=4, outputs=4),
    "concatenation": _row("Concat", X, r(2, 1, 9, 7), axis=1),
    "concatenation, from behind": _row("Concat", X, r(2, 4, 9, 3), axis=-1, first=11),
    "flatten": _row("Flatten", X),
    "flatten, 0": _row("Flatten", X, axis=0),
    "flatten, 3": _row("Flatten", X, axis=3),
    "flatten, from behind": _row("Flatten", X, axis=-1, first=11),
    "reshape": _row("Reshape", X, i(0, 2, -1)),
    "reshape, empty allowed": _row("Reshape", r(0, 3), i(3, 0), first=14, allowzero=1),
    "transposition": _row("Transpose", X, perm=[0, 2, 3, 1]),
    "transposition, plain": _row("Transpose", X),
    "squeeze, 7": _row("Squeeze", r(2, 1, 3, 1), first=7, last=12, axes=[1]),
    "squeeze": _row("Squeeze", r(2, 1, 3, 1), i(-1), first=13),
    "squeeze, all": _row("Squeeze", r(2, 1, 3, 1)),
    "unsqueeze, 7": _row("Unsqueeze", X, first=7, last=12, axes=[1, 5]),
    "unsqueeze": _row("Unsqueeze", X, i(0, -1), first=13),
    "expand": _row("Expand", r(3, 1), i(2, 3, 4), first=8),
    "tile": _row("Tile", r(2, 3), i(2, 2)),
    "gather": _row("Gather", X, i(2, 0), axis=1),
    "depth to space": _row("DepthToSpace", r(1, 8, 2, 3), blocksize=2),
    "depth to space, crd": _row("DepthToSpace", r(1, 8, 2, 3), blocksize=2, mode="CRD", first=11),
    "space to depth": _row("SpaceToDepth", r(1, 2, 4, 6), blocksize=2),
    "shape": _row("Shape", X),
    "shape, part": _row("Shape", X, start=1, end=-1, first=15),
    "constant of shape": _row("ConstantOfShape", i(2, 3), first=9),
    # Quantisation.
    "quantise": _row("QuantizeLinear", X, one(0.03), np.array(3, np.uint8), first=10),
    "quantise, signed": _row("QuantizeLinear", X, one(0.03), np.array(-3, np.int8), first=10),
    "quantise, no zero": _row("QuantizeLinear", X, one(0.03), first=10),
    "quantise, channels": _row(
        "QuantizeLinear", X, np.abs(r(4)) + np.float32(0.02), i(1, 2, 3, 0).astype(np.int8), first=13, axis=1
    ),
    "quantise, last axis": _row(
        "QuantizeLinear", X, np.abs(r(7)) + np.float32(0.02), np.zeros(7, np.int8), first=13, axis=-1
    ),
    "dequantise": _row("DequantizeLinear", np.arange(12, dtype=np.uint8), one(0.03), np.array(3, np.uint8), first=10),
    "dequantise, channels": _row(
        "DequantizeLinear",
        np.arange(24, dtype=np.int8).reshape(2, 4, 3),
        np.abs(r(4)) + np.float32(0.02),
        i(1, 2, 3, 0).astype(np.int8),
        first=13,
        axis=1,
    ),
    "dequantise, bias": _row("DequantizeLinear", np.arange(4, dtype=np.int32), one(0.03), first=10),
    "quantise on the run": _row("DynamicQuantizeLinear", X, first=11, outputs=3),
}


@pytest.mark.newer
@pytest.mark.parametrize("name", ROWS)
def test_an_operation_is_what_onnxruntime_makes_of_it(name: str) -> None:
    for opset in ROWS[name].opsets():
        model, feeds = ROWS[name].model(opset)
        outputs = [value.name for value in model.graph.output]
        wanted = model_session(model, name).run(outputs, feeds)
        for right, found in zip(wanted, evaluate(model, feeds, outputs), strict=True):
            assert found.shape == right.shape, opset
            assert found.dtype == (np.float64 if right.dtype.kind == "f" else right.dtype), opset
            scale = max(1.0, float(np.abs(right).max(initial=0)))
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * scale, err_msg=f"opset {opset}")


ROUNDED = {"Cast", "DequantizeLinear", "ConstantOfShape"}
"""Operations that compute floats exactly of few bits, besides those that only move them."""


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.op not in ROUNDED])
def test_nothing_inside_is_rounded_to_float32(name: str) -> None:
    """Of inputs that float32 cannot hold, outputs are some that it cannot hold, unless they are no reals at all."""
    row = ROWS[name]
    model, feeds = row.model(row.last)
    odd = {k: v + np.float64(1e-12) if v.dtype.kind == "f" else v for k, v in feeds.items()}
    for found in evaluate(model, odd, [value.name for value in model.graph.output]):
        if found.dtype.kind == "f" and found.size and not np.array_equal(found, np.round(found)):
            assert not np.array_equal(found, found.astype(np.float32))


def _of(*nodes: onnx.NodeProto, opset: int, weights: dict[str, np.ndarray], domains: dict[str, int] | None = None):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", 1, X.shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_a_norm_of_opset_6_that_does_not_say_it_is_tested_is_refused() -> None:
    norm = helper.make_node("BatchNormalization", ["x", "a", "b", "c", "d"], ["y"])
    model = _of(norm, opset=6, weights=dict.fromkeys("abcd", np.ones(4, np.float32)))
    with pytest.raises(FusionError, match="training mode"):
        evaluate(model, {"x": X}, ["y"])


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_a_norm_in_training_mode_is_what_torch_makes_of_the_batch(kind: type[np.floating[Any]]) -> None:
    """Of 40,000 numbers a channel, whose sum is beyond float16."""
    x = (np.random.default_rng(0).normal(3, 2, (1, 2, 200, 200))).astype(kind)
    given = [np.array(v, kind) for v in ((0.5, 2), (1, -1), (0, 0), (1, 1))]
    call = Call(15, [x, *given], {"training_mode": 1, "epsilon": 1e-3, "momentum": 0.0}, 3)
    found, mean, variance = batch_norm(call)
    assert {a.dtype for a in (found, mean, variance)} == {np.dtype(kind)}
    scale, bias = (torch.from_numpy(a.astype(np.float64)) for a in given[:2])
    wide = torch.from_numpy(x.astype(np.float64))
    wanted = functional.batch_norm(wide, None, None, scale, bias, training=True, eps=1e-3)
    close = {"rtol": 0, "atol": 1e-12 if kind is np.float64 else 0.02}
    np.testing.assert_allclose(found, wanted.numpy(), **close)
    np.testing.assert_allclose(mean, wide.mean((0, 2, 3)).numpy(), **close)
    np.testing.assert_allclose(variance, wide.var((0, 2, 3), correction=0).numpy(), **close)


def test_a_norm_of_opset_6_that_says_it_is_tested_uses_what_is_stored() -> None:
    stored = [np.abs(r(4)) + np.float32(0.5) for _ in range(4)]
    norm = helper.make_node("BatchNormalization", ["x", "a", "b", "c", "d"], ["y"], is_test=1)
    model = _of(norm, opset=6, weights=dict(zip("abcd", stored, strict=True)))
    a, b, c, d = (s.astype(np.float64)[:, None, None] for s in stored)
    (found,) = evaluate(model, {"x": X}, ["y"])
    np.testing.assert_allclose(found, a * (X.astype(np.float64) - c) / np.sqrt(d + 1e-5) + b, rtol=1e-12)


@pytest.mark.parametrize("opset", [11, 13])
def test_operations_inside_functions_and_branches_are_of_the_same_opset(opset: int) -> None:
    """Softmax below opset 13 goes over all axes from its axis on, wherever it stands."""
    inner = helper.make_node("Softmax", ["t"], ["s"], axis=1)
    function = helper.make_function("of.test", "Soft", ["t"], ["s"], [inner], [helper.make_opsetid("", opset)])
    branch = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["z"], axis=1)], "then", [], [onnx.ValueInfoProto(name="z")]
    )
    nodes = (
        helper.make_node("Soft", ["x"], ["f"], domain="of.test"),
        helper.make_node("If", ["yes"], ["b"], then_branch=branch, else_branch=branch),
        helper.make_node("Sub", ["f", "b"], ["y"]),
    )
    model = _of(*nodes, opset=opset, weights={"yes": np.array(True)}, domains={"of.test": 1})
    model.functions.append(function)
    (difference,) = evaluate(model, {"x": X}, ["y"])
    assert not difference.any()
    (found,) = evaluate(model, {"x": X}, ["f"])
    np.testing.assert_allclose(found.sum((1, 2, 3) if opset == 11 else 1), 1, rtol=1e-12)


def test_a_resize_without_sizes_is_said() -> None:
    model = _of(helper.make_node("Resize", ["x"], ["y"]), opset=13, weights={"unused": i(1)})
    with pytest.raises(FusionError, match="without scales and sizes"):
        evaluate(model, {"x": X}, ["y"])


def test_the_default_domain_may_be_spelled_out() -> None:
    norm = helper.make_node("BatchNormalization", ["x", "a", "b", "c", "d"], ["y"], domain="ai.onnx")
    model = _of(
        norm, opset=11, weights=dict(zip("abcd", (np.abs(r(4)) + np.float32(0.5) for _ in "abcd"), strict=True))
    )
    (wanted,) = evaluate(model, {"x": X}, ["y"])
    model.opset_import[0].domain = "ai.onnx"
    assert np.array_equal(evaluate(model, {"x": X}, ["y"])[0], wanted)
