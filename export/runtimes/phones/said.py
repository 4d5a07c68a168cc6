"""Converters that are programs: run where they may write what they like, and heard."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from repconv.errors import BuildError

from ...onnx.quiet import keep

LONGEST_BUILD_S = 3600.0


def converted(
    command: Sequence[str],
    folder: Path,
    wanted: Sequence[str],
    *,
    by: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = LONGEST_BUILD_S,
) -> str:
    """Run a converter in `folder`, and return all it said, which a log keeps.

    Args:
        command: with its arguments.
        folder: where it may write whatever it likes.
        wanted: files that are there afterwards, or it failed, whatever its exit code says.
        by: its name.
        environment: of the process; None: this one's.
        timeout_s: after which it is given up.

    Raises:
        BuildError: it failed, with the last line it said.
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
        keep((late.stdout or b"").decode(errors="replace"))
        raise BuildError(f"{by} took more than {timeout_s:.0f} s and was stopped; {LOGGED}") from None
    except OSError as error:
        raise BuildError(f"{by} cannot be started ({error.strerror or error})") from error
    said = done.stdout.decode(errors="replace")
    keep(said)
    missing = [name for name in wanted if not (folder / name).is_file()]
    if done.returncode == 0 and not missing:
        return said
    ended = f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
    without = f", without {' and '.join(missing)}" if missing else ""
    last = next((f" ({line.strip()})" for line in reversed(said.splitlines()) if line.strip()), "")
    raise BuildError(f"{by} cannot convert the model: it ended with {ended}{without}{last}; {LOGGED}")


LOGGED = "--log FILE keeps all it says"
