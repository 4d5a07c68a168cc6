"""Image files in folders by class, `.../CLASS/NAME.jpg`: below a folder, or straight in a zip."""

from __future__ import annotations

import io
import weakref
from pathlib import Path, PurePosixPath
from typing import Any, final

from ..errors import BackendError, RepconvError
from .foreign.archives import Archive, ArchiveError

LARGEST_PIXELS = 2**26
"""Pixels of an image that is decoded: 192 MB of colours."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")


def class_of(name: str) -> str:
    """The folder an image lies in."""
    return PurePosixPath(name).parent.name


@final
class ImageFiles:
    """Image files of a folder or a zip by their path inside it, read when asked for.

    Args:
        path: the folder or the zip.
        error: what is raised where something is not there or cannot be read.
    """

    def __init__(self, path: Path, error: type[RepconvError]) -> None:
        self.path, self._error = path, error
        self._archive: Archive | None = None

    def __getstate__(self) -> dict[str, object]:
        # A worker process opens the zip for itself: two that share a file handle read each other's bytes.
        return {**vars(self), "_archive": None}

    def names(self) -> list[str]:
        """Every image, sorted.

        Raises:
            RepconvError: `error`, there is no such folder or zip.
        """
        if not self.path.exists():
            raise self._error(f"{self.path}: no such folder or zip file of images")
        try:
            if self.path.is_dir():
                names = [file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file()]
            else:
                names = list(self._opened().members)
        except (OSError, ArchiveError) as error:
            raise self._error(f"{self.path} is neither a folder nor a readable zip: {error}") from error
        return sorted(name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES)

    def image(self, name: str, mode: str = "RGB") -> Any:  # noqa: ANN401  # of Pillow, which may be missing
        """One of them, decoded, in a mode of Pillow's.

        Raises:
            RepconvError: `error`, it cannot be read or is no image. BackendError: Pillow is missing.
        """
        try:
            from PIL import Image
        except ImportError:
            raise BackendError("image files need Pillow; install it with: pip install pillow") from None
        try:
            content = (self.path / name).read_bytes() if self.path.is_dir() else self._opened().read(name)
        except (OSError, ArchiveError, KeyError) as error:
            raise self._error(f"{self.path}: cannot read {name} in it: {error}") from error
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > LARGEST_PIXELS:
                    raise ValueError(
                        f"it is of {image.width} x {image.height} pixels, at most {LARGEST_PIXELS:,} are read"
                    )
                return image.convert(mode)
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:  # UnidentifiedImageError is an OSError
            raise self._error(f"{self.path}: {name} is no readable image ({error}); mend or remove it") from error

    def _opened(self) -> Archive:
        if self._archive is None:
            stream = self.path.open("rb")
            weakref.finalize(self, stream.close)
            self._archive = Archive(stream, any_case=True)
        return self._archive
