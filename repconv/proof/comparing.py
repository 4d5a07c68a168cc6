"""How far two forms of a network are apart, and whether that is rounding or a mistake.

Random deep networks amplify rounding, so a bare end-to-end difference proves little. Every comparison here has a
float64 reference, and beside the candidate's error stands the error the original makes in the same dtype.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import RepconvError
from .agreement import Agreement, Comparison, Difference, nearest_limit, relative
from .decisions import DecidedCall, Flipped, Recorded, Replayed
from .float64 import Reference, float64_reference, full_precision
from .leaves import Function, call, cast, leaves

FLOORS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Errors that are always accepted, relative to the output's scale: 1e-5 is about 80 float32 roundings; half precisions
get 8 roundings, being used for storage and not for sums; float64 leaves room for what depth amplifies."""

CEILINGS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 0.5}
"""Own errors of an original, relative to the output's scale, above which they excuse nothing: no depth of sane weights
makes so much of rounding, but an ill-conditioned network or a broken reference does."""

OWN_ERROR_FACTOR = 2.0
"""A candidate may be at most this many times as far from the reference as the original is in the same dtype."""


def difference(reference: Tensor, candidate: Tensor) -> Difference:
    """How far `candidate` is from `reference`, both [n, c, ...] of one shape, computed in float64.

    NaN and Inf in either give an infinite difference.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"outputs differ in shape: {tuple(reference.shape)} against {tuple(candidate.shape)}")
    wanted, got = _double(reference), _double(candidate).to(reference.device)
    if not wanted.numel():
        return Difference(max_absolute=0.0, to_scale=0.0, to_channel=0.0)
    error = (got - wanted).abs()
    if not bool(torch.isfinite(error).all()):
        return Difference(max_absolute=math.inf, to_scale=math.inf, to_channel=math.inf, rms=math.inf)
    channels, errors = (t.transpose(0, 1).flatten(1) if t.dim() > 2 else t.reshape(1, -1) for t in (wanted, error))
    spread = channels.std(1, correction=0).clamp_min(1e-3 * float(channels.std(correction=0)))
    by_channel = errors.amax(1)
    return Difference(
        max_absolute=float(error.max()),
        to_scale=relative(float(error.max()), float(wanted.square().mean().sqrt())),
        to_channel=max(relative(float(e), float(s)) for e, s in zip(by_channel, spread, strict=True)),
        rms=relative(float(error.square().mean().sqrt()), float(wanted.square().mean().sqrt())),
    )


def _double(t: Tensor) -> Tensor:
    """In float64; a complex number is two."""
    t = t.detach()
    return (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).double()


def compare(
    reference: Function,
    candidate: Function,
    inputs: object,
    *,
    original: Function | None = None,
    where: str = "end to end",
    reference_dtype: torch.dtype | None = torch.float64,
) -> Agreement:
    """Run `candidate` on `inputs` and `reference` on the same inputs in float64, and judge every output.

    Outputs are tensors, or dictionaries, tuples, lists and dataclasses of them, nested as you like; each tensor is
    compared by itself and named by its path, such as `out.boxes` or `[0]`. Integers and booleans must be equal.
    Outputs that only one side has, and outputs of different shapes or types, are failures in words.

    Args:
        reference: the function to agree with.
        candidate: the function in question, given `inputs` as they are.
        inputs: a tensor or a list of tensors, the one argument; a tuple, the positional arguments; or a dictionary,
            the named ones. The dtype of the first floating-point tensor, or else of each output, sets the tolerance.
        original: what the candidate was made from, given `inputs` as they are: it shows, and excuses, rounding that
            was there before.
        where: a label for the result.
        reference_dtype: what the reference's floating-point inputs are cast to, and in float64 all that it computes
            (`float64_reference`); None gives it `inputs` as they are, for a reference that takes nothing else, such as
            an ONNX session. If that is no more precise than `inputs`, the reference rounds too, and the tolerance
            doubles.

    Raises:
        TypeError: an input or output is none of the above.
        ValueError: a floating-point type without a tolerance.
    """
    found = comparisons(reference, candidate, inputs, original=original, where=where, reference_dtype=reference_dtype)
    return Agreement(end_to_end=found)


def comparisons(
    reference: Function,
    candidate: Function,
    inputs: object,
    *,
    original: Function | None = None,
    where: str = "end to end",
    reference_dtype: torch.dtype | None = torch.float64,
    asked: Collection[torch.dtype] = (),
    stored: Function | None = None,
) -> tuple[Comparison, ...]:
    """The comparisons that make `compare`, one an output; `asked` as for `compare_tensors`.

    `stored` is the candidate in float64 with its numbers as they are stored, run where an error needs explaining.
    """
    with torch.no_grad(), full_precision():
        before = None if original is None else _Run.of(original, inputs)
        own = {} if before is None else before.outputs
        said = ""
        seen = Recorded()
        exactly = float64_reference(reference) if reference_dtype == torch.float64 else reference
        given = inputs if reference_dtype is None else cast(inputs, reference_dtype)
        try:
            with seen:
                wanted = dict(leaves(call(exactly, given)))
            seen.read(wanted)
            asked = {
                *asked,
                *(exactly.asked if isinstance(exactly, Reference) else ()),
                *(before.types if before else ()),
            }
        except Exception as error:
            if reference_dtype is None or original is None:
                if reference_dtype is not None:
                    error.add_note(
                        f"compare gives the reference {_plain(reference_dtype)} inputs; reference_dtype=None gives it "
                        "the inputs as they are"
                    )
                raise
            # The original can stand for a reference that cannot be computed: it rounds, which is said.
            first = next(iter(str(error).splitlines()), "") or type(error).__name__
            said = f"; measured against the original, which cannot be run in {_plain(reference_dtype)} ({first[:200]})"
            wanted, own, reference_dtype = own, {}, None
        run = _Run.of(candidate, inputs)
        got = run.outputs
        decided: list[Comparison] = []
        right = _replayed(exactly, given, run) if seen.decided and reference_dtype == torch.float64 else None
        if right is not None:
            wanted = right.reference
            theirs = None if before is None else _replayed(exactly, given, before)
            if theirs is not None:  # the original's error is that against its own decisions
                own = own | {
                    path: right_one + (own[path] - theirs.reference[path])
                    for path, right_one in wanted.items()
                    if right_one.is_floating_point() and own[path].shape == theirs.reference[path].shape
                }
            decided = _decided(right, theirs, asked)
        if isinstance(exactly, Reference) and exactly.rounded:
            said += f"; PyTorch has no float64 for {', '.join(sorted(exactly.rounded))}: the reference rounds there"
    tensors = [t for _, t in leaves(inputs)]
    shape = tuple(tensors[0].shape) if tensors else ()
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
    found = {
        path: compare_tensors(wanted.get(path), got.get(path), own.get(path), dtype, reference_dtype, asked)
        for path in {**wanted, **got}
    }
    if stored is not None and any(needs_explaining(c) for c in found.values()):
        rounded: dict[str, Tensor] = {}
        with torch.no_grad(), contextlib.suppress(RepconvError):  # what cannot be computed excuses nothing
            rounded = dict(leaves(call(stored, cast(inputs, torch.float64))))
        found = {path: explained(c, wanted.get(path), rounded.get(path)) for path, c in found.items()}
    found |= {c.path: c for c in decided}
    return tuple(replace(c, where=where, shape=shape, path=path, reason=c.reason + said) for path, c in found.items())


@dataclass(frozen=True)
class _Run:
    """What a call gave, what it decided on the way, and the types of floating point it computed in."""

    outputs: dict[str, Tensor]
    decisions: list[DecidedCall]
    types: set[torch.dtype]

    @classmethod
    def of(cls, function: Function, inputs: object) -> _Run:
        with Recorded() as seen:
            outputs = dict(leaves(call(function, inputs)))
        seen.read(outputs)
        return cls(outputs, seen.noted, seen.types)


@dataclass(frozen=True)
class _Replay:
    """The reference with the decisions of a run, and what each was made of."""

    reference: dict[str, Tensor]
    decisions: list[Flipped]


def _replayed(exactly: Function, given: object, run: _Run) -> _Replay | None:
    """The reference that decides as `run` did; None where the two do not make the same decisions."""
    with Replayed(run.decisions) as replay:
        reference = dict(leaves(call(exactly, given)))
    return _Replay(reference, replay.flipped) if replay.complete and set(run.outputs) == set(reference) else None


_NAMES = {"_to_copy": "a cast to whole numbers"}


def _decided(right: _Replay, theirs: _Replay | None, asked: Collection[torch.dtype]) -> list[Comparison]:
    """What decisions were made of, where that is off or decided otherwise; `theirs` are those of the original."""
    known = theirs.decisions if theirs is not None and len(theirs.decisions) == len(right.decisions) else None
    found = [
        _one_decided(decision, known[index] if known else None, index, asked)
        for index, decision in enumerate(right.decisions)
    ]
    return [c for c, decision in zip(found, right.decisions, strict=True) if decision.differing or not c.passed]


def _one_decided(found: Flipped, before: Flipped | None, index: int, asked: Collection[torch.dtype]) -> Comparison:
    """What one decision was made of in both runs, and how many of what it gave differ."""
    name = _NAMES.get(found.name, found.name)
    said = f"{found.differing:,} of {found.values:,} values of {name} fell on the other side of a step"
    compared = []
    for position, (a, b) in enumerate(zip(found.reference, found.run, strict=True)):
        own = None
        if before is not None and before.run[position].shape == a.shape == before.reference[position].shape:
            own = a + (before.run[position] - before.reference[position])
        compared.append(compare_tensors(*_without_masks(a, b, own), asked=asked))
    worst = nearest_limit(compared)
    assert worst is not None  # noqa: S101  # a decision reads something
    steps = None if found.by_one_step else f"{name} is off by more than one step"
    return replace(worst, path=f"before {name} {index + 1}", mismatch=steps, reason=f"{worst.reason}; {said}")


def _without_masks(a: Tensor, b: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same tensors, 0 where `a` and `b` are the same infinity: masks are, on purpose."""
    if a.shape != b.shape:
        return a, b, own
    masked = (a == b) & torch.isinf(a)
    return a.masked_fill(masked, 0), b.masked_fill(masked, 0), None if own is None else own.masked_fill(masked, 0)


def compare_tensors(
    wanted: Tensor | None,
    got: Tensor | None,
    own: Tensor | None,
    dtype: torch.dtype | None = None,
    reference_dtype: torch.dtype | None = torch.float64,
    asked: Collection[torch.dtype] = (),
) -> Comparison:
    """Judge one output, of any shape: `got` against `wanted`, beside `own`, what the original gives.

    Args:
        wanted: what is right; None where the reference has no such output.
        got: what came; None where the candidate has no such output.
        own: the original's output, if there is an original.
        dtype: of the inputs, which sets the tolerance; None: that of `got`.
        reference_dtype: what `wanted` was computed in; None: as `dtype`.
        asked: types that the original computes in besides.
    """
    said = _mismatch(wanted, got)
    if wanted is None or got is None or said is not None:
        infinite = Difference(max_absolute=math.inf, to_scale=math.inf, to_channel=math.inf)
        known = got if got is not None else wanted
        kind = "" if known is None else _plain(known.dtype)
        return Comparison(
            where="",
            shape=(),
            dtype=kind,
            error=infinite,
            own=None,
            tolerance=0.0,
            reason="nothing to subtract",
            mismatch=said,
        )
    error = difference(wanted, got)
    if not (got.is_floating_point() or got.is_complex()):
        return Comparison(
            where="",
            shape=(),
            dtype=_plain(got.dtype),
            error=error,
            own=None,
            tolerance=0.0,
            reason="integers must be equal",
        )
    dtype = dtype or (got.real.dtype if got.is_complex() else got.dtype)
    before = None if own is None or own.shape != wanted.shape else difference(wanted, own)
    tolerance, reason = _tolerance(dtype, before, reference_dtype)
    ceiling = ceiling_of(dtype, *asked)
    own_error = before.to_scale if before is not None and before.finite else 0.0
    off = not error.finite or error.to_scale > FLOORS[dtype]
    undecided = excess(own_error, ceiling, dtype) if off and error.finite else None
    if off and before is not None and not before.finite and bool(torch.isfinite(_double(wanted)).all()):
        undecided = f"the source itself gives NaN or Inf in {_plain(dtype)}, where float64 does not"
    if error.finite and math.isinf(error.to_scale):
        undecided = f"the reference is 0 everywhere, so that an error of {error.max_absolute:.1e} has no scale"
    return Comparison(
        where="",
        shape=(),
        dtype=_plain(dtype),
        error=error,
        own=before,
        tolerance=min(tolerance, max(ceiling, FLOORS[dtype])),
        reason=reason,
        undecided=undecided,
        ceiling=ceiling,
    )


def needs_explaining(found: Comparison) -> bool:
    """Whether an output is off by more than the original's own error allows, which that error might still explain."""
    return not found.passed and found.own is not None and found.error.finite and found.mismatch is None


def explained(found: Comparison, wanted: Tensor | None, stored: Tensor | None) -> Comparison:
    """`found` beside what rounding the candidate's numbers alone makes, which is as right an excuse as the own error.

    It is one only for a candidate whose numbers are proven to be the right ones, rounded once: its layers see to that.
    """
    if not needs_explaining(found) or wanted is None or stored is None or stored.shape != wanted.shape:
        return found
    rounding = difference(wanted, stored)
    own = math.hypot(found.own.to_scale if found.own else 0.0, rounding.to_scale)
    if not math.isfinite(own) or OWN_ERROR_FACTOR * own <= found.tolerance:
        return replace(found, stored=rounding)
    dtype = getattr(torch, found.dtype)
    return replace(
        found,
        stored=rounding,
        tolerance=min(OWN_ERROR_FACTOR * own, found.ceiling),
        undecided=excess(own, found.ceiling, dtype),
        reason=f"{OWN_ERROR_FACTOR:g} x the unfused model's own error and that of rounding the stored numbers",
    )


def ceiling_of(*dtypes: torch.dtype) -> float:
    """The `CEILINGS` of the coarsest of these types."""
    return max(CEILINGS[dtype] for dtype in dtypes if dtype in CEILINGS)


def excess(own: float, ceiling: float, dtype: torch.dtype) -> str | None:
    """Why an original's own error excuses nothing, in words; None if it is no larger than rounding makes it."""
    if own <= ceiling:
        return None
    return (
        f"the source's own error in {_plain(dtype)} is {own:.1e} of the output's scale, above the {ceiling:.0e} that "
        "rounding explains: an ill-conditioned network, or a broken reference"
    )


def _mismatch(wanted: Tensor | None, got: Tensor | None) -> str | None:
    """Why two outputs cannot be subtracted, in words."""
    if wanted is None:
        return "an output that only the candidate has"
    if got is None:
        return "an output that only the reference has"
    if wanted.shape != got.shape:
        return f"the candidate's shape {_shape(got)} instead of {_shape(wanted)}"
    if _kind(wanted) != _kind(got):
        return f"the candidate's type {_plain(got.dtype)} instead of {_plain(wanted.dtype)}"
    return None


def _kind(t: Tensor) -> str:
    """The types that compare with one another: of integers and floats, any width."""
    if t.is_complex():
        return "complex"
    return "float" if t.is_floating_point() else "bool" if t.dtype == torch.bool else "integer"


def _shape(t: Tensor) -> str:
    return "x".join(map(str, t.shape)) or "of a single number"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tolerance(dtype: torch.dtype, own: Difference | None, reference_dtype: torch.dtype | None) -> tuple[float, str]:
    """What is accepted, relative to the output's scale, and why."""
    if dtype not in FLOORS:
        raise ValueError(f"no tolerance is known for {_plain(dtype)}; compare in {', '.join(map(_plain, FLOORS))}")
    floor, reason = FLOORS[dtype], f"the floor for {_plain(dtype)}"
    computed_in = reference_dtype or dtype
    if dtype != torch.float64 and torch.finfo(computed_in).eps >= torch.finfo(dtype).eps:
        floor, reason = 2 * floor, f"twice the floor for {_plain(dtype)}: the reference rounds, too"
    if own is None or not own.finite or OWN_ERROR_FACTOR * own.to_scale <= floor:
        return floor, reason
    return OWN_ERROR_FACTOR * own.to_scale, f"{OWN_ERROR_FACTOR:g} x the unfused model's own error"
