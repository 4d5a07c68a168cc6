"""`repconv fuse`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .shared.command import Command, Reads, Writes
from .shared.options import InputShape, checked_output, json_option, source_options

if TYPE_CHECKING:
    from repconv.export.from_source import Fused, Model

    from ..blocks.forecast import Forecast
    from ..sources.source import Source


def _defaults(given: Mapping[str, Any]) -> list[Path]:
    """What may be written where no output is named."""
    from ..files.apart import named
    from ..sources.source import writable

    files = [path for path in named(given["source"], {}) if path.suffix != ".py"]
    return [path.with_name(f"{path.stem}.fused{suffix}") for path in files for suffix in writable(given["source"])]


@click.command(
    cls=Command, epilog="Example: repconv fuse checkpoint.pt -o fused.onnx --dynamic-batch --json report.json"
)
@click.argument("source", type=Reads(source=True))
@click.option(
    "-o",
    "--output",
    type=Writes(_defaults),
    help="File to write: .pt, .safetensors, .onnx or .pt2.  [default: NAME.fused.* beside SOURCE's file]",
)
@click.option(
    "--input-shape",
    "--image",
    "input_shape",
    type=InputShape(),
    help="Shape of one input, if SOURCE says none.",
)
@click.option("--opset", type=click.IntRange(13, 26), help="ONNX opset to write.  [default: 18]")
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size of an ONNX file or program open.")
@click.option("--strict", is_flag=True, help="Exit 2 if there is nothing to fuse.")
@source_options
@json_option
def command(
    source: str,
    output: str | None,
    input_shape: tuple[int, ...] | None,
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
    from repconv.export.from_source import FuseSettings, fuse_source, in_graph, write_fused

    from ..errors import VerificationError
    from ..sources.source import open_source, writable
    from .shared.text import fused_tables, paragraph

    out = None if output is None else checked_output(output, writable(source))
    _refuse_settings(source, out, opset, dynamic_batch=dynamic_batch)
    opened = open_source(source, model=model_name, state_key=state_key)
    for note in opened.notes:
        click.echo(f"repconv: {source}: {note}", err=True)
    out = out or _beside(opened)
    as_graph = opened.is_graph or in_graph(opened.checkpoint.model, out.suffix)
    settings = FuseSettings(input_shape, opset or 18, dynamic_batch)
    try:
        fused = fuse_source(opened, out.suffix, settings)
    except VerificationError as error:
        if error.report is not None:
            click.echo(fused_tables(error.report, as_graph=as_graph) + "\n")
        raise
    if not fused.report.layers:
        _nothing_to_fuse(source, already=not as_graph and opened.checkpoint.fused, strict=strict)
    foretold = fused.forecast()
    click.echo(fused_tables(fused.report, foretold, as_graph=as_graph) + "\n")
    if foretold is not None:
        click.echo(paragraph(f"On random inputs, {foretold.verdict}.") + "\n")
    if fused.report.agreement is not None and fused.report.agreement.comparisons:
        click.echo(paragraph(fused.report.agreement.verdict))
    if fused.in_runtime is not None:
        click.echo(paragraph(f"in onnxruntime {fused.in_runtime.verdict}"))
    write_fused(fused, out)
    _finish(opened, fused, out, {**vars(settings), "strict": strict}, json_file, foretold)


def _beside(source: Source) -> Path:
    """The default output, in the folder of the source's file."""
    from repconv.export.from_source import natural_suffix

    from ..errors import OutputError
    from ..sources.source import writable

    path = source.path
    if path is None:
        raise OutputError(f"{source.name} is no file to write the result beside; name an output with -o")
    suffix = writable(source.name)[0] if source.is_graph else natural_suffix(source.checkpoint.model, path.suffix)
    return path.with_name(f"{path.stem}.fused{suffix}")


def _refuse_settings(source: str, out: Path | None, opset: int | None, *, dynamic_batch: bool) -> None:
    """What a graph keeps as it is cannot be asked for."""
    from ..errors import SourceError
    from ..sources.source import is_graph, writable

    suffix = writable(source)[0]
    if is_graph(source) and (out is None or suffix == out.suffix) and (opset is not None or dynamic_batch):
        asked = "--opset" if opset is not None else "--dynamic-batch"
        raise SourceError(f"{asked}: a fused {suffix} file keeps the opset and the open sizes of its source")


def _nothing_to_fuse(name: str, *, already: bool, strict: bool) -> None:
    from ..errors import SourceError

    if strict and not already:
        raise SourceError(f"{name}: nothing to fuse in it")
    state = "is already fused" if already else "holds nothing to fuse"
    click.echo(f"repconv: {name} {state}; it is written as it is", err=True)


def _finish(
    source: Source,
    fused: Fused[Model],
    out: Path,
    settings: dict[str, object],
    json_file: str | None,
    foretold: Forecast | None,
) -> None:
    from .shared.record import file_record, write_json

    written = file_record(out)
    click.echo(f"\n  wrote {out}: {written['bytes']:,} bytes, sha256 {str(written['sha256'])[:16]}")
    extra: dict[str, object] = {}
    if fused.in_runtime is not None:
        extra = {key: settings[key] for key in ("opset", "dynamic_batch")} | {"onnxruntime": fused.in_runtime.to_dict()}
    elif fused.modules is None:
        extra = {"unmeasured": [vars(refusal) for refusal in fused.report.unmeasured]}
    if json_file is not None:
        write_json(
            json_file,
            "repconv.fuse/1",
            {
                "source": {"name": source.name, **(file_record(source.path) if source.path else {})},
                "settings": settings,
                "output": {**written, "format": out.suffix.removeprefix("."), "verified": True, **extra},
                "report": fused.report.to_dict(),
                **({"forecast": foretold.to_dict()} if foretold is not None else {}),
            },
        )
