"""Fuse any graph: regions between non-linearities become single convolutions, whoever wrote the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public

if TYPE_CHECKING:
    from .onnx.fuse import foresee_onnx as foresee_onnx
    from .onnx.fuse import fuse_onnx as fuse_onnx
    from .program.fuse import foresee_program as foresee_program
    from .program.fuse import fuse_program as fuse_program

_HOMES = {".onnx.fuse": "foresee_onnx fuse_onnx", ".program.fuse": "foresee_program fuse_program"}

__all__, __getattr__, __dir__ = public(__name__, _HOMES)
