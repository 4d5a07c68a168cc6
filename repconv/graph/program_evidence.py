"""Proof that a fused program is the one it was made of: region by region, and end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from ..agreement import Agreement, Comparison, compare_tensors
from ..double import FastGroupedDouble
from ..proving import prove_whole
from ..report import FusionReport, Proof


@dataclass(frozen=True)
class Rewritten:
    """A program's graph before and after fusing, sharing what nothing changed.

    pairs: the names of tensors written anew, and the nodes of `after` that write them. labels: what the report calls
        the nodes of `before`.
    """

    before: fx.GraphModule
    after: fx.GraphModule
    pairs: Mapping[str, fx.Node]
    report: FusionReport
    labels: Mapping[str, str]


def prove_program(
    rewritten: Rewritten, fused: ExportedProgram, original: nn.Module, inputs: Sequence[tuple[Any, ...]]
) -> Proof:
    """How far `fused` is from `original`, each tensor that fusing writes anew and every output.

    Args:
        rewritten: what was done to the program's graph.
        fused: that as a program again.
        original: what the program was made of; it stays as it is, so a fused program proves what came before, too.
        inputs: positional arguments, one call's each; regions are compared on the program's own example inputs.
    """
    example, _ = fused.example_inputs or ((), {})
    regions = Proof(Agreement(program_regions(rewritten, list(example))))
    return regions + prove_whole(original, fused.module(), inputs)


def program_regions(rewritten: Rewritten, inputs: Sequence[object]) -> tuple[Comparison, ...]:
    """One comparison a tensor that fusing writes anew, named as in the report where a convolution makes it.

    The fused graph runs on `inputs`. Then the operations each region stands for run in float64 on the tensors the
    region reads, which is the reference, and in the program's own dtype, which is the unfused program's own error.
    """
    if not rewritten.pairs:
        return ()
    names = {node.name for node in rewritten.after.graph.nodes}
    known = {**{name: name for name in names}, **{name: node.name for name, node in rewritten.pairs.items()}}
    recorder = _Recorder(rewritten.after)
    with torch.no_grad(), FastGroupedDouble():
        recorder.run(*inputs)
        return tuple(
            _compare(rewritten, name, {old: recorder.seen[new] for old, new in known.items() if new in recorder.seen})
            for name in rewritten.pairs
        )


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401  # fx's signature
        """Run one node, and keep what it gives."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.seen[n.name] = result
        return result


def _compare(rewritten: Rewritten, name: str, known: Mapping[str, Tensor]) -> Comparison:
    nodes = {node.name: node for node in rewritten.before.graph.nodes}
    outer = {key: value for key, value in known.items() if key != name}
    wanted = _evaluate(nodes[name], rewritten.before, outer, lambda t: t.double() if t.is_floating_point() else t)
    own = _evaluate(nodes[name], rewritten.before, outer, lambda t: t)
    return replace(
        compare_tensors(wanted, known[name], own), where=rewritten.labels[name], shape=tuple(wanted.shape)
    )  # fmt: skip


def _evaluate(
    node: fx.Node, module: fx.GraphModule, known: Mapping[str, Tensor], cast: Callable[[Tensor], Tensor]
) -> Tensor:
    """What `node` gives of the `known` tensors, each number cast first."""
    values: dict[fx.Node, Any] = {}

    def value(n: fx.Node) -> Any:  # noqa: ANN401  # tensors, and what goes with them
        if n not in values:
            values[n] = _once(n)
        return values[n]

    def _once(n: fx.Node) -> Any:  # noqa: ANN401
        if n.op == "get_attr":
            held: Any = module
            for part in str(n.target).split("."):
                held = getattr(held, part)
            return cast(held.detach())
        if n.name in known:
            return cast(known[n.name])
        function: Any = n.target  # what is left are calls of functions
        result = function(*fx.node.map_arg(n.args, value), **fx.node.map_arg(n.kwargs, value))
        # What reads no tensor, such as torch.eye, makes one of the type it was told.
        return cast(result) if not n.all_input_nodes and isinstance(result, Tensor) else result

    result: Tensor = value(node)
    return result
