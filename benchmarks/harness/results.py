"""What a benchmark found, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from repconv.blocks.inspection import Inspection
from repconv.export.proof.evidence import Evidence
from repconv.proof.report import FusionReport

from .machine.gpu import GpuState
from .machine.machine import Others
from .settings import BenchSettings
from .turns.timing import LatencyReport, Ratio

SCHEMA = "repconv.bench/1"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A source: its label in the rows, the file it came from, what fusing made of it, and what is in it.

    inspection: layers and gates, of PyTorch networks. report: with errors block by block where they were measured.
    """

    label: str
    name: str
    size: tuple[int, ...]
    bytes: int | None
    sha256: str | None
    report: FusionReport | None
    inspection: Inspection | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "label": self.label,
            "name": self.name,
            "input": list(self.size),
            "bytes": self.bytes,
            "sha256": self.sha256,
            "notes": list(self.notes),
            "report": None if self.report is None else self.report.to_dict(),
        }


@dataclass(frozen=True, order=True, kw_only=True)
class Key:
    """What a row is of."""

    source: str
    form: str
    backend: str
    batch: int
    precision: str

    @property
    def name(self) -> str:
        """In one line."""
        return f"{self.source}, {self.form}, {self.backend}, batch {self.batch}, {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One subject.

    latency: None where it could not be measured, for the reason `failure`.
    memory_bytes: the most that loading and calling took; None where it cannot be told.
    artefact_bytes: of the files built, or of the weights PyTorch holds. load_s: of loading it once.
    evidence: how far it is from the source; None of forms that are other networks.
    observed: read back from the runtime and the artefact.
    """

    key: Key
    device: str
    latency: LatencyReport | None
    artefact_bytes: int
    memory_bytes: int | None = None
    load_s: float | None = None
    evidence: Evidence | None = None
    observed: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def same(self) -> bool | None:
        """Whether it gives what its source gives; None where that is not asked, or it did not run."""
        return None if self.evidence is None else self.evidence.passed

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        latency = self.latency
        return {
            **vars(self.key),
            "device": self.device,
            "failure": self.failure,
            "images_per_s": None if latency is None else latency.throughput(self.key.batch),
            "artefact_bytes": self.artefact_bytes,
            "memory_bytes": self.memory_bytes,
            "load_s": self.load_s,
            "same": self.same,
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
            "observed": dict(self.observed),
            "warnings": list(self.warnings),
            "latency": None if latency is None else latency.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The ratio of two rows' medians: `over` over `under`, on one backend."""

    over: Key
    under: Key
    ratio: Ratio
    warning: str | None

    @property
    def name(self) -> str:
        """Such as `unfused / fused`."""
        if self.over.source == self.under.source:
            return f"{self.over.form} / {self.under.form}"
        return f"{self.over.source} {self.over.form} / {self.under.source} {self.under.form}"

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "name": self.name,
            "over": vars(self.over),
            "under": vars(self.under),
            **self.ratio.to_dict(),
            "warning": self.warning,
        }


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Everything.

    others: who else used the processor, None where nothing tells. gpu: looks at it while it worked.
    warnings: about the machine. notes: what was not measured and why. seconds: it took.
    """

    sources: tuple[Measured, ...]
    settings: BenchSettings
    rows: tuple[Row, ...]
    compared: tuple[Compared, ...]
    environment: Mapping[str, object]
    others: Others | None = None
    gpu: tuple[GpuState, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def differing(self) -> list[Row]:
        """Rows that do not give what their source gives."""
        return [row for row in self.rows if row.same is False]

    @property
    def failed(self) -> list[Row]:
        """Rows that could not be measured."""
        return [row for row in self.rows if row.failure is not None]

    @property
    def all_warnings(self) -> list[str]:
        """About the machine, subjects and ratios, each once."""
        found = list(self.warnings)
        found += [f"{row.key.name}: {said}" for row in self.rows for said in row.warnings]
        found += [c.warning for c in self.compared if c.warning is not None]
        return list(dict.fromkeys(found))

    def row(self, key: Key) -> Row:
        """The row of a key."""
        return next(row for row in self.rows if row.key == key)

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "sources": [source.to_dict() for source in self.sources],
            "settings": self.settings.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "ratios": [c.to_dict() for c in self.compared],
            "environment": dict(self.environment),
            "other_load": None if self.others is None else vars(self.others),
            "gpu": [state.to_dict() for state in self.gpu],
            "warnings": self.all_warnings,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def pairs(keys: Sequence[Key], baselines: Sequence[str]) -> list[tuple[Key, Key]]:
    """Which rows are compared, on each backend.

    Unfused over fused, fused over what it stands against, the fused form of every other source over the first's.

    Args:
        keys: of the rows that were measured.
        baselines: forms a fused one is compared with, besides unfused.
    """
    known = set(keys)
    sources = list(dict.fromkeys(key.source for key in keys))
    found = []
    for key in keys:
        if key.form != "fused":
            continue
        unfused = Key(source=key.source, form="unfused", backend=key.backend, batch=key.batch, precision=key.precision)
        found.append((unfused, key))
        found += [
            (key, Key(source=key.source, form=form, backend=key.backend, batch=key.batch, precision=key.precision))
            for form in baselines
        ]
        if key.source != sources[0]:
            found.append(
                (
                    key,
                    Key(source=sources[0], form="fused", backend=key.backend, batch=key.batch, precision=key.precision),
                )
            )
    return [(over, under) for over, under in found if over in known and under in known]
