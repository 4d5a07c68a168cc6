"""The regions of a program that fusing wrote anew, each proven as an affine map of the tensors it reads."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ....errors import FusionError
from ....proof.affine import Sources, Written, affine_agreement, largest_on_the_way, of_whole, reach_of, square, whole
from ....proof.agreement import Comparison
from ....proof.float64 import FastGroupedDouble
from ...maps.extent import fewer_pixels
from ..constants import fills
from ..facts import CONVOLVE, PADDED, SPREAD
from .repeating import BROADCASTING, repeats, shape_of

_aten = torch.ops.aten
Constants = Callable[[str], Tensor]
"""Gives the parameter or buffer of a name."""

_WEIGHTED = frozenset((
    *map(str, (*CONVOLVE.values(), *SPREAD.values())), "aten.linear.default", "aten.mul.Tensor",
))  # fmt: skip

_AVERAGES = frozenset((
    "aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default", "aten.mean.dim",
))  # fmt: skip
"""Operations that fusing writes for a pool."""

_REARRANGED = frozenset(("aten.permute.default", "aten.reshape.default"))

_OF_IMAGES = frozenset((
    "aten.add.Tensor", "aten.avg_pool2d.default", "aten.avg_pool3d.default", "aten.batch_norm.default",
    "aten.cat.default", "aten.clone.default", "aten.constant_pad_nd.default",
    *map(str, (*CONVOLVE.values(), *SPREAD.values())), *PADDED,
    "aten.div.Tensor", "aten.mul.Tensor", "aten.neg.default", "aten.pad.default", "aten.slice.Tensor",
    "aten.sub.Tensor", "aten._native_batch_norm_legit_no_training.default", str(operator.getitem),
))  # fmt: skip
"""Operations that give a row for each image, channels second."""


def prove_region(
    old: fx.Node,
    new: fx.Node,
    constants: tuple[Constants, Constants],
    names: tuple[Mapping[fx.Node, str], Mapping[fx.Node, str]],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> Comparison:
    """`new` against `old`, of the tensors that both graphs have.

    Args:
        old: of the graph before.
        new: of the graph after.
        constants: the parameters and buffers of each graph.
        names: of each graph, the nodes at which a region ends, by a name that both share.
        shapes: of those tensors, as far as they are known.
        where: a label for the result.

    Raises:
        FusionError: a size is not known, or an operation is none that fusing writes.
    """
    alias = names[1].get(new)  # where nothing is left to compute, the tensor is one that was there
    before, after = _inside(old, names[0]), [] if alias else _inside(new, names[1])
    known = [alias] if alias else []
    read = list(dict.fromkeys([*_read(before, names[0]), *_read(after, names[1]), *known]))
    missing = [name for name in read if name not in shapes]
    if missing:
        raise FusionError(f"the size of {missing[0]}, which it reads, is not known")
    stored = [constants[1](str(n.target)) for n in after if n.op == "get_attr"]
    dtype = next((t.dtype for t in stored if t.is_floating_point()), torch.float64)

    def reference(sources: Sources) -> Tensor:
        return _evaluate(before, old, names[0], constants[0], sources)

    def value(sources: Sources) -> Tensor:
        if alias:
            return sources[alias]
        return _evaluate(after, new, names[1], constants[1], sources)

    def power(sources: Sources) -> Tensor:
        if alias:
            return torch.zeros_like(sources[alias])  # no number is stored
        return _power(after, new, names[1], constants[1], sources, dtype)

    taps = max([1, *(math.prod(t.shape[2:]) for t in stored if t.dim() > 2)])
    windows = [(shape_of(n.args[1]) or ())[2:] for n in (*before, *after) if "aten.conv" in str(n.target)]
    right, written = largest_on_the_way(reference), Written(value, power, taps, reach=reach_of(windows))
    sized: Mapping[str, tuple[int, ...]] = {name: shapes[name] for name in read}
    if _keep_axes(before, names[0]) and _keep_axes(after, names[1]):
        rank = min((len(shape) for shape in sized.values()), default=0)
        maps = [repeats(nodes, ends, rank) for nodes, ends in ((before, names[0]), (after, names[1]))]
        sized = fewer_pixels(sized, maps)
        with FastGroupedDouble():
            return affine_agreement(right, written, sized, dtype, where)
    sized = {name: (1, *shape) for name, shape in sized.items()}
    with FastGroupedDouble():
        return affine_agreement(of_whole(right), whole(written), sized, dtype, where)


def _keep_axes(nodes: list[fx.Node], ends: Mapping[fx.Node, str]) -> bool:
    """True for operations of [n, c, ...], for any n, and of constants that broadcast against that."""
    computed = set(ends)
    for node in nodes:
        if computed.isdisjoint(node.all_input_nodes):
            continue
        computed.add(node)
        kind, value = str(node.target), node.meta.get("val")
        flat = not isinstance(value, Tensor) or value.dim() == 2
        if kind not in _OF_IMAGES and not (kind == "aten.linear.default" and flat):
            return False
        if kind in BROADCASTING and not all(n in computed or _is_row(n, value) for n in node.all_input_nodes):
            return False
        if kind == "aten.cat.default" and not computed.issuperset(node.all_input_nodes):
            return False
    return True


def _is_row(node: fx.Node, output: object) -> bool:
    """True for a constant of one image, or of fewer axes than what it is added to."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(output, Tensor):
        return True
    return value.dim() < output.dim() or value.shape[0] == 1


def _inside(node: fx.Node, ends: Mapping[fx.Node, str]) -> list[fx.Node]:
    """`node` and what it is made of, up to the ends, each after those it reads."""
    found: dict[fx.Node, None] = {}
    pending = [(node, False)]
    while pending:
        this, ready = pending.pop()
        if this in found:
            continue
        if ready or this.op == "get_attr":
            found[this] = None
            continue
        pending.append((this, True))
        pending += [(n, False) for n in this.all_input_nodes if n not in ends and n not in found]
    return list(found)


def _read(nodes: list[fx.Node], ends: Mapping[fx.Node, str]) -> list[str]:
    return [ends[n] for node in nodes for n in node.all_input_nodes if n in ends]


def _evaluate(
    nodes: list[fx.Node], output: fx.Node, ends: Mapping[fx.Node, str], constants: Constants, sources: Sources
) -> Tensor:
    """What `output` is in float64, whatever types the program casts to on the way."""
    values: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:  # noqa: ANN401  # tensors, and tuples of them
        return sources[ends[node]] if node in ends and node not in values else values[node]

    for node in nodes:
        if node.op == "get_attr":
            held = constants(str(node.target))
            values[node] = held.double().cpu() if held.is_floating_point() else held.cpu()
            continue
        if node.op != "call_function":
            raise FusionError(f"it reads {node.name}, which is no tensor that both programs have")
        arguments, options = (_widened(fx.node.map_arg(a, value)) for a in (node.args, node.kwargs))
        found = node.target(*arguments, **options)  # type: ignore[operator]  # a function, as fx has it
        values[node] = _as_made(found, node)
    result: Tensor = values[output]
    return result


def _as_made(found: Any, node: fx.Node) -> Any:  # noqa: ANN401  # whatever an operation gives
    """What a node gave, in float64; a number that it fills a tensor with counts as the program makes it."""
    if not isinstance(found, Tensor) or not found.is_floating_point():
        return found
    told = node.meta.get("val")
    return (found.to(told.dtype) if fills(node) and isinstance(told, Tensor) else found).double()


def _widened(argument: Any) -> Any:  # noqa: ANN401  # whatever an operation takes
    """Arguments with float64 for any other floating-point type, on the CPU."""
    if isinstance(argument, torch.dtype):
        return torch.float64 if argument.is_floating_point else argument
    if isinstance(argument, torch.device):
        return torch.device("cpu")
    if isinstance(argument, dict):
        return {key: _widened(value) for key, value in argument.items()}
    if isinstance(argument, list | tuple):
        return type(argument)([_widened(value) for value in argument])
    return argument


def _power(
    nodes: list[fx.Node],
    output: fx.Node,
    ends: Mapping[fx.Node, str],
    constants: Constants,
    sources: Sources,
    dtype: torch.dtype,
) -> Tensor:
    """The sum of squared weights that apply to the ones of `sources`; see `Written.power`."""
    values: dict[fx.Node, Tensor] = {}
    unweighted = set(ends)

    def read(node: Any) -> Tensor:  # noqa: ANN401  # an argument of fx
        return sources[ends[node]] if node in ends else values[node]

    def added(node: Any) -> Tensor:  # noqa: ANN401
        found = read(node)
        return torch.zeros_like(found) if node in unweighted or node.op == "get_attr" else found

    for node in nodes:
        kind = str(node.target)
        if node.op == "get_attr":
            values[node] = constants(kind).double().cpu()
        elif kind in _WEIGHTED:
            weight = square(read(node.args[1]), dtype)
            rest = node.args[3:] if "conv" in kind else ()
            bias = (None,) if kind != "aten.mul.Tensor" else ()
            values[node] = node.target(read(node.args[0]), weight, *bias, *rest)  # type: ignore[operator]
        elif kind in _REARRANGED:
            values[node] = node.target(read(node.args[0]), node.args[1])  # type: ignore[operator]
            if node.args[0] in unweighted:
                unweighted.add(node)
        elif kind in _AVERAGES:
            # The mean of N numbers weighs each by 1/N: N times the square of that is another 1/N.
            given = read(node.args[0])
            mean = node.target(given, *node.args[1:])  # type: ignore[operator]  # a function, as fx has it
            numbers = [int(str(number)) for number in node.args[1]]  # type: ignore[union-attr]  # a list
            values[node] = mean / math.prod(numbers if "pool" in kind else [given.shape[axis] for axis in numbers])
            if node.args[0] in unweighted:
                unweighted.add(node)
        elif kind == "aten.pad.default":
            values[node] = _aten.pad.default(read(node.args[0]), *node.args[1:])
        elif kind == "aten.add.Tensor":
            values[node] = operator.add(*map(added, node.args))
        else:
            raise FusionError(f"it is written with {kind}, of which no rounding is known")
    return added(output)
