"""What one operation of the kind of graph that is written can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """What an emission must write by more than one operation, and is priced so, follows from this.

    pads_unevenly: a convolution may pad otherwise before than after; where it may not, zeros are padded by themselves.
    adds_to_matrices: a matrix times the last axis of a tensor of any rank adds a constant; else only at rank 2.
    """

    pads_unevenly: bool
    adds_to_matrices: bool
