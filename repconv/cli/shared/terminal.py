"""Standard output and error: they show the work, and cannot change it."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO, cast

from ...errors import OutputError

_COMMANDING = re.compile("(?!^\r)[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor, colour it, or turn lines around: names of layers and files may hold them.

A carriage return at the start is progress in place.
"""


class Spared:
    """A text stream that does not fail: what cannot be written is left out, and the first reason kept.

    Args:
        stream: what is written to. It fails where its reader has gone or a disk is full.
    """

    encoding = "utf-8"
    """For click, which would go around a stream of ASCII; what the stream itself lacks is written as an escape."""
    errors = "backslashreplace"

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: OSError | None = None
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors=self.errors)  # type: ignore[attr-defined]  # where it is a TextIOWrapper

    def write(self, text: str) -> int:
        """Write, commands to the terminal as escapes; a line that is shown in place makes room."""
        if _line.get() and not text.startswith("\r"):
            in_place("")
        shown = _COMMANDING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
        with self._sparing():
            self.stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Flush."""
        with self._sparing():
            self.stream.flush()

    @contextmanager
    def _sparing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error
            _to_nowhere(self.stream)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the stream has
        return getattr(self.stream, name)


_line: ContextVar[str] = ContextVar("_line", default="")
"""What is shown in place."""


def in_place(text: str) -> None:
    """Show a line on standard error, which is a terminal, in place of the one before; an empty one leaves none."""
    before = _line.get()
    _line.set(text)
    sys.stderr.write(f"\r{text}{' ' * (len(before) - len(text))}")
    if not text:
        sys.stderr.write("\r")
    sys.stderr.flush()


@contextmanager
def spared_streams() -> Iterator[None]:
    """Make standard output and error such that writing to them never fails, and say at the end what was lost.

    A reader that went away (`| head -1`) wanted no more, which is no loss.
    """
    _hold_descriptors()
    before = sys.stdout, sys.stderr
    with _nowhere() as nowhere:
        out, err = (Spared(stream or nowhere) for stream in before)  # a stream that was closed is None
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
        try:
            yield
        finally:
            out.flush()
            if out.lost is not None and out.lost.errno != errno.EPIPE:
                err.write(
                    f"repconv: standard output could not be written ({out.lost.strerror}); nothing else was lost\n"
                )
            err.flush()
            sys.stdout, sys.stderr = before


def write_standard_output(text: str) -> None:
    """Write what standard output was asked to be for, and nothing else may go to; its reader may go away.

    Raises:
        OutputError: it cannot be written.
    """
    stream = _asked_for.get() or sys.stdout
    stream = stream.stream if isinstance(stream, Spared) else stream
    if stream is None:
        raise OutputError("cannot write to standard output: it is closed")
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        _to_nowhere(stream)
        if error.errno != errno.EPIPE:
            raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error


_asked_for: ContextVar[TextIO | None] = ContextVar("_asked_for", default=None)


@contextmanager
def shown_on(stream: TextIO | None) -> Iterator[None]:
    """Show on `stream` what would be on standard output, which `write_standard_output` keeps; None: nowhere."""
    before = sys.stdout
    with _nowhere() as nowhere:
        kept = _asked_for.set(before)
        sys.stdout = stream or nowhere
        try:
            yield
        finally:
            _asked_for.reset(kept)
            sys.stdout = before


@contextmanager
def unsaid() -> Iterator[None]:
    """Show no notes on standard error."""
    before = sys.stderr
    with _nowhere() as nowhere:
        sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stderr = before


@contextmanager
def _nowhere() -> Iterator[TextIO]:
    with Path(os.devnull).open("w", encoding="utf-8") as stream:
        yield stream


def _to_nowhere(stream: TextIO) -> None:
    """Let what is still in the stream's buffer, which the interpreter writes when it ends, be written to nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _hold_descriptors() -> None:
    """Open nowhere where a standard stream is closed, lest the next file that opens takes its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
