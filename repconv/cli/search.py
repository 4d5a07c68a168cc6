"""`repconv search`: run, resume, report, compare, sweep."""

from __future__ import annotations

import click

from .shared.lazy import lazy_group

_COMMANDS = {
    "run": ("searching.run", "Search from a preset and your own settings."),
    "resume": ("searching.resume", "Go on with a run that was interrupted."),
    "report": ("searching.report", "Write a run's or a sweep's report, HTML."),
    "compare": ("searching.compare", "Compare finished runs: means, intervals, rank correlation."),
    "sweep": ("searching.sweep", "Do many searches and retrainings, and compare them."),
}


@click.group(cls=lazy_group(_COMMANDS), epilog="Example: repconv search run --preset smoke -o runs/smoke")
def command() -> None:
    """Search which branches a network's blocks should have, by differentiable evolution or one of its baselines."""
