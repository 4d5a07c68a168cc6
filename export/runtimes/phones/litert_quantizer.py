"""Files of LiteRT in less precision than float32, by ai-edge-quantizer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from repconv.errors import BuildError, RepconvError, first_line

from ...artefacts.runtime import needed
from ...onnx.quiet import heard, quiet
from ...settings import Quantization
from ...targets import Target

_KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "CONV_2D_TRANSPOSE")
"""Operations that may hold a layer's weight, as the quantiser calls them."""


def in_half(target: Target, content: bytes) -> bytes:
    """The file with weights in float16; on processors LiteRT computes with them in float32.

    Raises:
        BackendError: ai-edge-quantizer is not installed.
        BuildError: it cannot quantise the file.
    """
    ours = _modules(target, "quantizer", "qtyping")
    types = ours.qtyping
    way = types.OpQuantizationConfig(
        weight_tensor_config=types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT),
        compute_precision=types.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    with _failing_in_words():
        made = ours.quantizer.Quantizer(bytearray(content))
        casting = ours.quantizer.AlgorithmName.FLOAT_CASTING
        made.update_quantization_recipe(".*", types.TFLOperationName.ALL_SUPPORTED, way, casting)
        return bytes(made.quantize().quantized_model)


def in_int8(
    target: Target,
    content: bytes,
    calibration: Sequence[Tensor],
    asked: Quantization,
    kept: Sequence[Tensor],
    *,
    channels_last: bool,
) -> bytes:
    """The file with weights and activations in int8, its inputs and outputs in float32.

    Weights are symmetric; activations reach from the least to the largest value over all batches (left alone, the
    quantiser takes a moving average, which depends on the order of images and forgets the first).

    Args:
        target: the row.
        content: float32, of the batches' size.
        calibration: batches [n, c, ...].
        asked: scales of weights.
        kept: weights of the layers that stay float.
        channels_last: whether the file takes [n, ..., c].

    Raises:
        BackendError: ai-edge-quantizer is not installed.
        BuildError: it cannot quantise the file, or a layer of `kept` is not in it.
    """
    ours = _modules(target, "quantizer", "qtyping", "calibrator", "recipe_manager", "utils.qsv_utils")
    types, algorithms = ours.qtyping, ours.quantizer.AlgorithmName
    scales = types.QuantGranularity.CHANNELWISE if asked.per_channel else types.QuantGranularity.TENSORWISE
    given = [(x.movedim(1, -1) if channels_last else x).contiguous().numpy() for x in calibration]
    with _failing_in_words():
        everything = types.TFLOperationName.ALL_SUPPORTED
        manager = ours.recipe_manager.RecipeManager()
        manager.add_static_config(".*", everything, 8, 8, scales, algorithms.MIN_MAX_UNIFORM_QUANT)
        for end in (types.TFLOperationName.INPUT, types.TFLOperationName.OUTPUT):
            manager.add_quantization_config(".*", end, None, algorithms.NO_QUANTIZE)
        for scope in _scopes(content, kept):
            manager.add_quantization_config(f"^{re.escape(scope)}$", everything, None, algorithms.NO_QUANTIZE)
        observed = ours.calibrator.Calibrator(
            bytearray(content), num_threads=1, qsv_update_func=ours.qsv_utils.min_max_update
        )
        (signature,) = observed.get_signature_list()
        observed.calibrate({signature: [{"args_0": batch} for batch in given]}, manager)
        made = ours.quantizer.Quantizer(bytearray(content), manager.get_quantization_recipe())
        return bytes(made.quantize(observed.get_model_qsvs()).quantized_model)


def _scopes(content: bytes, kept: Sequence[Tensor]) -> Iterator[str]:
    """What the quantiser calls the operations of these weights: they are told by their numbers, in any order of axes.

    Raises:
        BuildError: there is none of one of them.
    """
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as files

    model = files.read_model(bytearray(content))
    (graph,) = model.subgraphs
    named: dict[bytes, str] = {}
    for index, operation in enumerate(graph.operators if kept else ()):
        if files.get_op_name_by_index(model, 0, index) in _KINDS:
            for held in (graph.tensors[i] for i in operation.inputs if i >= 0):
                numbers = files.get_tensor_data(held, model.buffers)
                if numbers is not None and len(held.shape) > 1:
                    named[_numbers(numbers)] = files.get_op_scope(operation, graph.tensors)
    for weight in kept:
        scope = named.get(_numbers(weight.detach().numpy()))
        if scope is None:
            shape = "x".join(map(str, weight.shape))
            raise BuildError(f"a layer that is to stay float, of a weight {shape}, is none of the file's operations")
        yield scope


def _numbers(weight: Any) -> bytes:  # noqa: ANN401  # an array, of a library without types
    return np.sort(np.ravel(weight)).tobytes()


def _modules(target: Target, *names: str) -> SimpleNamespace:
    package = target.packages[2]
    found = {name.rpartition(".")[2]: needed(target, f"ai_edge_quantizer.{name}", package) for name in names}
    return SimpleNamespace(**found)


@contextlib.contextmanager
def _failing_in_words() -> Iterator[None]:
    try:
        with quiet(), heard([]):
            yield
    except RepconvError:
        raise
    except Exception as error:  # it raises anything
        raise BuildError(f"ai-edge-quantizer cannot quantise the file: {first_line(error)}") from error
