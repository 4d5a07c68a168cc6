"""What a plan would write, told from its forms; and what becomes of weights that several nodes share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

from ...proof.report import Diverged, GraphRefusal, Size
from ..core.step import Step
from .emission import Convolution
from .plan import Plan

_CONVOLUTIONS = (
    "Conv", "ConvTranspose", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
)  # fmt: skip
"""The kinds of nodes that a report counts as convolutions."""


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
    steps: Sequence[Step], chosen: Plan, refusals: Sequence[GraphRefusal], before: Size, width: Callable[[str], int]
) -> Foresight:
    """What writing the choice would give, without a number of it computed; width: see `diverged`."""
    kinds = {step.where: step.kind for step in steps}
    where = {step.output: step.where for step in steps}
    layers = [(name, layer) for name, found in chosen.rewritten.items() for layer in found.layers]
    planned = tuple(
        Planned(where[name], label, chosen.origins[name])
        for name, found in chosen.rewritten.items()
        for label in [layer.form.label for layer in found.layers] or [found.label]
    )
    removed = Counter(kinds[node] for node in {node for origins in chosen.origins.values() for node in origins})
    written = sum(isinstance(layer, Convolution) for _, layer in layers)
    convolutions = before.convolutions + written - sum(removed[kind] for kind in _CONVOLUTIONS)
    norms = before.batch_norms - sum(count for kind, count in removed.items() if "norm" in kind.lower())
    return Foresight(
        planned,
        (*refusals, *chosen.refusals),
        (before.convolutions, convolutions),
        (before.batch_norms, norms),
        diverged(chosen, width),
    )


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
