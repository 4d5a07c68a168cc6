"""Labelled images: held in memory, or read one by one from folders or straight from a zip."""

from __future__ import annotations

import io
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from repconv.errors import BackendError, SearchError
from repconv.files.archives import Archive, ArchiveError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")
_TRAIN, _HELD_OUT = ("train",), ("val", "valid", "validation", "test")
SMALL = 64
"""Images of at most this many pixels a side are decoded once and held in memory."""


class Images(Protocol):
    """Labelled images, as `torch.utils.data.Dataset` has them: uint8 [c, h, w] and the class's number."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its class."""


@final
@dataclass(frozen=True, eq=False)
class HeldImages:
    """In memory: images uint8 [n, c, h, w], labels [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


@final
class StoredImages:
    """Image files in a folder or a zip, decoded when asked for."""

    def __init__(self, root: Path, files: Sequence[tuple[str, int]]) -> None:
        self.root, self.files = root, tuple(files)
        self._archive: Archive | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name, label = self.files[index]
        return _decoded(self._bytes(name), f"{self.root}: {name}"), label

    def __getstate__(self) -> dict[str, object]:
        # A worker process opens the zip for itself: two that share a file handle read each other's bytes.
        return {"root": self.root, "files": self.files, "_archive": None}

    def _bytes(self, name: str) -> bytes:
        try:
            if self.root.is_dir():
                return (self.root / name).read_bytes()
            if self._archive is None:
                stream = self.root.open("rb")
                weakref.finalize(self, stream.close)
                self._archive = Archive(stream, any_case=True)
            return self._archive.read(name)
        except (OSError, ArchiveError, KeyError) as error:
            raise SearchError(f"cannot read {name} in {self.root}: {error}") from error


def image_folder(path: Path, *, split: str | None = None) -> tuple[StoredImages, tuple[str, ...]]:
    """The images of an ImageNet layout, `.../CLASS/NAME.jpg`, in a folder or a zip, and the names of their classes.

    Args:
        path: the folder or the zip.
        split: "train" or "test": only images below a folder that says so, if there are such folders (`train`; `val`,
            `valid`, `validation`, `test`).

    Raises:
        SearchError: nothing readable there, or fewer than two classes to train on.
    """
    names = _file_names(path)
    found = sorted(n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES and len(PurePosixPath(n).parts) > 1)
    if split is not None:
        marks = _TRAIN if split == "train" else _HELD_OUT
        marked = [n for n in found if set(PurePosixPath(n).parts[:-2]) & set(marks)]
        others = [n for n in found if set(PurePosixPath(n).parts[:-2]) & {*_TRAIN, *_HELD_OUT}]
        found = marked if others else found if split == "train" else []
    classes = tuple(sorted({PurePosixPath(n).parent.name for n in found}))
    if (split == "train" and len(classes) < 2) or (split is None and not classes):
        raise SearchError(
            f"{path}: expected images in a folder a class (.../CLASS/NAME.jpg), found {len(found)} images of "
            f"{len(classes)} classes"
        )
    numbers = {name: i for i, name in enumerate(classes)}
    return StoredImages(path, [(n, numbers[PurePosixPath(n).parent.name]) for n in found]), classes


def held(images: Images) -> HeldImages | None:
    """Small images of one size, decoded into memory; None if the first is large or sizes differ."""
    first, _ = images[0]
    if max(first.shape[1:]) > SMALL:
        return None
    pictures, labels = zip(*(images[i] for i in range(len(images))), strict=True)
    if any(picture.shape != first.shape for picture in pictures):
        return None
    return HeldImages(torch.stack(pictures), torch.tensor(labels))


def _file_names(path: Path) -> list[str]:
    if path.is_dir():
        return [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    if not path.exists():
        raise SearchError(f"{path}: no such folder or zip of images")
    try:
        with path.open("rb") as stream:
            return list(Archive(stream, any_case=True).members)
    except (OSError, ArchiveError) as error:
        raise SearchError(f"{path} is neither a folder nor a readable zip: {error}") from error


def _decoded(content: bytes, where: str) -> Tensor:
    """uint8 [3, h, w]."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise BackendError("pillow is not installed; install it with: pip install 'repconv[search]'") from None
    try:
        pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise SearchError(f"{where} is no readable image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
