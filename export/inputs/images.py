"""Real images for calibration and verification: image folders, zips of them, and arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from numpy.lib.format import read_array, read_array_header_1_0, read_array_header_2_0, read_magic
from torch import Tensor

from repconv.errors import SourceError
from repconv.files.foreign.archives import Archive
from repconv.files.images import SUFFIXES, ImageFiles, class_of
from repconv.sources.checkpoint import Normalization

from ..settings import Preprocessing

FOLDER = "imagefolder:"


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of one size in an order that mixes classes.

    pixels: uint8 [n, c, h, w], in the network's channel order; None where the file held the network's own inputs.
    inputs: float32 [n, c, h, w], what the network itself takes.
    labels: [n], the network's class numbers; None where nothing says them.
    origin: what they are, in words.
    """

    pixels: Tensor | None
    inputs: Tensor
    labels: Tensor | None
    origin: str

    @property
    def real(self) -> bool:
        """False for random ones."""
        return self.origin != RANDOM

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, start: int, end: int | None = None) -> Images:
        """Some of them, in a row."""
        pixels, labels = (None if t is None else t[start:end] for t in (self.pixels, self.labels))
        return Images(pixels=pixels, inputs=self.inputs[start:end], labels=labels, origin=self.origin)

    def given_to(self, preprocessing: Preprocessing | None) -> Tensor:
        """What an artefact with `preprocessing` in it takes for these images.

        Raises:
            SourceError: it takes pixels, and only the network's own inputs are known.
        """
        if preprocessing is None:
            return self.inputs
        if self.pixels is None:
            raise SourceError(
                f"{self.origin} holds the network's own inputs; an artefact with preprocessing in it takes pixels: "
                "give an image folder, or an .npz file of uint8 images"
            )
        pixels = self.pixels.flip(1) if preprocessing.bgr else self.pixels
        return pixels if preprocessing.uint8 else pixels.float() / 255


RANDOM = "random inputs"


def read_images(
    text: str,
    size: tuple[int, ...],
    normalization: Normalization | None,
    *,
    limit: int,
    class_names: Sequence[str] = (),
    seed: int = 0,
) -> Images:
    """Images of `size` (c, h, w) from `imagefolder:PATH` or a `.npz` file.

    An image folder, which may be a zip, holds one folder a class; images are scaled until they cover (h, w), then cut
    to it in the middle, and normalised. Labels are positions in `class_names`, or, if that is empty, of the folder
    among all folders in alphabetical order. A `.npz` file holds `images`, uint8 [n, h, w, c] or float32 [n, c, h, w] as
    the network takes them, and perhaps `labels` [n].

    Args:
        text: what to read.
        size: of the network's input.
        normalization: of images in [0, 1]; None: they are used as they are.
        limit: at most so many, drawn over all of them.
        class_names: of the network.
        seed: of the draw.

    Raises:
        SourceError: nothing readable there, or images of another size.
        BackendError: an image folder, and Pillow is missing.
    """
    if text.startswith(FOLDER):
        if len(size) != 3:
            taken = "x".join(map(str, size))
            raise SourceError(
                f"{text}: images, and the network takes {taken}; give a .npz file of such, float32 `images`"
            )
        pixels, labels = _read_folder(Path(text.removeprefix(FOLDER)), size, limit, class_names, seed)
        return Images(pixels=pixels, inputs=normalised(pixels, normalization), labels=labels, origin=text)
    path = Path(text)
    if path.suffix != ".npz":
        raise SourceError(f"{text!r}: images come from {FOLDER}FOLDER, {FOLDER}FILE.zip or a .npz file")
    return _read_arrays(path, size, normalization, limit, seed)


def random_images(
    size: tuple[int, ...], normalization: Normalization | None, count: int, *, pixels: bool, seed: int = 0
) -> Images:
    """Noise of unit variance, or with `pixels` uniformly random bytes, normalised."""
    generator = torch.Generator().manual_seed(seed)
    if not pixels:
        return Images(pixels=None, inputs=torch.randn(count, *size, generator=generator), labels=None, origin=RANDOM)
    drawn = torch.randint(0, 256, (count, *size), generator=generator, dtype=torch.uint8)
    return Images(pixels=drawn, inputs=normalised(drawn, normalization), labels=None, origin=RANDOM)


def normalised(pixels: Tensor, normalization: Normalization | None) -> Tensor:
    """uint8 [n, c, h, w] as the network takes it."""
    images = pixels.float() / 255
    if normalization is None:
        return images
    if len(normalization.mean) != pixels.shape[1]:
        raise SourceError(f"mean and std are of {len(normalization.mean)} channels, images of {pixels.shape[1]}")
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (normalization.mean, normalization.std))
    return (images - mean) / std


def _read_folder(
    path: Path, size: tuple[int, ...], limit: int, class_names: Sequence[str], seed: int
) -> tuple[Tensor, Tensor | None]:
    source = ImageFiles(path, SourceError)
    files = source.names()
    if not files:
        raise SourceError(
            f"{path} holds no images ({' '.join(SUFFIXES)}); expected one folder a class with images in it"
        )
    known = list(class_names) or sorted({class_of(name) for name in files})
    chosen = [files[index] for index in _draw(len(files), limit, seed)]
    mode = "L" if size[0] == 1 else "RGB"
    pixels = [np.asarray(_fitted(source.image(name, mode), size[1], size[2])) for name in chosen]
    labels = [known.index(class_of(name)) if class_of(name) in known else -1 for name in chosen]
    stacked = np.stack(pixels)
    stacked = stacked[..., None] if stacked.ndim == 3 else stacked
    if stacked.shape[3] != size[0]:
        raise SourceError(f"the network takes {size[0]} channels; image folders give 1 or 3")
    tensor = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()
    return tensor, None if -1 in labels else torch.tensor(labels)


def _draw(count: int, limit: int, seed: int) -> list[int]:
    """Up to `limit` of `count` positions, in a random order: files lie sorted by class."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [int(index) for index in order[:limit]]


def _fitted(image, height: int, width: int):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # Pillow is optional
    """Scaled until it covers (h, w), then cut in the middle."""
    if image.size == (width, height):
        return image
    scale = max(height / image.height, width / image.width)
    image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file, by name.

    Raises:
        SourceError: it is no readable file of plain arrays.
    """
    try:
        with path.open("rb") as stream:
            archive = Archive(stream)
            return {
                name.removesuffix(".npy"): _plain_array(name, archive.read(name))
                for name in archive.members
                if name.endswith(".npy")
            }
    except (OSError, ValueError, EOFError, SyntaxError, TokenError, TypeError, RecursionError) as error:
        raise SourceError(f"{path}: not a readable .npz file of plain arrays ({error})") from error


def _plain_array(name: str, content: bytes) -> np.ndarray:
    """An array of numbers [n, ...] in the bytes of an `.npy` file, which are as many as its header says.

    Raises:
        ValueError: it is another.
    """
    stream = io.BytesIO(content)
    header = read_array_header_1_0 if read_magic(stream) == (1, 0) else read_array_header_2_0
    shape, _, kind = header(stream)
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise ValueError(f"{name} holds {kind}, expected integers, truths or floating-point numbers of up to 64 bits")
    if not shape or min(shape) < 0:
        raise ValueError(f"{name} is of shape {shape}, expected n rows")
    if prod(shape) * kind.itemsize != len(content) - stream.tell():
        raise ValueError(f"{name} is of shape {shape}, and has {len(content) - stream.tell():,} bytes of numbers")
    stream.seek(0)
    array: np.ndarray = read_array(stream, allow_pickle=False)
    return array.astype(kind.newbyteorder("="), copy=False)


def _read_arrays(
    path: Path, size: tuple[int, ...], normalization: Normalization | None, limit: int, seed: int
) -> Images:
    arrays = read_arrays(path)
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None or not len(images):
        raise SourceError(f"{path}: expected an array `images`, found {', '.join(arrays) or 'nothing'}")
    wanted = {"float32": size} | ({"uint8": (*size[1:], size[0])} if len(size) == 3 else {})
    if wanted.get(str(images.dtype)) != images.shape[1:]:
        expected = " or ".join(f"{kind} n x {' x '.join(map(str, sides))}" for kind, sides in sorted(wanted.items()))
        raise SourceError(f"{path}: images are {images.dtype} {'x'.join(map(str, images.shape))}, expected {expected}")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise SourceError(f"{path}: labels are {labels.dtype} {labels.shape}, expected {len(images)} whole numbers")
    chosen = _draw(len(images), limit, seed)
    told = None if labels is None else torch.from_numpy(labels[chosen].astype(np.int64))
    tensor = torch.from_numpy(np.ascontiguousarray(images[chosen]))
    if tensor.dtype == torch.float32:
        return Images(pixels=None, inputs=tensor, labels=told, origin=str(path))
    pixels = tensor.permute(0, 3, 1, 2).contiguous()
    return Images(pixels=pixels, inputs=normalised(pixels, normalization), labels=told, origin=str(path))
