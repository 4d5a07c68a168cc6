"""What fusing makes of a source, and how exact it is block by block."""

from __future__ import annotations

from repconv.export.fused_graph import fuse_onnx_file, fuse_to_program
from repconv.fusion import fuse_blocks
from repconv.inspection import Inspection, inspect
from repconv.report import FusionReport
from repconv.verify import count_flops, probes, verify

from .forms import Given


def explain(given: Given) -> tuple[FusionReport, Inspection | None]:
    """The account of fusing `given` with measured errors, and, of a network of blocks, what is in it.

    Raises:
        FusionError: it cannot be followed.
        SourceError: it cannot be run.
    """
    network = given.network
    if network is None:
        if given.path is None:  # an ONNX source always has a file
            raise ValueError(f"{given.label} has neither a network nor a file")
        return fuse_onnx_file(given.path, given.size).report, None
    if given.foreign:
        return fuse_to_program(network, [probes(given.size)[0]]).report, None
    fused, report = fuse_blocks(network)
    report = report.with_flops(count_flops(network, given.size), count_flops(fused, given.size))
    return report.with_agreement(verify(network, fused, probes(given.size))), inspect(network)
