"""From a network to a file that ships and the proof beside it: fuse, preprocess, lower, build, run, compare, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from torch import Tensor, nn

from repconv.errors import BuildError, OutputError, SourceError, VerificationError
from repconv.files.onnx import is_large
from repconv.files.record import file_record
from repconv.files.whole import write_folder, write_whole
from repconv.sources.source import Source

from .artefacts.built import Built, Network, Provenance
from .artefacts.runtime import runtime_of
from .engines.builder import with_names
from .inputs.data import Data, batches, check_calibration, origin_of, read_data
from .measuring import probe_calls
from .onnx.overflow import Peak, peaks, require_fp16
from .onnx.preprocess import preprocess
from .program.peaks import program_peaks
from .program.preprocess import preprocess_program
from .record import ExportRecord
from .settings import BuildSettings, Span
from .subject import Subject, open_subject
from .targets import TARGETS, Target
from .trial import Trial

Say = Callable[[str], None]


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
    source: str | Path | Source | nn.Module,
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
        source: a file or name as the command line takes them, one that is open, or a module in evaluation mode.
        target: one of `TARGETS`.
        output: the file; its suffix is the target's. What else belongs to it, see `Target.beside`, lies there, too.
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
    row, out = _checked(Path(output), target, dump_on_failure)
    row.check(settings)
    check_calibration(settings, data)
    say("loading and fusing")
    subject = open_subject(source, settings, model=model, state_key=state_key, reads=row.reads)
    settings = settings.of_axes(len(subject.size) - 1, subject.name)
    if isinstance(subject.model, onnx.ModelProto) and is_large(subject.model):
        raise BuildError(f"{subject.name} holds more than 2 GB of weights, which no ONNX model in one file can")
    spans = settings.sides(subject.size)
    read = read_data(subject, settings, data)
    network, folded = _preprocessed(subject.model, settings, [settings.batch, Span.of(subject.size[0]), *spans])
    in_half = settings.precision in ("fp16", "bf16") and not settings.fp32_io and not row.float_io
    calls = probe_calls(subject, settings, read.evaluation, in_half=in_half)
    if settings.precision == "fp16":
        say("checking ranges")
        float_calls = [p.inputs if settings.preprocessing is None else p.given for p in calls[:4]]
        given = [x.float() if x.is_floating_point() else x for x in float_calls]
        require_fp16(_peaks(network, given), origin_of(read))
    calibration = batches(read.calibration, settings) if settings.precision == "int8" else None
    if calibration is not None and isinstance(network, onnx.ModelProto):
        network = with_names(network)  # by which layers are told to stay float

    trial = Trial(
        subject=subject,
        network=network,
        target=target,
        settings=settings,
        spans=spans,
        calibration=calibration,
        calls=calls,
        origin=origin_of(read),
    )
    say(f"building for {target}")
    form = trial.form()
    built = form.shown()
    stands_in = built.stands_in
    say(f"running {stands_in or 'it'}")
    evidence = stand_in = trial.evidence(built)
    what = f"{out}: {stands_in}" if stands_in else str(out)
    trial.require(stand_in, form, what, dump=dump_on_failure, say=say)
    if stands_in:
        built = form.load()
        evidence = trial.evidence(built)
        trial.require(evidence, form, str(out), dump=dump_on_failure, say=say)
    if evidence is None and require_verified:
        raise VerificationError(
            f"{out}: built, not run ({built.not_run}), and it had to be verified; nothing was written"
        )
    sha = None if form.model is None else hashlib.sha256(form.model.SerializeToString(deterministic=True)).hexdigest()
    files = _write(
        row,
        out,
        built,
        Provenance(
            file=out.name, source=subject.name, source_sha256=subject.sha256, onnx_sha256=sha, settings=settings
        ),
    )
    if settings.timing_cache is not None and built.timing_cache is not None:
        write_whole({settings.timing_cache: built.timing_cache})
    details = dict(built.details)
    if form.quantized is not None:
        details["quantization"] = form.quantized.to_dict()
    if settings.preprocessing is not None:
        details["preprocessing_folded"] = list(folded)
    if read.calibration is not None:
        details["calibration"] = {"images": len(read.calibration), "origin": read.calibration.origin}
    return ExportRecord(
        target,
        settings,
        {"name": subject.name, "sha256": subject.sha256},
        tuple(file_record(path) for path in files),
        sha,
        built.runtime,
        "x".join(map(str, (settings.batch, subject.size[0], *spans))),
        evidence,
        built.not_run,
        _fusion(subject),
        built.observed,
        details,
        subject.notes,
        None if evidence is not None else stand_in,
        stands_in,
    )


def _preprocessed(network: Network, settings: BuildSettings, sizes: Sequence[Span]) -> tuple[Network, tuple[str, ...]]:
    """With what is asked to stand in front of it, and what of that went into the convolutions."""
    if settings.preprocessing is None:
        return network, ()
    if not isinstance(network, onnx.ModelProto):
        return preprocess_program(network, settings.preprocessing, sizes)
    done = preprocess(network, settings.preprocessing)
    return done.model, done.folded


def _peaks(network: Network, batches: list[Tensor]) -> list[Peak]:
    return peaks(network, batches) if isinstance(network, onnx.ModelProto) else program_peaks(network, batches)


def _nothing(_: str) -> None:
    """Say nothing."""


def _checked(out: Path, target: str, dump: Path | None) -> tuple[Target, Path]:
    """Refuse, before anything is computed, what could not be written."""
    if target not in TARGETS:
        raise SourceError(f"{target!r}: no such target; expected {', '.join(TARGETS)}")
    row = TARGETS[target]
    if out.suffix != row.suffix:
        raise OutputError(f"{out}: {target} output ends in {row.suffix}, got {out.suffix or 'no suffix'!r}")
    for file in (out, *([] if dump is None else [dump])):
        if not file.parent.is_dir():
            raise OutputError(f"{file}: there is no folder {file.parent}; make it first")
    if out.exists() and out.is_dir() is not row.folder:
        held, wanted = ("directory", "file") if out.is_dir() else ("file", "folder")
        raise OutputError(f"cannot write {out}: it is a {held}; name a {wanted}")
    _require_own_parts(row, out)
    return row, out


def _require_own_parts(row: Target, out: Path) -> None:
    """Refuse an output whose other files would replace those of another runtime's artefact of the same name."""
    for other in TARGETS.values():
        theirs = out.with_suffix(other.suffix)
        shared = [suffix for suffix in row.beside if suffix in other.beside]
        if shared and theirs != out and theirs.exists():
            part = out.with_suffix(shared[0])
            raise OutputError(f"{out}: {part}, which belongs to it, belongs to {theirs} already; name another output")


def _write(target: Target, out: Path, built: Built, made: Provenance) -> list[Path]:
    """Write an artefact and what lies beside it; the main file or folder last."""
    stem = out.name.removesuffix(out.suffix)
    beside = {out.with_name(stem + s): c for s, c in runtime_of(target).beside(target, made, built).items()}
    if target.folder:
        write_whole(beside)
        write_folder(out, {name.removeprefix(f"{target.suffix}/"): c for name, c in built.files.items()})
        return [*beside, out]
    files = {**beside, **{out.with_name(stem + suffix): c for suffix, c in built.files.items()}}
    write_whole(files)
    return list(files)


def _fusion(subject: Subject) -> dict[str, object] | None:
    report = subject.report
    if report is None:
        return None
    before, after = report.before, report.after
    return {
        "convolutions": [before.convolutions, after.convolutions],
        "parameters": [before.parameters, after.parameters],
        "layers": len(report.layers),
    }
