"""The command line: `repconv COMMAND`, one file a command.

Commands are listed here with their one-line help and imported only when called, so that `repconv --help` does not wait
for torch.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import click

from .shared.lazy import lazy_group

_COMMANDS = {
    "bench": ("bench", "Measure latency, fused against unfused and plain, on several backends."),
    "demo": ("demo", "Fuse the checkpoint that ships with repconv and prove that nothing changed."),
    "doctor": ("doctor", "Show which backends work here, and what would make the others work."),
    "expand": ("expand", "Make the 3x3 convolutions of a network blocks of branches, to train."),
    "export": ("export", "Build the file that ships, for a runtime, and prove it."),
    "fuse": ("fuse", "Fold a multi-branch network into single convolutions, verified."),
    "inspect": ("inspect", "Show what is inside a network, and what fusing would make of it."),
    "retrain": ("retrain", "Train a searched architecture and fuse it."),
    "search": ("search", "Search which branches a network's blocks should have."),
    "verify": ("verify", "Compare two artefacts, each in its own runtime."),
}


@click.group(cls=lazy_group(_COMMANDS), epilog="Example: repconv fuse checkpoint.pt -o fused.onnx")
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
