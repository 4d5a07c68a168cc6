"""What fusing makes of a source, and how exact it is block by block."""

from __future__ import annotations

from repconv.blocks.inspection import Inspection, inspect
from repconv.errors import VerificationError
from repconv.export.from_source import FuseSettings, fuse_source
from repconv.proof.report import FusionReport

from .forms import Given


def explain(given: Given) -> tuple[FusionReport, Inspection | None]:
    """The account of fusing `given` with measured errors, and, of a network of blocks, what is in it.

    Raises:
        FusionError: it cannot be followed.
        SourceError: it cannot be run.
    """
    network = given.network
    source = given.source if network is None or given.program else network
    suffix = ".onnx" if network is None else ".pt2" if given.foreign else ".pt"
    try:
        report = fuse_source(source, suffix, FuseSettings(given.size)).report
    except VerificationError as error:
        if error.report is None:
            raise
        report = error.report  # it is shown; the benchmark refuses what differs by itself
    return report, None if network is None or given.foreign else inspect(network)
