"""ONNX pools of arrays, in the arrays' own precision."""

from __future__ import annotations

import numpy as np

from .call import Array, Call, Window, padded, window


def max_pool(call: Call) -> tuple[Array, ...]:
    """MaxPool, with the places of the largest where they are asked for."""
    x = call.given(0)
    over, shape = _moved(call, x)
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    taps = _taps(_filled(x, over, shape, low), over, shape)
    y = taps.max(-1)
    return (y,) if call.outputs == 1 else (y, _places(taps.argmax(-1), x, over, call.get("storage_order", 0)))


def average_pool(call: Call) -> tuple[Array, ...]:
    """AveragePool: padding counts if `count_include_pad`, what `ceil_mode` adds behind it never."""
    x = call.given(0)
    over, shape = _moved(call, x)
    inside = np.ones(x.shape[2:], x.dtype)[None, None]
    counted = padded(inside, over.pads, value=1 if call.get("count_include_pad", 0) else 0)
    plain = Window(over.size, over.strides, over.dilations, ((0, 0),) * len(shape))
    counts = _taps(_filled(counted, plain, shape, 0), over, shape).sum(-1)
    return (_taps(_filled(x, over, shape, 0), over, shape).sum(-1) / counts,)


def lp_pool(call: Call) -> tuple[Array, ...]:
    """LpPool: (sum |x|^p)^(1/p)."""
    x, p = call.given(0), call.get("p", 2)
    over, shape = _moved(call, x)
    return ((_taps(_filled(np.abs(x) ** p, over, shape, 0), over, shape).sum(-1)) ** (1 / p),)


def global_lp_pool(call: Call) -> tuple[Array, ...]:
    """GlobalLpPool: the same over a whole image."""
    x, p = call.given(0), call.get("p", 2)
    return ((np.abs(x) ** p).sum(tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


def _moved(call: Call, x: Array) -> tuple[Window, tuple[int, ...]]:
    """The window, and how many places it takes on each axis."""
    over = window(call, x.shape[2:], ())
    up = bool(call.get("ceil_mode", 0))
    places = []
    for side, e, s, (a, b) in zip(x.shape[2:], over.extent, over.strides, over.pads, strict=True):
        room = side + a + b - e
        count = (-(-room // s) if up else room // s) + 1
        # The last window has to start on the image or on its padding before it.
        places.append(count - 1 if up and (count - 1) * s >= side + a else count)
    return over, tuple(places)


def _filled(x: Array, over: Window, shape: tuple[int, ...], value: float) -> Array:
    """`x` padded as far as the windows reach."""
    pads = []
    for side, e, s, n, (a, _) in zip(x.shape[2:], over.extent, over.strides, shape, over.pads, strict=True):
        pads.append((a, (n - 1) * s + e - side - a))
    return padded(x, pads, value)


def _taps(x: Array, over: Window, shape: tuple[int, ...]) -> Array:
    """What each window sees: [n, c, ..., taps]."""
    axes = tuple(range(2, x.ndim))
    seen = np.lib.stride_tricks.sliding_window_view(x, over.extent, axes)
    strides = tuple(slice(None, None, s) for s in over.strides)
    dilations = tuple(slice(None, None, d) for d in over.dilations)
    return seen[(slice(None), slice(None), *strides, *dilations)].reshape(*x.shape[:2], *shape, -1)


def _places(tap: Array, x: Array, over: Window, by_columns: int) -> Array:
    """Indices of taps as indices of pixels in the whole of `x`."""
    taps = np.unravel_index(tap, over.size)
    starts = np.indices(tap.shape)[2:]
    pixels = [
        start * s + t * d - a
        for start, t, s, d, (a, _) in zip(starts, taps, over.strides, over.dilations, over.pads, strict=True)
    ]
    sides = x.shape[2:]
    if by_columns:
        pixels, sides = pixels[::-1], sides[::-1]
    images = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(sides)) * int(np.prod(sides))
    return np.asarray(np.ravel_multi_index(pixels, sides) + images, np.int64)
