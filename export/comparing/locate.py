"""Where two forms of a network first differ, intermediate tensor by intermediate tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from repconv.proof.agreement import Agreement, Comparison
from repconv.proof.comparing import compare_tensors

from ..artefacts.artefact import Artefact, Intermediate, exact_artefact
from .compare import reference_first

BY_NAME = "by name"
BY_SHAPE = "by shape and nearest values, best effort: the names differ"


@dataclass(frozen=True)
class Located:
    """Intermediate tensors of two forms, matched by `method`, in execution order.

    excused: indices of steps that differ though what is computed from them agrees, so that they are no cause: the
        other form simply has no such tensor. Known only where a form is a graph, as in ONNX.
    """

    method: str
    steps: tuple[Comparison, ...]
    excused: frozenset[int] = field(default=frozenset())

    @property
    def first(self) -> int | None:
        """The index of the first step that differs, None if there is none."""
        return next((i for i, step in enumerate(self.steps) if not step.passed and i not in self.excused), None)

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        steps = Agreement(end_to_end=self.steps).to_dict()["end_to_end"]
        return {"method": self.method, "first": self.first, "no_counterpart": sorted(self.excused), "steps": steps}


@dataclass(frozen=True)
class _Judge:
    """Compares a step of the reference with one of the other form, beside the original's own error there."""

    own: dict[str, Tensor]
    dtype: torch.dtype | None
    reference_dtype: torch.dtype | None

    def __call__(self, wanted: Intermediate, got: Intermediate) -> Comparison:
        where = wanted.name if wanted.name == got.name else f"{wanted.name} and {got.name}"
        own = self.own.get(wanted.name)
        found = compare_tensors(wanted.tensor, got.tensor, own, self.dtype, self.reference_dtype)
        return replace(found, where=where, shape=tuple(wanted.tensor.shape))


def locate(a: Artefact, b: Artefact, inputs: Sequence[Tensor]) -> Located:
    """Compare the intermediate tensors of `a` and `b` on the same inputs, each computed from its own earlier ones.

    They are matched by name: in PyTorch the module's, in a graph that of the module a weight is named after or else
    the tensor's. If fewer than two names are in both, each tensor of the graph is matched with the one of its shape
    in the reference that is nearest to it.
    """
    kept, other = reference_first(a, b)
    wanted, got = exact_artefact(kept).trace(inputs), other.trace(inputs)
    own = {step.name: step.tensor for step in kept.trace(inputs)} if kept.model is not None else {}
    judge = _Judge(
        own,
        next((x.dtype for x in inputs if x.is_floating_point()), None),
        torch.float64 if kept.model is not None else None,
    )
    pairs = _by_name(wanted, got)
    method, compared = BY_NAME, [(judge(w, g), g) for w, g in pairs]
    if len(pairs) < 2:
        method, compared = BY_SHAPE, _by_shape(wanted, got, judge)
    steps = tuple(comparison for comparison, _ in compared)
    return Located(method, steps, frozenset(_excused([g for _, g in compared], steps, got)))


def _by_name(wanted: Sequence[Intermediate], got: Sequence[Intermediate]) -> list[tuple[Intermediate, Intermediate]]:
    """Steps of one name, in the order of `wanted`.

    A convolution whose normalisation the other form has folded is compared after the normalisation. Names that
    exporters count up, such as `add_3`, mean something else where the shapes differ.
    """
    theirs = {step.name: step for step in got if step.kind != "Identity"}
    pairs = []
    for index, step in enumerate(wanted):
        after = wanted[index + 1] if index + 1 < len(wanted) else step
        folded = step.kind == "Conv2d" and "BatchNorm" in after.kind and after.name not in theirs
        found = theirs.get(step.name)
        if found is None or (found.value and "." not in step.name and found.tensor.shape != step.tensor.shape):
            continue
        pairs.append((after if folded else step, found))
    return pairs


def _by_shape(
    wanted: Sequence[Intermediate], got: Sequence[Intermediate], judge: _Judge
) -> list[tuple[Comparison, Intermediate]]:
    """Each step of `got` against the first of `wanted` that agrees, looking onwards first, or else the nearest."""
    start, found = 0, []
    for step in got:
        best: tuple[int, Comparison] | None = None
        for index in (*range(start, len(wanted)), *range(start)):
            if wanted[index].tensor.shape != step.tensor.shape:
                continue
            judged = judge(wanted[index], step)
            if best is None or judged.error.to_scale < best[1].error.to_scale:
                best = index, judged
            if judged.passed:
                start = index + 1
                break
        if best is not None:
            found.append((best[1], step))
    return found


def _excused(matched: Sequence[Intermediate], steps: Sequence[Comparison], got: Sequence[Intermediate]) -> list[int]:
    """The failed steps from which one is computed that agrees."""
    agreeing = {g.value for g, c in zip(matched, steps, strict=True) if c.passed and g.value}
    behind: set[str] = set()
    for step in reversed(got):
        if step.value and (step.value in agreeing or step.value in behind):
            behind.update(step.sources)
    return [i for i, (g, c) in enumerate(zip(matched, steps, strict=True)) if not c.passed and g.value in behind]
