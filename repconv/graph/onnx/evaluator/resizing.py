"""ONNX operations that change an image's size: padding, and sampling axis by axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .call import Array, Call, padded

_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def pad(call: Call) -> tuple[Array, ...]:
    """Pad: attributes below opset 11, inputs from there on; negative pads crop."""
    x = call.given(0)
    axes, value = call.input(3), call.input(2)
    if call.opset < 11:
        said, fill = call.get("pads"), call.get("value", 0.0)
    else:
        said, fill = call.given(1).tolist(), 0 if value is None or not value.size else value.item()
    chosen = [a % x.ndim for a in (range(x.ndim) if axes is None else axes.tolist())]
    pads = [(0, 0)] * x.ndim
    for axis, before, after in zip(chosen, said[: len(chosen)], said[len(chosen) :], strict=True):
        pads[axis] = (before, after)
    mode = call.get("mode", "constant")
    if mode == "constant":
        return (padded(x, pads, fill),)
    cropped = padded(x, [(min(a, 0), min(b, 0)) for a, b in pads])
    return (np.pad(cropped, [(max(a, 0), max(b, 0)) for a, b in pads], mode=_MODES[mode]),)  # type: ignore[call-overload]


@dataclass(frozen=True)
class _Axis:
    """One axis to be sampled anew: from `old` pixels to `new`, `scale` as the operation says it; `roi` of it."""

    old: int
    new: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def upsample(call: Call) -> tuple[Array, ...]:
    """Upsample, and Resize of opset 10, which only name what they do: pixel x comes from x / scale."""
    x = call.given(0)
    scales = call.get("scales") if call.opset < 9 else call.given(1).tolist()
    axes = [_Axis(side, _floor(side * s), s) for side, s in zip(x.shape, scales, strict=True)]
    mode = "nearest" if call.get("mode", "nearest") == "nearest" else "linear"
    return (
        _sampled(x, axes, {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}),
    )


def resize(call: Call) -> tuple[Array, ...] | None:
    """Resize; None where it smooths, which onnx's own evaluation does right."""
    if call.opset < 11:
        return upsample(call)
    if call.get("antialias", 0):
        return None
    x, roi, scales, sizes = call.given(0), call.input(1), call.input(2), call.input(3)
    chosen = [a % x.ndim for a in call.get("axes", range(x.ndim))]
    wanted = {a: float(s) for a, s in zip(chosen, scales, strict=True)} if scales is not None and scales.size else None
    if wanted is None and sizes is not None:
        asked = [int(s) for s in sizes]
        by = [s / x.shape[a] for a, s in zip(chosen, asked, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(by) if policy == "not_larger" else max(by)
            by, asked = [one] * len(by), [int(np.floor(one * x.shape[a] + 0.5)) for a in chosen]
        wanted, made = dict(zip(chosen, by, strict=True)), dict(zip(chosen, asked, strict=True))
    elif wanted is not None:
        made = {a: _floor(x.shape[a] * s) for a, s in wanted.items()}
    else:
        raise ValueError("a Resize without scales and sizes")
    crop = call.get("coordinate_transformation_mode") == "tf_crop_and_resize" and roi is not None
    ends = roi.tolist() if crop and roi is not None else [0.0] * len(chosen) + [1.0] * len(chosen)
    parts = dict(zip(chosen, zip(ends[: len(chosen)], ends[len(chosen) :], strict=True), strict=True))
    axes = [
        _Axis(side, made[a], wanted[a], parts[a]) if a in wanted else _Axis(side, side, 1.0)
        for a, side in enumerate(x.shape)
    ]
    return (_sampled(x, axes, call.attributes),)


def _floor(size: float) -> int:
    """As runtimes have it, in float32."""
    return int(np.floor(np.float32(size)))


def _sampled(x: Array, axes: list[_Axis], attributes: Mapping[str, Any]) -> Array:
    mode, how = attributes.get("mode") or "nearest", attributes.get("coordinate_transformation_mode") or "half_pixel"
    result = x
    outside = np.zeros([1] * x.ndim, bool)
    for index, axis in enumerate(axes):
        if axis.old == axis.new and axis.scale == 1 and axis.roi == (0.0, 1.0):
            continue
        # In nearest mode a pixel is a decision: it falls where float32 coordinates, which runtimes use, put it.
        at = _coordinates(axis, str(how), np.float32 if mode == "nearest" else np.float64)
        if how == "tf_crop_and_resize":
            far = (at < 0) | (at > axis.old - 1)
            outside = outside | far.reshape([-1 if k == index else 1 for k in range(x.ndim)])
        if mode == "nearest":
            near = str(attributes.get("nearest_mode") or "round_prefer_floor")
            # Opset 10 does not say; onnxruntime takes the next pixel where an axis shrinks.
            nearest = _nearest(at, near if near != "simple" else "ceil" if axis.scale < 1 else "floor")
            result = np.take(result, np.clip(nearest, 0, axis.old - 1), index)
            continue
        weights = _linear(at, axis.old) if mode == "linear" else _cubic(at, axis.old, attributes)
        result = np.moveaxis(np.tensordot(weights, result, (1, index)), 0, index)
    if outside.any():
        result = np.where(outside, attributes.get("extrapolation_value") or 0.0, result)
    return result.astype(x.dtype)


def _coordinates(axis: _Axis, how: str, kind: type[np.floating[Any]]) -> Any:  # noqa: ANN401  # an array of `kind`
    """Where in the old axis each new pixel lies."""
    x, scale, old, new = np.arange(axis.new).astype(kind), kind(axis.scale), kind(axis.old), kind(axis.new)
    start, end = kind(axis.roi[0]), kind(axis.roi[1])
    half, one = kind(0.5), kind(1)
    if how == "half_pixel" or (how == "pytorch_half_pixel" and axis.new > 1):
        return (x + half) / scale - half
    if how == "half_pixel_symmetric":
        centre = old / 2
        return centre * (one - new / (scale * old)) + (x + half) / scale - half
    if how == "pytorch_half_pixel":
        return x * 0
    if how == "asymmetric":
        return x / scale
    if how == "align_corners":
        return x * (old - one) / (new - one) if axis.new > 1 else x * 0
    if how == "tf_crop_and_resize":
        if axis.new > 1:
            return start * (old - one) + x * (end - start) * (old - one) / (new - one)
        return x * 0 + half * (start + end) * (old - one)
    raise ValueError(f"Resize knows no coordinate_transformation_mode {how}")


def _nearest(at: Array, how: str) -> Array:
    rounded: dict[str, Callable[[Array], Array]] = {
        "floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda a: np.ceil(a - a.dtype.type(0.5)),
        "round_prefer_ceil": lambda a: np.floor(a + a.dtype.type(0.5)),
    }  # fmt: skip
    return np.asarray(rounded[how](at)).astype(np.int64)


def _linear(at: Array, old: int) -> Array:
    """[new, old]: two neighbours each; the borders' pixels go on for ever."""
    at = np.clip(at, 0, old - 1)
    weights = np.zeros((len(at), old))
    low = np.floor(at).astype(np.int64)
    rows = np.arange(len(at))
    np.add.at(weights, (rows, low), 1 - (at - low))
    np.add.at(weights, (rows, np.minimum(low + 1, old - 1)), at - low)
    return weights


def _cubic(at: Array, old: int, attributes: Mapping[str, Any]) -> Array:
    """[new, old]: four neighbours each by cubic convolution, those outside the border's pixels, or left out."""
    a = float(attributes.get("cubic_coeff_a") or -0.75)
    weights = np.zeros((len(at), old))
    low = np.floor(at).astype(np.int64)
    rows = np.arange(len(at))
    for step in (-1, 0, 1, 2):
        far = np.abs(at - (low + step))
        near = ((a + 2) * far - (a + 3)) * far * far + 1
        weight = np.where(far <= 1, near, ((a * far - 5 * a) * far + 8 * a) * far - 4 * a)
        inside = (low + step >= 0) & (low + step < old)
        if attributes.get("exclude_outside"):
            weight = weight * inside
        np.add.at(weights, (rows, np.clip(low + step, 0, old - 1)), weight)
    return np.asarray(weights / weights.sum(1, keepdims=True))
