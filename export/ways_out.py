"""What would help an int8 model that is refused, each way measured on the same images before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from repconv.errors import BuildError, VerificationError

from .int8.layer_errors import LayerError
from .proof.evidence import Evidence
from .settings import Quantization

KEPT = (1, 2, 4, 8)
"""How many of the layers that are furthest off are left in float; the first number that helps ends the search."""

BUDGET_S = 120.0
"""After which no other way is begun."""

_SHOWN = 3

_SATURATES = (
    "onnxruntime's int8 kernels cut sums off on this processor, as on any x86 without VNNI; weights of 7 bits do "
    "not need more, and where the file is deployed the session option session.x64quantprecision=1 avoids it, too"
)


@dataclass(frozen=True)
class Way:
    """One way: its options on the command line, whether the artefact made so passed, and what it reached."""

    options: str
    passed: bool
    said: str


@dataclass(frozen=True, kw_only=True)
class WaysOut:
    """The ways that were measured; `ended` where time ran out before all were, `saturates` as `ways_out` was told."""

    tried: tuple[Way, ...]
    layers: tuple[LayerError, ...]
    ended: bool
    saturates: bool = False

    @property
    def advice(self) -> str:
        """A few sentences."""
        worst = ", ".join(f"{layer.name} {layer.alone:.1%}" for layer in self.layers[:_SHOWN])
        said = [f"The layers furthest off by themselves: {worst}"] if worst else []
        if self.saturates:
            said.append(_SATURATES)
        helps, not_so = ([way for way in self.tried if way.passed is passed] for passed in (True, False))
        if helps:
            said.append(f"Measured to pass on these images: {_listed(helps)}")
        elif self.tried:
            said.append("No way of doing int8 that was tried passes; take --precision fp16")
        if not_so:
            said.append(f"Measured not to pass: {_listed(not_so)}")
        if self.ended:
            said.append(f"No others were tried, since {BUDGET_S:.0f} s had gone by")
        return "".join(f". {sentence}" for sentence in said)


def _listed(ways: Sequence[Way]) -> str:
    return "; ".join(f"{way.options} ({way.said})" for way in ways)


def ways_out(
    asked: Quantization,
    layers: Sequence[LayerError],
    attempt: Callable[[Quantization], Evidence],
    clock: Callable[[], float],
    *,
    saturates: bool = False,
    budget_s: float = BUDGET_S,
) -> WaysOut:
    """Try what may help, the simplest first: other scales, equalisation, layers left in float, then both.

    Args:
        asked: what was refused.
        layers: its int8 layers, furthest off first.
        attempt: makes the artefact so and runs it.
        clock: seconds.
        saturates: the kernels that run it do: each way is tried with weights of a reduced range, and that alone first.
        budget_s: no way is begun that would, at the pace so far, end after so many.
    """
    start, longest = clock(), 0.0
    tried: list[Way] = []
    for family in _families(asked, len(layers), saturates=saturates and not asked.reduce_range):
        for one in family:
            begun = clock()
            if begun - start + longest > budget_s:
                return WaysOut(tried=tuple(tried), layers=tuple(layers), ended=True, saturates=saturates)
            try:
                found = attempt(one)
                way = Way(_options(one), found.passed, found.short)
            except (BuildError, VerificationError) as error:
                way = Way(_options(one), passed=False, said=str(error))
            tried.append(way)
            longest = max(longest, clock() - begun)
            if way.passed:
                break
        if any(way.passed for way in tried) and any("--keep-float" in way.options for way in tried):
            break
    return WaysOut(tried=tuple(tried), layers=tuple(layers), ended=False, saturates=saturates)


def _families(asked: Quantization, layers: int, *, saturates: bool) -> Iterator[list[Quantization]]:
    """Ways that differ in how much of one thing they do; within each the first that passes is enough."""
    if saturates:
        asked = replace(asked, reduce_range=True)
        yield [asked]
    yield [replace(asked, per_channel=not asked.per_channel)]
    if not asked.equalise:
        yield [replace(asked, equalise=True)]
    if isinstance(asked.keep_float, tuple):
        return
    counts = [n + asked.keep_float for n in KEPT if n < layers]
    yield [replace(asked, keep_float=n) for n in counts]
    if not asked.equalise:
        yield [replace(asked, equalise=True, keep_float=n) for n in counts]


def _options(one: Quantization) -> str:
    """As the command line takes them."""
    kept = one.keep_float if isinstance(one.keep_float, int) else ",".join(one.keep_float)
    said = [
        *(["--reduce-range"] if one.reduce_range else []),
        *([] if one.per_channel else ["--per-tensor"]), *(["--equalise"] if one.equalise else []),
        *([f"--keep-float {kept}"] if kept else []),
    ]  # fmt: skip
    return " ".join(said) or "one scale a channel (without --per-tensor)"
