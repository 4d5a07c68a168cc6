"""Fold trained multi-branch convolution blocks, exactly, into the single convolutions that deploy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agreement import compare
    from .block import RepBlock, set_statistics
    from .branches import BRANCHES
    from .checkpoint import load, save
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
    from .expansion import expand, expandable
    from .forecasting import forecast
    from .fusing import fuse
    from .kernels import Kernel
    from .models import create_model, list_models
    from .refusal import Refusal
    from .report import FusionReport
    from .sampling import Sampling

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
    "BRANCHES": ".branches",
    "BackendError": ".errors",
    "BuildError": ".errors",
    "CheckpointError": ".errors",
    "FusionError": ".errors",
    "FusionReport": ".report",
    "GeometryError": ".errors",
    "Kernel": ".kernels",
    "OutputError": ".errors",
    "Refusal": ".refusal",
    "RepBlock": ".block",
    "RepconvError": ".errors",
    "Sampling": ".sampling",
    "SearchError": ".errors",
    "SourceError": ".errors",
    "VerificationError": ".errors",
    "compare": ".agreement",
    "create_model": ".models",
    "expand": ".expansion",
    "expandable": ".expansion",
    "forecast": ".forecasting",
    "fuse": ".fusing",
    "list_models": ".models",
    "load": ".checkpoint",
    "save": ".checkpoint",
    "set_statistics": ".block",
}
"""Where each public name lives; resolved when first used, so that the command line starts without torch."""


def __getattr__(name: str) -> Any:  # noqa: ANN401  # the module protocol
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
