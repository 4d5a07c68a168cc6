"""CIFAR-10 from a zip of image folders, as tensors, with the usual augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repconv.errors import SourceError
from repconv.files.images import ImageFiles, class_of

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def read_zip(path: Path) -> tuple[Tensor, Tensor]:
    """Images [n, 3, 32, 32] as uint8 and labels [n], sorted by file name, of `.../CLASS/NAME.jpg` entries.

    Raises:
        SourceError: no such images in the file.
    """
    files = ImageFiles(path, SourceError)
    names = [name for name in files.names() if class_of(name) in CLASSES]
    if not names:
        raise SourceError(f"{path} holds no images in folders named {', '.join(CLASSES)}")
    images = np.stack([np.asarray(files.image(name)) for name in names])
    labels = torch.tensor([CLASSES.index(class_of(name)) for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def normalize(images: Tensor) -> Tensor:
    """uint8 images [n, 3, h, w] -> float32 with zero mean and unit variance, channels last."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Random crops of the images padded by `pad`, and random horizontal flips; [n, 3, h, w] -> the same shape."""
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad), mode="reflect")
    rows = torch.randint(2 * pad + 1, (n, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * pad + 1, (n, 1), generator=generator) + torch.arange(width)
    flip = torch.rand(n, generator=generator) < 0.5
    columns[flip] = columns[flip].flip(1)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
