"""Inputs of the user's for two artefacts: arrays of a file, or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repconv.errors import SourceError
from repconv.sources.checkpoint import Normalization

from ..artefacts.artefact import Artefact
from ..comparing.compare import Inputs, common_dtypes, common_shapes, settled_size
from .images import FOLDER, read_arrays, read_images

_CALL = 8
"""Images a call, where the batch is open."""


def read_inputs(
    text: str,
    a: Artefact,
    b: Artefact,
    size: tuple[int, ...] | None,
    normalization: Normalization | None,
    *,
    limit: int,
) -> list[Inputs]:
    """The calls that `text` holds, as both artefacts take them.

    Args:
        text: an `.npz` file with one array [n, ...] an input, by the input's name or in their order (a lone `images` is
            read as `read_images` does), or a folder or zip of images, with `imagefolder:` before it or without.
        a: one artefact.
        b: the other.
        size: (c, h, w) of an image, where neither says.
        normalization: of images in [0, 1].
        limit: at most so many images or rows.

    Raises:
        SourceError: nothing readable there, or it does not fit.
        BackendError: images, and Pillow is missing.
    """
    shapes, dtypes = common_shapes(a, b, size), common_dtypes(a, b)
    path = Path(text.removeprefix(FOLDER))
    is_images = text.startswith(FOLDER) or path.is_dir() or path.suffix == ".zip"
    arrays = {} if is_images else read_arrays(path)
    if is_images or (list(arrays) in (["images"], ["images", "labels"]) and len(shapes) == 1 and len(shapes[0]) == 4):
        c, h, w = _image_size(shapes, settled_size(a, b, size))
        where = f"{FOLDER}{path}" if is_images else text
        rows: list[Tensor] = [read_images(where, (c, h, w), normalization, limit=limit).inputs]
    else:
        rows = [torch.from_numpy(np.ascontiguousarray(array[:limit])) for array in _ordered(arrays, a, b, text)]
    rows = [_fitting(row, shape, dtype, text) for row, shape, dtype in zip(rows, shapes, dtypes, strict=True)]
    counts = {len(row) for row in rows}
    fixed = {shape[0] for shape in shapes if shape and shape[0] is not None}
    step = max(fixed) if fixed else _CALL
    if len(counts) != 1 or len(fixed) > 1 or min(counts) < (step if fixed else 1):
        raise SourceError(f"{text} holds {_said(counts)} rows, the artefacts take {_said(fixed) or 'any'} a call")
    count = counts.pop()
    ends = range(step, count + 1, step) if fixed else range(step, count + step, step)
    return [tuple(row[end - step : end] for row in rows) for end in ends]


def _ordered(arrays: Mapping[str, np.ndarray], a: Artefact, b: Artefact, text: str) -> list[np.ndarray]:
    """One array an input: by the names either artefact has, else in order."""
    for artefact in (a, b):
        names = [declared.name for declared in artefact.inputs]
        if set(names) <= set(arrays):
            return [arrays[name] for name in names]
    found = [array for name, array in arrays.items() if name != "labels"]
    if len(found) != len(a.inputs):
        wanted = ", ".join(declared.name for declared in a.inputs)
        raise SourceError(f"{text}: expected one array an input ({wanted}), found {', '.join(arrays) or 'none'}")
    return found


def _fitting(row: Tensor, shape: Sequence[int | None], dtype: torch.dtype, text: str) -> Tensor:
    """As the artefacts take it: of their dtype, where it is of the same kind, and of their sizes."""
    is_float = row.is_floating_point()
    sizes = list(row.shape[1:])
    wanted = list(shape[1:])
    if is_float != dtype.is_floating_point or row.is_complex():
        raise SourceError(f"{text}: an array of {row.dtype}, the artefacts take {dtype}".replace("torch.", ""))
    if len(sizes) != len(wanted) or any(w not in (None, s) for s, w in zip(sizes, wanted, strict=True)):
        open_ones = "x".join("?" if w is None else str(w) for w in ["n", *wanted])
        raise SourceError(f"{text}: an array of {'x'.join(map(str, row.shape))}, the artefacts take {open_ones}")
    return row.to(dtype)


def _image_size(shapes: Sequence[Sequence[int | None]], size: tuple[int, ...] | None) -> tuple[int, int, int]:
    declared = shapes[0][1:] if len(shapes) == 1 and len(shapes[0]) == 4 else ()
    known = [d if d is not None else s for d, s in zip(declared, size or (None,) * 3, strict=False)] if declared else []
    c, h, w = (*known, None, None, None)[:3]
    if c is None or h is None or w is None:
        raise SourceError("images are for networks of one image whose size is known; give it: --input-shape 3,224,224")
    return c, h, w


def _said(numbers: set[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))
