"""What libraries and converters write while they work: heard instead of shown, and offered where something fails."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from repconv.errors import BuildError

LONGEST_BUILD_S = 3600.0


@contextlib.contextmanager
def heard(lines: list[str]) -> Iterator[None]:
    """What C++ code inside writes to standard error, itself or by way of Python, is not shown but added to `lines`."""
    sys.stderr.flush()
    shown = os.dup(2)
    try:
        with tempfile.TemporaryFile() as kept:
            os.dup2(kept.fileno(), 2)
            written = io.StringIO()
            try:
                with contextlib.redirect_stderr(written):
                    yield
            finally:
                os.dup2(shown, 2)
                kept.seek(0)
                lines += (kept.read().decode(errors="replace") + written.getvalue()).splitlines()
    finally:
        os.close(shown)


def converted(
    command: Sequence[str],
    folder: Path,
    wanted: Sequence[str],
    *,
    by: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = LONGEST_BUILD_S,
) -> str:
    """Run a converter in `folder`, and return all it said.

    Args:
        command: with its arguments.
        folder: where it may write whatever it likes.
        wanted: files that are there afterwards, or it failed, whatever its exit code says.
        by: its name.
        environment: of the process; None: this one's.
        timeout_s: after which it is given up.

    Raises:
        BuildError: it failed; what it said is in the error's notes, which `-v` shows.
    """
    try:
        done = subprocess.run(  # noqa: S603  # a converter that was installed
            [*command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=timeout_s,
            env=None if environment is None else dict(environment),
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        raise with_log(f"{by} took more than {timeout_s:.0f} s and was stopped", by, said) from None
    except OSError as error:
        raise BuildError(f"{by} cannot be started ({error.strerror or error})") from error
    said = done.stdout.decode(errors="replace")
    missing = [name for name in wanted if not (folder / name).is_file()]
    if done.returncode == 0 and not missing:
        return said
    ended = f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
    without = f", without {' and '.join(missing)}" if missing else ""
    last = next((f" ({line.strip()})" for line in reversed(said.splitlines()) if line.strip()), "")
    raise with_log(f"{by} cannot convert the model: it ended with {ended}{without}{last}", by, said)


def with_log(message: str, by: str, said: str) -> BuildError:
    """An error that offers all that somebody said."""
    if not said.strip():
        return BuildError(message)
    error = BuildError(f"{message}; -v shows all that {by} said")
    error.add_note(f"{by} said:\n{said.strip()}")
    return error
