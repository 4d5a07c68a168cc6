"""The gradients and batch statistics of one update, over all processes that take part in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from repconv.errors import SearchError

from ..processes import Duty, Processes
from .adaptive import AdaptiveBatch, Weighting, accumulate, accumulate_part

Before = dict[nn.BatchNorm2d, tuple[Tensor, Tensor, int]]


def backward(
    model: nn.Module,
    parameters: Sequence[Tensor],
    losses: Sequence[Callable[[], Tensor]],
    weighting: Weighting,
    processes: Processes,
    duty: Duty,
) -> AdaptiveBatch:
    """Leave in `.grad` the weighted sum of the sub-networks' gradients (equation 6), and merge running statistics.

    Every process gets the sum over all of them. Where processes split a mini-batch, a loss is a mean over its images,
    each process normalises by the statistics of its own images, and the sub-network's loss is the mean over all.

    Args:
        model: whose batch normalisations the sub-networks share.
        parameters: everything the losses may depend on.
        losses: one a sub-network of this process's duty, on its images.
        weighting: of the sub-networks' gradients.
        processes: that take part.
        duty: what this one does.

    Raises:
        SearchError: a loss is not finite, in any process.
    """
    before = {} if processes.group is None else running_statistics(model)
    if duty.split and processes.group is not None:
        (run,) = losses
        batch = accumulate_part(
            parameters, run, weighting, processes.group, number=duty.team, count=len(duty.first), part=duty.part
        )
    else:
        batch = accumulate(parameters, losses, weighting, processes.group)
    merge_statistics(before, processes, duty)
    return batch


def running_statistics(model: nn.Module) -> Before:
    """Copies of the running mean and variance of every batch normalisation, and how many batches it has seen."""
    return {
        norm: (norm.running_mean.clone(), norm.running_var.clone(), int(norm.num_batches_tracked))
        for norm in model.modules()
        if isinstance(norm, nn.BatchNorm2d)
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_batches_tracked is not None
    }


def merge_statistics(before: Before, processes: Processes, duty: Duty) -> None:
    """Running statistics as if one process had run all sub-networks, lower teams first.

    A normalisation that saw n batches with momentum m went from r to `d r + u`, `d = (1 - m)^n`. After teams 0, 1 and
    so on it is `d_0 d_1 ... r + sum_k u_k d_(k+1) d_(k+2) ...`, which one sum over the processes gives. Where a team is
    one process, that is exact; of several that split a mini-batch u_k is the mean of theirs, weighted by images.

    Args:
        before: `running_statistics` the model before its sub-networks ran, the same in all processes.
        processes: that each did their duty.
        duty: this one's.

    Raises:
        SearchError: a normalisation averages over all batches (momentum None), for which this does not hold.
    """
    if processes.group is None or not before:
        return
    norms = list(before)
    if any(norm.momentum is None for norm in norms):
        raise SearchError("batch normalisation with momentum=None cannot be merged over processes; give it a momentum")
    device = before[norms[0]][0].device
    seen = torch.tensor(
        [int(norm.num_batches_tracked or 0) - before[norm][2] for norm in norms], dtype=torch.float64, device=device
    )
    everyone = [torch.zeros_like(seen) for _ in range(processes.count)]
    dist.all_gather(everyone, seen, processes.group)
    momentum = torch.tensor([norm.momentum for norm in norms], dtype=torch.float64, device=device)
    seen_by_teams = torch.stack(everyone)[list(duty.first)]  # [teams, norms]
    kept = (1 - momentum) ** seen_by_teams
    later = kept[duty.team + 1 :].prod(0)
    sizes = [2 * norm.num_features for norm in norms]
    old = torch.cat([torch.cat(before[norm][:2]) for norm in norms]).double()
    now = _held(norms)
    new = torch.cat([torch.cat(pair) for pair in now]).double()

    def spread(values: Tensor) -> Tensor:
        """One value a normalisation -> one a statistic."""
        return values.repeat_interleave(torch.tensor(sizes, device=device))

    added = duty.part * spread(later) * (new - spread(kept[duty.team]) * old)
    dist.all_reduce(added, dist.ReduceOp.SUM, processes.group)
    merged = spread(kept.prod(0)) * old + added
    total = seen_by_teams.sum(0).tolist()
    with torch.no_grad():
        for pair, norm, part, batches in zip(now, norms, merged.split(sizes), total, strict=True):
            for held, value in zip(pair, part.chunk(2), strict=True):
                held.copy_(value)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(before[norm][2] + int(batches))


def _held(norms: Sequence[nn.BatchNorm2d]) -> list[tuple[Tensor, Tensor]]:
    """The running mean and variance themselves, of normalisations that keep them."""
    return [(n.running_mean, n.running_var) for n in norms if n.running_mean is not None and n.running_var is not None]
