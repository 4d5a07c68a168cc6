"""Several processes, perhaps on several machines, that search as one; nothing here with one process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from repconv.errors import SearchError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among `count`, which `torchrun` or `accelerate launch` started; `group` is None for one alone."""

    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this one decides and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`: neighbours, earlier ones in lower ranks, sizes apart by one at most."""
        size, rest = divmod(len(items), self.count)
        start = self.rank * size + min(self.rank, rest)
        return items[start : start + size + (self.rank < rest)]

    def decided(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.group is None:
            return value
        held = [value]
        dist.broadcast_object_list(held, 0, self.group)
        return held[0]

    def gathered(self, items: Sequence[T]) -> list[T]:
        """What `share` took apart, together again, in all processes."""
        if self.group is None:
            return list(items)
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, list(items), self.group)
        return [item for part in parts for item in part]


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, str]]:
    """The processes the launcher started, and this one's device.

    Those that joined already (an engine did it, such as accelerate) stay so; else they join here, by NCCL on GPUs and
    gloo on CPUs, and part at the end. One process alone joins nothing.

    Raises:
        SearchError: the processes do not find each other.
    """
    on_gpus = torch.cuda.is_available() and device in ("auto", "cuda")
    there = dist.is_available() and dist.is_initialized()
    if not there and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(), device
        return
    if not there:
        try:
            dist.init_process_group("nccl" if on_gpus else "gloo")
        except (ValueError, RuntimeError) as error:
            raise SearchError(f"the processes cannot join ({error}); start them with torchrun") from error
    try:
        mine = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpus else device
        if on_gpus:
            torch.cuda.set_device(mine)
        yield Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD), mine
    finally:
        if not there:
            dist.destroy_process_group()


def statistics_of(model: nn.Module) -> dict[nn.BatchNorm2d, tuple[Tensor, Tensor, int]]:
    """Copies of the running mean and variance of every batch normalisation, and how many batches it has seen."""
    return {
        norm: (norm.running_mean.clone(), norm.running_var.clone(), int(norm.num_batches_tracked))
        for norm in model.modules()
        if isinstance(norm, nn.BatchNorm2d)
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_batches_tracked is not None
    }


def merge_statistics(before: Mapping[nn.BatchNorm2d, tuple[Tensor, Tensor, int]], processes: Processes) -> None:
    """Running statistics as if one process had run all sub-networks, lower ranks first.

    A normalisation that saw n batches with momentum m went from r to `d r + u`, `d = (1 - m)^n`. After ranks 0, 1 and
    so on it is `d_0 d_1 ... r + sum_k u_k d_(k+1) d_(k+2) ...`, which one sum over the processes gives.

    Args:
        before: `statistics_of` the model before its sub-networks ran, the same in all processes.
        processes: that each ran a share.

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
    kept = (1 - momentum) ** torch.stack(everyone)  # [processes, norms]
    later = kept[processes.rank + 1 :].prod(0)
    sizes = [2 * norm.num_features for norm in norms]
    old = torch.cat([torch.cat(before[norm][:2]) for norm in norms]).double()
    now = _held(norms)
    new = torch.cat([torch.cat(pair) for pair in now]).double()

    def spread(values: Tensor) -> Tensor:
        """One value a normalisation -> one a statistic."""
        return values.repeat_interleave(torch.tensor(sizes, device=device))

    added = spread(later) * (new - spread(kept[processes.rank]) * old)
    dist.all_reduce(added, dist.ReduceOp.SUM, processes.group)
    merged = spread(kept.prod(0)) * old + added
    total = torch.stack(everyone).sum(0).tolist()
    with torch.no_grad():
        for pair, norm, part, batches in zip(now, norms, merged.split(sizes), total, strict=True):
            for held, value in zip(pair, part.chunk(2), strict=True):
                held.copy_(value)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(before[norm][2] + int(batches))


def _held(norms: Sequence[nn.BatchNorm2d]) -> list[tuple[Tensor, Tensor]]:
    """The running mean and variance themselves, of normalisations that keep them."""
    return [(n.running_mean, n.running_var) for n in norms if n.running_mean is not None and n.running_var is not None]
