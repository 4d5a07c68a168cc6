"""What is known of an exported program's tensors before anything is fused: constants and sizes, and node kinds."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..report import FusionReport
from .not_affine import NotAffineError
from .sizes import NOMINAL

FUNCTIONAL_NORM = "aten._native_batch_norm_legit_no_training.default"

NORMS = ("aten.batch_norm.default", FUNCTIONAL_NORM)
"""Batch normalisation as exported, and after functionalisation."""

SPLITS = ("aten.split_with_sizes.default", "aten.split.Tensor", "aten.split.sizes", "aten.chunk.default")
"""Operations that give a tuple of slices."""


class ProgramFacts:
    """Constants, types and sizes of the tensors of one graph module.

    A node is constant if it reads parameters and buffers only. `exact` has more precise values of some of those, by
    their names in `module`.
    """

    def __init__(self, module: fx.GraphModule, exact: Mapping[str, Tensor] | None = None) -> None:
        self.module = module
        self._exact = exact or {}
        self.nodes: dict[str, fx.Node] = {node.name: node for node in module.graph.nodes}
        self.labels = _labels(module.graph)
        """What reports call a node: the module it comes from and the operation."""
        self._constants: dict[fx.Node, Tensor | None] = {}

    def constant(self, node: object) -> Tensor | None:
        """The value of a constant node, None if it is none."""
        if not isinstance(node, fx.Node):
            return None
        if node not in self._constants:
            self._constants[node] = self._evaluate(node)
        return self._constants[node]

    def _evaluate(self, node: fx.Node) -> Tensor | None:
        if node.op == "get_attr":
            if str(node.target) in self._exact:
                return self._exact[str(node.target)]
            value: object = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value.detach() if isinstance(value, Tensor) else None
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
            return None
        known = {n: self.constant(n) for n in node.all_input_nodes}
        if not known and node.target is not torch.ops.aten.zeros.default:
            return None
        if any(v is None for v in known.values()) or torch.Tag.nondeterministic_seeded in node.target.tags:
            return None
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
        with torch.no_grad():
            result = node.target(*arguments[0], **arguments[1])
        return result if isinstance(result, Tensor) else None

    def size(self, node: fx.Node) -> tuple[object, ...]:
        """The shape, open sides as text; the empty tuple if this is no tensor of rank 2 or 4."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() not in (2, 4):
            return ()
        return tuple(d if isinstance(d, int) else str(d) for d in value.shape)

    def nominal(self, node: fx.Node) -> tuple[int, int, int]:
        """Channels, height and width, `NOMINAL` where open."""
        sides = [d if isinstance(d, int) else NOMINAL for d in self.size(node)[1:]] + [1, 1]
        return sides[0], sides[1], sides[2]

    def channels(self, node: fx.Node) -> int:
        """How many channels a tensor has."""
        size = self.size(node)
        if not size or not isinstance(size[1], int):
            raise NotAffineError
        return size[1]


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


def kind_of(node: fx.Node) -> str:
    """The operation; of one that gives several tensors, that of the node which takes one of them."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        inner = str(node.args[0].target)
        return inner if inner in SPLITS or (inner == FUNCTIONAL_NORM and node.args[1] == 0) else ""
    return "" if str(node.target) in (FUNCTIONAL_NORM, *SPLITS) else str(node.target)


def passes_through(node: fx.Node, made: Collection[str]) -> bool:
    """True for a node that only affine steps, those of `made`, read on, so that it needs no input for itself."""
    return str(node.target) in (FUNCTIONAL_NORM, *SPLITS) and all(user.name in made for user in node.users)


def _labels(graph: fx.Graph) -> dict[str, str]:
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]).partition("@")[0].removeprefix("L['self'].") if stack else ""
        operation = kind_of(node) or str(node.target)
        if operation == FUNCTIONAL_NORM:
            operation = NORMS[0]
        wanted = f"{path}/{operation.split('.')[1]}" if path and operation.startswith("aten.") else node.name
        name, count = wanted, 1
        while name in taken:
            name, count = f"{wanted}_{count}", count + 1
        taken.add(name)
        labels[node.name] = name
    return labels
