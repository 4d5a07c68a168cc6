"""`repconv search report`."""

from __future__ import annotations

from pathlib import Path

import click

from ..shared.command import Command, Reads, Writes
from .resume import files_of_a_run


@click.command(cls=Command, epilog="Example: repconv search report runs/small")
@click.argument("folder", type=Reads(files_of_a_run))
@click.option(
    "-o", "--output", type=Writes(), help="The HTML file; FOLDER/report.html or FOLDER/sweep.html unless named."
)
@click.option(
    "--retrained",
    type=Reads(files_of_a_run),
    multiple=True,
    metavar="FOLDER",
    help="A finished retraining of what the run found, to set its accuracy beside its score; may be repeated.",
)
def command(folder: str, output: str | None, retrained: tuple[str, ...]) -> None:
    """Write the report of the run or sweep in FOLDER, finished or under way, as one HTML file without outside parts."""
    from repconv.search.folder import RunFolder
    from repconv.search.reports.compare import opened
    from repconv.search.reports.report import report
    from repconv.search.sweeps.folder import PAGE, is_sweep, read_plan
    from repconv.search.sweeps.summary import SweepSummary

    from ...errors import SearchError
    from ...files.whole import whole_file

    path = Path(folder)
    if is_sweep(path):
        if retrained:
            raise SearchError("--retrained is of one search; a sweep's page has its own retrainings")
        text, name = SweepSummary(path, read_plan(path)).page(), PAGE
    else:
        text, name = report(RunFolder.open(path), opened(retrained)), "report.html"
    out = Path(output) if output else path / name
    with whole_file(out) as stream:
        stream.write(text.encode())
    click.echo(f"  wrote {out}: {len(text):,} bytes")
