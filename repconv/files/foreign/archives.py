"""Zip archives, read so that no other reader could find something else in them.

A zip file is described twice, by a directory at its end and by a header before each member, and readers differ in what
they believe, in where they look for the directory, and in what they do about names that repeat. An archive that means
one thing to a check and another to the reader behind it defeats the check. So only archives of which there is one
reading are read: every byte belongs to one member or to the one directory, and headers and directory agree (APPNOTE.TXT
6.3.10, sections 4.3 to 4.5).
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO, final

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END_64, _LOCATOR_64, _DESCRIPTOR = b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"
_LOCAL_FORM = struct.Struct("<4s5H3I2H")
_CENTRAL_FORM = struct.Struct("<4s6H3I5H2I")
_END_FORM = struct.Struct("<4s4H2IH")
_END_64_FORM = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64_FORM = struct.Struct("<4sIQI")

_DESCRIBED, _UTF_8 = 1 << 3, 1 << 11
_SPEED = 1 << 1 | 1 << 2
"""How hard deflate tried: the one thing that flags may say and that no reader needs."""
_STORED, _DEFLATED = 0, 8
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ZIP_64 = 1
"""The extra field with the sizes that do not fit 32 bits."""
_STRETCH = 1032
"""Bytes that one byte of deflated data stands for, at most."""
_USUAL_STRETCH, _ROOM = 20, 2**28
"""Bytes that one byte of an archive may stand for, and how many all its members may have however small it is."""


class ArchiveError(ValueError):
    """Not a zip archive, damaged, or one that readers could differ on; the message says how."""


@dataclass(frozen=True, kw_only=True)
class ArchiveMember:
    """One file in an archive: its bytes lie from its header at `offset` to `end`, where the next thing begins."""

    name: str
    raw_name: bytes
    offset: int
    end: int
    flags: int
    method: int
    crc: int
    stored: int
    size: int


@final
class Archive:
    """A zip archive of which there is one reading.

    The directory is checked at once, the header of a member when it is read, so that an archive of a million images
    opens as fast as its directory is read; `check` reads everything.

    Args:
        stream: the archive, open for reading from anywhere; the caller closes it.
        any_case: whether names that differ in their case alone are different ones; torch's reader takes them for one.

    Raises:
        ArchiveError: as the class says.
    """

    def __init__(self, stream: BinaryIO, *, any_case: bool = False) -> None:
        self._stream = stream
        self.members: Mapping[str, ArchiveMember] = _unique(_directory(stream), any_case=any_case)
        stored, size = (sum(getattr(m, what) for m in self.members.values()) for what in ("stored", "size"))
        if size > max(_ROOM, _USUAL_STRETCH * stored):
            raise ArchiveError(f"its {stored:,} bytes would unpack to {size:,}; pack it again without compression")

    def read(self, name: str) -> bytes:
        """The content of a member, compared with its size and check sum.

        Raises:
            ArchiveError: damaged, or its header says other than the directory.
            KeyError: there is no such member.
        """
        member = self.members[name]
        content = _unpacked(member, self._between(member))
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise ArchiveError(f"{member.name} fails its check sum")
        return content

    def check(self) -> None:
        """Read every member, as `read` does.

        Raises:
            ArchiveError: as `read`.
        """
        for name in self.members:
            self.read(name)

    def _between(self, member: ArchiveMember) -> bytes:
        """The bytes of a member as they are stored, after its header was found to agree with the directory."""
        self._stream.seek(member.offset)
        whole = self._stream.read(member.end - member.offset)
        start = _after_header(whole, member)
        tail = whole[start + member.stored :]
        if tail not in _descriptors(member):
            raise ArchiveError(f"there are {len(tail)} bytes after {member.name} that belong to nothing")
        return whole[start : start + member.stored]


def is_archive(stream: BinaryIO) -> bool:
    """Whether the file begins as a zip archive does, which is how torch tells; the position is left at the start."""
    stream.seek(0)
    start = stream.read(len(_LOCAL))
    stream.seek(0)
    return start == _LOCAL


def _unique(members: list[ArchiveMember], *, any_case: bool) -> dict[str, ArchiveMember]:
    found: dict[str, ArchiveMember] = {}
    for member in members:
        key = member.name if any_case else member.name.lower()
        if key in found:
            raise ArchiveError(f"{member.name} is in it twice")
        found[key] = member
    return {member.name: member for member in members}


def _directory(stream: BinaryIO) -> list[ArchiveMember]:
    """The members in the order of the directory, which with them covers the file."""
    count, start, end = _bounds(stream)
    stream.seek(start)
    content = stream.read(end - start)
    entries = list(_entries(content))
    if len(entries) != count:
        raise ArchiveError(f"its directory has {len(entries)} entries where the end record counts {count}")
    ordered = sorted(entries, key=lambda entry: entry.offset)
    if (ordered[0].offset if ordered else start) != 0:
        raise ArchiveError("there are bytes before its first member")
    placed = {}
    after = start
    for entry in reversed(ordered):
        if entry.offset + _LOCAL_FORM.size + len(entry.raw_name) + entry.stored > after:
            raise ArchiveError(f"{entry.name} overlaps what comes after it")
        placed[entry.offset] = replace(entry, end=after)
        after = entry.offset
    return [placed[entry.offset] for entry in entries]


def _bounds(stream: BinaryIO) -> tuple[int, int, int]:
    """How many entries the directory has, where it begins and where it ends."""
    length = stream.seek(0, 2)
    tail_start = max(0, length - _END_FORM.size - _FULL_16)
    stream.seek(tail_start)
    tail = stream.read()
    found = tail.rfind(_END)
    if found < 0 or len(tail) - found < _END_FORM.size:
        raise ArchiveError("no zip archive, or one that is cut short: it has no end record")
    _, disk, first_disk, here, count, size, start, comment = _END_FORM.unpack_from(tail, found)
    if found + _END_FORM.size + comment != len(tail):
        raise ArchiveError("there are bytes after its end record")
    end = tail_start + found
    said = (disk, first_disk, here, count, size, start)
    wide = _wide_bounds(stream, end)
    if wide is not None:
        narrow = (_FULL_16,) * 4 + (_FULL_32,) * 2
        if any(a not in (b, full) for a, b, full in zip(said, wide[:-1], narrow, strict=True)):
            raise ArchiveError("its two end records differ")
        disk, first_disk, here, count, size, start, end = wide
    if disk or first_disk or here != count:
        raise ArchiveError("it is a part of an archive of several files")
    if start + size != end:
        raise ArchiveError("there are bytes between its directory and its end record, or before the archive")
    return count, start, end


def _wide_bounds(stream: BinaryIO, end: int) -> tuple[int, int, int, int, int, int, int] | None:
    """What the end record of 64 bits says, and where it begins; None where there is none."""
    stream.seek(max(0, end - _LOCATOR_64_FORM.size))
    content = stream.read(min(end, _LOCATOR_64_FORM.size))
    if not content.startswith(_LOCATOR_64):
        return None
    _, disk, at, disks = _LOCATOR_64_FORM.unpack(content)
    if disk or disks != 1 or at + _END_64_FORM.size != end - _LOCATOR_64_FORM.size:
        raise ArchiveError("its 64-bit end record is not where it should be")
    stream.seek(at)
    mark, size, _, _, disk, first_disk, here, count, length, start = _END_64_FORM.unpack(stream.read(_END_64_FORM.size))
    if mark != _END_64 or size != _END_64_FORM.size - 12:
        raise ArchiveError("its 64-bit end record is damaged")
    return disk, first_disk, here, count, length, start, at


def _entries(content: bytes) -> Iterator[ArchiveMember]:
    """What the directory says of each member; `end` is not known yet."""
    at = 0
    while at < len(content):
        if len(content) - at < _CENTRAL_FORM.size:
            raise ArchiveError("its directory is cut short")
        (
            mark,
            _,
            _,
            flags,
            method,
            _,
            _,
            crc,
            stored,
            size,
            name_length,
            extra_length,
            comment_length,
            disk,
            _,
            _,
            offset,
        ) = _CENTRAL_FORM.unpack_from(content, at)
        at += _CENTRAL_FORM.size
        raw_name = content[at : at + name_length]
        extra = content[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        if mark != _CENTRAL or at > len(content):
            raise ArchiveError("its directory is damaged")
        if flags & ~(_SPEED | _DESCRIBED | _UTF_8):
            raise ArchiveError("it is encrypted or patched")
        name = _named(raw_name, flags)
        size, stored, offset = _widened(extra, (size, stored, offset), name)
        if disk:
            raise ArchiveError("it is a part of an archive of several files")
        yield ArchiveMember(
            name=name,
            raw_name=raw_name,
            offset=offset,
            end=offset,
            flags=flags,
            method=method,
            crc=crc,
            stored=stored,
            size=size,
        )


def _named(raw: bytes, flags: int) -> str:
    if b"\0" in raw or not raw:
        raise ArchiveError("a member's name is empty or holds a NUL")
    try:
        return raw.decode("utf-8" if flags & _UTF_8 else "cp437")
    except UnicodeDecodeError:
        raise ArchiveError("a member's name is no text") from None


def _widened(extra: bytes, values: tuple[int, ...], name: str) -> tuple[int, ...]:
    """`values`, those that are full replaced by the 64-bit ones in the extra field, which has them in this order."""
    wide = [content for kind, content in _fields(extra, name) if kind == _ZIP_64]
    full = [value == _FULL_32 for value in values]
    if not wide or not any(full):
        return values
    if len(wide) > 1 or len(wide[0]) < 8 * sum(full):
        raise ArchiveError(f"the sizes of {name} are damaged")
    numbers = iter(struct.unpack_from(f"<{sum(full)}Q", wide[0]))
    return tuple(next(numbers) if is_full else value for value, is_full in zip(values, full, strict=True))


def _fields(extra: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each extra field; up to three bytes of padding may follow, as Android's tools leave."""
    at = 0
    while len(extra) - at >= 4:
        kind, length = struct.unpack_from("<2H", extra, at)
        if at + 4 + length > len(extra):
            raise ArchiveError(f"the extra fields of {name} are damaged")
        yield kind, extra[at + 4 : at + 4 + length]
        at += 4 + length


def _after_header(whole: bytes, member: ArchiveMember) -> int:
    """Where a member's bytes begin in `whole`, its header and all; the header agrees with the directory."""
    if len(whole) < _LOCAL_FORM.size:
        raise ArchiveError(f"{member.name} is cut short")
    mark, _, flags, method, _, _, crc, stored, size, name_length, extra_length = _LOCAL_FORM.unpack_from(whole)
    names = _LOCAL_FORM.size + name_length
    start: int = names + extra_length
    if mark != _LOCAL or start + member.stored > len(whole):
        raise ArchiveError(f"{member.name} is damaged or overlaps what comes after it")
    if whole[_LOCAL_FORM.size : names] != member.raw_name:
        raise ArchiveError(f"{member.name} has another name in its own header")
    size, stored = _widened(whole[names:start], (size, stored), member.name)
    unsaid = ((0, 0, 0), (0, _FULL_32, _FULL_32)) if flags & _DESCRIBED else ()
    if (
        (flags ^ member.flags) & ~_SPEED
        or method != member.method
        or ((crc, stored, size) not in ((member.crc, member.stored, member.size), *unsaid))
    ):
        raise ArchiveError(f"{member.name} is described otherwise by its own header than by the directory")
    return start


def _descriptors(member: ArchiveMember) -> list[bytes]:
    """What may follow a member's bytes: nothing, or where its flags say so its check sum and sizes once more."""
    if not member.flags & _DESCRIBED:
        return [b""]
    forms = [form for form in ("<3I", "<I2Q") if form == "<I2Q" or max(member.stored, member.size) <= _FULL_32]
    said = [struct.pack(form, member.crc, member.stored, member.size) for form in forms]
    return [mark + words for mark, words in itertools.product((b"", _DESCRIPTOR), said)]


def _unpacked(member: ArchiveMember, stored: bytes) -> bytes:
    """At most one byte more than the member is said to have."""
    if member.method == _STORED and member.stored == member.size:
        return stored
    if member.method != _DEFLATED:
        raise ArchiveError(f"{member.name} is packed by method {member.method}; stored and deflated members are read")
    if member.size > _STRETCH * member.stored:
        raise ArchiveError(f"{member.name} is said to be larger than its data can be")
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflating.decompress(stored, member.size + 1)
    except zlib.error as error:
        raise ArchiveError(f"{member.name} is damaged ({error})") from error
    if not inflating.eof or inflating.unused_data:
        raise ArchiveError(f"{member.name} ends elsewhere than its data")
    return content
