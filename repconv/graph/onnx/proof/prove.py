"""Proof that a fused ONNX model is the one it was made of: region by region and end to end, run by onnxruntime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....errors import FusionError, SourceError
from ....files.edited import showing
from ....files.onnx import longest_run, model_session, run_session
from ....limits import require_drawable
from ....proof.agreement import Agreement, Comparison
from ....proof.comparing import compare_tensors, explained, needs_explaining
from ....proof.pooling import compare_calls
from ....proof.report import FusionReport, Proof, Refusal
from ...core.dims import NOMINAL
from ..commuting import POINTWISE, commuted, seen_from
from ..facts import Facts
from ..reader import read_steps
from ..writer import Names, taken
from .decisions import decisions, judged, replayed
from .float64 import Array
from .regions import prove_regions, sizes_on

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
    onnxruntime is the reference. Decisions, such as a QuantizeLinear's, are replayed (`onnx_decisions`).

    Args:
        before: the original.
        after: the fused model.
        feeds: inputs by name, one mapping a run.
        label: what the report calls a tensor.

    Raises:
        NotRunError: onnxruntime cannot load or run the original.
        SourceError: it cannot load or run the fused model, or a region.
    """
    pair = ModelPair(before, after)
    regions, more = region_comparisons(before, after, feeds[-1], label)
    pair.trusted = not more and all(region.passed for region in regions)
    end_to_end = compare_calls(pair.compare, feeds, proven=pair.trusted)
    return Proof(Agreement(tuple(regions), end_to_end, partial=bool(more)), (*pair.unmeasured, *more))


class ModelPair:
    """Two models of the same inputs and outputs by name, run by onnxruntime as they are written, call by call.

    decided: the decisions they share, which are replayed.
    trusted: whether all that differs between them is proven, so that rounding the stored numbers is an excuse.
    unmeasured: what could not be compared with float64, so far.
    """

    def __init__(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        self._before, self._after = before, after
        self._longest_s = longest_run(before)
        self.trusted = False
        self.unmeasured: list[Refusal] = []
        self.decided = decisions(before, after)
        self._outputs = [value.name for value in before.graph.output]
        decided = (name for d in self.decided for name in (*d.by, *d.outputs))
        self._shown = list(dict.fromkeys([*self._outputs, *decided]))

    @cached_property
    def _session(self) -> Any:  # noqa: ANN401  # onnxruntime has no types
        with _original():
            return model_session(self._showing(self._before), "the ONNX model", as_written=True)

    @cached_property
    def _session_after(self) -> Any:  # noqa: ANN401  # onnxruntime has no types
        return model_session(self._showing(self._after), "the fused ONNX model", as_written=True)

    def _showing(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """What is decided is seen in both runs, so that it can be replayed."""
        return showing(model, self._shown) if self.decided else model

    def compare(self, given: Feeds) -> list[Comparison]:
        """Every output, and what decisions were made of, of one call.

        Raises:
            NotRunError, SourceError: onnxruntime cannot load or run the original, or the other.
        """
        shown, decided = self._shown, self.decided
        end_to_end: list[Comparison] = []
        where = "onnxruntime, " + " and ".join("x".join(map(str, value.shape)) for value in given.values())
        with _original():
            own = dict(zip(shown, _run(self._session, shown, given, self._longest_s), strict=True))
        got = dict(zip(shown, _run(self._session_after, shown, given, self._longest_s), strict=True))
        own, got = {**given, **own}, {**given, **got}
        exact: dict[str, Array] = own
        was: dict[str, Array] | None = None
        reference_dtype: torch.dtype | None = None
        try:
            exact = {**given, **replayed(self._before, given, decided, got, shown)}
            was = own if not decided else _with_error_of(own, replayed(self._before, given, decided, own, shown), exact)
            reference_dtype = torch.float64
            end_to_end += judged(self._before, decided, exact, got, was, where)
        except FusionError as error:
            self.unmeasured.append(Refusal(where, f"{error}; compared with the original in onnxruntime instead"))
        rounded: Mapping[str, Array] = {}
        for name in self._outputs:
            before_fusing = None if was is None else _tensor(was[name])
            found = compare_tensors(_tensor(exact[name]), _tensor(got[name]), before_fusing, None, reference_dtype)
            if self.trusted and needs_explaining(found):
                rounded = rounded or replayed(self._after, given, decided, got, shown)
                found = explained(found, _tensor(exact[name]), _tensor(rounded[name]))
            path = name if len(self._outputs) > 1 else ""
            end_to_end.append(replace(found, where=where, path=path, shape=got[name].shape))
        return end_to_end


def _with_error_of(own: Feeds, wanted: Feeds, exact: Feeds) -> dict[str, Array]:
    """`exact` with the error that the original's run makes of what is right for its own decisions."""
    return {
        name: _double(right) + _double(own[name]) - _double(wanted[name])
        if right.dtype.kind == "f" and name in wanted
        else right
        for name, right in exact.items()
    }


def _double(value: Array) -> NDArray[np.float64]:
    return value.astype(np.float64)


def random_feeds(model: onnx.ModelProto) -> tuple[list[Feeds], tuple[Refusal, ...]]:
    """Two random draws of a model's inputs, or none and the reason.

    An open batch is 2; other open sides are `NOMINAL`, or half that where an input has more than two.
    """
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
            known = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            side = NOMINAL if known[1:].count(None) <= 2 else NOMINAL // 2
            shape = [(side if axis else 2) if n is None else n for axis, n in enumerate(known)]
            try:
                require_drawable(shape, f"the input {value.name}")
            except SourceError as error:
                return [], (Refusal(value.name, str(error)),)
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            is_float = kind.kind == "f" or kind.name == "bfloat16"
            drawn = generator.standard_normal(shape) if is_float else generator.integers(0, 2, shape)
            given[value.name] = drawn.astype(kind)
        feeds.append(given)
    return feeds, ()


def labels_of(report: FusionReport) -> Callable[[str], str]:
    """What the report calls the first convolution that makes a tensor."""
    made = {layer.tensor: layer.name for layer in reversed(report.layers)}
    return lambda name: made.get(name, name)


def region_comparisons(
    before: onnx.ModelProto, after: onnx.ModelProto, given: Feeds, label: Callable[[str], str]
) -> tuple[list[Comparison], list[Refusal]]:
    """Each tensor that `after` writes anew against what it stands for, and those that could not be proven so.

    Arguments as in `prove_onnx`, `given` one run's inputs.
    """
    before = _as_read(before, after)

    def shapes(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        found = sizes_on(before, {name: value.shape for name, value in given.items()})
        missing = [name for name in names if name not in found]
        with contextlib.suppress(SourceError):  # then it is said of each region that its size is not known
            found |= {name: value.shape for name, value in _exposed(before, missing, given).items()}
        return found

    return prove_regions(before, after, shapes, label)


def _as_read(before: onnx.ModelProto, after: onnx.ModelProto) -> onnx.ModelProto:
    """`before`, with its activations among other axes where `after` has them there: see `commuting`."""
    made = {name for node in before.graph.node for name in node.output}
    new = [node.op_type for node in after.graph.node if made.isdisjoint(node.output)]
    if POINTWISE.isdisjoint(new):
        return before
    facts = Facts(before)
    steps, _ = read_steps(facts)
    return seen_from(before, after, commuted(facts, steps, Names(taken(before))))


def _exposed(model: onnx.ModelProto, names: Sequence[str], given: Feeds) -> dict[str, Array]:
    """Intermediate tensors of a run."""
    if not names:
        return {}
    session = model_session(showing(model, names), "the ONNX model", as_written=True)
    return dict(zip(names, _run(session, names, given, longest_run(model)), strict=True))


def _run(session: Any, names: Sequence[str], feeds: Feeds, seconds: float) -> list[Array]:  # noqa: ANN401  # onnxruntime has no types
    try:
        found = run_session(session, names, feeds, seconds)
    except Exception as error:  # onnxruntime raises a type a failure
        first = next(iter(str(error).splitlines()), "")
        raise SourceError(f"onnxruntime cannot run the ONNX model: {first}") from error
    for name, value in zip(names, found, strict=True):
        if not isinstance(value, np.ndarray):
            raise SourceError(f"the output {name} is a {type(value).__name__}; only tensors are compared")
    return found


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.array(value))  # a copy: torch warns of arrays it may not write
