"""ONNX files and models in memory: read, written and run, whatever their size."""

from __future__ import annotations

import contextlib
import ctypes
from math import prod
from pathlib import Path
from typing import Any

import onnx

from ..errors import SourceError
from .edited import copy_of
from .held import temporary_folder

_NO_WEIGHTS = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
_LARGEST_MESSAGE = 2**31 - 2**24
"""Bytes of weights that fit one message, with room for the rest of it."""

LARGE = 2**22
"""Bytes of weights whose memory is worth handing back."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in an `.onnx` file, with weights it keeps in other files.

    Raises:
        SourceError: not a readable, valid ONNX model.
    """
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SourceError(f"{path}: not a readable ONNX model ({first})") from error
    return proto


def session_of(model: Path | bytes, text: str, *, as_written: bool = False, exact_integers: bool = False) -> Any:  # noqa: ANN401  # onnxruntime has no types
    """An onnxruntime session on the CPU for a file or its bytes, called `text` in errors.

    With `as_written` the operations are those of the file: else onnxruntime makes a convolution between
    DequantizeLinear and QuantizeLinear one of integers, and rounds its float weights to 8 bits for it.
    With `exact_integers` products of 8 bits are summed without saturating: on x86 without VNNI onnxruntime's usual
    kernels add two of them in 16 bits, and what does not fit is cut off.

    Raises:
        SourceError: onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if exact_integers:
        options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(model) if isinstance(model, Path) else model
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a type a failure
        first = next(iter(str(error).splitlines()), "")
        raise SourceError(f"{text}: onnxruntime {onnxruntime.__version__} cannot load it: {first}") from error
    if (model.stat().st_size if isinstance(model, Path) else len(model)) > LARGE:
        return_freed()
    return session


def return_freed() -> None:
    """Have glibc hand freed memory back to the system.

    Loading and optimising, onnxruntime held three times the weights of a RepVGG of 29 million parameters for a moment;
    all of it freed, and none returned.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def model_session(model: onnx.ModelProto, text: str, *, as_written: bool = False, exact_integers: bool = False) -> Any:  # noqa: ANN401  # onnxruntime has no types
    """An onnxruntime session for a model in memory, of any size; arguments and errors as `session_of`."""
    if not is_large(model):
        return session_of(model.SerializeToString(), text, as_written=as_written, exact_integers=exact_integers)
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        save_large(model, path)
        return session_of(path, text, as_written=as_written, exact_integers=exact_integers)


def statistics_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """The inputs of a batch normalisation that are statistics: nobody trains those, and PyTorch does not count them."""
    return tuple(node.input[3:5]) if node.op_type == "BatchNormalization" else ()


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in initialisers that PyTorch calls parameters: no running statistics, no shapes and indices."""
    statistics = {name for node in model.graph.node for name in statistics_of(node)}
    return sum(
        prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name not in statistics and tensor.data_type not in _NO_WEIGHTS
    )


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a model is too large for one protobuf message, so that its weights need a file of their own."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGEST_MESSAGE


def save_large(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to `path` and its weights to `path` with `.data` behind it."""
    copied = copy_of(model)  # saving so moves the weights out of the message
    onnx.save(copied, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
