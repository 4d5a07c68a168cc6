"""ONNX normalisations of arrays, in the arrays' own precision: by statistics, by neighbours, by sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from .call import Array, Call


def batch_norm(call: Call) -> tuple[Array, ...]:
    """BatchNormalization with statistics of [c], or [c, ...] of a whole image where `spatial` is 0.

    They are the stored ones; from opset 14 on, in training mode, those of the batch: the mean and the biased variance.
    Then the second and third output are the stored ones, moved towards them.

    Raises:
        ValueError: it is in training mode below opset 14.
    """
    x, scale, bias, mean, variance = (call.given(k) for k in range(5))
    if call.opset < 7 and not call.get("is_test", 0):
        raise ValueError("a BatchNormalization is in training mode; export the network in evaluation mode")
    moved: tuple[Array, ...] = ()
    if call.opset >= 14 and call.get("training_mode", 0):
        axes, kept = (0, *range(2, x.ndim)), call.get("momentum", 0.9)
        batch = x.mean(axes, dtype=_wide(x)), x.var(axes, dtype=_wide(x))
        moved = tuple((s * kept + b * (1 - kept)).astype(s.dtype) for s, b in zip((mean, variance), batch, strict=True))
        mean, variance = (b.astype(x.dtype) for b in batch)
    # One axis of statistics, or all of them but the batch's.
    scale, bias, mean, variance = (
        s.reshape(s.shape + (1,) * (x.ndim - 1 - s.ndim)) for s in (scale, bias, mean, variance)
    )
    return ((x - mean) * (scale / np.sqrt(variance + call.get("epsilon", 1e-5))) + bias, *moved)


def _wide(x: Array) -> np.dtype[Any]:
    """The type that many numbers are added in: float16 holds no large sum."""
    return np.promote_types(x.dtype, np.float32)


def mean_variance_norm(call: Call) -> tuple[Array, ...]:
    """MeanVarianceNormalization: of variance 1 over `axes`, with 1e-9 added to the deviation."""
    x, axes = call.given(0), tuple(call.get("axes", [0, 2, 3]))
    centred = x - x.mean(axes, keepdims=True)
    return (centred / (np.sqrt((centred**2).mean(axes, keepdims=True)) + 1e-9),)


def lp_norm(call: Call) -> tuple[Array, ...]:
    """LpNormalization: by the sum of magnitudes or the root of that of squares; nothing stays nothing."""
    x, axis = call.given(0), call.get("axis", -1)
    by = np.abs(x).sum(axis, keepdims=True) if call.get("p", 2) == 1 else np.sqrt((x**2).sum(axis, keepdims=True))
    return (np.divide(x, by, out=np.zeros_like(x), where=by != 0),)


def local_response(call: Call) -> tuple[Array, ...]:
    """LRN: x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    x, size = call.given(0), call.get("size")
    before = (size - 1) // 2
    wide = np.pad(x**2, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
    squares = np.lib.stride_tricks.sliding_window_view(wide, size, 1).sum(-1)
    factor = call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * squares
    return (x / factor ** call.get("beta", 0.75),)


def softmax(call: Call) -> tuple[Array, ...]:
    """Softmax: over one axis, and below opset 13 over all axes from `axis` on."""
    rows = _rows(call)
    powers = rows - rows.max(-1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= powers.sum(-1, keepdims=True)
    return (_back(powers, call),)


def log_softmax(call: Call) -> tuple[Array, ...]:
    """LogSoftmax, over what Softmax goes."""
    rows = _rows(call)
    less = rows - rows.max(-1, keepdims=True)
    return (_back(less - np.log(np.exp(less).sum(-1, keepdims=True)), call),)


def hardmax(call: Call) -> tuple[Array, ...]:
    """Hardmax: 1 at the first of the largest, over what Softmax goes."""
    rows = _rows(call)
    found = np.zeros_like(rows)
    np.put_along_axis(found, rows.argmax(-1, keepdims=True), 1, -1)
    return (_back(found, call),)


def _rows(call: Call) -> Array:
    """What is normalised together as the last axis."""
    x = call.given(0)
    if call.opset >= 13:
        return np.moveaxis(x, call.get("axis", -1), -1)
    axis = call.get("axis", 1) % x.ndim
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _back(rows: Array, call: Call) -> Array:
    return np.moveaxis(rows, -1, call.get("axis", -1)) if call.opset >= 13 else rows.reshape(call.given(0).shape)
