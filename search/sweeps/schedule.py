"""The runs of a sweep, some at a time, until each has come to its end or failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from repconv.progress import tell_progress

from .crew import Crew
from .doing import Standing, finished, found_fewer, seconds_left, standing
from .plan import RetrainRun, SearchRun, SweepRun

_LOOKED_S = 0.5
"""Seconds between two looks at the processes."""
_TOLD_S = 5.0
"""Seconds between two looks at how far all runs are, at least; looking takes a fiftieth of the time at most."""
_LOOKING = 50


class Worker(Protocol):
    """What does one run."""

    def poll(self) -> int | None:
        """Its exit code, None while it works."""

    def ask_to_end(self) -> None:
        """Have it end in order."""

    def end(self) -> None:
        """Wait until it has ended."""

    def why(self) -> str:
        """Why it failed."""


@dataclass(frozen=True)
class Failure:
    """A run that failed: its exit code, negative for a signal, and why."""

    code: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Hands:
    """How a process works at a sweep.

    start: begins a run in a place from 0 to `places - 1`. say: is told what begins and ends, in words.
    """

    start: Callable[[SweepRun, int], Worker]
    places: int
    say: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


def do_all(root: Path, runs: Sequence[SweepRun], crew: Crew, hands: Hands) -> Mapping[str, Failure]:
    """Do every run of the sweep in `root` that is not finished, this process those that it takes; what failed, by name.

    Ends when all have ended, in all processes. Whatever ends it early, also ends what was begun.

    Raises:
        OutputError: a log cannot be written.
    """
    under_way: dict[int, tuple[SweepRun, Worker]] = {}
    next_at = hands.clock()
    try:
        while True:
            _collect(under_way, crew, hands)
            open_ones = [one for one in runs if not _settled(root, one, crew)]
            if not open_ones and not under_way:
                break
            _begin(root, open_ones, under_way, crew, hands)
            now = hands.clock()
            if crew.first and now >= next_at:
                _tell(runs, [_standing(root, one, crew) for one in runs], crew.count * hands.places)
                next_at = now + max(_TOLD_S, _LOOKING * (hands.clock() - now))
            hands.sleep(_LOOKED_S)
    finally:
        for _, worker in under_way.values():
            worker.ask_to_end()
        for _, worker in under_way.values():
            worker.end()
    return _failures(runs, crew)


def _collect(under_way: dict[int, tuple[SweepRun, Worker]], crew: Crew, hands: Hands) -> None:
    """Take note of what has ended."""
    for place, (one, worker) in list(under_way.items()):
        code = worker.poll()
        if code is None:
            continue
        why = worker.why() if code else ""
        worker.end()
        del under_way[place]
        crew.tell(one.name, f"{code} {why}" if code else "")
        hands.say(f"{one.name}: {why or 'done'}")


def _begin(
    root: Path,
    open_ones: Sequence[SweepRun],
    under_way: dict[int, tuple[SweepRun, Worker]],
    crew: Crew,
    hands: Hands,
) -> None:
    """Begin runs in the places that are free."""
    at_work = {one.name for one, _ in under_way.values()}
    ready = [
        one for one in open_ones if one.name not in at_work and (isinstance(one, SearchRun) or finished(root, one.of))
    ]
    for place in [place for place in range(hands.places) if place not in under_way]:
        one = next((one for one in ready if crew.takes(one.name)), None)
        if one is None:
            return
        ready = ready[ready.index(one) + 1 :]
        hands.say(f"{one.name}: begun" if not (root / one.name).exists() else f"{one.name}: goes on")
        under_way[place] = (one, hands.start(one, place))


def _settled(root: Path, one: SweepRun, crew: Crew) -> bool:
    """Whether nothing is to be done for it any more."""
    return crew.told(one.name) is not None or finished(root, one) or _is_left_out(root, one, crew)


def _is_left_out(root: Path, one: SweepRun, crew: Crew) -> bool:
    """Whether there is nothing to retrain, since its search failed or found fewer."""
    return isinstance(one, RetrainRun) and (bool(crew.told(one.of.name)) or found_fewer(root, one))


def _standing(root: Path, one: SweepRun, crew: Crew) -> Standing:
    over = bool(crew.told(one.name)) or _is_left_out(root, one, crew)
    return Standing(state="left out") if over else standing(root, one)


def _tell(runs: Sequence[SweepRun], standings: Sequence[Standing], at_once: int) -> None:
    timed = {one.kind for one, there in zip(runs, standings, strict=True) if there.share}
    untimed = {one.kind for one, there in zip(runs, standings, strict=True) if there.state == "waiting"} - timed
    tell_progress(
        "runs",
        sum(there.state in ("finished", "left out") for there in standings),
        len(runs),
        left_s=seconds_left(runs, standings, at_once),
        without="retraining" if "retrain" in untimed else "",
    )


def _failures(runs: Sequence[SweepRun], crew: Crew) -> dict[str, Failure]:
    found = {}
    for one in runs:
        told = crew.told(one.name)
        if told:
            code, _, why = told.partition(" ")
            found[one.name] = Failure(int(code), why)
    return found
