"""`repconv fuse`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import ImageShape, checked_output, json_option, source_options

if TYPE_CHECKING:
    from torch import nn

    from ..agreement import Agreement
    from ..report import FusionReport
    from ..sources import Source

_FORMATS = (".pt", ".safetensors", ".onnx")


@click.command(epilog="Example: repconv fuse checkpoint.pt -o fused.onnx --dynamic-batch --json report.json")
@click.argument("source")
@click.option(
    "-o", "--output", help="File to write: .pt, .safetensors or .onnx.  [default: NAME.fused.pt beside SOURCE NAME.pt]"
)
@click.option("--input-shape", type=ImageShape(), help="Image shape, if the checkpoint does not record one.")
@click.option("--opset", type=click.IntRange(13, 26), default=18, show_default=True, help="ONNX opset to write.")
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size of an ONNX file open.")
@click.option("--strict", is_flag=True, help="Exit 2 if there is nothing to fuse.")
@source_options
@json_option
def command(
    source: str,
    output: str | None,
    input_shape: tuple[int, int, int] | None,
    opset: int,
    dynamic_batch: bool,
    strict: bool,
    model_name: str | None,
    state_key: str | None,
    json_file: str | None,
) -> None:
    """Fold SOURCE, a multi-branch network, into single convolutions; verify; write the result.

    SOURCE is a repconv checkpoint, a state dict of a network named by --model, or timm:NAME[@WEIGHTS],
    torchvision:NAME[@WEIGHTS] or package.module:factory[@WEIGHTS].

    A result that differs from SOURCE by more than rounding is not written (exit code 1).
    """
    from ..errors import SourceError
    from ..forecasting import forecast
    from ..sources import open_source
    from ..verify import dtype_of, probes
    from .record import file_record, write_json
    from .text import fusion_tables, paragraph

    out = checked_output(output or _beside(source), source, _FORMATS, json_file)
    loaded = open_source(source, model=model_name, state_key=state_key)
    for note in loaded.notes:
        click.echo(f"repconv: {source}: {note}", err=True)
    shape = input_shape or loaded.checkpoint.input_shape
    if shape is None:
        raise SourceError(f"{source} records no image shape; give one, such as --input-shape 3,224,224")
    fused, report = _fuse_and_verify(loaded, shape, strict=strict)
    foretold = forecast(loaded.checkpoint.model, fused, report, probes(shape, dtype=dtype_of(fused)))
    click.echo(fusion_tables(report, foretold) + "\n")
    click.echo(paragraph(f"On random inputs, {foretold.verdict}.") + "\n")
    if report.agreement is not None:
        click.echo(paragraph(report.agreement.verdict))
        report.agreement.require("the fused network")
    if out.suffix == ".onnx":
        in_runtime = _write_onnx(out, loaded, fused, report, shape, opset, dynamic_batch=dynamic_batch)
        click.echo(paragraph(f"in onnxruntime {in_runtime.verdict}"))
        extra: dict[str, object] = {"opset": opset, "dynamic_batch": dynamic_batch, "onnxruntime": in_runtime.to_dict()}
    else:
        _write_checkpoint(out, loaded, fused, shape)
        extra = {}
    written = file_record(out)
    click.echo(f"\n  wrote {out}: {written['bytes']:,} bytes, sha256 {str(written['sha256'])[:16]}")
    if json_file is not None:
        write_json(json_file, "repconv.fuse/1", {
            "source": {"name": source, **(file_record(loaded.path) if loaded.path else {})},
            "settings": {"input_shape": shape, "opset": opset, "dynamic_batch": dynamic_batch, "strict": strict},
            "output": {**written, "format": out.suffix.removeprefix("."), "verified": True, **extra},
            "report": report.to_dict(), "forecast": foretold.to_dict(),
        })  # fmt: skip


def _beside(source: str) -> str:
    """The default output, in the folder of the source."""
    from ..errors import OutputError

    path = Path(source)
    if not path.is_file():
        raise OutputError(f"{source} is no file to write the result beside; name an output with -o")
    return str(path.with_name(f"{path.stem}.fused{path.suffix if path.suffix in _FORMATS else '.pt'}"))


def _fuse_and_verify(loaded: Source, shape: tuple[int, int, int], *, strict: bool) -> tuple[nn.Module, FusionReport]:
    from ..errors import SourceError
    from ..fusion import fuse
    from ..verify import count_flops, dtype_of, probes, verify

    model = loaded.checkpoint.model
    fused, report = fuse(model)
    if not report.layers:
        if strict and not loaded.checkpoint.fused:
            raise SourceError(f"{loaded.name}: nothing to fuse in it")
        state = "is already fused" if loaded.checkpoint.fused else "holds no blocks to fuse"
        click.echo(f"repconv: {loaded.name} {state}; it is verified and written as it is", err=True)
    report = report.with_flops(count_flops(model, shape), count_flops(fused, shape))
    return fused, report.with_agreement(verify(model, fused, probes(shape, dtype=dtype_of(model))))


def _write_onnx(
    out: Path, loaded: Source, fused: nn.Module, report: FusionReport, shape: tuple[int, int, int], opset: int,
    *, dynamic_batch: bool,
) -> Agreement:  # fmt: skip
    """Export, verify in onnxruntime against the unfused network, and only then write."""
    from repconv.export.to_onnx import to_onnx, verify_onnx

    from ..files import whole_file
    from ..verify import dtype_of, probes

    x = probes(shape, dtype=dtype_of(fused))[0]
    summary = {
        "layers": {layer.name: list(layer.branches) for layer in report.layers},
        "convolutions": [report.before.convolutions, report.after.convolutions],
        "parameters": [report.before.parameters, report.after.parameters],
    }
    metadata = {"repconv.fusion": json.dumps(summary), "repconv.source_sha256": loaded.sha256 or ""}
    if loaded.checkpoint.class_names:
        metadata["class_names"] = json.dumps(loaded.checkpoint.class_names)
    if loaded.checkpoint.normalization is not None:
        metadata["normalization"] = json.dumps(vars(loaded.checkpoint.normalization))
    content = to_onnx(fused, x, opset=opset, dynamic_batch=dynamic_batch, metadata=metadata).SerializeToString()
    inputs = [x, x.flip(3).expand(3, *shape)] if dynamic_batch else [x, x.flip(3)]
    agreement = verify_onnx(content, loaded.checkpoint.model, inputs)
    agreement.require("the ONNX model in onnxruntime")
    with whole_file(out) as stream:
        stream.write(content)
    return agreement


def _write_checkpoint(out: Path, loaded: Source, fused: nn.Module, shape: tuple[int, int, int]) -> None:
    from ..checkpoint import save

    known = loaded.checkpoint
    save(
        fused, out, class_names=known.class_names, normalization=known.normalization,
        input_shape=known.input_shape or shape, metrics=known.metrics,
    )  # fmt: skip
