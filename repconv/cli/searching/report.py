"""`repconv search report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example: repconv search report runs/small")
@click.argument("folder")
@click.option("-o", "--output", help="The HTML file; FOLDER/report.html unless named.")
def command(folder: str, output: str | None) -> None:
    """Write the report of the run in FOLDER, finished or under way, as one HTML file without outside parts."""
    from repconv.search.folder import RunFolder
    from repconv.search.reports.report import report

    from ...files.whole import whole_file

    opened = RunFolder.open(Path(folder))
    text, out = report(opened), Path(output) if output else opened.path / "report.html"
    with whole_file(out) as stream:
        stream.write(text.encode())
    click.echo(f"  wrote {out}: {len(text):,} bytes")
