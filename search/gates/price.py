"""What branches cost, and a price on gates for it (the resource term of GOLD-NAS, Bi et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..supernet.architecture import Architecture
from ..supernet.supernet import Supernet, evaluating


def branch_costs(supernet: Supernet, x: Tensor) -> tuple[float, ...]:
    """Multiply-adds of every slot on `x` [n, c, h, w]: of its convolutions, pools, and one a number normalised."""
    counts: dict[nn.Module, float] = {}

    def count(module: nn.Module, _: Any, output: Any) -> None:  # noqa: ANN401  # a hook's signature
        counts[module] = counts.get(module, 0.0) + output.numel() * _each(module)

    parts = [
        [part for part in supernet.blocks[slot.block].branches[slot.branch].modules() if not list(part.children())]
        for slot in supernet.space.slots
    ]
    with ExitStack() as hooks, evaluating(supernet.model), torch.no_grad():
        for part in (part for several in parts for part in several):
            hooks.callback(part.register_forward_hook(count).remove)
        supernet(Architecture.full(supernet.space), x)
    return tuple(sum(counts.get(part, 0.0) for part in several) for several in parts)


def charge(supernet: Supernet, prices: Sequence[float]) -> None:
    """Add to the gates' `.grad` that of `sum_i prices[i] * s(beta) * s(alpha_i)`, s the logistic, one price a slot.

    A gate without a gradient, whose branch took no part, gets none.
    """
    gates = [gate for gate in supernet.gate_parameters() if gate.grad is not None]
    blocks = supernet.blocks
    terms = [
        price * blocks[slot.block].gate(slot.branch)
        for price, slot in zip(prices, supernet.space.slots, strict=True)
        if blocks[slot.block].alpha[slot.branch].grad is not None
    ]
    if not terms:
        return
    for gate, more in zip(gates, torch.autograd.grad(torch.stack(terms).sum(), gates), strict=True):
        assert gate.grad is not None  # noqa: S101  # chosen so above
        gate.grad += more.to(gate.grad.dtype)


def _each(module: nn.Module) -> int:
    """Multiply-adds of one number of the output."""
    if isinstance(module, nn.Conv2d):
        return prod(module.weight.shape[1:])
    if isinstance(module, nn.AvgPool2d):
        sides = module.kernel_size
        return sides * sides if isinstance(sides, int) else prod(sides)
    return 1
