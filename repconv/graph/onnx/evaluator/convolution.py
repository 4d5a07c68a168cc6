"""ONNX convolutions of arrays, in the arrays' own precision, by PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from ....proof.float64 import grouped_double, is_grouped_double
from .call import Array, Call, declared_pads, halved, padded, window

_FORWARD = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def convolution(call: Call) -> tuple[Array, ...]:
    """Conv: x [n, i, ...], weight [o, i/g, ...], bias [o]; 1 to 3 axes."""
    x, weight = call.given(0), call.given(1)
    over = window(call, x.shape[2:], weight.shape[2:])
    # PyTorch pads both ends alike, and without a copy as large as a wide pad.
    alike = tuple(max(0, min(pair)) for pair in over.pads)
    rest = [(a - both, b - both) for (a, b), both in zip(over.pads, alike, strict=True)]
    groups, given = call.get("group", 1), _tensor(padded(x, rest))
    convolve = grouped_double if is_grouped_double(given, groups) else _FORWARD[len(over.size)]
    with torch.no_grad():
        y = convolve(given, _tensor(weight), None, over.strides, alike, over.dilations, groups)
    return (_with_bias(y.numpy(), call.input(2)),)


def transposed_convolution(call: Call) -> tuple[Array, ...]:
    """ConvTranspose: x [n, i, ...], weight [i, o/g, ...], bias [o]; 1 to 3 axes.

    The whole overlap of all windows is computed, then cropped by `pads`, or padded where they are negative.
    """
    x, weight = call.given(0), call.given(1)
    axes = weight.ndim - 2
    strides, dilations = call.get("strides", [1] * axes), call.get("dilations", [1] * axes)
    more = call.get("output_padding", [0] * axes)
    with torch.no_grad():
        y = _TRANSPOSED[axes](_tensor(x), _tensor(weight), None, strides, 0, 0, call.get("group", 1), dilations).numpy()
    whole = [side + m for side, m in zip(y.shape[2:], more, strict=True)]
    automatic, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if wanted is None and automatic.startswith("SAME"):
        wanted = [side * s for side, s in zip(x.shape[2:], strides, strict=True)]
    pads = declared_pads(call, axes)
    if wanted is not None:
        upper = automatic == "SAME_UPPER"
        pads = tuple(halved(w - want, upper=upper) for w, want in zip(whole, wanted[-axes:], strict=True))
    cropped = padded(y, [(-a, m - b) for (a, b), m in zip(pads, more, strict=True)])
    return (_with_bias(cropped, call.input(2)),)


def _with_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))


def _tensor(value: Array) -> torch.Tensor:
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))
