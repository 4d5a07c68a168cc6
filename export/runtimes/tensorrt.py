"""Engines of TensorRT and TensorRT-RTX, each with a JSON beside it that is checked before it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from repconv.files.record import installed, versions
from repconv.sources.source import Input

from ..artefacts.artefact import Artefact, opaque_artefact, taken_type
from ..artefacts.built import MADE_OF, Built, Lowered, Provenance, Run
from ..artefacts.cuda import cuda_graph, event_clock
from ..artefacts.loaded import Array, How, Job, Loaded, as_arrays
from ..artefacts.runtime import Diagnosis, Runtime
from ..engines.builder import build_engine, probe_engines
from ..onnx.lower import lower
from ..proof.tolerances import DTYPES
from ..record import ENGINE_SCHEMA
from ..settings import BuildSettings, Span
from ..targets import Target
from .engine_runtime import engine_function, gpu_here, load_engine, open_engine, read_sidecar, why_not_run
from .onnx import loaded, runnable


def build(
    target: Target,
    network: onnx.ModelProto,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    calibration: Sequence[Tensor] | None,
) -> Lowered:
    """See `Runtime.build`. The very ONNX model that the engine's parser reads runs first."""
    model, quantized = lower(network, settings, calibration, int32_bias=False)

    @cache
    def make() -> Built:
        return build_engine(model, target.name, settings, spans)

    def load() -> Built:
        built = make()
        problem = why_not_run(target.name) or _other_gpu(built)
        run: Run | None = None if problem else engine_function(built.files[target.suffix], target.name)
        return replace(built, run=run, not_run=problem)

    def shown() -> Built:
        own = loaded(model, settings.precision, exact_integers=True)
        return replace(runnable(own, model, settings.precision), stands_in=MADE_OF)

    return Lowered(model=model, quantized=quantized, make=make, load=load, shown=shown)


def _other_gpu(built: Built) -> str | None:
    capabilities, gpu = built.details["capabilities"], gpu_here()
    if not capabilities or gpu is None or gpu["capability"] in str(capabilities):
        return None
    return f"this GPU is {gpu['capability']}, the engine is for others"


def _beside(target: Target, made: Provenance, built: Built) -> Mapping[str, bytes]:
    """What is checked before an engine is loaded."""
    content = built.files[target.suffix]
    told = {
        "schema": ENGINE_SCHEMA, "engine": made.file, "target": target.name, "version": built.runtime.split()[-1],
        "versions": versions(), "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
        "onnx_sha256": made.onnx_sha256, "source": made.source, "source_sha256": made.source_sha256,
        "capabilities": built.details["capabilities"],
        "gpu": None if "capabilities" in target.options else gpu_here(),
        "precision": made.settings.precision, "observed": dict(built.observed), "tensors": built.details["tensors"],
        "batch": str(made.settings.batch), "verified": built.run is not None, "not_run": built.not_run,
    }  # fmt: skip
    return {suffix: json.dumps(told, indent=1).encode() + b"\n" for suffix in target.beside}


_TAKEN = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "UINT8": torch.uint8}


def _open(text: str, path: Path) -> Artefact:
    """An engine of either.

    Raises:
        SourceError: the JSON beside it is missing or does not fit.
        BackendError: it cannot run here, for want of the module or a GPU.
    """
    run = open_engine(path)
    known = read_sidecar(path)
    first = known["tensors"][0]
    taken = taken_type(text, first["dtype"], _TAKEN)
    sizes = tuple(None if size < 0 else size for size in first["shape"])
    # Errors are judged by the precision it computes in, whatever type it takes.
    computed = DTYPES[known["precision"]] if known["precision"] in ("fp16", "bf16") else taken
    kind = f"{known['target']} {known['version']}"
    return opaque_artefact(text, path, kind, run, taken, Input(first["name"], computed, sizes))


def _look(target: Target) -> tuple[Diagnosis, ...]:
    ahead = "capabilities" in target.options
    use = "builds engines ahead of time, with no GPU" if ahead else "builds engines for the GPU of this machine"
    found = probe_engines(target.name)
    if found.problem is None:
        return (Diagnosis(name=target.title, works=True, version=found.version, devices=found.capabilities, said=use),)
    if found.missing:
        return (
            Diagnosis(
                name=target.title,
                works=False,
                version=None,
                devices=(),
                said=f"not installed; {use}",
                remedy=target.install,
            ),
        )
    remedy = target.install if ahead else "install the NVIDIA driver, on a machine with an NVIDIA GPU"
    said = f"installed, but cannot build: {found.problem}"
    return (
        Diagnosis(
            name=target.title, works=False, version=installed(target.packages[0]), devices=(), said=said, remedy=remedy
        ),
    )


def _problem(target: Target, _backend: str, _device: str) -> str | None:
    found = probe_engines(target.name)
    why = found.problem or why_not_run(target.name)
    if why is None:
        return None
    said = "it is not installed" if found.missing else why
    return f"{said}; {target.install}, on a machine with an NVIDIA GPU"


def _load(_: str, job: Job, how: How) -> Loaded:
    """An engine with its tensors on the GPU."""
    engine = load_engine(job.file.read_bytes(), str(job.target))
    given = torch.from_numpy(np.load(job.input)).to(DTYPES[job.precision])
    placed = given.cuda()
    bound = engine.bind(placed)
    run: Callable[[], object] = bound.enqueue
    if how.cuda_graphs:
        run, _recorded = cuda_graph(bound.enqueue)

    def with_transfers() -> object:
        placed.copy_(given)
        run()
        return [t.cpu() for t in bound.made]

    def outputs() -> list[Array]:
        run()
        torch.cuda.synchronize()
        return as_arrays(bound.made)

    observed = {"gpu": torch.cuda.get_device_name()}
    clock = event_clock() if how.cuda_events else None
    return Loaded(
        call=with_transfers if how.transfers else run,
        wait=torch.cuda.synchronize,
        outputs=outputs,
        observed=observed,
        clock=clock,
    )


RUNTIME = Runtime(build=build, open=_open, look=_look, load=_load, problem=_problem, beside=_beside)
