"""Pieces, each in a process of its own: bounded in time, and what goes wrong in one stops no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repconv.errors import BackendError, first_line

Rows = Iterator[Mapping[str, object]]

DONE, MISSING, FAILED, OVERRAN, NOT_BEGUN = "done", "missing", "failed", "overran", "not begun"
LEAST_S = 5.0
"""A piece is not begun with less time than this."""
ENDING_S = 10.0
"""That a process that was ended gets to hand over what it had said."""


@dataclass(frozen=True)
class Piece:
    """One thing to do on a device.

    name: short, for the command line. what: what it shows, in a few words. limit_s: seconds it may take, its start
    included. run: from a device (`cuda`, `cpu`) to rows, given out one by one, so that those before a failure stay.
    on_cpu: whether a processor can do it, too.
    """

    name: str
    what: str
    limit_s: float
    run: Callable[[str], Rows]
    on_cpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a piece.

    state: `done`, `missing` (a package; `said` has the line that installs it), `failed`, `overran`, or `not begun`,
    where no time was left. said: why, in words; None where it is done. limit_s: seconds it was given. rows: those that
    were finished, whatever the state.
    """

    piece: str
    state: str
    said: str | None = None
    seconds: float = 0.0
    limit_s: float = 0.0
    rows: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return asdict(self)


def do_all(
    pieces: Sequence[Piece],
    device: str,
    total_s: float,
    run: Callable[[Piece, str, float], Outcome],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outcome]:
    """Every piece by `run`, in order; none is given more than what is left of `total_s`."""
    end = clock() + total_s
    for piece in pieces:
        left = end - clock()
        if left < LEAST_S:
            yield Outcome(piece=piece.name, state=NOT_BEGUN, said=f"the {total_s:.0f} s for all pieces were over")
        else:
            yield run(piece, device, min(piece.limit_s, left))


def in_a_process(script: str) -> Callable[[Piece, str, float], Outcome]:
    """What runs a piece by calling `script`, a file that calls `tell`, with `--one NAME --device DEVICE`."""

    def run(piece: Piece, device: str, limit_s: float) -> Outcome:
        command = [sys.executable, script, "--one", piece.name, "--device", device]
        began = time.monotonic()
        overran = False
        # A session of its own, so that what the piece starts ends with it.
        with subprocess.Popen(  # noqa: S603  # this project's script
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                out, err = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                overran = True
                _end(process)
                out, err = process.communicate(timeout=ENDING_S)
            except BaseException:
                _end(process)
                raise
        state, said, rows = _heard(out)
        if overran:
            state, said = OVERRAN, f"more than {limit_s:.0f} s"
        elif not state:
            state, said = FAILED, _how(process.returncode, err)
        return Outcome(
            piece=piece.name,
            state=state,
            said=said,
            seconds=round(time.monotonic() - began, 1),
            limit_s=round(limit_s, 1),
            rows=tuple(rows),
        )

    return run


def tell(piece: Piece, device: str) -> None:
    """In the process of a piece: print its rows and how it ended, a line of JSON each."""
    state, said = DONE, None
    try:
        for row in piece.run(device):
            _say(row=row)
    except BackendError as missing:
        state, said = MISSING, str(missing)
    except Exception as wrong:  # noqa: BLE001  # whatever it is, the others go on
        state, said = FAILED, f"{type(wrong).__name__}: {first_line(wrong)}"
    _say(state=state, said=said)


def _say(**told: object) -> None:
    print(json.dumps(told), flush=True)


def _heard(out: str) -> tuple[str, str | None, list[Mapping[str, Any]]]:
    """State, words and rows of a piece's output, in which libraries may have written, too; no state if it broke off."""
    state, said, rows = "", None, []
    for line in out.splitlines():
        if line.startswith('{"row": ') and line.endswith("}"):
            rows.append(json.loads(line)["row"])
        elif line.startswith('{"state": ') and line.endswith("}"):
            told = json.loads(line)
            state, said = told["state"], told["said"]
    return state, said, rows


def _how(code: int, err: str) -> str:
    """How a process ended that said nothing."""
    last = next((line for line in reversed(err.splitlines()) if line.strip()), "")
    if code < 0:
        return f"its process was ended by signal {-code} ({signal.Signals(-code).name}){last and f': {last[:300]}'}"
    return last[:300] or f"its process ended with exit code {code} and no word"


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
