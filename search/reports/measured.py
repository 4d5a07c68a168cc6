"""What a report draws to answer: does accuracy select, does the score tell, and where does the time go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from repconv.pages.page import figure

from ..supernet.precision import TAU
from .chart import chart
from .compare import RunOutcome, correlation


def survivors(generations: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many parents live on, of runs that say so: what selection decides, where accuracy does."""
    points = [(r["generation"], r["survivors"] / r["parents"]) for r in generations if r.get("parents")]
    if not points:
        return []
    return [
        figure(
            chart("parents that live on", "generation", [("share", points)], within=(0.0, 1.0)),
            "Parents and children are measured together and the best live on. Where the share is 0 in every "
            "generation, children win whatever they are worth: age decides, and accuracy does not.",
        )
    ]


def times(
    epochs: Sequence[Mapping[str, Any]], generations: Sequence[Mapping[str, Any]], warmup_epochs: int
) -> list[str]:
    """Seconds of every generation, the first after the warm-up: of training, and of measuring its candidates."""
    steps = [0, *(r.get("step", 0) for r in epochs)]
    took = {
        r["epoch"]: (step - before) * r.get("seconds_a_step", 0.0)
        for r, before, step in zip(epochs, steps[:-1], steps[1:], strict=True)
    }
    starts = [warmup_epochs, *(r["epoch"] for r in generations)]
    lines = {
        "training": [
            (r["generation"], sum(took.get(epoch, 0.0) for epoch in range(start + 1, r["epoch"] + 1)))
            for start, r in zip(starts, generations, strict=False)
        ],
        **{
            name: [(r["generation"], sum(r.get(f"seconds_{key}", 0.0) for key in keys)) for r in generations]
            for name, keys in _MEASURING.items()
        },
    }
    taus = [f"{r[TAU]:.2f}" for r in generations if TAU in r]
    half = f" bfloat16 ranked the first generation as float32 does by a Kendall's tau of {taus[0]}." if taus else ""
    return [
        figure(
            chart("seconds", "generation", list(lines.items()), within=(0.0, math.inf)),
            "Where a generation's time goes: training its architectures; then of every candidate its own batch "
            f"statistics, its kernels, and the validation images through it as a single-path network.{half}",
        )
    ]


_MEASURING = {"statistics": ("reestimate",), "kernels": ("fold", "write"), "images": ("run",)}
"""What measuring a generation consists of, by the ends of its records' keys."""


def scores_and_accuracies(retrained: Sequence[RunOutcome]) -> list[str]:
    """Every trained architecture by its score in its search and its accuracy, and how far both rank alike."""
    points = [(one.score, one.accuracy) for one in retrained if one.score is not None]
    if not points:
        return []
    tau = correlation(retrained)
    said = "Four trainings give a rank correlation, of seeds that others have too; there are fewer."
    if tau is not None:
        low, high = tau.interval or (math.nan, math.nan)
        said = f"They rank alike by a Kendall's tau of {tau.value:.2f} (95 % interval {low:.2f} to {high:.2f})."
    drawn = chart(
        "accuracy when trained", "score in the search", [("trained", points)], within=(0.0, 1.0), joined=False
    )
    return [
        figure(
            drawn,
            f"A dot is an architecture: to the right the better its score in the search, up the better when trained. "
            f"{said} 1 is the same order, 0 is chance.",
        )
    ]
