"""What operations of MIL, the language of Core ML's packages, compute: a table of rules in PyTorch, for float64.

A rule is given the inputs of an operation by name, tensors or plain values, and returns its outputs. Meanings and
defaults are those of coremltools' reference
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repconv.errors import BuildError

Given = Mapping[str, Any]
Rule = Callable[[Given], Tensor | Sequence[Tensor]]


def _padded(g: Given, windows: Sequence[int], filling: float = 0.0) -> Tensor:
    """An image with what is put around it for windows of these sizes, from first number to last."""
    kind = g.get("pad_type", "valid")
    if kind == "custom":
        pads = list(g["pad"])
    elif kind == "valid":
        pads = [0, 0] * len(windows)
    elif kind == "same" and set(g.get("strides") or [1]) == {1}:
        pads = [n for size in windows for n in ((size - 1) // 2, size // 2)]
    else:
        raise BuildError(f"there is no rule for paddings of the kind {kind!r} with strides of {g.get('strides')}")
    last_first = [n for axis in reversed(range(len(windows))) for n in pads[2 * axis : 2 * axis + 2]]
    return functional.pad(g["x"], last_first, value=filling)


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def _conv(g: Given) -> Tensor:
    kernel = g["weight"].shape[2:]
    axes = len(kernel)
    strides, steps = g.get("strides") or [1] * axes, g.get("dilations") or [1] * axes
    x = _padded(g, [(k - 1) * step + 1 for k, step in zip(kernel, steps, strict=True)])
    convolve = _CONVOLUTIONS[axes]
    return convolve(x, g["weight"], g.get("bias"), stride=strides, dilation=steps, groups=g.get("groups", 1))


def _windows(g: Given, filling: float) -> Tensor:
    """Of an image [n, c, ...] every window, its numbers in a last axis."""
    if g.get("ceil_mode"):
        raise BuildError("there is no rule for pooling with a ceiling; pool with ceil_mode=False")
    kernel = g["kernel_sizes"]
    x = _padded(g, kernel, filling)
    for axis, (k, stride) in enumerate(zip(kernel, g.get("strides") or [1] * len(kernel), strict=True)):
        x = x.unfold(2 + axis, k, stride)
    return x.flatten(-len(kernel))


def _avg_pool(g: Given) -> Tensor:
    windows = _windows(g, 0.0)
    if not g.get("exclude_padding_from_average", False):
        return windows.mean(-1)
    counted = _windows({**g, "x": torch.ones_like(g["x"])}, 0.0).sum(-1)
    return windows.sum(-1) / counted


def _of_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))


def _batch_norm(g: Given) -> Tensor:
    x: Tensor = g["x"]
    epsilon = g.get("epsilon", 1e-5)
    scaled: Tensor = (x - _of_channels(g["mean"], x)) / torch.sqrt(_of_channels(g["variance"], x) + epsilon)
    scaled = scaled if g.get("gamma") is None else scaled * _of_channels(g["gamma"], x)
    return scaled if g.get("beta") is None else scaled + _of_channels(g["beta"], x)


def _layer_norm(g: Given) -> Tensor:
    x: Tensor = g["x"]
    axes = g.get("axes")
    axes = list(range(x.dim())) if axes is None else list(axes)
    centred = x - x.mean(axes, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(axes, keepdim=True) + g.get("epsilon", 1e-5))
    shape = [x.shape[axis] if axis in {a % x.dim() for a in axes} else 1 for axis in range(x.dim())]
    scaled = scaled if g.get("gamma") is None else scaled * g["gamma"].reshape(shape)
    return scaled if g.get("beta") is None else scaled + g["beta"].reshape(shape)


def _gelu(g: Given) -> Tensor:
    if g.get("mode", "EXACT") != "EXACT":
        raise BuildError(f"there is no rule for GELU by {g['mode']}")
    return functional.gelu(g["x"])


def _matmul(g: Given) -> Tensor:
    x: Tensor = g["x"]
    y: Tensor = g["y"]
    return (x.mT if g.get("transpose_x") else x) @ (y.mT if g.get("transpose_y") else y)


def _linear(g: Given) -> Tensor:
    return functional.linear(g["x"], g["weight"], g.get("bias"))


def _reshape(g: Given) -> Tensor:
    x: Tensor = g["x"]
    wanted = list(g["shape"])
    return x.reshape([x.shape[axis] if side == 0 else side for axis, side in enumerate(wanted)])


def _split(g: Given) -> Sequence[Tensor]:
    x, axis, sizes = g["x"], g["axis"], g.get("split_sizes")
    return torch.split(x, list(sizes) if sizes is not None else x.shape[axis] // g["num_splits"], axis)


def _slice(g: Given) -> Tensor:
    x: Tensor = g["x"]
    every = [False] * x.dim()
    begins, ends = g["begin"], g["end"]
    strides = g.get("stride") or [1] * x.dim()
    from_start, to_end, dropped = (g.get(key) or every for key in ("begin_mask", "end_mask", "squeeze_mask"))
    if any(stride < 1 for stride in strides):
        raise BuildError(f"there is no rule for slices with strides of {strides}")
    at: list[slice | int] = []
    for axis in range(x.dim()):
        begin = None if from_start[axis] else begins[axis]
        end = None if to_end[axis] else ends[axis]
        at.append(int(begins[axis]) if dropped[axis] else slice(begin, end, strides[axis]))
    return x[tuple(at)]


def _concat(g: Given) -> Tensor:
    if g.get("interleave"):
        raise BuildError("there is no rule for putting tensors together interleaved")
    return torch.cat(list(g["values"]), g["axis"])


def _reduced(how: Callable[..., Tensor]) -> Rule:
    def rule(g: Given) -> Tensor:
        axes = g.get("axes")
        axes = list(range(g["x"].dim())) if axes is None else list(axes)
        return how(g["x"], axes, keepdim=bool(g.get("keep_dims", False)))

    return rule


def _one(of: Callable[[Tensor], Tensor]) -> Rule:
    return lambda g: of(g["x"])


def _two(of: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return lambda g: of(
        *(v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in (g["x"], g["y"]))
    )


def _larger(g: Given) -> Tensor:
    across, along = (g[f"scale_factor_{name}"] for name in ("width", "height"))
    if int(across) != across or int(along) != along:
        raise BuildError(f"there is no rule for scaling an image by {along} and {across}, only for whole numbers")
    x: Tensor = g["x"]
    return x.repeat_interleave(int(along), -2).repeat_interleave(int(across), -1)


RULES: dict[str, Rule] = {
    "add": _two(torch.add),
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cast": _one(lambda x: x),  # the type of what an operation gives is that of its output
    "clip": lambda g: g["x"].clamp(g["alpha"], g["beta"]),
    "concat": _concat,
    "conv": _conv,
    "expand_dims": lambda g: _unsqueezed(g["x"], g["axes"]),
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "leaky_relu": lambda g: functional.leaky_relu(g["x"], g["alpha"]),
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": lambda g: _windows(g, -math.inf).amax(-1),
    "maximum": _two(torch.maximum),
    "minimum": _two(torch.minimum),
    "mul": _two(torch.mul),
    "pow": _two(torch.pow),
    "prelu": lambda g: torch.where(g["x"] > 0, g["x"], g["x"] * _of_channels(g["alpha"], g["x"])),
    "real_div": _two(torch.div),
    "reduce_max": _reduced(torch.amax),
    "reduce_mean": _reduced(torch.mean),
    "reduce_sum": _reduced(torch.sum),
    "relu": _one(torch.relu),
    "reshape": _reshape,
    "rsqrt": lambda g: torch.rsqrt(g["x"] + g.get("epsilon", 1e-12)),
    "sigmoid": _one(torch.sigmoid),
    "sigmoid_hard": lambda g: (g["alpha"] * g["x"] + g["beta"]).clamp(0, 1),
    "silu": _one(functional.silu),
    "slice_by_index": _slice,
    "softmax": lambda g: torch.softmax(g["x"], g.get("axis", -1)),
    "split": _split,
    "sqrt": _one(torch.sqrt),
    "squeeze": lambda g: g["x"].squeeze(tuple(g["axes"])) if g.get("axes") is not None else g["x"].squeeze(),
    "sub": _two(torch.sub),
    "tanh": _one(torch.tanh),
    "thresholded_relu": lambda g: torch.where(g["x"] >= g["alpha"], g["x"], 0.0),
    "transpose": lambda g: g["x"].permute(*g["perm"]),
    "upsample_nearest_neighbor": _larger,
}
"""By the type of an operation. Those without a rule are refused."""


def _unsqueezed(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x
