"""Files beside an ONNX model that hold its weights, read without leaving the place that the model is in.

The model itself says which files these are, so that whoever wrote it decides what is opened. A link is followed where
it ends in the model's own folder, or, in a hub's cache, in the folder of the same repository: there
`snapshots/REVISION/` holds nothing but links into `blobs/`. What was looked at is what is read: from that folder on no
link is followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from ..edited import bodies_of

_CACHED = re.compile(r"(models|datasets|spaces)--.+")
_BLOBS, _SNAPSHOTS = "blobs", "snapshots"
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_WHOLE_BYTES = frozenset((
    "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "BOOL", "COMPLEX64", "COMPLEX128",
))  # fmt: skip
"""Element types that take a whole number of bytes."""


class BesideError(ValueError):
    """Weights beside a model that are not read; the message says which, why, and what to do."""


def locations(model: onnx.ModelProto) -> list[str]:
    """The files that a model keeps weights in, as it spells them, each once."""
    return list(dict.fromkeys(_said(tensor).get("location", "") for tensor in _kept_beside(model)))


def put_weights(model: onnx.ModelProto, path: Path) -> None:
    """Put into `model`, which is that of `path`, the weights that it keeps in other files.

    Raises:
        BesideError: a file is not there, not within the model's place, no plain file, or holds too little.
    """
    for tensor in _kept_beside(model):
        said = _said(tensor)
        location = said.get("location", "")
        try:
            with os.fdopen(_opened(path, location), "rb") as stream:
                tensor.raw_data = _bytes(stream.fileno(), tensor, said)
        except BesideError as problem:
            raise BesideError(f"its external data, weights in {location!r}, {problem}") from None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BesideError(f"its external data, weights in {location!r}, cannot be read: {why}") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")


def _kept_beside(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of numbers, those in attributes, subgraphs and functions included."""
    for body in bodies_of(model):
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
            for sparse in body.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for attribute in (a for node in body.node for a in node.attribute):
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)


def _said(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _opened(path: Path, location: str) -> int:
    """The file at `location` beside the model `path`, open for reading."""
    spellings = PurePosixPath(location), PureWindowsPath(location)
    if not location or any(p.is_absolute() or p.drive or ".." in p.parts for p in spellings):
        raise BesideError(f"are no file beside the model: a name below its folder is expected. {_remedy(path)}")
    beside = path.parent / location
    try:
        target = beside.resolve(strict=True)
    except FileNotFoundError:
        led = f"; {path} is a link: name the file it leads to, {path.resolve()}" if path.is_symlink() else ""
        raise BesideError(f"are not there: there is no {beside}{led}") from None
    except (OSError, RuntimeError):  # Python 3.13 has an OSError for a circle of links
        raise BesideError(f"cannot be found: the links from {beside} lead nowhere. {_remedy(path)}") from None
    folder = next((f for f in _places(path) if f in target.parents), None)
    if folder is None:
        raise BesideError(
            f"are a link to {target}, outside the model's folder{' and its repository' if _repository(path) else ''}. "
            f"{_remedy(path)}"
        )
    descriptor = _without_links(folder, target.relative_to(folder).parts)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise BesideError(f"are no plain file: {target} is a folder, a pipe or a device. {_remedy(path)}")
    raise BesideError(
        f"are a file with {found.st_nlink} names (hard links), of which one may be elsewhere. {_remedy(path)}"
    )


def _places(path: Path) -> list[Path]:
    """The folders a side file may lie in, at any depth: the model's own and, in a hub's cache, its repository's."""
    repository = _repository(path)
    return [path.parent.resolve(), *([] if repository is None else [repository])]


def _repository(path: Path) -> Path | None:
    """The nearest folder above of a repository in a hub's cache, where the model is one of its snapshots."""
    folder = path.parent.resolve()
    above = next((f for f in folder.parents if _CACHED.fullmatch(f.name) and (f / _BLOBS).is_dir()), None)
    return above if above is not None and above / _SNAPSHOTS in folder.parents else None


def _without_links(folder: Path, parts: tuple[str, ...]) -> int:
    """Open a file below a folder, following no link on the way, whatever has become of the names meanwhile."""
    if os.open not in os.supports_dir_fd:
        return os.open(folder.joinpath(*parts), _READ | _NO_LINK)
    here = os.open(folder, _READ | os.O_DIRECTORY)
    for i, part in enumerate(parts):
        try:
            inner = os.open(part, _READ | _NO_LINK | (os.O_DIRECTORY if i + 1 < len(parts) else 0), dir_fd=here)
        finally:
            os.close(here)
        here = inner
    return here


def _bytes(descriptor: int, tensor: onnx.TensorProto, said: dict[str, str]) -> bytes:
    """What the file holds of a tensor: from `offset` on as much as the tensor's shape takes."""
    held, offset = os.fstat(descriptor).st_size, int(said.get("offset") or 0)
    needed = _size(tensor)
    length = int(said["length"]) if said.get("length") else held - offset if needed is None else needed
    if offset < 0 or length < 0 or offset + length > held:
        raise BesideError(
            f"are too few for {tensor.name}: bytes {offset:,} to {offset + length:,} of {held:,}; was it fetched whole?"
        )
    if needed is not None and length != needed:
        raise BesideError(f"are not of {tensor.name}: {length:,} bytes for a tensor that takes {needed:,}")
    os.lseek(descriptor, offset, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        content = stream.read(length)
    if len(content) != length:
        raise BesideError(f"are too few for {tensor.name}: the file was cut short while it was read")
    return content


def _size(tensor: onnx.TensorProto) -> int | None:
    """Bytes that the tensor's shape takes; None where that is no matter of whole bytes an element."""
    known = {number: name for name, number in onnx.TensorProto.DataType.items()}
    if known.get(tensor.data_type) not in _WHOLE_BYTES:
        return None
    size = 2 if tensor.data_type == onnx.TensorProto.BFLOAT16 else tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    for side in tensor.dims:
        size *= side
    return size


def _remedy(path: Path) -> str:
    return (
        "If that file is meant, copy it beside the model under that name, or copy the folder with its links followed "
        f"(cp -rL {path.parent} COPY) and name the model in the copy"
    )
