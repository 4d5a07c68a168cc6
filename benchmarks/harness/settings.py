"""What a benchmark is asked to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from repconv.errors import SourceError
from repconv.export.settings import PRECISIONS

DEVICES = ("cpu", "cuda")
PLAIN, UNFUSED, FUSED = "plain", "unfused", "fused"


@dataclass(frozen=True)
class BenchSettings:
    """What was asked for.

    backends: names of `BACKENDS`; batches: images a call; precisions: of weights and activations.
    against: `plain`, `unfused` or a file, what a fused network is compared with; None: unfused, and plain where known.
    image: height and width, or all sizes of another input, with channels or not; None: what the source records.
    device: where backends that can choose run.
    rounds: turns of every subject; seconds, calls: timed at least, each subject over all its rounds.
    warmup_s: seconds a subject runs untimed after it was loaded.
    sessions: how often every subject is loaded anew; they share the rounds.
    threads: of each backend's pool; None: as many as the process may use. cpus: the cores it may use; empty: any.
    transfers: on a GPU, copying images in and results out is timed, too.
    cuda_graphs: calls are recorded once and replayed. cuda_events: time is the GPU's own.
    seed: of images, random weights and the order of turns.

    Raises:
        SourceError: a number that makes no sense, or settings that exclude one another.
    """

    backends: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = ("fp32",)
    against: str | None = None
    image: tuple[int, ...] | None = None
    device: str = "cpu"
    rounds: int = 30
    seconds: float = 2.0
    calls: int = 60
    warmup_s: float = 0.5
    sessions: int = 6
    threads: int | None = None
    cpus: tuple[int, ...] = ()
    transfers: bool = False
    cuda_graphs: bool = False
    cuda_events: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _each("backends", self.backends)
        _each("batches", self.batches)
        _each("precisions", self.precisions)
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise SourceError(f"precision {precision!r}: expected {', '.join(PRECISIONS)}")
        if self.device not in DEVICES:
            raise SourceError(f"device {self.device!r}: expected {' or '.join(DEVICES)}")
        for name, value in (
            ("batch", min(self.batches)),
            ("rounds", self.rounds),
            ("calls", self.calls),
            ("sessions", self.sessions),
            ("threads", 1 if self.threads is None else self.threads),
            ("image", min(self.image or (1,))),
        ):
            if value < 1:
                raise SourceError(f"{name} {value}: expected a whole number of at least 1")
        if not self.seconds > 0 or not self.warmup_s >= 0:
            raise SourceError(
                f"{self.seconds} s timed and {self.warmup_s} s of warm-up: expected more than 0, and 0 on"
            )
        if self.rounds % self.sessions:
            raise SourceError(
                f"{self.rounds} rounds do not divide into {self.sessions} sessions; take a multiple of "
                f"{self.sessions} rounds, such as {self.sessions * max(1, round(self.rounds / self.sessions))}"
            )

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        against = self.against if self.against in (None, PLAIN, UNFUSED) else Path(str(self.against)).name
        return {**asdict(self), "against": against}


def _each(name: str, values: Sequence[object]) -> None:
    if not values:
        raise SourceError(f"no {name} to measure")
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    if twice is not None:
        raise SourceError(f"{name}: {twice} is named twice")
