"""Operations of an ONNX graph that decide: a rounding error of 1e-7 before one may be a whole step behind it.

End to end such decisions are replayed: the reference takes them from the run it judges, and what they were decided by
is compared like an output. A decision that the reference would have taken otherwise is then one that rounding explains,
as long as it is the neighbouring one; they are counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch import Tensor

from ....files.onnx import without_weights
from ....proof.agreement import Comparison
from ....proof.comparing import compare_tensors
from ..nodes import nested
from .float64 import Array, evaluate

_STEPS = frozenset(("QuantizeLinear", "Round", "Floor", "Ceil"))
"""Operations whose neighbouring results are 1 apart."""

_CHOICES = frozenset((
    "ArgMax", "ArgMin", "TopK", "Sign", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Hardmax",
))  # fmt: skip
"""Operations that name what is largest, or on which side of a threshold it lies: no result is nearer than another."""


@dataclass(frozen=True)
class Decision:
    """What one node decides, and by what: names of tensors."""

    node: onnx.NodeProto
    by: tuple[str, ...]
    outputs: tuple[str, ...]
    stepwise: bool


def decisions(before: onnx.ModelProto, after: onnx.ModelProto) -> list[Decision]:
    """The nodes that decide, as they are in both models, by rounded numbers that are no weight; in order."""
    kept = {node.output[0]: node for node in after.graph.node if node.output}
    weights = {tensor.name for tensor in before.graph.initializer}
    captured = {n for node in before.graph.node for graph in nested(node) for inner in graph.node for n in inner.input}
    found = []
    for node in before.graph.node:
        same = kept.get(node.output[0]) if node.output else None
        if same is None or same.op_type != node.op_type or list(same.input) != list(node.input):
            continue
        stepwise = node.op_type in _STEPS or (node.op_type == "Cast" and _is_whole(node))
        by = tuple(n for n in (node.input if node.op_type in _CHOICES else node.input[:1]) if n and n not in weights)
        if by and (stepwise or node.op_type in _CHOICES) and not captured & set(node.output):
            found.append(Decision(node, by, tuple(n for n in node.output if n), stepwise))
    exact = _whole_numbers(before) if found else set()
    return [decision for decision in found if not exact.issuperset(decision.by)]


def _whole_numbers(model: onnx.ModelProto) -> set[str]:
    """Tensors that hold whole numbers or truth values, such as sizes: what those decide is decided alike in any run."""
    light = without_weights(model)
    with contextlib.suppress(RuntimeError, ValueError):  # of operations whose types are not known
        light = onnx.shape_inference.infer_shapes(light)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*light.graph.input, *light.graph.value_info)}
    kinds |= {node.output[0]: a.t.data_type for node in model.graph.node for a in node.attribute if a.name == "value"}
    return {name for name, kind in kinds.items() if kind and _holds_whole(kind)}


def _holds_whole(kind: int) -> bool:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).kind in "iub"


def _is_whole(node: onnx.NodeProto) -> bool:
    to = next((a.i for a in node.attribute if a.name == "to"), 0)
    return bool(to) and np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)).kind in "iu"


def replayed(
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
    decided: Sequence[Decision],
    run: Mapping[str, Array],
    names: Sequence[str],
) -> dict[str, Array]:
    """The named tensors of `model` in float64, with what is `decided` taken from `run`.

    Raises:
        FusionError: as `evaluate`.
    """
    known = {name: run[name] for d in decided for name in d.outputs}
    kept = [name for name in dict.fromkeys(names) if name not in known]
    found = dict(zip(kept, evaluate(model, {**feeds, **known}, kept), strict=True))
    return {name: found.get(name, known.get(name)) for name in names}  # type: ignore[misc]


def judged(
    model: onnx.ModelProto,
    decided: Sequence[Decision],
    exact: Mapping[str, Array],
    run: Mapping[str, Array],
    own: Mapping[str, Array],
    where: str,
) -> list[Comparison]:
    """What was decided by, compared, and how many decisions differ from those that `exact` numbers give.

    Args:
        model: the original.
        decided: its decisions.
        exact: tensors in float64, with the decisions of `run` replayed.
        run: tensors of the candidate's run.
        own: the exact ones with the error of the original's own run.
        where: a label.
    """
    found = []
    for decision in decided:
        for name in decision.by:
            if exact[name].dtype.kind != "f":
                continue
            compared = compare_tensors(_tensor(exact[name]), _tensor(run[name]), _tensor(own[name]))
            found.append(replace(compared, where=where, path=name, shape=run[name].shape))
        if found and (said := _differing(model, decision, exact, run)):
            count, far = said
            text = f"; {count:,} of {run[decision.outputs[0]].size:,} values of {decision.outputs[0]} "
            more = text + ("rounded to the neighbouring step" if decision.stepwise else "decided otherwise")
            mismatch = f"{far:,} values of {decision.outputs[0]} more than one step off" if far else None
            found[-1] = replace(found[-1], reason=found[-1].reason + more, mismatch=found[-1].mismatch or mismatch)
    return found


def _differing(
    model: onnx.ModelProto, decision: Decision, exact: Mapping[str, Array], run: Mapping[str, Array]
) -> tuple[int, int] | None:
    """How many decisions differ, and how many of these by more than a step; None if none does."""
    (alone,) = evaluate(model, {name: exact[name] for name in decision.by}, [decision.outputs[0]])
    apart = np.abs(alone.astype(np.float64) - run[decision.outputs[0]].astype(np.float64))
    count = int((apart > 0).sum())
    return (count, int((apart > 1).sum()) if decision.stepwise else 0) if count else None


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.require(value, requirements=["C", "W"]))
