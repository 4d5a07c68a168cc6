"""Which tensors of a model half precision cannot hold, on inputs like those it will see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from torch import Tensor

from repconv.blocks.forecast import FP16_MAX
from repconv.errors import VerificationError
from repconv.files.edited import inputs_of, showing
from repconv.files.onnx import model_session


@dataclass(frozen=True)
class Peak:
    """The largest magnitude of a tensor: of the output of node `node`, or of a weight, whose `node` is empty."""

    tensor: str
    node: str
    peak: float


def peaks(model: onnx.ModelProto, batches: Sequence[Tensor]) -> list[Peak]:
    """Of every float32 weight, and of every float32 tensor computed on `batches`, in the order of computation."""
    weights = {t.name: t for t in model.graph.initializer}
    found = [
        Peak(t.name, "", float(np.abs(numpy_helper.to_array(t)).max()))
        for t in weights.values()
        if t.data_type == TensorProto.FLOAT and any(t.dims) and min(t.dims, default=1) > 0
    ]
    name = inputs_of(model)[0].name
    makers = {output: node.name for node in model.graph.node for output in node.output if output}
    session = model_session(showing(model, makers), "the model")
    names = [value.name for value in session.get_outputs() if value.type == "tensor(float)"]
    largest = dict.fromkeys(names, 0.0)
    for batch in batches:
        for output, value in zip(names, session.run(names, {name: batch.numpy()}), strict=True):
            if value.size:
                largest[output] = max(largest[output], float(np.abs(value).max()))
    return found + [Peak(output, makers.get(output, output), largest[output]) for output in makers if output in largest]


def require_fp16(found: Sequence[Peak], origin: str) -> None:
    """Insist that half precision holds every tensor.

    Raises:
        VerificationError: it does not; the message names the tensors, first computed first.
    """
    over = [peak for peak in found if not peak.peak <= FP16_MAX]
    if over:
        said = "; ".join(
            f"{p.tensor}{f' ({p.node})' if p.node else ', a weight,'} reaches {p.peak:.3g}" for p in over[:5]
        )
        more = f"; and {len(over) - 5} more" if len(over) > 5 else ""
        raise VerificationError(
            f"fp16 ends at {FP16_MAX:.0f} and cannot hold {len(over)} tensors on {origin}: {said}{more}; use bf16 or "
            "fp32"
        )
