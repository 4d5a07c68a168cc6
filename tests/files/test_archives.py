"""Zip archives are read only where there is one reading of them; what ordinary tools write is."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repconv.files.foreign.archives import Archive, ArchiveError

CONTENTS = {"a/one.txt": b"one " * 100, "a/empty": b"", "b/zwei-\u00fc.bin": bytes(range(256)), "dir/": b""}


class Unseekable(io.RawIOBase):
    """A pipe: the writer cannot go back to a header and fills in sizes behind the data."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        return self.stream.write(data)


def zipped(contents=CONTENTS, method=zipfile.ZIP_DEFLATED, *, pipe: bool = False, wide: bool = False, comment=b""):
    out = io.BytesIO()
    with zipfile.ZipFile(Unseekable(out) if pipe else out, "w", method) as archive:
        for name, content in contents.items():
            with archive.open(name, "w", force_zip64=wide) as entry:
                entry.write(content)
        archive.comment = comment
    return out.getvalue()


def members(content: bytes, *, any_case: bool = False) -> dict[str, bytes]:
    archive = Archive(io.BytesIO(content), any_case=any_case)
    archive.check()
    return {name: archive.read(name) for name in archive.members}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("comment", [b"", b"of a hash"])
def test_what_pythons_zipfile_writes_is_read(method, pipe, wide, comment) -> None:
    assert members(zipped(method=method, pipe=pipe, wide=wide, comment=comment)) == CONTENTS


def test_an_empty_archive_has_no_members() -> None:
    assert members(zipped({})) == {}


@pytest.mark.skipif(shutil.which("zip") is None, reason="zip is not installed")
@pytest.mark.parametrize("line", ["zip -qr z.zip a b", "zip -q - a/one.txt b/x > z.zip", "zip -qr0 z.zip a b"])
def test_what_zip_writes_is_read(line: str, tmp_path: Path) -> None:
    for name in ("a/one.txt", "b/x"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"words " * 50)
    subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, check=True)
    found = members((tmp_path / "z.zip").read_bytes())
    assert {name for name in found if not name.endswith("/")} == {"a/one.txt", "b/x"}
    assert found["a/one.txt"] == b"words " * 50


def apples(content: bytes) -> bytes:
    """One member as macOS archives it: sizes behind the data, a mark before them, other extra fields in each header."""
    packed = zipped({"m": content})
    info = zipfile.ZipFile(io.BytesIO(packed)).infolist()[0]
    data = packed[31 : 31 + info.compress_size]
    sizes = (info.CRC, info.compress_size, info.file_size)
    near, far = b"UX\x0c\x00" + bytes(12), b"UX\x08\x00" + bytes(8)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 8, 8, 0, 0, 0, 0, 0, 1, len(near)) + b"m" + near
    body = local + data + b"PK\x07\x08" + struct.pack("<3I", *sizes)
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 789, 20, 8, 8, 0, 0, *sizes, 1, len(far), 0, 0, 0, 0, 0) + b"m" + far
    return body + entry + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(body), 0)


def test_what_macos_archives_is_read() -> None:
    assert members(apples(b"pixels " * 9)) == {"m": b"pixels " * 9}


def test_what_torch_and_numpy_write_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "t.pt")
    assert any(name.endswith("data.pkl") for name in members((tmp_path / "t.pt").read_bytes()))
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "n.npz", images=np.zeros((2, 3)), labels=np.arange(2))
        assert set(members((tmp_path / "n.npz").read_bytes())) == {"images.npy", "labels.npy"}


def two_directories(content: bytes) -> bytes:
    """The end record points to a directory that lies where a reader that counts back from it does not look."""
    other = zipped({**CONTENTS, "a/one.txt": b"evil"}, zipfile.ZIP_STORED)
    at = other.rfind(b"PK\5\6")
    size, start = struct.unpack_from("<2I", other, at + 12)
    shown = content[: content.rfind(b"PK\5\6")]
    end = bytearray(other[at:])
    struct.pack_into("<2I", end, 12, size, start)
    return other[:at] + shown + bytes(end)


def renamed(content: bytes, where: int) -> bytes:
    """The name changed in the header (the first place) or the directory (the last)."""
    at = content.find(b"a/one.txt") if where == 0 else content.rfind(b"a/one.txt")
    return content[:at] + b"a/two.txt" + content[at + 9 :]


def twice(first: bytes, second: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x", first)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x", second)
    return out.getvalue()


def patched(content: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    at = content.rfind(mark) + offset
    return content[:at] + value + content[at + len(value) :]


PLAIN = zipped(method=zipfile.ZIP_STORED)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "no archive": (lambda: b"hello" * 20, "no end record"),
    "nothing": (lambda: b"", "no end record"),
    "cut short": (lambda: PLAIN[:-30], "no end record"),
    "data before": (lambda: b"#!/bin/sh\n" + PLAIN, "before"),
    "data after": (lambda: PLAIN + b"more", "bytes after its end record"),
    "an archive before": (lambda: PLAIN + PLAIN, "before"),
    "an archive in the comment": (
        lambda: zipped(comment=zipped({"x": b"1"}, zipfile.ZIP_STORED)), "before|after its end record|no end record",
    ),
    "two directories": (lambda: two_directories(PLAIN), "before the archive|before its first"),
    "a name that repeats": (lambda: twice(b"1", b"2"), "x is in it twice"),
    "names of another case": (lambda: zipped({"x": b"1", "X": b"2"}), "is in it twice"),
    "another name in the header": (lambda: renamed(PLAIN, 0), "another name in its own header"),
    "another name in the directory": (lambda: renamed(PLAIN, 1), "another name in its own header"),
    "bytes between": (lambda: gap(PLAIN), "belong to nothing|damaged"),
    "overlapping members": (lambda: patched(PLAIN, b"PK\1\2", 42, bytes(4)), "overlaps|before its first"),
    "a wrong count": (lambda: patched(PLAIN, b"PK\5\6", 8, b"\3\0\3\0"), "has 4 entries where the end record counts 3"),
    "a wrong size": (lambda: patched(PLAIN, b"PK\1\2", 24, b"\1\0\0\0"), "described otherwise"),
    "a flipped bit": (lambda: PLAIN.replace(b"one one", b"one onf", 1), "fails its check sum"),
    "encrypted": (lambda: patched(PLAIN, b"PK\1\2", 8, b"\1\0"), "encrypted"),
    "another method": (lambda: zipped(method=zipfile.ZIP_BZIP2), "packed by method 12"),
    "another disk": (lambda: patched(PLAIN, b"PK\5\6", 4, b"\1\0"), "several files"),
    "a bomb": (lambda: patched(zipped({"x": b"0" * 9}), b"PK\1\2", 24, b"\0\0\0\x10"), "described otherwise|larger"),
    "no name": (lambda: zipped({"\0x": b""}), "empty or holds a NUL"),
}  # fmt: skip


def gap(content: bytes) -> bytes:
    """Eight bytes before the directory that nothing speaks of."""
    at = content.rfind(b"PK\5\6")
    start = struct.unpack_from("<I", content, at + 16)[0]
    end = bytearray(content[at:])
    struct.pack_into("<I", end, 16, start + 8)
    return content[:start] + bytes(8) + content[start:at] + bytes(end)


@pytest.mark.parametrize("name", REFUSED)
def test_an_archive_of_more_than_one_reading_is_refused(name: str) -> None:
    spoilt, words = REFUSED[name]
    content = spoilt()
    with pytest.raises(ArchiveError, match=words):
        members(content)


def test_names_of_another_case_are_files_of_their_own_where_asked() -> None:
    assert members(zipped({"x": b"1", "X": b"2"}), any_case=True) == {"x": b"1", "X": b"2"}


WHOLE = (PLAIN, zipped(), zipped(pipe=True, wide=True), apples(b"pixels"))


@given(st.sampled_from(WHOLE), st.data())
def test_bytes_that_change_are_refused_or_mean_the_same(whole: bytes, data) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = members(bytes(content))
    except ArchiveError:
        return
    # Times and versions may change, and a name where header and directory change alike.
    with contextlib.suppress(NotImplementedError), zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == found
    assert sorted(found.values()) == sorted(members(whole).values())


@given(st.sampled_from(WHOLE), st.data())
def test_an_archive_that_is_cut_is_refused(whole: bytes, data) -> None:
    with pytest.raises(ArchiveError):
        members(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_a_reader_of_a_million_names_reads_no_member_for_its_directory() -> None:
    spoilt = PLAIN.replace(b"one one", b"one onf", 1)
    archive = Archive(io.BytesIO(spoilt))
    assert archive.read("b/zwei-\u00fc.bin") == CONTENTS["b/zwei-\u00fc.bin"]
    with pytest.raises(ArchiveError, match="check sum"):
        archive.read("a/one.txt")
