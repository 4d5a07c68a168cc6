"""Fuse any graph: regions between non-linearities become single convolutions, whoever wrote the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .onnx.fuse import foresee_onnx as foresee_onnx
    from .onnx.fuse import fuse_onnx as fuse_onnx
    from .program.fuse import foresee_program as foresee_program
    from .program.fuse import fuse_program as fuse_program

_HOMES = {
    "foresee_onnx": ".onnx.fuse",
    "foresee_program": ".program.fuse",
    "fuse_onnx": ".onnx.fuse",
    "fuse_program": ".program.fuse",
}

__all__ = ["foresee_onnx", "foresee_program", "fuse_onnx", "fuse_program"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
