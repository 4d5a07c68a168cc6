"""Core ATen: the operations that `run_decompositions()` leaves, read as those they were, and written as them again."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

_aten = torch.ops.aten

_CONVOLUTIONS = {
    (1, False): _aten.conv1d.default, (2, False): _aten.conv2d.default, (3, False): _aten.conv3d.default,
    (1, True): _aten.conv_transpose1d.default, (2, True): _aten.conv_transpose2d.input,
    (3, True): _aten.conv_transpose3d.input,
}  # fmt: skip
"""By their number of pixel axes, and whether they are transposed."""

_COMPOSED = (_aten.convolution.default, _aten.addmm.default)

_TURNED = (_aten.t.default, _aten.t_copy.default)
_SWAPPED = (_aten.transpose.int, _aten.transpose_copy.int)
_PERMUTED = (_aten.permute.default, _aten.permute_copy.default)


def compose(module: fx.GraphModule) -> None:
    """Turn `convolution` into convolutions by their axes, and `addmm` with a transposed matrix into `linear`, in place.

    Nodes keep their names and what is known of them.
    """
    for node in module.graph.nodes:
        if node.target is _aten.convolution.default:
            _compose_convolution(node)
        elif node.target is _aten.addmm.default:
            _compose_linear(node)


def _compose_convolution(node: fx.Node) -> None:
    if len(node.args) != 9:
        return
    source, weight, bias, stride, padding, dilation, transposed, more, groups = node.args
    kind = _CONVOLUTIONS.get((node.meta["val"].dim() - 2, bool(transposed)))
    if kind is None:
        return
    node.target = kind
    settings = (stride, padding, more, groups, dilation) if transposed else (stride, padding, dilation, groups)
    node.args = (source, weight, bias, *settings)


def _compose_linear(node: fx.Node) -> None:
    if len(node.args) != 3:
        return
    bias, source, turned = node.args
    value = bias.meta.get("val") if isinstance(bias, fx.Node) else None
    if not isinstance(turned, fx.Node) or not _turns(turned) or not isinstance(value, Tensor):
        return
    if value.shape != node.meta["val"].shape[1:] or any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return
    node.target, node.args, node.kwargs = _aten.linear.default, (source, turned.args[0], bias), {}


def _turns(node: fx.Node) -> bool:
    """Whether it makes the transpose of a matrix."""
    if node.target in _TURNED:
        return True
    given = node.args[1:] if node.target in _SWAPPED else node.args[1] if node.target in _PERMUTED else ()
    axes = [axis % 2 for axis in given if isinstance(axis, int)] if isinstance(given, (list, tuple)) else []
    return axes == [1, 0] or (axes == [0, 1] and node.target in _SWAPPED)


def decomposed_as(fused: ExportedProgram, given: ExportedProgram) -> ExportedProgram:
    """`fused` in the operations of `given` and core ATen, where `given` was decomposed; else itself."""
    kinds = {node.target for node in given.graph.nodes if isinstance(node.target, OpOverload)}
    if kinds.isdisjoint(_COMPOSED):
        return fused
    table = torch.export.default_decompositions()
    for kind in kinds:
        table.pop(kind, None)
    decomposed: ExportedProgram = fused.run_decompositions(table)
    return decomposed
