"""Processes that do one run each: their share of the machine, their log, how they are ended, and why they failed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

import torch

from repconv.errors import OutputError

_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
              "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
"""Variables by which a process would join others, and `TORCHELASTIC_...`."""
_LAST_BYTES = 1 << 14
_ENDING_S = 20.0
_SAYS = "repconv: "


def surroundings(
    environment: Mapping[str, str], *, slot: int, slots: int, cores: int, gpus: Sequence[str]
) -> dict[str, str]:
    """Variables of a process that works alone beside `slots - 1` others on its machine.

    It has its share of the cores as threads, unless OMP_NUM_THREADS is set, and one GPU where there are several.

    Args:
        environment: of this process.
        slot: its place, from 0.
        slots: how many there are.
        cores: of the machine.
        gpus: as CUDA_VISIBLE_DEVICES names them.
    """
    found = {
        key: value
        for key, value in environment.items()
        if key not in _LAUNCHERS and not key.startswith("TORCHELASTIC_")
    }
    # torchrun sets one thread, which is not the user's word.
    if "OMP_NUM_THREADS" not in environment or "TORCHELASTIC_RUN_ID" in environment:
        found["OMP_NUM_THREADS"] = str(max(1, cores // slots))
    if len(gpus) > 1:
        found["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return found


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that processes may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part.strip() for part in named.split(",") if part.strip())
    return tuple(map(str, range(torch.cuda.device_count())))


@final
class RunProcess:
    """A process that does one run, apart from signals to this one; it ends where this one does, however that ends.

    Args:
        line: the command; it has to call `end_with_parent`.
        log: what it says goes there, after what earlier ones said.
        environment: its variables.

    Raises:
        OutputError: the log cannot be written.
    """

    def __init__(self, line: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as stream:
                self._begin = stream.tell()
                self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603  # our own command
                    line, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment, start_new_session=True
                )
        except OSError as error:
            raise OutputError(f"cannot write {log}: {error.strerror or error}") from error

    def poll(self) -> int | None:
        """Its exit code, negative for the signal it ended by; None while it works."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Have it end in order."""
        with suppress(OSError):
            self._process.terminate()

    def end(self) -> None:
        """Wait until it has ended, as it was asked to; not for ever."""
        try:
            self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def why(self) -> str:
        """Why it failed, by its own last words."""
        code = self._process.poll()
        if code is not None and code < 0:
            return f"ended by {signal.Signals(-code).name}; too little memory is a usual reason (log: {self.log})"
        with self.log.open("rb") as stream:
            stream.seek(max(self._begin, stream.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
        said = [line.removeprefix(_SAYS) for line in lines if line.startswith(_SAYS)]
        words = (said or lines or [f"exit code {code}"])[-1]
        return f"{words} (log: {self.log})"


def end_with_parent() -> None:
    """End this process where its standard input ends, as it does with whoever started it; what a run has kept stays."""

    def watch() -> None:
        while os.read(0, 1):  # not by sys.stdin, whose lock would outlive the interpreter
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
