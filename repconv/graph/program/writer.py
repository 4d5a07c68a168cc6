"""A plan for a program, written: operations in the places of the nodes they stand for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...algebra.kernels import innermost_first
from ...errors import FusionError
from ..planning.dialect import Dialect
from ..planning.emission import (
    Add,
    Average,
    Convolution,
    Emission,
    Layer,
    Matrix,
    Move,
    Operand,
    Pad,
    Same,
    Scale,
    Shift,
)
from .facts import CONVOLVE, SPREAD

_aten = torch.ops.aten

DIALECT = Dialect(pads_unevenly=False)

_CHANGES = {"permute": _aten.permute.default, "reshape": _aten.reshape.default}


_POOLS = {1: _aten.avg_pool1d.default, 2: _aten.avg_pool2d.default, 3: _aten.avg_pool3d.default}


@dataclass(frozen=True)
class Placed:
    """The node that makes a tensor, and those of the weights of its layers, in order."""

    last: fx.Node
    weights: tuple[fx.Node, ...]


def emit(
    module: fx.GraphModule, nodes: Mapping[str, fx.Node], name: str, written: Emission, origins: Sequence[fx.Node]
) -> Placed:
    """Put what makes `name` in its place. `nodes`: those that make tensors, by name. `origins`: what it was made of.

    What is written belongs to the innermost module around all origins that convolve or multiply, so that quantisers
    which are told by names of modules find it.

    Raises:
        FusionError: a number is not finite in the program's dtype.
    """
    old, value, call = nodes[name], written.bias.value, module.graph.call_function
    like = old.meta["val"]
    made: list[fx.Node] = []
    weights: list[fx.Node] = []

    def read(place: Operand) -> fx.Node:
        return made[place] if isinstance(place, int) else nodes[place]

    def held(kind: str, value: Tensor) -> fx.Node:
        return _held(module, f"{name}_{kind}", value, like)

    def weight(layer: Convolution | Matrix) -> fx.Node:
        weights.append(held("weight", layer.weight))
        return weights[-1]

    def bias(layer: Layer) -> fx.Node | None:
        return held("bias", value) if layer.biased and value is not None else None

    operations = written.settled()
    with module.graph.inserting_before(old):
        for operation in operations:
            match operation:
                case Convolution(source=source):
                    node = _convolution(read(source), operation, weight(operation), bias(operation))
                case Matrix(source=source):
                    arguments = read(source), weight(operation), bias(operation)
                    node = call(_aten.linear.default, arguments)
                case Scale(source=source):
                    node = call(_aten.mul.Tensor, (read(source), held("scale", operation.factors)))
                case Move(source=source, change=(kind, numbers)):
                    node = call(_CHANGES[kind], (read(source), list(numbers)))
                case Pad(source=source, before=before, after=after):
                    node = call(_aten.pad.default, (read(source), innermost_first([*before, *after])))
                case Average(source=source):
                    node = _average(read(source), operation)
                case Add(source=source, other=other):
                    node = call(_aten.add.Tensor, (read(source), read(other)))
                case Shift(source=source, widths=widths) if value is not None:
                    node = call(_aten.add.Tensor, (read(source), held("shift", value.reshape(widths))))
                case Same(source=source):
                    node = read(source)
                case _:
                    raise TypeError(f"{operation} is not written anew")
            made.append(node)
    in_place = not any(isinstance(operation, Move | Pad | Average) for operation in operations)
    for node in made[:-1]:
        node.meta.setdefault("val", like if in_place else _value(node))
    made[-1].meta["val"] = like
    stack = _module_of(origins)
    for node in made:
        if stack and node.op == "call_function":
            node.meta.setdefault("nn_module_stack", stack)
    old.replace_all_uses_with(made[-1])
    return Placed(made[-1], tuple(weights))


def _module_of(nodes: Sequence[fx.Node]) -> dict[str, object]:
    """The modules around all products by weights among `nodes`, or else around all of them, the innermost last."""
    products = [node for node in nodes if node.target in (*CONVOLVE.values(), *SPREAD.values(), _aten.linear.default)]
    stacks = [[*(node.meta.get("nn_module_stack") or {}).items()] for node in products or nodes]
    shared = itertools.takewhile(lambda level: all(entry == level[0] for entry in level), zip(*stacks, strict=False))
    return dict(level[0] for level in shared)


def _value(node: fx.Node) -> Tensor:
    """What a node gives, of no memory."""
    function: Any = node.target
    value: Tensor = function(*fx.node.map_arg(node.args, lambda n: n.meta["val"]))
    return value


def _average(source: fx.Node, layer: Average) -> fx.Node:
    if not layer.pool.size:
        return source.graph.call_function(_aten.mean.dim, (source, list(layer.axes), layer.keeps))
    return source.graph.call_function(_POOLS[len(layer.axes)], (source, list(layer.pool.size), list(layer.pool.stride)))


def _convolution(source: fx.Node, layer: Convolution, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    call, (padding, _) = source.graph.call_function, layer.padding
    if layer.is_transposed:
        crop, more = layer.crop
        return call(
            SPREAD[layer.pixels],
            (source, weight, bias, layer.stride, crop, more, layer.form.geometry.groups, layer.dilation),
        )
    settings = (layer.stride, padding, layer.dilation, layer.form.geometry.groups)
    return call(CONVOLVE[layer.pixels], (source, weight, bias, *settings))


def _held(module: fx.GraphModule, name: str, value: Tensor, like: Tensor) -> fx.Node:
    """A new parameter, cast once.

    Raises:
        FusionError: a number is not finite in the program's dtype.
    """
    cast = value.to(dtype=like.dtype, device=like.device).contiguous()
    if not bool(torch.isfinite(cast).all()):
        raise FusionError(f"{name}: a folded number is not finite in {like.dtype}; the program was left as it is")
    wanted, count = f"fused_{name}", 1
    while hasattr(module, wanted):
        wanted, count = f"fused_{name}_{count}", count + 1
    module.register_parameter(wanted, torch.nn.Parameter(cast))
    node = module.graph.get_attr(wanted)
    node.meta["val"] = like.new_empty(cast.shape)
    return node


def store_once(module: fx.GraphModule, before: Collection[str]) -> None:
    """Have every node read one parameter where several hold the same numbers, those written for this graph.

    before: names of parameters of the original, which stay.
    """
    held: dict[_Identity, str] = {}
    parameters = dict(module.named_parameters())
    written = [name for name in parameters if name not in before]
    alike = {(parameters[name].dtype, parameters[name].shape) for name in written}
    for name in (*(name for name in parameters if name in before), *written):
        if (parameters[name].dtype, parameters[name].shape) in alike:
            held.setdefault(_identity(parameters[name]), name)
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in written:
            node.target = held[_identity(parameters[str(node.target)])]


_Identity = tuple[torch.dtype, torch.device, tuple[int, ...], bytes]


def _identity(tensor: Tensor) -> _Identity:
    """Alike for tensors of the same type, place, shape and bytes."""
    whole = tensor.detach().cpu().contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # a view may keep the stride of an axis of one element
    content = flat.view(torch.uint8).numpy().data
    return tensor.dtype, tensor.device, tuple(tensor.shape), hashlib.sha256(content).digest()
