"""What a reader says of an operation that is no affine step."""

from __future__ import annotations


class NotAffineError(Exception):
    """An operation that is no affine step; the message says why if it might have been one, and is empty otherwise."""
