"""Which affine operations are next to each other once a choice is made: what might be one, and is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...proof.report import GraphRefusal
from ..core.reasons import NEVER_AFFINE
from ..core.step import Step
from .choice import Choice
from .liveness import Node


@dataclass(frozen=True)
class Pair:
    """Two steps whose tensors are written: `reader` reads what `maker` makes, moved or not by way of `tensors`.

    tensors: that are written in between, none of which need be. needed: one that must be, if there is one.
    """

    maker: Step
    reader: Step
    tensors: tuple[str, ...]
    needed: str = ""


def pairs(chosen: Choice, makers: Mapping[str, Step]) -> Iterator[Pair]:
    """The neighbours of a region, one of which at least computes. makers: of all tensors that steps make."""
    for step in chosen.steps:
        if step.output in chosen.virtual:
            continue
        closure = chosen.closure(step.output)
        if all(each.only_moves for each in closure):
            continue
        computes = any(each.computes for each in closure)
        pending: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name in _read(chosen, step)]
        seen: set[str] = set()
        while pending:
            name, path = pending.pop()
            maker = makers.get(name)
            if maker is None or name in seen:
                continue
            seen.add(name)
            inside = [*chosen.closure(name)] if name in chosen.by_output else [maker]
            needed = name if name in chosen.fixed else ""
            if not needed and all(each.only_moves for each in inside):
                pending += [(source, (*path, name)) for source in _read(chosen, maker)]
            elif (computes or _computes(inside, makers)) and not (len(inside) == 1 and _averages_all(maker)):
                yield Pair(maker, step, (*path, name), needed)


def _read(chosen: Choice, step: Step) -> list[str]:
    """The tensors that what is written for a step reads."""
    return list(dict.fromkeys(term.source for term in chosen.expression(step.output).terms))


def _computes(steps: Sequence[Step], makers: Mapping[str, Step]) -> bool:
    """True if some steps compute, or move what others did."""
    while steps:
        if any(step.computes for step in steps):
            return True
        steps = [makers[name] for step in steps if step.only_moves for name in step.inputs if name in makers]
    return False


def _averages_all(step: Step) -> bool:
    """True for an average of all pixels: what reads it is cheapest after it, and no convolution together with it."""
    return all(term.pool for term in step.terms)


def touching(refusals: Sequence[GraphRefusal], nodes: Sequence[Node], steps: Sequence[Step]) -> list[GraphRefusal]:
    """The refusals of single operations that have an affine neighbour, with its name: the others have nothing to join.

    A neighbour is a step, or another operation that might be one but is refused.
    """
    made = {step.output: step for step in steps}
    makers = {name: node for node in nodes for name in node.outputs}
    named: dict[str, list[Node]] = defaultdict(list)
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        named[node.where].append(node)
        for name in dict.fromkeys(node.inputs):
            readers[name].append(node)
    refused = {refusal.where for refusal in refusals if refusal.kind not in NEVER_AFFINE}

    def before(node: Node) -> list[Node]:
        return [makers[name] for name in node.inputs if name in makers]

    def after(node: Node) -> list[Node]:
        return [reader for name in node.outputs for reader in readers[name]]

    def reached(start: Node, further: Callable[[Node], list[Node]]) -> Iterator[str]:
        """The names of neighbours on one side, behind what only moves numbers."""
        seen: set[str] = set()
        pending = further(start)
        while pending:
            node = pending.pop()
            steps_of_it = [made[name] for name in node.outputs if name in made]
            if node.where in refused or any(not step.only_moves for step in steps_of_it):
                yield node.where
            elif (steps_of_it or node.follows) and node.where not in seen:
                seen.add(node.where)
                pending += further(node)

    found = []
    for refusal in refusals:
        sides = [reached(node, further) for node in named[refusal.where] for further in (before, after)]
        beside = tuple(dict.fromkeys(name for side in sides for name in side if name != refusal.where))
        if beside:
            found.append(replace(refusal, beside=beside))
    return found
