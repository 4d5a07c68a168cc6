"""The states of torch's own generators in every process, as checkpoints keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .processes import Processes


def random_states(processes: Processes, device: torch.device) -> dict[str, Any]:
    """What a checkpoint holds of it: the first process's, and those of the others; every process has to ask."""
    mine = {
        "rng": torch.get_rng_state(),
        "cuda_rng": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }
    first, *others = processes.gathered([mine])
    return {**first, "rng_of_others": others}


def put_random_state(checkpoint: Mapping[str, Any], processes: Processes, device: torch.device) -> None:
    """Set this process's generators as they were; those of more processes than there were begin as earlier ones."""
    every = [checkpoint, *checkpoint.get("rng_of_others", [])]
    mine = every[processes.rank % len(every)]
    torch.set_rng_state(mine["rng"])
    if mine["cuda_rng"] and device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda_rng"][0], device)
