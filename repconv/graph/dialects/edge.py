"""ExecuTorch's edge dialect: a program in it as ATen, and a program of ATen in it again."""

from __future__ import annotations

import copy
from importlib import import_module

import torch
from torch._export.verifier import Verifier
from torch._ops import OpOverload
from torch.export import ExportedProgram

from ...errors import FusionError, first_line

_aten = torch.ops.aten

_VIEWS = {
    _aten.permute_copy.default: _aten.permute.default, _aten.view_copy.default: _aten.view.default,
    _aten.expand_copy.default: _aten.expand.default, _aten.squeeze_copy.dims: _aten.squeeze.dims,
    _aten.unsqueeze_copy.default: _aten.unsqueeze.default, _aten.slice_copy.Tensor: _aten.slice.Tensor,
    _aten.select_copy.int: _aten.select.int, _aten.t_copy.default: _aten.t.default,
    _aten.transpose_copy.int: _aten.transpose.int, _aten.alias_copy.default: _aten.alias.default,
    _aten.split_with_sizes_copy.default: _aten.split_with_sizes.default,
}  # fmt: skip
"""What the edge dialect copies, and ATen views."""


def is_edge(program: ExportedProgram) -> bool:
    """Whether it is in ExecuTorch's edge dialect."""
    return program.dialect == "EDGE"


def from_edge(program: ExportedProgram) -> ExportedProgram:
    """A program in the edge dialect as one of ATen; it shares its weights, and is not changed."""
    module = copy.copy(program.graph_module)
    module.graph = copy.deepcopy(program.graph)
    for node in module.graph.nodes:
        kind = getattr(node.target, "_op", None)
        if isinstance(kind, OpOverload):
            node.target = _VIEWS.get(kind, kind)
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=[Verifier],
    )


def to_edge(program: ExportedProgram, like: ExportedProgram) -> ExportedProgram:
    """A program of ATen in the edge dialect, whole where `like` is: what that did not decompose stays.

    Raises:
        FusionError: ExecuTorch cannot be imported, or cannot make it.
    """
    kinds = {getattr(node.target, "_op", None) for node in like.graph.nodes}
    try:
        exir = import_module("executorch.exir")
        config = exir.EdgeCompileConfig(_check_ir_validity=False, preserve_ops=[kind for kind in kinds if kind])
        made: ExportedProgram = exir.to_edge(program, compile_config=config).exported_program()
    except Exception as error:  # it raises anything
        raise FusionError(f"ExecuTorch cannot take the fused program: {first_line(error)}") from error
    return made
