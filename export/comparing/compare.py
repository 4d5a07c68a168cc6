"""Whether two artefacts give the same, each in its own runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repconv.blocks.probing import example_shape, odd, pixel_axes
from repconv.errors import SourceError
from repconv.graph.onnx.proof.prove import ModelPair
from repconv.limits import require_drawable
from repconv.proof.agreement import Agreement, Comparison, Difference
from repconv.proof.comparing import comparisons
from repconv.proof.pooling import compare_calls
from repconv.sources.source import Input

from ..artefacts.artefact import Artefact, Run

Inputs = tuple[Tensor, ...]
Shape = tuple[int, ...]
OpenShape = tuple[int | None, ...]


def inputs_for(a: Artefact, b: Artefact, size: Shape | None = None, *, seed: int = 0) -> list[Inputs]:
    """Random inputs that both artefacts declare they take, in the less precise dtype of the two.

    Where both leave the batch open, several batches; where both leave sides of pixels open, odd ones at most 69 long;
    where neither is open, two draws.

    Args:
        a: one artefact.
        b: the other.
        size: of one input, (c, h, w) of an image; None: what either knows of itself.
        seed: of the draws.

    Raises:
        SourceError: they take no common inputs, or a size is open or unknown and not given.
    """
    declared, dtypes = common_shapes(a, b, size), common_dtypes(a, b)
    drawn = _shapes(declared, settled_size(a, b, size), [taken.name for taken in a.inputs])
    for shapes in drawn:
        for shape, taken in zip(shapes, a.inputs, strict=True):
            require_drawable(shape, f"the input {taken.name}")
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(_draw(shape, dtype, generator) for shape, dtype in zip(shapes, dtypes, strict=True)) for shapes in drawn
    ]


def common_shapes(a: Artefact, b: Artefact, size: Shape | None = None) -> list[OpenShape]:
    """The shape of every input that suits both; sizes open in both are None.

    Raises:
        SourceError: they take no common inputs.
    """
    if len(a.inputs) != len(b.inputs):
        counts = " and ".join(f"{x.name} takes {len(x.inputs)} inputs" for x in (a, b))
        raise SourceError(f"{counts}; only artefacts of the same inputs are compared")
    return [_common(a, b, i, settled_size(a, b, size)) for i in range(len(a.inputs))]


def settled_size(a: Artefact, b: Artefact, size: Shape | None) -> Shape | None:
    """The size of one input without its batch, as it was given or as either knows it; None where nobody does.

    Raises:
        SourceError: so many numbers are no size of what they take.
    """
    if size is None:
        return a.input_size or b.input_size
    ranks = [len(i.shape) for artefact in (a, b) for i in artefact.inputs[:1] if i.shape is not None]
    models = [artefact.model for artefact in (a, b) if artefact.model is not None]
    axes = max(ranks[0] - 2, 0) if ranks else next((pixel_axes(model) for model in models), None)
    return example_shape(size, axes, a.name)


def common_dtypes(a: Artefact, b: Artefact) -> list[torch.dtype]:
    """The less precise dtype of the two, of every input.

    Raises:
        SourceError: they take other kinds of numbers.
    """
    return [_dtype(one, other) for one, other in zip(a.inputs, b.inputs, strict=True)]


def _common(a: Artefact, b: Artefact, index: int, size: Shape | None) -> OpenShape:
    """The shape of an input that suits both; sizes open in both are None."""
    one, other = a.inputs[index], b.inputs[index]
    known = [i.shape for i in (one, other) if i.shape is not None]
    if any(i.shape is None for i in (one, other)) and size is not None:
        known.append((None, *size))  # an unknown network may take inputs of this size only
    for shape in known:
        clash = len(shape) != len(known[0]) or any(
            x is not None and y is not None and x != y for x, y in zip(shape, known[0], strict=True)
        )
        if clash:
            raise SourceError(f"no common input: {_said(a, one)}, {_said(b, other)}")
    if not known:
        raise SourceError(
            f"neither {a.name} nor {b.name} records a shape; give that of one input: --input-shape 3,224,224"
        )
    return tuple(next((s for s in sizes if s is not None), None) for sizes in zip(*known, strict=True))


def _said(artefact: Artefact, declared: Input) -> str:
    if declared.shape is None:
        return f"{artefact.name} takes inputs of {'x'.join(map(str, artefact.input_size or ('unknown size',)))}"
    return f"{artefact.name} takes {_sides(declared.shape)}"


def _sides(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def _shapes(declared: Sequence[OpenShape], size: Shape | None, names: Sequence[str]) -> list[list[Shape]]:
    """The shapes of all inputs, for each run."""
    if len(declared) == 1 and len(declared[0]) > 1:
        batch, *taken = declared[0]
        if size is not None and any(d is not None and d != s for d, s in zip(taken, size, strict=True)):
            raise SourceError(
                f"{names[0]} is declared as {_sides(taken)} after its batch, got --input-shape "
                f"{','.join(map(str, size))}"
            )
        if None in taken and size is None:
            example = "3,224,224" if len(taken) == 3 else ",".join(str(d or 100) for d in taken)
            raise SourceError(
                f"{names[0]} is declared as {_sides(taken)} after its batch, and '?' is open; give a size, such as "
                f"--input-shape {example}"
            )
        sides = [s if d is None else d for d, s in zip(taken, size or [d or 0 for d in taken], strict=True)]
        sizes: list[list[Shape]] = [[(batch or n, *sides)] for n in ((1, 3) if batch is None else (1,))]
        first = 1 if len(taken) > 2 else 0  # channels come first, but for sequences of rows of numbers
        others = [*sides[:first], *odd(sides[first:])]
        others = [o if d is None else d for d, o in zip(taken, others, strict=True)]
        if others != sides:
            sizes.append([(batch or 2, *others)])
        return sizes if len(sizes) > 1 else 2 * sizes
    unsettled = [f"{name} ({_sides(shape)})" for name, shape in zip(names, declared, strict=True) if None in shape[1:]]
    if unsettled:
        raise SourceError(
            f"of several inputs, these leave sizes other than the batch open: {', '.join(unsettled)}; export the "
            f"network with fixed ones to compare it"
        )
    batches = (1, 3) if any(shape and shape[0] is None for shape in declared) else (1, 1)
    return [[tuple(n if s is None else s for s in shape) for shape in declared] for n in batches]


def _dtype(one: Input, other: Input) -> torch.dtype:
    floats = [i.dtype for i in (one, other) if i.dtype.is_floating_point]
    if len(floats) == 1 or (not floats and one.dtype != other.dtype):
        raise SourceError(
            f"no common input: {one.name} is {one.dtype}, {other.name} {other.dtype}".replace("torch.", "")
        )
    return max(floats, key=lambda d: torch.finfo(d).eps) if floats else one.dtype


def _draw(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


@dataclass(frozen=True)
class Allowed:
    """Tolerances of the user's: an error of up to `atol` + `rtol` * the output's largest number passes."""

    atol: float = 0.0
    rtol: float = 0.0

    def judged(self, found: Comparison) -> Comparison:
        """The same comparison by these tolerances."""
        error = found.error
        scale = error.max_absolute / error.to_scale if error.finite and error.to_scale > 0 else math.inf
        reason = f"asked for: {self.atol:g} + {self.rtol:g} of the output's scale"
        limit = self.rtol + self.atol / scale
        return replace(found, tolerance=limit, reason=reason, undecided=None, pooled=None)


def verify_artefacts(
    a: Artefact, b: Artefact, inputs: Sequence[Inputs], allowed: Allowed | None = None
) -> tuple[Agreement, str]:
    """How far `a` and `b` are apart, and what they were measured against, in words.

    The reference is the float64 form of one of them, of a PyTorch network rather than of a graph, and its own error in
    its own dtype stands beside the other's; where neither has such a form, `a` is the reference as it is. Decisions
    that two ONNX models share, such as a QuantizeLinear's, are replayed (`ModelPair`). A shape that both declare and
    one cannot run is a failure. With `allowed`, its tolerances and these calls alone decide.

    Raises:
        SourceError: one of them cannot run the first of the inputs.
    """
    kept, other = reference_first(a, b)
    exact, run_exactly = kept.exact is not None, kept.exact or kept.run
    told = f"{kept.name} in float64" if exact else f"{kept.name} as it is, run by {kept.kind}"
    pair = _pair(kept, other)
    if pair is not None:
        told += ", which decides as the other does, both run by onnxruntime as they are written"
    failure = next((f for f in (_cannot_run(x, inputs[0]) for x in (kept, other)) if f), None)
    if failure is not None:
        raise SourceError(f"{failure} of shape {_shapes_of(inputs[0])}")

    def compare(given: Inputs) -> Sequence[Comparison]:
        where = _shapes_of(given)
        failure = next((f for f in (_cannot_run(x, given) for x in (kept, other)) if f), None)
        if failure is not None:
            infinite = Difference(max_absolute=math.inf, to_scale=math.inf, to_channel=math.inf, rms=math.inf)
            shape = tuple(given[0].shape)
            return [
                Comparison(
                    where=where,
                    shape=shape,
                    dtype="",
                    error=infinite,
                    own=None,
                    tolerance=0.0,
                    reason="nothing to compare",
                    mismatch=failure,
                )
            ]
        if pair is not None:
            feeds = {i.name: t.to(i.dtype).contiguous().numpy() for i, t in zip(kept.inputs, given, strict=True)}
            return [replace(c, where=where) for c in pair.compare(feeds)]
        return comparisons(
            _function(run_exactly),
            _function(other.run),
            given,
            where=where,
            reference_dtype=torch.float64 if exact else None,
            original=_function(kept.run) if exact else None,
        )

    if allowed is not None:
        return Agreement(end_to_end=tuple(allowed.judged(c) for given in inputs for c in compare(given))), told
    return Agreement(end_to_end=compare_calls(compare, inputs)), told


def reference_first(a: Artefact, b: Artefact) -> tuple[Artefact, Artefact]:
    """The one to measure against, a PyTorch network or else one that float64 can compute, and the other."""
    worth = [(x.model is not None, x.exact is not None) for x in (a, b)]
    return (b, a) if worth[1] > worth[0] else (a, b)


def _pair(kept: Artefact, other: Artefact) -> ModelPair | None:
    """Two ONNX models that take and give tensors of the same names and share decisions; None for any other two."""
    if kept.proto is None or other.proto is None:
        return None
    outputs = [[output.name for output in proto.graph.output] for proto in (kept.proto, other.proto)]
    if outputs[0] != outputs[1] or [i.name for i in kept.inputs] != [i.name for i in other.inputs]:
        return None
    pair = ModelPair(kept.proto, other.proto)
    return pair if pair.decided else None


def _shapes_of(given: Inputs) -> str:
    return " and ".join("x".join(map(str, x.shape)) for x in given)


def _function(run: Run) -> Callable[..., Any]:
    """Several outputs are a tuple, one is itself."""

    def function(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = run(inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    return function


def _cannot_run(artefact: Artefact, inputs: Inputs) -> str | None:
    try:
        artefact.run(inputs)
    except Exception as error:  # noqa: BLE001  # runtimes and users' networks raise anything
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"{artefact.name} cannot run an input ({first[:200]})"
    return None
