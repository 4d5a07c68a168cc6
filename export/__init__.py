"""Artefacts for runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .exporting import export as export
    from .exporting import to_onnx as to_onnx
    from .exporting import to_openvino as to_openvino
    from .exporting import to_tensorrt as to_tensorrt
    from .inputs.data import Data as Data
    from .record import ExportRecord as ExportRecord
    from .settings import BuildSettings as BuildSettings
    from .settings import Preprocessing as Preprocessing
    from .settings import Quantization as Quantization
    from .settings import Span as Span

_HOMES = {
    "BuildSettings": ".settings",
    "Data": ".inputs.data",
    "ExportRecord": ".record",
    "Preprocessing": ".settings",
    "Quantization": ".settings",
    "Span": ".settings",
    "export": ".exporting",
    "to_onnx": ".exporting",
    "to_openvino": ".exporting",
    "to_tensorrt": ".exporting",
}

__all__ = [
    "BuildSettings", "Data", "ExportRecord", "Preprocessing", "Quantization", "Span", "export", "to_onnx",
    "to_openvino", "to_tensorrt",
]  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
