"""One model for one runtime: lowered to its precision, built, and ready to run where it can."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import Tensor

from repconv.errors import BackendError, BuildError
from repconv.files.record import versions

from .artefacts.built import Built, Run
from .engines.builder import build_engine
from .int8.quantize import Quantized, quantize_onnx
from .onnx.exporter import onnx_function
from .onnx.half import in_float32, to_half
from .record import ENGINE_SCHEMA
from .runtimes.engine_runtime import engine_function, gpu_here, why_not_run
from .runtimes.openvino import build_openvino, compile_openvino
from .settings import BuildSettings, Span
from .subject import Subject


@dataclass(frozen=True)
class Form:
    """What runs here of an artefact: itself, or in place of what cannot the same numbers in a runtime that is here.

    model: the ONNX model the artefact is made of. quantized: for int8 in ONNX, what quantising did.
    shown: what runs here. artefact: the artefact, None as long as it is not built: an engine.
    """

    model: onnx.ModelProto
    quantized: Quantized | None
    shown: Built
    artefact: Built | None


@dataclass(frozen=True)
class Lowered:
    """An artefact, the ONNX model it was made of, and, for int8 in ONNX, what quantising did."""

    built: Built
    model: onnx.ModelProto
    quantized: Quantized | None


def build(
    network: onnx.ModelProto,
    target: str,
    settings: BuildSettings,
    spans: tuple[Span, Span],
    calibration: list[Tensor] | None,
) -> Lowered:
    """`network`, float32, for a target.

    Raises:
        SourceError: settings the target has not.
        BackendError: a package is missing or cannot work here.
        BuildError: the backend cannot build it.
    """
    form = form_of(network, target, settings, spans, calibration)
    return Lowered(artefact_of(form, target, settings, spans), form.model, form.quantized)


def form_of(
    network: onnx.ModelProto,
    target: str,
    settings: BuildSettings,
    spans: tuple[Span, Span],
    calibration: list[Tensor] | None,
) -> Form:
    """`network` in the form that runs here; arguments and errors as `build`."""
    if target == "openvino":
        built = build_openvino(network, settings, spans, calibration)
        return Form(network, None, built, built)
    model, quantized = lower(network, target, settings, calibration)
    own = _onnx(model, settings)
    shown = own if own.run is not None else _emulated(model, settings.precision)
    return Form(model, quantized, shown, own if target == "onnx" else None)


def artefact_of(form: Form, target: str, settings: BuildSettings, spans: tuple[Span, Span]) -> Built:
    """The artefact of a form that was shown to be right; errors as `build`."""
    return form.artefact or _engine(form.model, target, settings, spans)


def lower(
    network: onnx.ModelProto, target: str, settings: BuildSettings, calibration: list[Tensor] | None
) -> tuple[onnx.ModelProto, Quantized | None]:
    """The float32 `network` in the precision asked for, and what quantising did; arguments and errors as `build`."""
    if settings.precision in ("fp16", "bf16"):
        return to_half(network, settings.precision, fp32_io=settings.fp32_io), None
    if calibration is None:
        return network, None
    done = quantize_onnx(network, calibration, settings.quantization, symmetric=True, int32_bias=target == "onnx")
    return done.model, done


def _onnx(model: onnx.ModelProto, settings: BuildSettings) -> Built:
    """An ONNX file; onnxruntime has no bf16 convolution on CPUs, so OpenVINO runs those, where it is installed."""
    import onnxruntime

    content = model.SerializeToString(deterministic=True)
    runtime = f"onnxruntime {onnxruntime.__version__}, CPU"
    try:
        function = onnx_function(content)
    except BuildError as error:
        if settings.precision != "bf16":
            raise
        return _bf16_in_openvino(content, str(error))

    return Built({".onnx": content}, lambda x: _tuple(function(x)), runtime, observed=_types(model))


def _bf16_in_openvino(content: bytes, why: str) -> Built:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        try:
            run, observed = compile_openvino(path, "bf16")
        except BackendError:
            return Built({".onnx": content}, None, "onnxruntime", f"{why}; OpenVINO, which can, is not installed")
    version = versions().get("openvino", "")
    return Built({".onnx": content}, run, f"OpenVINO {version}, CPU (onnxruntime has no bf16)", observed=observed)


def _emulated(model: onnx.ModelProto, precision: str) -> Built:
    """A model of half precision for which no runtime is here, computed in float32 between its roundings."""
    import onnxruntime

    function = onnx_function(in_float32(model).SerializeToString())
    runtime = f"onnxruntime {onnxruntime.__version__}, CPU, in float32 between roundings to {precision}"
    return Built({}, lambda x: _tuple(function(x.float() if x.is_floating_point() else x)), runtime)


def _tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """How many weights are of which type."""
    kinds: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            kinds[kind] = kinds.get(kind, 0) + 1
    return {"weights": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))}


def _engine(model: onnx.ModelProto, target: str, settings: BuildSettings, spans: tuple[Span, Span]) -> Built:
    built = build_engine(model, target, settings, spans)
    problem = why_not_run(target) or _other_gpu(built)
    run: Run | None = None if problem else engine_function(built.files[".engine"], target)
    return replace(built, run=run, not_run=problem)


def _other_gpu(built: Built) -> str | None:
    capabilities, gpu = built.details["capabilities"], gpu_here()
    if not capabilities or gpu is None or gpu["capability"] in str(capabilities):
        return None
    return f"this GPU is {gpu['capability']}, the engine is for others"


def sidecar(out: Path, target: str, subject: Subject, settings: BuildSettings, built: Built, onnx_sha: str) -> bytes:
    """What is checked before an engine is loaded."""
    content = built.files[".engine"]
    told = {
        "schema": ENGINE_SCHEMA, "engine": out.name, "target": target, "version": built.runtime.split()[-1],
        "versions": versions(), "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
        "onnx_sha256": onnx_sha, "source": subject.name, "source_sha256": subject.sha256,
        "capabilities": built.details["capabilities"], "gpu": None if target == "tensorrt-rtx" else gpu_here(),
        "precision": settings.precision, "observed": dict(built.observed), "tensors": built.details["tensors"],
        "batch": str(settings.batch), "verified": built.run is not None, "not_run": built.not_run,
    }  # fmt: skip
    return json.dumps(told, indent=1).encode() + b"\n"
