"""One command of repconv in a fork of a process that has imported everything: how it ends, how long, how much."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WARM = (
    "torch", "onnx", "onnx.reference", "onnxruntime", "safetensors.torch", "PIL.Image", "scipy", "repconv.cli.fuse",
    "repconv.cli.inspect", "repconv.cli.verify", "repconv.export.fusing", "repconv.export.artefacts.open",
    "repconv.export.comparing.locate", "repconv.export.inputs.given", "repconv.export.onnx.summary",
    "repconv.graph.program.fuse", "repconv.cli.shared.text", "repconv.search.retrain",
)  # fmt: skip
"""What the commands import, which is no part of what a trial takes."""

_TICK_S = 0.01


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    kind: `ok` (exit code 0), `words` (another, and a message), `traceback`, `crash` (a signal), `time` or `memory`
        (ended at the limit).
    seconds: wall clock. bytes: memory of its own above that of the process it was forked from, at most. said: its last
        line.
    """

    kind: str
    seconds: float
    bytes: int
    said: str


def warm() -> None:
    """Import what the commands import."""
    for name in WARM:
        importlib.import_module(name)


def trial(arguments: Sequence[str], folder: Path, *, seconds: float = 60, memory: int = 2 << 30) -> Outcome:
    """Run `repconv ARGUMENTS` in `folder`, in a fork of this process, and end it at the limits.

    Args:
        arguments: of the command line.
        folder: its working directory; `log.txt` in it takes what is said.
        seconds: at most, wall clock.
        memory: bytes resident above this process's own, at most.
    """
    log = folder / "log.txt"
    start, before = time.monotonic(), _resident(os.getpid())
    child = os.fork()
    if child == 0:
        _run(arguments, folder, log)
    peak, ended = 0, None
    while ended is None:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended = os.waitstatus_to_exitcode(status)
            break
        peak = max(peak, _resident(child) - before)
        over = "time" if time.monotonic() - start > seconds else "memory" if peak > memory else None
        if over is not None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome(over, time.monotonic() - start, peak, _last(log))
        time.sleep(_TICK_S)
    return Outcome(_kind(ended, log), time.monotonic() - start, peak, _last(log))


def _run(arguments: Sequence[str], folder: Path, log: Path) -> None:
    """In the fork; does not return."""
    from repconv.cli import _exit_code

    os.setpgid(0, 0)
    os.chdir(folder)
    stream = log.open("w", encoding="utf-8", errors="backslashreplace")
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream
    sys.argv = ["repconv", *arguments]
    code = 70
    try:
        code = _exit_code()
    finally:
        stream.flush()
        os._exit(code)


def _resident(pid: int) -> int:
    """Bytes of memory that is no file's; 0 where the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def _kind(code: int, log: Path) -> str:
    if code < 0:
        return "crash"
    text = log.read_text(encoding="utf-8", errors="replace")
    if code == 70 or "Traceback (most recent call last)" in text:
        return "traceback"
    return "ok" if code == 0 else "words"


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = [line for line in lines if line.strip() and "please report it" not in line]
    return said[-1].strip()[:300] if said else ""
