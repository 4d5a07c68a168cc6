"""int8 ONNX models as Q/DQ nodes, by onnxruntime's quantizer, calibrated on images."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from repconv.errors import BuildError
from repconv.graph.onnx_facts import first_line
from repconv.onnx_files import model_session

from .equalise import equalise
from .settings import Quantization

Batch = NDArray[np.generic]

LAYERS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip", "Concat")
"""Operations that are quantised: those that runtimes have int8 kernels for. Normalisations and softmax stay float."""


@dataclass(frozen=True)
class LayerError:
    """A layer's output in the int8 model beside the float one's, on the same images: rms error over rms."""

    name: str
    kind: str
    tensor: str
    error: float


@dataclass(frozen=True)
class Quantized:
    """An int8 model, the layers' errors, worst first, and how many streams were equalised."""

    model: onnx.ModelProto
    layers: tuple[LayerError, ...]
    equalised: int

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {"equalised_streams": self.equalised, "layers": [asdict(layer) for layer in self.layers]}


def quantize_onnx(
    model: onnx.ModelProto, calibration: Sequence[Tensor], asked: Quantization, *, symmetric: bool, int32_bias: bool
) -> Quantized:
    """`model` in int8 with Q/DQ nodes; activations by their least and largest value over the calibration batches.

    Args:
        model: float32, of one input.
        calibration: batches as the model takes them.
        asked: scales and equalisation.
        symmetric: activations as int8 around zero, which TensorRT needs, instead of uint8 with a zero point, which
            gives what follows a ReLU twice the resolution.
        int32_bias: quantise biases, which onnxruntime's kernels need and TensorRT refuses.

    Raises:
        BuildError: the quantizer failed.
    """
    name = _input_of(model)
    batches = [batch.numpy() for batch in calibration]
    prepared, streams = equalise(model) if asked.equalise else (model, 0)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        try:
            _run_quantizer(_named(prepared), path, name, batches, asked.per_channel, symmetric, int32_bias)
            quantized = onnx.load(path)
            onnx.checker.check_model(quantized, full_check=True)
        except Exception as error:  # the quantizer raises anything
            raise BuildError(f"onnxruntime's quantizer failed: {type(error).__name__}: {first_line(error)}") from error
    onnx.helper.set_model_props(quantized, {entry.key: entry.value for entry in model.metadata_props})
    return Quantized(quantized, tuple(layer_errors(prepared, quantized, {name: batches[0]})), streams)


def _run_quantizer(
    model: onnx.ModelProto, path: Path, name: str, batches: Sequence[Batch], per_channel: bool, symmetric: bool,
    int32_bias: bool,
) -> None:  # fmt: skip
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        """Hands out the batches, as the quantizer asks for them."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Batch] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch}

    quantize_static(
        model, path, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(LAYERS),
        per_channel=per_channel, activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": int32_bias},
    )  # fmt: skip


def layer_errors(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Batch], count: int | None = None
) -> list[LayerError]:
    """What convolutions and linear layers give in the int8 model against the float one, furthest off first.

    Tensors keep their names when nodes are put around them, so the same name is the same tensor.
    """
    made_after = {name for node in after.graph.node for name in node.output}
    layers = [n for n in before.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.output[0] in made_after]
    names = [node.output[0] for node in layers]
    found = [_tensors(m, names, feeds) for m in (before, after)]
    errors = []
    for node, a, b in zip(layers, *found, strict=True):
        size = float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))
        off = float(np.sqrt(np.mean(np.square(a.astype(np.float64) - b))))
        errors.append(
            LayerError(node.name or node.output[0], node.op_type, node.output[0], off / size if size else 0.0)
        )
    return sorted(errors, key=lambda layer: -layer.error)[:count]


def _tensors(model: onnx.ModelProto, names: Sequence[str], feeds: dict[str, Batch]) -> list[Batch]:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    kept = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in kept)
    return list(model_session(shown, "the model").run(list(names), feeds))


def _input_of(model: onnx.ModelProto) -> str:
    weights = {tensor.name for tensor in model.graph.initializer}
    found: str = next(value.name for value in model.graph.input if value.name not in weights)
    return found


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every node with a name, which the quantizer tells them by, and the mark that keeps it from asking for more."""
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    named = onnx.ModelProto()
    named.CopyFrom(onnx.shape_inference.infer_shapes(model))
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
