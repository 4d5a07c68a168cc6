"""One reading of a file in a fork of a process that has imported everything: how it ends, how long, how much."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from repconv.errors import RepconvError

from .forked import fork

WARM = (
    "onnx.reference", "onnxruntime", "safetensors.torch", "PIL.Image", "PIL.PngImagePlugin",
    "repconv.blocks.inspection", "repconv.export.from_source", "repconv.export.inputs.images",
    "repconv.export.onnx.summary",
    "repconv.export.runtimes.engine_runtime", "repconv.graph.program.fuse", "repconv.search.supernet.architecture",
)  # fmt: skip
"""What reading takes, and is no part of what a trial takes."""

_TICK_S = 0.01
_WORDS = 2
_ENDS = {0: "ok", _WORDS: "words", 70: "traceback"}
"""Exit codes of a fork."""


@dataclass(frozen=True)
class Trial:
    """How a trial ended.

    kind: `ok`, `words` (an error of this package's, or too little memory), `traceback` (any other), `crash` (a
        signal), `time` or `memory` (ended at the limit).
    seconds: wall clock. bytes: memory of its own above that of the process it was forked from, at most. said: its last
        line.
    """

    kind: str
    seconds: float
    bytes: int
    said: str


def warm() -> None:
    """Import what reading takes."""
    for name in WARM:
        importlib.import_module(name)


def trial(work: Callable[[], object], log: Path, *, seconds: float, memory: int) -> Trial:
    """Do `work` in a fork of this process, and end it at the limits.

    Args:
        work: what is tried.
        log: a file that takes what is said.
        seconds: at most, wall clock.
        memory: bytes above this process's own, at most.
    """
    start, before = time.monotonic(), _own_memory(os.getpid())
    with log.open("wb") as stream:
        child = fork(partial(_with_words, work), stream.fileno())
    peak = 0
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            kind = _ENDS.get(os.waitstatus_to_exitcode(status), "crash")
            return Trial(kind, time.monotonic() - start, peak, _last(log))
        peak = max(peak, _own_memory(child) - before)
        over = "time" if time.monotonic() - start > seconds else "memory" if peak > memory else None
        if over is not None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Trial(over, time.monotonic() - start, peak, _last(log))
        time.sleep(_TICK_S)


def _with_words(work: Callable[[], object]) -> None:
    """In the fork: `work`, where errors in words have an exit code of their own."""
    try:
        work()
    except RepconvError as error:
        _say(error)
    except BaseException as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        _say(error)
    else:
        return
    raise SystemExit(_WORDS)


def _say(error: BaseException) -> None:
    os.write(2, str(error).encode(errors="backslashreplace"))


def _own_memory(pid: int) -> int:
    """Bytes of memory that is no file's; 0 where the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:200] if said else ""
