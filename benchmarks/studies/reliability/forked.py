"""Work in a fork of a process that has imported everything; and what became of a command in a session of its own."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

LIMIT_S = 120
"""After which a run counts as hanging."""
GRACE_S = 8
"""That other processes of a run may live longer than the run itself."""


def fork(work: Callable[[], object], said: int) -> int:
    """Do `work` in a fork of this process, whose output goes to the descriptor `said`; the number of the process.

    It ends with the code of the SystemExit that `work` raises, with 0 where it raises nothing, and else with 70.
    """
    if pid := os.fork():
        return pid
    code = 70
    try:
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
        work()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:  # noqa: BLE001  # a fork must not return into its parent's code
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code, or a signal's number below zero; None: it hung. What it said, and who outlived it."""

    code: int | None
    said: str
    orphans: tuple[str, ...]
    seconds: float


class Running:
    """A command under way, forked from this process, which has imported everything that takes long.

    It leads a session of its own, by which its processes are found, and its temporary files go to `temporary`.
    """

    def __init__(self, line: Sequence[str], folder: Path, temporary: Path) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `ended`
        self.began = time.perf_counter()
        self.pid = fork(partial(_command, line, folder, temporary), self._said.fileno())

    def wait_until(self, seconds: float) -> bool:
        """Whether it is still under way so many seconds after its start."""
        while (left := self.began + seconds - time.perf_counter()) > 0:
            if not alive(self.pid):
                return False
            time.sleep(min(left, 0.005))
        return alive(self.pid)

    def others(self) -> dict[int, str]:
        """The processes of its session but itself, with what they run."""
        return {pid: line for pid, line in session(self.pid).items() if pid != self.pid}

    def ended(self) -> Outcome:
        """Wait for its end, and for that of its processes; what outlives it is ended, by number."""
        code: int | None = None
        while time.perf_counter() < self.began + LIMIT_S:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.005)
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        seconds = time.perf_counter() - self.began
        until = time.perf_counter() + GRACE_S
        while (left := self.others()) and time.perf_counter() < until:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        self._said.close()
        return Outcome(code, said, tuple(left.values()), round(seconds, 3))


def _command(line: Sequence[str], folder: Path, temporary: Path) -> None:
    """In the fork."""
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    sys.argv = ["repconv", *line]
    importlib.import_module("repconv.cli").main()


def session(leader: int) -> dict[int, str]:
    """Living processes of a session, with what they run."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdecimal():
                continue
            state, *fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader and state not in "ZX":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
        except (OSError, ValueError):  # it has just ended
            continue
    return found


def alive(pid: int) -> bool:
    """Whether a child of this process is under way."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[str], bool]]:
    """A file system of `size` bytes in memory at `folder`; what is handed out mounts it anew with other options.

    Raises:
        CalledProcessError: that takes root.
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)  # noqa: S603, S607

    def again(options: str) -> bool:
        line = ["mount", "-o", f"remount,{options}", str(folder)]
        return subprocess.run(line, check=False, capture_output=True).returncode == 0  # noqa: S603

    try:
        yield again
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S603, S607
