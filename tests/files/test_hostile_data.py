"""Data files that are damaged, of other kinds, or unpack to more than there is, are said in words."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repconv.errors import SourceError
from repconv.export.inputs.images import read_arrays
from repconv.files.foreign.archives import Archive, ArchiveError
from repconv.files.images import ImageFiles


def zipped(parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def arrays(**held: np.ndarray) -> Callable[[], bytes]:
    def write() -> bytes:
        stream = io.BytesIO()
        np.savez(stream, **held)
        return stream.getvalue()

    return write


def header(text: str) -> Callable[[], bytes]:
    content = text.encode() + b"\n"
    return lambda: zipped({"x.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + bytes(64)})


def described(shape: str, kind: str = "<f4") -> Callable[[], bytes]:
    return header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}")


ARRAYS = {
    "scalar": (arrays(x=np.float32(3)), r"x.npy is of shape \(\), expected n rows"),
    "objects": (arrays(x=np.array([[1], [1, 2]], dtype=object)), "x.npy holds object"),
    "texts": (arrays(x=np.array(["a"])), "x.npy holds <U1"),
    "records": (arrays(x=np.zeros(4, dtype=[("a", "f4")])), "x.npy holds"),
    "complex": (arrays(x=np.zeros(4, np.complex64)), "complex64, expected integers"),
    "dates": (arrays(x=np.zeros(4, "M8[s]")), "datetime64"),
    "huge": (described("(1000000000000, 3)"), "64 bytes of numbers"),
    "negative": (described("(-1, 3)"), "expected n rows"),
    "odd shape": (described("'a'"), "shape is not valid"),
    "odd kind": (described("(1,)", "zz"), "not a valid dtype"),
    "unclosed": (header("[" * 500), "not a readable .npz"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_other_kinds_are_said(name: str, tmp_path: Path) -> None:
    write, words = ARRAYS[name]
    (tmp_path / "a.npz").write_bytes(write())
    with pytest.raises(SourceError, match=words):
        read_arrays(tmp_path / "a.npz")


def test_arrays_of_another_byte_order_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(4, dtype=">f4"))
    found = read_arrays(tmp_path / "a.npz")["x"]
    assert found.dtype == np.dtype("=f4")
    assert found.tolist() == [0, 1, 2, 3]


def test_an_archive_that_stretches_as_far_as_real_ones_is_read() -> None:
    content = bytes(2**20)  # a thousandfold, and small
    assert Archive(io.BytesIO(zipped({"a": content}, zipfile.ZIP_DEFLATED))).read("a") == content


def test_what_unpacks_to_far_more_is_refused_before_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repconv.files.foreign.archives._ROOM", 2**19)
    with pytest.raises(ArchiveError, match="would unpack to 1,048,576"):
        Archive(io.BytesIO(zipped({"a": bytes(2**20)}, zipfile.ZIP_DEFLATED)))


def vast() -> bytes:
    """A PNG that says it is of 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def picture(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: zipped({"a/1.png": vast()}), "no readable image"),
        (lambda: zipped({"a/1.png": picture((90, 90))}), "90 x 90 pixels, at most 8,000 are read"),
        (lambda: zipped({"a/1.png": b"text"}), "no readable image"),
        (lambda: zipped({"a/1.png": picture((8, 8))}, zipfile.ZIP_LZMA), "packed by method 14"),
        (lambda: zipped({"a/1.png": picture((8, 8))[:40]}), "no readable image"),
    ],
)
def test_images_that_cannot_be_read_are_said(
    content: Callable[[], bytes], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repconv.files.images.LARGEST_PIXELS", 8000)
    (tmp_path / "i.zip").write_bytes(content())
    with pytest.raises(SourceError, match=words):
        ImageFiles(tmp_path / "i.zip", SourceError).image("a/1.png")
