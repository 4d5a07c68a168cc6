"""What is known of an exported program's tensors before anything is fused: constants and sizes, and node kinds."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from ...algebra.geometry import with_flat
from ...errors import GeometryError
from ...limits import LARGEST_CONSTANT
from ..core.dims import Dims, nominal, symbol, told
from ..core.ordering import dependencies_first
from ..core.reasons import Kind, StaysError
from ..maps.canvas import Canvas
from ..maps.carried import Carried, Reader
from ..maps.layout import MOST_PIXEL_AXES, Layout, with_channels_at

_aten = torch.ops.aten

CONVOLVE = {1: _aten.conv1d.default, 2: _aten.conv2d.default, 3: _aten.conv3d.default}
"""Convolutions by their number of pixel axes."""

PADDED = tuple(f"aten.conv{axes}d.padding" for axes in CONVOLVE)
"""The same with their padding in words."""

SPREAD = {
    1: _aten.conv_transpose1d.default, 2: _aten.conv_transpose2d.input, 3: _aten.conv_transpose3d.input,
}  # fmt: skip
"""Transposed convolutions by their number of pixel axes."""

FUNCTIONAL_NORM = "aten._native_batch_norm_legit_no_training.default"

NORMS = ("aten.batch_norm.default", FUNCTIONAL_NORM)
"""Batch normalisation as exported, and after functionalisation."""

BY_BATCH_NORMS = (
    "aten._native_batch_norm_legit.no_stats", "aten._native_batch_norm_legit.default",
    "aten._native_batch_norm_legit_functional.default",
)  # fmt: skip
"""Batch normalisation by the statistics of each batch."""

SPLITS = (
    "aten.split_with_sizes.default", "aten.split.Tensor", "aten.split.sizes", "aten.chunk.default", "aten.unbind.int",
)  # fmt: skip
"""Operations that give a tuple of slices."""

_SMOOTH = frozenset((
    "abs", "add", "alias", "cat", "clone", "contiguous", "conv1d", "conv2d", "conv3d", "detach", "div", "exp",
    "expand", "linear", "log", "matmul", "mean", "mm", "mul", "neg", "pad", "permute", "pow", "reciprocal", "reshape",
    "rsqrt", "chunk", "einsum", "select", "sigmoid", "slice", "softmax", "sqrt", "squeeze", "stack", "sub", "sum",
    "tanh", "to", "_to_copy", "split", "split_with_sizes", "transpose", "unbind", "unsqueeze", "view", "batch_norm",
    "_softmax", "_unsafe_view",
))  # fmt: skip
"""Operations that give nearly the same of nearly the same numbers: no steps, such as those of floor."""


class ProgramFacts:
    """Constants, types and sizes of the tensors of one graph module.

    A node is constant if nothing it depends on is an input of the program and running it again gives the same. `exact`
    has more precise values of some parameters, by their names in `module`.
    """

    def __init__(self, module: fx.GraphModule, exact: Mapping[str, Tensor] | None = None) -> None:
        self.module = module
        self._exact = exact or {}
        self.nodes: dict[str, fx.Node] = {node.name: node for node in module.graph.nodes}
        self.labels = _labels(module.graph)
        """What reports call a node: the module it comes from and the operation."""
        self._constants: dict[fx.Node, Any] = {}
        self._carried: dict[str, Carried] = {}
        self.canvases: dict[str, Canvas] = {}
        """Tensors put together of a window onto another and constants."""
        self._channel_axes = _channel_axes(module.graph)
        self._readers = _readers(module.graph)
        self._widened: dict[fx.Node, Any] = {}

    def constant(self, node: object) -> Tensor | None:
        """The value of a constant node, None if it is none.

        What the program stores comes as it stands. What it computes of that comes in float64: in the program's own type
        it would be rounded at every step, and is to be rounded once, when it is written.
        """
        if not isinstance(node, fx.Node) or not isinstance(self._value(node), Tensor):
            return None
        for each in dependencies_first(node, lambda n: [m for m in n.all_input_nodes if m not in self._widened]):
            if each not in self._widened:
                self._widened[each] = self._run(each, self._widened) if _is_smooth(each) else self._value(each)
        found: Tensor = self._widened[node]
        return found

    def is_constant(self, node: fx.Node) -> bool:
        """True for a node whose value, one tensor or several, is the same in every run."""
        return self._value(node) is not None

    def _value(self, node: fx.Node) -> object:
        """What a constant node gives; None if it is none."""
        for each in dependencies_first(node, lambda n: [m for m in n.all_input_nodes if m not in self._constants]):
            if each not in self._constants:
                self._constants[each] = self._evaluate(each)
        return self._constants[node]

    def _evaluate(self, node: fx.Node) -> object:
        """Run a node whose inputs have been looked at; None if one is not constant, or running it is out of bounds."""
        if node.op == "get_attr":
            if str(node.target) in self._exact:
                return self._exact[str(node.target)]
            value: object = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value.detach() if isinstance(value, Tensor) else None
        if node.op != "call_function" or any(self._constants[n] is None for n in node.all_input_nodes):
            return None
        if not _repeats(node.target) or not _is_small(node.meta.get("val")):
            return None
        return self._run(node, self._constants)

    def _run(self, node: fx.Node, known: Mapping[fx.Node, Any]) -> object:
        """What a node gives of `known` values, which are float64 if they are those that are `_widened`."""
        arguments: Any = fx.node.map_arg(node.args, known.__getitem__)
        options: Any = fx.node.map_arg(node.kwargs, known.__getitem__)
        if known is self._widened:
            arguments, options = torch.utils._pytree.tree_map(_in_float64, (arguments, options))  # noqa: SLF001
        function: Any = node.target
        with torch.no_grad():
            return _detached(function(*arguments, **options))

    def size(self, node: fx.Node) -> tuple[object, ...]:
        """The shape, open sides as text; the empty tuple if this is no tensor."""
        value = node.meta.get("val")
        return tuple(d if isinstance(d, int) else str(d) for d in value.shape) if isinstance(value, Tensor) else ()

    def tensor(self, node: object) -> Carried:
        """A tensor that is computed, as convolutions see it.

        Raises:
            StaysError: it has no layout.
        """
        if not isinstance(node, fx.Node):
            raise StaysError
        if node.name not in self._carried:
            size = self.size(node)
            axis = self._channel_axes.get(node, 1)
            value = node.meta.get("val")
            if self.is_constant(node) or not isinstance(value, Tensor) or not value.is_floating_point():
                raise StaysError
            if len(size) < 2 or not isinstance(size[axis], int):
                raise StaysError(Kind.NO_CHANNELS(name=self.labels[node.name]))
            try:
                self.place(node, with_channels_at(axis, int(str(size[axis])), len(size)))
            except GeometryError:
                raise StaysError(Kind.NO_CHANNELS(name=self.labels[node.name])) from None
        return self._carried[node.name]

    def place(self, node: fx.Node, layout: Layout, inherited: Dims = (1, 1)) -> None:
        """Note a node's layout; `inherited` are sides which several share an axis of it.

        Raises:
            StaysError: its reader does not take that layout, so it is better a tensor of its own, as it stands.
        """
        dims = [inherited[0], layout.channels, *with_flat(inherited[2:], MOST_PIXEL_AXES, 1)]
        for side, axis in zip(self.size(node), layout.axes, strict=True):
            if len(axis) == 1 and axis[0].kind != "channels":
                place = 0 if axis[0].kind == "batch" else 2 + axis[0].number
                dims[place] = side if isinstance(side, int) else symbol(str(side))
        tensor = Carried(node.name, layout, told(dims))
        if not tensor.suits(self._readers.get(node)):
            raise StaysError(Kind.PIXELS(does="it makes channels, images or pixels of one another"))
        self._carried[node.name] = tensor

    @property
    def placed(self) -> Mapping[str, Carried]:
        """The tensors whose layout was asked for, by name."""
        return self._carried

    def nominal(self, node: fx.Node) -> tuple[int, ...]:
        """Channels and sides, `NOMINAL` where open."""
        return nominal(self.tensor(node).dims)


def _is_smooth(node: fx.Node) -> bool:
    """True for an operation that gives floating-point numbers, without steps."""
    value = node.meta.get("val")
    name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
    found = value if isinstance(value, (tuple, list)) else (value,)
    floats = all(isinstance(each, Tensor) and each.is_floating_point() for each in found)
    return floats and (name in _SMOOTH or node.target is operator.getitem)


def _in_float64(argument: object) -> object:
    """A floating-point tensor in float64, and that type for any such type that is asked for."""
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    return torch.float64 if isinstance(argument, torch.dtype) and argument.is_floating_point else argument


def _repeats(target: object) -> bool:
    """True for an operation that gives the same each time and changes nothing."""
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable  # noqa: SLF001


def _is_small(value: object) -> bool:
    """True if what a node gives, known by its type alone, is of fixed size and no larger than `LARGEST_CONSTANT`."""
    if isinstance(value, Tensor):
        sides = [d if isinstance(d, int) else LARGEST_CONSTANT + 1 for d in value.shape]
        return prod(sides) <= LARGEST_CONSTANT
    return value is None or (isinstance(value, Sequence) and all(_is_small(each) for each in value))


def _detached(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach()
    return tuple(map(_detached, value)) if isinstance(value, (tuple, list)) else value


def kind_of(node: fx.Node) -> str:
    """The operation; of one that gives several tensors, that of the node which takes one of them."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        inner = str(node.args[0].target)
        first = inner in (FUNCTIONAL_NORM, *BY_BATCH_NORMS) and node.args[1] == 0
        return inner if inner in SPLITS or first else ""
    return "" if gives_several(node) else str(node.target)


def gives_several(node: fx.Node) -> bool:
    """True for a node of several results, each of which another node takes."""
    return str(node.target) in (FUNCTIONAL_NORM, *BY_BATCH_NORMS, *SPLITS)


def is_pointwise(node: fx.Node) -> bool:
    """True for an operation on each number by itself."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags  # noqa: SLF001


def _channel_axes(graph: fx.Graph) -> dict[fx.Node, int]:
    """Which axis of a tensor its readers take for the channels, where they say; the first of them is believed."""
    found: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        value, kind = node.meta.get("val"), str(node.target)
        sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if node.op != "call_function" or not sources:
            continue
        rank, first = sources[0].meta["val"].dim(), sources[0]
        known = found.get(node)
        if kind.startswith(("aten.conv", "aten.batch_norm", FUNCTIONAL_NORM)):
            found[first] = 1
        elif kind == "aten.linear.default":
            found[first] = rank - 1
        elif known is None or not isinstance(value, Tensor):
            continue
        elif kind == "aten.permute.default":
            found[first] = node.args[1][known] % rank
        elif kind == "aten.transpose.int":
            axes = [axis % rank for axis in node.args[1:3]]
            found[first] = {axes[0]: axes[1], axes[1]: axes[0]}.get(known, known)
        elif is_pointwise(node):
            found.update({n: known for n in sources if n.meta["val"].dim() == value.dim()})
        elif kind in ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"):
            last = known == value.dim() - 1 and value.shape[-1] == first.meta["val"].shape[-1]
            found[first] = rank - 1 if last else 1
    return found


def _readers(graph: fx.Graph) -> dict[fx.Node, Reader]:
    """The operation that reads a tensor, by way of operations on each number too, and takes it in some layouts only."""
    found: dict[fx.Node, Reader] = {}
    for node in reversed(graph.nodes):
        kind = str(node.target)
        if kind.startswith(("aten.conv", "aten.avg_pool")):
            found[node.all_input_nodes[0]] = "convolution"
        elif kind.startswith(("aten.batch_norm", FUNCTIONAL_NORM)):
            found[node.all_input_nodes[0]] = found.get(node, "norm")
        elif kind == "aten.linear.default":
            found[node.all_input_nodes[0]] = "matrix"
        elif node in found and is_pointwise(node):
            found.update(dict.fromkeys(node.all_input_nodes, found[node]))
    return found


def _labels(graph: fx.Graph) -> dict[str, str]:
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]).partition("@")[0].removeprefix("L['self'].") if stack else ""
        operation = kind_of(node) or str(node.target)
        if operation in (FUNCTIONAL_NORM, *BY_BATCH_NORMS):
            operation = NORMS[0]
        wanted = f"{path}/{operation.split('.')[1]}" if path and operation.startswith("aten.") else node.name
        name, count = wanted, 1
        while name in taken:
            name, count = f"{wanted}_{count}", count + 1
        taken.add(name)
        labels[node.name] = name
    return labels
