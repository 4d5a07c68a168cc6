"""Engines of TensorRT and TensorRT-RTX: built for the GPU here, compared, loaded through their JSON, run and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from repconv.errors import BackendError, BuildError, VerificationError
from repconv.export import BuildSettings, Data, Span, export
from repconv.export.engines.builder import probe_engines
from repconv.export.runtimes.engine_runtime import gpu_here, open_engine
from repconv.export.targets import TARGETS
from repconv.files.held import temporary_folder

from ...harness.turns.timing import time_in_turns
from .given import AMOUNTS, CHECKPOINT, SHEET
from .running import Rows

IMAGES = AMOUNTS["cuda"].images
"""All are judged, but for int8, of which a half calibrates and the other half is judged."""
PRECISIONS = ("fp16", "int8", "fp32")
ROUNDS = 100


def engines(target: str) -> Rows:
    """The engines of a target, a row for each precision.

    Raises:
        BackendError, BuildError, SourceError, VerificationError: see `engine`.
    """
    for precision in PRECISIONS:
        with temporary_folder() as folder:
            yield engine(target, precision, folder)


def engine(target: str, precision: str, folder: Path) -> Mapping[str, object]:
    """Build an engine of the shipped network for 1 to 16 images in `folder`, and do with it all that can be done.

    `export` compares it with the unfused network on the shipped images. It is then opened through its JSON, run twice
    on one batch, which has to give the same scores, and timed with one image, the way to the GPU and back included.

    Raises:
        BackendError: see `capability_here`.
        BuildError, SourceError: it cannot be built, or not be loaded.
        VerificationError: it disagrees with the network, or with itself.
    """
    capability = capability_here(target)
    half = IMAGES // 2
    settings = BuildSettings(
        precision=precision,
        batch=Span(1, 4, 16),
        capabilities=(capability,),
        timing_cache=folder / "timing" if "timing_cache" in TARGETS[target].options else None,
    )
    data = (
        Data(calibrate=str(SHEET), calibration_images=half, images=half)
        if precision == "int8"
        else Data(evaluate=str(SHEET), images=IMAGES)
    )
    began = time.monotonic()
    record = export(CHECKPOINT, target, folder / "m.engine", settings, data, require_verified=True)
    seconds = time.monotonic() - began
    run = open_engine(record.path)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = x.half() if precision == "fp16" else x
    scores, again = (run(x)[0] for _ in range(2))
    if scores.shape != (3, 10) or not torch.allclose(scores, again, rtol=1e-3, atol=1e-4):
        raise VerificationError(
            f"{target}, {precision}: expected scores [3, 10], the same of the same images twice, got "
            f"{scores.tolist()} and {again.tolist()}"
        )
    timed = time_in_turns({"engine": lambda: run(x[:1])}, rounds=ROUNDS, warmup=10)["engine"]
    evidence = record.evidence
    assert evidence is not None  # noqa: S101  # what could not run would have been refused
    return {
        "target": target,
        "precision": precision,
        "runtime": record.runtime,
        "capability": capability,
        "observed": dict(record.observed),
        "bytes": record.path.stat().st_size,
        "export_s": seconds,
        "images": evidence.images,
        "max_error": evidence.max_error,
        "rms_error": evidence.rms_error,
        "top1_agreement": evidence.top1_agreement,
        "accuracy": evidence.accuracy,
        "accuracy_before": evidence.accuracy_before,
        "median_ms": timed.median_ms,
        "p95_ms": timed.p95_ms,
    }


def capability_here(target: str) -> str:
    """The compute capability of the GPU here, for which `target` has to build.

    Raises:
        BackendError: the target is missing, builds nothing for this GPU, or there is no GPU.
        BuildError: it is installed and cannot build.
    """
    row = TARGETS[target]
    found = probe_engines(target)
    if found.missing:
        raise BackendError(f"{target} is not installed; install it with: {row.install}")
    if found.problem is not None:
        raise BuildError(f"{target} is installed, but cannot build: {found.problem}")
    here = gpu_here()
    if here is None:
        raise BackendError(f"{target} runs on a GPU, and PyTorch sees none")
    if "capabilities" in row.options and here["capability"] not in found.capabilities:
        known = ", ".join(found.capabilities)
        raise BackendError(f"{target} builds for {known}, not for this GPU, {here['name']} ({here['capability']})")
    return here["capability"]
