"""A folder is written whole, in place of what there was, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from repconv.errors import OutputError
from repconv.files.record import file_record
from repconv.files.whole import require_writable, sha256, write_folder


def held(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "m.pack"
    for contents in ({"a": b"1", "deep/down/b": b"22"}, {"c": b"3"}):
        require_writable(folder, folder=True)
        write_folder(folder, contents)
        assert held(folder) == contents
        assert [path.name for path in tmp_path.iterdir()] == ["m.pack"]


def test_what_cannot_be_written_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m.pack"
    write_folder(folder, {"a": b"1"})
    with pytest.raises(OutputError, match="nothing was written"):
        write_folder(folder, {"b": b"2", "b/c": b"3"})  # a file cannot be a folder, too
    assert held(folder) == {"a": b"1"}
    whole = Path.replace

    def fails_to_move_in(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", fails_to_move_in)
    with pytest.raises(OutputError, match="Input/output error"):
        write_folder(folder, {"b": b"2"})
    assert held(folder) == {"a": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["m.pack"]


def test_a_folder_has_the_fingerprint_of_all_in_it(tmp_path: Path) -> None:
    contents = {"a": b"1", "deep/b": b"22"}
    for name in ("one", "two"):
        write_folder(tmp_path / name, contents)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two")
    assert file_record(tmp_path / "one")["bytes"] == 3
    for changed in ({"a": b"2", "deep/b": b"22"}, {"a": b"1", "deep/c": b"22"}, {"a": b"1"}):
        write_folder(tmp_path / "two", changed)
        assert sha256(tmp_path / "one") != sha256(tmp_path / "two")
