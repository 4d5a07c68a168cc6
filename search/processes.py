"""Several processes, perhaps on several machines, that search as one; nothing here with one process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist

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
        mine = shares(len(items), self.count)[self.rank]
        return items[mine.start : mine.stop]

    def duty(self, networks: int, images: int) -> Duty:
        """What this process does of an update of `networks` sub-networks on a mini-batch of `images`.

        Where there are as many networks as processes, or more, each runs a share of them on all images. Where there
        are fewer, processes form teams of neighbours, one a network, and each runs its team's on a share of the images.

        Raises:
            SearchError: a team has more processes than there are images.
        """
        if networks >= self.count:
            mine = shares(networks, self.count)[self.rank]
            return Duty(
                networks=mine,
                images=range(images),
                part=1.0,
                split=False,
                team=self.rank,
                first=tuple(range(self.count)),
            )
        teams = shares(self.count, networks)
        index = next(i for i, team in enumerate(teams) if self.rank in team)
        team = teams[index]
        if images < len(teams[0]):
            raise SearchError(
                f"a mini-batch of {images} images leaves some of the {len(teams[0])} processes that share it without "
                "any; start fewer processes, or set a larger batch"
            )
        mine = shares(images, len(team))[self.rank - team.start]
        first = tuple(each.start for each in teams)
        return Duty(
            networks=range(index, index + 1), images=mine, part=len(mine) / images, split=True, team=index, first=first
        )

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


@dataclass(frozen=True, kw_only=True)
class Duty:
    """A process's part of an update.

    networks: the sub-networks it runs, by number; images: of the mini-batch, and part: how much of it they are.
    split: whether processes form teams that split the images; team: the number of this one's; first: the first process
        of each.
    """

    networks: range
    images: range
    part: float
    split: bool
    team: int
    first: tuple[int, ...]


def shares(items: int, count: int) -> list[range]:
    """The numbers from 0 to `items` in `count` parts: neighbours, sizes apart by one at most, larger ones first."""
    size, rest = divmod(items, count)
    starts = [index * size + min(index, rest) for index in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


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
