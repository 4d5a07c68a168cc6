"""The same program in other words, whose plan may be cheaper; see `onnx/commuting`."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, fx

from ..core.step import Step
from ..maps.arrangement import to_image
from .facts import NORMS, ProgramFacts, gives_several, is_pointwise

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


_BY_CHANNEL = frozenset((
    *NORMS, "aten.mul.Tensor", "aten.div.Tensor", "aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor",
))  # fmt: skip
"""Operations that, with constants, do the same to each number of a channel, whatever is in the others."""


def distributed(facts: ProgramFacts, steps: Sequence[Step]) -> fx.GraphModule | None:
    """The program in which what scales or shifts joined channels does so before they are joined; None if there is none.

    Only where nothing else reads what is joined, and each part is computed, not moved.
    """
    affine = {step.output: step for step in steps}
    chains = {
        node.name: chain
        for node in facts.module.graph.nodes
        if _joins(facts, node, affine) and (chain := _mapping(facts, node, affine))
    }
    if not chains:
        return None
    module = facts.module
    result = copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})
    for join in list(result.graph.nodes):
        if join.name not in chains:
            continue
        axis, parts, last = _axis(join), join.all_input_nodes, join
        ends = list(accumulate((part.meta["val"].shape[axis] for part in parts), initial=0))
        for _ in chains[join.name]:
            (node,) = last.users
            with result.graph.inserting_before(node):
                spans = zip(parts, pairwise(ends), strict=True)
                parts = [_on_part(node, last, part, axis, *span) for part, span in spans]
            last = node
        with result.graph.inserting_before(last):
            joined = result.graph.call_function(join.target, (parts, axis))
        joined.meta = {**join.meta, "val": last.meta["val"]}
        last.replace_all_uses_with(joined)
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def _axis(join: fx.Node) -> int:
    """The axis of a concatenation."""
    given = join.args[1] if len(join.args) > 1 else join.kwargs.get("dim", 0)
    value: Tensor = join.meta["val"]
    return int(str(given)) % value.dim()


def _joins(facts: ProgramFacts, node: fx.Node, affine: Mapping[str, Step]) -> bool:
    """Whether a node joins channels of tensors that are computed for it alone."""
    if str(node.target) != "aten.cat.default" or node.name not in affine or not _axis(node):
        return False
    parts, given = node.all_input_nodes, node.args[0]
    alone = all(p.name in affine and not affine[p.name].only_moves and len(p.users) == 1 for p in parts)
    known = all(isinstance(facts.size(part)[_axis(node)], int) for part in parts)
    return alone and known and isinstance(given, Sequence) and 1 < len(parts) == len(given)


def _mapping(facts: ProgramFacts, join: fx.Node, affine: Mapping[str, Step]) -> list[fx.Node]:
    """What scales or shifts a joined tensor by constants which can be cut, one after the other."""
    chain = [join]
    while len(chain[-1].users) == 1:
        (node,) = chain[-1].users
        if not _maps(facts, node, chain[-1], _axis(join)) or (node.name not in affine and not gives_several(node)):
            break
        chain.append(node)
    return chain[1:-1] if gives_several(chain[-1]) else chain[1:]


def _maps(facts: ProgramFacts, node: fx.Node, source: fx.Node, axis: int) -> bool:
    """Whether a node scales or shifts the channels of one other, and the others are constants."""
    if gives_several(source):
        return node.target is operator.getitem and bool(node.args[1] == 0)
    if str(node.target) not in _BY_CHANNEL or node.args.count(source) != 1:
        return False
    fits = axis == 1 if str(node.target) in NORMS else facts.size(node) == facts.size(source)
    return fits and all(facts.is_constant(n) for n in node.all_input_nodes if n is not source)


def _on_part(node: fx.Node, source: fx.Node, part: fx.Node, axis: int, start: int, end: int) -> fx.Node:
    """The operation that `node` is of `source`, of a part of that."""

    def cut(operand: fx.Node) -> fx.Node:
        if operand is source:
            return part
        value: Tensor = operand.meta["val"]
        place = 0 if str(node.target) in NORMS else axis - node.meta["val"].dim() + value.dim()
        if place < 0 or value.shape[place] == 1:
            return operand
        made = node.graph.call_function(_aten.slice.Tensor, (operand, place, start, end))
        made.meta["val"] = value.narrow(place, start, end - start)
        return made

    args, kwargs = (fx.node.map_arg(given, cut) for given in (node.args, node.kwargs))
    made = node.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]  # a function, as fx has it
    value = node.meta["val"]
    made.meta = {**node.meta, "val": value.narrow(axis, start, end - start) if isinstance(value, Tensor) else value}
    return made
