"""What an ONNX model holds, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import onnx

from repconv.files.edited import inputs_of
from repconv.files.onnx import kind_of, parameters


@dataclass(frozen=True, kw_only=True)
class OnnxSummary:
    """A model's outside and its size; inputs and outputs as `name: dtype shape`, open sizes by their own names."""

    producer: str
    opsets: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: Mapping[str, int]
    parameters: int
    metadata: Mapping[str, str]

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return asdict(self)


def summarise_onnx(proto: onnx.ModelProto) -> OnnxSummary:
    """What is in an ONNX model."""
    return OnnxSummary(
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        inputs=tuple(map(_said, inputs_of(proto))),
        outputs=tuple(_said(value) for value in proto.graph.output),
        nodes=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        parameters=parameters(proto),
        metadata={entry.key: entry.value for entry in proto.metadata_props},
    )


def _said(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        return f"{value.name}: no tensor"
    dtype = kind_of(tensor.elem_type)
    sizes = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return f"{value.name}: {dtype} {' x '.join(sizes) or 'of a single number'}"
