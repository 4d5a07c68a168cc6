"""Temporary files belong to living processes; what dead ones left is removed by the next."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from repconv.errors import OutputError
from repconv.files.held import temporary_file, temporary_folder
from repconv.files.whole import whole_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path) -> None:
    left = [".m.onnx.repconv-abcd_f12", ".m.onnx.repconv-zzzzzzzz"]
    kept = [".m.onnx.original", ".n.onnx.repconv-abcd_f12", "m.onnx.repconv-abcd_f12", ".m.onnx.repconv-longerone"]
    for name in (*left, *kept):
        (tmp_path / name).write_bytes(b"1")
    with whole_file(tmp_path / "m.onnx") as stream:
        stream.write(b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", *kept}


def test_what_a_living_process_writes_stays(tmp_path) -> None:
    with temporary_file(tmp_path, "m.onnx") as (_, mine), temporary_file(tmp_path, "m.onnx") as (_, other):
        assert mine.exists()
        assert other.exists()
        assert mine != other
    assert not list(tmp_path.iterdir())


def test_folders_where_temporary_files_go_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "repconv-abcdefgh").mkdir()
    (tmp_path / "repconv-abcdefgh" / "model.onnx").write_bytes(b"1")
    with temporary_folder() as mine, temporary_folder() as other:
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, other.name}
    assert not list(tmp_path.iterdir())


def test_what_fails_on_a_full_disk_is_said_to_whatever_a_library_says(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError), temporary_folder():
        raise ZeroDivisionError
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    said = "its disk is full; it is for temporary files, and TMPDIR names another"
    with pytest.raises(OutputError, match=said), temporary_folder():
        raise RuntimeError("basic_ios::clear: iostream error")
    assert not list(tmp_path.iterdir())


def test_where_no_folder_can_be_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match="No such file or directory; it is for temporary files"), temporary_folder():
        pass
