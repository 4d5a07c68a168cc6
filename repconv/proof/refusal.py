"""Saying no in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Something that was left as it is, and why, in words."""

    where: str
    why: str
