"""What a user names on the command line, as something loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .checkpoint import SUFFIXES, Checkpoint, load
from .errors import SourceError
from .files import sha256


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint, the file it came from, and that file's SHA-256."""

    path: Path
    sha256: str
    checkpoint: Checkpoint


def open_source(source: str) -> Source:
    """Load what `source` names: a repconv checkpoint, `.pt` or `.safetensors`.

    Raises:
        SourceError: it names no such file.
        CheckpointError: the file cannot be read as a checkpoint.
    """
    path = Path(source)
    if path.is_dir():
        raise SourceError(f"{source} is a directory; name the checkpoint file in it")
    if not path.exists():
        raise SourceError(f"{source}: no such file; SOURCE is a repconv checkpoint ({' or '.join(SUFFIXES)})")
    if path.suffix not in SUFFIXES:
        raise SourceError(f"{source}: SOURCE is a repconv checkpoint ending in {' or '.join(SUFFIXES)}")
    return Source(path, sha256(path), load(path))
