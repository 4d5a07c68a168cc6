"""`repconv fuse`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import ImageShape, checked_output, json_option, source_options

if TYPE_CHECKING:
    from torch import nn

    from repconv.export.fused_graph import Fused

    from ..agreement import Agreement
    from ..forecasting import Forecast
    from ..report import FusionReport
    from ..sources import Source

_CHECKPOINTS = (".pt", ".safetensors")
_FORMATS = (*_CHECKPOINTS, ".onnx", ".pt2")
_GRAPHS = {".onnx": (".onnx",), ".pt2": (".pt2", ".onnx")}
"""Sources that are graphs, and what can be written of them."""


@dataclass(frozen=True)
class _Settings:
    input_shape: tuple[int, int, int] | None
    opset: int
    dynamic_batch: bool
    strict: bool


@click.command(epilog="Example: repconv fuse checkpoint.pt -o fused.onnx --dynamic-batch --json report.json")
@click.argument("source")
@click.option(
    "-o", "--output",
    help="File to write: .pt, .safetensors, .onnx or .pt2.  [default: NAME.fused.* beside SOURCE NAME.*]",
)  # fmt: skip
@click.option("--input-shape", type=ImageShape(), help="Image shape, if SOURCE does not say one.")
@click.option("--opset", type=click.IntRange(13, 26), help="ONNX opset to write.  [default: 18]")
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size of an ONNX file or program open.")
@click.option("--strict", is_flag=True, help="Exit 2 if there is nothing to fuse.")
@source_options
@json_option
def command(
    source: str,
    output: str | None,
    input_shape: tuple[int, int, int] | None,
    opset: int | None,
    dynamic_batch: bool,
    strict: bool,
    model_name: str | None,
    state_key: str | None,
    json_file: str | None,
) -> None:
    """Fold SOURCE, a multi-branch network, into single convolutions; verify; write the result.

    SOURCE is a repconv checkpoint, a state dict of a network named by --model, timm:NAME[@WEIGHTS],
    torchvision:NAME[@WEIGHTS], package.module:factory[@WEIGHTS], or a graph: an .onnx file or a .pt2 program, whoever
    wrote it.

    A result that differs from SOURCE by more than rounding is not written (exit code 1).
    """
    from ..models.spec import is_foreign
    from ..sources import open_source

    suffix = Path(source).suffix
    if suffix in _GRAPHS:
        out = checked_output(output or _beside(source), source, _GRAPHS[suffix], json_file)
        _refuse_settings(suffix, opset, out, dynamic_batch=dynamic_batch, model_name=model_name)
        settings = _Settings(input_shape, opset or 18, dynamic_batch, strict)
        _fuse_graph(source, out, settings, json_file)
        return
    out = checked_output(output or _beside(source), source, _FORMATS, json_file)
    settings = _Settings(input_shape, opset or 18, dynamic_batch, strict)
    loaded = open_source(source, model=model_name, state_key=state_key)
    for note in loaded.notes:
        click.echo(f"repconv: {source}: {note}", err=True)
    if out.suffix == ".pt2" or (out.suffix == ".onnx" and is_foreign(loaded.checkpoint.model)):
        _fuse_network(loaded, out, settings, json_file)
    else:
        _fuse_blocks(loaded, out, settings, json_file)


def _beside(source: str) -> str:
    """The default output, in the folder of the source."""
    from ..errors import OutputError

    path = Path(source)
    if not path.is_file():
        raise OutputError(f"{source} is no file to write the result beside; name an output with -o")
    return str(path.with_name(f"{path.stem}.fused{path.suffix if path.suffix in _FORMATS else '.pt'}"))


def _refuse_settings(suffix: str, opset: int | None, out: Path, *, dynamic_batch: bool, model_name: str | None) -> None:
    """What a graph keeps as it is cannot be asked for."""
    from ..errors import SourceError

    if model_name is not None:
        raise SourceError(f"--model is for weights without their network; a {suffix} file holds its own")
    if suffix == out.suffix and (opset is not None or dynamic_batch):
        asked = "--opset" if opset is not None else "--dynamic-batch"
        raise SourceError(f"{asked}: a fused {suffix} file keeps the opset and the open sizes of its source")


# Networks of this package, and blocks anywhere


def _fuse_blocks(loaded: Source, out: Path, settings: _Settings, json_file: str | None) -> None:
    """Every block becomes a convolution module; the result is a checkpoint, or ONNX of this package's networks."""
    from ..errors import SourceError
    from ..forecasting import forecast
    from ..models.spec import is_foreign
    from ..verify import dtype_of, probes
    from .text import fusion_tables, paragraph

    shape = _shape_of(loaded, settings)
    if is_foreign(loaded.checkpoint.model) and not _has_blocks(loaded.checkpoint.model):
        raise SourceError(
            f"{loaded.name} holds no blocks of this package, so no checkpoint can hold it fused; write a graph "
            "instead, such as -o fused.onnx or -o fused.pt2"
        )
    fused, report = _fuse_and_verify(loaded, shape, strict=settings.strict)
    foretold = forecast(loaded.checkpoint.model, fused, report, probes(shape, dtype=dtype_of(fused)))
    click.echo(fusion_tables(report, foretold) + "\n")
    click.echo(paragraph(f"On random inputs, {foretold.verdict}.") + "\n")
    _require(report)
    extra: dict[str, object] = {}
    if out.suffix == ".onnx":
        in_runtime = _write_onnx(out, loaded, fused, report, shape, settings)
        click.echo(paragraph(f"in onnxruntime {in_runtime.verdict}"))
        extra = {"opset": settings.opset, "dynamic_batch": settings.dynamic_batch, "onnxruntime": in_runtime.to_dict()}
    else:
        _write_checkpoint(out, loaded, fused, shape)
    _finish(loaded.name, loaded.path, out, settings, report, json_file, extra, foretold)


def _has_blocks(model: nn.Module) -> bool:
    from ..fusion import outermost_branches

    return next(outermost_branches(model), None) is not None or bool(getattr(model, "replaced", None))


def _shape_of(loaded: Source, settings: _Settings) -> tuple[int, int, int]:
    from ..errors import SourceError

    shape = settings.input_shape or loaded.checkpoint.input_shape
    if shape is None:
        raise SourceError(f"{loaded.name} records no image shape; give one, such as --input-shape 3,224,224")
    return shape


def _fuse_and_verify(loaded: Source, shape: tuple[int, int, int], *, strict: bool) -> tuple[nn.Module, FusionReport]:
    from ..fusion import fuse_blocks
    from ..verify import count_flops, dtype_of, probes, verify

    model = loaded.checkpoint.model
    fused, report = fuse_blocks(model)
    if not report.layers:
        _nothing_to_fuse(loaded.name, already=loaded.checkpoint.fused, strict=strict)
    report = report.with_flops(count_flops(model, shape), count_flops(fused, shape))
    return fused, report.with_agreement(verify(model, fused, probes(shape, dtype=dtype_of(model))))


def _nothing_to_fuse(name: str, *, already: bool, strict: bool) -> None:
    from ..errors import SourceError

    if strict and not already:
        raise SourceError(f"{name}: nothing to fuse in it")
    state = "is already fused" if already else "holds nothing to fuse"
    click.echo(f"repconv: {name} {state}; it is written as it is", err=True)


def _write_onnx(
    out: Path, loaded: Source, fused: nn.Module, report: FusionReport, shape: tuple[int, int, int], settings: _Settings
) -> Agreement:
    """Export, verify in onnxruntime against the unfused network, and only then write."""
    from repconv.export.onnx_exporter import to_onnx, verify_onnx

    from ..files import whole_file
    from ..verify import dtype_of, probes

    x = probes(shape, dtype=dtype_of(fused))[0]
    summary = {
        "layers": {layer.name: list(layer.branches) for layer in report.layers},
        "convolutions": [report.before.convolutions, report.after.convolutions],
        "parameters": [report.before.parameters, report.after.parameters],
    }
    metadata = {**_metadata(loaded), "repconv.fusion": json.dumps(summary)}
    content = to_onnx(
        fused, x, opset=settings.opset, dynamic_batch=settings.dynamic_batch, metadata=metadata
    ).SerializeToString()
    inputs = [x, x.flip(3).expand(3, *shape)] if settings.dynamic_batch else [x, x.flip(3)]
    agreement = verify_onnx(content, loaded.checkpoint.model, inputs)
    agreement.require("the ONNX model in onnxruntime")
    with whole_file(out) as stream:
        stream.write(content)
    return agreement


def _metadata(loaded: Source) -> dict[str, str]:
    """What a checkpoint knows besides its weights, for an ONNX file."""
    from repconv.export.subject import described

    known = loaded.checkpoint
    return described(loaded.sha256, known.class_names, known.normalization)


def _write_checkpoint(out: Path, loaded: Source, fused: nn.Module, shape: tuple[int, int, int]) -> None:
    from ..checkpoint import save

    known = loaded.checkpoint
    save(
        fused, out, class_names=known.class_names, normalization=known.normalization,
        input_shape=known.input_shape or shape, metrics=known.metrics,
    )  # fmt: skip


# Graphs


def _fuse_network(loaded: Source, out: Path, settings: _Settings, json_file: str | None) -> None:
    """Anybody's network becomes a graph, and everything affine in it single convolutions."""
    from repconv.export.fused_graph import fuse_to_onnx, fuse_to_program

    from ..verify import dtype_of, probes

    model = loaded.checkpoint.model
    shape = _shape_of(loaded, settings)
    x = probes(shape, dtype=dtype_of(model))[0]
    inputs = [x, x.flip(3).expand(3, *shape)] if settings.dynamic_batch else [x, x.flip(3)]
    if out.suffix == ".onnx":
        fused = fuse_to_onnx(
            model, inputs, opset=settings.opset, dynamic_batch=settings.dynamic_batch, metadata=_metadata(loaded)
        )
    else:
        fused = fuse_to_program(model, inputs, dynamic_batch=settings.dynamic_batch)
    _write_graph(fused, loaded.name, loaded.path, out, settings, json_file)


def _fuse_graph(source: str, out: Path, settings: _Settings, json_file: str | None) -> None:
    """An .onnx file or a .pt2 program."""
    from repconv.export.fused_graph import fuse_onnx_file, fuse_program_file, program_to_onnx

    from ..errors import SourceError
    from ..files import sha256

    path = Path(source)
    if not path.is_file():
        raise SourceError(f"{source} {'is a directory; name a file' if path.is_dir() else 'is no file'}")
    metadata = {"repconv.source_sha256": sha256(path)}
    if path.suffix == ".onnx":
        fused = fuse_onnx_file(path, settings.input_shape, metadata)
    elif out.suffix == ".pt2":
        fused = fuse_program_file(path, settings.input_shape)
    else:
        fused = program_to_onnx(
            path, settings.input_shape, opset=settings.opset, dynamic_batch=settings.dynamic_batch, metadata=metadata
        )
    _write_graph(fused, source, path, out, settings, json_file)


def _write_graph(
    fused: Fused, name: str, path: Path | None, out: Path, settings: _Settings, json_file: str | None
) -> None:
    from repconv.export.fused_graph import write

    from .text import graph_tables, refusal_list

    report = fused.report
    if not report.layers:
        _nothing_to_fuse(name, already=False, strict=settings.strict)
    click.echo(graph_tables(report) + "\n")
    if fused.unmeasured:
        click.echo(refusal_list("not measured", fused.unmeasured) + "\n")
    _require(report)
    write(fused, out)
    extra: dict[str, object] = {"unmeasured": [vars(refusal) for refusal in fused.unmeasured]}
    _finish(name, path, out, settings, report, json_file, extra, None)


# Both


def _require(report: FusionReport) -> None:
    from .text import paragraph

    if report.agreement is not None and report.agreement.comparisons:
        click.echo(paragraph(report.agreement.verdict))
        report.agreement.require("the fused network")


def _finish(
    name: str, path: Path | None, out: Path, settings: _Settings, report: FusionReport, json_file: str | None,
    extra: dict[str, object], foretold: Forecast | None,
) -> None:  # fmt: skip
    from .record import file_record, write_json

    written = file_record(out)
    click.echo(f"\n  wrote {out}: {written['bytes']:,} bytes, sha256 {str(written['sha256'])[:16]}")
    if json_file is not None:
        write_json(json_file, "repconv.fuse/1", {
            "source": {"name": name, **(file_record(path) if path else {})},
            "settings": vars(settings),
            "output": {**written, "format": out.suffix.removeprefix("."), "verified": True, **extra},
            "report": report.to_dict(), **({"forecast": foretold.to_dict()} if foretold is not None else {}),
        })  # fmt: skip
