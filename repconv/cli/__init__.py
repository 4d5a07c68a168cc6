"""The command line: `repconv COMMAND`, one file a command.

Commands are listed here with their one-line help and imported only when called, so that `repconv --help` does not wait
for torch.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click

from .shared.ending import FAULT, INTERRUPTED, Ended, ended_by_signals
from .shared.lazy import lazy_group
from .shared.terminal import spared_streams

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
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


@click.group(
    cls=lazy_group(_COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: repconv fuse checkpoint.pt -o fused.onnx",
)
@click.version_option(None, "-V", "--version", package_name="repconv", prog_name="repconv")
def _repconv() -> None:
    """Fold trained multi-branch convolution blocks, exactly, into the single convolutions that deploy."""


def main() -> None:
    """Run the command line; it ends in an exit code, and where that is not 0 with a message."""
    with spared_streams(), ended_by_signals():
        sys.exit(_exit_code())


def _exit_code() -> int:
    from ..errors import BackendError, BuildError, RepconvError, VerificationError

    if "_REPCONV_COMPLETE" in os.environ:
        _repconv.main(prog_name="repconv")  # a shell asks what may follow; does not return
    codes = ((VerificationError, 1), (BackendError, 3), (BuildError, 4))
    try:
        with _repconv.make_context("repconv", sys.argv[1:]) as context:
            _repconv.invoke(context)
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except RepconvError as error:
        click.echo(f"repconv: {error}", err=True)
        return next((code for kind, code in codes if isinstance(error, kind)), 2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nrepconv: interrupted", err=True)
        return INTERRUPTED
    except Ended as ended:
        click.echo(f"repconv: {ended}", err=True)
        return ended.exit_code
    except Exception as error:  # noqa: BLE001  # it must not look like a result that differs, which is 1
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # PyTorch's is a RuntimeError
            click.echo(f"repconv: there is not enough memory for this: {str(error) or 'none was left'}", err=True)
            return 2
        if isinstance(error, OSError) and error.errno in _NO_ROOM:  # met by a library that writes beside
            where = error.filename or "a file"
            click.echo(f"repconv: cannot write {where}: {error.strerror}", err=True)
            return 2
        traceback.print_exc()
        click.echo("repconv: that is a fault of repconv; please report it with the lines above", err=True)
        return FAULT
    return 0
