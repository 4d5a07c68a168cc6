"""Other people's libraries without their progress bars, deprecations and notes, which a log may keep."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

_log: ContextVar[list[str] | None] = ContextVar("_log", default=None)


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """What `quiet` and `heard` keep from the terminal inside, texts in the order in which they were said."""
    kept: list[str] = []
    token = _log.set(kept)
    try:
        yield kept
    finally:
        _log.reset(token)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what is inside is printed, warned of, or logged below a critical error; a log hears all of it."""
    said, wanted = io.StringIO(), _log.get() is not None
    level = logging.root.manager.disable
    if not wanted:
        logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("default" if wanted else "ignore")
            yield
    finally:
        logging.disable(level)
        keep(said.getvalue())


@contextlib.contextmanager
def heard(lines: list[str]) -> Iterator[None]:
    """What C++ code inside writes, or Python as an error, is not shown but added to `lines`."""
    sys.stdout.flush()
    sys.stderr.flush()
    shown = {number: os.dup(number) for number in (1, 2)}
    try:
        with tempfile.TemporaryFile() as kept:
            for number in shown:
                os.dup2(kept.fileno(), number)
            written = io.StringIO()
            try:
                with contextlib.redirect_stderr(written):
                    yield
            finally:
                with contextlib.suppress(OSError, AttributeError, TypeError):  # where C's library has another name
                    ctypes.CDLL(None).fflush(None)
                for number, copy in shown.items():
                    os.dup2(copy, number)
                kept.seek(0)
                said = kept.read().decode(errors="replace") + written.getvalue()
                lines += said.splitlines()
                keep(said)
    finally:
        for copy in shown.values():
            os.close(copy)


def keep(said: str) -> None:
    """Add it to the log, if there is one."""
    log = _log.get()
    if log is not None and said:
        log.append(said)
