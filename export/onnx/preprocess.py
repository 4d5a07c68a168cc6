"""Preprocessing in front of a network, inside the artefact: `(pixels / full - mean) / std`.

What is linear folds into the first convolutions: the scale into their weights, the order of channels too. The shift
does not where they pad with zeros: a padded zero stands for the mean of normalised images, but for black of raw ones.
So it is subtracted before, which leaves the padded zeros right, and only convolutions without padding take it into
their bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from repconv.errors import SourceError
from repconv.files.edited import copy_of, inputs_of, put

from ..settings import Preprocessing

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Preprocessed:
    """A model that takes images, and what of the preprocessing went into its weights: `scale`, `order`, `shift`."""

    model: onnx.ModelProto
    folded: tuple[str, ...]


def preprocess(model: onnx.ModelProto, asked: Preprocessing) -> Preprocessed:
    """`model`, of one float32 image input, with preprocessing in front; the input keeps its name.

    Raises:
        SourceError: the model takes another number of channels.
    """
    made = copy_of(model)
    graph = made.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    value = inputs_of(made)[0]
    channels = value.type.tensor_type.shape.dim[1].dim_value
    if channels != len(asked.mean):
        raise SourceError(f"mean and std are of {len(asked.mean)} channels, the network takes {channels}")
    scale, shift, order = scale_and_shift(asked)
    users = [node for node in graph.node if value.name in node.input]
    folded: list[str] = []
    nodes: list[onnx.NodeProto] = []
    current = value.name
    if asked.uint8:
        value.type.tensor_type.elem_type = TensorProto.UINT8
        nodes.append(helper.make_node("Cast", [current], ["pixels"], "preprocess/Cast", to=TensorProto.FLOAT))
        current = "pixels"
    if _takes_folding(users, weights, graph, value.name):
        folded += ["scale", *(["order"] if asked.bgr else [])]
        unpadded = all(_unpadded(node) for node in users)
        for node in users:
            _fold(node, weights, graph, scale, shift if unpadded else None, order)
        if unpadded:
            folded.append("shift")
        else:
            current = _apply("Sub", current, shift, nodes, graph)
    else:
        current = _apply("Sub", current, shift, nodes, graph)
        current = _apply("Mul", current, scale, nodes, graph)
        if asked.bgr:
            graph.initializer.append(numpy_helper.from_array(np.arange(channels)[::-1].copy(), "preprocess.order"))
            inputs = [current, "preprocess.order"]
            nodes.append(helper.make_node("Gather", inputs, ["preprocess.ordered"], "preprocess/Gather", axis=1))
            current = "preprocess.ordered"
    for node in users:
        node.input[:] = [current if name == value.name else name for name in node.input]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    if any(output.name == value.name for output in graph.output):
        raise SourceError("the network hands its input on as an output; preprocessing would change it")
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(inferred, full_check=True)
    return Preprocessed(inferred, tuple(folded))


def scale_and_shift(asked: Preprocessing) -> tuple[Array, Array, slice]:
    """Of channels as the artefact takes them, for `(pixels - shift) * scale`, and the network's order of them."""
    order = slice(None, None, -1) if asked.bgr else slice(None)
    scale: Array = (1 / (np.array(asked.std, np.float64) * asked.full))[order]
    shift: Array = (np.array(asked.mean, np.float64) * asked.full)[order]
    return scale, shift, order


def scaled_weight(weight: Array, scale: Array, order: slice) -> Array:
    """A convolution's weight [o, i, kh, kw] that takes unscaled channels in the artefact's order."""
    found: Array = weight[:, order] * scale[:, None, None]
    return found


def moved_bias(weight: Array, shift: Array) -> Array:
    """What a convolution without padding, of that weight, adds where `shift` is not subtracted before."""
    found: Array = -np.einsum("oikl,i->o", weight, shift)
    return found


def _apply(kind: str, source: str, numbers: Array, nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> str:
    name = f"preprocess.{kind.lower()}"
    graph.initializer.append(numpy_helper.from_array(numbers.astype(np.float32).reshape(1, -1, 1, 1), name))
    nodes.append(helper.make_node(kind, [source, name], [f"{name}.out"], f"preprocess/{kind}"))
    return f"{name}.out"


def _takes_folding(
    users: list[onnx.NodeProto], weights: dict[str, TensorProto], graph: onnx.GraphProto, image: str
) -> bool:
    """Whether all that reads the image are convolutions over all its channels, of weights and biases of their own."""
    uses = [name for node in graph.node for name in node.input]
    return bool(users) and all(
        node.op_type == "Conv"
        and node.input[0] == image
        and all(name in weights and uses.count(name) == 1 for name in node.input[1:] if name)
        and next((a.i for a in node.attribute if a.name == "group"), 1) == 1
        for node in users
    )


def _unpadded(node: onnx.NodeProto) -> bool:
    known = {a.name: a for a in node.attribute}
    if "auto_pad" in known and known["auto_pad"].s not in (b"NOTSET", b"VALID"):
        return False
    return "pads" not in known or not any(known["pads"].ints)


def _fold(
    node: onnx.NodeProto,
    weights: dict[str, TensorProto],
    graph: onnx.GraphProto,
    scale: Array,
    shift: Array | None,
    order: slice,
) -> None:
    tensor = weights[node.input[1]]
    weight = scaled_weight(numpy_helper.to_array(tensor).astype(np.float64), scale, order)
    put(tensor, weight.astype(np.float32))
    if shift is None:
        return
    moved = moved_bias(weight, shift)
    if len(node.input) > 2 and node.input[2]:
        bias = weights[node.input[2]]
        moved += numpy_helper.to_array(bias).astype(np.float64)
        put(bias, moved.astype(np.float32))
        return
    name = f"{tensor.name}.preprocess.bias"
    graph.initializer.append(numpy_helper.from_array(moved.astype(np.float32), name))
    node.input[:] = [node.input[0], node.input[1], name]
