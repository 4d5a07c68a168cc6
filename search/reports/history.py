"""What the metrics of a search tell so far: whether selection selects, whether it still gains, what measuring takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Records = Sequence[Mapping[str, Any]]
"""Lines of `metrics.jsonl`, of every kind."""


def of_generations(records: Records) -> list[Mapping[str, Any]]:
    """Those of generations."""
    return [record for record in records if record["kind"] == "generation"]


def of_children_alone(records: Records) -> int:
    """How many of the last generations that had parents kept none of them."""
    found = [record for record in of_generations(records) if record.get("parents")]
    return sum(1 for _ in itertools.takewhile(lambda record: record["survivors"] == 0, reversed(found)))


def without_gain(records: Records) -> int:
    """How many generations have passed since the one whose best accuracy was above all before it."""
    best = [record["best_accuracy"] for record in of_generations(records)]
    return len(best) - 1 - best.index(max(best)) if best else 0


def measuring_s(record: Mapping[str, Any]) -> float:
    """Seconds that a generation's evaluation took."""
    return float(sum(value for key, value in record.items() if key.startswith("seconds")))


def measuring_left_s(records: Records, generations: int) -> float | None:
    """Seconds that evaluating will take yet, in a search of so many generations, as long as it took until now.

    What is found is measured once more at the end. None before a generation has ended.
    """
    done = of_generations(records)
    if not done:
        return None
    seconds = sum(map(measuring_s, done))
    a_candidate: float = seconds / max(1, sum(record["measured"] for record in done))
    return seconds / len(done) * (generations - len(done)) + a_candidate * float(done[-1]["population"])
