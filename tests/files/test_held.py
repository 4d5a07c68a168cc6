"""Temporary files belong to living processes; what dead ones left is removed by the next."""

from __future__ import annotations

import sys

import pytest

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
