"""What fusing did to a model, as values: what became what, what was left, and the proof that nothing changed."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape

from ..errors import VerificationError
from .agreement import Agreement, Comparison

_WIDTH = 116
"""Characters of a line of the summary; the report has all of it."""


@dataclass(frozen=True)
class Refusal:
    """Something that was left as it is, and why, in words."""

    where: str
    why: str


@dataclass(frozen=True, kw_only=True)
class GraphRefusal(Refusal):
    """A node of a graph that was left as it is.

    kind: the name of the kind of reason, one of a table (docs/graph.md). folds_if: what would have to differ.
    beside: the neighbours that it might have been one with. details: what the words are made of, as plain values.
    """

    kind: str
    folds_if: str
    beside: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a network is; `flops` (two a multiply-add) are for one image, None where no image size is known."""

    convolutions: int
    batch_norms: int
    parameters: int
    flops: int | None = None


@dataclass(frozen=True, kw_only=True)
class FusedLayer:
    """One convolution of the result and what it was made of; in a graph also what needs none, such as a scale.

    `branches` names the kinds of a block, and is empty for a plain convolution with batch normalisation. `tensor` is
    what it makes in a graph, alone or with other layers and sums; empty for a module. `multiplies` is False for what is
    written without a convolution or a matrix; `geometry` then says what that is.
    """

    name: str
    geometry: str
    branches: tuple[str, ...]
    before: Size
    after: Size
    tensor: str = ""
    multiplies: bool = True


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """A weight that several nodes shared and that became several, as what was folded into it differs.

    weight: its name before. readers: the nodes that read it. weights: how many it became. added_bytes: by how much more
        those take than it did alone.
    """

    weight: str
    readers: int
    weights: int
    added_bytes: int

    def __str__(self) -> str:
        became = f"{self.weights} that differ: {self.added_bytes:+,} bytes"
        return f"{self.weight}, one for {self.readers} nodes, becomes {became}"


@dataclass(frozen=True)
class Proof:
    """What was compared, and what could not be, with the reason."""

    agreement: Agreement
    unmeasured: tuple[Refusal, ...] = ()

    def __add__(self, other: Proof) -> Proof:
        mine, theirs = self.agreement, other.agreement
        return Proof(
            Agreement(mine.blocks + theirs.blocks, mine.end_to_end + theirs.end_to_end, mine.partial or theirs.partial),
            self.unmeasured + other.unmeasured,
        )


UNPROVED = Refusal("the whole result", "not compared with what it was made of: prove=False")


@dataclass(frozen=True, repr=False)
class FusionReport:
    """What was fused, what was not and why, how large the model was and is, and how far apart the two are.

    `agreement` holds every comparison, and is None where none was asked for; `unmeasured` says what was not compared,
    and why; `diverged` which shared weights became several. `print` gives a summary, `to_dict` everything.
    """

    layers: tuple[FusedLayer, ...]
    refusals: tuple[Refusal, ...]
    before: Size
    after: Size
    agreement: Agreement | None = None
    unmeasured: tuple[Refusal, ...] = ()
    diverged: tuple[Diverged, ...] = ()

    @property
    def blocks(self) -> tuple[FusedLayer, ...]:
        """The layers that were multi-branch blocks."""
        return tuple(layer for layer in self.layers if layer.branches)

    def with_agreement(self, agreement: Agreement) -> FusionReport:
        """The same report with the measured agreement."""
        return replace(self, agreement=agreement)

    def with_proof(self, proof: Proof | None) -> FusionReport:
        """The same report with what was measured and what was not; None: nothing was, because nobody asked."""
        if proof is None:
            return replace(self, agreement=None, unmeasured=(UNPROVED,))
        return replace(self, agreement=proof.agreement, unmeasured=proof.unmeasured)

    def with_flops(self, before: int, after: int) -> FusionReport:
        """The same report with the floating-point operations of one image."""
        return replace(self, before=replace(self.before, flops=before), after=replace(self.after, flops=after))

    def require(self, what: str = "the fused network") -> FusionReport:
        """The same report, which holds no failed comparison.

        Raises:
            VerificationError: a comparison failed; `error.report` is this report.
        """
        if self.agreement is not None and self.agreement.comparisons and not self.agreement.passed:
            raise VerificationError(f"{what}: {self.agreement.verdict}; nothing was written", self)
        return self

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {**asdict(self), "agreement": None if self.agreement is None else self.agreement.to_dict()}

    def __repr__(self) -> str:
        before, after = self.before.convolutions, self.after.convolutions
        proof = "not compared" if self.agreement is None else self.agreement.verdict.partition(":")[0]
        return f"<FusionReport: {len(self.layers)} layers fused, convolutions {before:,} -> {after:,}, {proof}>"

    def __str__(self) -> str:
        rows = _rows(self)
        return "\n".join(line for row in rows for line in _lines(*row))

    def _repr_html_(self) -> str:
        rows = _rows(self)
        cells = "".join(f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>" for label, value in rows)
        return f"<table>{cells}</table>"


def _rows(report: FusionReport) -> list[tuple[str, str]]:
    """What the summary says, line by line: a label and its value."""
    left, unmeasured = _counted("left as it is", report.refusals), _counted("not measured", report.unmeasured)
    return [("fused", _fused(report)), *_sizes(report), *_diverged(report), *_proof(report), *left, *unmeasured]


def _fused(report: FusionReport) -> str:
    if not report.layers:
        return "nothing"
    layers = [layer for layer in report.layers if layer.multiplies]
    made = Counter("multi-branch blocks" if layer.branches else "convolutions with BN" for layer in layers)
    said = [f"{' and '.join(f'{n} {kind}' for kind, n in made.items())} into single convolutions"] if made else []
    others = Counter(layer.geometry for layer in report.layers if not layer.multiplies)
    return ", ".join([*said, *(f"{n} tensor{'s' * (n > 1)} into {what}" for what, n in others.items())])


def _sizes(report: FusionReport) -> Iterator[tuple[str, str]]:
    for label, attribute in (
        ("convolutions", "convolutions"),
        ("batch norms", "batch_norms"),
        ("parameters", "parameters"),
        ("FLOPs an image", "flops"),
    ):
        before, after = getattr(report.before, attribute), getattr(report.after, attribute)
        if before is not None and after is not None:
            yield label, f"{before:,} -> {after:,}"


def _diverged(report: FusionReport) -> Iterator[tuple[str, str]]:
    """The shared weight that became most, and how many others became several."""
    if report.diverged:
        first, *others = sorted(report.diverged, key=lambda each: each.added_bytes, reverse=True)
        total = sum(each.added_bytes for each in report.diverged)
        rest = f"; {len(others)} more, {total:+,} bytes together" if others else ""
        yield "shared weights", f"{first}{rest}"


def _proof(report: FusionReport) -> Iterator[tuple[str, str]]:
    found = report.agreement
    if found is None or not found.comparisons:
        yield "proof", "none: nothing was compared"
        return
    failed = sum(not c.passed for c in found.comparisons)
    count = len(found.comparisons)
    yield "proof", f"NOT equal: {failed} of {count} comparisons failed" if failed else f"equal: all {count} comparisons"
    for label, worst in (("worst block", found.worst_block), ("worst end to end", found.worst_end_to_end)):
        if worst is not None:
            yield label, _compared(worst)


def _compared(found: Comparison) -> str:
    own = "" if found.own is None else f", the source's own error {found.own.to_scale:.1e}"
    return f"{found.place.removeprefix('end to end, ')}: {found.found}{own}, allowed {found.tolerance:.1e}"


def _counted(label: str, refusals: Sequence[Refusal]) -> list[tuple[str, str]]:
    """The most frequent kind of reason with how often and where it is first met, and how many there are besides."""
    kinds: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        kind = refusal.kind if isinstance(refusal, GraphRefusal) else refusal.why.partition(":")[0]
        kinds.setdefault(kind, []).append(refusal)
    if not kinds:
        return []
    first, *others = sorted(kinds.values(), key=len, reverse=True)
    rest = [("", f"and {sum(map(len, others))} more, for {len(others)} other reasons")] if others else []
    unless = f"; folds if {first[0].folds_if}" if isinstance(first[0], GraphRefusal) else ""
    return [(label, f"{_places(first)}: {first[0].why}{unless}"), *rest]


def _places(same: Sequence[Refusal]) -> str:
    first = same[0].where or "the model"
    return first if len(same) == 1 else f"{len(same)} places, first {first}"


def _lines(label: str, value: str) -> list[str]:
    """A row as one line, or as two where it is a reason; the report has all of it."""
    return textwrap.wrap(
        value, _WIDTH, initial_indent=f"  {label:<18}", subsequent_indent=" " * 20, max_lines=2, placeholder=" ..."
    )
