"""Weights that several nodes read and that fusing makes several weights of, which a file has to store."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ...proof.report import Diverged
from .plan import Plan


def diverged(
    chosen: Plan, width: Callable[[str], int], stored: Callable[[str, int], Hashable] | None = None
) -> tuple[Diverged, ...]:
    """What each shared weight became, where that is more than one.

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
