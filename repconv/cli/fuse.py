"""`repconv fuse`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .shared.command import Command, Reads, Writes
from .shared.options import ImageShape, checked_output, json_option, source_options

if TYPE_CHECKING:
    from repconv.export.fusing import Fused, Model

    from ..blocks.forecast import Forecast
    from ..sources.source import Source


def _defaults(given: Mapping[str, Any]) -> list[Path]:
    """What may be written where no output is named."""
    from ..files.apart import named

    suffixes = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".pt2")
    files = [path for path in named(given["source"]) if path.suffix != ".py"]
    return [path.with_name(f"{path.stem}.fused{suffix}") for path in files for suffix in suffixes]


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
    "--input-shape", "--image", "input_shape", type=ImageShape(), help="Image shape, if SOURCE does not say one."
)
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
    from repconv.export.fusing import FORMATS, GRAPHS, FuseSettings, fuse_source, in_graph, write

    from ..errors import VerificationError
    from .shared.text import fused_tables, paragraph

    suffix = Path(source).suffix
    out = None if output is None else checked_output(output, GRAPHS.get(suffix, FORMATS))
    loaded = None
    if suffix in GRAPHS:
        _refuse_settings(suffix, opset, out, dynamic_batch=dynamic_batch, model_name=model_name)
    else:
        loaded = _opened(source, model_name, state_key)
    out = out or _beside(source, loaded)
    as_graph = loaded is None or in_graph(loaded.checkpoint.model, out.suffix)
    settings = FuseSettings(input_shape, opset or 18, dynamic_batch)
    try:
        fused = fuse_source(Path(source) if loaded is None else loaded, out.suffix, settings)
    except VerificationError as error:
        if error.report is not None:
            click.echo(fused_tables(error.report, as_graph=as_graph) + "\n")
        raise
    if not fused.report.layers:
        _nothing_to_fuse(source, already=loaded is not None and loaded.checkpoint.fused and not as_graph, strict=strict)
    foretold = _foretold(fused)
    click.echo(fused_tables(fused.report, foretold, as_graph=as_graph) + "\n")
    if foretold is not None:
        click.echo(paragraph(f"On random inputs, {foretold.verdict}.") + "\n")
    if fused.report.agreement is not None and fused.report.agreement.comparisons:
        click.echo(paragraph(fused.report.agreement.verdict))
    if fused.in_runtime is not None:
        click.echo(paragraph(f"in onnxruntime {fused.in_runtime.verdict}"))
    write(fused, out)
    _finish(source, loaded, fused, out, {**vars(settings), "strict": strict}, json_file, foretold)


def _opened(source: str, model_name: str | None, state_key: str | None) -> Source:
    from ..sources.source import open_source

    loaded = open_source(source, model=model_name, state_key=state_key)
    for note in loaded.notes:
        click.echo(f"repconv: {source}: {note}", err=True)
    return loaded


def _beside(source: str, loaded: Source | None) -> Path:
    """The default output, in the folder of the source's file."""
    from repconv.export.fusing import natural_suffix

    from ..errors import OutputError

    path = Path(source) if loaded is None else loaded.path
    if path is None or not path.is_file():
        raise OutputError(f"{source} is no file to write the result beside; name an output with -o")
    suffix = path.suffix if loaded is None else natural_suffix(loaded.checkpoint.model, path.suffix)
    return path.with_name(f"{path.stem}.fused{suffix}")


def _refuse_settings(
    suffix: str, opset: int | None, out: Path | None, *, dynamic_batch: bool, model_name: str | None
) -> None:
    """What a graph keeps as it is cannot be asked for."""
    from ..errors import SourceError

    if model_name is not None:
        raise SourceError(f"--model is for weights without their network; a {suffix} file holds its own")
    if (out is None or suffix == out.suffix) and (opset is not None or dynamic_batch):
        asked = "--opset" if opset is not None else "--dynamic-batch"
        raise SourceError(f"{asked}: a fused {suffix} file keeps the opset and the open sizes of its source")


def _nothing_to_fuse(name: str, *, already: bool, strict: bool) -> None:
    from ..errors import SourceError

    if strict and not already:
        raise SourceError(f"{name}: nothing to fuse in it")
    state = "is already fused" if already else "holds nothing to fuse"
    click.echo(f"repconv: {name} {state}; it is written as it is", err=True)


def _foretold(fused: Fused[Model]) -> Forecast | None:
    """What low precision will make of the blocks."""
    from ..blocks.forecast import forecast
    from ..blocks.verify import dtype_of, probes

    if fused.modules is None or fused.known is None or fused.shape is None:
        return None
    inputs = probes(fused.shape, dtype=dtype_of(fused.modules))
    return forecast(fused.known.model, fused.modules, fused.report, inputs)


def _finish(
    source: str,
    loaded: Source | None,
    fused: Fused[Model],
    out: Path,
    settings: dict[str, object],
    json_file: str | None,
    foretold: Forecast | None,
) -> None:
    from .shared.record import file_record, write_json

    path = Path(source) if loaded is None else loaded.path
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
                "source": {"name": source, **(file_record(path) if path else {})},
                "settings": settings,
                "output": {**written, "format": out.suffix.removeprefix("."), "verified": True, **extra},
                "report": fused.report.to_dict(),
                **({"forecast": foretold.to_dict()} if foretold is not None else {}),
            },
        )
