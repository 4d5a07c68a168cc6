"""Which affine steps anything reads for its numbers, and which of their tensors must exist."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ..core.step import Step


@dataclass(frozen=True)
class Node:
    """A node of a graph: what reports call it, and the tensors it makes and reads by name.

    follows: True if, where it is no step, only steps read on from it, past what it makes: a piece of a border, or a
        tuple that is taken apart. It needs what it reads only if something else reads it.
    of_sizes: True if it makes numbers of tensors' sizes alone, which steps that are written anew do without; the same.
    """

    where: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    follows: bool = False
    of_sizes: bool = False


def live(
    nodes: Sequence[Node], steps: Sequence[Step], outputs: Collection[str], measured: Collection[str] = ()
) -> tuple[list[Step], dict[str, str]]:
    """The steps that something reads, with what they need besides their terms; and the tensors that must exist, why.

    Args:
        nodes: of a graph in the order they run, without constants.
        steps: of those nodes.
        outputs: of the graph.
        measured: tensors of which something reads the size alone.
    """
    by_output = {step.output: step for step in steps}
    read = {name for node in nodes for name in node.inputs} | set(measured)
    wanted = set(outputs) | (by_output.keys() - read)
    needed = dict.fromkeys(outputs, "an output of the graph")
    kept: dict[str, Step] = {}
    opaque: set[str] = set()
    for node in reversed(nodes):
        made = [by_output[name] for name in node.outputs if name in by_output]
        for step in made:
            if step.output in wanted:
                kept[step.output] = step
                wanted.update(step.inputs)
        # What nobody read in the first place is the author's, and stays.
        left_out = (node.follows or node.of_sizes) and not read.isdisjoint(node.outputs)
        if made or (left_out and wanted.isdisjoint(node.outputs)):
            continue
        wanted.update(node.inputs)
        needed.update({name: f"read by {node.where}, too" for name in node.inputs if name not in needed})
        opaque.update(node.outputs)
    makers = {name: node for node in nodes for name in node.outputs if name not in opaque}
    found = [replace(s, needs=_besides(s, makers, kept)) for s in steps if s.output in kept]
    return found, {name: why for name, why in needed.items() if name in kept}


def _besides(step: Step, makers: dict[str, Node], kept: Collection[str]) -> tuple[str, ...]:
    """The tensors of other steps that the node of `step` reads by way of what is no step, its terms left out."""
    found: dict[str, None] = {}
    seen = {step.output}
    pending = list(makers[step.output].inputs)
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in kept:
            found[name] = None
        elif name in makers:
            pending += makers[name].inputs
    direct = set(step.inputs)
    return tuple(name for name in found if name not in direct)
