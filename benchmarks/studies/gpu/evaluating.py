"""Candidates of a search evaluated on a device: the accuracies that the processor gives, and the time they take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from repconv import load
from repconv.errors import VerificationError
from repconv.proof.float64 import full_precision
from repconv.search.strategies.evolution import first_population
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.bank import EvaluationSettings
from repconv.search.supernet.evaluate import Evaluation, evaluate
from repconv.search.supernet.precision import rank_correlation
from repconv.search.supernet.supernet import Supernet

from .given import AMOUNTS, CHECKPOINT, sheet
from .running import Rows

Batch = tuple[Tensor, Tensor]
"""Images [n, c, h, w] and labels [n]."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of candidates by precision."""
ALLOWED_IMAGES = 2
"""By which right answers in float32 may differ, where scores of two classes nearly tie."""


def evaluation(device: str) -> Rows:
    """Rows of the shipped network's candidates, two thirds of its branches each: float32, then bfloat16.

    Raises:
        VerificationError: float32 on the device answers other than the processor does.
    """
    amount = AMOUNTS[device]
    images, labels = sheet(amount.images)
    settling, judged = ((images[part], labels[part]) for part in (slice(amount.settling), slice(amount.settling, None)))
    space = Supernet(load(CHECKPOINT).model).space
    drawn = first_population(space, space.budget(2 / 3), amount.candidates, torch.Generator().manual_seed(0))
    expected, _ = evaluated("cpu", torch.float32, drawn, settling, judged)
    count = len(judged[1])
    for dtype in (DTYPES[precision] for precision in amount.precisions if precision in DTYPES):
        found, branches_s = evaluated(device, dtype, drawn, settling, judged)
        apart = [round(abs(a - b) * count) for a, b in zip(found.accuracies, expected.accuracies, strict=True)]
        yield {
            "dtype": str(dtype).removeprefix("torch."),
            "candidates": len(drawn),
            "images": count,
            "settling_images": amount.settling,
            "mean_accuracy": sum(found.accuracies) / len(drawn),
            "most_images_apart": max(apart),
            "kendall_tau": rank_correlation(found.accuracies, expected.accuracies),
            **_seconds(found),
            "branch_by_branch_s": branches_s,
        }
        if dtype == torch.float32 and max(apart) > ALLOWED_IMAGES:
            raise VerificationError(
                f"a candidate on {device} is right on {max(apart)} images of {count} more or less than on the "
                f"processor, allowed {ALLOWED_IMAGES}"
            )


def evaluated(
    device: str, dtype: torch.dtype, drawn: Sequence[Architecture], settling: Batch, judged: Batch
) -> tuple[Evaluation, float]:
    """What evaluating gives, and seconds of the same candidates branch by branch, on the images they are judged by.

    What a GPU does only the first time is done before, with one candidate.
    """
    given, seen = ([(x.to(device), y.to(device))] for x, y in (settling, judged))
    supernet = Supernet(load(CHECKPOINT).model.to(device).eval())
    settings = EvaluationSettings(dtype=dtype, device=torch.device(device))
    with full_precision():
        if device == "cuda":
            evaluate(supernet, drawn[:1], seen, settings, reestimation=given)
        found = evaluate(supernet, drawn, seen, settings, reestimation=given, clock=lambda: _clock(device))
        start = _clock(device)
        with torch.inference_mode():
            for architecture in drawn:
                supernet(architecture, seen[0][0])
        return found, _clock(device) - start


def _clock(device: str) -> float:
    """Seconds, when the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(found: Evaluation) -> Mapping[str, float]:
    return {
        "fold_s": found.fold_s,
        "reestimate_s": found.reestimate_s,
        "write_s": found.write_s,
        "run_s": found.run_s,
    }
