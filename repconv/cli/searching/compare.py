"""`repconv search compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from ..shared.command import Command, Reads
from ..shared.options import json_option
from .resume import files_of_a_run

if TYPE_CHECKING:
    from repconv.search.reports.compare import RunComparison, WithInterval


@click.command(cls=Command, epilog="Example: repconv search compare runs/des-* runs/random-*")
@click.argument("runs", type=Reads(files_of_a_run), nargs=-1, required=True, metavar="RUN...")
@json_option
def command(runs: tuple[str, ...], json_file: str | None) -> None:
    """Compare finished searches, or finished retrainings, by the settings they differ in.

    Runs that differ in their seed alone are a group: its mean accuracy has a 95 % interval, and two groups their
    difference over the seeds both have. Of retrainings, Kendall's tau says whether the score in the search told how
    good the architectures are.
    """
    from repconv.search.reports.compare import compare, opened

    from ..shared.record import write_json

    found = compare(opened(runs))
    click.echo(shown(found))
    if json_file is not None:
        write_json(json_file, "repconv.search-compare/1", found.to_dict())


def shown(found: RunComparison) -> str:
    """Its tables."""
    from ..shared.text import table

    what = "validation accuracy of the best, %" if found.kind == "search" else "accuracy when retrained, %"
    parts = [_table([what, "95 % interval", "seeds"], found.groups, 100)]
    if found.telling:
        parts.append(_table(["difference, points", "95 % interval", "seeds"], found.telling, 100))
    if found.correlation:
        parts.append(_table(["score and accuracy, Kendall's tau", "95 % interval", "runs"], found.correlation, 1))
    return "\n\n".join(table(rows, right=(1, 3)) for rows in parts)


def _table(heading: list[str], rows: Mapping[str, WithInterval], unit: int) -> list[list[str]]:
    what, *others = heading
    shown = [[what, "mean" if unit == 100 else "tau", *others]]
    for label, row in rows.items():
        interval = "-" if row.interval is None else " to ".join(f"{unit * end:.2f}" for end in row.interval)
        shown.append([label, f"{unit * row.value:.2f}", interval, str(row.count)])
    return shown
