"""What an export leaves behind: what was asked for, what came of it, and whether it was proved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .proof.evidence import Evidence
from .settings import BuildSettings

SCHEMA = "repconv.export/1"
ENGINE_SCHEMA = "repconv.engine/1"
VERIFIED, NOT_RUN = "verified", "built, not run"


@dataclass(frozen=True)
class ExportRecord:
    """One artefact.

    outputs: the files written, the main one last, with sizes and SHA-256. source: its name, and SHA-256 of its file.
    onnx_sha256: of the ONNX form the artefact was made of, None where that is a program.
    fusion: convolutions and parameters before and after, None if fusing was declined.
    evidence: what running it showed, None where it cannot run here, for the reason `not_run`.
    stand_in: of what cannot run here, what running something in its place showed, and what that was.
    observed: settings read back from the artefact. details: more, by target and precision.
    """

    target: str
    settings: BuildSettings
    source: Mapping[str, object]
    outputs: tuple[Mapping[str, object], ...]
    onnx_sha256: str | None
    runtime: str
    input_shape: str
    evidence: Evidence | None
    not_run: str | None
    fusion: Mapping[str, object] | None
    observed: Mapping[str, str]
    details: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stand_in: Evidence | None = None
    stands_in: str = ""

    @property
    def verified(self) -> bool:
        """Whether it ran in its own runtime and agreed."""
        return self.evidence is not None and self.evidence.passed

    @property
    def status(self) -> str:
        """`verified` or `built, not run`; what ran and disagreed is never written."""
        return VERIFIED if self.verified else NOT_RUN

    @property
    def path(self) -> Path:
        """The main file."""
        return Path(str(self.outputs[-1]["path"]))

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.evidence is not None:
            return self.evidence.verdict
        shown = "" if self.stand_in is None else f"; {self.stands_in} is {self.stand_in.verdict}"
        return f"{NOT_RUN}: {self.not_run}{shown}"

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            "target": self.target,
            "status": self.status,
            "verified": self.verified,
            "not_run": self.not_run,
            "source": dict(self.source),
            "settings": self.settings.to_dict(),
            "observed": dict(self.observed),
            "runtime": self.runtime,
            "input_shape": self.input_shape,
            "onnx_sha256": self.onnx_sha256,
            "outputs": [dict(output) for output in self.outputs],
            "fusion": None if self.fusion is None else dict(self.fusion),
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
            "details": dict(self.details),
            "stand_in": None if self.stand_in is None else self.stand_in.to_dict(),
            "notes": list(self.notes),
        }
