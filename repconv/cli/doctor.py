"""`repconv doctor`."""

from __future__ import annotations

import click

from .shared.command import Command
from .shared.options import json_option


@click.command(cls=Command, epilog="Example: repconv doctor")
@json_option
def command(json_file: str | None) -> None:
    """Show which backends work on this machine, and the line that would make each of the others work.

    Each is tried: loaded, asked for its devices, or told to make a builder.
    """
    from repconv.export.doctor import backends

    from .shared.record import write_json
    from .shared.text import table

    found = backends()
    rows = [["backend", "", "version", "for", ""]]
    rows += [[b.name, "works" if b.works else "no", b.version or "", ", ".join(b.devices), b.said] for b in found]
    click.echo(table(rows))
    for backend in found:
        if backend.remedy is not None:
            click.echo(f"\n  {backend.name}: {backend.remedy}")
    if json_file is not None:
        write_json(json_file, "repconv.doctor/1", {"backends": [backend.to_dict() for backend in found]})
