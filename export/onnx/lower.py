"""A float32 ONNX model in the precision asked for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from torch import Tensor

from ..int8.quantize import Quantized, quantize_onnx
from ..settings import BuildSettings
from .half import to_half


def lower(
    network: onnx.ModelProto, settings: BuildSettings, calibration: Sequence[Tensor] | None, *, int32_bias: bool
) -> tuple[onnx.ModelProto, Quantized | None]:
    """The model, and for int8 what quantising did.

    Args:
        network: float32.
        settings: precision, and how it is reached.
        calibration: batches for int8.
        int32_bias: of int8, see `quantize_onnx`.

    Raises:
        SourceError: a layer that is to stay float is none of the model's.
        BuildError: the model cannot be of this precision.
    """
    if settings.precision in ("fp16", "bf16"):
        return to_half(network, settings.precision, fp32_io=settings.fp32_io), None
    if calibration is None:
        return network, None
    done = quantize_onnx(network, calibration, settings.quantization, symmetric=True, int32_bias=int32_bias)
    return done.model, done
