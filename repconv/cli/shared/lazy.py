"""A group of commands, each imported when it is called, so that `--help` does not wait for torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click


class LazyGroup(click.Group):
    """Commands by name, each with its module in `repconv.cli` and its one-line help.

    A module holds the click command as `command`.
    """

    table: Mapping[str, tuple[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """The names, in the table's order."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name, None if there is none."""
        if cmd_name not in self.table:
            return None
        command: click.Command = import_module(f"repconv.cli.{self.table[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Names and help, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


def lazy_group(commands: Mapping[str, tuple[str, str]]) -> type[LazyGroup]:
    """A group class of these commands."""
    return type("Commands", (LazyGroup,), {"table": commands})
