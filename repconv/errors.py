"""The errors a user can meet; every message says what was expected, what came, where, and what to do."""

from __future__ import annotations

import typing


class RepconvError(Exception):
    """Base of every error this package raises on purpose."""


class GeometryError(RepconvError, ValueError):
    """An operation on convolutions that would not be exact, or shapes that do not fit."""


class FusionError(RepconvError, ValueError):
    """A model that cannot be fused as it stands, such as one in training mode."""


class CheckpointError(RepconvError, ValueError):
    """A file that is not a readable checkpoint, or a model a checkpoint cannot describe."""


class SearchError(RepconvError, ValueError):
    """A search that cannot start or go on: a setting, a space or an architecture that makes no sense."""


class SourceError(RepconvError, ValueError):
    """A command-line source that names nothing readable."""


class OutputError(RepconvError, OSError):
    """An output that cannot be written; whatever was there before is untouched."""


class VerificationError(RepconvError):
    """An artefact disagrees with its reference; it was not written.

    report: the `FusionReport` with every comparison, where fusing is what was being proved; else None.
    """

    def __init__(self, message: str, report: typing.Any = None) -> None:  # noqa: ANN401  # reports know errors, not vice versa
        super().__init__(message)
        self.report = report


class BackendError(RepconvError):
    """A backend is not installed; the message carries the line that installs it."""


class BuildError(RepconvError):
    """A backend is installed but could not build the artefact."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
