"""How far long work is: told where it is done, shown on standard error, in place or a line now and then."""

from __future__ import annotations

import io
import sys
from itertools import count

import pytest

from repconv.cli.shared.progress import Epochs, Shown, duration, watch
from repconv.cli.shared.terminal import Spared
from repconv.progress import Tally, counted, tell_progress, watched


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_is_counted_is_told_to_whoever_watches_and_to_nobody_else() -> None:
    seen: list[Tally] = []
    with watched(seen.append):
        assert list(counted("ab", "letters")) == ["a", "b"]
    tell_progress("letters", 1, 2)
    assert seen == [Tally("letters", n, 2) for n in range(3)]


def feed(shown: Shown, clock: Clock, steps: int, seconds: float) -> None:
    for done in range(steps + 1):
        shown(Tally("updates", done, steps))
        clock.now += seconds


def test_a_log_gets_few_lines_with_total_and_time_left(clock, capsys) -> None:
    feed(Shown(terminal=False, clock=clock), clock, 1200, 1.0)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "repconv: updates 15 of 1,200, 1%, 20 min left"
    assert 10 < len(lines) < 60
    assert "\r" not in err


def test_whoever_tells_may_know_the_time_left_and_where_it_is(clock, capsys) -> None:
    shown = Shown(terminal=False, clock=clock)
    for _ in range(3):
        shown(Tally("runs", 0, 4, within="a", left_s=7200, without="evaluation"))
        clock.now += 10
    assert capsys.readouterr().err == "repconv: runs 0 of 4, 0%, a, 2 h 00 min left without evaluation\n"


def test_short_work_is_not_shown(clock, capsys) -> None:
    for terminal in (True, False):
        feed(Shown(terminal=terminal, clock=clock), clock, 100, 0.004)
    assert capsys.readouterr().err.strip("\r ") == ""


def test_a_terminal_gets_one_line_in_place_which_makes_room(clock, monkeypatch) -> None:
    kept = io.StringIO()
    monkeypatch.setattr(sys, "stderr", Spared(kept))
    shown = Shown(terminal=True, clock=clock)
    for done in range(3):
        shown(Tally("updates", done, 4))
        clock.now += 1
    Spared(kept).write("a table\n")
    line = "repconv: updates 2 of 4, 50%, 2 s left"
    assert kept.getvalue().endswith(f"\r{line}\r{' ' * len(line)}\ra table\n")
    assert "\x1b" not in kept.getvalue()


def test_work_that_goes_on_is_timed_from_there(clock, capsys) -> None:
    shown = Shown(terminal=False, clock=clock)
    for done in count(500):
        shown(Tally("updates", done, 520))
        clock.now += 4
        if done == 510:
            break
    assert "repconv: updates 504 of 520, 97%, 64 s left" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (11100, "3 h 05 min")])
def test_durations(seconds, words) -> None:
    assert duration(seconds) == words


def test_epochs_say_of_how_many_and_not_each_of_them_in_a_log(clock, capsys) -> None:
    epochs = Epochs(100, clock=clock)
    for epoch in range(1, 101):
        epochs({"kind": "epoch", "epoch": epoch, "loss": 1.0, "learning_rate": 0.1, "seconds_a_step": 0.5})
        clock.now += 5
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 34)
    assert err.startswith("epoch 1 of 100: loss 1.0000")
    assert "epoch 100 of 100" in err


def test_only_the_first_of_several_processes_shows(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert watch() is None
