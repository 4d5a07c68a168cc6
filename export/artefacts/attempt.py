"""Trying a file in a process of its own: some damaged ones end whoever loads them, or take all the memory there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from repconv.errors import SourceError
from repconv.limits import LARGEST_ATTEMPT, LONGEST_RUN_S, too_long

_LIMITED = """
def limit_memory(most):
    try:
        import resource
        with open("/proc/self/statm") as stream:
            held = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass  # not on this system, which ends processes for want of memory itself
"""


def attempt(code: str, path: Path, *, title: str, what: str) -> None:
    """Insist that code which loads and runs a file comes to its end.

    Args:
        code: Python that finds the file's name in `sys.argv[1]`, and calls `limit_memory(int(sys.argv[2]))` once it has
            imported what it takes.
        path: the file.
        title: of the runtime that loads it.
        what: is wrong where it does not, in words.

    Raises:
        SourceError: it raises an error, ends the process, takes more than `LARGEST_ATTEMPT`, or longer than
            `LONGEST_RUN_S`.
    """
    most = LARGEST_ATTEMPT + 8 * path.stat().st_size
    command = [sys.executable, "-P", "-W", "ignore", "-c", _LIMITED + code, str(path), str(most)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=LONGEST_RUN_S)  # noqa: S603  # our own text
    except subprocess.TimeoutExpired:
        raise SourceError(f"{what}: {too_long(LONGEST_RUN_S)}") from None
    if done.returncode == 1:
        raise SourceError(f"{what}: {_words(done.stderr.decode(errors='replace'))}")
    if done.returncode:
        raise SourceError(f"{what}: {title} ends on it (exit code {done.returncode}), so it is damaged; build it anew")


def _words(said: str) -> str:
    """The error a process ended in, and before it the first note of C++ code, which often says more."""
    before, _, after = said.partition("Traceback (most recent call last)")
    kind, _, error = next((line for line in reversed(after.splitlines()) if line.strip()), "unknown").partition(": ")
    notes = [line.partition("] ")[2] for line in before.splitlines() if line.startswith("[") and "] " in line]
    return "; ".join([*notes[:1], error.strip() or kind])
