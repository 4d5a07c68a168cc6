"""What one operation of the kind of graph that is written can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """What an emission must write by more than one operation, and is priced so, follows from this.

    pads_unevenly: a convolution may pad otherwise before than after; where it may not, zeros are padded by themselves.
    """

    pads_unevenly: bool
