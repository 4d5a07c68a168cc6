"""A charge on gates for what their branches cost (the resource term of GOLD-NAS, Bi et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..supernet.supernet import Supernet


def charge(supernet: Supernet, charges: Sequence[float]) -> None:
    """Add to the gates' `.grad` that of `sum_i charges[i] * s(beta) * s(alpha_i)`, s the logistic, one charge a slot.

    A gate without a gradient, whose branch took no part, gets none.
    """
    gates = [gate for gate in supernet.gate_parameters() if gate.grad is not None]
    blocks = supernet.blocks
    terms = [
        each * blocks[slot.block].gate(slot.branch)
        for each, slot in zip(charges, supernet.space.slots, strict=True)
        if blocks[slot.block].alpha[slot.branch].grad is not None
    ]
    if not terms:
        return
    for gate, more in zip(gates, torch.autograd.grad(torch.stack(terms).sum(), gates), strict=True):
        assert gate.grad is not None  # noqa: S101  # chosen so above
        gate.grad += more.to(gate.grad.dtype)
