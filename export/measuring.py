"""Running an artefact and the network it was made of on the same images."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from repconv.errors import SourceError, VerificationError, first_line
from repconv.proof.agreement import Comparison
from repconv.proof.comparing import compare_tensors
from repconv.proof.decisions import Recorded
from repconv.proof.float64 import full_precision
from repconv.proof.leaves import leaves
from repconv.proof.pooling import compare_calls

from .inputs.images import Images, random_images
from .proof.classes import ClassChange
from .proof.evidence import Evidence, Probe
from .proof.tolerances import DTYPES, RUNTIME_FACTOR, Tolerance, tolerance_for
from .settings import BuildSettings, Span
from .subject import Reference, Subject, normalization_of

Run = Callable[[Tensor], Sequence[Tensor]]

JUDGED_IMAGES = 256
"""Images whose outputs are compared number by number with the float64 network; of more, top-1 and accuracy are counted
against the network in float32, which takes a fifth of the time."""


def probe_calls(
    subject: Subject, settings: BuildSettings, images: Images | None, *, in_half: bool = False, seed: int = 0
) -> list[Probe]:
    """Calls of every size asked for: noise at both ends of ranges, then the images in batches of the usual size.

    Args:
        subject: what was exported.
        settings: what was asked for.
        images: to run it on; None: noise.
        in_half: whether the artefact takes half precision.
        seed: of the noise.

    Raises:
        SourceError: fewer images than one fixed batch, or an artefact that takes pixels and images without.
    """
    pre, norm = settings.preprocessing, normalization_of(subject, settings)
    batch, sides = settings.batch, settings.sides(subject.size)
    if images is None:
        images = random_images(subject.size, norm, 2 * batch.usual, pixels=pre is not None, seed=seed)
    if len(images) < batch.usual and not batch.fixed:
        batch = Span(1, len(images), batch.most)
    if len(images) < batch.usual:
        raise SourceError(f"{images.origin} holds {len(images)} images, fewer than one batch of {batch.usual}")
    found: list[Probe] = []
    spans = (settings.batch, *sides)
    for ends in ([s.least for s in spans], [s.most for s in spans]):
        if ends != [s.usual for s in spans]:
            count, *size = ends
            drawn = random_images((subject.size[0], *size), norm, count, pixels=pre is not None, seed=seed + count)
            found.append(_probe(drawn, settings, in_half))
    starts = range(0, len(images) - batch.usual + 1, batch.usual)
    return found + [_probe(images.part(start, start + batch.usual), settings, in_half) for start in starts]


def _probe(images: Images, settings: BuildSettings, in_half: bool) -> Probe:
    given = images.given_to(settings.preprocessing)
    if in_half and given.is_floating_point():
        given = given.to(DTYPES[settings.precision])
    return Probe(given, images.inputs, images.labels)


@dataclass(kw_only=True)
class _Errors:
    """Sums over one output: of errors, of their squares, of the squares of what is right, and how many."""

    absolute: float = 0.0
    squares: float = 0.0
    reference: float = 0.0
    count: int = 0

    def add(self, wanted: Tensor, got: Tensor) -> None:
        error = (wanted.double() - got.double()).abs()
        self.absolute += float(error.sum())
        self.squares += float(error.square().sum())
        self.reference += float(wanted.double().square().sum())
        self.count += error.numel()

    def relative(self) -> tuple[float, float]:
        """Mean and rms error over the rms of what is right."""
        if not self.count or not math.isfinite(self.squares):
            return math.inf, math.inf
        scale = math.sqrt(self.reference / self.count) or 1.0
        return self.absolute / self.count / scale, math.sqrt(self.squares / self.count) / scale


@dataclass(kw_only=True)
class _Scores:
    """Images whose largest output was compared, and how many agreed or met their label."""

    images: int = 0
    agreed: int = 0
    labelled: int = 0
    right: int = 0
    right_before: int = 0
    lost: int = 0
    gained: int = 0

    def add(self, wanted: Sequence[Tensor], got: Sequence[Tensor], labels: Tensor | None) -> None:
        if not (len(wanted) == len(got) == 1 and wanted[0].dim() == 2 and wanted[0].shape == got[0].shape):
            return
        before, after = wanted[0].argmax(1), got[0].argmax(1)
        self.images += len(before)
        self.agreed += int((before == after).sum())
        if labels is not None:
            self.labelled += len(before)
            self.right += int((after == labels).sum())
            self.right_before += int((before == labels).sum())
            self.lost += int(((before == labels) & (after != labels)).sum())
            self.gained += int(((before != labels) & (after == labels)).sum())

    def change(self, settings: BuildSettings) -> ClassChange | None:
        """What is judged of it: of int8, whose numbers may be far off without any class changing, or the reverse."""
        if settings.precision != "int8" or not self.images:
            return None
        changed = self.images - self.agreed
        return ClassChange(
            images=self.images,
            changed=changed,
            labelled=self.labelled,
            lost=self.lost,
            gained=self.gained,
            max_changed=settings.max_changed,
            max_lost=settings.max_lost,
        )


@dataclass(kw_only=True)
class _Found:
    """What was seen so far."""

    comparisons: list[Comparison] = field(default_factory=list)
    errors: dict[int, _Errors] = field(default_factory=dict)
    scores: _Scores = field(default_factory=_Scores)
    judged: int = 0
    compared: list[Probe] = field(default_factory=list)
    worst: tuple[Probe, Tensor, Tensor] | None = None


@full_precision()
def compare_with_source(
    subject: Subject,
    run: Run,
    calls: Sequence[Probe],
    settings: BuildSettings,
    *,
    runtime: str,
    origin: str,
    observed: Mapping[str, str] | None = None,
) -> Evidence:
    """Run an artefact and the network it was made of, and judge every output.

    Args:
        subject: what it was made of.
        run: the artefact in its runtime.
        calls: of `probe_calls`. The first `JUDGED_IMAGES` images are compared number by number.
        settings: what was asked for.
        runtime: what runs it, in words.
        origin: what the calls are, in words.
        observed: settings read back from the runtime.

    Raises:
        SourceError: the network itself cannot run a size that was asked for.
        VerificationError: the artefact cannot, or gives NaN or Inf for an image that is only counted.
    """
    tolerance = tolerance_for(settings.precision, settings.tolerance)
    found = _Found()
    for probe in calls:
        judge = found.judged < JUDGED_IMAGES
        wanted = _expected(subject, probe, subject.reference if judge else subject.in_float32)
        got = _given(run, probe, runtime)
        found.scores.add(wanted, got, probe.labels)
        if judge:
            _judge(found, subject, probe, wanted, got, settings, tolerance)
        elif not all(bool(torch.isfinite(t).all()) for t in got):
            raise VerificationError(f"{runtime} gives NaN or Inf on {origin}; nothing was written")
    by_chance = any(_may_be_chance(c) for c in found.comparisons) and settings.tolerance is None
    if by_chance and settings.precision == "fp32":  # half types have floors so wide that a call alone tells
        found.comparisons = list(_judged_together(subject, run, found.compared, settings, runtime))
    relative = [errors.relative() for errors in found.errors.values()]
    scores = found.scores
    return Evidence(
        runtime=runtime,
        inputs=origin,
        images=sum(len(p.inputs) for p in calls),
        judged=found.judged,
        tolerance=tolerance,
        comparisons=tuple(found.comparisons),
        mean_error=max((mean for mean, _ in relative), default=math.inf),
        rms_error=max((rms for _, rms in relative), default=math.inf),
        top1_agreement=scores.agreed / scores.images if scores.images else None,
        accuracy=scores.right / scores.labelled if scores.labelled else None,
        accuracy_before=scores.right_before / scores.labelled if scores.labelled else None,
        labelled=scores.labelled,
        observed=dict(observed or {}),
        worst=found.worst,
        classes=scores.change(settings),
    )


def _judge(
    found: _Found,
    subject: Subject,
    probe: Probe,
    wanted: Sequence[Tensor],
    got: Sequence[Tensor],
    settings: BuildSettings,
    tolerance: Tolerance,
) -> None:
    """Compare one call number by number."""
    judged = list(_judged(subject, probe, wanted, got, settings, tolerance))
    if got and (found.worst is None or _largest(judged) > _largest(found.comparisons)):
        found.worst = (probe, wanted[0], got[0])
    found.comparisons += judged
    found.compared.append(probe)
    found.judged += len(probe.inputs)
    for index, (a, b) in enumerate(zip(wanted, got, strict=False)):
        if a.shape == b.shape:
            found.errors.setdefault(index, _Errors()).add(a, b)


def _may_be_chance(found: Comparison) -> bool:
    """Whether a call is off, but not by so much that more calls could not tell otherwise."""
    return not found.passed and found.own is not None and found.undecided is None and found.error.finite


def _judged_together(
    subject: Subject, run: Run, calls: Sequence[Probe], settings: BuildSettings, runtime: str
) -> tuple[Comparison, ...]:
    """The comparisons of all calls, and of more on noise while the verdict is open, by the test of `compare_calls`."""
    tolerance = tolerance_for(settings.precision)
    counted = itertools.count()

    def compare(probe: Probe) -> list[Comparison]:
        index = next(counted)
        if index >= len(calls):
            norm = normalization_of(subject, settings)
            (count, c, h, w), pixels = probe.inputs.shape, settings.preprocessing is not None
            drawn = random_images((c, h, w), norm, count, pixels=pixels, seed=1000 + index)
            probe = _probe(drawn, settings, probe.given.dtype == DTYPES[settings.precision])
        wanted, got = _expected(subject, probe, subject.reference), _given(run, probe, runtime)
        return list(_judged(subject, probe, wanted, got, settings, tolerance, always_own=True))

    return compare_calls(compare, calls)


def _largest(comparisons: Sequence[Comparison]) -> float:
    return max((c.error.to_scale for c in comparisons), default=-1.0)


def _expected(subject: Subject, probe: Probe, network: Reference) -> tuple[Tensor, ...]:
    try:
        return network(probe.inputs)
    except Exception as error:  # it runs the user's own code
        shape = "x".join(map(str, probe.inputs.shape))
        raise SourceError(f"{subject.name} itself cannot run an input of {shape} ({first_line(error)})") from error


def _given(run: Run, probe: Probe, runtime: str) -> tuple[Tensor, ...]:
    try:
        return tuple(run(probe.given))
    except Exception as error:  # runtimes raise a type a failure
        shape = "x".join(map(str, probe.given.shape))
        raise VerificationError(
            f"{runtime} cannot run an input of {shape}, which was asked for ({first_line(error)}); nothing was written"
        ) from error


def _judged(
    subject: Subject,
    probe: Probe,
    wanted: Sequence[Tensor],
    got: Sequence[Tensor],
    settings: BuildSettings,
    tolerance: Tolerance,
    *,
    always_own: bool = False,
) -> Iterator[Comparison]:
    """One comparison an output; the network's own error is computed where the floor does not do, or always."""
    dtype = DTYPES[settings.precision]
    known = torch.float64 if subject.exact else torch.float32
    shape = tuple(probe.given.shape)
    where = "x".join(map(str, shape))
    own: Sequence[Tensor] | None = None
    types: Collection[torch.dtype] = ()
    for index in range(max(len(wanted), len(got))):
        a = wanted[index] if index < len(wanted) else None
        b = got[index] if index < len(got) else None
        found = compare_tensors(a, b, None, dtype, known)
        if found.mismatch is None and tolerance.measure == "max" and settings.tolerance is not None:
            found = replace(found, tolerance=tolerance.limit, reason=tolerance.reason)
        elif found.mismatch is None and tolerance.measure == "max" and (always_own or not found.passed):
            if own is None:
                own, types = _own(subject, probe.inputs, dtype)
            found = found if own is None else _with_own(compare_tensors(a, b, own[index], dtype, known, types))
        yield replace(found, where=where, shape=shape, path=f"[{index}]" if len(wanted) > 1 else "")


def _with_own(found: Comparison) -> Comparison:
    """The tolerance an own error gives, where that is more."""
    if found.own is None or not found.own.finite or RUNTIME_FACTOR * found.own.to_scale <= found.tolerance:
        return found
    reason = f"{RUNTIME_FACTOR:g} x the unfused network's own error in {found.dtype}"
    return replace(found, tolerance=min(RUNTIME_FACTOR * found.own.to_scale, found.ceiling), reason=reason)


def _own(
    subject: Subject, inputs: Tensor, dtype: torch.dtype
) -> tuple[Sequence[Tensor] | None, Collection[torch.dtype]]:
    """What the unfused network gives in `dtype`, None where PyTorch cannot run it so; the types it computes in."""
    if subject.network is None:
        return None, ()
    network = copy.deepcopy(subject.network).to(dtype)
    try:
        with torch.no_grad(), Recorded() as seen:
            return tuple(t for _, t in leaves(network(inputs.to(dtype)))), seen.types
    except RuntimeError:
        return None, ()
