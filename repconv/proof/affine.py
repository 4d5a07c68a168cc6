"""Proof that one affine map is another one with its numbers rounded once, whatever tensors it reads.

A folded layer is `y = sum_s K_s * s + b`. What it was made of and what was written are both evaluated in float64, the
written one with the numbers as they are stored, so that nothing is left between them but the rounding of those numbers:
a weight w is stored within `u |w|` of the right one, u being half the machine epsilon of its type. Three tests follow:

* all sources zero: the constants are apart by at most `u |b|`, at every pixel;
* a source of random signs, the others zero: an output is off by a sum of roundings, each times a random sign. By
  Hoeffding's inequality (1963, theorem 2) that exceeds `t u |K|`, |K| being the Euclidean norm of the weights that
  apply at that pixel, with a probability below `2 exp(-t^2 / 2)`, whatever the roundings are;
* the mean square of those errors in a channel, over n independent windows: by the tail bound of Hsu, Kakade and Zhang
  (2012, theorem 2.1) it exceeds `u^2 |K|^2 (1 + 2 sqrt(x/n) + 2 x/n)` with a probability below `exp(-x)`.

So a right layer fails in less than one of 10^9 proofs, and a wrong weight shows by its own size: scaled by 1 + d it
gives an error of d |K|. The activations a network happens to have, and what later steps amplify, play no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from .agreement import Comparison, Difference
from .dispatch import EveryCall

SIGMAS = 7.0
"""The t of Hoeffding's bound: 5e-11 an output."""

TAIL = 30.0
"""The x of the mean square's bound: 1e-13 a channel."""

WINDOWS = 128
"""Outputs a channel and source that are looked at, at least; small maps are drawn more often."""

FEWEST_DRAWS = 2

SLOP = 1e-12
"""Rounding of float64 itself, relative to the largest tensor that a map computes on its way."""

ROUNDED_AGAIN = 1 + 2**-10
"""Casts from float64 to half precisions may go through float32: half a unit in the last place and a little more."""

BORDER_ROUNDINGS = 8.0
"""Constants that cancel in real numbers, such as a border of BN(0) subtracted and added again, are rounded to the
graph's type when they are exported: by so many roundings of its largest constant a border may seem to show."""

ELEMENTS = 1 << 23
"""Numbers of a source that are evaluated at once."""

_NOTHING = 1e-300
"""Added to what is divided by."""

Sources = Mapping[str, Tensor]


@dataclass(frozen=True)
class Evaluated:
    """What a map gives, [n, o, ...] in float64, and the largest magnitude among the tensors on the way."""

    value: Tensor
    largest: float


@dataclass(frozen=True)
class Written:
    """A map as it is stored.

    value: of float64 sources, in float64, the numbers as they are stored.
    power: of sources that are 1 or 0, the sum of the squared weights that apply to the ones, at every output. `square`
        gives what stands for a weight; what is passed on without a weight, and biases, count 0.
    taps: the most pixels at which one weight tensor reads a source; 0 if a whole sample is one window.
    reach: by axis of pixels the most of them that a weight of either map reads; where an image has fewer, all of its
        pixels are at a border.
    """

    value: Callable[[Sources], Tensor]
    power: Callable[[Sources], Tensor]
    taps: int
    _: KW_ONLY
    reach: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """The part `share` of a tolerance that is used up, in units of which `tolerance` is."""

    share: float
    tolerance: float
    reason: str
    largest: float = 0.0


def reach_of(windows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """By axis of pixels the longest of some windows."""
    return tuple(max(sides) for sides in zip_longest(*windows, fillvalue=1))


def whole(written: Written) -> Written:
    """A map of whole tensors, whose first axes need be neither the batch nor the channels, as one of samples of them.

    Sources then have one more axis, in front. Outputs of one sample share signs in any way, so each sample counts as
    one window: the mean square is judged against the worst case of the bound, the largest error as ever.
    """
    return Written(_each(written.value), _each(written.power), 0)


def of_whole(reference: Callable[[Sources], Evaluated]) -> Callable[[Sources], Evaluated]:
    """What is right of a map of whole tensors, sample by sample; see `whole`."""

    def run(sources: Sources) -> Evaluated:
        found = [reference(one) for one in _samples(sources)]
        return Evaluated(_stacked([each.value for each in found]), max(each.largest for each in found))

    return run


def _each(function: Callable[[Sources], Tensor]) -> Callable[[Sources], Tensor]:
    return lambda sources: _stacked([function(one) for one in _samples(sources)])


def _samples(sources: Sources) -> list[Sources]:
    count = next(iter(sources.values())).shape[0]
    return [{name: value[index] for name, value in sources.items()} for index in range(count)]


def _stacked(values: list[Tensor]) -> Tensor:
    """[samples, first axis, the others], whatever their rank."""
    return torch.stack([value.reshape(value.shape[0] if value.dim() else 1, -1) for value in values])


def square(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The squared weights over u^2 of what rounding to `dtype` may do to each: near 0 it is no longer relative."""
    return weight.double().square() + torch.finfo(dtype).smallest_normal ** 2


def affine_agreement(
    reference: Callable[[Sources], Evaluated],
    written: Written,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    where: str,
    *,
    seed: int = 0,
) -> Comparison:
    """Judge whether `written` is `reference` with its numbers rounded once to `dtype`.

    Args:
        reference: what is right, in float64.
        written: what is stored.
        shapes: [n, c, ...] of the sources either reads, by name; n is ours to choose.
        dtype: of the numbers as they are stored.
        where: a label for the result.
        seed: of the signs.

    Returns:
        The test that uses up most of its tolerance; `error.to_scale` is relative to what that tolerance is.
    """
    unit = torch.finfo(dtype).eps / 2 * ROUNDED_AGAIN
    named = str(dtype).removeprefix("torch.")
    zeros = {name: torch.zeros(1, *shape[1:], dtype=torch.float64) for name, shape in shapes.items()}
    with torch.no_grad():
        still, got = reference(zeros), written.value(zeros)
        if still.value.shape != got.shape:
            shapes_said = " instead of ".join("x".join(map(str, t.shape)) for t in (got, still.value))
            return different(where, f"the folded layer's shape {shapes_said}")
        at_border = any(side < reach for side, reach in zip(got.shape[2:], written.reach, strict=False))
        found = [_constant(still, got, dtype, unit, named, at_border=at_border)]
        for index, name in enumerate(shapes):
            generator = torch.Generator().manual_seed(seed + index)
            found += _weights(reference, written, zeros, name, (still, got), unit, named, generator)
    worst = max(found, key=lambda f: f.share)
    error = worst.share * worst.tolerance
    if not math.isfinite(error):
        return Comparison(
            where=where,
            shape=tuple(got.shape),
            dtype=named,
            error=_INFINITE,
            own=None,
            tolerance=worst.tolerance,
            reason=worst.reason,
        )
    return Comparison(
        where=where,
        shape=tuple(got.shape),
        dtype=named,
        error=Difference(max_absolute=max(f.largest for f in found), to_scale=error, to_channel=error),
        own=None,
        tolerance=worst.tolerance,
        reason=worst.reason,
    )


_INFINITE = Difference(max_absolute=math.inf, to_scale=math.inf, to_channel=math.inf)


def different(where: str, why: str) -> Comparison:
    """A failed comparison without numbers; `why` in words."""
    return Comparison(
        where=where,
        shape=(),
        dtype="",
        error=_INFINITE,
        own=None,
        tolerance=0.0,
        reason="nothing to subtract",
        mismatch=why,
    )


def same_numbers(first: object, second: object) -> bool:
    """True for tensors of one shape, type and content, NaN included; what is no tensor is not looked at."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return isinstance(first, Tensor) is isinstance(second, Tensor)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    second = second.to(first.device)
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def _constant(
    still: Evaluated, got: Tensor, dtype: torch.dtype, unit: float, named: str, *, at_border: bool
) -> _Finding:
    """What is left where every source is zero; at_border: all pixels are."""
    error = (got - still.value).abs().unsqueeze(-1).flatten(2)  # [1, o, pixels]
    finfo = torch.finfo(dtype)
    size = torch.maximum(got.abs(), still.value.abs()).unsqueeze(-1).flatten(2)
    strict = unit * size + finfo.smallest_normal * finfo.eps + SLOP * still.largest
    share = error / strict
    border = error / (strict + BORDER_ROUNDINGS * finfo.eps * still.largest)
    inside = (share <= 1).any(2, keepdim=True) | at_border
    used = torch.where((share > 1) & inside, border, share)
    return _Finding(
        share=_largest(used),
        tolerance=unit,
        reason=f"one rounding of a {named} bias, everything it reads being 0",
        largest=_largest(error),
    )


def _weights(
    reference: Callable[[Sources], Evaluated],
    written: Written,
    zeros: Sources,
    name: str,
    constants: tuple[Evaluated, Tensor],
    unit: float,
    named: str,
    generator: torch.Generator,
) -> list[_Finding]:
    """What one source of random signs makes, the others being zero."""
    still, got = constants
    pixels = max(1, math.prod(got.shape[2:]))
    draws = max(FEWEST_DRAWS, -(-WINDOWS // pixels))
    power = written.power({**zeros, name: torch.ones_like(zeros[name])}).unsqueeze(-1).flatten(2)  # [1, o, pixels]
    at_once = max(1, ELEMENTS // max(1, zeros[name].numel(), still.value.numel()))
    squares = torch.zeros_like(power)
    share = largest = 0.0
    slop = SLOP * still.largest
    for start in range(0, draws, at_once):
        rows = min(at_once, draws - start)
        signs = torch.randint(0, 2, (rows, *zeros[name].shape[1:]), generator=generator).double() * 2 - 1
        given = {n: signs if n == name else z.expand(rows, *z.shape[1:]) for n, z in zeros.items()}
        wanted = reference(given)
        error = ((written.value(given) - got) - (wanted.value - still.value)).abs().unsqueeze(-1).flatten(2)
        slop = max(slop, SLOP * wanted.largest)
        share = max(share, _largest(error / (SIGMAS * unit * power.sqrt() + slop + _NOTHING)))
        largest = max(largest, _largest(error))
        squares += error.square().sum(0, keepdim=True)
    windows = draws * pixels / (written.taps or pixels)
    factor = math.sqrt(1 + 2 * math.sqrt(TAIL / windows) + 2 * TAIL / windows)
    rms = (squares.mean(2) / draws).sqrt()
    pooled = _largest(rms / (factor * unit * power.mean(2).sqrt() + slop + _NOTHING))
    whose = f"of {named} weights, each rounded once, of random signs"
    return [
        _Finding(share=share, tolerance=SIGMAS * unit, reason=f"{SIGMAS:g} roundings {whose}", largest=largest),
        _Finding(share=pooled, tolerance=factor * unit, reason=f"{factor:.2g} roundings in the mean {whose}"),
    ]


def _largest(t: Tensor) -> float:
    """The largest number; infinite if one is NaN, which nothing but NaN or Inf over there gives."""
    if not t.numel():
        return 0.0
    peak = float(t.amax())
    return math.inf if math.isnan(peak) else peak


class Largest(EveryCall):
    """Inside, the largest magnitude of all floating-point tensors that PyTorch computes is kept in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0.0

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # of torch
        """Run `func` and look at what it gives."""
        result = func(*args, **kwargs)
        if "batch_norm" in str(func):
            self.keep(_parts_of_call(func, args, kwargs, result))
            self.keep(result[0] if isinstance(result, tuple) else result)
        elif isinstance(result, Tensor):
            self.keep(result)
        return result

    def keep(self, value: Tensor) -> None:
        """Look at one tensor."""
        if value.is_floating_point() and value.numel():
            # One operation: whatever dispatch modes are on see every one.
            self.seen = max(self.seen, float(torch.linalg.vector_norm(value, math.inf)))


def norm_parts(scale: Tensor | None, shift: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    """The addends of a batch normalisation's constant, [c] each, one behind the other."""
    factor = 1 if scale is None else scale
    centre = mean * factor / (variance + epsilon).sqrt()
    return centre if shift is None else torch.cat([centre, shift])


def _parts_of_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Tensor:  # noqa: ANN401
    """`norm_parts` of a call of PyTorch: of the statistics it is given, or of those of its batch, which it gives."""
    names = [argument.name for argument in func._schema.arguments]  # noqa: SLF001  # which torch offers nowhere else
    given = dict(zip(names, args, strict=False)) | kwargs
    scale, shift, mean, variance = (given.get(name) for name in ("weight", "bias", "running_mean", "running_var"))
    if given.get("training") or mean is None or variance is None:
        return norm_parts(scale, shift, result[1], result[2].pow(-2), 0.0)  # one over the root, epsilon in it
    return norm_parts(scale, shift, mean, variance, given["eps"])


def largest_on_the_way(function: Callable[[Sources], Tensor]) -> Callable[[Sources], Evaluated]:
    """`function`, of tensors in PyTorch, beside the largest magnitude it computes."""

    def run(sources: Sources) -> Evaluated:
        with Largest() as largest:
            value = function(sources)
        return Evaluated(value, largest.seen)

    return run
