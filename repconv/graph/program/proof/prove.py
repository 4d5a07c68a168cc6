"""Proof that a fused program is the one it was made of: region by region, and end to end."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from ....progress import counted
from ....proof.affine import different, same_numbers
from ....proof.agreement import Agreement, Comparison
from ....proof.end_to_end import prove_whole
from ....proof.leaves import OfTensors, of_tensors
from ....proof.report import FusionReport, Proof
from ..facts import COPYING
from .regions import Constants, prove_region


@dataclass(frozen=True)
class Rewritten:
    """A program's graph before and after fusing, sharing what nothing changed.

    pairs: the names of tensors written anew, and the nodes of `after` that write them. labels: what the report calls
        the nodes of `before`. exact: of parameters of `before` that were rounded when they were made, by name, the
        float64 numbers they were made of, which what is written was made of, too.
    """

    before: fx.GraphModule
    after: fx.GraphModule
    pairs: Mapping[str, fx.Node]
    report: FusionReport
    labels: Mapping[str, str]
    exact: Mapping[str, Tensor] = field(default_factory=dict)


def prove_program(
    rewritten: Rewritten, fused: ExportedProgram, original: nn.Module, inputs: Sequence[tuple[Any, ...]]
) -> Proof:
    """How far `fused` is from `original`, each tensor that fusing writes anew and every output.

    Args:
        rewritten: what was done to the program's graph.
        fused: that as a program again.
        original: what the program was made of; it stays as it is, so a fused program proves what came before, too.
        inputs: positional arguments of `original`, one call's each; regions are compared on the program's own
            example inputs.
    """
    example = torch.utils._pytree.tree_leaves(fused.example_inputs or ())  # noqa: SLF001  # torch.export's own order
    regions = Proof(Agreement(program_regions(rewritten, example)))
    made = of_tensors(fused) if isinstance(original, OfTensors) else fused.module()
    return regions + prove_whole(original, made, inputs, proven=regions.agreement.passed)


def program_regions(rewritten: Rewritten, inputs: Sequence[object]) -> tuple[Comparison, ...]:
    """One comparison a tensor that fusing writes anew, named as in the report where a convolution makes it.

    The fused graph runs on `inputs`, which tells the sizes of the tensors that regions read.

    Raises:
        FusionError: a region cannot be evaluated.
    """
    if not rewritten.pairs:
        return ()
    recorder = _Recorder(rewritten.after)
    with torch.no_grad():
        recorder.run(*inputs)
    old = {node.name: node for node in rewritten.before.graph.nodes}
    new = {node.name: node for node in rewritten.after.graph.nodes}
    computed = _computed(rewritten.before) & _computed(rewritten.after)
    shared = {name: (old[name], new[name]) for name in old if name in new and name in computed}
    shared |= {name: (old[name], node) for name, node in rewritten.pairs.items()}
    shapes = {name: recorder.shapes[node.name] for name, (_, node) in shared.items() if node.name in recorder.shapes}
    found = list(_altered(rewritten, old, new))
    # Of several tensors that one node writes, the first is computed and the others are what it is.
    order = {name: place for place, name in enumerate(old)}
    first = {shared[name][1]: name for name in sorted(shared, key=order.__getitem__, reverse=True)}
    for name in counted(rewritten.pairs, "regions proved:"):
        is_first = first[shared[name][1]] == name
        others = [
            nodes
            for n, nodes in shared.items()
            if n != name and n in shapes and not (is_first and first[nodes[1]] == name)
        ]
        before, after = ({nodes[side]: first[nodes[1]] for nodes in others} for side in (0, 1))
        found.append(
            prove_region(
                *shared[name],
                (_held(rewritten.before, rewritten.exact), _held(rewritten.after)),
                (before, after),
                shapes,
                rewritten.labels[name],
            )
        )
    return tuple(found)


def _operation(node: fx.Node) -> object:
    """What a node does."""
    return COPYING.get(str(node.target), node.target)


def _altered(rewritten: Rewritten, old: Mapping[str, fx.Node], new: Mapping[str, fx.Node]) -> Iterator[Comparison]:
    """Nodes outside the regions that are not the same operation of the same tensors and numbers as before.

    Where there is none, what is proven of each region carries over to the outputs, whatever comes between.
    """
    now = {name: node.name for name, node in rewritten.pairs.items()}

    def renamed(node: fx.Node) -> str:
        return now.get(node.name, node.name)

    modules = rewritten.before, rewritten.after
    for name in old.keys() & new.keys() - set(now):
        before, after = old[name], new[name]
        same = _operation(before) == _operation(after) and str(
            fx.node.map_arg((before.args, before.kwargs), renamed)
        ) == str(fx.node.map_arg((after.args, after.kwargs), operator.attrgetter("name")))
        if same and before.op == "get_attr":
            same = same_numbers(
                *(operator.attrgetter(str(n.target))(m) for n, m in zip((before, after), modules, strict=True))
            )
        if not same:
            yield different(rewritten.labels[name], "not the original's operation, though nothing was folded here")


def _computed(module: fx.GraphModule) -> set[str]:
    """Nodes made of an input's numbers, not of parameters alone."""
    found: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found[node] = node.name
    return set(found.values())


def _held(module: fx.GraphModule, exact: Mapping[str, Tensor] | None = None) -> Constants:
    def constant(name: str) -> Tensor:
        if exact and name in exact:
            return exact[name]
        found: Tensor = operator.attrgetter(name)(module)
        return found.detach()

    return constant


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401  # fx's signature
        """Run one node, and keep its size."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result
