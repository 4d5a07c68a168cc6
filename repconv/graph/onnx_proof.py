"""Proof that a fused ONNX model is the one it was made of: region by region and end to end, run by onnxruntime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from ..agreement import Agreement, Comparison, compare_tensors
from ..errors import FusionError, SourceError
from ..onnx_files import model_session, session_of
from ..refusal import Refusal
from ..report import FusionReport, Proof
from .onnx_double import Array, evaluate, region, rewritten_tensors
from .sizes import NOMINAL

Feeds = Mapping[str, Array]


class NotRunError(SourceError):
    """onnxruntime cannot run the original, so there is nothing to compare with."""


@contextlib.contextmanager
def _original() -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        raise NotRunError(str(error)) from error.__cause__


def prove_onnx(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Sequence[Feeds], label: Callable[[str], str] = str
) -> Proof:
    """How far `after`, made of `before` by `fuse_onnx`, is from it on `feeds`, each a run's inputs by name.

    Every tensor that fusing writes anew is compared with what the nodes it stands for give in float64 of the tensors
    it really reads, on the last of `feeds`. End to end the reference is the original model in float64, and its own
    error in onnxruntime stands beside. Where the reference evaluator cannot run a model in float64, the original in
    onnxruntime is the reference.

    Args:
        before: the original.
        after: the fused model.
        feeds: inputs by name, one mapping a run.
        label: what the report calls a tensor.

    Raises:
        NotRunError: onnxruntime cannot load or run the original.
        SourceError: it cannot load or run the fused model, or a region.
    """
    outputs = [value.name for value in before.graph.output]
    with _original():
        session = model_session(before, "the ONNX model")
    session_after = model_session(after, "the fused ONNX model")
    unmeasured: list[Refusal] = []
    end_to_end: list[Comparison] = []
    for given in feeds:
        where = "onnxruntime, " + " and ".join("x".join(map(str, value.shape)) for value in given.values())
        with _original():
            own = _run(session, outputs, given)
        got = _run(session_after, outputs, given)
        exact: Sequence[Tensor | None] = [_tensor(v) for v in own]
        reference_dtype: torch.dtype | None = None
        try:
            exact = [_tensor(value) for value in evaluate(before, given, outputs)]
            reference_dtype = torch.float64
        except FusionError as error:
            unmeasured.append(Refusal(where, f"{error}; compared with the original in onnxruntime instead"))
        for name, wanted, was, now in zip(outputs, exact, own, got, strict=True):
            before_fusing = _tensor(was) if reference_dtype is not None else None
            found = compare_tensors(wanted, _tensor(now), before_fusing, None, reference_dtype)
            path = name if len(outputs) > 1 else ""
            end_to_end.append(replace(found, where=where, path=path, shape=now.shape))
    regions, more = region_comparisons(before, after, feeds[-1], label)
    return Proof(Agreement(tuple(regions), tuple(end_to_end)), (*unmeasured, *more))


def random_feeds(model: onnx.ModelProto) -> tuple[list[Feeds], tuple[Refusal, ...]]:
    """Two random draws of a model's inputs, or none and the reason; an open batch is 2, other open sides `NOMINAL`."""
    weights = {tensor.name for tensor in model.graph.initializer}
    generator = np.random.default_rng(0)
    feeds: list[Feeds] = []
    for _ in range(2):
        given: dict[str, Array] = {}
        for value in model.graph.input:
            if value.name in weights:
                continue
            tensor = value.type.tensor_type
            if not tensor.HasField("shape"):
                return [], (Refusal(value.name, "its rank is not declared; pass feeds=[{name: array}]"),)
            dims = enumerate(tensor.shape.dim)
            shape = [d.dim_value if d.HasField("dim_value") else NOMINAL if axis else 2 for axis, d in dims]
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            is_float = kind.kind == "f" or kind.name == "bfloat16"
            drawn = generator.standard_normal(shape) if is_float else generator.integers(0, 2, shape)
            given[value.name] = drawn.astype(kind)
        feeds.append(given)
    return feeds, ()


def labels_of(model: onnx.ModelProto, report: FusionReport) -> Callable[[str], str]:
    """What the report calls the convolution that makes a tensor."""
    named = {layer.name for layer in report.layers}
    made = {
        node.output[0].split(".part")[0]: node.name
        for node in reversed(model.graph.node)
        if node.name in named and node.output
    }
    return lambda name: made.get(name, name)


def region_comparisons(
    before: onnx.ModelProto, after: onnx.ModelProto, given: Feeds, label: Callable[[str], str]
) -> tuple[list[Comparison], list[Refusal]]:
    """Each tensor that `after` writes anew, on what it really reads, and those that could not be compared.

    Arguments as in `prove_onnx`, `given` one run's inputs.

    Raises:
        SourceError: onnxruntime cannot load or run `after`.
    """
    wanted = rewritten_tensors(before, after)
    known = {name for node in after.graph.node for name in node.output if name}
    parts = {name: region(before, name, known) for name in wanted}
    shown = list(dict.fromkeys(name for output, (_, read) in parts.items() for name in (output, *read)))
    seen = dict(given) | _exposed(after, [name for name in shown if name not in given], given)
    found, unmeasured = [], []
    for output, (model, read) in parts.items():
        feeds = {name: seen[name] for name in read}
        try:
            exact = evaluate(model, feeds, [output])[0]
            own = _own(model, output, feeds, before)
        except (FusionError, SourceError) as error:
            unmeasured.append(Refusal(label(output), str(error)))
            continue
        compared = compare_tensors(_tensor(exact), _tensor(seen[output]), None if own is None else _tensor(own))
        found.append(replace(compared, where=label(output), shape=tuple(exact.shape)))
    return found, unmeasured


def _own(model: onnx.ModelProto, output: str, feeds: Feeds, whole: onnx.ModelProto) -> Array | None:
    """What the unfused nodes give of the same tensors in onnxruntime."""
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    for value in typed.graph.input:
        array = feeds[value.name]
        value.CopyFrom(
            onnx.helper.make_tensor_value_info(
                value.name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
        )
    del typed.graph.output[:]
    inferred = onnx.shape_inference.infer_shapes(typed, data_prop=True)
    made = {value.name: value for value in (*inferred.graph.value_info, *whole.graph.value_info, *whole.graph.output)}
    typed.graph.output.append(made.get(output) or onnx.ValueInfoProto(name=output))
    return _run(session_of(typed.SerializeToString(), "a region"), [output], feeds)[0]


def _exposed(model: onnx.ModelProto, names: Sequence[str], given: Feeds) -> dict[str, Array]:
    """Intermediate tensors of a run."""
    if not names:
        return {}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    kept = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in kept)
    return dict(zip(names, _run(model_session(shown, "the fused model"), names, given), strict=True))


def _run(session: Any, names: Sequence[str], feeds: Feeds) -> list[Array]:  # noqa: ANN401  # onnxruntime has no types
    try:
        found = session.run(list(names), dict(feeds))
    except Exception as error:  # onnxruntime raises a type a failure
        first = next(iter(str(error).splitlines()), "")
        raise SourceError(f"onnxruntime cannot run the ONNX model: {first}") from error
    for name, value in zip(names, found, strict=True):
        if not isinstance(value, np.ndarray):
            raise SourceError(f"the output {name} is a {type(value).__name__}; only tensors are compared")
    return list(found)


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.array(value))  # a copy: torch warns of arrays it may not write
