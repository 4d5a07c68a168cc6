"""`fuse_before_quantization`: a program that is quantised next, fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.export import ExportedProgram

from ...errors import FusionError
from ...proof.report import FusionReport
from ..program.fuse import fuse_program

_ROUNDING = ("quantize_per_", "quantize_affine", "dequantize_per_", "dequantize_affine", "fake_quant")
"""What operations that round to integers are called, in PyTorch's and torchao's namespaces."""


def fuse_before_quantization(
    program: ExportedProgram,
    inputs: Sequence[tuple[Any, ...]] | None = None,
    *,
    prove: bool = True,
    on_report: Callable[[FusionReport], object] | None = None,
) -> ExportedProgram:
    """A fused program for `prepare_pt2e`, which then scales what will be computed, and not branches that are summed.

    Quantised before, every branch would be rounded by itself, and could be folded no more. A convolution or linear that
    is written belongs to the module whose weights it holds (`nn_module_stack`), of several to the innermost around
    them, so that quantisers which are told by names of modules (`set_module_name`) find it.

    Args:
        program: in floating-point numbers, in evaluation mode, with example inputs. It is not changed.
        inputs: to compare on, as `fuse_program` takes them.
        prove: False leaves the comparing out, and the report says so.
        on_report: called with the report: what was done, what stays and why, and the proof.

    Raises:
        FusionError: the program is quantised or prepared for that already, or as `fuse_program`.
        VerificationError: the result differs by more than rounding; `error.report` has every comparison.
    """
    rounding = [
        node.name
        for node in program.graph.nodes
        if node.op == "call_function" and any(kind in str(node.target) for kind in _ROUNDING)
    ]
    if rounding:
        raise FusionError(
            f"the program is quantised already: {len(rounding)} operations round, first {rounding[0]}; fuse what "
            "torch.export gives, before prepare_pt2e"
        )
    fused, report = fuse_program(program, inputs, prove=prove)
    if on_report is not None:
        on_report(report)
    return fused
