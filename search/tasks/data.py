"""Data by name: `cifar10:PATH`, `cifar100:PATH`, `imagefolder:PATH`, `digits`, `package.module:factory`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repconv.errors import BackendError, RepconvError, SearchError
from repconv.models.libraries import Factory
from repconv.sources.checkpoint import Normalization

from .crops import CropAndFlip
from .images import HeldImages, LabelledImages, StoredImages, held, image_folder
from .task import Task

FORMS = "cifar10:PATH, cifar100:PATH, imagefolder:PATH (a folder or a .zip), digits or package.module:factory"
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MISSING = "{} is not installed; install it with: pip install 'repconv[search]'"


def is_own_data(name: str) -> bool:
    """Whether opening the data of this name runs code of the user's."""
    kind, _, rest = name.partition(":")
    return bool(rest) and kind not in ("cifar10", "cifar100", "imagefolder")


def open_data(name: str, test: str = "", *, image_size: int = 0) -> Task:
    """What `name` names.

    Args:
        name: one of `FORMS`.
        test: test images of the same classes where `name` has none: an `imagefolder:PATH`.
        image_size: pixels a side that images of a folder are cropped to, unless they are small and of one size; 0: as
            their own sizes suggest, at most 224.

    Raises:
        SearchError: nothing readable there.
        BackendError: a library is missing.
    """
    kind, _, rest = name.partition(":")
    if kind == "digits" and not rest:
        task = _digits()
    elif kind in ("cifar10", "cifar100"):
        task = _cifar(kind, Path(rest))
    elif kind == "imagefolder":
        task = _folder(Path(rest), image_size)
    elif is_own_data(name):
        task = _own(name)
    else:
        raise SearchError(f"unknown data {name!r}; data is {FORMS}")
    if not test:
        return task
    return replace(task, test=_test_images(test, task))


def _test_images(name: str, task: Task) -> LabelledImages:
    kind, _, rest = name.partition(":")
    if kind != "imagefolder":
        raise SearchError(f"test data is imagefolder:PATH, got {name!r}")
    images, classes = image_folder(Path(rest))
    if set(classes) - set(task.class_names):
        unknown = sorted(set(classes) - set(task.class_names))
        raise SearchError(f"{rest} has the class {unknown[0]!r}, which the training data does not have")
    numbers = [task.class_names.index(c) for c in classes]
    renumbered = StoredImages(images.source, tuple((n, numbers[label]) for n, label in images.files))
    return held(renumbered) or renumbered


def _transforms() -> Any:  # noqa: ANN401  # an optional module
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise BackendError(_MISSING.format("torchvision")) from None
    return v2


def _digits() -> Task:
    """scikit-learn's 8x8 digits; the last 360, by other writers, are the test images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BackendError(_MISSING.format("scikit-learn")) from None
    found = load_digits()
    images = torch.from_numpy(found.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(found.target)
    return _small(
        HeldImages(images[:-360], labels[:-360]),
        HeldImages(images[-360:], labels[-360:]),
        tuple(map(str, range(10))),
        flip=False,
    )


def _cifar(kind: str, path: Path) -> Task:
    try:
        from torchvision import datasets
    except ImportError:
        raise BackendError(_MISSING.format("torchvision")) from None
    family = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    root = path.parent if path.name == family.base_folder else path
    try:
        parts = [family(str(root), train=train) for train in (True, False)]
    except (OSError, RuntimeError, ValueError) as error:
        raise SearchError(
            f"{path}: expected the folder that holds {family.base_folder}, as torchvision unpacks it ({error}); for "
            "folders or a zip of image files use imagefolder:PATH"
        ) from error
    train, test = (
        HeldImages(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return _small(train, test, tuple(parts[0].classes), flip=True)


def _folder(path: Path, image_size: int) -> Task:
    if not path.is_file():
        return _read_folder(path, image_size)
    about = path.stat()
    return _read_zip(path.resolve(), image_size, (about.st_mtime_ns, about.st_size))


@lru_cache(maxsize=1)
def _read_zip(path: Path, image_size: int, _changed: tuple[int, int]) -> Task:
    """Read once where one process trains several networks on it: decoding takes long beside a short training."""
    return _read_folder(path, image_size)


def _read_folder(path: Path, image_size: int) -> Task:
    train, classes = image_folder(path, split="train")
    test, test_classes = image_folder(path, split="test")
    if test_classes and test_classes != classes:
        raise SearchError(f"{path}: its training and test images are of other classes")
    small = held(train)
    if small is not None:
        return _small(small, (held(test) if len(test) else None), classes, flip=True)
    v2 = _transforms()
    image_size = image_size or usual_size(train)
    return Task(
        train=train,
        test=test if len(test) else None,
        class_names=classes,
        input_shape=(3, image_size, image_size),
        normalization=IMAGENET,
        augment=v2.Compose([v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]),
        prepare=v2.Compose([v2.Resize(round(image_size / 0.875), antialias=True), v2.CenterCrop(image_size)]),
    )


_LARGEST, _MULTIPLE, _LOOKED_AT = 224, 8, 32


def usual_size(images: LabelledImages) -> int:
    """Pixels a side to crop to: the shorter side of half of the images looked at has as many, at most 224.

    A multiple of 8, so that strides leave whole numbers; below 8 as it is.
    """
    count = len(images)
    looked_at = range(0, count, -(-count // _LOOKED_AT))
    sides = sorted(min(images[i][0].shape[1:]) for i in looked_at)
    size = min(sides[len(sides) // 2], _LARGEST)
    return size // _MULTIPLE * _MULTIPLE or size


def _small(train: HeldImages, test: HeldImages | None, classes: tuple[str, ...], *, flip: bool) -> Task:
    """Crops after padding by an eighth, flips; normalised by the training images' own mean and deviation."""
    _, channels, height, width = train.images.shape
    # By the batch: all of CIFAR-10 in float64 would take 1.2 GB.
    sums = torch.stack(
        [
            torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
            for part in train.images.split(4096)
            for x in [part.double() / 255]
        ]
    ).sum(0)
    mean, square = sums / (train.images.numel() / channels)
    std = (square - mean.square()).clamp(min=0).sqrt()
    normalization = Normalization(tuple(mean.tolist()), tuple(std.clamp(min=1 / 255).tolist()))
    return Task(
        train=train,
        test=test,
        class_names=classes,
        input_shape=(channels, height, width),
        normalization=normalization,
        augment=CropAndFlip(height // 8, flip),
        prepare=_as_it_is,
    )


def _as_it_is(image: Tensor) -> Tensor:
    return image


def _own(name: str) -> Task:
    """A user's own task."""
    factory: Callable[[], object] | object = Factory(name).call
    try:
        task = factory() if callable(factory) else factory
    except RepconvError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise SearchError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise SearchError(f"{name} made a {type(task).__name__}, expected a repconv.search.tasks.task.Task")
    return task
