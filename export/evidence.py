"""How far an artefact, run in its own runtime, is from the network it was made of."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repconv.agreement import Comparison, compare_tensors
from repconv.checkpoint import Normalization
from repconv.errors import SourceError, VerificationError
from repconv.files import whole_file
from repconv.graph.onnx_facts import first_line
from repconv.leaves import leaves

from .images import Images, random_images
from .settings import BuildSettings, Span
from .subject import Subject
from .tolerances import DTYPES, Tolerance, tolerance_for

Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Probe:
    """One call: what the artefact is given, what the network itself takes, and class numbers where they are known."""

    given: Tensor
    inputs: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Evidence:
    """What running an artefact showed; errors are relative to the root mean square of the reference's output.

    runtime: what ran it, with its version and device. inputs: what it ran on, in words; images: how many.
    comparisons: output by output and call by call, the largest difference against its tolerance.
    mean_error, rms_error: over everything, of the output where they are largest.
    top1_agreement: share of images for which the largest output is that of the network; None where outputs are no
    class scores. accuracy, accuracy_before: share of labels met by the artefact and by the network.
    observed: settings read back from the runtime.
    """

    runtime: str
    inputs: str
    images: int
    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]
    mean_error: float
    rms_error: float
    top1_agreement: float | None = None
    accuracy: float | None = None
    accuracy_before: float | None = None
    observed: dict[str, str] = field(default_factory=dict)
    worst: tuple[Probe, Tensor, Tensor] | None = None

    @property
    def finite(self) -> bool:
        """False where the artefact gives NaN or Inf."""
        return all(c.error.finite for c in self.comparisons)

    @property
    def max_error(self) -> float:
        """The largest difference."""
        return max((c.error.to_scale for c in self.comparisons), default=math.inf)

    @property
    def passed(self) -> bool:
        """True if every comparison is within its tolerance."""
        if not self.comparisons or not self.finite or any(c.mismatch for c in self.comparisons):
            return False
        return self.rms_error <= self.tolerance.limit if self._by_rms else all(c.passed for c in self.comparisons)

    @property
    def _by_rms(self) -> bool:
        return self.tolerance.measure == "rms"

    @property
    def verdict(self) -> str:
        """One sentence."""
        said = f"{self.runtime}, on {self.inputs}"
        odd = next((c for c in self.comparisons if c.mismatch or not c.error.finite), None)
        if odd is not None:
            return f"NOT equal in {said}: {odd.found} at {odd.place}"
        top1 = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.1%}"
        numbers = f"max {self.max_error:.1e}, rms {self.rms_error:.1e}, mean {self.mean_error:.1e}"
        errors = f"errors of the output's scale: {numbers}"
        if self._by_rms:
            allowed = f"rms allowed {self.tolerance.limit:.1e} ({self.tolerance.reason})"
        else:
            worst = max(self.comparisons, key=lambda c: c.error.to_scale / c.tolerance)
            allowed = f"max allowed {worst.tolerance:.1e} ({worst.reason})"
        return f"{'equal' if self.passed else 'NOT equal'} in {said}: {errors}{top1}; {allowed}"

    def require(self, what: str) -> None:
        """Insist that it passed.

        Raises:
            VerificationError: it did not; the message is the verdict.
        """
        if not self.passed:
            raise VerificationError(f"{what}: {self.verdict}; nothing was written")

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON; a number that is not finite is None."""
        numbers = {
            "max_error": self.max_error, "mean_error": self.mean_error, "rms_error": self.rms_error,
            "top1_agreement": self.top1_agreement, "accuracy": self.accuracy, "accuracy_before": self.accuracy_before,
        }  # fmt: skip
        return {
            "passed": self.passed, "verdict": self.verdict, "runtime": self.runtime, "observed": self.observed,
            "inputs": self.inputs, "images": self.images, "tolerance": vars(self.tolerance), "finite": self.finite,
            **{key: None if v is None or not math.isfinite(v) else v for key, v in numbers.items()},
            "calls": [
                {"shape": c.shape, "output": c.path, "error": c.error.to_scale if c.error.finite else None,
                 "own": c.own.to_scale if c.own else None, "tolerance": c.tolerance, "reason": c.reason,
                 "mismatch": c.mismatch}
                for c in self.comparisons
            ],
        }  # fmt: skip

    def dump(self, path: Path) -> None:
        """Write the call that was furthest off: `given`, `expected`, `got`.

        Raises:
            OutputError: it cannot be written.
        """
        if self.worst is None:
            return
        probe, wanted, got = self.worst
        with whole_file(path) as stream:
            np.savez(stream, given=probe.given.numpy(), expected=wanted.numpy(), got=got.float().numpy())


def probes(
    subject: Subject, settings: BuildSettings, images: Images | None, *, in_half: bool = False, seed: int = 0
) -> list[Probe]:
    """Calls that use every size asked for: the images in batches of the usual size, and noise at both ends of ranges.

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
    batch, (height, width) = settings.batch, settings.image or tuple(map(Span.of, subject.size[1:]))
    if images is None:
        images = random_images(subject.size, norm, 2 * batch.usual, pixels=pre is not None, seed=seed)
    if len(images) < batch.usual and not batch.fixed:
        batch = Span(1, len(images), batch.most)
    if len(images) < batch.usual:
        raise SourceError(f"{images.origin} holds {len(images)} images, fewer than one batch of {batch.usual}")
    starts = range(0, len(images) - batch.usual + 1, batch.usual)
    found = [_probe(images.part(start, start + batch.usual), settings, in_half) for start in starts]
    spans = (settings.batch, height, width)
    for ends in ([s.least for s in spans], [s.most for s in spans]):
        if ends != [s.usual for s in spans]:
            count, h, w = ends
            drawn = random_images((subject.size[0], h, w), norm, count, pixels=pre is not None, seed=seed + count)
            found.append(_probe(drawn, settings, in_half))
    return found


def normalization_of(subject: Subject, settings: BuildSettings) -> Normalization | None:
    """What images in [0, 1] go through: inside the artefact if it preprocesses, else before it."""
    pre = settings.preprocessing
    return subject.normalization if pre is None else Normalization(pre.mean, pre.std)


def _probe(images: Images, settings: BuildSettings, in_half: bool) -> Probe:
    given = images.given_to(settings.preprocessing)
    if in_half and given.is_floating_point():
        given = given.to(DTYPES[settings.precision])
    return Probe(given, images.inputs, images.labels)


def measure(
    subject: Subject,
    run: Run,
    calls: Sequence[Probe],
    settings: BuildSettings,
    *,
    runtime: str,
    origin: str,
    observed: dict[str, str] | None = None,
) -> Evidence:
    """Run an artefact and the network it was made of, and judge every output.

    Args:
        subject: what it was made of.
        run: the artefact in its runtime.
        calls: of `probes`.
        settings: what was asked for.
        runtime: what runs it, in words.
        origin: what the calls are, in words.
        observed: settings read back from the runtime.

    Raises:
        SourceError: the network itself cannot run a size that was asked for.
        VerificationError: the artefact cannot.
    """
    tolerance = tolerance_for(settings.precision, settings.tolerance)
    comparisons: list[Comparison] = []
    totals: dict[int, list[float]] = {}
    agreed, right, right_before, scored, labelled = 0, 0, 0, 0, 0
    worst: tuple[Probe, Tensor, Tensor] | None = None
    for probe in calls:
        wanted, got = _expected(subject, probe), _given(run, probe, runtime)
        judged = list(_judged(subject, probe, wanted, got, settings, tolerance))
        if worst is None or _largest(judged) > _largest(comparisons):
            worst = (probe, wanted[0], got[0]) if got else worst
        comparisons += judged
        for index, (a, b) in enumerate(zip(wanted, got, strict=False)):
            if a.shape == b.shape:
                error = (a.double() - b.double()).abs()
                sums = totals.setdefault(index, [0.0, 0.0, 0.0, 0.0])
                for i, value in enumerate((error.sum(), error.square().sum(), a.double().square().sum())):
                    sums[i] += float(value)
                sums[3] += error.numel()
        if len(wanted) == len(got) == 1 and wanted[0].dim() == 2 and wanted[0].shape == got[0].shape:
            before, after = wanted[0].argmax(1), got[0].argmax(1)
            scored += len(before)
            agreed += int((before == after).sum())
            if probe.labels is not None:
                labelled += len(before)
                right += int((after == probe.labels).sum())
                right_before += int((before == probe.labels).sum())
    means = [
        (s[0] / s[3] / _root(s[2] / s[3]), _root(s[1] / s[3]) / _root(s[2] / s[3])) for s in totals.values() if s[3]
    ]
    return Evidence(
        runtime, origin, sum(len(p.inputs) for p in calls), tolerance, tuple(comparisons),
        max((m for m, _ in means), default=math.inf), max((r for _, r in means), default=math.inf),
        agreed / scored if scored else None, right / labelled if labelled else None,
        right_before / labelled if labelled else None, observed or {}, worst,
    )  # fmt: skip


def _expected(subject: Subject, probe: Probe) -> tuple[Tensor, ...]:
    try:
        return subject.reference(probe.inputs)
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


def _root(value: float) -> float:
    return math.sqrt(value) or 1.0 if value == value else math.nan  # NaN is not itself


def _largest(comparisons: Sequence[Comparison]) -> float:
    return max((c.error.to_scale for c in comparisons), default=-1.0)


def _judged(
    subject: Subject, probe: Probe, wanted: Sequence[Tensor], got: Sequence[Tensor], settings: BuildSettings,
    tolerance: Tolerance,
) -> Iterator[Comparison]:  # fmt: skip
    """One comparison an output; the network's own error is computed only where the floor does not do."""
    dtype = DTYPES[settings.precision]
    known = torch.float64 if subject.exact else torch.float32
    shape = tuple(probe.given.shape)
    where = "x".join(map(str, shape))
    own: Sequence[Tensor] | None = None
    for index in range(max(len(wanted), len(got))):
        a = wanted[index] if index < len(wanted) else None
        b = got[index] if index < len(got) else None
        found = compare_tensors(a, b, None, dtype, known)
        if found.mismatch is None and tolerance.measure == "max" and settings.tolerance is not None:
            found = replace(found, tolerance=tolerance.limit, reason=tolerance.reason)
        elif found.mismatch is None and tolerance.measure == "max" and not found.passed:
            own = own if own is not None else _own(subject, probe.inputs, dtype)
            found = found if own is None else compare_tensors(a, b, own[index], dtype, known)
        yield replace(found, where=where, shape=shape, path=f"[{index}]" if len(wanted) > 1 else "")


def _own(subject: Subject, inputs: Tensor, dtype: torch.dtype) -> Sequence[Tensor] | None:
    """What the unfused network gives in `dtype`; None where PyTorch cannot run it so."""
    if subject.network is None:
        return None
    network = copy.deepcopy(subject.network).to(dtype)
    try:
        with torch.no_grad():
            return tuple(t for _, t in leaves(network(inputs.to(dtype))))
    except RuntimeError:
        return None
