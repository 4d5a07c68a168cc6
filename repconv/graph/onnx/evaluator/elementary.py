"""ONNX operations on single numbers, sums of products, and quantised ones, in float64."""

from __future__ import annotations

import numpy as np
import torch

from .call import Array, Call


def erf(call: Call) -> tuple[Array, ...]:
    """Erf."""
    return (torch.erf(torch.from_numpy(np.require(call.given(0), requirements=["C", "W"]))).numpy(),)


def einsum(call: Call) -> tuple[Array, ...]:
    """Einsum, as products of matrices where it can be."""
    return (np.einsum(call.get("equation"), *(call.given(i) for i in range(len(call.inputs))), optimize=True),)


def dequantise(call: Call) -> tuple[Array, ...] | None:
    """DequantizeLinear: (x - zero) * scale, of one scale or one a slice of `axis`; opset 19 on is left to onnx."""
    if call.opset >= 19:
        return None
    x, scale, zero = call.given(0), call.given(1), call.input(2)
    if scale.size > 1:
        shape = [1] * x.ndim
        shape[call.get("axis", 1)] = scale.size
        scale, zero = scale.reshape(shape), None if zero is None else zero.reshape(shape)
    whole = x.astype(scale.dtype)
    return ((whole if zero is None else whole - zero.astype(scale.dtype)) * scale,)


def quantise_on_the_run(call: Call) -> tuple[Array, ...]:
    """DynamicQuantizeLinear: to uint8, of the range of the input with 0 in it; its scale and its zero."""
    x = call.given(0)
    low, high = min(0.0, float(x.min(initial=0))), max(0.0, float(x.max(initial=0)))
    scale = (high - low) / 255 or 1.0
    zero = np.clip(np.rint(-low / scale), 0, 255)
    steps = np.clip(np.rint(x / scale) + zero, 0, 255)
    return steps.astype(np.uint8), np.asarray(scale, x.dtype), zero.astype(np.uint8)
