"""Artefacts for runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repconv.names import public

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
    ".exporting": "export to_onnx to_openvino to_tensorrt",
    ".inputs.data": "Data",
    ".record": "ExportRecord",
    ".settings": "BuildSettings Preprocessing Quantization Span",
}

__all__, __getattr__, __dir__ = public(__name__, _HOMES)
