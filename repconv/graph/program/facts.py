"""What is known of an exported program's tensors before anything is fused: layouts and sizes, and node kinds."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ...algebra.geometry import with_flat
from ...errors import GeometryError
from ..core.dims import Dims, nominal, symbol, told
from ..core.reasons import Kind, StaysError
from ..maps.canvas import Canvas
from ..maps.carried import Carried, Reader
from ..maps.layout import MOST_PIXEL_AXES, Layout, with_channels_at
from .constants import ProgramConstants

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

VIEWS = ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
"""Operations that differ in where in memory their result lies alone."""

COPYING: dict[str, OpOverload] = {
    **dict.fromkeys(VIEWS, torch.ops.aten.reshape.default),
    "aten.view_as.default": torch.ops.aten.reshape_as.default,
}
"""What does the same as a view, and copies where it must."""

SPLITS = (
    "aten.split_with_sizes.default", "aten.split.Tensor", "aten.split.sizes", "aten.chunk.default", "aten.unbind.int",
)  # fmt: skip
"""Operations that give a tuple of slices."""


class ProgramFacts(ProgramConstants):
    """Constants, types and sizes of the tensors of one graph module; arguments as there."""

    def __init__(self, module: fx.GraphModule, exact: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(module, exact)
        self.labels = _labels(module.graph)
        """What reports call a node: the module it comes from and the operation."""
        self._carried: dict[str, Carried] = {}
        self.canvases: dict[str, Canvas] = {}
        """Tensors put together of a window onto another and constants."""
        self._channel_axes = _channel_axes(module.graph)
        self._readers = _readers(module.graph)

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
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags


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
        elif kind in ("aten.linear.default", "aten.matmul.default", "aten.mm.default"):
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
        elif kind in VIEWS:
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


def argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """What a call is given at a position or by a name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
