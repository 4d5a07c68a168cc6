"""Training on a device: a block as one convolution is its branches, and what a step costs over the plain network's."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv import Sampling, create_model, set_statistics
from repconv.errors import VerificationError

from ...harness.turns.timing import ratio, time_in_turns
from ..training.training_step import step_of
from .given import AMOUNTS, sheet
from .running import Rows

SUBJECTS = {
    "plain": ("resnet18", ""),
    "branch by branch": ("irep_resnet18", "full"),
    "sampled": ("irep_resnet18", "sampled"),
}
"""Network and statistics."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Of training by precision; half precision would need losses scaled."""
ALLOWED = 1e-9
"""How far a gradient or a running statistic may be off in float64, over the largest of its tensor."""


def training(device: str) -> Rows:
    """Rows of what a step takes, a dtype each."""
    for precision in AMOUNTS[device].precisions:
        if precision in DTYPES:
            yield step_costs(device, DTYPES[precision])


def agreement(device: str) -> Rows:
    """One row: a step on shipped images in float64, branch by branch and as one convolution of every position.

    Raises:
        VerificationError: gradients or running statistics are apart by more than rounding.
    """
    torch.manual_seed(0)
    branches = create_model("irep_resnet18", num_classes=10, width=4, blocks=(1,)).double().to(device).train()
    single = copy.deepcopy(branches)
    set_statistics(single, Sampling(None))
    images, labels = sheet(4)
    x, y = images.double().to(device), labels.to(device)
    apart = {}
    for model in (branches, single):
        functional.cross_entropy(model(x), y).backward()
    for what, found in (("gradient", _gradients), ("running statistic", _statistics)):
        one, other = found(branches), found(single)
        apart[what] = max(
            (float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-3)), name) for name in one
        )
    yield {"dtype": "float64", "apart": {what: error for what, (error, _) in apart.items()}, "allowed": ALLOWED}
    for what, (error, name) in apart.items():
        if not error < ALLOWED:
            raise VerificationError(f"one convolution on {device}: the {what} of {name} is off by {error:.1e}")


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def step_costs(device: str, dtype: str) -> Mapping[str, object]:
    """Milliseconds of a step in turns, over the plain network's with a 95 % interval, and the memory each takes."""
    amount = AMOUNTS[device]
    named = {key: _waited(_step(key, device, dtype), device) for key in SUBJECTS}
    timed = time_in_turns(named, rounds=amount.rounds, warmup=2)
    del named
    ratios = {key: ratio(found, timed["plain"]).to_dict() for key, found in timed.items() if key != "plain"}
    return {
        "dtype": dtype,
        "width": amount.width,
        "batch": amount.batch,
        "rounds": amount.rounds,
        "median_ms": {key: found.median_ms for key, found in timed.items()},
        "over_plain": ratios,
        "peak_mib": {key: _peak_mib(key, device, dtype) for key in SUBJECTS} if device == "cuda" else None,
    }


def _step(key: str, device: str, dtype: str) -> Callable[[], None]:
    (name, statistics), amount = SUBJECTS[key], AMOUNTS[device]
    return step_of(name, amount.width, amount.batch, dtype, statistics, device)


def _waited(step: Callable[[], None], device: str) -> Callable[[], None]:
    """A step that is over when it returns."""
    if device != "cuda":
        return step

    def run() -> None:
        step()
        torch.cuda.synchronize()

    return run


def _peak_mib(key: str, device: str, dtype: str) -> float:
    """The most that PyTorch holds on the GPU in three steps, the network itself and its optimiser included."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step = _step(key, device, dtype)
    for _ in range(3):
        step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
