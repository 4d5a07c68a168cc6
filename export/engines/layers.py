"""What is inside an engine, read from the builder's detailed log (TensorRT-RTX) or the engine inspector (TensorRT)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from repconv.errors import BuildError

_DATATYPES = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}
_MOVES_DATA = "kgen"
"""Kernels generated for what is elementwise: beside a convolution they only bring its input into another layout."""


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer of an engine: the ONNX nodes it computes, and the types of the tensors it reads."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EngineConvolution:
    """A convolution of the ONNX model as the engine computes it: by which layer, from a tensor of which type."""

    node: str
    layer: str
    kind: str
    datatype: str


def parse_log(lines: Sequence[str]) -> list[EngineLayer]:
    """Layers from lines `Name: ..., LayerType: ..., Inputs: [ ... ], Constants: ..., Metadata: [ONNX Layer: ...]`."""
    return list(_parse_lines(lines))


def _parse_lines(lines: Sequence[str]) -> Iterator[EngineLayer]:
    for line in lines:
        match = re.match(r"Name: (.*?), LayerType: (.*?), Inputs: (.*?), (?:Constants|Outputs): ", line)
        if match is not None:
            nodes = re.findall(r"\[ONNX Layer: ([^\]]*)\]", line)
            reads = re.findall(r"Data[Tt]ype: (\w+)", match[3])
            yield EngineLayer(name=match[1], kind=match[2], nodes=tuple(nodes), reads=tuple(reads))


def parse_inspected(text: str) -> list[EngineLayer]:
    """Layers from the engine inspector's JSON."""
    layers = []
    for layer in json.loads(text).get("Layers", []):
        if not isinstance(layer, dict):
            continue
        nodes = re.findall(r"\[ONNX Layer: ([^\]\x1e]*)", str(layer.get("Metadata", "")))
        reads = [_datatype(tensor) for tensor in layer.get("Inputs", [])]
        layers.append(
            EngineLayer(
                name=str(layer.get("Name")), kind=str(layer.get("LayerType")), nodes=tuple(nodes), reads=tuple(reads)
            )
        )
    return layers


_SAID = {
    "FP16": "Half", "Half": "Half", "BF16": "BFloat16", "BFloat16": "BFloat16", "Int8": "Int8", "INT8": "Int8",
    "FP32": "Float", "Float": "Float",
}  # fmt: skip
"""Words of the inspector, which differ from version to version, in the builder's."""


def _datatype(tensor: dict[str, object]) -> str:
    # TensorRT 10 says "Format/Datatype" in one; 11 splits it, and spells the word "DataType".
    known = {key.lower(): value for key, value in tensor.items()}
    said = str(known.get("datatype") or known.get("format/datatype") or "")
    return next((name for word, name in _SAID.items() if word in said), said)


def convolutions(model: onnx.ModelProto, layers: Sequence[EngineLayer]) -> list[EngineConvolution]:
    """The convolutions of `model` that layers of the engine say they compute."""
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        said = [layer for layer in layers if node.name in layer.nodes]
        said = [layer for layer in said if layer.kind != _MOVES_DATA] or said
        if said:
            layer = said[-1]
            found.append(
                EngineConvolution(
                    node=node.name, layer=layer.name, kind=layer.kind, datatype=layer.reads[0] if layer.reads else "?"
                )
            )
    return found


def observed(model: onnx.ModelProto, layers: Sequence[EngineLayer], precision: str) -> dict[str, str]:
    """How many layers and convolutions the engine has, and what the convolutions read.

    Raises:
        BuildError: the engine is not of the precision asked for.
    """
    found = convolutions(model, layers)
    kinds = Counter(c.datatype for c in found)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none named"
    wanted = _DATATYPES[precision]
    wrong = found and (not kinds[wanted] if precision == "int8" else kinds[wanted] < len(found))
    if wrong:
        raise BuildError(f"asked for {precision}, but the engine's convolutions read: {said}")
    return {"layers": str(len(layers)), "convolutions": said, "precision": precision if found else "unknown"}
