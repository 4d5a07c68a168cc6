"""Engines of TensorRT and TensorRT-RTX: one code path, the module differs.

TensorRT builds for the GPU it runs on. TensorRT-RTX builds ahead of time for a list of compute capabilities, without a
GPU; its kernels are finished where the engine is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from repconv.errors import BackendError, BuildError
from repconv.files.edited import copy_of, inputs_of
from repconv.files.held import temporary_folder

from ..artefacts.built import Built
from ..settings import BuildSettings, Span, check_capabilities
from ..targets import TARGETS, Target
from .layers import observed, parse_inspected, parse_log
from .worker import AS_THEY_ARE, ENGINE, MODEL, REQUEST, RESULT, TIMING


@dataclass(frozen=True, kw_only=True)
class EngineProbe:
    """Whether a module can build here; `problem` in words if not, `missing` if it is not installed."""

    version: str | None
    capabilities: tuple[str, ...]
    problem: str | None = None
    missing: bool = False


def probe_engines(target: str, *, timeout_s: float = 120) -> EngineProbe:
    """Ask TensorRT or TensorRT-RTX, in a process of its own, whether it can build here."""
    with temporary_folder() as folder:
        answer = _ask({"module": TARGETS[target].module, "probe": True}, folder, timeout_s)
    if "error" in answer:
        return EngineProbe(
            version=None, capabilities=(), problem=str(answer["said"]), missing=answer["error"] == "missing"
        )
    return EngineProbe(version=str(answer["version"]), capabilities=tuple(answer["capabilities"]))  # type: ignore[arg-type]


def build_engine(
    model: onnx.ModelProto,
    target: str,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    *,
    timeout_s: float = 3600,
    fixed_addresses: bool = True,
) -> Built:
    """`model`, already of the precision asked for, as an engine.

    Args:
        model: what the parser reads; types in it are the engine's.
        target: `tensorrt` or `tensorrt-rtx`.
        settings: ranges become one optimisation profile.
        spans: height and width.
        timeout_s: after which the build is given up.
        fixed_addresses: build where in memory things always are, on which the bytes of an engine depend.

    Raises:
        SourceError: settings the target has not.
        BackendError: the module is missing, or cannot build on this machine.
        BuildError: it cannot build this model, crashed, or built another precision.
    """
    row = TARGETS[target]
    row.check(settings)
    with temporary_folder() as folder:
        named = with_names(model)
        onnx.save(named, str(folder / MODEL))
        asked = {
            "module": row.module, "profile": _profile(named, settings, spans),
            "capabilities": list(check_capabilities(settings.capabilities)) if "capabilities" in row.options else [],
            "timing_cache": None if settings.timing_cache is None else str(settings.timing_cache.resolve()),
        }  # fmt: skip
        answer = _ask(asked, folder, timeout_s, [] if fixed_addresses else [AS_THEY_ARE])
        if "error" in answer:
            _refuse(row, str(answer["error"]), str(answer["said"]))
        content = (folder / ENGINE).read_bytes()
        timing = (folder / TIMING).read_bytes() if answer["timing_cache"] else None
    inspected = answer["inspected"]
    layers = parse_inspected(str(inspected)) if inspected else parse_log(answer["layers"])  # type: ignore[arg-type]
    found = observed(named, layers, settings.precision)
    found["read_from"] = "the engine inspector" if inspected else "the builder's log"
    details = {
        "tensors": answer["tensors"], "capabilities": asked["capabilities"], "timing_cache": answer["timing_cache"],
        "addresses_fixed": answer["addresses_fixed"], "layers": [vars(layer) for layer in layers],
    }  # fmt: skip
    return Built(
        files={row.suffix: content},
        run=None,
        runtime=f"{target} {answer['version']}",
        not_run=None,
        observed=found,
        details=details,
        timing_cache=timing,
    )


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every node with a name of its own, by which engine layers refer to it."""
    named = copy_of(model)
    taken: set[str] = set()
    for index, node in enumerate(named.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        node.name = name if name not in taken else f"{name}_{index}"
        taken.add(node.name)
    return named


def _profile(model: onnx.ModelProto, settings: BuildSettings, spans: tuple[Span, ...]) -> dict[str, list[list[int]]]:
    """Least, usual and largest shape of the input, if any of it is open."""
    value = inputs_of(model)[0]
    dims = value.type.tensor_type.shape.dim
    if all(dim.HasField("dim_value") for dim in dims):
        return {}
    channels = dims[1].dim_value
    sizes = [settings.batch, Span.of(channels), *spans]
    return {value.name: [[s.least for s in sizes], [s.usual for s in sizes], [s.most for s in sizes]]}


def _ask(asked: Mapping[str, object], folder: Path, timeout_s: float, more: Sequence[str] = ()) -> dict[str, object]:
    """The worker's answer; a crash is one, too."""
    (folder / REQUEST).write_text(json.dumps(asked))
    result = folder / RESULT
    command = [sys.executable, "-P", "-m", "repconv.export.engines.worker", str(folder), *more]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        return {"error": "failed", "said": f"it took more than {timeout_s:.0f} s and was stopped"}
    if not result.is_file():
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return {"error": "failed", "said": f"its process ended with {ended}: {last}"}
    answer: dict[str, object] = json.loads(result.read_text())
    return answer


def _environment() -> dict[str, str]:
    """This process's, but for what decides where the worker's memory is (see there)."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    return {**kept, "PYTHONHASHSEED": "0"}


def _refuse(target: Target, kind: str, said: str) -> None:
    name, needs = target.name, f"{target.title} needs {target.needs}"
    if kind == "missing":
        raise BackendError(f"{name} is not installed ({said}); install it with: {target.install}. {needs}")
    if kind == "unusable":
        raise BackendError(f"{name} is installed but cannot build here: {said}. {needs}")
    raise BuildError(f"{name} cannot build the model: {said}")
