"""`FusePass`: fusing as a pass over graph modules and exported programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils import _pytree as pytree

from ...errors import FusionError, first_line
from ...proof.report import FusionReport
from ..dialects.edge import from_edge, is_edge, to_edge
from ..program.fuse import dynamic_shapes_of, fuse_program

_EXECUTORCH = "executorch.exir.pass_base"


@dataclass(frozen=True)
class ProgramResult:
    """What a pass makes of an exported program: `modified` is False where it is the one given."""

    exported_program: ExportedProgram
    modified: bool


class FusePass(PassBase):
    """Fuses a graph as `fuse_program` does, by the conventions of `torch.fx.passes.infra` and of ExecuTorch.

    A graph module that holds its weights, such as `program.module()`, gives a `PassResult` with a new graph module, in
    a `PassManager` or alone. An exported program gives a `ProgramResult`; as a pass over programs it is one of
    `transform_passes` of ExecuTorch's `to_edge_transform_and_lower`, and of `EdgeProgramManager.transform`. What is
    given is not changed, and what has nothing to gain is returned itself. Programs that were decomposed to core ATen,
    or are in ExecuTorch's edge dialect, stay so.

    Attributes:
        reports: a `FusionReport` of each run, in order: what was done, what stays and why, and the proof.
    """

    def __init__(self, inputs: Sequence[tuple[Any, ...]] | None = None, *, prove: bool = True) -> None:
        """A pass.

        ExecuTorch is imported before it is made, or does not know that it takes programs.

        Args:
            inputs: to compare on, one call's positional arguments each, the first also what a graph module is traced
                with; None: a program's own example inputs, and random numbers of the sizes a graph module names.
            prove: False leaves the comparing out, and the reports say so.
        """
        self.inputs = None if inputs is None else [tuple(call) for call in inputs]
        self.prove = prove
        self.reports: list[FusionReport] = []
        known = sys.modules.get(_EXECUTORCH)
        if known is not None and hasattr(known, "ExportedProgramPassBase"):
            known.ExportedProgramPassBase.register(type(self))

    @overload
    def __call__(self, graph_module: fx.GraphModule) -> PassResult: ...
    @overload
    def __call__(self, graph_module: ExportedProgram) -> ProgramResult: ...

    def __call__(self, graph_module: fx.GraphModule | ExportedProgram) -> PassResult | ProgramResult:
        """The fused graph, and whether it is another.

        Raises:
            FusionError: the graph takes its weights as inputs, names no sizes, or cannot be traced again.
            VerificationError: the result differs by more than rounding; `error.report` has every comparison. A pass
                manager raises an exception of its own, whose `__cause__` it is.
        """
        if isinstance(graph_module, ExportedProgram):
            return self._program(graph_module)
        if isinstance(graph_module, fx.GraphModule):
            return self.call(graph_module)
        raise FusionError(
            f"FusePass takes a graph module or an exported program, got a {type(graph_module).__name__}; "
            "repconv.fuse takes modules, and repconv.graph.OnnxFusePass models of onnx_ir"
        )

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """What `__call__` does with a graph module.

        Raises:
            FusionError, VerificationError: as there.
        """
        if _takes_weights(graph_module):
            raise FusionError(
                "the graph of an exported program takes its weights as inputs, so alone it has nothing to fold; give "
                "FusePass the program, or what program.module() returns; for ExecuTorch, import executorch before "
                "FusePass is made"
            )
        program = _traced(graph_module, self.inputs[0] if self.inputs else None)
        result = self._program(program)
        return PassResult(result.exported_program.module() if result.modified else graph_module, result.modified)

    def _program(self, given: ExportedProgram) -> ProgramResult:
        program = from_edge(given) if is_edge(given) else given
        fused, report = fuse_program(program, self.inputs, prove=self.prove)
        self.reports.append(report)
        if fused is program:
            return ProgramResult(given, modified=False)
        return ProgramResult(to_edge(fused, given) if is_edge(given) else fused, modified=True)


def _takes_weights(module: fx.GraphModule) -> bool:
    """Whether it is the graph of an exported program, which holds no tensor, as its names tell."""
    graph = module.graph
    names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    holds = any(node.op in ("get_attr", "call_module") for node in graph.nodes)
    return type(graph._codegen) is fx.graph.CodeGen and not holds and any(n[:2] in ("p_", "b_", "c_") for n in names)  # noqa: SLF001


def _traced(module: fx.GraphModule, example: tuple[Any, ...] | None) -> ExportedProgram:
    """A graph module as a program, whose open sizes stay open.

    Raises:
        FusionError: no sizes are known, or torch.export cannot follow it.
    """
    arguments, options = (example, {}) if example is not None else _drawn(module)
    leaves = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
    is_open = any(not isinstance(side, int) for leaf in leaves if isinstance(leaf, Tensor) for side in leaf.shape)
    sizes = dynamic_shapes_of(module, arguments, options) if is_open else None
    try:
        return torch.export.export(module, arguments, options, dynamic_shapes=sizes, strict=False)
    except Exception as error:  # it runs the module, which may raise anything
        raise FusionError(f"torch.export cannot follow the graph module: {first_line(error)}") from error


def _drawn(module: fx.GraphModule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random arguments of the sizes that the graph names, in its own structure.

    Raises:
        FusionError: it names none, or takes something else than floating-point numbers.
    """
    drawn = []
    for node in module.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            said = f"is a {value.dtype} tensor" if isinstance(value, Tensor) else "names no size"
            raise FusionError(f"the graph module's input {node.name} {said}; give an example: FusePass(inputs=[(x,)])")
        shape = [side if isinstance(side, int) else side.node.hint for side in value.shape]
        if None in shape:
            raise FusionError(
                f"the graph module's input {node.name} has an open size of which no example is known; give one: "
                "FusePass(inputs=[(x,)])"
            )
        drawn.append(torch.randn(shape, dtype=torch.float32).to(value.dtype).to(value.device))
    info = getattr(module.graph._codegen, "pytree_info", None)  # noqa: SLF001  # torch.export's own order
    if info is None:
        return tuple(drawn), {}
    arguments, options = pytree.tree_unflatten(drawn, info.in_spec)
    return arguments, options
