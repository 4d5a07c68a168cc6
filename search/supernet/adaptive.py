"""The adaptive batch (De-IReps, equations 4 to 8): a mini-batch trains several sub-networks, weighted by their losses.

Streamed: sub-networks run one after the other and only one graph lives at a time. With `c` the largest loss so far,
`exp(L_j - c) * dL_j` is added up, what was added before is scaled down when `c` grows, and everything is divided by
`sum exp(L_j - c)` at the end, which gives the softmax-weighted sum exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from repconv.errors import SearchError

Weighting = Literal["softmax", "uniform", "literal"]
"""`softmax` as the paper describes equation (5); `uniform` equation (4); `literal` equation (5) as printed,
`L_j / sum exp(L_s)`, whose weights do not sum to 1."""
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


@dataclass(frozen=True)
class AdaptiveBatch:
    """The losses of the sub-networks this process ran, in order, and the weight each one's gradient got."""

    losses: tuple[float, ...]
    weights: tuple[float, ...]


def weights_of(losses: Sequence[float], weighting: Weighting) -> tuple[float, ...]:
    """The weight of each sub-network's gradient: equations (4) and (5)."""
    if weighting == "uniform":
        return tuple(1 / len(losses) for _ in losses)
    if weighting == "literal":
        total = sum(math.exp(loss) for loss in losses)
        return tuple(loss / total for loss in losses)
    top = max(losses)
    total = sum(math.exp(loss - top) for loss in losses)
    return tuple(math.exp(loss - top) / total for loss in losses)


def accumulate(
    parameters: Sequence[Tensor],
    losses: Iterable[Callable[[], Tensor]],
    weighting: Weighting = "softmax",
    group: dist.ProcessGroup | None = None,
) -> AdaptiveBatch:
    """Leave in `.grad` of `parameters` the weighted sum of the gradients of `losses` (equation 6).

    A parameter no loss depends on keeps `.grad` None, in every process. The weights are treated as constants.

    Args:
        parameters: everything the losses may depend on; their gradients are replaced.
        losses: functions that run one sub-network each and return its loss, a scalar.
        weighting: how gradients are weighted.
        group: processes that each ran other sub-networks: the sum is over all of them, and all get it. A process may
            have none.

    Raises:
        SearchError: a loss is not finite, in any process; no process has one.
    """
    for parameter in parameters:
        parameter.grad = None
    found: list[float] = []
    top, total = -math.inf, 0.0
    for run in losses:
        loss = run()
        value = loss.item()
        found.append(value)
        if not math.isfinite(value):
            break  # so that no process waits for one that gave up; refused below
        raised = _reference(value, top, weighting)
        _scale(parameters, _shrink(top, raised))
        total = total * _shrink(top, raised) + _share(value, raised, weighting)
        top = raised
        (loss * _factor(value, top, weighting)).backward()
    finite = all(map(math.isfinite, found))
    if group is not None:
        finite, top, total = _merge(parameters, finite, top, total, group)
    _refuse_infinite(found, anywhere=not finite)
    if not total:
        raise SearchError("an adaptive batch needs at least one sub-network")
    _scale(parameters, 1 / total)
    return AdaptiveBatch(tuple(found), tuple(_factor(v, top, weighting) / total for v in found))


def accumulate_part(
    parameters: Sequence[Tensor],
    run: Callable[[], Tensor],
    weighting: Weighting,
    group: dist.ProcessGroup,
    *,
    number: int,
    count: int,
    part: float,
) -> AdaptiveBatch:
    """`accumulate` where there are fewer sub-networks than processes, which split the mini-batch of one.

    Args:
        parameters: everything the losses may depend on; their gradients are replaced.
        run: runs this process's sub-network on its part of the mini-batch and returns the mean loss of the part.
        weighting: how gradients are weighted, by the sub-networks' losses on the whole mini-batch.
        group: all processes.
        number: of this process's sub-network.
        count: sub-networks in all.
        part: of the mini-batch; the parts of a sub-network add up to 1.

    Raises:
        SearchError: a loss is not finite, in any process; no process has a gradient.
    """
    for parameter in parameters:
        parameter.grad = None
    loss = run()
    losses = torch.zeros(count, dtype=torch.float64, device=loss.device)
    losses[number] = part * loss.item()
    dist.all_reduce(losses, dist.ReduceOp.SUM, group)
    found = losses.tolist()
    _refuse_infinite(found)
    weights = weights_of(found, weighting)
    (loss * (weights[number] * part)).backward()
    touched = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float64, device=loss.device)
    dist.all_reduce(touched, dist.ReduceOp.MAX, group)
    _add_up(parameters, touched.tolist(), group)
    return AdaptiveBatch((found[number],), (weights[number],))


def _refuse_infinite(losses: Sequence[float], anywhere: bool = False) -> None:
    """Refuse losses that are not finite, here or `anywhere` else."""
    if anywhere or not all(map(math.isfinite, losses)):
        raise SearchError(
            f"a sub-network's loss is not finite ({', '.join(f'{v:.4g}' for v in losses)}); lower the learning rate or "
            "clip gradients"
        )


def _reference(loss: float, top: float, weighting: Weighting) -> float:
    """The `c` that exponents are taken relative to."""
    return 0.0 if weighting == "uniform" else max(loss, top)


def _shrink(before: float, after: float) -> float:
    """What was added up relative to `before` times this is relative to `after`."""
    return 1.0 if before == after or before == -math.inf else math.exp(before - after)


def _share(loss: float, top: float, weighting: Weighting) -> float:
    """What a loss adds to the divisor."""
    return 1.0 if weighting == "uniform" else math.exp(loss - top)


def _factor(loss: float, top: float, weighting: Weighting) -> float:
    """What a gradient is multiplied with before the division. The printed form divides by `sum exp(L_s)` itself."""
    if weighting == "literal":
        return loss * math.exp(-top)
    return _share(loss, top, weighting)


def _scale(parameters: Sequence[Tensor], factor: float) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and factor != 1.0:
        torch._foreach_mul_(gradients, factor)  # what torch.optim itself uses


def _merge(
    parameters: Sequence[Tensor], finite: bool, top: float, total: float, group: dist.ProcessGroup
) -> tuple[bool, float, float]:
    """Rescale to the largest `c` of all processes, then add up gradients and divisors once."""
    device = parameters[0].device
    flags = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float64)
    # One message: whether any process failed, its c, and who has a gradient for what.
    largest = torch.cat([torch.tensor([0.0 if finite else 1.0, top], dtype=torch.float64), flags]).to(device)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    failed, common, *touched = largest.tolist()
    if failed:
        return False, common, total
    shrink = _shrink(top, common)
    _scale(parameters, shrink)
    divisor = torch.tensor([total * shrink], dtype=torch.float64, device=device)
    dist.all_reduce(divisor, dist.ReduceOp.SUM, group)
    _add_up(parameters, touched, group)
    return True, common, divisor.item()


def _add_up(parameters: Sequence[Tensor], touched: Sequence[float], group: dist.ProcessGroup) -> None:
    """Sum gradients over processes; `touched`: which parameters have one in any of them."""
    for parameter, any_has in zip(parameters, touched, strict=True):
        if any_has and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for flat in _buckets([p.grad for p in parameters if p.grad is not None]):
        joined = torch.cat([g.reshape(-1) for g in flat])
        dist.all_reduce(joined, dist.ReduceOp.SUM, group)
        for gradient, part in zip(flat, joined.split([g.numel() for g in flat]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients of one dtype together: one message instead of hundreds."""
    found: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        found.setdefault(gradient.dtype, []).append(gradient)
    return list(found.values())
