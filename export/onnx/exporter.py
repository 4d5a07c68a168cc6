"""A network as one ONNX file, and an ONNX file as a function."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from repconv.blocks.probing import require_called
from repconv.errors import BuildError, SourceError
from repconv.files.onnx import session_of
from repconv.graph.onnx.proof.float64 import evaluate
from repconv.proof.agreement import Agreement, Comparison
from repconv.proof.comparing import comparisons
from repconv.proof.float64 import float64_reference
from repconv.proof.leaves import Function
from repconv.proof.pooling import compare_calls
from repconv.sources.checkpoint import Normalization

from ..settings import DEFAULT_OPSET
from .quiet import quiet

OPSETS = range(13, 27)
_NOT_EXPORTED = (19,)
"""Opsets the exporter skips; they are converted up from the one before."""


def to_onnx(
    model: nn.Module,
    example: Tensor,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = False,
    dynamic_image: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """`model` as a checked, simplified ONNX model with input `input` and output `output`.

    Args:
        model: a network of one input and one output, in evaluation mode.
        example: an input [n, c, h, w]; it fixes the shapes.
        opset: of the result, exactly.
        dynamic_batch: leave n open.
        dynamic_image: leave h and w open.
        metadata: written into the file's `metadata_props`.

    Raises:
        BuildError: an opset out of `OPSETS`, or the exporter, simplifier or checker failed.
        SourceError: the network itself cannot be called with `example`.
    """
    found = exported(model, example, opset=opset, dynamic_batch=dynamic_batch, dynamic_image=dynamic_image)
    return finished(found, metadata)


def exported(
    model: nn.Module,
    example: Tensor,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = False,
    dynamic_image: bool = False,
    optimise: bool = True,
) -> onnx.ModelProto:
    """`model` as its exporter writes it; arguments and errors as `to_onnx`.

    With `optimise=False` batch normalisation stays as it is, for the graph core to fold in float64, and nodes are
    named after the modules they come from.
    """
    if opset not in OPSETS:
        raise BuildError(f"ONNX opset {opset} is not supported; choose {OPSETS.start} to {OPSETS.stop - 1}")
    open_axes: tuple[tuple[int, str], ...] = ((0, "batch"),) if dynamic_batch else ()
    open_axes += ((2, "height"), (3, "width")) if dynamic_image else ()
    given = _exemplary(example, [axis for axis, _ in open_axes])
    try:
        with _failing_in_words(opset):
            found = _export(model, given, opset, dict(open_axes), optimise)
            if not optimise:
                _name_after_modules(found)
    except BuildError:
        require_called(model, [given])
        raise
    written = {entry.domain: entry.version for entry in found.opset_import}
    if written.get("") != opset:
        raise BuildError(f"asked for ONNX opset {opset}, the exporter wrote {written.get('')}")
    sizes = found.graph.input[0].type.tensor_type.shape.dim
    closed = [name for axis, name in open_axes if sizes[axis].HasField("dim_value")]
    if closed:
        raise BuildError(
            f"the {' and '.join(closed)} cannot stay open: the network's code depends on its size; give one size"
        )
    return found


def _exemplary(example: Tensor, open_axes: Sequence[int]) -> Tensor:
    """`example` with open axes of size 1 doubled: torch.export before 2.10 takes a 1 for a size that stays 1."""
    copies = [2 if axis in open_axes and size == 1 else 1 for axis, size in enumerate(example.shape)]
    return example.repeat(copies) if max(copies) > 1 else example


def finished(model: onnx.ModelProto, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """An exported model simplified and checked, without the exporter's notes.

    Raises:
        BuildError: the simplifier or checker failed.
    """
    with _failing_in_words(max(entry.version for entry in model.opset_import if not entry.domain)):
        simplified = _simplify(model)
        onnx.checker.check_model(simplified, full_check=True)
    del simplified.metadata_props[:]
    onnx.helper.set_model_props(simplified, dict(metadata or {}))
    return simplified


def described(sha256: str | None, class_names: Sequence[str], normalization: Normalization | None) -> dict[str, str]:
    """What a source knows besides its weights, as metadata of an ONNX file."""
    metadata = {"repconv.source_sha256": sha256 or ""}
    if class_names:
        metadata["class_names"] = json.dumps(class_names)
    if normalization is not None:
        metadata["normalization"] = json.dumps(vars(normalization))
    return metadata


@contextlib.contextmanager
def _failing_in_words(opset: int) -> Iterator[None]:
    try:
        with quiet():
            yield
    except Exception as error:  # exporters raise anything
        why: BaseException = error
        while why.__cause__ is not None:  # the exporter's own message begins with which of its steps failed
            why = why.__cause__
        first = next(iter(str(why).splitlines()), "")
        raise BuildError(f"ONNX export at opset {opset} failed: {type(why).__name__}: {first}") from error


def _name_after_modules(model: onnx.ModelProto) -> None:
    """Call nodes `module.path/Operation` where the exporter noted the path beside a name of its own."""
    taken: set[str] = set()
    for node in model.graph.node:
        scopes = {prop.key: prop.value for prop in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        path = [part for part in re.findall(r"'([^']*)'", scopes) if part]
        wanted = f"{path[-2]}/{node.op_type}" if len(path) > 1 else node.name or node.op_type
        name, count = wanted, 1
        while name in taken:
            name, count = f"{wanted}_{count}", count + 1
        taken.add(name)
        node.name = name


def _export(
    model: nn.Module, example: Tensor, opset: int, open_axes: Mapping[int, str], optimise: bool
) -> onnx.ModelProto:
    """With the current exporter from opset 18 on, with the older one before that."""
    if opset < 18:
        buffer = io.BytesIO()
        mode = torch.onnx.TrainingMode.EVAL if optimise else torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(  # takes file objects, though its annotation names paths only
            model,
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            training=mode,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": dict(open_axes), "output": {0: "batch"} if 0 in open_axes else {}}
            if open_axes
            else None,
        )
        return onnx.load_from_string(buffer.getvalue())
    if opset in _NOT_EXPORTED:
        return onnx.version_converter.convert_version(_export(model, example, opset - 1, open_axes, optimise), opset)
    # A batch of one would be taken for a constant.
    if 0 in open_axes and example.shape[0] == 1:
        example = example.expand(2, *example.shape[1:])
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=opset,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({axis: _open(name) for axis, name in open_axes.items()},) if open_axes else None,
        verbose=False,
        optimize=optimise,
    )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _open(name: str) -> object:
    """An open size: of the batch any, of an image whatever the network's strides and pooling allow."""
    return torch.export.Dim(name) if name == "batch" else torch.export.Dim.AUTO


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


def verify_onnx(content: bytes, model: nn.Module, inputs: Sequence[Tensor]) -> Agreement:
    """How far a serialised ONNX model, run by onnxruntime, is from `model`, the unfused network, on `inputs`."""
    run, reference = onnx_function(content), float64_reference(model)

    def stored(x: Tensor) -> Tensor | tuple[Tensor, ...]:
        written = onnx.load_from_string(content)
        feeds = {written.graph.input[0].name: x.contiguous().numpy()}
        outputs = evaluate(written, feeds, [value.name for value in written.graph.output])
        found = tuple(torch.from_numpy(np.array(value)) for value in outputs)
        return found[0] if len(found) == 1 else found

    def compare(x: Tensor) -> Sequence[Comparison]:
        where = f"onnxruntime, {'x'.join(map(str, x.shape))}"
        return comparisons(reference, run, x, original=model, where=where, stored=stored)

    return Agreement(end_to_end=compare_calls(compare, inputs))


def onnx_function(model: bytes, *, exact_integers: bool = False) -> Function:
    """A serialised ONNX model of one input as a function, run by onnxruntime on the CPU; several outputs are a tuple.

    With `exact_integers` no sum of int8 products saturates, whatever the processor (`repconv.files.onnx.session_of`).

    Raises:
        BuildError: onnxruntime cannot load it.
    """
    try:
        session = session_of(model, "the model", exact_integers=exact_integers)
    except SourceError as error:
        raise BuildError(str(error)) from error
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = tuple(torch.from_numpy(value) for value in session.run(None, {name: x.contiguous().numpy()}))
        return found[0] if len(found) == 1 else found

    return run
