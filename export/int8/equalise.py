"""Cross-layer equalisation: scales moved between layers, so that one int8 scale a tensor serves every channel.

ReLU, pooling and sums are positively homogeneous, `f(s x) = s f(x)` for `s > 0`, so a channel may be divided by `s`
where it is written and multiplied where it is read, and the network stays what it was. Tensors joined by such
operations, a residual stream with all its blocks, share their scales (`_streams`). With r1 the largest weight that
writes a channel and r2 the largest that reads it, `s = sqrt(r1 / r2)` makes both `sqrt(r1 r2)` (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, equation 11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from repconv.files.edited import copy_of, put

Array = NDArray[np.float64]

_HOMOGENEOUS = frozenset(
    ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Identity",
     "Add", "Dropout")
)  # fmt: skip
"""Operations that hand a positive scale of a channel on; Add of two tensors of one stream."""

ROUNDS = 40
"""Sweeps over all streams; the ranges of neighbouring streams depend on one another and settle in a few."""


@dataclass
class _Stream:
    """Tensors that share their channels' scales, the convolutions that write them and the layers that read them."""

    channels: int
    writers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)


def equalise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of `model` that computes the same with equalised weights, and the number of streams that were."""
    made = copy_of(model)
    numbers = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in made.graph.initializer}
    streams = list(_streams(made, numbers))
    for _ in range(ROUNDS):
        moved = max((_balance(stream, numbers) for stream in streams), default=0.0)
        if moved < 1e-3:
            break
    for tensor in made.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            put(tensor, numbers[tensor.name].astype(np.float32))
    return made, len(streams)


def _balance(stream: _Stream, numbers: dict[str, Array]) -> float:
    """Scale one stream's channels; returns by how much the largest scale differs from 1, as a logarithm."""
    written = np.max([np.abs(numbers[n.input[1]]).reshape(_outputs(n, numbers), -1).max(1) for n in stream.writers], 0)
    read = np.max([_read_range(n, numbers, stream.channels) for n in stream.readers], 0)
    alive = (written > 0) & (read > 0)
    scale = np.where(alive, np.sqrt(np.divide(written, read, where=alive, out=np.ones_like(written))), 1.0)
    for node in stream.writers:
        numbers[node.input[1]] /= scale.reshape(-1, *(1,) * (numbers[node.input[1]].ndim - 1))
        if len(node.input) > 2 and node.input[2]:
            numbers[node.input[2]] /= scale
    for node in stream.readers:
        weight = numbers[node.input[1]]
        group = _group(node)
        if weight.ndim == 2:
            weight *= scale[None]
            continue
        by_group = weight.reshape(group, -1, *weight.shape[1:])
        by_group *= scale.reshape(group, 1, -1, *(1,) * (weight.ndim - 2))
    return float(np.abs(np.log(scale)).max())


def _outputs(node: onnx.NodeProto, numbers: dict[str, Array]) -> int:
    return int(numbers[node.input[1]].shape[0])


def _read_range(node: onnx.NodeProto, numbers: dict[str, Array], channels: int) -> Array:
    weight = np.abs(numbers[node.input[1]])
    group = _group(node)
    by_group = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    found: Array = by_group.max((1, 3)).reshape(channels)
    return found


def _group(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _streams(model: onnx.ModelProto, numbers: dict[str, Array]) -> Iterator[_Stream]:
    """Groups of tensors written by convolutions and read by convolutions or linear layers alone."""
    graph = model.graph
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    uses = [name for node in graph.node for name in node.input]
    closed = {value.name for value in (*graph.input, *graph.output)}
    writers: list[tuple[str, onnx.NodeProto]] = []
    readers: list[tuple[str, onnx.NodeProto]] = []
    for node in graph.node:
        tensors = [name for name in node.input if name and name not in numbers]
        owned = all(name in numbers and uses.count(name) == 1 for name in node.input[1:] if name)
        if node.op_type == "Conv" and owned:
            readers.append((node.input[0], node))
            writers.append((node.output[0], node))
        elif node.op_type == "Gemm" and owned and _is_linear(node):
            readers.append((node.input[0], node))
            closed.add(node.output[0])
        elif _keeps_channels(node, numbers) and len(tensors) == len([n for n in node.input if n]) - len(_said(node)):
            for name in tensors[1:]:
                parent[root(name)] = root(tensors[0])
            parent[root(node.output[0])] = root(tensors[0])
        else:
            closed.update(node.output)
            closed.update(tensors)
    shut = {root(name) for name in closed}
    found: dict[str, _Stream] = {}
    for name, node in writers:
        stream = found.setdefault(root(name), _Stream(_outputs(node, numbers)))
        stream.writers.append(node)
    for name, node in readers:
        if root(name) in found:
            found[root(name)].readers.append(node)
    for key, stream in found.items():
        fits = {_outputs(n, numbers) for n in stream.writers} == {stream.channels} and all(
            numbers[n.input[1]].shape[1] * _group(n) == stream.channels for n in stream.readers
        )
        if key not in shut and stream.readers and fits:
            yield stream


def _said(node: onnx.NodeProto) -> list[str]:
    """Inputs that say how, not what."""
    return [name for name in node.input[1:] if name] if node.op_type in ("ReduceMean", "Dropout") else []


def _keeps_channels(node: onnx.NodeProto, numbers: Mapping[str, Array]) -> bool:
    """Whether a positive scale of a channel (axis 1) before the operation is the same scale after it."""
    if node.op_type == "Flatten":
        return next((a.i for a in node.attribute if a.name == "axis"), 1) == 1
    if node.op_type != "ReduceMean":
        return node.op_type in _HOMOGENEOUS
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if axes is None and len(node.input) > 1 and node.input[1] in numbers:
        axes = [int(axis) for axis in numbers[node.input[1]]]
    return axes is not None and set(axes) <= {2, 3, -1, -2}


def _is_linear(node: onnx.NodeProto) -> bool:
    """A Gemm of a weight [o, i], as linear layers are exported."""
    known = {a.name: a for a in node.attribute}
    return (
        ("transB" in known and known["transB"].i == 1)
        and ("transA" not in known or known["transA"].i == 0)
        and all(name not in known or known[name].f == 1.0 for name in ("alpha", "beta"))
    )
