"""Files that are either whole or absent, and their fingerprints."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError
from .held import temporary_file, temporary_folder


@contextmanager
def whole_file(path: str | os.PathLike[str], *, stands: str = "nothing was written") -> Iterator[BinaryIO]:
    """Write beside `path` and rename into place at the end; an interruption leaves the old file or none.

    A link is followed: what it points to is replaced, and it stays a link. An error ends with what `stands` then.

    Raises:
        OutputError: the file cannot be written, and what stood there before still does.
    """
    target = followed(path)
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a directory; name a file")
    try:
        with temporary_file(target.parent, target.name) as (stream, temporary):
            yield stream  # type: ignore[misc]  # an IO[bytes] is a BinaryIO
            stream.flush()
            os.fsync(stream.fileno())
            if os.name == "nt":  # where a file that is open has no other name
                stream.close()
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; {stands}") from error


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write several files that belong together: all beside their names first, then renamed in the order given.

    Raises:
        OutputError: one cannot be written; none was.
    """
    with ExitStack() as stack:
        for path, content in reversed(list(contents.items())):  # the stack renames the last one entered first
            stream = stack.enter_context(whole_file(path))
            stream.write(content)
            # Whatever a full disk has to say is said before the first rename.
            stream.flush()
            os.fsync(stream.fileno())


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder beside its name, then put it there in place of what there was; files by their paths in it.

    Raises:
        OutputError: it cannot be written, and what stood there before still does.
    """
    try:
        with temporary_folder(folder.parent, folder.name) as room:
            made, old = room / "new", room / "old"
            for name, content in contents.items():
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
            if folder.exists():
                folder.replace(old)
            try:
                made.replace(folder)
            except OSError:
                if old.exists():
                    old.replace(folder)
                raise
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; nothing was written") from error


def require_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Make sure, before long work, that a file, or else a folder, can be written there; nothing is left behind.

    Raises:
        OutputError: it cannot.
    """
    target = followed(path)
    if target.is_dir() and not folder:
        raise OutputError(f"cannot write {target}: it is a directory; name a file")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=target.parent) as stream:
            stream.write(b"1")
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def followed(path: str | os.PathLike[str]) -> Path:
    """Where writing `path` writes: the end of the links, if it is one."""
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; of a folder that of its files' paths and SHA-256, line by line."""
    where = Path(path)
    if where.is_dir():
        files = sorted(file.relative_to(where).as_posix() for file in where.rglob("*") if file.is_file())
        return hashlib.sha256("".join(f"{file} {sha256(where / file)}\n" for file in files).encode()).hexdigest()
    with where.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
