"""Activations between changes of layout, as the same program has them on the other side; see `onnx/commuting`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from ..core.step import Step
from ..maps.arrangement import to_image
from .facts import ProgramFacts, is_pointwise

_aten = torch.ops.aten

_PERMUTED = frozenset(("permute", "transpose"))
"""The kinds of steps that move axes."""


def commuted(facts: ProgramFacts, steps: Sequence[Step]) -> fx.GraphModule | None:
    """The program with activations of [n, c, pixels] where a permutation to that reads them; None if there is none."""
    kinds = {step.output: step.kind for step in steps}
    turned = {
        node.name: order for node in facts.module.graph.nodes if (order := _order(facts, node, kinds)) is not None
    }
    reaching: set[str] = set()
    for node in reversed(facts.module.graph.nodes):
        if kinds.get(node.name) in _PERMUTED or (node.name in reaching and (node.name in turned or node.name in kinds)):
            reaching.update(n.name for n in node.all_input_nodes)
    wanted = reaching & turned.keys()
    if not wanted:
        return None
    module = facts.module
    result = copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})
    now: dict[fx.Node, fx.Node] = {}  # the tensor that is one of [n, c, pixels], by the author's
    for node in list(result.graph.nodes):
        if node.name not in wanted:
            continue
        order = turned[node.name]
        for source in node.all_input_nodes:
            if source.name in facts.nodes and facts.is_constant(facts.nodes[source.name]):
                continue
            if source not in now:
                with result.graph.inserting_before(node):
                    now[source] = _permuted(source, order)
            node.replace_input_with(source, now[source])
        value: Tensor = node.meta["val"]
        with result.graph.inserting_after(node):
            back = _permuted(node, [order.index(axis) for axis in range(len(order))])
        node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
        node.meta = {**node.meta, "val": value.permute(order)}
        back.meta["val"] = value
        now[back] = node
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def _permuted(source: fx.Node, order: Sequence[int]) -> fx.Node:
    made = source.graph.call_function(_aten.permute.default, (source, list(order)))
    made.meta["val"] = source.meta["val"].permute(tuple(order))
    return made


def _order(facts: ProgramFacts, node: fx.Node, kinds: dict[str, str]) -> tuple[int, ...] | None:
    """What permutation takes the tensors of a pointwise operation to [n, c, pixels]; None where there is no need."""
    if not is_pointwise(node) or node.name in kinds or facts.is_constant(node):
        return None
    computed = [n for n in node.all_input_nodes if not facts.is_constant(n)]
    constants = [facts.constant(n) for n in node.all_input_nodes if facts.is_constant(n)]
    if not computed or any(value is None or value.numel() != 1 for value in constants):
        return None
    order = to_image([facts.placed.get(n.name) for n in computed])
    if order is None or any(facts.size(n) != facts.size(node) for n in computed):
        return None
    return order
