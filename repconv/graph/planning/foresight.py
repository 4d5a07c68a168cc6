"""What a plan would write, told from its forms; and what becomes of weights that several nodes share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from ...proof.report import Diverged, GraphRefusal, Size
from ..core.step import Step
from .emission import Convolution
from .plan import Plan


@dataclass(frozen=True)
class Planned:
    """What would be written, a convolution or something simpler: where, its shape, and the nodes it would stand for."""

    name: str
    geometry: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Foresight:
    """What fusing a graph would do.

    convolutions, batch_norms: before and after. refusals: what would stay multi-branch, and why. diverged: the weights
    that several nodes share and that would be several.
    """

    layers: tuple[Planned, ...]
    refusals: tuple[GraphRefusal, ...]
    convolutions: tuple[int, int]
    batch_norms: tuple[int, int]
    diverged: tuple[Diverged, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return asdict(self)


def foreseen(
    steps: Sequence[Step],
    chosen: Plan,
    refusals: Sequence[GraphRefusal],
    sizes: tuple[Size, Size],
    width: Callable[[str], int],
) -> Foresight:
    """What writing the choice would give, without a number of it computed.

    sizes: convolutions and norms of the graph, and of the nodes of it that stay (`staying`). width: see `diverged`.
    """
    where = {step.output: step.where for step in steps}
    layers = [(name, layer) for name, found in chosen.rewritten.items() for layer in found.layers]
    planned = tuple(
        Planned(where[name], label, chosen.origins[name])
        for name, found in chosen.rewritten.items()
        for label in [layer.form.label for layer in found.layers] or [found.label]
    )
    before, stay = sizes if chosen.rewritten or chosen.virtual else sizes[:1] * 2
    written = sum(isinstance(layer, Convolution) for _, layer in layers)
    return Foresight(
        planned,
        (*refusals, *chosen.refusals),
        (before.convolutions, stay.convolutions + written),
        (before.batch_norms, stay.batch_norms),
        diverged(chosen, width),
    )


def staying(chosen: Plan, reads: Mapping[str, Iterable[str]], outputs: Iterable[str]) -> set[str]:
    """The tensors that a graph still makes once the choice is written, those aside that are written anew.

    reads: by a tensor what the node that makes it reads. outputs: that are needed whatever is written.
    """
    found: set[str] = set()
    pending = [*outputs]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += chosen.rewritten[name].reads if name in chosen.rewritten else reads.get(name, ())
    return found - chosen.rewritten.keys()


def diverged(
    chosen: Plan, width: Callable[[str], int], stored: Callable[[str, int], Hashable] | None = None
) -> tuple[Diverged, ...]:
    """What each shared weight became, where that is more than one, which a file has to store.

    width: bytes that a number of a tensor takes. stored: what tells the weight that is stored for a layer of a written
        tensor, by the tensor's name and the layer's position; None before anything is written: what its numbers are
        made of.
    """
    shared = {weight.name: weight for weight in chosen.shared}
    became: dict[str, dict[Hashable, int]] = {name: {} for name in shared}
    own: dict[str, int] = {}
    for tensor, found in chosen.rewritten.items() if shared else ():
        for position, layer in enumerate(found.layers):
            key = (layer.term.key if stored is None else stored(tensor, position)), layer.form.weights
            for name in layer.term.stored() & shared.keys():
                became[name][key] = width(tensor) * layer.form.weights
                own[name] = width(tensor) * shared[name].numbers
    for name, size in own.items():
        if shared[name].stays:
            became[name][name, shared[name].numbers] = size
    return tuple(
        Diverged(
            weight=name,
            readers=shared[name].readers,
            weights=len(weights),
            added_bytes=sum(weights.values()) - own[name],
        )
        for name, weights in became.items()
        if len(weights) > 1
    )
