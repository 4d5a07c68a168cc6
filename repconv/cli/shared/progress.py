"""Progress on standard error: in place on a terminal, a line now and then in a log, nothing of what is short."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from ...progress import Tally, Watch
from .terminal import in_place

_SHORT_S = 0.5
"""Work that is done sooner is not shown on a terminal."""
_REDRAWN_S = 0.1
_LINE_S = 15.0
"""Seconds until a log gets its first line, and between two at least; of long work a twentieth of its time."""


def watch() -> Watch | None:
    """What shows the progress of a command; None in all but the first of several processes."""
    if os.environ.get("RANK", "0") != "0":
        return None
    return Shown(terminal=sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


class Shown:
    """Shows steps, each kind of work with the time that it will take from here on, as fast as it went until now.

    Args:
        terminal: whether lines can be overwritten.
        clock: seconds.
    """

    def __init__(self, *, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal, self._clock = terminal, clock
        self._begun: dict[str, tuple[float, Tally]] = {}
        self._drawn = clock()

    def __call__(self, step: Tally) -> None:
        """Show it, if it is time to."""
        now = self._clock()
        began, first = self._begun.setdefault(step.what, (now, step))
        if step.done >= step.total:
            del self._begun[step.what]
            if self._terminal:
                in_place("")
            return
        if step.done <= first.done and step.left_s is None:
            self._begun[step.what] = (now, step)
            return
        took = now - began
        wait = _REDRAWN_S if self._terminal else max(_LINE_S, took / 20)
        if took < _SHORT_S or now - self._drawn < wait:
            return
        self._drawn = now
        left = step.left_s
        if left is None:
            left = took / (step.done - first.done) * (step.total - step.done)
        text = f"repconv: {step.what} {step.done:,} of {step.total:,}, {step.done / step.total:.0%}"
        text += f", {step.within}" * bool(step.within)
        text += f", {duration(left)} left" + f" without {step.without}" * bool(step.without)
        if self._terminal:
            in_place(text)
        else:
            click.echo(text, err=True)


def duration(seconds: float) -> str:
    """In words: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Epochs:
    """Shows the metrics of training on standard error as they are written; in a log not of every epoch.

    Args:
        epochs: in all.
        others: what shows records of other kinds than notes and epochs.
        clock: seconds.
    """

    def __init__(
        self,
        epochs: int,
        others: Callable[[Mapping[str, Any]], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._epochs, self._others, self._clock = epochs, others, clock
        self._said: float | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show a record."""
        if record["kind"] == "note":
            click.echo(f"repconv: {record['note']}", err=True)
        elif record["kind"] != "epoch":
            self._others(record)
        elif self._is_time(last=record["epoch"] == self._epochs):
            click.echo(
                f"epoch {record['epoch']} of {self._epochs}: loss {record['loss']:.4f}, learning rate "
                f"{record['learning_rate']:.4g}, {record['seconds_a_step']:.3f} s an update",
                err=True,
            )

    def _is_time(self, *, last: bool) -> bool:
        now = self._clock()
        if not (last or sys.stderr.isatty() or self._said is None or now - self._said >= _LINE_S):
            return False
        self._said = now
        return True
