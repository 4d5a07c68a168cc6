"""Gates on images that the weights do not learn from (DARTS, Liu et al., 2019, section 2.3): the second order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

RADIUS = 0.01
"""How far weights are moved, to either side, for the finite difference of equation 8: their epsilon times the norm."""

Gradients = list[Tensor | None]


def second_order(
    *,
    learn: Callable[[], object],
    judge: Callable[[], object],
    weights: Sequence[Tensor],
    gates: Sequence[Tensor],
    optimiser: torch.optim.SGD,
    rate: float,
) -> None:
    """Leave in `.grad` of `gates` what `judge` would lose less of if the weights had learnt one update from `learn`.

    With `w' = w - rate * (momentum * buffer + dL_learn/dw + weight_decay * w)`, the update the optimiser would do,

        v = dL_judge(w', a)/dw',   e = RADIUS / |v|
        dL_judge(w', a)/da - rate * (dL_learn(w + e v, a)/da - dL_learn(w - e v, a)/da) / (2 e)

    (equations 7 and 8), which is the derivative of `L_judge(w'(a), a)` but for the difference's error. Weights,
    optimiser and torch's generators end as they began, and every pass draws the same, such as the positions its
    statistics are of: the difference is of the weights alone, and of the update that follows if it begins from there.
    A gate that `judge` does not depend on gets None.

    Args:
        learn: leaves in `.grad` of weights and gates the gradient of the loss that the weights learn from.
        judge: likewise of the loss that the gates learn from.
        weights: moved, and put back.
        gates: not moved.
        optimiser: of the weights, for its momentum and weight decay.
        rate: xi, the learning rate of the update.
    """
    start = [weight.detach().clone() for weight in weights]
    cards = {weight.device for weight in weights if weight.device.type == "cuda"}

    def run(passing: Callable[[], object]) -> None:
        with torch.random.fork_rng(cards):
            passing()

    run(learn)
    _move(weights, start, _direction(weights, optimiser), -rate)
    run(judge)
    direct, towards = _gradients(gates), _gradients(weights)
    norm = float(sum(float(g.double().pow(2).sum()) for g in towards if g is not None)) ** 0.5
    sides: list[Gradients] = []
    for side in (1, -1) if norm else ():
        _move(weights, start, towards, side * RADIUS / norm)
        run(learn)
        sides.append(_gradients(gates))
    _move(weights, start, [None] * len(start), 0.0)
    for number, (gate, gradient) in enumerate(zip(gates, direct, strict=True)):
        gate.grad = gradient
        above, below = (side[number] for side in sides) if sides else (None, None)
        if gradient is not None and above is not None and below is not None:
            gate.grad = gradient - (above - below) * (rate * norm / (2 * RADIUS))


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Whatever runs meanwhile, running statistics and other buffers end as they began."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _direction(weights: Sequence[Tensor], optimiser: torch.optim.SGD) -> Gradients:
    """What the optimiser would go against; None for a weight without a gradient, which it leaves alone."""
    found: Gradients = []
    settings = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    for weight in weights:
        if weight.grad is None:
            found.append(None)
            continue
        group = settings[id(weight)]
        step = weight.grad + group["weight_decay"] * weight.detach()
        buffer = optimiser.state[weight].get("momentum_buffer") if weight in optimiser.state else None
        found.append(step if buffer is None else step + group["momentum"] * buffer)
    return found


def _move(weights: Sequence[Tensor], start: Sequence[Tensor], towards: Gradients, far: float) -> None:
    """Put weights at so many times `towards` from `start`."""
    with torch.no_grad():
        for weight, origin, direction in zip(weights, start, towards, strict=True):
            weight.copy_(origin if direction is None else origin + far * direction)


def _gradients(parameters: Sequence[Tensor]) -> Gradients:
    """Copies, since the next pass replaces them."""
    return [None if p.grad is None else p.grad.detach().clone() for p in parameters]
