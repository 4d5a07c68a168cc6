"""From a network to a file that ships and the proof beside it: fuse, preprocess, lower, build, run, compare, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import Tensor, nn

from repconv.errors import BackendError, BuildError, OutputError, SourceError, VerificationError
from repconv.files import write_whole
from repconv.record import file_record, versions

from .artefacts import is_large
from .built import Built, Run
from .engine_builder import build_engine
from .engine_runtime import engine_function, gpu_here, sidecar_of, why_not_run
from .evidence import Evidence
from .export_record import ENGINE_SCHEMA, ExportRecord
from .half import to_half
from .images import Images, random_images, read_images
from .measuring import measure, normalization_of, probes
from .onnx_exporter import onnx_function
from .openvino_builder import build_openvino, compile_openvino
from .overflow import peaks, require_fp16
from .preprocess import preprocess
from .quantize import Quantized, quantize_onnx
from .settings import SUFFIXES, TARGETS, BuildSettings, Span
from .subject import Subject, open_subject

Say = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """The images an export uses.

    calibrate, evaluate: as `read_images` takes them. Without `evaluate`, calibration images that were not calibrated on
    serve, and without any, noise.
    calibration_images, images: at most so many of each.
    random_calibration: calibrate on noise, which makes an int8 file of no use but for timing.
    """

    calibrate: str | None = None
    evaluate: str | None = None
    calibration_images: int = 256
    images: int = 64
    random_calibration: bool = False


@dataclass(frozen=True)
class _Read:
    calibration: Images | None
    evaluation: Images | None


def to_onnx(
    source: str | Path | nn.Module, output: str | Path, settings: BuildSettings | None = None, data: Data | None = None
) -> ExportRecord:
    """Export to an ONNX file, run by onnxruntime; arguments and errors as `export`."""
    return export(source, "onnx", output, settings, data)


def to_openvino(
    source: str | Path | nn.Module, output: str | Path, settings: BuildSettings | None = None, data: Data | None = None
) -> ExportRecord:
    """Export to OpenVINO IR, an `.xml` and a `.bin` file; arguments and errors as `export`."""
    return export(source, "openvino", output, settings, data)


def to_tensorrt(
    source: str | Path | nn.Module,
    output: str | Path,
    settings: BuildSettings | None = None,
    data: Data | None = None,
    *,
    rtx: bool = False,
) -> ExportRecord:
    """Export to an engine of TensorRT, or with `rtx` of TensorRT-RTX; arguments and errors as `export`."""
    return export(source, "tensorrt-rtx" if rtx else "tensorrt", output, settings, data)


def export(
    source: str | Path | nn.Module,
    target: str,
    output: str | Path,
    settings: BuildSettings | None = None,
    data: Data | None = None,
    *,
    model: str | None = None,
    state_key: str | None = None,
    dump_on_failure: Path | None = None,
    require_verified: bool = False,
    say: Say | None = None,
) -> ExportRecord:
    """Export `source` for a runtime, run it there, compare it with the unfused network, and write what agrees.

    Args:
        source: a file or name as the command line takes them, or a module in evaluation mode.
        target: one of `TARGETS`.
        output: the file; its suffix is the target's. An engine gets a JSON file beside it.
        settings: precision, sizes and the rest; None: float32, one image of the size the source records.
        data: images to calibrate on and to compare on; None: noise to compare on.
        model: for a state dict, its network's name.
        state_key: the key in the file under which the weights are.
        dump_on_failure: where the call that is furthest off goes (`.npz`) if the artefact disagrees.
        require_verified: refuse what cannot be run here.
        say: told what is being done, in a few words.

    Raises:
        SourceError, CheckpointError: bad input or settings.
        FusionError: a network in training mode, or one that cannot be followed.
        OutputError: the output cannot be written; nothing was.
        VerificationError: the artefact disagrees, half precision would overflow, or it could not be run and had to be.
        BackendError: a package is missing or cannot work here.
        BuildError: the backend cannot build this.
    """
    settings, data, say = settings or BuildSettings(), data or Data(), say or _nothing
    out = _checked(Path(output), target)
    _check_settings(target, settings)
    _check_calibration(settings, data)
    say("loading and fusing")
    subject = open_subject(source, settings, model=model, state_key=state_key)
    if is_large(subject.model):
        raise BuildError(f"{subject.name} holds more than 2 GB of weights, which no ONNX model in one file can")
    spans = settings.image or (Span.of(subject.size[1]), Span.of(subject.size[2]))
    read = _read(subject, settings, data)
    network = subject.model
    folded: tuple[str, ...] = ()
    if settings.preprocessing is not None:
        done = preprocess(network, settings.preprocessing)
        network, folded = done.model, done.folded
    # OpenVINO keeps float32 inputs and outputs whatever it computes in.
    in_half = settings.precision in ("fp16", "bf16") and not settings.fp32_io and target != "openvino"
    calls = probes(subject, settings, read.evaluation, in_half=in_half)
    if settings.precision == "fp16":
        say("checking ranges")
        float_calls = [p.inputs if settings.preprocessing is None else p.given for p in calls]
        require_fp16(
            peaks(network, [x.float() if x.is_floating_point() else x for x in float_calls[:4]]), _origin(read)
        )
    calibration = _batches(read.calibration, settings) if settings.precision == "int8" else None
    say(f"building for {target}")
    lowered, quantized = network, None
    if target == "openvino":
        built = build_openvino(network, settings, spans, calibration)
    else:
        lowered, quantized = _lower(network, target, settings, calibration)
        built = _onnx(lowered, settings) if target == "onnx" else _engine(lowered, target, settings, spans)
    evidence: Evidence | None = None
    if built.run is not None:
        say("running it")
        evidence = measure(
            subject,
            built.run,
            calls,
            settings,
            runtime=built.runtime,
            origin=_origin(read),
            observed=dict(built.observed),
        )
        if not evidence.passed and dump_on_failure is not None:
            evidence.dump(dump_on_failure)
        evidence.require(str(out))
    elif require_verified:
        raise VerificationError(
            f"{out}: built, not run ({built.not_run}), and it had to be verified; nothing was written"
        )
    files = {out.with_name(out.name.removesuffix(out.suffix) + suffix): c for suffix, c in built.files.items()}
    sha = hashlib.sha256(lowered.SerializeToString(deterministic=True)).hexdigest()
    if target.startswith("tensorrt"):
        files = {sidecar_of(out): _sidecar(out, target, subject, settings, built, sha), **files}
    write_whole(files)
    timing = built.details.get("timing_cache_content")
    if settings.timing_cache is not None and isinstance(timing, bytes):
        write_whole({settings.timing_cache: timing})
    details = {key: value for key, value in built.details.items() if key != "timing_cache_content"}
    if quantized is not None:
        details["quantization"] = quantized.to_dict()
    if settings.preprocessing is not None:
        details["preprocessing_folded"] = list(folded)
    if settings.precision == "int8" and read.calibration is not None:
        details["calibration"] = {"images": len(read.calibration), "origin": read.calibration.origin}
    return ExportRecord(
        target, settings, {"name": subject.name, "sha256": subject.sha256}, tuple(file_record(path) for path in files),
        sha, built.runtime, "x".join(map(str, (settings.batch, subject.size[0], *spans))), evidence, built.not_run,
        _fusion(subject), built.observed, details, subject.notes,
    )  # fmt: skip


def _nothing(_: str) -> None:
    """Say nothing."""


def _checked(out: Path, target: str) -> Path:
    if target not in TARGETS:
        raise SourceError(f"{target!r}: no such target; expected {', '.join(TARGETS)}")
    if out.suffix != SUFFIXES[target]:
        raise OutputError(f"{out}: {target} output ends in {SUFFIXES[target]}, got {out.suffix or 'no suffix'!r}")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise OutputError(f"cannot write {out}: it is a directory; name a file")
    return out


def _check_settings(target: str, settings: BuildSettings) -> None:
    """Settings a target has not are refused, not passed over."""
    if target == "openvino" and settings.fp32_io:
        raise SourceError("OpenVINO keeps float32 inputs and outputs anyway; leave out fp32 io")
    if settings.timing_cache is not None and not target.startswith("tensorrt"):
        raise SourceError(f"a timing cache is for tensorrt, not {target}")


def _check_calibration(settings: BuildSettings, data: Data) -> None:
    """int8 takes real images, other precisions take none."""
    if settings.precision == "int8" and data.calibrate is None and not data.random_calibration:
        raise SourceError(
            "int8 needs images like those the network will see: --calibrate imagefolder:FOLDER (or .zip, or an .npz "
            "file). For a file that is only timed, --random-calibration takes noise"
        )
    if settings.precision != "int8" and (data.calibrate is not None or data.random_calibration):
        raise SourceError(f"calibration is for int8, not {settings.precision}; --evaluate gives images to compare on")


def _read(subject: Subject, settings: BuildSettings, data: Data) -> _Read:
    """Images to calibrate on, and others to compare on."""
    norm = normalization_of(subject, settings)
    pixels = settings.preprocessing is not None
    evaluation: Images | None = None
    calibration: Images | None = None
    if data.evaluate is not None:
        evaluation = read_images(
            data.evaluate, subject.size, norm, limit=data.images, class_names=subject.class_names, seed=1
        )
    if data.calibrate is not None:
        limit = data.calibration_images + (0 if evaluation is not None else data.images)
        found = read_images(data.calibrate, subject.size, norm, limit=limit, class_names=subject.class_names)
        held_out = min(data.images, len(found) // 2) if evaluation is None else 0
        calibration = found.part(held_out)
        evaluation = evaluation if evaluation is not None else found.part(0, held_out)
        if not len(evaluation):
            evaluation = found
    elif settings.precision == "int8":
        calibration = random_images(subject.size, norm, data.calibration_images, pixels=pixels, seed=2)
    return _Read(calibration, evaluation)


def _origin(read: _Read) -> str:
    if read.evaluation is None:
        return "random inputs"
    return f"{len(read.evaluation)} images of {read.evaluation.origin}"


def _batches(images: Images | None, settings: BuildSettings) -> list[Tensor]:
    if images is None:
        return []
    given, size = images.given_to(settings.preprocessing), settings.batch.usual
    if len(given) < size and not settings.batch.fixed:
        size = len(given)
    found = [given[i : i + size] for i in range(0, len(given) - size + 1, size)]
    if not found:
        raise SourceError(f"{images.origin} holds {len(given)} images to calibrate on, fewer than one batch of {size}")
    return found


def _lower(
    network: onnx.ModelProto, target: str, settings: BuildSettings, calibration: list[Tensor] | None
) -> tuple[onnx.ModelProto, Quantized | None]:
    """The ONNX model in the precision asked for."""
    if settings.precision in ("fp16", "bf16"):
        return to_half(network, settings.precision, fp32_io=settings.fp32_io), None
    if calibration is None:
        return network, None
    done = quantize_onnx(
        network, calibration, settings.quantization, symmetric=True, int32_bias=target == "onnx"
    )  # fmt: skip
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

    def run(x: Tensor) -> tuple[Tensor, ...]:
        found = function(x)
        return found if isinstance(found, tuple) else (found,)

    return Built({".onnx": content}, run, runtime, observed=_types(model))


def _bf16_in_openvino(content: bytes, why: str) -> Built:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        try:
            run, observed = compile_openvino(path, "bf16")
        except BackendError:
            return Built({".onnx": content}, None, "onnxruntime", f"{why}; OpenVINO, which can, is not installed")
    version = versions().get("openvino", "")
    return Built({".onnx": content}, run, f"OpenVINO {version}, CPU (onnxruntime has no bf16)", observed=observed)


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


def _sidecar(out: Path, target: str, subject: Subject, settings: BuildSettings, built: Built, onnx_sha: str) -> bytes:
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


def _fusion(subject: Subject) -> dict[str, object] | None:
    report = subject.report
    if report is None:
        return None
    before, after = report.before, report.after
    return {
        "convolutions": [before.convolutions, after.convolutions], "parameters": [before.parameters, after.parameters],
        "layers": len(report.layers),
    }  # fmt: skip
