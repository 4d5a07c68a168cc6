"""The command line: `repconv COMMAND`, one file a command.

Commands are listed here with their one-line help and imported only when called, so that `repconv --help` does not wait
for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version

import click

_COMMANDS = {
    "demo": "Fuse the checkpoint that ships with repconv and prove that nothing changed.",
    "doctor": "Show which backends work here, and what would make the others work.",
    "expand": "Make the 3x3 convolutions of a network blocks of branches, to train.",
    "export": "Build the file that ships, ONNX, OpenVINO or an engine, and prove it.",
    "fuse": "Fold a multi-branch network into single convolutions, verified.",
    "inspect": "Show what is inside a network, and what fusing would make of it.",
    "verify": "Compare two artefacts, each in its own runtime.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f".{cmd_name}", __name__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, epilog="Example: repconv fuse checkpoint.pt -o fused.onnx")
@click.version_option(version("repconv"), prog_name="repconv")
def _repconv() -> None:
    """Fold trained multi-branch convolution blocks, exactly, into the single convolutions that deploy."""


def main() -> None:
    """Run the command line; errors of this package become one message and an exit code."""
    from ..errors import BackendError, BuildError, RepconvError, VerificationError

    codes = ((VerificationError, 1), (BackendError, 3), (BuildError, 4))
    try:
        _repconv()
    except RepconvError as error:
        click.echo(f"repconv: {error}", err=True)
        sys.exit(next((code for kind, code in codes if isinstance(error, kind)), 2))
