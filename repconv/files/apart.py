"""What a command reads and what it writes, as files: no output is an input, none is another output.

Files are told apart as the file system does: links of both kinds are followed, and names that differ in their case or
in how their accents are composed are one, since some file systems take them for one.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError

Parts = Mapping[str, Sequence[str]]
"""Of a file by its suffix, the suffixes of those that belong to it."""


@dataclass(frozen=True)
class Place:
    """A file or folder, and the option or argument that names it."""

    path: Path
    said_by: str

    @property
    def words(self) -> str:
        """For messages."""
        return f"{self.path} ({self.said_by})"


def require_apart(read: Iterable[Place], written: Iterable[Place]) -> None:
    """Insist that every file written is apart from what is read and from every other one written.

    Args:
        read: files; a folder stands for all that is in it.
        written: files. Those that one option names belong together.

    Raises:
        OutputError: two are one file; it names both.
    """
    read, written = list(read), list(written)
    for output in written:
        eaten = next((source for source in read if _is_within(output.path, source.path)), None)
        if eaten is not None:
            raise OutputError(f"{output.words} is the source itself, {eaten.words}; name another output")
    for index, output in enumerate(written):
        other = next((o for o in written[:index] if o.said_by != output.said_by and _is_one(o.path, output.path)), None)
        if other is not None:
            raise OutputError(
                f"{other.words} and {output.words} are one file, named for two outputs; give each a file of its own"
            )


def written_with(path: Path, parts: Parts) -> list[Path]:
    """The files that writing `path` may write: itself, and what belongs to it by its suffix."""
    large = [path.with_name(f"{path.name}.data")] if path.suffix == ".onnx" else []  # of models above 2 GB
    return [path, *_beside(path, parts), *large]


def read_with(path: Path, parts: Parts) -> list[Path]:
    """The files that reading `path` reads: itself, and what belongs to it by its suffix or by its own words."""
    return [path, *_beside(path, parts), *(_external(path) if path.suffix == ".onnx" and path.is_file() else [])]


def named(text: str, parts: Parts) -> list[Path]:
    """The files that are there and that `text` may name.

    `text` is whatever a command line takes for input: a file, `NAME@FILE`, `imagefolder:FOLDER`, `KEY=FILE`, or
    `package.module:factory`, which is code. Folders count only behind the name of a data set; `timm:NAME` is no folder.
    """
    kept = [path for path in _parts(text) if path.is_file()]
    kept += [path for path in map(Path, _after_data_set(text)) if path.is_dir()]
    module = text.partition(":")[0].rpartition("=")[2].replace(".", os.sep)
    written_as_file = Path(text.partition(":")[0].rpartition("=")[2])
    if written_as_file.suffix == ".py" and written_as_file.is_file():
        kept.append(written_as_file)
    code = [Path(f"{module}.py"), Path(module, "__init__.py")] if ":" in text and module else []
    return [*(file for path in kept for file in read_with(path, parts)), *(path for path in code if path.is_file())]


def irregular(text: str) -> Path | None:
    """What `text` may name that is neither a file nor a folder: a pipe, a device or a socket, which may never end."""
    return next((path for path in _parts(text) if path.exists() and not (path.is_file() or path.is_dir())), None)


def _parts(text: str) -> list[Path]:
    """The whole text, and what stands behind a `:`, `@` or `=`, as paths."""
    starts = [0, *(i + 1 for i, letter in enumerate(text) if letter in ":@=")]
    return [Path(text[start:]) for start in starts if text[start:]]


def _after_data_set(text: str) -> list[str]:
    kinds = ("imagefolder:", "cifar10:", "cifar100:")
    return [text[text.index(kind) + len(kind) :] for kind in kinds if kind in text]


def _beside(path: Path, parts: Parts) -> list[Path]:
    return [path.with_suffix(suffix) for suffix in parts.get(path.suffix, ())]


def _external(path: Path) -> Iterator[Path]:
    """Files in which an ONNX model keeps its weights, as far as it can be read at all."""
    import onnx

    from .foreign.beside import locations

    try:
        places = locations(onnx.load(str(path), load_external_data=False))
    except Exception:  # noqa: BLE001  # what it is no model for is said by whoever reads it
        return
    yield from (path.parent / place for place in places)


def _is_one(a: Path, b: Path) -> bool:
    """Whether two paths are one file, there or not yet."""
    if a.exists() and b.exists() and a.samefile(b):
        return True
    a, b = a.resolve(), b.resolve()
    return _folded(a.name) == _folded(b.name) and a.parent == b.parent


def _is_within(path: Path, source: Path) -> bool:
    """Whether writing `path` changes `source`, a file, or a folder that has `path` in it already."""
    if source.is_dir():
        return path.exists() and source.resolve() in path.resolve().parents
    return _is_one(path, source)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
