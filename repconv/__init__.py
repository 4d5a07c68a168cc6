"""Fold trained multi-branch convolution blocks, exactly, into the single convolutions that deploy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .names import public

if TYPE_CHECKING:
    from .algebra.kernels import Kernel as Kernel
    from .blocks.block import RepBlock as RepBlock
    from .blocks.block import set_statistics as set_statistics
    from .blocks.branches import BRANCHES as BRANCHES
    from .blocks.forecast import forecast as forecast
    from .blocks.statistics.sampling import Sampling as Sampling
    from .errors import BackendError as BackendError
    from .errors import BuildError as BuildError
    from .errors import CheckpointError as CheckpointError
    from .errors import FusionError as FusionError
    from .errors import GeometryError as GeometryError
    from .errors import OutputError as OutputError
    from .errors import RepconvError as RepconvError
    from .errors import SearchError as SearchError
    from .errors import SourceError as SourceError
    from .errors import VerificationError as VerificationError
    from .expansion.expand import expand as expand
    from .expansion.expand import expandable as expandable
    from .fusing import fuse as fuse
    from .models import create_model as create_model
    from .models import list_models as list_models
    from .proof.comparing import compare as compare
    from .proof.report import FusionReport as FusionReport
    from .proof.report import Refusal as Refusal
    from .sources.checkpoint import load as load
    from .sources.checkpoint import save as save

_HOMES = {
    ".algebra.kernels": "Kernel",
    ".blocks.block": "RepBlock set_statistics",
    ".blocks.branches": "BRANCHES",
    ".blocks.forecast": "forecast",
    ".blocks.statistics.sampling": "Sampling",
    ".errors": "BackendError BuildError CheckpointError FusionError GeometryError OutputError RepconvError SearchError "
    "SourceError VerificationError",
    ".expansion.expand": "expand expandable",
    ".fusing": "fuse",
    ".models": "create_model list_models",
    ".proof.comparing": "compare",
    ".proof.report": "FusionReport Refusal",
    ".sources.checkpoint": "load save",
}

__version__: str
__all__, _public, __dir__ = public(__name__, _HOMES)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # a third of the time that `repconv --help` takes

        return version("repconv")
    return _public(name)
