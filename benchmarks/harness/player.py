"""A backend as the measurement sees it: a process that is asked one thing at a time, or a stand-in for tests."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any, Protocol

from repconv.errors import BackendError, BuildError
from repconv.export.artefacts.loaded import How, Job

LOADING_S = 1800.0
"""Seconds after which a backend that is loading, compiling or recording is given up."""
CALLING_S = 600.0
"""Seconds after which a turn that is not over is given up, beyond what it was to last."""


class PlayerLost(Exception):  # noqa: N818  # not an error of this package: it becomes a row's failure
    """A backend's process ended or no longer answers; the message says how."""


class Player(Protocol):
    """What takes turns: every call may raise `PlayerLost`, or `BuildError` where a runtime refuses."""

    def load(self, subject: str) -> Mapping[str, Any]:
        """Load a subject, anew if it was loaded; `seconds` it took and what was `observed`."""

    def warm(self, subject: str, seconds: float) -> None:
        """Run it untimed."""

    def turn(self, subject: str, seconds: float, calls: int) -> tuple[float, ...]:
        """Seconds of each call."""


class Process:
    """A backend in a process of its own; use it as a context.

    Args:
        backend: its name.
        how, jobs: what it is to run, by subject.
        cpus: cores it may use; empty: any.
    """

    def __init__(self, backend: str, how: How, jobs: Mapping[str, Job], *, cpus: Sequence[int] = ()) -> None:
        self.backend = backend
        self._request = {
            "do": "start", "backend": backend, "how": asdict(how), "cpus": list(cpus),
            "jobs": {
                name: {**asdict(job), "file": str(job.file), "input": str(job.input)} for name, job in jobs.items()
            },
        }  # fmt: skip
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        environment = dict(os.environ)
        if how.threads is not None:
            environment["OMP_NUM_THREADS"] = str(how.threads)
        command = [sys.executable, "-P", "-m", "repconv.benchmarks.harness.worker"]
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def start(self) -> list[int]:
        """Import the runtime; the cores it may use.

        Raises:
            BackendError: the runtime cannot be imported.
            PlayerLost: the process ended.
        """
        answer = self._ask(self._request, LOADING_S)
        return [int(cpu) for cpu in answer["cpus"]]

    def memory(self, subject: str) -> int | None:
        """Bytes that loading and calling a subject takes at most; None where it cannot be told."""
        found = self._ask({"do": "memory", "subject": subject}, LOADING_S)["bytes"]
        return None if found is None else int(found)

    def load(self, subject: str) -> Mapping[str, Any]:
        """See `Player`."""
        return self._ask({"do": "load", "subject": subject}, LOADING_S)

    def run(self, subject: str, output: str) -> None:
        """Write the outputs of one call to an `.npz` file."""
        self._ask({"do": "run", "subject": subject, "output": output}, CALLING_S)

    def warm(self, subject: str, seconds: float) -> None:
        """See `Player`."""
        self._ask({"do": "warm", "subject": subject, "seconds": seconds}, seconds + CALLING_S)

    def turn(self, subject: str, seconds: float, calls: int) -> tuple[float, ...]:
        """See `Player`."""
        asked = {"do": "turn", "subject": subject, "seconds": seconds, "calls": calls}
        return tuple(self._ask(asked, seconds + CALLING_S)["samples_s"])

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _listen(self) -> None:
        """Put answers where they can be waited for with a limit; an empty one means that there are no more."""
        stream = self._process.stdout
        try:
            while stream is not None and (line := stream.readline()):
                self._answers.put(line)
        except ValueError:  # closed while it was being read
            pass
        self._answers.put("")

    def _ask(self, asked: Mapping[str, object], limit_s: float) -> dict[str, Any]:
        stdin = self._process.stdin
        try:
            if stdin is not None:
                stdin.write(json.dumps(asked) + "\n")
                stdin.flush()
            line = self._answers.get(timeout=limit_s)
        except (BrokenPipeError, ValueError):
            line = ""
        except queue.Empty:
            self.close()
            raise PlayerLost(f"its process did not answer for {limit_s:.0f} s and was ended") from None
        if not line:
            raise PlayerLost(self._how_it_ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = BackendError if answer["error"] == "missing" else BuildError
            raise kind(f"{self.backend}: {answer['said']}")
        return answer

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        last = f": {lines[-1]}" if lines else ""
        if code >= 0:
            return f"its process ended with exit code {code}{last}"
        name = signal.Signals(-code).name
        memory = "; the system ends processes so when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by signal {-code} ({name}){memory}{last}"
