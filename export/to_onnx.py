"""A network as one ONNX file, and an ONNX file as a function."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from repconv.agreement import Agreement, comparisons
from repconv.errors import BuildError
from repconv.leaves import Function

OPSETS = range(13, 27)
DEFAULT_OPSET = 18
_NOT_EXPORTED = (19,)
"""Opsets the exporter skips; they are converted up from the one before."""


def to_onnx(
    model: nn.Module,
    example: Tensor,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """`model` as a checked, simplified ONNX model with input `input` and output `output`.

    Args:
        model: a network of one input and one output, in evaluation mode.
        example: an input [n, c, h, w]; it fixes the shapes.
        opset: of the result, exactly.
        dynamic_batch: leave n open.
        metadata: written into the file's `metadata_props`.

    Raises:
        BuildError: an opset out of `OPSETS`, or the exporter, simplifier or checker failed.
    """
    if opset not in OPSETS:
        raise BuildError(f"ONNX opset {opset} is not supported; choose {OPSETS.start} to {OPSETS.stop - 1}")
    try:
        with _quiet():
            exported = _export(model, example, opset, dynamic_batch)
            simplified = _simplify(exported)
            onnx.checker.check_model(simplified, full_check=True)
    except Exception as error:  # exporters raise anything
        first = next(iter(str(error).splitlines()), "")
        raise BuildError(f"ONNX export at opset {opset} failed: {type(error).__name__}: {first}") from error
    written = {entry.domain: entry.version for entry in simplified.opset_import}
    if written.get("") != opset:
        raise BuildError(f"asked for ONNX opset {opset}, the exporter wrote {written.get('')}")
    del simplified.metadata_props[:]
    onnx.helper.set_model_props(simplified, dict(metadata or {}))
    return simplified


def _export(model: nn.Module, example: Tensor, opset: int, dynamic_batch: bool) -> onnx.ModelProto:
    """With the current exporter from opset 18 on, with the older one before that."""
    if opset < 18:
        buffer = io.BytesIO()
        torch.onnx.export(  # takes file objects, though its annotation names paths only
            model, (example,), buffer,  # type: ignore[arg-type]
            dynamo=False, opset_version=opset, input_names=["input"],
            output_names=["output"], dynamic_axes={"input": [0], "output": [0]} if dynamic_batch else None,
        )  # fmt: skip
        return onnx.load_from_string(buffer.getvalue())
    if opset in _NOT_EXPORTED:
        return onnx.version_converter.convert_version(_export(model, example, opset - 1, dynamic_batch), opset)
    # A batch of one would be taken for a constant.
    if dynamic_batch and example.shape[0] == 1:
        example = example.expand(2, *example.shape[1:])
    program = torch.onnx.export(
        model, (example,), dynamo=True, opset_version=opset, input_names=["input"], output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None, verbose=False,
    )  # fmt: skip
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold what onnxsim folds, and drop per-node notes of the exporter, which name files of this machine."""
    import onnxsim

    simplified, same = onnxsim.simplify(model)
    if not same:
        raise RuntimeError("onnxsim's own check failed")
    for node in simplified.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*simplified.graph.value_info, *simplified.graph.input, *simplified.graph.output):
        del value.metadata_props[:]
    del simplified.graph.metadata_props[:]
    result: onnx.ModelProto = simplified
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters' progress, deprecations and C-level notes off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def verify_onnx(content: bytes, model: nn.Module, inputs: Sequence[Tensor]) -> Agreement:
    """How far a serialised ONNX model, run by onnxruntime, is from `model`, the unfused network, on `inputs`."""
    run = onnx_function(content)
    reference = copy.deepcopy(model).double()
    return Agreement(end_to_end=tuple(
        c for x in inputs for c in
        comparisons(reference, run, x, original=model, where=f"onnxruntime, {'x'.join(map(str, x.shape))}")
    ))  # fmt: skip


def onnx_function(model: bytes) -> Function:
    """A serialised ONNX model of one input and one output as a function, run by onnxruntime on the CPU.

    Raises:
        BuildError: onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a type a failure
        first = next(iter(str(error).splitlines()), "")
        raise BuildError(f"onnxruntime {onnxruntime.__version__} cannot load the model: {first}") from error
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])

    return run
