"""Finding the prices: branches counted, their FLOPs from shapes, or the time each takes by itself."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from repconv.blocks.probing import count_flops

from ..supernet.architecture import Architecture
from ..supernet.supernet import Supernet, evaluating
from .prices import Prices

ROUNDS = 15
"""Times each branch is timed; a round times all of them once, so that a machine's moods fall on all alike."""


def price(supernet: Supernet, objective: str, images: Tensor, clock: Callable[[], float] = time.perf_counter) -> Prices:
    """The prices of a supernet's branches; the supernet and torch's generators are left as they are.

    Args:
        supernet: the network.
        objective: of `prices.UNITS`. "flops" counts convolutions and linear layers, two FLOPs a multiply-add, on one
            image, so `skip` costs nothing; "latency" times the forward pass of training on `images`.
        images: [n, c, h, w] on the network's device, any numbers.
        clock: seconds.
    """
    space = supernet.space
    if objective == "branches":
        return Prices(objective=objective, fixed=0.0, slots=(1.0,) * len(space.slots))
    inputs = _inputs(supernet, images)
    branches = {slot: supernet.blocks[slot.block].branches[slot.branch] for slot in space.slots}
    if objective == "flops":
        slots = tuple(float(count_flops(branch, inputs[slot.block].shape[1:])) for slot, branch in branches.items())
        return Prices(
            objective=objective, fixed=count_flops(supernet.model, images.shape[1:]) - sum(slots), slots=slots
        )
    # Copies, since normalisations learn from whatever runs through them.
    runs: list[Callable[[], object]] = [
        partial(copy.deepcopy(branch).train(), inputs[slot.block]) for slot, branch in branches.items()
    ]
    whole = Supernet(copy.deepcopy(supernet.model).train())
    nothing = Architecture(whole.space, (False,) * len(space.slots))
    fixed, *slots_s = _medians([partial(whole, nothing, images), *runs], images.device, clock)
    return Prices(objective=objective, fixed=fixed, slots=tuple(slots_s))


def _medians(runs: list[Callable[[], object]], device: torch.device, clock: Callable[[], float]) -> list[float]:
    """The median time of each, over rounds of all of them; one round before does not count."""
    times: list[list[float]] = [[] for _ in runs]
    cards = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(cards):
        for _ in range(1 + ROUNDS):
            for run, found in zip(runs, times, strict=True):
                _wait(device)
                start = clock()
                run()
                _wait(device)
                found.append(clock() - start)
    return [median(found[1:]) for found in times]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _inputs(supernet: Supernet, images: Tensor) -> Mapping[str, Tensor]:
    """What every block is given, in evaluation."""
    seen: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[name] = given[0].detach()

    handles = [block.register_forward_pre_hook(partial(see, name)) for name, block in supernet.blocks.items()]
    try:
        with evaluating(supernet.model), torch.no_grad():
            supernet.model(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen
