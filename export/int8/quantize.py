"""int8 ONNX models as Q/DQ nodes, by onnxruntime's quantizer, calibrated on images."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx
from torch import Tensor

from repconv.errors import BuildError, first_line
from repconv.files.edited import copy_of, inputs_of
from repconv.files.held import temporary_folder

from ..settings import Quantization
from .equalise import equalise
from .keep_float import chosen, read_unrounded
from .layer_errors import Batch, LayerError, layer_errors

LAYERS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip", "Concat")
"""Operations that are quantised: those that runtimes have int8 kernels for. Normalisations and softmax stay float."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """An int8 model, the errors of its int8 layers, worst first, how many streams were equalised, what stayed float."""

    model: onnx.ModelProto
    layers: tuple[LayerError, ...]
    equalised: int
    kept: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "equalised_streams": self.equalised,
            "kept_float": list(self.kept),
            "layers": [asdict(layer) for layer in self.layers],
        }


def quantize_onnx(
    model: onnx.ModelProto, calibration: Sequence[Tensor], asked: Quantization, *, symmetric: bool, int32_bias: bool
) -> Quantized:
    """`model` in int8 with Q/DQ nodes; activations by their least and largest value over the calibration batches.

    Args:
        model: float32, of one input.
        calibration: batches as the model takes them.
        asked: scales, bits of weights, equalisation, and layers that stay float.
        symmetric: activations as int8 around zero, which TensorRT needs, instead of uint8 with a zero point, which
            gives what follows a ReLU twice the resolution.
        int32_bias: quantise biases, which onnxruntime's kernels need and TensorRT refuses.

    Raises:
        SourceError: a layer that is to stay float is none of the model's.
        BuildError: the quantizer failed.
    """
    kept = kept_float(model, calibration, asked)
    name = inputs_of(model)[0].name
    batches = [batch.numpy() for batch in calibration]
    prepared, streams = equalise(model) if asked.equalise else (model, 0)
    prepared = _named(prepared)
    with temporary_folder() as folder, _quiet():
        path = folder / "int8.onnx"
        try:
            _run_quantizer(copy_of(prepared), path, name, batches, asked, symmetric, int32_bias, kept)
            quantized = onnx.load(path)
            read_unrounded(quantized, kept)
            onnx.checker.check_model(quantized, full_check=True)
        except Exception as error:  # the quantizer raises anything
            raise BuildError(f"onnxruntime's quantizer failed: {type(error).__name__}: {first_line(error)}") from error
    onnx.helper.set_model_props(quantized, {entry.key: entry.value for entry in model.metadata_props})
    return Quantized(
        model=quantized,
        layers=tuple(layer_errors(prepared, quantized, {name: batches[0]})),
        equalised=streams,
        kept=kept,
    )


def kept_float(model: onnx.ModelProto, calibration: Sequence[Tensor], asked: Quantization) -> tuple[str, ...]:
    """Names of the layers that stay float: those asked for by name, or that are furthest off if all are int8.

    Raises:
        SourceError: a name that no layer has, or as many layers as there are.
        BuildError: the quantizer failed.
    """
    if not asked.keep_float:
        return ()
    layers: tuple[LayerError, ...] = ()
    if isinstance(asked.keep_float, int):
        whole = replace(asked, keep_float=0)
        layers = quantize_onnx(model, calibration, whole, symmetric=True, int32_bias=True).layers
    return chosen(asked.keep_float, _named(model), layers)


def _run_quantizer(
    model: onnx.ModelProto,
    path: Path,
    name: str,
    batches: Sequence[Batch],
    asked: Quantization,
    symmetric: bool,
    int32_bias: bool,
    kept: Sequence[str],
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        """Hands out the batches, as the quantizer asks for them."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Batch] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch}

    quantize_static(
        model,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(LAYERS),
        nodes_to_exclude=list(kept),
        per_channel=asked.per_channel,
        reduce_range=asked.reduce_range,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": int32_bias},
    )


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every node with a name, which the quantizer tells them by, and the mark that keeps it from asking for more."""
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    named = copy_of(onnx.shape_inference.infer_shapes(model))
    for index, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    add_pre_process_metadata(named)
    return named


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's notes off the user's terminal."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
