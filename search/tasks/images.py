"""Labelled images: held in memory, or read one by one from folders or straight from a zip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from repconv.errors import SearchError
from repconv.files.images import ImageFiles, class_of

_TRAIN, _HELD_OUT = ("train",), ("val", "valid", "validation", "test")
SMALL = 64
"""Images of at most this many pixels a side are decoded once and held in memory."""


class LabelledImages(Protocol):
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
@dataclass(frozen=True, eq=False)
class StoredImages:
    """Image files with the numbers of their classes, decoded when asked for."""

    source: ImageFiles
    files: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name, label = self.files[index]
        return torch.from_numpy(np.array(self.source.image(name))).permute(2, 0, 1), label


def image_folder(path: Path, *, split: str | None = None) -> tuple[StoredImages, tuple[str, ...]]:
    """The images of an ImageNet layout, `.../CLASS/NAME.jpg`, in a folder or a zip, and the names of their classes.

    Args:
        path: the folder or the zip.
        split: "train" or "test": only images below a folder that says so, if there are such folders (`train`; `val`,
            `valid`, `validation`, `test`).

    Raises:
        SearchError: nothing readable there, or fewer than two classes to train on.
    """
    source = ImageFiles(path, SearchError)
    found = [name for name in source.names() if class_of(name)]
    if split is not None:
        marks = _TRAIN if split == "train" else _HELD_OUT
        marked = [n for n in found if set(PurePosixPath(n).parts[:-2]) & set(marks)]
        others = [n for n in found if set(PurePosixPath(n).parts[:-2]) & {*_TRAIN, *_HELD_OUT}]
        found = marked if others else found if split == "train" else []
    classes = tuple(sorted({class_of(n) for n in found}))
    if (split == "train" and len(classes) < 2) or (split is None and not classes):
        raise SearchError(
            f"{path}: expected images in a folder a class (.../CLASS/NAME.jpg), found {len(found)} images of "
            f"{len(classes)} classes"
        )
    numbers = {name: i for i, name in enumerate(classes)}
    return StoredImages(source, tuple((n, numbers[class_of(n)]) for n in found)), classes


def held(images: LabelledImages) -> HeldImages | None:
    """Small images of one size, decoded into memory; None if the first is large or sizes differ."""
    first, _ = images[0]
    if max(first.shape[1:]) > SMALL:
        return None
    pictures, labels = zip(*(images[i] for i in range(len(images))), strict=True)
    if any(picture.shape != first.shape for picture in pictures):
        return None
    return HeldImages(torch.stack(pictures), torch.tensor(labels))
