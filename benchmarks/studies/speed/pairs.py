"""Latency of two forms of one network in a runtime whose sessions must be made anew to be comparable."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...harness.turns.timing import LatencyReport, time_in_turns

SAMPLE_S = 0.05
"""Seconds a timing sample lasts, at least one call."""

SESSIONS = 6
"""How often the sessions that are compared are made anew."""


def paired(
    makers: Mapping[str, Callable[[], Callable[[], object]]], rounds: int, calls: int
) -> dict[str, LatencyReport]:
    """Samples of each subject, in turns, each the mean of `calls` calls in a row.

    `makers` open a session and give what runs one image in it. Sessions are made anew several times, in either order:
    where weights come to lie in memory is worth a few percent of a network that takes two milliseconds.

    Raises:
        ValueError: no subjects, or fewer than one round.
    """
    samples: dict[str, list[float]] = {name: [] for name in makers}
    for attempt in range(SESSIONS):
        order = list(makers) if attempt % 2 else list(makers)[::-1]
        runs = {name: makers[name]() for name in order}
        for name, report in time_in_turns(runs, rounds=-(-rounds // SESSIONS), warmup=5, per_round=calls).items():
            samples[name] += report.samples_s
    return {name: LatencyReport(name, tuple(values)) for name, values in samples.items()}
