"""Temporary files and folders that the living process holds; what a killed one left behind, the next one removes.

A lock lasts as long as its process, however that ends. So what nobody holds, nobody needs.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import OutputError

if sys.platform != "win32":
    import fcntl

_FULL_BYTES = 1 << 16
"""A disk with less room than this is full: what failed to be written is larger than what still fits."""
_ELSEWHERE = "; it is for temporary files, and TMPDIR names another"
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Errors that are about where something is kept, whoever meets them."""
MARK = "repconv-"
"""In the name of everything temporary, so that nothing of the user's is taken for it."""


@contextmanager
def temporary_file(parent: Path, name: str) -> Iterator[tuple[IO[bytes], Path]]:
    """A file in `parent` to be renamed to `name` in it; gone at the end unless it was.

    Raises:
        OSError: it cannot be made.
    """
    stem = f".{name}.{MARK}"
    _sweep(parent, stem)
    while True:
        stream = tempfile.NamedTemporaryFile(dir=parent, prefix=stem, delete=False)  # noqa: SIM115  # closed below
        path = Path(stream.name)
        if _hold(stream.fileno(), path):
            break
        stream.close()
    try:
        with stream:
            yield stream, path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path | None = None, name: str = "") -> Iterator[Path]:
    """A folder in `parent`, or where temporary files go (TMPDIR), that is gone at the end.

    Raises:
        OutputError: it cannot be made, or what was to be done in it failed on a disk that is full or read-only, which
            libraries say in words of their own.
    """
    where = Path(tempfile.gettempdir()) if parent is None else parent
    of_others: Exception | None = None
    try:
        with _held_folder(where, f".{name}.{MARK}" if name else MARK) as path:
            try:
                yield path
            except Exception as error:
                why = _why_not_writable(path)
                if why is None or isinstance(error, OutputError):
                    of_others = error
                    raise
                raise OutputError(f"cannot write in {where}: {why}{_ELSEWHERE if parent is None else ''}") from error
    except OSError as error:
        if error is of_others and error.errno not in _OF_DISKS:
            raise
        raise OutputError(
            f"cannot write in {where}: {error.strerror or error}{_ELSEWHERE if parent is None else ''}"
        ) from error


def _why_not_writable(path: Path) -> str | None:
    if shutil.disk_usage(path).free < _FULL_BYTES:
        return "its disk is full"
    return None if os.access(path, os.W_OK) else "it is read-only"


@contextmanager
def _held_folder(where: Path, stem: str) -> Iterator[Path]:
    _sweep(where, stem)
    while True:
        path = Path(tempfile.mkdtemp(dir=where, prefix=stem))
        descriptor = None if sys.platform == "win32" else os.open(path, os.O_RDONLY)
        if descriptor is None or _hold(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _hold(descriptor: int, path: Path) -> bool:
    """Lock what was just made; False where another process took it for left behind and removed it before."""
    if _locked(descriptor) is False:
        return False
    with suppress(OSError):
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    return False


def _locked(descriptor: int) -> bool | None:
    """Lock it; False where another process holds it, None where locks are unknown."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep(parent: Path, stem: str) -> None:
    """Remove what begins with `stem` and nobody holds; what cannot be looked at stays."""
    if sys.platform == "win32":
        return
    left = re.compile(re.escape(stem) + r"[a-z0-9_]{8}")
    with suppress(OSError):
        for path in [Path(entry.path) for entry in os.scandir(parent) if left.fullmatch(entry.name)]:
            with suppress(OSError):
                _remove_unheld(path)


def _remove_unheld(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if _locked(descriptor) is True:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
