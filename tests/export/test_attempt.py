"""Files of runtimes are tried in a process of their own, which ends in words whatever becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from repconv.errors import SourceError
from repconv.export.artefacts import attempt as room
from repconv.export.artefacts.attempt import attempt
from repconv.limits import LARGEST_ATTEMPT

LIMITED = "import sys\nlimit_memory(int(sys.argv[2]))\n"
ENDS = {
    "an error": ("raise ValueError('no such thing')", "m.x: not loadable: no such thing"),
    "an error without words": ("raise ValueError", "m.x: not loadable: ValueError"),
    "a note of C++ code": (
        "sys.stderr.write('[core.cpp:1] it is empty\\n'); raise ValueError('0x1')",
        "it is empty; 0x1",
    ),
    "a crash": ("import os; os.abort()", r"Tiny ends on it \(exit code -6\), so it is damaged; build it anew"),
    "an exit": ("sys.exit(7)", r"Tiny ends on it \(exit code 7\)"),
    "no end": ("while True: pass", "ended after 2 s"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_every_end_is_told(kind: str, tmp_path: Path, monkeypatch) -> None:
    code, said = ENDS[kind]
    if kind == "no end":
        monkeypatch.setattr(room, "LONGEST_RUN_S", 2)
    (tmp_path / "m.x").write_bytes(b"")
    with pytest.raises(SourceError, match=said):
        attempt(LIMITED + code, tmp_path / "m.x", title="Tiny", what="m.x: not loadable")


def test_what_ends_well_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "m.x").write_bytes(b"whole")
    attempt(LIMITED + "assert open(sys.argv[1]).read() == 'whole'", tmp_path / "m.x", title="Tiny", what="m.x")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux")
def test_memory_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "m.x").write_bytes(b"")
    with pytest.raises(SourceError, match="MemoryError"):
        attempt(LIMITED + f"bytes({LARGEST_ATTEMPT})", tmp_path / "m.x", title="Tiny", what="m.x")
