"""Fuse any graph: regions between non-linearities become single convolutions, whoever wrote the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public

if TYPE_CHECKING:
    from .onnx.fuse import foresee_onnx as foresee_onnx
    from .onnx.fuse import fuse_onnx as fuse_onnx
    from .pipelines.onnx_passes import OnnxFusePass as OnnxFusePass
    from .pipelines.passes import FusePass as FusePass
    from .pipelines.quantization import fuse_before_quantization as fuse_before_quantization
    from .program.fuse import foresee_program as foresee_program
    from .program.fuse import fuse_program as fuse_program

_HOMES = {
    ".onnx.fuse": "foresee_onnx fuse_onnx",
    ".pipelines.onnx_passes": "OnnxFusePass",
    ".pipelines.passes": "FusePass",
    ".pipelines.quantization": "fuse_before_quantization",
    ".program.fuse": "foresee_program fuse_program",
}

__all__, __getattr__, __dir__ = public(__name__, _HOMES)
