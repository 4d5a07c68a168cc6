"""Forms of sources as files that backends load."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from repconv.errors import OutputError
from repconv.export.artefacts.loaded import Job
from repconv.export.artefacts.runtime import build
from repconv.export.inputs.images import random_images
from repconv.export.int8.saturation import saturates_here
from repconv.export.proof.tolerances import DTYPES
from repconv.export.runtimes.engine_runtime import gpu_here
from repconv.export.settings import DEFAULT_CAPABILITIES, BuildSettings, Quantization, Span
from repconv.export.subject import Subject
from repconv.export.targets import TARGETS

from ..backends import Backend
from ..forms import BenchForm, Given

CALIBRATION_IMAGES = 32
"""Noise, for int8: its times are those of any int8 file of the network."""


@dataclass(frozen=True)
class BuiltForm:
    """A form built for a backend: the job its process is given, the bytes of what was built, what was read back."""

    job: Job
    bytes: int
    observed: dict[str, str] = field(default_factory=dict)


@dataclass
class Workshop:
    """A folder in which forms are built; a form's ONNX model or program is made once.

    folder: of temporary files.
    """

    folder: Path
    _subjects: dict[tuple[str, str, int, str], Subject] = field(default_factory=dict)
    _count: int = 0

    def stem(self) -> str:
        """A file name that is new."""
        self._count += 1
        return f"subject_{self._count}"

    def input(self, given: Given, batch: int, seed: int) -> tuple[Path, Tensor]:
        """Noise [batch, c, h, w] for a source, and its file."""
        import numpy as np

        x = torch.randn(batch, *given.size, generator=torch.Generator().manual_seed(seed))
        path = self.folder / f"{self.stem()}.npy"
        np.save(path, x.numpy())
        return path, x

    def subject(self, form: BenchForm, batch: int, reads: str) -> Subject:
        """The form as a target reads it, float32."""
        key = (form.given.label, form.name, batch, reads)
        if key not in self._subjects:
            self._subjects[key] = form.subject(batch, reads)
        return self._subjects[key]

    def build(
        self, form: BenchForm, backend: Backend, batch: int, precision: str, x: Tensor, x_file: Path
    ) -> BuiltForm:
        """A form for a backend.

        Raises:
            SourceError: the backend cannot take the form.
            BackendError: a package is missing.
            BuildError: the exporter or the backend cannot build it.
        """
        if backend.target is None:
            file, count = form.save_for_torch(self.folder, self.stem(), x)
            return BuiltForm(
                Job(file=file, input=x_file, precision=precision, own_code=form.own_code),
                count * DTYPES[precision].itemsize,
            )
        subject = self.subject(form, batch, TARGETS[backend.target].reads)
        spans = tuple(map(Span.of, form.given.size[1:]))
        gpu = gpu_here()
        settings = BuildSettings(
            precision,
            Span.of(batch),
            spans,
            fp32_io=precision == "bf16" and not backend.takes_bf16,
            capabilities=DEFAULT_CAPABILITIES if gpu is None else (gpu["capability"],),
            quantization=Quantization(reduce_range=precision == "int8" and saturates_here(backend.target)),
        )
        calibration = calibration_of(form.given, batch) if precision == "int8" else None
        built = build(subject.model, backend.target, settings, spans, calibration).make()
        stem = self.stem()
        for suffix, content in built.files.items():
            self._write(stem + suffix, content)
        job = Job(
            file=self.folder / f"{stem}{TARGETS[backend.target].suffix}",
            input=x_file,
            precision=precision,
            own_code=None,
            target=backend.target,
        )
        return BuiltForm(job, sum(map(len, built.files.values())), dict(built.observed))

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise OutputError(
                f"cannot write temporary files in {self.folder.parent} ({error.strerror}); TMPDIR names another folder"
            ) from error


def calibration_of(given: Given, batch: int) -> list[Tensor]:
    """Batches of noise, as normalised images where the source says how they are."""
    known = given.source.normalization
    images = random_images(given.size, known, max(batch, CALIBRATION_IMAGES), pixels=known is not None).inputs
    return [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]
