"""Whether too many images change their class: the verdict on int8 that a user means, beside that on numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_LOST = 0.05
"""Share of labelled images the artefact may get wrong that the network gets right, less those it gets right instead.
int8 of trained networks costs 0 to 2 points where it works, 10 and more where ranges defeat it."""

MAX_CHANGED = 0.25
"""Share of images whose largest output may be another. Where the network itself is undecided, int8 changes the class of
some 1 to 15 % without losing accuracy; a file of which nothing is left changes nearly all."""

CONFIDENCE = 0.95
"""A limit is exceeded only if so many images would meet with less than 5 % chance were the true share at the limit."""


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """Of `images` compared, how many `changed` class; of `labelled`, how many were `lost` and `gained`.

    max_changed, max_lost: shares that are allowed.
    """

    images: int
    changed: int
    labelled: int
    lost: int
    gained: int
    max_changed: float = MAX_CHANGED
    max_lost: float = MAX_LOST

    @property
    def complaint(self) -> str | None:
        """What is beyond its limit by more than chance, in words."""
        net = self.lost - self.gained
        # Gains would be as many again by chance, so the losses are held to the limit and these.
        if net > 0 and _beyond(self.lost, self.labelled, self.max_lost + self.gained / self.labelled):
            low, high = _interval(net, self.labelled)
            return (
                f"{100 * net / self.labelled:.1f} points of accuracy lost on {self.labelled} labelled images (95 % "
                f"interval {100 * low:.1f} to {100 * high:.1f}), {100 * self.max_lost:g} allowed (--max-lost)"
            )
        if _beyond(self.changed, self.images, self.max_changed):
            low, high = _interval(self.changed, self.images)
            return (
                f"{self.changed / self.images:.1%} of {self.images} images change class (95 % interval {low:.1%} to "
                f"{high:.1%}), {self.max_changed:.0%} allowed (--max-changed)"
            )
        return None


def _beyond(count: int, of: int, share: float) -> bool:
    """Whether `count` or more of `of` would be met with a chance below 5 % at a true `share`."""
    if not of or share >= 1 or count <= max(1, share * of):
        return False
    return _tail(count, of, share) < 1 - CONFIDENCE


def _tail(count: int, of: int, share: float) -> float:
    """P(X >= count) of a binomial; share = 0 leaves none."""
    if share <= 0:
        return 0.0 if count else 1.0
    logs = (
        math.lgamma(of + 1)
        - math.lgamma(k + 1)
        - math.lgamma(of - k + 1)
        + k * math.log(share)
        + (of - k) * math.log1p(-share)
        for k in range(count, of + 1)
    )
    return math.fsum(math.exp(log) for log in logs)


def _interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z2 = 1.96**2
    share = count / of
    centre, half = share + z2 / (2 * of), 1.96 * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return (centre - half) / (1 + z2 / of), (centre + half) / (1 + z2 / of)
