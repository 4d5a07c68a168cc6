"""Subjects of several backends measured in turns."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from repconv.errors import BuildError

from ..player import Player, PlayerLost
from ..settings import BenchSettings
from .timing import LatencyReport


@dataclass(frozen=True)
class Seat:
    """A subject: its name, the player that has it, and what the player calls it."""

    name: str
    player: Player
    subject: str


@dataclass(frozen=True)
class Played:
    """Times by subject, and why there are none, in words, of those whose player was lost."""

    reports: Mapping[str, LatencyReport]
    failures: Mapping[str, str]


def play(places: Sequence[Seat], settings: BenchSettings, between: Callable[[float], None] = lambda _: None) -> Played:
    """Measure all subjects in the same rounds, each round in another order.

    They must be loaded. Before each session but the first they are loaded anew. What a lost player has is dropped, and
    the others go on.

    Args:
        places: the subjects.
        settings: rounds, sessions, and how long a turn is.
        between: told after each round what part is done.
    """
    generator = random.Random(settings.seed)  # noqa: S311  # an order, not a secret
    samples: dict[str, list[tuple[float, ...]]] = {place.name: [] for place in places}
    failures: dict[str, str] = {}
    seconds, calls = settings.seconds / settings.rounds, math.ceil(settings.calls / settings.rounds)
    inside = settings.rounds // settings.sessions

    def attempt(place: Seat, act: Callable[[], None]) -> None:
        if place.name in failures:
            return
        try:
            act()
        except PlayerLost as lost:
            failures.update({other.name: str(lost) for other in places if other.player is place.player})
        except BuildError as refused:
            failures[place.name] = str(refused)

    def prepare(place: Seat, session: int) -> None:
        if session:
            place.player.load(place.subject)
        place.player.warm(place.subject, settings.warmup_s)

    def turn(place: Seat) -> None:
        samples[place.name].append(place.player.turn(place.subject, seconds, calls))

    for session in range(settings.sessions):
        for place in generator.sample(places, len(places)):
            attempt(place, partial(prepare, place, session))
        for number in range(inside):
            for place in generator.sample(places, len(places)):
                attempt(place, partial(turn, place))
            between((session * inside + number + 1) / settings.rounds)
    return Played(
        {
            name: LatencyReport(name, tuple(s for round_ in taken for s in round_), tuple(map(len, taken)))
            for name, taken in samples.items()
            if name not in failures
        },
        failures,
    )
