"""How a command ends that does not come to its own end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from ...errors import BuildError, OutputError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it: 128 and the signal's number."""
FAULT = 70
"""The exit code after an error nobody foresaw (EX_SOFTWARE of sysexits.h)."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(BaseException):
    """A signal asked the process to end; temporary files are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def going_on_is_said(how: str) -> Iterator[None]:
    """Say how to go on with what is cut short: by a signal, a lost process, or since nothing more could be written."""
    try:
        yield
    except (KeyboardInterrupt, Ended, OutputError, BuildError):
        click.echo(f"\nrepconv: go on where it was with: {how}", err=True)
        raise


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn signals that end a process into `Ended`, but for those that are ignored, as under nohup."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    unraisable = sys.unraisablehook

    def end(number: int, _: FrameType | None) -> None:
        # Destructors of what was being made just then fail, and would print a traceback each.
        sys.unraisablehook = _unsaid
        raise Ended(number)

    for number, handler in before.items():
        if handler == signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            if handler == signal.SIG_DFL:
                signal.signal(number, handler)


def _unsaid(_: object) -> None:
    """An exception that nobody can catch, not printed."""
