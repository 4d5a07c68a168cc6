"""Fold trained multi-branch convolution blocks, exactly, into the single convolutions that deploy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .algebra.kernels import Kernel
    from .blocks.block import RepBlock, set_statistics
    from .blocks.branches import BRANCHES
    from .blocks.forecast import forecast
    from .blocks.statistics.sampling import Sampling
    from .errors import (
        BackendError,
        BuildError,
        CheckpointError,
        FusionError,
        GeometryError,
        OutputError,
        RepconvError,
        SearchError,
        SourceError,
        VerificationError,
    )
    from .expansion.expand import expand, expandable
    from .fusing import fuse
    from .models import create_model, list_models
    from .proof.agreement import compare
    from .proof.refusal import Refusal
    from .proof.report import FusionReport
    from .sources.checkpoint import load, save

__all__ = [
    "BRANCHES",
    "BackendError",
    "BuildError",
    "CheckpointError",
    "FusionError",
    "FusionReport",
    "GeometryError",
    "Kernel",
    "OutputError",
    "Refusal",
    "RepBlock",
    "RepconvError",
    "Sampling",
    "SearchError",
    "SourceError",
    "VerificationError",
    "compare",
    "create_model",
    "expand",
    "expandable",
    "forecast",
    "fuse",
    "list_models",
    "load",
    "save",
    "set_statistics",
]

_HOMES = {
    "BRANCHES": ".blocks.branches",
    "BackendError": ".errors",
    "BuildError": ".errors",
    "CheckpointError": ".errors",
    "FusionError": ".errors",
    "FusionReport": ".proof.report",
    "GeometryError": ".errors",
    "Kernel": ".algebra.kernels",
    "OutputError": ".errors",
    "Refusal": ".proof.refusal",
    "RepBlock": ".blocks.block",
    "RepconvError": ".errors",
    "Sampling": ".blocks.statistics.sampling",
    "SearchError": ".errors",
    "SourceError": ".errors",
    "VerificationError": ".errors",
    "compare": ".proof.agreement",
    "create_model": ".models",
    "expand": ".expansion.expand",
    "expandable": ".expansion.expand",
    "forecast": ".blocks.forecast",
    "fuse": ".fusing",
    "list_models": ".models",
    "load": ".sources.checkpoint",
    "save": ".sources.checkpoint",
    "set_statistics": ".blocks.block",
}
"""Where each public name lives; resolved when first used, so that the command line starts without torch."""


def __getattr__(name: str) -> Any:  # noqa: ANN401  # the module protocol
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
